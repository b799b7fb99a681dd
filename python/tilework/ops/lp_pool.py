"""Pooling by a p-norm over 1, 2 or 3 spatial axes, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_reduce import accumulator
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError, ShapeError
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
def lp_pool(
    x: Array,
    *,
    p: float = 2.0,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    out: Array | None = None,
) -> Array:
    """Takes sum(|x|^p)^(1/p), 0 < p <= 16, over windows of x (N, C, *spatial), giving (N, C, *out); the rank is 1 to 3.

    Windows are avg_pool's; as in ONNX and unlike PyTorch, an odd p is a power of |x|.
    """
    ...


@op
def lp_pool_dx(
    dy: Array,
    x: Array,
    y: Array,
    *,
    p: float = 2.0,
    kernel: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of lp_pool in x, (N, C, *spatial), from dy and the result y, (N, C, *out), and x.

    Where y is 0 the gradient is taken as 0, and so is the slope of |x| at 0.
    """
    ...


def global_lp_pool(x: Array, *, p: float = 2.0, out: Array | None = None) -> Array:
    """Takes sum(|x|^p)^(1/p) of each channel of x (N, C, *spatial), to (N, C, 1, ...)."""
    sizes = tuple(getattr(x, "shape", ())[2:])
    return lp_pool(x, p=p, kernel=sizes or 1, out=out)


def _sums(x: Any, kernel: Sizes, attrs: Any) -> Any:
    """The sums of windows, from the reference of the mean."""
    return ops.avg_pool.rules["reference"](x, kernel=kernel, count_include_pad=True, divisor=1, **attrs)


@reference(lp_pool)
def _(x: Any, *, p: float, kernel: Sizes, **attrs: Any) -> Any:
    return _sums(np.abs(x) ** p, kernel, attrs) ** (1 / p)


def _gradient(dy: Any, x: Any, y: Any, *, p: float, kernel: Sizes, absolute: bool = False, **attrs: Any) -> Any:
    share = np.where(y == 0, 0.0, dy * np.where(y == 0, 1.0, np.abs(y)) ** (1 - p))
    spread = ops.avg_pool_dx.rules["reference"](
        np.abs(share) if absolute else share,
        shape=x.shape[2:],
        kernel=kernel,
        count_include_pad=True,
        divisor=1,
        **attrs,
    )
    size = np.where(x == 0, 0.0, np.abs(x)) ** (p - 1)
    return (1 if absolute else np.sign(x)) * size * spread


lp_pool_dx.rules["reference"] = _gradient
lp_pool_dx.rules["scale"] = lambda dy, x, y, **attrs: _gradient(dy, x, y, absolute=True, **attrs)
tolerance(lp_pool, ulp=8)
tolerance(lp_pool_dx, ulp=16)


@forward(lp_pool)
def _(x: Array, **attrs: Any) -> tuple[Array, Array]:
    y = lp_pool(x, **attrs)
    return y, y


@backward(lp_pool, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted, **attrs: Any) -> Array:
    return lp_pool_dx(dy, x, lp_pool(x, **attrs) if saved is None else saved, **attrs)


_PROBLEMS: tuple[tuple[Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), {"kernel": 1}),
    ((2, 3, 17), {"kernel": 3, "stride": 2, "padding": 1, "p": 1.0}),
    ((1, 2, 7, 9), {"kernel": (3, 2), "stride": (2, 1), "p": 3.0}),
    ((1, 2, 8, 7), {"kernel": 3, "stride": 2, "ceil_mode": True}),
    ((1, 2, 4, 3, 5), {"kernel": 2}),
    ((0, 2, 4), {"kernel": 2}),
)


@samples(lp_pool)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape),), attrs)
    yield sample(fill(5, 6, 3, 2).transpose(3, 2, 1, 0), kernel=2)


@samples(lp_pool_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        x = fill(*shape)
        y = lp_pool.reference(x, **attrs)
        yield Sample((fill(*y.shape), x, y), attrs)


@errors(lp_pool)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(1, 2, 6)
    for p in (0.0, -2.0, 17.0, math.nan):
        yield ErrorCase(sample(x, kernel=2, p=p), AttrError, f"p={p:g}; want a number above 0, at most 16")
    yield ErrorCase(sample(x, kernel=0), AttrError, "kernel=0")
    yield ErrorCase(sample(x, kernel=7), ShapeError, "kernel")
    yield ErrorCase(sample(np.ones((1, 1, 4), np.int32), kernel=2), DTypeError, "x has dtype int32")


@errors(lp_pool_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(1, 2, 6)
    yield ErrorCase(sample(fill(1, 2, 2), x, fill(1, 2, 3), kernel=2), ShapeError, "dy has shape (1, 2, 2)")
    yield ErrorCase(sample(fill(1, 2, 3), x, fill(1, 2, 4), kernel=2), ShapeError, "y has shape (1, 2, 4)")


@workloads(lp_pool)
def _() -> Iterator[Workload]:
    yield Workload("3x3 s2 64x112x112", ((1, 64, 112, 112),), {"kernel": 3, "stride": 2})


@workloads(lp_pool_dx)
def _() -> Iterator[Workload]:
    yield Workload("2x2 64x56x56", ((1, 64, 28, 28), (1, 64, 56, 56), (1, 64, 28, 28)), {"kernel": 2})


@fills(lp_pool_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, y: Sizes, **attrs: Any) -> tuple[Any, ...]:
    values = fill(*x)
    return fill(*dy), values, lp_pool(values, **attrs)


for _target in (lp_pool, lp_pool_dx):
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(lp_pool)
def _(queue: Queue, x: Any, y: Any, *, p: float, padding: Pairs, **attrs: Any) -> None:
    wide = accumulator(x.dtype)
    powers, sums = queue.empty(x.shape, wide), queue.empty(y.shape, wide)
    queue.each("lp_pool.cl", "powers", (x, powers), p, DTYPE=x.dtype)
    ops.avg_pool.rules["opencl"](queue, powers, sums, padding=padding, count_include_pad=True, divisor=1, **attrs)
    queue.each("lp_pool.cl", "roots", (sums, y), 1 / p, DTYPE=y.dtype)


@opencl(lp_pool_dx)
def _(queue: Queue, dy: Any, x: Any, y: Any, dx: Any, *, p: float, padding: Pairs, **attrs: Any) -> None:
    wide = accumulator(x.dtype)
    shares, sums = queue.empty(dy.shape, wide), queue.empty(x.shape, wide)
    queue.each("lp_pool.cl", "shares", (dy, y, shares), 1 - p, DTYPE=x.dtype)
    ops.avg_pool_dx.rules["opencl"](
        queue, shares, sums, shape=x.shape[2:], padding=padding, count_include_pad=True, divisor=1, **attrs
    )
    queue.each("lp_pool.cl", "slopes", (x, sums, dx), p - 1, DTYPE=x.dtype)
