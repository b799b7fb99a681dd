"""The pass that computes a value in the order in which it will be copied, instead of copying it."""

from __future__ import annotations

import numpy as np

from tilework import registry
from tilework.arrays import Sizes
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value
from tilework.graph.passes import Add, replaced, used_once

# Orders are found by following every element of a value through the views of it, up to so many.
_MOST_ELEMENTS = 1 << 24


def layout_propagation(graph: Graph) -> Graph:
    """Where a result is only viewed and then copied, the op writes it in that order; drops copies of what is dense."""
    once = used_once(graph)
    wanted: dict[Value, Sizes] = {}  # the strides to write a value with
    copies: dict[Node, Value] = {}  # of such values
    for node in graph.nodes:
        source = _copied(node)
        if source is None or source.ghost.flags.c_contiguous:
            continue
        made, views = _origin(source, once)
        if made is None or made in wanted:
            continue
        strides = _strides_for(made, views)
        if strides is not None:
            wanted[made], copies[node] = strides, made
    placed: dict[Value, Value] = {}

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if old in copies:
            return _seen(placed[copies[old]], node.results[0].shape, add)
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
        add(moved)
        placed.update(zip(old.results, moved.results, strict=True))
        # The views between such a value and its copy keep the value as it was: nothing takes them any more.
        return tuple(v if v in wanted else now for v, now in zip(old.results, moved.results, strict=True))

    return replaced(graph, rule)


def _copied(node: Node) -> Value | None:
    """What a node copies as it is, None if it does anything else."""
    if node.op.name != "expand":
        return None
    (source,) = node.operands
    return source if isinstance(source, Value) and source.shape == node.results[0].shape else None


def _origin(source: Value, once: set[Value]) -> tuple[Value | None, list[Node]]:
    """The value that a chain of views, each of all elements and used by the next alone, begins with; the chain."""
    views: list[Node] = []
    while source in once and source.is_view:
        views.insert(0, source.node)
        (source,) = source.node.operands  # type: ignore[assignment]
        if source.size != views[0].results[0].size:
            return None, []
    fresh = source in once and isinstance(source.node.op, registry.Op) and not source.node.updates
    return (source if fresh and source.size <= _MOST_ELEMENTS else None), views


def _strides_for(value: Value, views: list[Node]) -> Sizes | None:
    """The strides that make what the views see contiguous, None if no strides do."""
    places = np.arange(value.size, dtype=np.int32).reshape(value.shape)
    seen = places
    for view in views:
        seen = view.op(seen, **view.attrs) if view.op.name != "reshape" else seen.reshape(view.attrs["shape"])
    at = np.empty(value.size, np.int32)
    at[seen.ravel()] = places.ravel()
    at = at.reshape(value.shape)
    steps = [int(at[tuple(int(e == d) for e in range(at.ndim))]) if n > 1 else 0 for d, n in enumerate(value.shape)]
    regular = np.zeros((), np.int32)
    for n, step in zip(value.shape, steps, strict=True):
        regular = regular[..., None] + np.arange(n, dtype=np.int32) * step
    return tuple(s * value.dtype.itemsize for s in steps) if np.array_equal(at, regular) else None


def _seen(value: Value, shape: Sizes, add: Add) -> tuple[Value, ...]:
    """A value whose elements lie in the order of a shape, in that shape."""
    order = tuple(sorted(range(len(value.shape)), key=lambda d: -value.strides[d]))
    (in_order,) = add(registry.find("transpose"), (value,), {"axes": order})
    return add(registry.find("reshape"), (in_order,), {"shape": shape})
