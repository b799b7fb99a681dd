"""Elements by index, and elements put where indices say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, bits_of, strides_of
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
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

Reduction: TypeAlias = Literal["none", "add", "mul", "max", "min"]


@op
def gather(x: Array, indices: Array, *, axis: int = 0, out: Array | None = None) -> Array:
    """Takes slices of x, of any dtype, at integer indices (K..) along an axis, which gives way to the axes K...

    Indices below 0 count from the end; one outside of [-n, n) is an IndexContentError.
    """
    ...


@op
def gather_elements(x: Array, indices: Array, *, axis: int = 0, out: Array | None = None) -> Array:
    """Takes one element of x, of any dtype, per index: the index says where along ``axis``, its own place all else.

    x and indices have as many dimensions; the result has the shape of indices. Indices below 0 count from the end.
    """
    ...


@op
def gather_nd(x: Array, indices: Array, *, out: Array | None = None) -> Array:
    """Takes slices of x, of any dtype, at places (.., K) along its first K axes; the result is (.., rest of x).

    Indices below 0 count from the end.
    """
    ...


@op
def scatter_elements(
    x: Array,
    indices: Array,
    updates: Array,
    *,
    axis: int = 0,
    reduction: Reduction = "none",
    out: Array | None = None,
) -> Array:
    """Copies x, of any dtype, and puts updates, shaped as indices, at the places that gather_elements would take.

    With a reduction an update is added to what is there, multiplied, or compared, in the order of the updates. Without
    one the last update of a place stays.
    """
    ...


@op
def scatter_nd(
    x: Array, indices: Array, updates: Array, *, reduction: Reduction = "none", out: Array | None = None
) -> Array:
    """Copies x, of any dtype, and puts updates (.., rest of x) at the places (.., K) that gather_nd would take.

    With a reduction an update is added to what is there, multiplied, or compared, in the order of the updates. Without
    one the last update of a place stays.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


@reference(gather)
def _(x: Any, indices: Any, *, axis: int) -> Any:
    return np.take(x, indices, axis=axis)


def _places(indices: Any, axis: int) -> tuple[Any, ...]:
    """The subscripts of gather_elements."""
    grid = list(np.ogrid[tuple(slice(0, n) for n in indices.shape)])
    grid[axis] = indices
    return tuple(grid)


@reference(gather_elements)
def _(x: Any, indices: Any, *, axis: int) -> Any:
    return x[_places(indices, axis)]


@reference(gather_nd)
def _(x: Any, indices: Any) -> Any:
    return x[tuple(np.moveaxis(indices, -1, 0))]


_UPDATES: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _put(x: Any, places: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    y = np.array(x)
    if reduction == "none":
        y[places] = updates
    else:
        _UPDATES[reduction].at(y, places, updates)
    return y


@reference(scatter_elements)
def _(x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
    return _put(x, _places(indices, axis), updates, reduction)


@reference(scatter_nd)
def _(x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
    return _put(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


# -------------------------------------------------------------------------------------------------- gradients


def _zeros_like(x: Array) -> Array:
    """Zeros in the shape of x, wherever x lives."""
    nothing = ops.crop(x, ((x.shape[0], 0), *((0, 0),) * (x.ndim - 1)))
    return ops.pad(nothing, pads=((x.shape[0], 0), *((0, 0),) * (x.ndim - 1)))


@backward(gather, of=("x",))
def _(dy: Array, x: Array, indices: Array, *, saved: None, wanted: Wanted, axis: int) -> Any:
    # As gather_nd along an axis that comes first.
    k = indices.ndim
    order = (axis, *(a for a in range(x.ndim) if a != axis))
    first = (*range(axis, axis + k), *(a for a in range(dy.ndim) if not axis <= a < axis + k))
    zeros = _zeros_like(ops.transpose(x, order))
    places = ops.reshape(ops.expand(indices, shape=indices.shape), (*indices.shape, 1))
    dx = scatter_nd(zeros, places, ops.transpose(dy, first), reduction="add")
    return (ops.transpose(dx, tuple(order.index(a) for a in range(x.ndim))),)


@backward(gather_elements, of=("x",))
def _(dy: Array, x: Array, indices: Array, *, saved: None, wanted: Wanted, axis: int) -> Any:
    return (scatter_elements(_zeros_like(x), indices, dy, axis=axis, reduction="add"),)


@backward(gather_nd, of=("x",))
def _(dy: Array, x: Array, indices: Array, *, saved: None, wanted: Wanted) -> Any:
    return (scatter_nd(_zeros_like(x), indices, dy, reduction="add"),)


# ------------------------------------------------------------------------------------------- samples and errors

for _op in (gather, gather_elements, gather_nd, scatter_elements, scatter_nd):
    tolerance(_op, ulp=0.5)
    dtypes(_op, "float32", "float64", "float16", "int32")


# A place takes a few roundings, of sums as large as their terms are.
for _op in (scatter_elements, scatter_nd):
    tolerance(_op, ulp=4)
    _op.rules["scale"] = lambda x, indices, updates, **attrs: (
        np.max(np.abs(np.asarray(x)), initial=0) + np.sum(np.abs(updates)) if attrs["reduction"] == "add" else 0.0
    )


@samples(gather)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), np.array([4, 0, -1]))
    yield sample(fill(4, 3), np.array([[0, 3], [-4, 1]], np.int32))
    yield sample(fill(2, 4, 5), np.array([1, 1, 3]), axis=1)
    yield sample(fill(2, 9), np.array(-1), axis=-1)
    yield sample(fill(4, 3, 2).T, np.array([2, 0])[::-1], axis=1)
    yield sample(fill(3, 0), np.array([1, 2]))
    yield sample(fill(3, 2), np.zeros((0,), np.int64))


@samples(gather_elements)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), np.array([4, 0, -1]))
    yield sample(fill(3, 4), fill.integers(2, 4, low=-3, high=3))
    yield sample(fill(3, 4), fill.integers(3, 7, low=-4, high=4, dtype=np.int32), axis=1)
    yield sample(fill(4, 3).T, fill.integers(4, 2, low=0, high=4).T, axis=-1)
    yield sample(fill(3, 2), np.zeros((0, 2), np.int64))


@samples(gather_nd)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), np.array([[4], [-1]]))
    yield sample(fill(3, 4, 5), np.array([[[0, 1]], [[2, -4]]], np.int32))
    yield sample(fill(3, 4), np.array([[0, 0], [2, 3], [1, -1]]))
    yield sample(fill(5, 4, 3).T, np.array([[2, 1]]))
    yield sample(fill(3, 2), np.zeros((0, 1), np.int64))


@samples(scatter_elements)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), np.array([4, 0, -1]), fill(3), reduction="add")
    for reduction in ("add", "max", "min", "mul"):
        yield sample(fill(3, 4), np.array([[0, 1, -1, 0], [2, 1, 0, 0]]), fill(2, 4), reduction=reduction)
    yield sample(fill(3, 4), np.array([[3, 1], [0, -1]], np.int32), fill(2, 2), axis=1)
    yield sample(fill(4, 3).T, np.array([[1, 0]]).T, fill(1, 2).T, axis=-1, reduction="add")
    yield sample(fill(3, 2), np.zeros((0, 2), np.int64), fill(0, 2), reduction="add")


@samples(scatter_nd)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), np.array([[4], [-1], [0]]), fill(3), reduction="add")
    for reduction in ("add", "max", "min", "mul"):
        yield sample(fill(3, 4), np.array([[0], [2], [0]]), fill(3, 4), reduction=reduction)
    yield sample(fill(3, 4, 2), np.array([[[0, 1]], [[2, -4]]], np.int32), fill(2, 1, 2))
    yield sample(fill(4, 3).T, np.array([[2, 1]]), fill(1), reduction="add")
    yield sample(fill(3, 2), np.zeros((0, 1), np.int64), fill(0, 2), reduction="add")


def _index_errors(fill: Fill, *rest: Any) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 2), np.ones((1, 1)), *rest), DTypeError, "indices has dtype float64; want int32")
    yield ErrorCase(
        sample(fill(3, 2), np.array([[3]]), *rest), IndexContentError, "indices has 3 at position 0; want -3 to 2"
    )


@errors(gather)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _index_errors(fill)
    yield ErrorCase(sample(fill(3), np.array([0]), axis=1), AttrError, "axis=1 is out of range")


@errors(gather_elements)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _index_errors(fill)
    yield ErrorCase(sample(fill(3), np.array([[0]])), ShapeError, "indices has 2 dimensions; want 1")
    yield ErrorCase(sample(fill(3, 2), np.zeros((1, 3), np.int64)), ShapeError, "want no larger sizes but along axis 0")


@errors(gather_nd)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _index_errors(fill)
    yield ErrorCase(sample(fill(3), np.array([[0, 0]])), ShapeError, "want a last axis of 1 to 1")


@errors(scatter_elements)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _index_errors(fill, fill(1, 1))
    yield ErrorCase(sample(fill(3), np.array([0, 1]), fill(3)), ShapeError, "updates has shape (3,)")
    yield ErrorCase(sample(fill(3), np.array([0]), np.ones(1, np.int8)), DTypeError, "updates has dtype int8")
    flags = np.array([True])
    yield ErrorCase(sample(flags, np.array([0]), flags, reduction="add"), DTypeError, "want a float or an integer")


@errors(scatter_nd)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _index_errors(fill, fill(1, 2))
    yield ErrorCase(
        sample(fill(3, 2), np.array([[0]]), fill(1, 3)), ShapeError, "updates has shape (1, 3); want (1, 2)"
    )


@workloads(gather)
def _() -> Iterator[Workload]:
    yield Workload("1024 rows of 50257x768", ((50257, 768), (1024,)))


@fills(gather)
def _(fill: Fill, x: Any, indices: Any) -> Any:
    return fill(*x), fill.integers(*indices, low=0, high=x[0])


# ------------------------------------------------------------------------------------------------------- OpenCL


@opencl(gather)
def _(queue: Queue, x: Any, indices: Any, y: Any, *, axis: int) -> None:
    n, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    queue.check_indices("indices", indices, n, least=-n)
    args = (x, queue.as_int64(indices), y, y.size, n, max(indices.size, 1), inner)
    queue.launch("gather.cl", "gather", y.size, GROUP_SIZE, args, BITS=bits_of(x))


@opencl(gather_elements)
def _(queue: Queue, x: Any, indices: Any, y: Any, *, axis: int) -> None:
    n, stride = x.shape[axis], strides_of(x)[axis]
    queue.check_indices("indices", indices, n, least=-n)
    if y.size:
        first = x[tuple(slice(0, 1 if a == axis else m) for a, m in enumerate(indices.shape))]
        places = queue.as_int64(indices)
        queue.each("gather.cl", "gather_elements", (first, places, y), n, stride, BITS=bits_of(x))


def _check_tuples(queue: Queue, x: Any, indices: Any) -> Any:
    """The sizes of the axes that a place names, and their steps."""
    k = indices.shape[-1]
    for d in range(k):
        queue.check_indices("indices", indices[..., d], x.shape[d], least=-x.shape[d])
    return np.array([*x.shape[:k], *(math.prod(x.shape[d + 1 :]) for d in range(k))], np.int64)


@opencl(gather_nd)
def _(queue: Queue, x: Any, indices: Any, y: Any) -> None:
    axes = _check_tuples(queue, x, indices)
    k = indices.shape[-1]
    args = (x, queue.as_int64(indices), y, y.size, math.prod(x.shape[k:]), axes)
    queue.launch("gather.cl", "gather_nd", y.size, GROUP_SIZE, args, BITS=bits_of(x), TUPLE=k)


_REDUCTIONS = ("none", "add", "mul", "max", "min")


@opencl(scatter_elements)
def _(queue: Queue, x: Any, indices: Any, updates: Any, y: Any, *, axis: int, reduction: str) -> None:
    n = x.shape[axis]
    queue.check_indices("indices", indices, n, least=-n)
    if indices.size == 0:
        queue.copy(x, y)
        return
    frame = np.array([*x.shape, *indices.shape], np.int64)
    args = (x, queue.as_int64(indices), updates, y, y.size, axis, _REDUCTIONS.index(reduction), frame)
    queue.launch("gather.cl", "scatter_elements", y.size, GROUP_SIZE, args, DTYPE=x.dtype, AXES=x.ndim)


@opencl(scatter_nd)
def _(queue: Queue, x: Any, indices: Any, updates: Any, y: Any, *, reduction: str) -> None:
    axes = _check_tuples(queue, x, indices)
    if indices.size == 0:
        queue.copy(x, y)
        return
    k = indices.shape[-1]
    sizes = (y.size, math.prod(x.shape[k:]), indices.size // k, _REDUCTIONS.index(reduction))
    args = (x, queue.as_int64(indices), updates, y, *sizes, axes)
    queue.launch("gather.cl", "scatter_nd", y.size, GROUP_SIZE, args, DTYPE=x.dtype, TUPLE=k)
