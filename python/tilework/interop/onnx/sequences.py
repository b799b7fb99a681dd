"""Sequences of tensors, which are lists while a model becomes a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

import tilework as tw
from tilework.interop.onnx.rules import NodeView, axis_of, node


@node("SequenceEmpty")
def empty(n: NodeView) -> Any:
    n.read.add("dtype")
    return ([],)


@node("SequenceConstruct")
def construct(n: NodeView, *items: Any) -> Any:
    return (list(items),)


def _place(n: NodeView, position: Any, count: int, *, behind: bool = False) -> int:
    at = count if position is None else int(n.scalar(position, "position"))
    n.want(-count <= at < count + behind, f"position {at} of {count}")
    return at % count if at < 0 else at


@node("SequenceInsert")
def insert(n: NodeView, items: list[Any], item: Any, position: Any = None) -> Any:
    at = _place(n, position, len(items), behind=True)
    return ([*items[:at], item, *items[at:]],)


@node("SequenceErase")
def erase(n: NodeView, items: list[Any], position: Any = None) -> Any:
    at = _place(n, position, len(items)) if position is not None else len(items) - 1
    return ([*items[:at], *items[at + 1 :]],)


@node("SequenceAt")
def at(n: NodeView, items: list[Any], position: Any) -> Any:
    return items[_place(n, position, len(items))]


@node("SequenceLength")
def length(n: NodeView, items: list[Any]) -> Any:
    return np.asarray(len(items), np.int64)


@node("ConcatFromSequence")
def joined(n: NodeView, items: list[Any]) -> Any:
    axis, new = n.get("axis"), n.get("new_axis", 0)
    if new:
        axis = axis_of(axis, len(items[0].shape) + 1)
        items = [tw.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in items]
    return tw.concat(items, axis=axis)


@node("SplitToSequence")
def split(n: NodeView, x: Any, sizes: Any = None) -> Any:
    axis = axis_of(n.get("axis", 0), len(x.shape))
    kept, total = n.get("keepdims", 1), x.shape[axis]
    parts = (1,) * total if sizes is None else n.ints(sizes, "split")
    if sizes is not None and not sizes.shape:  # pieces of one size, the last of what is left
        parts = tuple(min(parts[0], total - i) for i in range(0, total, parts[0]))
    ends = np.cumsum(parts).tolist()
    items = [x[(*(slice(None),) * axis, slice(e - p, e))] for p, e in zip(parts, ends, strict=True)]
    if sizes is None and not kept:
        items = [tw.reshape(v, (*v.shape[:axis], *v.shape[axis + 1 :])) for v in items]
    return (items,)


@node("Optional")
def optional(n: NodeView, x: Any = None) -> Any:
    n.read.add("type")
    return (x,)


@node("OptionalHasElement")
def has_element(n: NodeView, x: Any = None) -> Any:
    return np.asarray(x is not None)


@node("OptionalGetElement")
def element(n: NodeView, x: Any) -> Any:
    return (x,)
