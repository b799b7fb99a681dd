"""Where the largest and smallest elements are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    op,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def argmax(x: Array, *, axis: int = -1, keepdims: bool = False, last: bool = False, out: Array | None = None) -> Array:
    """Finds the place of the largest element of x, floats or integers, along ``axis``; int64.

    NaN counts as the largest. Of several the first place is given, with ``last`` the last.
    """
    ...


@op
def argmin(x: Array, *, axis: int = -1, keepdims: bool = False, last: bool = False, out: Array | None = None) -> Array:
    """Finds the place of the smallest element of x, floats or integers, along ``axis``; int64.

    NaN counts as the smallest. Of several the first place is given, with ``last`` the last.
    """
    ...


@op
def top_k(x: Array, *, k: int, axis: int = -1, largest: bool = True, out: tuple[Array, Array] | None = None) -> Any:
    """Finds the k largest or smallest elements of x, floats or integers, along ``axis``: (values, places int64).

    They come in order, of equal ones that of the lower place first. NaN counts as larger than all numbers.
    """
    ...


def _arg(function: Any) -> Callable[..., Any]:
    def run(x: Any, *, axis: int, keepdims: bool, last: bool) -> Any:
        if not last:
            return function(x, axis=axis, keepdims=keepdims)
        return x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis, keepdims=keepdims)

    return run


reference(argmax)(_arg(np.argmax))
reference(argmin)(_arg(np.argmin))


@reference(top_k)
def _(x: Any, *, k: int, axis: int, largest: bool) -> Any:
    n = x.shape[axis]
    if largest:  # stable from the other end
        order = n - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    places = order.take(range(k), axis)
    return np.take_along_axis(x, places, axis), places


@backward(top_k, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, k: int, axis: int, largest: bool) -> Array:
    places = top_k(x, k=k, axis=axis, largest=largest)[1]
    nothing = ops.crop(x, tuple((n, 0) if a == axis else (0, 0) for a, n in enumerate(x.shape)))
    zeros = ops.pad(nothing, pads=tuple((n, 0) if a == axis else (0, 0) for a, n in enumerate(x.shape)))
    return ops.scatter_elements(zeros, places, dy, axis=axis, reduction="add")


def _arg_samples(fill: Fill) -> Iterator[Sample]:
    for last in (False, True):
        yield sample(fill.integers(4, 9, low=0, high=3, dtype=fill.dtype), last=last)
        yield sample(fill(3, 4, 5), axis=1, keepdims=True, last=last)
    yield sample(fill(1))
    yield sample(fill(5, 3).T, axis=0)
    yield sample(fill(0, 2))
    if fill.dtype.kind == "f":
        yield sample(np.array([1.0, np.nan, np.inf, np.nan], fill.dtype))


def _arg_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 0)), ShapeError, "no elements along axis 1")
    yield ErrorCase(sample(fill(3), axis=1), AttrError, "axis=1 is out of range")
    yield ErrorCase(sample(np.array([True])), DTypeError, "x has dtype bool; want a float or an integer")


@samples(top_k)
def _(fill: Fill) -> Iterator[Sample]:
    for largest in (True, False):
        yield sample(fill.distinct(3, 9), k=3, largest=largest)
        yield sample(fill.integers(2, 33, low=0, high=4, dtype=fill.dtype), k=33, largest=largest)
    yield sample(fill.distinct(4, 3, 2), k=2, axis=1)
    yield sample(fill.distinct(5, 4).T, k=1, axis=0)
    yield sample(fill.distinct(5), k=0)
    yield sample(fill.distinct(0, 3), k=2)


@errors(top_k)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3), k=4), AttrError, "k=4; want 0 to 3")
    yield ErrorCase(sample(fill(3), k=-1), AttrError, "k=-1; want 0 to 3")
    yield ErrorCase(sample(np.array([True]), k=1), DTypeError, "x has dtype bool; want a float or an integer")


def _workloads() -> Iterator[Workload]:
    yield Workload("1024x1024", ((1024, 1024),))


for _target in (argmax, argmin):
    samples(_target)(_arg_samples)
    errors(_target)(_arg_errors)
    workloads(_target)(_workloads)
for _op in (argmax, argmin, top_k):
    tolerance(_op, ulp=0.5)
    dtypes(_op, "float32", "float64", "float16", "int32", "uint8")
