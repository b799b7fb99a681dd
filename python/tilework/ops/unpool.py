"""Values put back where max pooling found them: its gradient, its inverse, and the gradient of that."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Ints, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import accumulator
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
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


@op
def max_pool_dx(dy: Array, indices: Array, *, shape: Ints, out: Array | None = None) -> Array:
    """Computes the gradient of max_pool in x, (N, C, *shape), by adding dy (N, C, *out) at indices (N, C, *out).

    ``shape`` holds the spatial sizes of x; an index outside them is an IndexContentError.
    """
    ...


@op
def max_unpool(x: Array, indices: Array, *, shape: Ints, out: Array | None = None) -> Array:
    """Puts x (N, C, *small) at indices (N, C, *small) of zeros (N, C, *shape), ``shape`` being the spatial sizes.

    Indices are max_pool's, int64 positions in the flattened spatial axes; one outside is an IndexContentError. Of equal
    positions the last one counts.
    """
    ...


@op
def max_unpool_dx(dy: Array, indices: Array, *, out: Array | None = None) -> Array:
    """Computes the gradient of max_unpool in x, (N, C, *small), from dy (N, C, *shape) and indices (N, C, *small)."""
    ...


@reference(max_pool_dx)
def _(dy: Any, indices: Any, *, shape: Sizes) -> Any:
    n, c, *sizes = dy.shape
    planes, windows = n * c, math.prod(sizes)
    dx = np.zeros((planes, math.prod(shape)))
    np.add.at(dx, (np.arange(planes)[:, None], indices.reshape(planes, windows)), dy.reshape(planes, windows))
    return dx.reshape(n, c, *shape)


@depth(max_pool_dx)
def _(dy: Any, indices: Any, **attrs: Any) -> int:
    return math.prod(dy.shape[2:])


def _last_of_each(indices: Any, size: int) -> Any:
    """Per plane, the number of the last index of every position, -1 where there is none."""
    flat = indices.reshape(indices.shape[0] * indices.shape[1], math.prod(indices.shape[2:]))
    last = np.full((flat.shape[0], size), -1, np.int64)
    for o in range(flat.shape[1]):
        last[np.arange(flat.shape[0]), flat[:, o]] = o
    return last


@reference(max_unpool)
def _(x: Any, indices: Any, *, shape: Sizes) -> Any:
    last = _last_of_each(indices, math.prod(shape))
    if x.size == 0:
        return np.zeros((*x.shape[:2], *shape))
    values = np.take_along_axis(x.reshape(last.shape[0], -1), np.maximum(last, 0), axis=1)
    return np.where(last >= 0, values, 0.0).reshape(*x.shape[:2], *shape)


@reference(max_unpool_dx)
def _(dy: Any, indices: Any) -> Any:
    planes, size = dy.shape[0] * dy.shape[1], math.prod(dy.shape[2:])
    flat = indices.reshape(planes, math.prod(indices.shape[2:]))
    owner = np.take_along_axis(_last_of_each(indices, size), flat, axis=1) if flat.size else flat
    taken = np.take_along_axis(dy.reshape(planes, size), flat, axis=1)
    return np.where(owner == np.arange(flat.shape[1]), taken, 0.0).reshape(indices.shape)


@backward(max_unpool, of=("x",))
def _(dy: Array, x: Array, indices: Array, *, saved: None, wanted: Wanted, shape: Sizes) -> tuple[Array | None]:
    return (max_unpool_dx(dy, indices) if "x" in wanted else None,)


@backward(max_unpool_dx, of=("dy",))
def _(g: Array, dy: Array, indices: Array, *, saved: None, wanted: Wanted) -> tuple[Array | None]:
    return (max_unpool(g, indices, shape=dy.shape[2:]) if "dy" in wanted else None,)


def _places(fill: Fill, small: Sizes, size: int) -> Any:
    return fill.integers(*small, low=0, high=size)


@samples(max_pool_dx)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1, 1), fill.integers(1, 1, 1, low=0, high=1), shape=1)
    yield sample(fill(2, 3, 8), fill.integers(2, 3, 8, low=0, high=17), shape=(17,))
    yield sample(fill(2, 3, 4, 5), fill.integers(2, 3, 4, 5, low=0, high=80), shape=(8, 10))
    yield sample(fill(1, 2, 3, 3, 2), fill.integers(1, 2, 3, 3, 2, low=0, high=120), shape=(4, 6, 5))
    yield sample(fill(1, 2, 3, 3), np.full((1, 2, 3, 3), 4), shape=(3, 3))
    yield sample(fill(0, 2, 3, 3), fill.integers(0, 2, 3, 3, low=0, high=9), shape=(3, 3))


@samples(max_unpool)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1, 1), _places(fill, (1, 1, 1), 1), shape=1)
    yield sample(fill(2, 3, 8), _places(fill, (2, 3, 8), 17), shape=(17,))
    yield sample(fill(2, 3, 4, 5), _places(fill, (2, 3, 4, 5), 80), shape=(8, 10))
    yield sample(fill(1, 2, 2, 3, 2), _places(fill, (1, 2, 2, 3, 2), 48), shape=(4, 3, 4))
    yield sample(fill(1, 2, 3, 3), np.full((1, 2, 3, 3), 4), shape=(3, 3))
    yield sample(fill(0, 2, 3, 3), _places(fill, (0, 2, 3, 3), 9), shape=(3, 3))


@samples(max_unpool_dx)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(2, 3, 17), _places(fill, (2, 3, 8), 17))
    yield sample(fill(2, 3, 8, 10), _places(fill, (2, 3, 4, 5), 80))
    yield sample(fill(1, 2, 3, 3), np.full((1, 2, 3, 3), 4))
    yield sample(fill(0, 2, 3, 3), _places(fill, (0, 2, 2, 2), 9))


@errors(max_pool_dx)
@errors(max_unpool)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, good = fill(1, 2, 2, 2), np.zeros((1, 2, 2, 2), np.int64)
    for wrong in (16, -1, 1 << 62):
        indices = good.copy()
        indices[0, 1, 1, 1] = wrong
        yield ErrorCase(sample(x, indices, shape=(4, 4)), IndexContentError, f"indices has {wrong}")
    yield ErrorCase(sample(x, good[:, :1], shape=(4, 4)), ShapeError, "indices has shape (1, 1, 2, 2)")
    yield ErrorCase(sample(x, good.astype(np.int32), shape=(4, 4)), DTypeError, "indices has dtype int32; want int64")
    yield ErrorCase(sample(x, good, shape=(4, 4, 4)), AttrError, "shape=(4, 4, 4)")
    yield ErrorCase(sample(x, good), AttrTypeError, "shape")


@errors(max_unpool_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, good = fill(1, 2, 4, 4), np.zeros((1, 2, 2, 2), np.int64)
    yield ErrorCase(sample(dy, good + 16), IndexContentError, "indices has 16")
    yield ErrorCase(sample(dy, good[:, :1]), ShapeError, "indices has shape (1, 1, 2, 2)")
    yield ErrorCase(sample(fill(1, 2, 0), good[:, :, 0]), ShapeError, "dy has no elements along spatial axis 0")


@workloads(max_pool_dx)
@workloads(max_unpool)
def _() -> Iterator[Workload]:
    yield Workload("2x2 64x112x112", ((1, 64, 56, 56), (1, 64, 56, 56)), {"shape": (112, 112)})


@workloads(max_unpool_dx)
def _() -> Iterator[Workload]:
    yield Workload("2x2 64x112x112", ((1, 64, 112, 112), (1, 64, 56, 56)))


@fills(max_pool_dx)
@fills(max_unpool)
def _(fill: Fill, x: Sizes, indices: Sizes, *, shape: Sizes) -> Any:
    return fill(*x), _near(indices, shape)


@fills(max_unpool_dx)
def _(fill: Fill, dy: Sizes, indices: Sizes) -> Any:
    return fill(*dy), _near(indices, dy[2:])


def _near(indices: Sizes, shape: Sizes) -> Any:
    """Indices as a pool would give them: each output's is near its place in x."""
    places = [i * n // o for i, n, o in zip(np.indices(indices[2:]), shape, indices[2:], strict=True)]
    return np.broadcast_to(np.ravel_multi_index(places, shape), indices).astype(np.int64, order="C")


tolerance(max_unpool, ulp=0.5)
tolerance(max_unpool_dx, ulp=0.5)
for _target in (max_pool_dx, max_unpool, max_unpool_dx):
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(max_pool_dx)
def _(queue: Queue, dy: Any, indices: Any, dx: Any, *, shape: Sizes) -> None:
    size = math.prod(shape)
    queue.check_indices("indices", indices, size)
    sums = dx if dx.dtype == accumulator(dx.dtype) else queue.empty(dx.shape, accumulator(dx.dtype))
    queue.fill(sums, 0)
    planes, group = dy.shape[0] * dy.shape[1], 64 if queue.device.core == "S" else 1
    args = (dy, indices, sums, planes, math.prod(dy.shape[2:]), size)
    queue.launch("unpool.cl", "max_pool_dx", planes * group if dy.size else 0, group, args, DTYPE=dy.dtype, GROUP=group)
    if sums is not dx:
        queue.cast(sums, dx)


def _last(queue: Queue, indices: Any, size: int) -> Any:
    """Per plane, the number of the last index of every position, -1 where there is none, on the device."""
    queue.check_indices("indices", indices, size)
    planes, results = indices.shape[0] * indices.shape[1], math.prod(indices.shape[2:])
    last = queue.empty((planes, size), np.int64)
    queue.fill(last, -1)
    group = 64 if queue.device.core == "S" else 1
    args = (indices, last, planes, results, size)
    define = {"DTYPE": indices.dtype, "GROUP": group}
    queue.launch("unpool.cl", "last", planes * group if results else 0, group, args, **define)
    return last


@opencl(max_unpool)
def _(queue: Queue, x: Any, indices: Any, y: Any, *, shape: Sizes) -> None:
    size, results = math.prod(shape), math.prod(x.shape[2:])
    last = _last(queue, indices, size)
    queue.launch("unpool.cl", "unpool", y.size, GROUP_SIZE, (x, last, y, y.size, size, results), DTYPE=x.dtype)


@opencl(max_unpool_dx)
def _(queue: Queue, dy: Any, indices: Any, dx: Any) -> None:
    size, results = math.prod(dy.shape[2:]), math.prod(indices.shape[2:])
    args = (dy, indices, _last(queue, indices, size), dx, dx.size, size, results)
    queue.launch("unpool.cl", "unpool_dx", dx.size, GROUP_SIZE, args, DTYPE=dy.dtype)
