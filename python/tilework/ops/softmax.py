"""Softmax and log-softmax along one axis, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
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
def softmax(x: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    """Computes exp(x) / sum(exp(x)) along an axis of x, of any shape, without overflow."""
    ...


@op
def log_softmax(x: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    """Computes x - log(sum(exp(x))) along an axis of x, of any shape, without overflow."""
    ...


@op
def softmax_dx(dy: Array, y: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    """Computes the gradient of softmax, y (dy - sum(dy y)), from its result y; dy and y of one shape."""
    ...


@op
def log_softmax_dx(dy: Array, y: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    """Computes the gradient of log_softmax, dy - exp(y) sum(dy), from its result y; dy and y of one shape."""
    ...


@reference(softmax)
def _softmax(x: Any, *, axis: int) -> Any:
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=axis, keepdims=True)


@reference(log_softmax)
def _log_softmax(x: Any, *, axis: int) -> Any:
    below = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


@reference(softmax_dx)
def _(dy: Any, y: Any, *, axis: int) -> Any:
    return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


@reference(log_softmax_dx)
def _(dy: Any, y: Any, *, axis: int) -> Any:
    return dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)


@forward(softmax)
def _(x: Array, *, axis: int) -> tuple[Array, Array]:
    y = softmax(x, axis=axis)
    return y, y


@forward(log_softmax)
def _(x: Array, *, axis: int) -> tuple[Array, Array]:
    y = log_softmax(x, axis=axis)
    return y, y


@backward(softmax, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, axis: int) -> Array:
    return softmax_dx(dy, softmax(x, axis=axis) if saved is None else saved, axis=axis)


@backward(log_softmax, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, axis: int) -> Array:
    return log_softmax_dx(dy, log_softmax(x, axis=axis) if saved is None else saved, axis=axis)


def _total(x: Array, axis: int) -> Array:
    return ops.reduce_sum(x, axes=axis, keepdims=True)


@backward(softmax_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted, axis: int) -> Any:
    d_dy = softmax_dx(g, y, axis=axis) if "dy" in wanted else None
    d_y = None
    if "y" in wanted:
        centred = ops.sub(dy, _total(ops.mul(dy, y), axis))
        d_y = ops.sub(ops.mul(g, centred), ops.mul(dy, _total(ops.mul(g, y), axis)))
    return d_dy, d_y


@backward(log_softmax_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted, axis: int) -> Any:
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
    yield ErrorCase(sample(fill()), ShapeError, "x has shape ()")
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64")


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


def _rows(kernel: str) -> Callable[..., None]:
    def run(queue: Queue, *arrays: Any, axis: int) -> None:
        y = arrays[-1]
        n, inner = y.shape[axis], math.prod(y.shape[axis + 1 :])
        group = group_for(queue, n) if inner == 1 else 1
        rows = y.size // n if n else 0
        define = {"DTYPE": y.dtype, "GROUP": group}
        if group > 1 and n <= 16 * group:
            define["PER_ITEM"] = 1 << (-(-n // group) - 1).bit_length()
        args = (*arrays, rows, n, inner)
        queue.launch("softmax.cl", kernel, rows * group, group if group > 1 else GROUP_SIZE, args, **define)

    return run


for _target in (softmax, log_softmax, softmax_dx, log_softmax_dx):
    opencl(_target)(_rows(_target.name))
