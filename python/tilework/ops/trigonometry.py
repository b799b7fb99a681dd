"""Trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import DTypeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
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


@op
def sin(x: Array, *, out: Array | None = None) -> Array:
    """Computes the sine of each element of x, of any shape, in radians."""
    ...


@op
def cos(x: Array, *, out: Array | None = None) -> Array:
    """Computes the cosine of each element of x, of any shape, in radians."""
    ...


@op
def tan(x: Array, *, out: Array | None = None) -> Array:
    """Computes the tangent of each element of x, of any shape, in radians."""
    ...


@op
def asin(x: Array, *, out: Array | None = None) -> Array:
    """Computes the angle whose sine is each element of x, of any shape: NaN outside [-1, 1]."""
    ...


@op
def acos(x: Array, *, out: Array | None = None) -> Array:
    """Computes the angle whose cosine is each element of x, of any shape: NaN outside [-1, 1]."""
    ...


@op
def atan(x: Array, *, out: Array | None = None) -> Array:
    """Computes the angle whose tangent is each element of x, of any shape."""
    ...


@op
def sinh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the hyperbolic sine of each element of x, of any shape."""
    ...


@op
def cosh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the hyperbolic cosine of each element of x, of any shape."""
    ...


@op
def asinh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the number whose hyperbolic sine is each element of x, of any shape."""
    ...


@op
def acosh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the number whose hyperbolic cosine is each element of x, of any shape: NaN below 1."""
    ...


@op
def atanh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the number whose hyperbolic tangent is each element of x, of any shape: NaN outside [-1, 1]."""
    ...


def _one_minus_square(x: Array) -> Array:
    return ops.mul(ops.sub(1.0, x), ops.add(x, 1.0))


def _slope(name: str, x: Array) -> Array:
    """The slope of a function, in ops."""
    slopes: dict[str, Callable[[], Array]] = {
        "sin": lambda: cos(x),
        "cos": lambda: ops.neg(sin(x)),
        "tan": lambda: ops.add(ops.mul(tan(x), tan(x)), 1.0),
        "asin": lambda: ops.rsqrt(_one_minus_square(x)),
        "acos": lambda: ops.neg(ops.rsqrt(_one_minus_square(x))),
        "atan": lambda: ops.div(1.0, ops.add(ops.mul(x, x), 1.0)),
        "sinh": lambda: cosh(x),
        "cosh": lambda: sinh(x),
        "asinh": lambda: ops.rsqrt(ops.add(ops.mul(x, x), 1.0)),
        "acosh": lambda: ops.rsqrt(ops.mul(ops.sub(x, 1.0), ops.add(x, 1.0))),
        "atanh": lambda: ops.div(1.0, _one_minus_square(x)),
    }
    return slopes[name]()


_OPS = (sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh)
_NUMPY = (
    np.sin,
    np.cos,
    np.tan,
    np.arcsin,
    np.arccos,
    np.arctan,
    np.sinh,
    np.cosh,
    np.arcsinh,
    np.arccosh,
    np.arctanh,
)


def _inside(target: Any, x: Any) -> Any:
    """x in the middle of the domain."""
    if target in (asin, acos, atanh, tan):
        return np.asarray(x / (1 + np.abs(x)) * 0.9, x.dtype)
    return np.asarray(1.5 + np.abs(x), x.dtype) if target is acosh else x


def _samples(target: Any) -> Callable[[Fill], Iterator[Sample]]:
    def run(fill: Fill) -> Iterator[Sample]:
        for n in (1, 4, 17, 33):
            yield sample(_inside(target, fill(n)))
        yield sample(_inside(target, fill()))
        yield sample(_inside(target, fill(2, 3, 5)))
        yield sample(_inside(target, fill(5, 3)).T)
        yield sample(_inside(target, fill(3, 0, 2)))

    return run


def _errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64; want float32, float64")
    yield ErrorCase(sample([1.0, 2.0]), DTypeError, "x is a list")


def _workloads() -> Iterator[Workload]:
    yield Workload("1M", ((1 << 20,),))


def _slope_of(target: Any) -> Callable[..., Array]:
    def run(dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Array:
        return ops.mul(dy, _slope(target.name, x))

    return run


def _on_a_device(target: Any) -> Callable[..., None]:
    def run(queue: Queue, x: Any, y: Any) -> None:
        queue.each("trigonometry.cl", "trigonometry", (x, y), _OPS.index(target), DTYPE=x.dtype)

    return run


for _target, _function in zip(_OPS, _NUMPY, strict=True):
    reference(_target)(_function)
    backward(_target, of=("x",))(_slope_of(_target))
    samples(_target)(_samples(_target))
    errors(_target)(_errors)
    workloads(_target)(_workloads)
    tolerance(_target, ulp=4)
    dtypes(_target, *FLOATING)
    opencl(_target)(_on_a_device(_target))
