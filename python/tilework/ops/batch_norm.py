"""Batch normalisation, training and inference, with its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework import dispatch, ops
from tilework._core import Prepared
from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_norm import Lines, gradients, normalised
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.registry import (
    ErrorCase,
    Op,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
    forward,
    infer,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    updates,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    return_stats: bool = False,
    activation: Literal["relu"] | None = None,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Normalises each channel of x (N, C, *spatial), then scales by weight (C,) and adds bias (C,).

    With training the mean and variance are those of the batch, and the running ``mean`` and ``var`` (C,), where given,
    move towards them in place: running = (1 - momentum) running + momentum batch, with n - 1 in the batch's variance,
    as in PyTorch. Without it ``mean`` and ``var`` are used. They are float32 for 16-bit x. With return_stats the result
    is (y, the mean used, 1 / sqrt(variance used + eps)). ``activation`` is applied to y. conv, conv_transpose and
    linear fold one into their weights by ``prepare(w=w, b=b, batch_norm={"mean": mean, "var": var, ...})``. Ioffe and
    Szegedy, "Batch normalization", 2015.
    """
    ...


@op
def batch_norm_dx(
    dy: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None = None,
    y: Array | None = None,
    *,
    training: bool = True,
    return_dw: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradient of batch_norm in x, of x's shape, from what return_stats gave.

    ``y`` is what it gave with activation="relu": dy counts where y is not 0. With return_dw the result is (dx, dw, db),
    dw and db being the gradients of weight and bias, (C,).
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _over(x: Any) -> Sizes:
    return (0, *range(2, x.ndim))


def _channels(v: Any, x: Any) -> Any:
    """One number per channel in a shape that broadcasts to x; 1 where there is none."""
    return 1.0 if v is None else v.reshape(1, -1, *(1 for _ in x.shape[2:]))


def _mean(x: Any) -> Any:
    return x.sum(axis=_over(x)) / np.float64(x.size // x.shape[1] if x.shape[1] else 0)


@reference(batch_norm)
def _(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    *,
    training: bool,
    momentum: float,
    eps: float,
    return_stats: bool,
    activation: str | None,
) -> Any:
    middle = _mean(x) if training else mean
    square = _mean((x - _channels(middle, x)) ** 2) if training else var
    rstd = 1 / np.sqrt(square + eps)
    y = (x - _channels(middle, x)) * _channels(rstd, x) * _channels(weight, x)
    y = y if bias is None else y + _channels(bias, x)
    y = np.maximum(y, 0) if activation else y
    n = x.size // x.shape[1] if x.shape[1] else 0
    if training and n:
        batch = (middle, square * n / np.float64(n - 1))
        mean, var = (
            None if r is None else (1 - momentum) * r + momentum * b for r, b in zip((mean, var), batch, strict=True)
        )
    running = tuple(r for r in (mean, var) if r is not None)
    return (y, *((middle, rstd) if return_stats else ()), *running)


def _counted(dy: Any, y: Any) -> Any:
    return dy if y is None else np.where(y <= 0, 0, dy)


@reference(batch_norm_dx)
def _(dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, y: Any, *, training: bool, return_dw: bool) -> Any:
    dy = _counted(dy, y)
    unit = (x - _channels(mean, x)) * _channels(rstd, x)
    g = dy * _channels(weight, x)
    dx = g - _channels(_mean(g), x) - unit * _channels(_mean(g * unit), x) if training else g
    dx = dx * _channels(rstd, x)
    return (dx, (dy * unit).sum(axis=_over(x)), dy.sum(axis=_over(x))) if return_dw else dx


def _scale(x: Any, weight: Any, bias: Any, mean: Any, var: Any, **attrs: Any) -> tuple[Any, ...]:
    """What cancels: the mean out of x, and the bias out of y."""
    results = batch_norm.rules["reference"](x, weight, bias, mean, var, **(attrs | {"return_stats": True}))
    middle = _mean(np.abs(x)) if attrs["training"] else np.abs(results[1])
    steep = results[2] * (1 + middle * results[2] if attrs["training"] else 1)
    y = (np.abs(x) + _channels(middle, x)) * _channels(steep, x) * np.abs(_channels(weight, x))
    y = y if bias is None else y + np.abs(_channels(bias, x))
    running = tuple(np.abs(r) + middle * (1 + middle) for r in results[3:])
    return (y, *((middle, steep) if attrs["return_stats"] else ()), *running)


def _dx_scale(
    dy: Any, x: Any, mean: Any, rstd: Any, weight: Any, y: Any, *, training: bool, return_dw: bool
) -> tuple[Any, ...]:
    dy = _counted(dy, y)
    unit = (np.abs(x) + _channels(np.abs(mean), x)) * _channels(rstd, x)
    g = np.abs(dy * _channels(weight, x))
    dx = (g + _channels(_mean(g), x) + unit * _channels(_mean(g * unit), x)) * _channels(rstd, x)
    return (dx, (np.abs(dy) * unit).sum(axis=_over(x)), np.abs(dy).sum(axis=_over(x)))[: 3 if return_dw else 1]


batch_norm.rules["scale"] = _scale
batch_norm_dx.rules["scale"] = _dx_scale

for _target in (batch_norm, batch_norm_dx):
    tolerance(_target, ulp=8)
    dtypes(_target, *FLOATING)


# --------------------------------------------------------------------------------------------------- backward


@forward(batch_norm)
def _(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    *,
    return_stats: bool,
    activation: Literal["relu"] | None,
    **attrs: Any,
) -> tuple[Any, tuple[Array, Array, Array | None]]:
    y, used, rstd = batch_norm(x, weight, bias, mean, var, return_stats=True, activation=activation, **attrs)
    return ((y, used, rstd) if return_stats else y), (used, rstd, y if activation else None)


@updates(batch_norm)
def _(*, training: bool = False, **attrs: Any) -> bool:
    return training


@backward(batch_norm, of=("x", "weight", "bias"))
def _(
    dy: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    *,
    saved: tuple[Array, Array, Array | None] | None,
    wanted: Wanted,
    training: bool,
    momentum: float,
    eps: float,
    return_stats: bool,
    activation: str | None,
) -> Any:
    if saved is None:
        running = (None, None) if training else (mean, var)  # a second look at the batch moves nothing
        attrs: dict[str, Any] = {"training": training, "eps": eps, "activation": activation}
        y, used, rstd = batch_norm(x, weight, bias, *running, return_stats=True, **attrs)
        saved = (used, rstd, y if activation else None)
    sums = bool({"weight", "bias"} & wanted)
    used, rstd, shown = saved
    found = ops.batch_norm_dx(dy, x, used, rstd, weight, shown, training=training, return_dw=sums)
    grads = zip(("x", "weight", "bias"), found if sums else (found, None, None), strict=True)
    return tuple(g if name in wanted else None for name, g in grads)


# ------------------------------------------------------------------------------------- folded into a layer before


def scale_and_shift(b: Any, weight: Any, bias: Any, mean: Any, var: Any, *, eps: float) -> tuple[Any, Any]:
    """What batch_norm in inference makes of a layer with bias b: its filters times scale (K,), and shift (K,) for b.

    Both are float64.
    """
    scale = _in_float64(weight, 1.0) / np.sqrt(_in_float64(var) + eps)
    return scale, (_in_float64(b) - _in_float64(mean)) * scale + _in_float64(bias)


def scaled_filters(w: Any, scale: Any, *, transposed: bool = False, groups: int = 1) -> Any:
    """w (K, ...), or (C, K/groups, ...) of a transposed convolution, with filters times scale (K,), rounded once."""
    w = np.asarray(w)
    filters = (groups, w.shape[0] // groups, w.shape[1]) if transposed else (1, 1, w.shape[0])
    taps = math.prod(w.shape[2 if transposed else 1 :])
    scaled = w.astype(np.float64).reshape(*filters, taps) * scale.reshape(filters[0], 1, filters[2], 1)
    return scaled.reshape(w.shape).astype(w.dtype)


def _in_float64(v: Any, absent: float = 0.0) -> Any:
    return absent if v is None else np.asarray(v, np.float64)


def with_batch_norm(target: Op[..., Any], given: dict[str, Any], *, transposed: bool = False) -> dict[str, Any]:
    """Arguments of ``target.prepare`` with ``batch_norm``, the arguments of one that follows, folded into w and b.

    It is a dict of batch_norm's arguments by name, or what ``batch_norm.prepare`` returned.
    """
    arguments = {k: v for k, v in given.items() if k != "batch_norm"}
    if given.get("batch_norm") is None:
        return arguments
    norm = _arguments_of_norm(target, given["batch_norm"])
    for k, v in ({k: given.get(k) for k in ("w", "b")} | norm).items():
        if dispatch.backend_of(target.name, k, v) not in ("", "cpu"):
            raise UnsupportedError(
                f"{target.name}: batch_norm folds on the CPU but {k} is on a device; want tilework.to_host({k})",
                op=target.name,
                argument=k,
            )
    w, b = (dispatch.borrow(target.name, k, given.get(k)) for k in ("w", "b"))
    if w is None or w.ndim < 2:
        text = "is not given" if w is None else f"has shape {w.shape}"
        raise ShapeError(f"{target.name}: w {text}; want weights to fold batch_norm into", op=target.name, argument="w")
    groups = given.get("groups", 1) if transposed else 1
    if not isinstance(groups, int) or groups < 1 or w.shape[0] % groups:
        text = f"groups={groups!r} does not divide C={w.shape[0]}; want a divisor"
        raise AttrError(f"{target.name}: {text}", op=target.name, argument="groups")
    k = w.shape[1] * groups if transposed else w.shape[0]
    if b is not None and b.shape != (k,):
        text = f"b has shape {b.shape} but w has K={k}; want ({k},)"
        raise ShapeError(f"{target.name}: {text}", op=target.name, argument="b")
    operands = [dispatch.borrow(batch_norm.name, n, norm.pop(n, None)) for n in ("weight", "bias", "mean", "var")]
    eps = infer(batch_norm, (np.empty((1, k), w.dtype), *operands), norm)[1]["eps"]
    scale, shift = scale_and_shift(b, *operands, eps=eps)
    w = scaled_filters(w, scale, transposed=transposed, groups=groups)
    return arguments | {"w": w, "b": shift.astype(w.dtype)}


def _arguments_of_norm(target: Op[..., Any], norm: Any) -> dict[str, Any]:
    names = ("weight", "bias", "mean", "var", "eps")
    found = dict(norm.bound if isinstance(norm, Prepared) else norm) if isinstance(norm, (Prepared, Mapping)) else None
    if found is not None and found.keys() <= set(names):
        return found
    text = type(norm).__name__ if found is None else f"of {sorted(map(str, found))}"
    raise AttrTypeError(
        f"{target.name}: batch_norm is {text}; want a dict of {', '.join(names)}", op=target.name, argument="batch_norm"
    )


# ---------------------------------------------------------------------------------------------------- samples

_SHAPES: tuple[Sizes, ...] = (
    (4, 1),
    (5, 3),
    (2, 3, 5),
    (3, 2, 33),
    (2, 3, 4, 9),
    (1, 2, 3, 4, 5),
    (0, 3, 4),
    (2, 0, 3),
)


def _wide(fill: Fill) -> Any:
    return np.float64 if fill.dtype == np.float64 else np.float32


def _statistics(fill: Fill, c: int) -> tuple[Any, Any]:
    return (0.3 * fill(c)).astype(_wide(fill)), fill.positive(c).astype(_wide(fill))


@samples(batch_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape in _SHAPES:
        parameters = fill.positive(shape[1]), fill(shape[1])
        yield sample(fill(*shape), *parameters, *_statistics(fill, shape[1]), training=True)
        if len(shape) == 3:
            yield sample(fill(*shape), *parameters, *_statistics(fill, shape[1]))
    yield sample(fill(2, 3, 40) + np.asarray(10, fill.dtype), training=True, eps=1e-3, return_stats=True)
    yield sample(fill(40, 3, 2).T, None, fill(3), *_statistics(fill, 3), training=True, momentum=0.3)
    yield sample(fill(2, 3, 4), None, None, *_statistics(fill, 3), return_stats=True)
    yield sample(fill(3, 4, 33), fill.positive(4), fill(4), training=True, activation="relu")
    yield sample(fill(2, 3, 4), None, fill(3), *_statistics(fill, 3), activation="relu")


@samples(batch_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape in _SHAPES:
        operands = fill(*shape), fill(*shape), *_statistics(fill, shape[1]), fill.positive(shape[1])
        yield sample(*operands, return_dw=True)
    yield sample(fill(2, 3, 40), fill(40, 3, 2).T, *_statistics(fill, 3))
    yield sample(fill(2, 3, 4), fill(2, 3, 4), *_statistics(fill, 3), fill(3), training=False, return_dw=True)
    yield sample(fill(2, 3, 4), fill(2, 3, 4), *_statistics(fill, 3), training=False)
    shown = fill.positive(3, 4, 33) * (fill(3, 4, 33) > 0).astype(fill.dtype)
    yield sample(fill(3, 4, 33), fill(3, 4, 33), *_statistics(fill, 4), fill(4), shown, return_dw=True)
    yield sample(fill(4, 4, 3), fill(4, 4, 3), *_statistics(fill, 4), fill(4), shown[:, :, :4].T, training=False)


@errors(batch_norm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, (mean, var) = fill(2, 3, 4), _statistics(fill, 3)
    yield ErrorCase(sample(x), ShapeError, "mean is not given and training=False")
    yield ErrorCase(sample(x, None, None, mean), ShapeError, "var is not given and training=False")
    yield ErrorCase(sample(x, fill(2), None, mean, var), ShapeError, "weight has shape (2,); want (3,)")
    yield ErrorCase(sample(x, None, fill(3, 1), mean, var), ShapeError, "bias has shape (3, 1); want (3,)")
    yield ErrorCase(sample(x, None, None, mean[:2], var), ShapeError, "mean has shape (2,); want (3,)")
    yield ErrorCase(sample(x, None, None, mean, var.astype(np.float16)), DTypeError, "var has dtype float16")
    for momentum in (-0.5, 1.5, float("nan")):
        yield ErrorCase(sample(x, training=True, momentum=momentum), AttrError, f"momentum={momentum:g}; want 0 to 1")
    yield ErrorCase(sample(x, training=True, activation="tanh"), AttrError, "activation='tanh'")
    yield ErrorCase(sample(x, training=True, eps=-1.0), AttrError, "eps=-1; want a finite number >= 0")
    yield ErrorCase(sample(fill(1, 3), training=True), ShapeError, "x has shape (1, 3), one element per channel")
    yield ErrorCase(sample(fill(3), training=True), ShapeError, "x has shape (3,)")
    yield ErrorCase(sample(np.ones((2, 3), np.int32), training=True), DTypeError, "x has dtype int32")


@errors(batch_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, (mean, rstd) = fill(2, 3, 4), _statistics(fill, 3)
    yield ErrorCase(sample(x[:1], x, mean, rstd), ShapeError, "dy has shape (1, 3, 4)")
    yield ErrorCase(sample(x, x, mean[:2], rstd), ShapeError, "mean has shape (2,); want (3,)")
    yield ErrorCase(sample(x, x, mean, rstd.astype(np.int32)), DTypeError, "rstd has dtype int32")
    yield ErrorCase(sample(x, x, mean, rstd, fill(2)), ShapeError, "weight has shape (2,); want (3,)")
    yield ErrorCase(sample(x, x, mean, rstd, None, x[:1]), ShapeError, "y has shape (1, 3, 4)")


_LARGE = (8, 64, 112, 112)


@workloads(batch_norm)
def _() -> Iterator[Workload]:
    each = ((64,),) * 4
    yield Workload("train 8x64x112x112", (_LARGE, *each), {"training": True})
    yield Workload("train 8x64x28x28", ((8, 64, 28, 28), *each), {"training": True}, ("resnet50",))
    yield Workload("infer 8x64x28x28", ((8, 64, 28, 28), *each), {}, ("resnet50",))


@workloads(batch_norm_dx)
def _() -> Iterator[Workload]:
    yield Workload("8x64x112x112", (_LARGE, _LARGE, (64,), (64,), (64,)), {"return_dw": True})
    small = (8, 64, 28, 28)
    yield Workload("8x64x28x28", (small, small, (64,), (64,), (64,)), {"return_dw": True}, ("resnet50",))


@fills(batch_norm)
def _(fill: Fill, x: Sizes, weight: Sizes, bias: Sizes, mean: Sizes, var: Sizes, **attrs: Any) -> Any:
    return fill(*x), fill(*weight), fill(*bias), *_statistics(fill, x[1])


@fills(batch_norm_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, mean: Sizes, rstd: Sizes, weight: Sizes, y: None, **attrs: Any) -> Any:
    return fill(*dy), fill(*x), *_statistics(fill, x[1]), fill(*weight), None


# ------------------------------------------------------------------------------------------------- OpenCL


def _lines(x: Any) -> Lines:
    n = math.prod(x.shape[d] for d in _over(x))
    return Lines(x, _over(x), file="batch_norm.cl", period=max(1, x.shape[1]), step=1, run=n)


@opencl(batch_norm)
def _(
    queue: Queue,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    y: Any,
    *stats: Any,
    training: bool,
    momentum: float,
    eps: float,
    return_stats: bool,
    activation: str | None,
) -> None:
    if training and (mean is None) != (var is None):  # the kernel moves both
        spare = queue.empty((x.shape[1],), (var if mean is None else mean).dtype)
        queue.fill(spare, 0)
        mean, var = (spare, var) if mean is None else (mean, spare)
    given = [None if r is None else queue.contiguous(r) for r in (mean, var)]
    found = (stats[0], stats[1]) if return_stats else None
    move = momentum if training else None
    parameters = (weight, bias)
    running = (given[0], given[1])
    normalised(
        queue, _lines(x), parameters, None, y, None, found, eps, running=running, momentum=move, relu=bool(activation)
    )
    for whole, part in zip((mean, var), given, strict=True):
        if training and part is not whole:
            queue.copy(part, whole)


@opencl(batch_norm_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    y: Any,
    dx: Any,
    *sums: Any,
    training: bool,
    return_dw: bool,
) -> None:
    if y is not None:
        shown = queue.empty(dy.shape, dy.dtype)
        ops.relu_dx.rules["opencl"](queue, dy, y, shown)
        dy = shown
    lines = _lines(x)
    gradients(queue, lines, dy, mean, rstd, weight, dx, sums, constant=not training)
