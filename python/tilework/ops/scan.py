"""Running sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Wanted
from tilework.dtypes import FLOATING
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
def cumsum(
    x: Array, *, axis: int = -1, exclusive: bool = False, reverse: bool = False, out: Array | None = None
) -> Array:
    """Sums x, floats or integers of at least one axis, up to each element of it along ``axis``; the shape stays.

    ``exclusive`` leaves the element itself out, ``reverse`` begins at the end.
    """
    ...


@op
def cumprod(
    x: Array, *, axis: int = -1, exclusive: bool = False, reverse: bool = False, out: Array | None = None
) -> Array:
    """Multiplies x, floats or integers of at least one axis, up to each element of it along ``axis``; the shape stays.

    ``exclusive`` leaves the element itself out, ``reverse`` begins at the end.
    """
    ...


def _scan(function: Any, start: int) -> Callable[..., Any]:
    def run(x: Any, *, axis: int, exclusive: bool, reverse: bool) -> Any:
        x = np.flip(x, axis) if reverse else x
        y = function(x, axis=axis, dtype=x.dtype)
        if exclusive:
            before = np.full_like(x.take([0], axis), start) if x.shape[axis] else x
            y = np.concatenate([before, y.take(range(max(x.shape[axis] - 1, 0)), axis)], axis)
        return np.flip(y, axis) if reverse else y

    return run


reference(cumsum)(_scan(np.cumsum, 0))
reference(cumprod)(_scan(np.cumprod, 1))


@backward(cumsum, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axis: int, exclusive: bool, reverse: bool) -> Array:
    return cumsum(dy, axis=axis, exclusive=exclusive, reverse=not reverse)


def _samples(fill: Fill) -> Iterator[Sample]:
    for exclusive in (False, True):
        for reverse in (False, True):
            yield sample(fill(3, 5), exclusive=exclusive, reverse=reverse)
            yield sample(fill(4, 3, 2), axis=1, exclusive=exclusive, reverse=reverse)
    yield sample(fill(1))
    yield sample(fill(70, 3).T, axis=0)
    yield sample(fill(9, 70), axis=0)
    yield sample(fill(2, 0), exclusive=True)
    yield sample(fill(0, 2), exclusive=True)


def _errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill()), ShapeError, "x has 0 dimensions")
    yield ErrorCase(sample(fill(3), axis=1), AttrError, "axis=1 is out of range")
    yield ErrorCase(sample(np.array([True])), DTypeError, "x has dtype bool; want a float or an integer")


def _workloads() -> Iterator[Workload]:
    yield Workload("1024x1024", ((1024, 1024),))


for _target, _ulp in ((cumsum, 16), (cumprod, 32)):
    samples(_target)(_samples)
    errors(_target)(_errors)
    workloads(_target)(_workloads)
    tolerance(_target, ulp=_ulp)
    dtypes(_target, *FLOATING, "int32")

# A sum is a difference of its terms.
cumsum.rules["scale"] = lambda x, *, axis, exclusive, reverse: np.cumsum(np.abs(np.asarray(x)), axis=axis).max(
    axis=axis, keepdims=True, initial=0
)
