"""Softmax, log-softmax and the logarithm of a sum of exponentials along any axes, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Axes, Ints, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import group_for
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
    forward,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def softmax(x: Array, *, axis: Ints = -1, out: Array | None = None) -> Array:
    """Computes exp(x) / sum(exp(x)) along an axis of x, or over several, without overflow; x of any shape."""
    ...


@op
def log_softmax(x: Array, *, axis: Ints = -1, out: Array | None = None) -> Array:
    """Computes x - log(sum(exp(x))) along an axis of x, or over several, without overflow; x of any shape."""
    ...


@op
def softmax_dx(dy: Array, y: Array, *, axis: Ints = -1, out: Array | None = None) -> Array:
    """Computes the gradient of softmax, y (dy - sum(dy y)), from its result y; dy and y of one shape."""
    ...


@op
def log_softmax_dx(dy: Array, y: Array, *, axis: Ints = -1, out: Array | None = None) -> Array:
    """Computes the gradient of log_softmax, dy - exp(y) sum(dy), from its result y; dy and y of one shape."""
    ...


@reference(softmax)
def _softmax(x: Any, *, axis: Sizes) -> Any:
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=axis, keepdims=True)


@reference(log_softmax)
def _log_softmax(x: Any, *, axis: Sizes) -> Any:
    below = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


@reference(softmax_dx)
def _(dy: Any, y: Any, *, axis: Sizes) -> Any:
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


@reference(log_softmax_dx)
def _(dy: Any, y: Any, *, axis: Sizes) -> Any:
    return dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)


@forward(softmax)
def _(x: Array, *, axis: Sizes) -> tuple[Array, Array]:
    y = softmax(x, axis=axis)
    return y, y


@forward(log_softmax)
def _(x: Array, *, axis: Sizes) -> tuple[Array, Array]:
    y = log_softmax(x, axis=axis)
    return y, y


@backward(softmax, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, axis: Sizes) -> Array:
    return softmax_dx(dy, softmax(x, axis=axis) if saved is None else saved, axis=axis)


@backward(log_softmax, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, axis: Sizes) -> Array:
    return log_softmax_dx(dy, log_softmax(x, axis=axis) if saved is None else saved, axis=axis)


def _total(x: Array, axis: Sizes) -> Array:
    return ops.reduce_sum(x, axes=axis, keepdims=True)


@backward(softmax_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted, axis: Sizes) -> Any:
    d_dy = softmax_dx(g, y, axis=axis) if "dy" in wanted else None
    d_y = None
    if "y" in wanted:
        centred = ops.sub(dy, _total(ops.mul(dy, y), axis))
        d_y = ops.sub(ops.mul(g, centred), ops.mul(dy, _total(ops.mul(g, y), axis)))
    return d_dy, d_y


@backward(log_softmax_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted, axis: Sizes) -> Any:
    weighted = ops.mul(g, ops.exp(y))
    d_dy = ops.sub(g, _total(weighted, axis)) if "dy" in wanted else None
    d_y = ops.mul(ops.mul(weighted, _total(dy, axis)), -1.0) if "y" in wanted else None
    return d_dy, d_y


# The largest terms, where the result itself may be smaller by cancellation.
log_softmax.rules["scale"] = lambda x, *, axis: 1 + np.abs(_log_softmax(x, axis=axis))
softmax_dx.rules["scale"] = lambda dy, y, *, axis: y * (np.abs(dy) + np.abs(dy * y).sum(axis=axis, keepdims=True))
log_softmax_dx.rules["scale"] = lambda dy, y, *, axis: np.abs(dy) + np.exp(y) * np.abs(dy).sum(axis=axis, keepdims=True)


@samples(softmax)
@samples(log_softmax)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 15, 16, 17, 33, 100):
        yield sample(fill(n))
    for axis in (0, 1, -1):
        yield sample(fill(5, 3, 17), axis=axis)
    yield sample(fill(7, 9) * 20)
    yield sample(fill(9, 4, 3).T, axis=1)
    yield sample(fill(3, 0, 2))
    yield sample(fill(3, 0), axis=-1)
    yield sample(fill(2, 3, 4, 5), axis=(1, 2))
    yield sample(fill(3, 4, 9), axis=(-1, 0))


def _gradient_samples(target: Any) -> Any:
    def run(fill: Fill) -> Iterator[Sample]:
        for s in target.rules["samples"](fill):
            x = s.args[0].astype(np.float64)
            with np.errstate(all="ignore"):
                y = np.asarray(target.rules["reference"](x, axis=s.attrs.get("axis", -1)), fill.dtype)
            yield Sample((fill(*x.shape), y), s.attrs)

    return run


def _axis_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), axis=2), AttrError, "axis=2")
    yield ErrorCase(sample(fill(2, 3), axis=-3), AttrError, "axis=-3")
    yield ErrorCase(sample(fill(2, 3), axis=None), AttrTypeError, "axis=None")
    yield ErrorCase(sample(fill(2, 3), axis=(0, 0)), AttrError, "axis=(0, 0)")
    yield ErrorCase(sample(fill()), ShapeError, "x has shape ()")
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64")


@op
def logsumexp(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Computes log(sum(exp(x))) over axes of x, all of them by default, without overflow.

    keepdims leaves each with size 1. The logarithm of an empty sum, and of one of -Inf alone, is -Inf.
    """
    ...


def _parts(x: Any, axes: Sizes) -> tuple[Any, Any]:
    """The largest x, 0 if it is infinite, and log(sum(exp(x - it))), with the axes kept."""
    top = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    return top, np.log(np.exp(x - top).sum(axis=axes, keepdims=True))


@reference(logsumexp)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    y = np.add(*_parts(x, axes))
    return y if keepdims else y.squeeze(axes)


@backward(logsumexp, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    if x.ndim == 0:
        return ops.mul(dy, 1.0)
    kept = ops.reshape(dy, shape=tuple(1 if i in axes else n for i, n in enumerate(x.shape)))
    return ops.mul(softmax(x, axis=axes), kept)


def _sizes_of_parts(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    sizes = np.add(*(np.abs(part) for part in _parts(x, axes)))
    return sizes if keepdims else sizes.squeeze(axes)


logsumexp.rules["scale"] = _sizes_of_parts
tolerance(logsumexp, ulp=4)
dtypes(logsumexp, *FLOATING)


@samples(logsumexp)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 8, 17, 100):
        yield sample(fill(n))
    yield sample(fill())
    for axes in (0, 1, -1, (0, 2), (1, 2)):
        yield sample(fill(5, 3, 17), axes=axes)
    yield sample(fill(2, 3, 4), axes=(0, 1), keepdims=True)
    yield sample(fill(7, 9) * 20, axes=1)
    yield sample(fill(9, 4, 3).T, axes=1)
    yield sample(fill(3, 0), axes=1)
    yield sample(fill(0, 3), axes=0)
    yield sample(fill(0, 3), axes=1)


@errors(logsumexp)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), axes=2), AttrError, "axes=2")
    yield ErrorCase(sample(fill(2, 3), axes=(0, -2)), AttrError, "axes=(0, -2)")
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64")


@workloads(logsumexp)
def _() -> Iterator[Workload]:
    yield Workload("4096x1024", ((4096, 1024),), {"axes": -1})
    yield Workload("4096x1024 columns", ((4096, 1024),), {"axes": 0})


def _gradient_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(3)), ShapeError, "y has shape (3,)")
    yield ErrorCase(sample(fill(2, 3), fill(2, 3), axis=5), AttrError, "axis=5")


for _function, _gradient in ((softmax, softmax_dx), (log_softmax, log_softmax_dx)):
    samples(_gradient)(_gradient_samples(_function))
    errors(_function)(_axis_errors)
    errors(_gradient)(_gradient_errors)
    tolerance(_function, ulp=8)
    tolerance(_gradient, ulp=8)
    dtypes(_function, *FLOATING)
    dtypes(_gradient, *FLOATING)

    @workloads(_function)
    def _() -> Iterator[Workload]:
        yield Workload("4096x1024", ((4096, 1024),))
        yield Workload("1536x128", ((12, 128, 128),), sets=("transformer",))
        yield Workload("1x50257", ((1, 50257),))
        yield Workload("4096x1024 columns", ((4096, 1024),), {"axis": 0})

    @workloads(_gradient)
    def _() -> Iterator[Workload]:
        yield Workload("4096x1024", ((4096, 1024), (4096, 1024)))
        yield Workload("1536x128", ((12, 128, 128), (12, 128, 128)), sets=("transformer",))


@fills(softmax_dx)
def _(fill: Fill, dy: Sizes, y: Sizes, **attrs: Any) -> Any:
    return fill(*dy), fill.positive(*y) / np.asarray(y[-1], fill.dtype)


@fills(log_softmax_dx)
def _(fill: Fill, dy: Sizes, y: Sizes, **attrs: Any) -> Any:
    return fill(*dy), -fill.positive(*y)


# ------------------------------------------------------------------------------------------------- OpenCL


def _lines(queue: Queue, arrays: tuple[Any, ...], axes: Sizes) -> tuple[tuple[Any, ...], int, int]:
    """Arrays whose lines are evenly spaced, copied if they must be, the length of a line and the step along it."""
    x = arrays[0]
    n = math.prod(x.shape[a] for a in axes)
    span = range(axes[0], axes[-1] + 1) if axes else ()
    if all(a in axes or x.shape[a] == 1 for a in span):
        return arrays, n, math.prod(x.shape[axes[-1] + 1 :]) if axes else 1
    order = (*(a for a in range(x.ndim) if a not in axes), *axes)
    return tuple(queue.contiguous(a.transpose(order)) for a in arrays), n, 1


def _rows(kernel: str, *, kept: bool) -> Callable[..., None]:
    """A launch of ``kernel``, whose result has the shape of its operands, or holds one number of each line."""

    def run(queue: Queue, *arrays: Any, axis: Sizes = (), axes: Sizes = (), keepdims: bool = False) -> None:
        (*operands, y), along = arrays, axis or axes
        moved, n, inner = _lines(queue, tuple(operands), along)
        target = y if moved[0] is operands[0] or not kept else queue.empty(moved[0].shape, y.dtype)
        group = group_for(queue, n) if inner == 1 else 1
        rows = operands[0].size // n if n else y.size if not kept else 0
        define = {"DTYPE": y.dtype, "GROUP": group}
        if group > 1 and n <= 16 * group:
            define["PER_ITEM"] = 1 << (-(-n // group) - 1).bit_length()
        args = (*moved, target, rows, n, inner)
        queue.launch("softmax.cl", kernel, rows * group, group if group > 1 else GROUP_SIZE, args, **define)
        if target is not y:
            order = (*(a for a in range(y.ndim) if a not in along), *along)
            queue.copy(target, y.transpose(order))

    return run


for _target in (softmax, log_softmax, softmax_dx, log_softmax_dx):
    opencl(_target)(_rows(_target.name, kept=True))
opencl(logsumexp)(_rows("logsumexp", kept=False))
