"""Pooling to a given size, or to one number per channel, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Ints, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
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
def adaptive_avg_pool(x: Array, *, size: Ints, out: Array | None = None) -> Array:
    """Averages x (N, C, *spatial) over windows that share it out among (N, C, *size); the rank, 1 to 3, follows x.

    Window o along an axis of n elements is [floor(o n / size), ceil((o + 1) n / size)), as in PyTorch.
    """
    ...


@op
def adaptive_avg_pool_dx(dy: Array, *, shape: Ints, out: Array | None = None) -> Array:
    """Computes the gradient of adaptive_avg_pool in x, (N, C, *shape), from dy (N, C, *size)."""
    ...


@op
def adaptive_max_pool(
    x: Array, *, size: Ints, return_indices: bool = False, out: Array | tuple[Array, Array] | None = None
) -> Any:
    """Takes the maximum of x (N, C, *spatial) over the windows of adaptive_avg_pool, giving (N, C, *size).

    With return_indices the result is (y, indices), indices being int64 positions in the flattened spatial axes of x.
    The first of equal maxima wins, and NaN wins over numbers.
    """
    ...


def global_avg_pool(x: Array, *, out: Array | None = None) -> Array:
    """Averages each channel of x (N, C, *spatial), to (N, C, 1, ...)."""
    return adaptive_avg_pool(x, size=1, out=out)


def global_max_pool(x: Array, *, out: Array | None = None) -> Array:
    """Takes the maximum of each channel of x (N, C, *spatial), to (N, C, 1, ...)."""
    pooled: Array = adaptive_max_pool(x, size=1, out=out)
    return pooled


def _windows(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each window along an axis of n elements begins and ends."""
    for o in range(size):
        yield o * n // size, -(-(o + 1) * n // size)


@reference(adaptive_avg_pool)
def _(x: Any, *, size: Sizes) -> Any:
    for axis, m in enumerate(size, 2):
        along = np.moveaxis(x, axis, 0)
        x = np.moveaxis(np.array([along[a:b].sum(axis=0) / (b - a) for a, b in _windows(len(along), m)]), 0, axis)
    return x


@reference(adaptive_avg_pool_dx)
def _(dy: Any, *, shape: Sizes) -> Any:
    for axis, n in enumerate(shape, 2):
        along = np.moveaxis(dy, axis, 0)
        dx = np.zeros((n, *along.shape[1:]))
        for (a, b), share in zip(_windows(n, len(along)), along, strict=True):
            dx[a:b] += share / (b - a)
        dy = np.moveaxis(dx, 0, axis)
    return dy


# The first of the largest along each axis, the last axis first; numpy, too, takes the first NaN.
@reference(adaptive_max_pool)
def _(x: Any, *, size: Sizes, return_indices: bool) -> Any:
    places = np.broadcast_to(np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:]), x.shape)
    for axis in range(x.ndim - 1, 1, -1):
        along, of = np.moveaxis(x, axis, 0), np.moveaxis(places, axis, 0)
        taken = [(a, along[a:b].argmax(axis=0)[None]) for a, b in _windows(len(along), size[axis - 2])]
        x, places = (
            np.moveaxis(np.concatenate([np.take_along_axis(v, a + first, axis=0) for a, first in taken]), 0, axis)
            for v in (along, of)
        )
    return (x, places) if return_indices else x


@depth(adaptive_avg_pool)
def _(x: Any, *, size: Sizes) -> int:
    return math.prod(-(-n // m) + 1 for n, m in zip(x.shape[2:], size, strict=True))


@depth(adaptive_avg_pool_dx)
def _(dy: Any, *, shape: Sizes) -> int:
    return math.prod(-(-m // n) + 1 for n, m in zip(shape, dy.shape[2:], strict=True))


@backward(adaptive_avg_pool, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, size: Sizes) -> Array:
    return adaptive_avg_pool_dx(dy, shape=x.shape[2:])


@backward(adaptive_avg_pool_dx, of=("dy",))
def _(g: Array, dy: Array, *, saved: None, wanted: Wanted, shape: Sizes) -> Array:
    return adaptive_avg_pool(g, size=dy.shape[2:])


@forward(adaptive_max_pool)
def _(x: Array, *, size: Sizes, return_indices: bool) -> tuple[Any, Array]:
    y, indices = adaptive_max_pool(x, size=size, return_indices=True)
    return ((y, indices) if return_indices else y), indices


@backward(adaptive_max_pool, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, size: Sizes, return_indices: bool) -> Array:
    indices = adaptive_max_pool(x, size=size, return_indices=True)[1] if saved is None else saved
    return ops.max_pool_dx(dy, indices, shape=x.shape[2:])


_PROBLEMS: tuple[tuple[Sizes, Sizes], ...] = (
    ((1, 1, 1), (1,)),
    ((2, 3, 17), (5,)),
    ((2, 3, 3), (7,)),
    ((1, 3, 6, 8), (3, 2)),
    ((2, 2, 7, 33), (3, 4)),
    ((1, 2, 5, 35), (1, 1)),
    ((1, 2, 5, 4, 6), (2, 4, 5)),
    ((0, 2, 4, 4), (3, 3)),
)


@samples(adaptive_avg_pool)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, size in _PROBLEMS:
        yield sample(fill(*shape), size=size)
    yield sample(fill(5, 6, 3, 2).transpose(3, 2, 1, 0), size=4)


@samples(adaptive_max_pool)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, size in _PROBLEMS:
        yield sample(fill.distinct(*shape), size=size)
    yield sample(fill.distinct(2, 3, 7, 9), size=(3, 4), return_indices=True)
    yield sample(fill.distinct(5, 6, 3, 2).transpose(3, 2, 1, 0), size=3, return_indices=True)
    yield sample(np.ones((1, 1, 5, 5), fill.dtype), size=3, return_indices=True)


@samples(adaptive_avg_pool_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, size in _PROBLEMS:
        yield sample(fill(*shape[:2], *size), shape=shape[2:])


@errors(adaptive_avg_pool)
@errors(adaptive_max_pool)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(1, 2, 6, 6)
    for size in (0, -1, (3, 0)):
        yield ErrorCase(sample(x, size=size), AttrError, f"size={size}")
    yield ErrorCase(sample(x, size=(2, 2, 2)), AttrError, "size=(2, 2, 2)")
    yield ErrorCase(sample(x), AttrTypeError, "size")
    yield ErrorCase(sample(fill(4, 6), size=2), ShapeError, "x has shape (4, 6)")
    yield ErrorCase(sample(fill(1, 2, 0), size=1), ShapeError, "x has no elements along spatial axis 0")
    yield ErrorCase(sample(np.ones((1, 1, 4), np.int32), size=2), DTypeError, "x has dtype int32")


@errors(adaptive_avg_pool_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(1, 2, 3), shape=(6, 6)), AttrError, "shape=(6, 6)")
    yield ErrorCase(sample(fill(1, 2, 3), shape=0), AttrError, "shape=0")
    yield ErrorCase(sample(fill(1, 2, 0), shape=3), ShapeError, "dy has no elements along spatial axis 0")


@workloads(adaptive_avg_pool)
def _() -> Iterator[Workload]:
    yield Workload("global 2048x7x7", ((1, 2048, 7, 7),), {"size": 1}, ("resnet50",))
    yield Workload("7x7 of 512x50x50", ((1, 512, 50, 50),), {"size": 7})


@workloads(adaptive_max_pool)
def _() -> Iterator[Workload]:
    yield Workload("7x7 of 512x50x50", ((1, 512, 50, 50),), {"size": 7})


@workloads(adaptive_avg_pool_dx)
def _() -> Iterator[Workload]:
    yield Workload("7x7 of 512x50x50", ((1, 512, 7, 7),), {"shape": (50, 50)})


tolerance(adaptive_max_pool, ulp=0.5)
for _target in (adaptive_avg_pool, adaptive_avg_pool_dx, adaptive_max_pool):
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- OpenCL


def _problem(planes: int, wide: Sizes, small: Sizes) -> Any:
    """adaptive_pool.cl's struct Pool: every member filled up to three spatial axes."""
    fill = (1,) * (3 - len(wide))
    return np.array([planes, *fill, *wide, *fill, *small], np.int64)


@opencl(adaptive_avg_pool)
def _(queue: Queue, x: Any, y: Any, *, size: Sizes) -> None:
    problem = _problem(x.shape[0] * x.shape[1], x.shape[2:], size)
    queue.launch("adaptive_pool.cl", "adaptive_avg_pool", y.size, GROUP_SIZE, (x, y, problem), DTYPE=x.dtype)


@opencl(adaptive_max_pool)
def _(queue: Queue, x: Any, y: Any, indices: Any = None, *, size: Sizes, return_indices: bool) -> None:
    problem = _problem(x.shape[0] * x.shape[1], x.shape[2:], size)
    args = (x, y, indices, problem) if return_indices else (x, y, problem)
    define = {"DTYPE": x.dtype} | ({"INDICES": 1} if return_indices else {})
    queue.launch("adaptive_pool.cl", "adaptive_max_pool", y.size, GROUP_SIZE, args, **define)


@opencl(adaptive_avg_pool_dx)
def _(queue: Queue, dy: Any, dx: Any, *, shape: Sizes) -> None:
    problem = _problem(dy.shape[0] * dy.shape[1], shape, dy.shape[2:])
    queue.launch("adaptive_pool.cl", "adaptive_avg_pool_dx", dx.size, GROUP_SIZE, (dy, dx, problem), DTYPE=dy.dtype)
