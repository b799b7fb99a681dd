"""The pass that computes a value in the order in which it will be copied, instead of copying it."""

from __future__ import annotations

from tilework import registry
from tilework.graph import ir
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value
from tilework.graph.passes import Add, replaced, used_once


def layout_propagation(graph: Graph) -> Graph:
    """Where a result is only transposed and then copied, the op writes it transposed; drops copies of what is dense."""
    once = used_once(graph)
    wanted: dict[Value, tuple[int, ...]] = {}  # the strides to write a value with
    for node in graph.nodes:
        source = _copied(node)
        if source is None or source not in once or source.node.op.name != "transpose":
            continue
        (made,) = source.node.operands
        assert isinstance(made, Value)
        node = made.node
        if made in once and not made.is_view and isinstance(node.op, registry.Op) and not node.updates:
            axes = source.node.attrs.get("axes") or tuple(range(len(made.shape)))[::-1]
            dense = ir.contiguous_strides(source.shape, source.dtype.itemsize)
            order = [a % len(made.shape) for a in axes]
            wanted[made] = tuple(dense[order.index(i)] for i in range(len(order)))

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        source = _copied(node)
        if source is not None and source.ghost.flags.c_contiguous and not source.base.node.is_source:
            return (source,)
        if not any(v in wanted for v in old.results):
            return None
        moved = Node(node.op, node.operands, node.attrs, where=node.where, updates=node.updates)
        moved.resolved = node.resolved
        moved.results = tuple(
            Value(moved, v.index, v.shape, v.dtype, wanted.get(before, v.strides))
            for before, v in zip(old.results, node.results, strict=True)
        )
        return add(moved)

    return replaced(graph, rule)


def _copied(node: Node) -> Value | None:
    """What a node copies as it is, None if it does anything else."""
    if node.op.name != "expand":
        return None
    (source,) = node.operands
    return source if isinstance(source, Value) and source.shape == node.results[0].shape else None
