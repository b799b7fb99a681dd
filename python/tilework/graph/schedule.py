"""The pass that updates state as soon as it can be updated."""

from __future__ import annotations

from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value


def early_updates(graph: Graph) -> Graph:
    """Moves updates in place up to where what they take is made and the state is read no more.

    A training step then needs no room for all its gradients at once.
    """
    at: dict[Node, tuple[int, int]] = {}  # where a node goes: behind another, and its old place
    readers: dict[Value, list[Node]] = {}  # so far, by base
    for i, node in enumerate(graph.nodes):
        at[node] = (i, i)
        if node.updates:
            states = {v.base for k in node.updates if isinstance(v := node.operands[k], Value)}
            before = [v.node for v in node.values()] + [r for s in states for r in readers.get(s, ())]
            at[node] = (max(at[n][0] for n in before), i)
        for value in node.values():
            readers.setdefault(value.base, []).append(node)
    order = sorted(graph.nodes, key=at.__getitem__)
    return graph if order == graph.nodes else graph.changed(order)
