"""The few nodes that an op amounts to in ONNX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Node = tuple[str, list[str], list[str], dict[str, Any]]  # op, inputs, results, attributes with perhaps a domain


@dataclass
class Graph:
    """Nodes in order, their constants, and the names of the results, which are the last node's unless given."""

    nodes: list[Node]
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    results: tuple[str, ...] = ()


def node(op: str, *inputs: str, opset: int = 20, **attrs: Any) -> Graph:
    """A graph of one node."""
    return Graph([(op, list(inputs), ["y"], attrs)], opset=opset)


def then(graph: Graph, activation: str | None) -> Graph:
    """The graph with an activation behind it."""
    if activation:
        op, inputs, _, attrs = graph.nodes[-1]
        graph.nodes[-1] = (op, inputs, ["before"], attrs)
        graph.nodes.append((activation.capitalize(), ["before"], ["y"], {}))
    return graph


def ends(padding: Any) -> list[int]:
    """ONNX's pads: all before, then all behind."""
    return [p[0] for p in padding] + [p[1] for p in padding]
