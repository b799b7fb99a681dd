"""Reductions, running sums, and where the largest elements are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilework as tw
from tilework.dtypes import is_floating
from tilework.interop.onnx.rules import NodeView, axis_of, node


def _axes(n: NodeView, axes: Any, ndim: int) -> tuple[int, ...] | None:
    """The axes to reduce; None means none, where the node says so."""
    found = n.ints(axes, "axes") if axes is not None else n.get("axes", ())
    nothing = n.get("noop_with_empty_axes", 0)
    if found:
        return tuple(axis_of(a, ndim) for a in found)
    return None if nothing else tuple(range(ndim))


def _sum(x: Any, **how: Any) -> Any:
    return tw.reduce_sum(x, **how)


def _max(x: Any, **how: Any) -> Any:
    if not is_floating(x.dtype):  # the largest has the least of all other bits
        return tw.bitwise_not(tw.reduce_min(tw.bitwise_not(x), **how))
    if math.prod(x.shape) == 0:
        return tw.neg(tw.reduce_min(tw.neg(x), **how))
    return tw.reduce_max(x, **how)


def _log_sum_exp(x: Any, **how: Any) -> Any:
    return tw.logsumexp(x, **how) if math.prod(x.shape) else tw.log(_sum(tw.exp(x), **how))


def _extreme(op: Any) -> Any:
    """Of bools by way of integers."""

    def run(x: Any, **how: Any) -> Any:
        if x.dtype == np.bool_:
            return tw.cast(op(tw.cast(x, dtype=np.uint8), **how), dtype=np.bool_)
        return op(x, **how)

    return run


_SQUARE = {"ReduceL2", "ReduceSumSquare"}
_AFTER: dict[str, Any] = {"ReduceL2": tw.sqrt, "ReduceLogSum": tw.log}
_REDUCED: dict[str, Any] = {
    "ReduceMean": tw.reduce_mean,
    "ReduceMax": _extreme(_max),
    "ReduceMin": _extreme(tw.reduce_min),
    "ReduceProd": tw.reduce_prod,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(n: NodeView, x: Any, axes: Any = None) -> Any:
    chosen, kept = _axes(n, axes, len(x.shape)), bool(n.get("keepdims", 1))
    x = tw.abs(x) if n.kind == "ReduceL1" else tw.mul(x, x) if n.kind in _SQUARE else x
    if chosen is not None:
        x = _REDUCED.get(n.kind, _sum)(x, axes=chosen, keepdims=kept)
    return _AFTER[n.kind](x) if n.kind in _AFTER else x


for _name in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", *_REDUCED):
    node(_name)(_reduction)


@node("ArgMax", "ArgMin")
def arg(n: NodeView, x: Any) -> Any:
    op = tw.argmax if n.kind == "ArgMax" else tw.argmin
    how = {"keepdims": bool(n.get("keepdims", 1)), "last": bool(n.get("select_last_index", 0))}
    return op(x, axis=axis_of(n.get("axis", 0), len(x.shape)), **how)


@node("CumSum", "CumProd")
def running(n: NodeView, x: Any, axis: Any) -> Any:
    op = tw.cumsum if n.kind == "CumSum" else tw.cumprod
    how = {"exclusive": bool(n.get("exclusive", 0)), "reverse": bool(n.get("reverse", 0))}
    return op(x, axis=int(n.scalar(axis, "axis")), **how)


@node("TopK")
def top_k(n: NodeView, x: Any, k: Any = None) -> Any:
    n.read.add("sorted")  # they always are
    count = n.get("k") if k is None else int(n.scalar(k, "K"))
    return tw.top_k(x, k=count, axis=n.get("axis", -1), largest=bool(n.get("largest", 1)))


@node("Hardmax")
def hardmax(n: NodeView, x: Any) -> Any:
    axis = axis_of(n.get("axis", -1 if n.opset >= 13 else 1), len(x.shape))
    shape = tuple(x.shape)
    if n.opset < 13:  # of all axes from there on
        x, axis = tw.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:]))), 1
    place = tw.argmax(x, axis=axis, keepdims=True)
    along = np.arange(x.shape[axis]).reshape(-1, *(1,) * (len(x.shape) - 1 - axis))
    return tw.reshape(tw.cast(tw.equal(place, along), dtype=x.dtype), shape)
