"""Normalisation of lines along axes: layer_norm, rms_norm and mean_variance_norm, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Axes, Ints, Sizes, Wanted
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
def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    axes: Ints = -1,
    eps: float = 1e-5,
    return_sum: bool = False,
    return_stats: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Normalises x + residual along axes to mean 0 and variance 1, then scales by weight and adds bias.

    weight and bias have the sizes of x along ``axes``; residual has the shape of x. The result is y, of the shape of x,
    or a tuple of y, with return_sum x + residual, and with return_stats the mean and 1 / sqrt(variance + eps), which
    have size 1 along ``axes`` and are float32 for 16-bit x. The variance is that of all n elements (not n - 1).
    ``layer_norm.backward`` takes the gradient of y; add the sum's to its dx. Ba et al., "Layer normalization", 2016.
    """
    ...


@op
def layer_norm_dx(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    axes: Ints = -1,
    return_dw: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradient of layer_norm in x, of x's shape, from the statistics that return_stats gave.

    With return_dw the result is (dx, dw, db), dw and db being the gradients of weight and bias.
    """
    ...


@op
def rms_norm(
    x: Array,
    weight: Array | None = None,
    residual: Array | None = None,
    *,
    axes: Ints = -1,
    eps: float = 1e-6,
    return_sum: bool = False,
    return_stats: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Divides x + residual by its root mean square along axes, then scales by weight.

    Shapes and results are those of layer_norm; return_stats gives 1 / sqrt(mean square + eps) alone. Zhang and
    Sennrich, "Root mean square layer normalization", 2019.
    """
    ...


@op
def rms_norm_dx(
    dy: Array,
    x: Array,
    rstd: Array,
    weight: Array | None = None,
    *,
    axes: Ints = -1,
    return_dw: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradient of rms_norm in x, of x's shape, from what return_stats gave; (dx, dw) with return_dw."""
    ...


@op
def mean_variance_norm(x: Array, *, axes: Axes = None, eps: float = 1e-9, out: Array | None = None) -> Array:
    """Normalises x along axes to mean 0 and variance 1: (x - mean) / sqrt(variance + eps).

    axes=None means all axes but the second, the channels of (N, C, *spatial).
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _over(v: Any, x: Any, axes: Sizes) -> Any:
    """A parameter along ``axes`` in a shape that broadcasts to x; 1 where there is none."""
    return 1.0 if v is None else v.reshape([n if d in axes else 1 for d, n in enumerate(x.shape)])


def _mean(x: Any, axes: Sizes) -> Any:
    return x.sum(axis=axes, keepdims=True) / np.float64(math.prod(x.shape[a] for a in axes))


@reference(layer_norm)
def _layer_norm(
    x: Any, weight: Any, bias: Any, residual: Any, *, axes: Sizes, eps: float, return_sum: bool, return_stats: bool
) -> Any:
    total = x if residual is None else x + residual
    mean = _mean(total, axes)
    rstd = 1 / np.sqrt(_mean((total - mean) ** 2, axes) + eps)
    y = (total - mean) * rstd * _over(weight, x, axes)
    if bias is not None:
        y = y + _over(bias, x, axes)
    results = (y, *((total,) if return_sum else ()), *((mean, rstd) if return_stats else ()))
    return results if len(results) > 1 else y


@reference(rms_norm)
def _rms_norm(
    x: Any, weight: Any, residual: Any, *, axes: Sizes, eps: float, return_sum: bool, return_stats: bool
) -> Any:
    total = x if residual is None else x + residual
    rstd = 1 / np.sqrt(_mean(total**2, axes) + eps)
    y = total * rstd * _over(weight, x, axes)
    results = (y, *((total,) if return_sum else ()), *((rstd,) if return_stats else ()))
    return results if len(results) > 1 else y


@reference(mean_variance_norm)
def _mean_variance_norm(x: Any, *, axes: Sizes, eps: float) -> Any:
    return _layer_norm(x, None, None, None, axes=axes, eps=eps, return_sum=False, return_stats=False)


def _kept_axes(x: Any, axes: Sizes) -> Sizes:
    return tuple(d for d in range(x.ndim) if d not in axes)


@reference(layer_norm_dx)
def _(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, *, axes: Sizes, return_dw: bool) -> Any:
    g, unit = dy * _over(weight, x, axes), (x - mean) * rstd
    dx = rstd * (g - _mean(g, axes) - unit * _mean(g * unit, axes))
    kept = _kept_axes(x, axes)
    return (dx, (dy * unit).sum(axis=kept), dy.sum(axis=kept)) if return_dw else dx


@reference(rms_norm_dx)
def _(dy: Any, x: Any, rstd: Any, weight: Any, *, axes: Sizes, return_dw: bool) -> Any:
    g, unit = dy * _over(weight, x, axes), x * rstd
    dx = rstd * (g - unit * _mean(g * unit, axes))
    return (dx, (dy * unit).sum(axis=_kept_axes(x, axes))) if return_dw else dx


# What cancels: the mean out of x, the bias out of y, and the terms of the gradient.
def _layer_scale(x: Any, weight: Any, bias: Any, residual: Any, *, axes: Sizes, eps: float, **returns: bool) -> Any:
    size = np.abs(x) + (0 if residual is None else np.abs(residual))
    mean = _mean(size, axes)
    total = x if residual is None else x + residual
    rstd = 1 / np.sqrt(_mean((total - _mean(total, axes)) ** 2, axes) + eps)
    y = (size + mean) * rstd * (1 + mean * rstd) * np.abs(_over(weight, x, axes))
    if bias is not None:
        y = y + np.abs(_over(bias, x, axes))
    kept = (size,) if returns["return_sum"] else ()
    return (y, *kept, *((mean, rstd * (1 + mean * rstd)) if returns["return_stats"] else ()))


def _rms_scale(x: Any, weight: Any, residual: Any, *, axes: Sizes, eps: float, **returns: bool) -> Any:
    size = np.abs(x) + (0 if residual is None else np.abs(residual))
    total = x if residual is None else x + residual
    rstd = 1 / np.sqrt(_mean(total**2, axes) + eps)
    cancelled = 1 + np.sqrt(_mean(size**2, axes)) * rstd
    y = size * rstd * cancelled * np.abs(_over(weight, x, axes))
    kept = (size,) if returns["return_sum"] else ()
    return (y, *kept, *((rstd * cancelled,) if returns["return_stats"] else ()))


def _layer_dx_scale(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, *, axes: Sizes, return_dw: bool
) -> tuple[Any, ...]:
    g, unit = np.abs(dy * _over(weight, x, axes)), (np.abs(x) + np.abs(mean)) * rstd
    dx = rstd * (g + _mean(g, axes) + unit * _mean(g * unit, axes))
    kept = _kept_axes(x, axes)
    return (dx, (np.abs(dy) * unit).sum(axis=kept), np.abs(dy).sum(axis=kept)) if return_dw else (dx,)


layer_norm.rules["scale"] = _layer_scale
rms_norm.rules["scale"] = _rms_scale
mean_variance_norm.rules["scale"] = lambda x, *, axes, eps: _layer_scale(
    x, None, None, None, axes=axes, eps=eps, return_sum=False, return_stats=False
)
layer_norm_dx.rules["scale"] = _layer_dx_scale
rms_norm_dx.rules["scale"] = lambda dy, x, rstd, weight, *, axes, return_dw: _layer_dx_scale(
    dy, x, 0.0, rstd, weight, axes=axes, return_dw=return_dw
)[: 1 + return_dw]

for _target in (layer_norm, layer_norm_dx, rms_norm, rms_norm_dx, mean_variance_norm):
    tolerance(_target, ulp=8)
    dtypes(_target, *FLOATING)


# --------------------------------------------------------------------------------------------------- backward

# What backward needs: x + residual, then the statistics.
Saved = tuple[Array, ...]


def _saved(target: Any, x: Array, residual: Array | None, operands: tuple[Any, ...], **attrs: Any) -> tuple[Any, Saved]:
    y, *rest = target(*operands, return_sum=residual is not None, return_stats=True, **attrs)
    return y, tuple(rest) if residual is not None else (x, *rest)


@forward(layer_norm)
def _layer_forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    *,
    axes: Sizes,
    eps: float,
    return_sum: bool,
    return_stats: bool,
) -> tuple[Any, Saved]:
    y, saved = _saved(layer_norm, x, residual, (x, weight, bias, residual), axes=axes, eps=eps)
    results = (y, *(saved[:1] if return_sum else ()), *(saved[1:] if return_stats else ()))
    return results if len(results) > 1 else y, saved


@forward(rms_norm)
def _rms_forward(
    x: Array,
    weight: Array | None,
    residual: Array | None,
    *,
    axes: Sizes,
    eps: float,
    return_sum: bool,
    return_stats: bool,
) -> tuple[Any, Saved]:
    y, saved = _saved(rms_norm, x, residual, (x, weight, residual), axes=axes, eps=eps)
    results = (y, *(saved[:1] if return_sum else ()), *(saved[1:] if return_stats else ()))
    return results if len(results) > 1 else y, saved


@backward(layer_norm, of=("x", "weight", "bias", "residual"))
def _(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    *,
    saved: Saved | None,
    wanted: Wanted,
    axes: Sizes,
    **attrs: Any,
) -> Any:
    total, mean, rstd = saved or _layer_forward(x, weight, bias, residual, axes=axes, **attrs)[1]
    sums = bool({"weight", "bias"} & wanted)
    found = layer_norm_dx(dy, total, mean, rstd, weight, axes=axes, return_dw=sums)
    dx, dw, db = found if sums else (found, None, None)
    return _of(wanted, x=dx, weight=dw, bias=db, residual=dx)


@backward(rms_norm, of=("x", "weight", "residual"))
def _(
    dy: Array,
    x: Array,
    weight: Array | None,
    residual: Array | None,
    *,
    saved: Saved | None,
    wanted: Wanted,
    axes: Sizes,
    **attrs: Any,
) -> Any:
    total, rstd = saved or _rms_forward(x, weight, residual, axes=axes, **attrs)[1]
    found = rms_norm_dx(dy, total, rstd, weight, axes=axes, return_dw="weight" in wanted)
    dx, dw = found if "weight" in wanted else (found, None)
    return _of(wanted, x=dx, weight=dw, residual=dx)


def _of(wanted: Wanted, **grads: Array | None) -> tuple[Array | None, ...]:
    return tuple(g if name in wanted else None for name, g in grads.items())


@forward(mean_variance_norm)
def _mean_variance_forward(x: Array, *, axes: Sizes, eps: float) -> tuple[Array, Saved]:
    y, mean, rstd = layer_norm(x, axes=axes, eps=eps, return_stats=True)
    return y, (mean, rstd)


@backward(mean_variance_norm, of=("x",))
def _(dy: Array, x: Array, *, saved: Saved | None, wanted: Wanted, axes: Sizes, eps: float) -> Array:
    mean, rstd = saved or _mean_variance_forward(x, axes=axes, eps=eps)[1]
    dx: Array = ops.layer_norm_dx(dy, x, mean, rstd, axes=axes)
    return dx


# ---------------------------------------------------------------------------------------------------- samples

_PROBLEMS: tuple[tuple[Sizes, Ints], ...] = (
    ((1, 5), -1),
    ((3, 4), -1),
    ((17, 33), -1),
    ((2, 3, 16), (1, 2)),
    ((2, 19, 3), 1),
    ((2, 3, 4, 5), (0, 2)),
    ((4, 9), (0, 1)),
    ((3, 0), -1),
    ((0, 4), -1),
)


def _parameters(fill: Fill, shape: Sizes, axes: Ints) -> tuple[Any, Any]:
    along = [int(a) % len(shape) for a in np.atleast_1d(axes)]
    sizes = [shape[a] for a in along]
    return fill.positive(*sizes), fill(*sizes)


@samples(layer_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, axes in _PROBLEMS:
        yield sample(fill(*shape), *_parameters(fill, shape, axes), axes=axes)
    yield sample(fill(2, 7))
    yield sample(fill(3, 8) + np.asarray(30, fill.dtype), eps=1e-3, return_stats=True)
    w, b = _parameters(fill, (5, 12), -1)
    yield sample(fill(5, 12), w, None, fill(5, 12), return_sum=True, return_stats=True)
    yield sample(fill(5, 12), None, b, fill(5, 12), return_sum=True)
    yield sample(fill(12, 5).T, w, b, fill(5, 12))


@samples(rms_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, axes in _PROBLEMS:
        yield sample(fill(*shape), _parameters(fill, shape, axes)[0], axes=axes)
    yield sample(fill(2, 7))
    w, _ = _parameters(fill, (5, 12), -1)
    yield sample(fill(5, 12), w, fill(5, 12), eps=1e-3, return_sum=True, return_stats=True)
    yield sample(fill(12, 5).T, None, fill(5, 12), return_stats=True)


@samples(mean_variance_norm)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(2, 3, 4, 5))
    for shape, axes in _PROBLEMS[:-3]:
        yield sample(fill(*shape), axes=axes, eps=1e-5)
    yield sample(fill(0, 3, 2))


def _gradient_operands(fill: Fill, shape: Sizes, axes: Ints) -> tuple[Any, ...]:
    """dy, x and statistics as good as those of x."""
    along = [int(a) % len(shape) for a in np.atleast_1d(axes)]
    kept = tuple(1 if d in along else n for d, n in enumerate(shape))
    wide = np.float64 if fill.dtype == np.float64 else np.float32
    return fill(*shape), fill(*shape), (0.3 * fill(*kept)).astype(wide), fill.positive(*kept).astype(wide)


@samples(layer_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, axes in _PROBLEMS:
        operands, weight = _gradient_operands(fill, shape, axes), _parameters(fill, shape, axes)[0]
        yield sample(*operands, weight, axes=axes, return_dw=True)
    yield sample(*_gradient_operands(fill, (5, 12), -1), fill.positive(12))
    yield sample(*_gradient_operands(fill, (70, 9), -1), return_dw=True)


@samples(rms_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, axes in _PROBLEMS:
        dy, x, _, rstd = _gradient_operands(fill, shape, axes)
        yield sample(dy, x, rstd, _parameters(fill, shape, axes)[0], axes=axes, return_dw=True)
    dy, x, _, rstd = _gradient_operands(fill, (5, 12), -1)
    yield sample(dy, x, rstd)


# ----------------------------------------------------------------------------------------------------- errors


def _axes_errors(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(2, 3)
    yield ErrorCase(sample(x, axes=2), AttrError, "axes=2")
    yield ErrorCase(sample(x, axes=(1, -1)), AttrError, "axes=(1, -1)")
    yield ErrorCase(sample(x, axes=()), AttrError, "want at least one axis")
    yield ErrorCase(sample(x, axes=1.0), AttrTypeError, "axes=1.0 is a float")
    for eps in (-1.0, float("nan"), float("inf")):
        yield ErrorCase(sample(x, eps=eps), AttrError, f"eps={eps:g}; want a finite number >= 0")
    yield ErrorCase(sample(fill(), axes=()), ShapeError, "x has shape ()")
    yield ErrorCase(sample(np.ones((2, 3), np.int32)), DTypeError, "x has dtype int32")


errors(mean_variance_norm)(_axes_errors)


def _forward_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield from _axes_errors(fill)
    x = fill(2, 3)
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(x, fill(2)), ShapeError, "weight has shape (2,); want (3,)")
    yield ErrorCase(sample(x, fill(3).astype(other)), DTypeError, f"weight has dtype {np.dtype(other)}")
    yield ErrorCase(sample(x, residual=fill(3)), ShapeError, "residual has shape (3,); want (2, 3)")


errors(rms_norm)(_forward_errors)


@errors(layer_norm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _forward_errors(fill)
    yield ErrorCase(sample(fill(2, 3), None, fill(3, 1)), ShapeError, "bias has shape (3, 1); want (3,)")


@errors(layer_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, x, mean, rstd = _gradient_operands(fill, (2, 3), -1)
    yield ErrorCase(sample(fill(2, 2), x, mean, rstd), ShapeError, "dy has shape (2, 2)")
    yield ErrorCase(sample(dy, x, mean[0], rstd), ShapeError, "mean has shape (1,); want (2, 1)")
    yield ErrorCase(sample(dy, x, mean, rstd[:1]), ShapeError, "rstd has shape (1, 1); want (2, 1)")
    yield ErrorCase(sample(dy, x, mean.astype(np.float16), rstd), DTypeError, "mean has dtype float16")
    yield ErrorCase(sample(dy, x, mean, rstd, fill(2)), ShapeError, "weight has shape (2,); want (3,)")


@errors(rms_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, x, _, rstd = _gradient_operands(fill, (2, 3), -1)
    yield ErrorCase(sample(dy, x, rstd[:1]), ShapeError, "rstd has shape (1, 1); want (2, 1)")
    yield ErrorCase(sample(dy, x, rstd, fill(2)), ShapeError, "weight has shape (2,); want (3,)")


# -------------------------------------------------------------------------------------------------- workloads

_SIZES: tuple[tuple[str, Sizes, tuple[str, ...]], ...] = (
    ("4096x1024", (4096, 1024), ()),
    ("128x1024", (128, 1024), ()),
    ("128x768", (1, 128, 768), ("transformer",)),
)


@workloads(layer_norm)
def _() -> Iterator[Workload]:
    for name, shape, sets in _SIZES:
        yield Workload(name, (shape, shape[-1:], shape[-1:], None), {}, sets)
    yield Workload("4096x1024 + residual", ((4096, 1024), (1024,), (1024,), (4096, 1024)), {"return_sum": True})


@workloads(rms_norm)
def _() -> Iterator[Workload]:
    for name, shape, sets in _SIZES:
        yield Workload(name, (shape, shape[-1:], None), {}, sets)
    yield Workload("4096x1024 + residual", ((4096, 1024), (1024,), (4096, 1024)), {"return_sum": True})


@workloads(mean_variance_norm)
def _() -> Iterator[Workload]:
    yield Workload("8x64x56x56", ((8, 64, 56, 56),))


@workloads(layer_norm_dx)
def _() -> Iterator[Workload]:
    for name, shape, sets in _SIZES:
        one = (*shape[:-1], 1)
        yield Workload(name, (shape, shape, one, one, shape[-1:]), {"return_dw": True}, sets)


@workloads(rms_norm_dx)
def _() -> Iterator[Workload]:
    for name, shape, sets in _SIZES:
        yield Workload(name, (shape, shape, (*shape[:-1], 1), shape[-1:]), {"return_dw": True}, sets)


def _wide(fill: Fill, v: Any) -> Any:
    return v.astype(np.float64 if fill.dtype == np.float64 else np.float32)


@fills(layer_norm_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, mean: Sizes, rstd: Sizes, weight: Sizes, **attrs: Any) -> Any:
    return fill(*dy), fill(*x), _wide(fill, fill(*mean)), _wide(fill, fill.positive(*rstd)), fill(*weight)


@fills(rms_norm_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, rstd: Sizes, weight: Sizes, **attrs: Any) -> Any:
    values = fill(*x)
    squares = np.square(_wide(fill, values)).mean(axis=tuple(i for i, n in enumerate(rstd) if n == 1), keepdims=True)
    return fill(*dy), values, _wide(fill, 1 / np.sqrt(squares + 1e-6)).reshape(rstd), fill(*weight)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(layer_norm)
def _(
    queue: Queue,
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    y: Any,
    *more: Any,
    axes: Sizes,
    eps: float,
    return_sum: bool,
    return_stats: bool,
) -> None:
    stats = more[-2:] if return_stats else None
    total = more[0] if return_sum else None
    normalised(queue, Lines(x, axes), (weight, bias), residual, y, total, stats, eps)


@opencl(rms_norm)
def _(
    queue: Queue,
    x: Any,
    weight: Any,
    residual: Any,
    y: Any,
    *more: Any,
    axes: Sizes,
    eps: float,
    return_sum: bool,
    return_stats: bool,
) -> None:
    stats = (None, more[-1]) if return_stats else None
    total = more[0] if return_sum else None
    normalised(queue, Lines(x, axes), (weight, None), residual, y, total, stats, eps, centred=False)


@opencl(mean_variance_norm)
def _(queue: Queue, x: Any, y: Any, *, axes: Sizes, eps: float) -> None:
    normalised(queue, Lines(x, axes), (None, None), None, y, None, None, eps)


@opencl(layer_norm_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    dx: Any,
    *sums: Any,
    axes: Sizes,
    return_dw: bool,
) -> None:
    lines = Lines(x, axes)
    gradients(queue, lines, dy, mean, rstd, weight, dx, sums)


@opencl(rms_norm_dx)
def _(queue: Queue, dy: Any, x: Any, rstd: Any, weight: Any, dx: Any, *sums: Any, axes: Sizes, return_dw: bool) -> None:
    lines = Lines(x, axes)
    gradients(queue, lines, dy, None, rstd, weight, dx, sums)
