"""Whole numbers near others, and signs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.dtypes import FLOATING, is_floating
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
def ceil(x: Array, *, out: Array | None = None) -> Array:
    """Rounds each element of x, floats of any shape, up to a whole number."""
    ...


@op
def floor(x: Array, *, out: Array | None = None) -> Array:
    """Rounds each element of x, floats of any shape, down to a whole number."""
    ...


@op
def round(x: Array, *, out: Array | None = None) -> Array:
    """Rounds each element of x, floats of any shape, to the nearest whole number, halves to even."""
    ...


@op
def trunc(x: Array, *, out: Array | None = None) -> Array:
    """Rounds each element of x, floats of any shape, towards zero to a whole number."""
    ...


@op
def sign(x: Array, *, out: Array | None = None) -> Array:
    """Takes the sign of each element of x, floats or integers of any shape: -1, 0 or 1; NaN stays NaN."""
    ...


_OPS = (ceil, floor, round, trunc, sign)
_NUMPY = (np.ceil, np.floor, np.rint, np.trunc, np.sign)


def _samples(fill: Fill) -> Iterator[Sample]:
    for n in (1, 4, 17, 33):
        yield sample(fill(n))
    yield sample(fill())
    if is_floating(fill.dtype):
        yield sample(fill(2, 3, 5) * np.asarray(50, fill.dtype))
        yield sample(np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, 4.0, 3e4], fill.dtype))
    yield sample(fill(5, 3).T)
    yield sample(fill(3, 0, 2))


def _errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.array([True])), DTypeError, "x has dtype bool; want")
    yield ErrorCase(sample([1.0, 2.0]), DTypeError, "x is a list")


def _workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,),))


# Flat between the steps.
def _nothing(dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Array:
    return ops.mul(dy, 0.0)


def _on_a_device(target: Any) -> Callable[..., None]:
    def run(queue: Queue, x: Any, y: Any) -> None:
        queue.each("rounding.cl", "rounding", (x, y), _OPS.index(target), DTYPE=x.dtype)

    return run


for _target, _function in zip(_OPS, _NUMPY, strict=True):
    reference(_target)(_function)
    backward(_target, of=("x",))(_nothing)
    samples(_target)(_samples)
    errors(_target)(_errors)
    workloads(_target)(_workloads)
    tolerance(_target, ulp=0.5)
    dtypes(_target, *FLOATING, *(("int32",) if _target is sign else ()))
    opencl(_target)(_on_a_device(_target))
