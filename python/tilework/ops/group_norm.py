"""Normalisation of samples by groups of channels, or channel by channel, with its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_norm import Lines, gradients, normalised
from tilework.backends.opencl_queue import Queue
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
def group_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    return_stats: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Normalises x (N, C, *spatial) over groups of C / groups channels and space, then scales and shifts each channel.

    weight and bias are (C,). With return_stats the result is (y, mean, rstd), the statistics being (N, groups), float32
    for 16-bit x. The variance is that of all elements of a group. Wu and He, "Group normalization", 2018.
    """
    ...


@op
def group_norm_dx(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    groups: int,
    return_dw: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradient of group_norm in x, of x's shape, from what return_stats gave.

    With return_dw the result is (dx, dw, db), dw and db being the gradients of weight and bias, (C,).
    """
    ...


@op
def instance_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalises every channel of every sample of x (N, C, *spatial) over space: group_norm with C groups.

    Ulyanov et al., "Instance normalization: the missing ingredient for fast stylization", 2016.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _grouped(x: Any, groups: int) -> Any:
    """x as (N, groups, elements of a group)."""
    return x.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups if groups else 0)


def _mean(x: Any) -> Any:
    return x.sum(axis=-1) / np.float64(x.shape[-1])


def _by_channel(v: Any, x: Any) -> Any:
    return 1.0 if v is None else v.reshape(1, -1, *(1 for _ in x.shape[2:]))


def _normalised(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> tuple[Any, Any, Any]:
    lines = _grouped(x, groups)
    mean = _mean(lines)
    rstd = 1 / np.sqrt(_mean((lines - mean[..., None]) ** 2) + eps)
    y = ((lines - mean[..., None]) * rstd[..., None]).reshape(x.shape) * _by_channel(weight, x)
    return y if bias is None else y + _by_channel(bias, x), mean, rstd


@reference(group_norm)
def _(x: Any, weight: Any, bias: Any, *, groups: int, eps: float, return_stats: bool) -> Any:
    y, mean, rstd = _normalised(x, weight, bias, groups, eps)
    return (y, mean, rstd) if return_stats else y


@reference(instance_norm)
def _(x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    return _normalised(x, weight, bias, x.shape[1], eps)[0]


@reference(group_norm_dx)
def _(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, *, groups: int, return_dw: bool) -> Any:
    unit = (_grouped(x, groups) - mean[..., None]) * rstd[..., None]
    g = _grouped(dy * _by_channel(weight, x), groups)
    dx = rstd[..., None] * (g - _mean(g)[..., None] - unit * _mean(g * unit)[..., None])
    over = (0, *range(2, x.ndim))
    sums = ((dy * unit.reshape(x.shape)).sum(axis=over), dy.sum(axis=over)) if return_dw else ()
    return (dx.reshape(x.shape), *sums) if return_dw else dx.reshape(x.shape)


def _scale(x: Any, weight: Any, bias: Any, *, groups: int, eps: float, return_stats: bool = False) -> tuple[Any, ...]:
    """What cancels: the mean out of x, and the bias out of y."""
    size = _grouped(np.abs(x), groups)
    mean, rstd = _mean(size), _normalised(x, None, None, groups, eps)[2]
    cancelled = 1 + mean * rstd
    y = ((size + mean[..., None]) * (rstd * cancelled)[..., None]).reshape(x.shape) * np.abs(_by_channel(weight, x))
    y = y if bias is None else y + np.abs(_by_channel(bias, x))
    return (y, mean, rstd * cancelled) if return_stats else (y,)


def _dx_scale(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, *, groups: int, return_dw: bool) -> tuple[Any, ...]:
    unit = (_grouped(np.abs(x), groups) + np.abs(mean)[..., None]) * rstd[..., None]
    g = _grouped(np.abs(dy * _by_channel(weight, x)), groups)
    dx = rstd[..., None] * (g + _mean(g)[..., None] + unit * _mean(g * unit)[..., None])
    over = (0, *range(2, x.ndim))
    sums = ((np.abs(dy) * unit.reshape(x.shape)).sum(axis=over), np.abs(dy).sum(axis=over)) if return_dw else ()
    return (dx.reshape(x.shape), *sums)


group_norm.rules["scale"] = _scale
instance_norm.rules["scale"] = lambda x, weight, bias, *, eps: _scale(x, weight, bias, groups=x.shape[1], eps=eps)
group_norm_dx.rules["scale"] = _dx_scale

for _target in (group_norm, group_norm_dx, instance_norm):
    tolerance(_target, ulp=8)
    dtypes(_target, *FLOATING)


# --------------------------------------------------------------------------------------------------- backward


@forward(group_norm)
def _group_forward(
    x: Array, weight: Array | None, bias: Array | None, *, groups: int, eps: float, return_stats: bool
) -> tuple[Any, tuple[Array, Array]]:
    y, mean, rstd = group_norm(x, weight, bias, groups=groups, eps=eps, return_stats=True)
    return ((y, mean, rstd) if return_stats else y), (mean, rstd)


@forward(instance_norm)
def _instance_forward(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    y, saved = _group_forward(x, weight, bias, groups=max(1, x.shape[1]), eps=eps, return_stats=False)
    return y, saved


def _gradients(
    dy: Array, x: Array, saved: tuple[Array, Array], weight: Array | None, groups: int, wanted: Wanted
) -> tuple[Array | None, ...]:
    sums = bool({"weight", "bias"} & wanted)
    found = group_norm_dx(dy, x, *saved, weight, groups=groups, return_dw=sums)
    grads = zip(("x", "weight", "bias"), found if sums else (found, None, None), strict=True)
    return tuple(g if name in wanted else None for name, g in grads)


@backward(group_norm, of=("x", "weight", "bias"))
def _(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    saved: tuple[Array, Array] | None,
    wanted: Wanted,
    groups: int,
    eps: float,
    return_stats: bool,
) -> Any:
    stats = saved or _group_forward(x, weight, bias, groups=groups, eps=eps, return_stats=False)[1]
    return _gradients(dy, x, stats, weight, groups, wanted)


@backward(instance_norm, of=("x", "weight", "bias"))
def _(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    saved: tuple[Array, Array] | None,
    wanted: Wanted,
    eps: float,
) -> Any:
    stats = saved or _instance_forward(x, weight, bias, eps=eps)[1]
    return _gradients(dy, x, stats, weight, max(1, x.shape[1]), wanted)


# ---------------------------------------------------------------------------------------------------- samples

_PROBLEMS: tuple[tuple[Sizes, int], ...] = (
    ((1, 2, 3), 1),
    ((2, 6), 2),
    ((2, 6, 5), 2),
    ((3, 4, 17), 4),
    ((2, 4, 3, 6), 2),
    ((1, 4, 2, 3, 4), 1),
    ((0, 4, 3), 2),
    ((2, 4, 0), 2),
)


def _parameters(fill: Fill, shape: Sizes) -> tuple[Any, Any]:
    return fill.positive(shape[1]), fill(shape[1])


@samples(group_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, groups in _PROBLEMS:
        yield sample(fill(*shape), *_parameters(fill, shape), groups=groups)
    yield sample(fill(2, 4, 9) + np.asarray(20, fill.dtype), groups=2, eps=1e-3, return_stats=True)
    yield sample(fill(5, 4, 3).T, None, fill(4), groups=2)


@samples(instance_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, _ in _PROBLEMS[2:]:
        yield sample(fill(*shape), *_parameters(fill, shape))
    yield sample(fill(5, 4, 3).T, eps=1e-3)


def _statistics(fill: Fill, shape: Sizes, groups: int) -> tuple[Any, Any]:
    wide = np.float64 if fill.dtype == np.float64 else np.float32
    return (0.3 * fill(shape[0], groups)).astype(wide), fill.positive(shape[0], groups).astype(wide)


@samples(group_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, groups in _PROBLEMS:
        operands = fill(*shape), fill(*shape), *_statistics(fill, shape, groups), fill.positive(shape[1])
        yield sample(*operands, groups=groups, return_dw=True)
    yield sample(fill(2, 4, 9), fill(9, 4, 2).T, *_statistics(fill, (2, 4), 4), groups=4)


def _bad_groups(fill: Fill) -> Iterator[tuple[int, str]]:
    for groups in (0, -1, 3, 1 << 40):
        yield groups, f"groups={groups} with C=4 channels; want a divisor of C"


def _any_errors(fill: Fill, **attrs: Any) -> Iterator[ErrorCase]:
    x = fill(2, 4, 3)
    yield ErrorCase(sample(x, fill(2), **attrs), ShapeError, "weight has shape (2,); want (4,)")
    yield ErrorCase(sample(x, None, fill(4, 1), **attrs), ShapeError, "bias has shape (4, 1); want (4,)")
    yield ErrorCase(sample(x, eps=-1.0, **attrs), AttrError, "eps=-1; want a finite number >= 0")
    yield ErrorCase(sample(fill(4), **attrs), ShapeError, "x has shape (4,)")
    yield ErrorCase(sample(np.ones((2, 4), np.int8), **attrs), DTypeError, "x has dtype int8")


errors(instance_norm)(_any_errors)


@errors(group_norm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _any_errors(fill, groups=2)
    for groups, text in _bad_groups(fill):
        yield ErrorCase(sample(fill(2, 4, 3), groups=groups), AttrError, text)
    yield ErrorCase(sample(fill(2, 4, 3)), AttrTypeError, "groups is missing")


@errors(group_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, stats = fill(2, 4, 3), _statistics(fill, (2, 4), 2)
    for groups, text in _bad_groups(fill):
        yield ErrorCase(sample(x, x, *stats, groups=groups), AttrError, text)
    yield ErrorCase(sample(x[:1], x, *stats, groups=2), ShapeError, "dy has shape (1, 4, 3)")
    yield ErrorCase(sample(x, x, *stats, groups=4), ShapeError, "mean has shape (2, 2); want (2, 4)")
    yield ErrorCase(sample(x, x, stats[0], stats[1].astype(np.int32), groups=2), DTypeError, "rstd has dtype int32")


@workloads(group_norm)
def _() -> Iterator[Workload]:
    yield Workload("8x64x56x56 g32", ((8, 64, 56, 56), (64,), (64,)), {"groups": 32})


@workloads(instance_norm)
def _() -> Iterator[Workload]:
    yield Workload("8x64x56x56", ((8, 64, 56, 56), (64,), (64,)))


@workloads(group_norm_dx)
def _() -> Iterator[Workload]:
    shape = (8, 64, 56, 56)
    yield Workload("8x64x56x56 g32", (shape, shape, (8, 32), (8, 32), (64,)), {"groups": 32, "return_dw": True})


@fills(group_norm_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, mean: Sizes, rstd: Sizes, weight: Sizes, *, groups: int, **attrs: Any) -> Any:
    return fill(*dy), fill(*x), *_statistics(fill, x, groups), fill(*weight)


# ------------------------------------------------------------------------------------------------- OpenCL


def _lines(x: Any, groups: int) -> Lines:
    n, c, *space = x.shape
    each = c // groups if groups else 0
    shape = (n, groups, each, *space)
    axes = tuple(range(2, len(shape)))
    run = math.prod(space)
    return Lines(x, axes, shape=shape, file="group_norm.cl", period=max(1, groups), step=max(1, each), run=run)


@opencl(group_norm)
def _(
    queue: Queue,
    x: Any,
    weight: Any,
    bias: Any,
    y: Any,
    *stats: Any,
    groups: int,
    eps: float,
    return_stats: bool,
) -> None:
    found = (stats[0], stats[1]) if return_stats else None
    normalised(queue, _lines(x, groups), (weight, bias), None, y, None, found, eps)


@opencl(instance_norm)
def _(queue: Queue, x: Any, weight: Any, bias: Any, y: Any, *, eps: float) -> None:
    normalised(queue, _lines(x, x.shape[1]), (weight, bias), None, y, None, None, eps)


@opencl(group_norm_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    dx: Any,
    *sums: Any,
    groups: int,
    return_dw: bool,
) -> None:
    lines = _lines(x, groups)
    gradients(queue, lines, dy, mean, rstd, weight, dx, sums)
