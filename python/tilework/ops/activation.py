"""Activation functions beyond those of ``elementwise``, clipping, roots and signs, with one gradient for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.dtypes import FLOATING, is_floating
from tilework.errors import AttrError, DTypeError, ShapeError
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
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

Function: TypeAlias = Literal[
    "silu",
    "softplus",
    "mish",
    "elu",
    "leaky_relu",
    "hard_sigmoid",
    "hard_swish",
    "clip",
    "sqrt",
    "rsqrt",
    "abs",
    "neg",
]


@op
def silu(x: Array, *, out: Array | None = None) -> Array:
    """Computes x / (1 + exp(-x)) for each element of x, of any shape; also called swish."""
    ...


@op
def softplus(x: Array, *, out: Array | None = None) -> Array:
    """Computes log(1 + exp(x)) for each element of x, of any shape, without overflow."""
    ...


@op
def mish(x: Array, *, out: Array | None = None) -> Array:
    """Computes x tanh(log(1 + exp(x))) for each element of x, of any shape. Misra, "Mish", 2019."""
    ...


@op
def elu(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    """Keeps the positive elements of x, of any shape, and takes alpha (exp(x) - 1) of the others."""
    ...


@op
def leaky_relu(x: Array, *, alpha: float = 0.01, out: Array | None = None) -> Array:
    """Keeps the positive elements of x, of any shape, and multiplies the others by alpha."""
    ...


@op
def hard_sigmoid(x: Array, *, alpha: float = 1 / 6, beta: float = 0.5, out: Array | None = None) -> Array:
    """Limits alpha x + beta to [0, 1] for each element of x, of any shape. The defaults are PyTorch's."""
    ...


@op
def hard_swish(x: Array, *, out: Array | None = None) -> Array:
    """Multiplies each element of x, of any shape, by x / 6 + 1 / 2 limited to [0, 1]."""
    ...


@op
def clip(x: Array, *, low: float = -math.inf, high: float = math.inf, out: Array | None = None) -> Array:
    """Limits each element of x, of any shape, to [low, high]. NaN stays NaN."""
    ...


@op
def sqrt(x: Array, *, out: Array | None = None) -> Array:
    """Takes the square root of each element of x, of any shape: NaN below 0."""
    ...


@op
def rsqrt(x: Array, *, out: Array | None = None) -> Array:
    """Computes 1 / sqrt(x) for each element of x, of any shape: inf at 0, NaN below."""
    ...


@op
def abs(x: Array, *, out: Array | None = None) -> Array:
    """Takes the absolute value of each element of x, floats or integers of any shape."""
    ...


@op
def neg(x: Array, *, out: Array | None = None) -> Array:
    """Changes the sign of each element of x, floats or integers of any shape."""
    ...


@op
def activation_dx(
    dy: Array, x: Array, *, function: Function, alpha: float = 0.0, beta: float = 0.0, out: Array | None = None
) -> Array:
    """Computes the gradient of a ``function`` of this family at x, dy times its slope; dy and x of one shape.

    alpha and beta are the function's attributes in their order: low and high for clip.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Any) -> Any:
    return np.fmax(x, 0) + np.log1p(np.exp(-np.abs(x))) + 0 * np.where(np.isnan(x), x, 0)


def _gate(x: Any) -> Any:
    """tanh(softplus(x)) and what is left to 1, without cancellation."""
    t = np.exp(-np.abs(x))
    whole = np.where(x < 0, 2 + t * (2 + t), 1 + 2 * t * (1 + t))
    return np.where(x < 0, t * (2 + t), 1 + 2 * t) / whole, np.where(x < 0, 2.0, 2 * t * t) / whole


_VALUES: dict[str, Callable[..., Any]] = {
    "silu": lambda x: np.where(np.isneginf(x), 0.0, x * _sigmoid(x)),
    "softplus": _softplus,
    "mish": lambda x: np.where(np.isneginf(x), 0.0, x * _gate(x)[0]),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.fmin(x, 0))) + 0 * np.where(np.isnan(x), x, 0),
    "leaky_relu": lambda x, alpha: np.where(x > 0, x, alpha * x),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "clip": lambda x, low, high: np.clip(x, low, high),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs,
    "neg": np.negative,
}


def _mish_slope(x: Any) -> Any:
    open_, rest = _gate(x)
    return open_ + np.clip(x, -800, 800) * rest * (1 + open_) * _sigmoid(x)


_SLOPES: dict[str, Callable[..., Any]] = {
    "silu": lambda x, a, b: _sigmoid(x) + np.where(np.isinf(x), 0.0, x) * _sigmoid(x) * _sigmoid(-x),
    "softplus": lambda x, a, b: _sigmoid(x),
    "mish": lambda x, a, b: _mish_slope(x),
    "elu": lambda x, a, b: np.where(x > 0, 1.0, a * np.exp(np.where(x > 0, 0, x))),
    "leaky_relu": lambda x, a, b: np.where(x > 0, 1.0, a),
    "hard_sigmoid": lambda x, a, b: np.where((a * x + b > 0) & (a * x + b < 1), a, 0.0),
    "hard_swish": lambda x, a, b: np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, (2 * x + 3) / 6)),
    "clip": lambda x, a, b: np.where((x >= a) & (x <= b), 1.0, 0.0),
    "sqrt": lambda x, a, b: 0.5 / np.sqrt(x),
    "rsqrt": lambda x, a, b: -0.5 / (x * np.sqrt(x)),
    "abs": lambda x, a, b: np.sign(x),
    "neg": lambda x, a, b: -np.ones_like(x),
}


@reference(activation_dx)
def _(dy: Any, x: Any, *, function: str, alpha: float, beta: float) -> Any:
    return dy * _SLOPES[function](x, alpha, beta)


# ------------------------------------------------------------------------------- what all functions share

_OPS = (silu, softplus, mish, elu, leaky_relu, hard_sigmoid, hard_swish, clip, sqrt, rsqrt, abs, neg)
NAMES: list[str] = [f.name for f in _OPS]
_ULP: dict[str, float] = {
    "silu": 4,
    "softplus": 4,
    "mish": 8,
    "elu": 3,
    "hard_sigmoid": 1,
    "hard_swish": 2,
    "leaky_relu": 1,
}
_ULP |= {"clip": 0.5, "sqrt": 0.5, "rsqrt": 2, "abs": 0.5, "neg": 0.5}
_POSITIVE = ("sqrt", "rsqrt")
_OF_INTEGERS = (abs, neg)  # which may wrap


def _numbers(attrs: dict[str, float]) -> dict[str, float]:
    """A function's attributes as alpha and beta."""
    return dict(zip(("alpha", "beta"), attrs.values(), strict=False))


def _slope_of(target: Any) -> Callable[..., Array]:
    def run(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: float) -> Array:
        return activation_dx(dy, x, function=target.name, **_numbers(attrs))

    return run


def _samples(target: Any) -> Callable[[Fill], Iterator[Sample]]:
    def run(fill: Fill) -> Iterator[Sample]:
        make = fill.positive if target.name in _POSITIVE else fill
        for n in (1, 4, 9, 17, 33):
            yield sample(make(n))
        yield sample(make())
        yield sample(make(2, 3, 5) * np.asarray(4, fill.dtype))
        yield sample(make(5, 3).T)
        yield sample(make(3, 0, 2))
        if target is clip:
            yield sample(fill(19), low=-0.5, high=0.75)
        if target is elu or target is leaky_relu:
            yield sample(fill(19), alpha=0.25)

    return run


def _errors(target: Any) -> Callable[[Fill], Iterator[ErrorCase]]:
    def run(fill: Fill) -> Iterator[ErrorCase]:
        odd = np.array([True, False]) if target in _OF_INTEGERS else np.arange(3)
        yield ErrorCase(sample(odd), DTypeError, f"x has dtype {odd.dtype}; want")
        yield ErrorCase(sample([1.0, 2.0]), DTypeError, "x is a list")
        if target is clip:
            yield ErrorCase(sample(fill(3), low=1.0, high=0.0), AttrError, "low=1 is above high=0")
            yield ErrorCase(sample(fill(3), high=math.nan), AttrError, "high=nan; want a number")
        if target is elu:
            yield ErrorCase(sample(fill(3), alpha=math.nan), AttrError, "alpha=nan; want a number")

    return run


def _workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,),))
    yield Workload("128x1024", ((128, 1024),))


def _on_a_device(target: Any) -> Callable[..., None]:
    def run(queue: Queue, x: Any, y: Any, **attrs: float) -> None:
        if not is_floating(x.dtype):
            queue.each("arithmetic.cl", "turned", (x, y), 2 if target is abs else 1, DTYPE=x.dtype)
            return
        numbers = [float(v) for v in attrs.values()] + [0.0, 0.0]
        which = NAMES.index(target.name)
        queue.each("activation.cl", "activation", (x, y), which, *numbers[:2], chunks=True, DTYPE=x.dtype)

    return run


for _target in _OPS:
    reference(_target)(_VALUES[_target.name])
    backward(_target, of=("x",))(_slope_of(_target))
    samples(_target)(_samples(_target))
    errors(_target)(_errors(_target))
    workloads(_target)(_workloads)
    tolerance(_target, ulp=_ULP[_target.name])
    dtypes(_target, *FLOATING, *(("int32",) if _target in _OF_INTEGERS else ()))
    opencl(_target)(_on_a_device(_target))

for _positive in (sqrt, rsqrt):

    @fills(_positive)
    def _(fill: Fill, x: Sizes) -> Any:
        return (fill.positive(*x),)


# alpha x + beta, and x + 3, are differences where they are small.
hard_sigmoid.rules["scale"] = lambda x, *, alpha, beta: np.fmin(1.0, np.abs(alpha * x) + np.abs(beta))
hard_swish.rules["scale"] = lambda x: np.where(x < -3, 0.0, np.abs(x) * (np.fmin(np.abs(x), 6) + 3) / 6)

tolerance(activation_dx, ulp=8)
dtypes(activation_dx, *FLOATING)
activation_dx.rules["scale"] = lambda dy, x, *, function, alpha, beta: (
    np.abs(dy)
    * np.fmax(
        np.abs(_SLOPES[function](x, alpha, beta)), 1.0 if function in ("silu", "mish", "hard_swish", "elu") else 0.0
    )
)
_ATTRS: dict[str, dict[str, float]] = {
    "elu": {"alpha": 0.5},
    "leaky_relu": {"alpha": 0.1},
    "hard_sigmoid": {"alpha": 0.2, "beta": 0.5},
    "clip": {"alpha": -0.5, "beta": 0.75},
}


@samples(activation_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for name in NAMES:
        make = fill.positive if name in _POSITIVE else fill
        yield sample(fill(13), make(13) * np.asarray(2, fill.dtype), function=name, **_ATTRS.get(name, {}))
    yield sample(fill(3, 5), fill(5, 3).T, function="silu")
    yield sample(fill(0, 3), fill(0, 3), function="neg")


@errors(activation_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(3), function="silu"), ShapeError, "x has shape (3,)")
    yield ErrorCase(sample(np.arange(3), fill(3), function="silu"), DTypeError, "dy has dtype int64")
    yield ErrorCase(sample(fill(3), fill(3), function="relu6"), AttrError, "function='relu6'; want one of silu|")


@workloads(activation_dx)
def _() -> Iterator[Workload]:
    yield Workload("silu 4M", ((1 << 22,), (1 << 22,)), {"function": "silu"})


@opencl(activation_dx)
def _(queue: Queue, dy: Any, x: Any, dx: Any, *, function: str, alpha: float, beta: float) -> None:
    which = NAMES.index(function)
    queue.each(
        "activation.cl", "activation_dx", (dy, x, dx), which, float(alpha), float(beta), chunks=True, DTYPE=x.dtype
    )
