"""Max and average pooling over 1, 2 or 3 spatial axes, and the gradient of the average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
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


def _out_sizes(shape: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, ceil_mode: bool) -> Sizes:
    """Windows per axis; with ceil_mode the last one may end outside but must start inside or in the padding before."""
    sizes = []
    for n, k, s, (before, after), d in zip(shape, kernel, stride, padding, dilation, strict=True):
        room = n + before + after - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:
            count -= 1
        sizes.append(count)
    return tuple(sizes)


# --------------------------------------------------------------------------------------------------- max_pool


@op
def max_pool(
    x: Array,
    *,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    flat_indices: bool = False,
    out: Array | tuple[Array, Array] | None = None,
) -> Any:
    """Takes the maximum over windows of x (N, C, *spatial), giving (N, C, *out); the rank, 1 to 3, follows x.

    With return_indices the result is (y, indices), indices being int64 positions in the flattened spatial axes of x, or
    with flat_indices in all of x, as ONNX counts them; max_unpool takes the former.
    The stride defaults to the kernel. Padding never wins and is at most half the kernel. The first of equal maxima
    wins, and NaN wins over numbers. With ceil_mode the last window may reach beyond the padding, as in PyTorch.
    """
    ...


@reference(max_pool)
def _(
    x: Any,
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    ceil_mode: bool,
    return_indices: bool,
    flat_indices: bool,
) -> Any:
    n, c, *shape = x.shape
    sizes = _out_sizes(tuple(shape), kernel, stride, padding, dilation, ceil_mode)
    y = np.full((n, c, *sizes), -np.inf)
    indices = np.full(y.shape, -1, np.int64)
    for tap in np.ndindex(*kernel):
        spans = zip(tap, sizes, stride, padding, dilation, strict=True)
        at = np.meshgrid(*(np.arange(m) * s - before + t * d for t, m, s, (before, _), d in spans), indexing="ij")
        inside = np.logical_and.reduce([(p >= 0) & (p < m) for p, m in zip(at, shape, strict=True)])
        cell = tuple(np.clip(p, 0, m - 1) for p, m in zip(at, shape, strict=True))
        value = x[(slice(None), slice(None), *cell)]
        wins = inside & ((indices < 0) | (value > y) | (np.isnan(value) & ~np.isnan(y)))
        y = np.where(wins, value, y)
        indices = np.where(wins, np.ravel_multi_index(cell, tuple(shape)), indices)
    if flat_indices:
        indices += math.prod(shape) * np.arange(n * c).reshape(n, c, *(1 for _ in shape))
    return (y, indices) if return_indices else y


@forward(max_pool)
def _(x: Array, *, return_indices: bool, flat_indices: bool, **attrs: Any) -> tuple[Any, Array]:
    y, indices = max_pool(x, return_indices=True, **attrs)
    if flat_indices:
        return max_pool(x, return_indices=True, flat_indices=True, **attrs), indices
    return ((y, indices) if return_indices else y), indices


@backward(max_pool, of=("x",))
def _(
    dy: Array,
    x: Array,
    *,
    saved: Array | None,
    wanted: Wanted,
    return_indices: bool,
    flat_indices: bool,
    **attrs: Any,
) -> Array:
    indices = max_pool(x, return_indices=True, **attrs)[1] if saved is None else saved
    return ops.max_pool_dx(dy, indices, shape=x.shape[2:])


# Shape and attributes of problems that both kinds of pooling share.
_PROBLEMS: tuple[tuple[Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), {"kernel": 1}),
    ((2, 3, 17), {"kernel": 3, "stride": 2, "padding": 1}),
    ((1, 2, 10), {"kernel": 4, "stride": 3, "ceil_mode": True}),
    ((1, 2, 9), {"kernel": 3, "stride": 1, "padding": ((0, 1),)}),
    ((2, 3, 6, 8), {"kernel": 2}),
    ((1, 5, 9, 33), {"kernel": 3, "stride": 2, "padding": 1}),
    ((1, 2, 7, 7), {"kernel": (3, 2), "stride": (1, 2), "padding": ((1, 0), (0, 1))}),
    ((1, 2, 8, 7), {"kernel": 3, "stride": 2, "ceil_mode": True}),
    ((1, 2, 8, 7), {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 5, 5), {"kernel": 5}),
    ((1, 2, 4, 5), {"kernel": 2, "stride": 4, "ceil_mode": True}),
    ((1, 2, 5, 6, 4), {"kernel": 2, "stride": 2, "padding": 1, "ceil_mode": True}),
    ((2, 1, 4, 5, 9), {"kernel": (2, 3, 3), "stride": (2, 1, 2), "padding": (0, 1, 1)}),
    ((0, 2, 4, 4), {"kernel": 2}),
)


@samples(max_pool)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill.distinct(*shape),), attrs)
    yield sample(fill.distinct(1, 2, 9), kernel=2, dilation=3)
    yield sample(fill.distinct(1, 2, 9, 8), kernel=3, dilation=2, padding=1, stride=1)
    yield sample(fill.distinct(1, 2, 9, 8), kernel=3, stride=2, padding=1, return_indices=True)
    yield sample(fill.distinct(2, 3, 4, 5), kernel=2, return_indices=True, flat_indices=True)
    yield sample(np.ones((1, 1, 5, 5), fill.dtype), kernel=3, stride=1, padding=1, return_indices=True)
    yield sample(fill.distinct(5, 6, 3, 2).transpose(3, 2, 1, 0), kernel=2, return_indices=True)


def _bad_windows(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(1, 2, 6, 6)
    for kernel in (0, -1, (3, 0)):
        yield ErrorCase(sample(x, kernel=kernel), AttrError, f"kernel={kernel}")
    yield ErrorCase(sample(x, kernel=(2, 2, 2)), AttrError, "kernel=(2, 2, 2)")
    yield ErrorCase(sample(x, kernel=7), ShapeError, "kernel")
    yield ErrorCase(sample(x, kernel=2, stride=0), AttrError, "stride=0")
    yield ErrorCase(sample(x, kernel=2, padding=-1), AttrError, "padding=-1")
    yield ErrorCase(sample(x, kernel=2, padding=2), AttrError, "padding=2")
    yield ErrorCase(sample(x, kernel=2, ceil_mode=1), AttrTypeError, "ceil_mode=1 is a int; want a bool")
    yield ErrorCase(sample(x), AttrTypeError, "kernel")
    yield ErrorCase(sample(fill(4, 6), kernel=2), ShapeError, "x has shape (4, 6)")
    yield ErrorCase(sample(np.ones((1, 1, 4, 4), np.int32), kernel=2), DTypeError, "x has dtype int32")


@errors(max_pool)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _bad_windows(fill)
    yield ErrorCase(sample(fill(1, 2, 6, 6), kernel=2, dilation=0), AttrError, "dilation=0")
    beside = sample(fill(1, 1, 1), kernel=2, dilation=2, padding=1)
    yield ErrorCase(beside, AttrError, "dilation=2 puts window 0 along spatial axis 0 beside x")
    flat = sample(fill(1, 1, 4), kernel=2, flat_indices=True)
    yield ErrorCase(flat, AttrError, "flat_indices=True without return_indices; want both")


tolerance(max_pool, ulp=0.5)


# --------------------------------------------------------------------------------------------------- avg_pool


@op
def avg_pool(
    x: Array,
    *,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    out: Array | None = None,
) -> Array:
    """Takes the mean over windows of x (N, C, *spatial), giving (N, C, *out); the rank, 1 to 3, follows x.

    The stride defaults to the kernel; padding is at most half of it. The divisor is the given one, or the part of the
    window within x and its padding, or within x alone without count_include_pad; what ceil_mode adds beyond the padding
    never counts.
    """
    ...


@op
def avg_pool_dx(
    dy: Array,
    *,
    shape: Ints,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of avg_pool in x, (N, C, *shape), from dy (N, C, *out).

    ``shape`` holds the spatial sizes of x, which dy and the attributes alone do not determine.
    """
    ...


def _means(
    shape: Sizes, sizes: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, count_include_pad: bool
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], int]]:
    """(index into y, index into x, divisor) of every window."""
    for position in np.ndindex(*sizes):
        region, padded_cells = [], 1
        for o, n, k, s, (before, after) in zip(position, shape, kernel, stride, padding, strict=True):
            start = o * s - before
            stop = min(start + k, n + after)
            padded_cells *= stop - start
            region.append(slice(max(start, 0), max(min(stop, n), 0)))
        cells = math.prod(max(r.stop - r.start, 0) for r in region)
        every = (slice(None), slice(None))
        yield (*every, *position), (*every, *region), max(padded_cells if count_include_pad else cells, 1)


@reference(avg_pool)
def _(
    x: Any,
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Any:
    shape = x.shape[2:]
    sizes = _out_sizes(shape, kernel, stride, padding, (1,) * len(kernel), ceil_mode)
    y = np.zeros((*x.shape[:2], *sizes))
    for at, region, cells in _means(shape, sizes, kernel, stride, padding, count_include_pad):
        y[at] = x[region].sum(axis=tuple(range(2, x.ndim))) / (divisor or cells)
    return y


@reference(avg_pool_dx)
def _(
    dy: Any,
    *,
    shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Any:
    dx = np.zeros((*dy.shape[:2], *shape))
    for at, region, cells in _means(shape, dy.shape[2:], kernel, stride, padding, count_include_pad):
        dx[region] += (dy[at] / (divisor or cells))[(..., *(None for _ in shape))]
    return dx


@depth(avg_pool)
def _(x: Any, *, kernel: Sizes, **attrs: Any) -> int:
    return math.prod(kernel)


@depth(avg_pool_dx)
def _(dy: Any, *, kernel: Sizes, **attrs: Any) -> int:
    return math.prod(kernel)


@backward(avg_pool, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Array:
    return avg_pool_dx(dy, shape=x.shape[2:], **attrs)


@backward(avg_pool_dx, of=("dy",))
def _(g: Array, dy: Array, *, saved: None, wanted: Wanted, shape: Sizes, **attrs: Any) -> Array:
    return avg_pool(g, **attrs)


@samples(avg_pool)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape),), attrs)
        if "padding" in attrs:
            yield Sample((fill(*shape),), {**attrs, "count_include_pad": False})
    yield sample(fill(1, 2, 5, 9), kernel=3, stride=2, padding=1, divisor=2)
    yield sample(fill(1, 2, 5, 3), kernel=(5, 3), divisor=1)
    yield sample(fill(5, 6, 3, 2).transpose(3, 2, 1, 0), kernel=2)


@samples(avg_pool_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        rank = len(shape) - 2
        kernel, stride = (
            a if isinstance(a, tuple) else (a,) * rank for a in (attrs["kernel"], attrs.get("stride", attrs["kernel"]))
        )
        pad = attrs.get("padding", 0)
        pads = tuple(p if isinstance(p, tuple) else (p, p) for p in (pad if isinstance(pad, tuple) else (pad,) * rank))
        sizes = _out_sizes(shape[2:], kernel, stride, pads, (1,) * rank, attrs.get("ceil_mode", False))
        yield Sample((fill(*shape[:2], *sizes),), {"shape": shape[2:], **attrs})
        if "padding" in attrs:
            yield Sample((fill(*shape[:2], *sizes),), {"shape": shape[2:], **attrs, "count_include_pad": False})
    yield sample(fill(1, 2, 3, 5), shape=(5, 9), kernel=3, stride=2, padding=1, divisor=2)


@errors(avg_pool)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _bad_windows(fill)
    for divisor in (0, -2):
        bad = sample(fill(1, 1, 4), kernel=2, divisor=divisor)
        yield ErrorCase(bad, AttrError, f"divisor={divisor}; want None, or a number from 1 to 2^40")


@errors(avg_pool_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy = fill(1, 2, 3, 3)
    yield ErrorCase(sample(dy, shape=(8, 6), kernel=2), ShapeError, "dy has shape (1, 2, 3, 3)")
    yield ErrorCase(sample(dy, shape=(6, 6, 6), kernel=2), AttrError, "shape=(6, 6, 6)")
    yield ErrorCase(sample(dy, shape=(-6, 6), kernel=2), AttrError, "shape=(-6, 6)")
    yield ErrorCase(sample(dy, shape=(6, 6), kernel=0), AttrError, "kernel=0")
    yield ErrorCase(sample(dy, shape=(6, 6)), AttrTypeError, "kernel")


for _target in (max_pool, avg_pool, avg_pool_dx):
    dtypes(_target, *FLOATING)


# -------------------------------------------------------------------------------------------------- workloads


@workloads(max_pool)
def _() -> Iterator[Workload]:
    yield Workload("3x3 s2 64x112x112", ((1, 64, 112, 112),), {"kernel": 3, "stride": 2, "padding": 1}, ("resnet50",))
    yield Workload("2x2 64x112x112", ((1, 64, 112, 112),), {"kernel": 2})
    yield Workload("1d k4 64x4096", ((1, 64, 4096),), {"kernel": 4})


@workloads(avg_pool)
def _() -> Iterator[Workload]:
    yield Workload("3x3 s2 64x112x112", ((1, 64, 112, 112),), {"kernel": 3, "stride": 2, "padding": 1})
    yield Workload("2x2 64x112x112", ((1, 64, 112, 112),), {"kernel": 2})
    yield Workload("7x7 2048ch", ((1, 2048, 7, 7),), {"kernel": 7}, ("resnet50",))


@workloads(avg_pool_dx)
def _() -> Iterator[Workload]:
    yield Workload("2x2 64x112x112", ((1, 64, 56, 56),), {"shape": (112, 112), "kernel": 2})
    yield Workload("7x7 2048ch", ((1, 2048, 1, 1),), {"shape": (7, 7), "kernel": 7}, ("resnet50",))


# ------------------------------------------------------------------------------------------------- OpenCL


def _struct(shape: Sizes, sizes: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Any:
    """pool.cl's struct Pool: every member filled up to three spatial axes."""
    rank = len(kernel)
    members: list[Sequence[int]] = [shape[2:], sizes[2:], kernel, stride, dilation, *zip(*padding, strict=True)]
    fills = (1, 1, 1, 1, 1, 0, 0)
    filled = [(*(fill,) * (3 - rank), *m) for fill, m in zip(fills, members, strict=True)]
    return np.array([shape[0] * shape[1], *(n for m in filled for n in m)], np.int64)


@opencl(max_pool)
def _(
    queue: Queue,
    x: Any,
    y: Any,
    indices: Any = None,
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    ceil_mode: bool,
    return_indices: bool,
    flat_indices: bool,
) -> None:
    problem = _struct(x.shape, y.shape, kernel, stride, padding, dilation)
    define = {"DTYPE": x.dtype} | ({"INDICES": 1} if return_indices else {}) | ({"FLAT": 1} if flat_indices else {})
    args = (x, y, indices, problem) if return_indices else (x, y, problem)
    queue.launch("pool.cl", "max_pool", y.size, GROUP_SIZE, args, **define)


@opencl(avg_pool)
def _(
    queue: Queue,
    x: Any,
    y: Any,
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> None:
    problem = _struct(x.shape, y.shape, kernel, stride, padding, (1,) * len(kernel))
    define = {"DTYPE": x.dtype} | ({"COUNT_PADDING": 1} if count_include_pad else {})
    queue.launch("pool.cl", "avg_pool", y.size, GROUP_SIZE, (x, y, problem, divisor or 0), **define)


@opencl(avg_pool_dx)
def _(
    queue: Queue,
    dy: Any,
    dx: Any,
    *,
    shape: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> None:
    problem = _struct(dx.shape, dy.shape, kernel, stride, padding, (1,) * len(kernel))
    define = {"DTYPE": dy.dtype} | ({"COUNT_PADDING": 1} if count_include_pad else {})
    queue.launch("pool.cl", "avg_pool_dx", dx.size, GROUP_SIZE, (dy, dx, problem, divisor or 0), **define)
