"""Sums, means and maxima over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Axes, Sizes, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_reduce import accumulator, reduce
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
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
def reduce_sum(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Sums x over axes, all of them by default; keepdims leaves each with size 1. An empty sum is 0."""
    ...


@op
def reduce_mean(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Averages x over axes, all of them by default; keepdims leaves each with size 1. An empty mean is NaN."""
    ...


@op
def reduce_max(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Takes the maximum of x over axes, all of them by default; keepdims leaves each with size 1.

    NaN wins over numbers; an empty maximum is a ShapeError.
    """
    ...


@op
def reduce_max_dx(
    dy: Array, x: Array, y: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None
) -> Array:
    """Computes the gradient of reduce_max in x, of x's shape, from dy and the result y, both of the reduced shape.

    Equal maxima share dy evenly; a maximum that is NaN, or a dy that is, makes all of its elements NaN.
    """
    ...


def _kept(y: Array, shape: Sizes, axes: Sizes) -> Array:
    """y with the reduced axes of ``shape`` back at size 1, a view."""
    return ops.reshape(y, shape=tuple(1 if i in axes else n for i, n in enumerate(shape)))


@reference(reduce_sum)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims)


@reference(reduce_mean)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims) / np.float64(math.prod(x.shape[a] for a in axes))


@reference(reduce_max)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    return np.max(x, axis=axes, keepdims=keepdims)


@reference(reduce_max_dx)
def _(dy: Any, x: Any, y: Any, *, axes: Sizes, keepdims: bool) -> Any:
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    chosen = x == y.reshape(kept)
    count = chosen.sum(axis=axes, keepdims=True)
    share = np.where(count > 0, dy.reshape(kept) / count, np.nan)
    return np.where(chosen | np.isnan(share), share, 0.0)


@depth(reduce_sum)
@depth(reduce_mean)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> int:
    return math.prod(x.shape[a] for a in axes)


@backward(reduce_sum, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    return ops.expand(_kept(dy, x.shape, axes), shape=x.shape)


@backward(reduce_mean, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    count = max(1, math.prod(x.shape[a] for a in axes))
    return ops.expand(_kept(ops.div(dy, float(count)), x.shape, axes), shape=x.shape)


@forward(reduce_max)
def _(x: Array, *, axes: Sizes, keepdims: bool) -> tuple[Array, Array]:
    y = reduce_max(x, axes=axes, keepdims=keepdims)
    return y, y


@backward(reduce_max, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    y = reduce_max(x, axes=axes, keepdims=keepdims) if saved is None else saved
    return reduce_max_dx(dy, x, y, axes=axes, keepdims=keepdims)


def _reduced(make: Callable[..., Any], *, empty: bool) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 15, 16, 17, 33, 100):
        yield sample(make(n))
    yield sample(make())
    for axes in (0, -1, (0,), (0, 2), (1, 2), (-1, 0), None):
        yield sample(make(5, 3, 17), axes=axes)
        yield sample(make(5, 3, 17), axes=axes, keepdims=True)
    yield sample(make(2, 3, 4, 9), axes=(0, 2, 3))
    yield sample(make(9, 4, 3).T, axes=1)
    yield sample(make(3, 0, 2), axes=2)
    if empty:
        yield sample(make(3, 0, 2), axes=1)
        yield sample(make(0))


@samples(reduce_sum)
@samples(reduce_mean)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _reduced(fill, empty=True)


@samples(reduce_max)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _reduced(fill.distinct, empty=False)


@samples(reduce_max_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for make in (fill.distinct, lambda *shape: fill.integers(*shape, low=0, high=3, dtype=fill.dtype)):
        for s in _reduced(make, empty=False):
            x = s.args[0]
            y = np.asarray(np.max(x, axis=s.attrs.get("axes"), keepdims="keepdims" in s.attrs))
            yield Sample((fill(*y.shape), x, y), s.attrs)


def _axes_errors(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(2, 3)
    yield ErrorCase(sample(x, axes=2), AttrError, "axes=2")
    yield ErrorCase(sample(x, axes=-3), AttrError, "axes=-3")
    yield ErrorCase(sample(x, axes=(0, 0)), AttrError, "axes=(0, 0)")
    yield ErrorCase(sample(x, axes=(1, -1)), AttrError, "axes=(1, -1)")
    yield ErrorCase(sample(x, axes=1.0), AttrTypeError, "axes=1.0 is a float; want None, an int or a tuple of ints")
    yield ErrorCase(sample(x, keepdims=1), AttrTypeError, "keepdims=1 is a int; want a bool")
    yield ErrorCase(sample(np.ones((2, 3), np.int64)), DTypeError, "x has dtype int64")


errors(reduce_sum)(_axes_errors)
errors(reduce_mean)(_axes_errors)


@errors(reduce_max)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _axes_errors(fill)
    yield ErrorCase(sample(fill(3, 0), axes=1), ShapeError, "x has shape (3, 0)")


@errors(reduce_max_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3), fill(2, 3), fill(2), axes=1), ShapeError, "dy has shape (3,); want (2,)")
    yield ErrorCase(sample(fill(2), fill(2, 3), fill(2, 1), axes=1), ShapeError, "y has shape (2, 1); want (2,)")
    yield ErrorCase(sample(fill(2), fill(2, 3), fill(2), axes=5), AttrError, "axes=5")


for _reduction in (reduce_sum, reduce_mean, reduce_max):

    @workloads(_reduction)
    def _() -> Iterator[Workload]:
        yield Workload("4096x1024 rows", ((4096, 1024),), {"axes": -1})
        yield Workload("4096x1024 columns", ((4096, 1024),), {"axes": 0})
        yield Workload("4096x1024 all", ((4096, 1024),))


@workloads(reduce_max_dx)
def _() -> Iterator[Workload]:
    yield Workload("4096x1024 rows", ((4096,), (4096, 1024), (4096,)), {"axes": -1})


for _target in (reduce_sum, reduce_mean, reduce_max, reduce_max_dx):
    dtypes(_target, *FLOATING)

tolerance(reduce_max, ulp=0.5)
tolerance(reduce_max_dx, ulp=0.5)


@fills(reduce_max_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, y: Sizes, *, axes: Axes = None, **attrs: Any) -> Any:
    values = fill(*x)
    top = np.max(values, axis=None if axes is None else tuple(np.atleast_1d(axes)), keepdims=True)
    return fill(*dy), values, top.reshape(y)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(reduce_sum)
def _(queue: Queue, x: Any, y: Any, *, axes: Sizes, keepdims: bool) -> None:
    reduce(queue, "sum", x, y, axes)


@opencl(reduce_mean)
def _(queue: Queue, x: Any, y: Any, *, axes: Sizes, keepdims: bool) -> None:
    reduce(queue, "sum", x, y, axes, divisor=float(math.prod(x.shape[a] for a in axes)))


@opencl(reduce_max)
def _(queue: Queue, x: Any, y: Any, *, axes: Sizes, keepdims: bool) -> None:
    reduce(queue, "max", x, y, axes)


@opencl(reduce_max_dx)
def _(queue: Queue, dy: Any, x: Any, y: Any, dx: Any, *, axes: Sizes, keepdims: bool) -> None:
    count = queue.empty(y.shape, accumulator(y.dtype))
    reduce(queue, "count", x, count, axes, largest=y)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    dy, y, count = (queue.contiguous(a).reshape(kept) for a in (dy, y, count))
    queue.each("reduce.cl", "spread", (dy, x, y, count, dx), DTYPE=x.dtype, SPREAD=1)
