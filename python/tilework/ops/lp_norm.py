"""Division by a p-norm along axes, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Ints, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
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
    from tilework.testing import Fill


@op
def lp_norm(x: Array, *, p: float = 2.0, axes: Ints = -1, eps: float = 1e-12, out: Array | None = None) -> Array:
    """Divides x, of any shape, by max(||x||_p, eps) along axes, where ||x||_p = sum(|x|^p)^(1/p), 0 < p <= 16.

    The sum is taken as it stands: a float32 x beyond 1e19 has no finite sum of squares.
    """
    ...


@op
def lp_norm_dx(
    dy: Array, x: Array, *, p: float = 2.0, axes: Ints = -1, eps: float = 1e-12, out: Array | None = None
) -> Array:
    """Computes the gradient of lp_norm in x from dy and x, of one shape; at 0 the slope of |x| is taken as 0."""
    ...


def _size(x: Any, p: float, axes: Sizes) -> Any:
    return (np.abs(x) ** p).sum(axis=axes, keepdims=True) ** (1 / p)


def _slope(u: Any, p: float) -> Any:
    return np.where(u == 0, 0.0, np.sign(u) * np.abs(u) ** (p - 1))


@reference(lp_norm)
def _(x: Any, *, p: float, axes: Sizes, eps: float) -> Any:
    return x / np.maximum(_size(x, p, axes), eps)


@reference(lp_norm_dx)
def _(dy: Any, x: Any, *, p: float, axes: Sizes, eps: float) -> Any:
    size = _size(x, p, axes)
    by = np.maximum(size, eps)
    along = np.where(size < eps, 0.0, (dy * x).sum(axis=axes, keepdims=True) / by)
    return (dy - _slope(x / by, p) * along) / by


def _amplified(size: Any, p: float) -> Any:
    """How much of a power's rounding its logarithm brings."""
    return 1.0 if p in (1, 2) else 1 + p * np.abs(np.log(size))


def _terms(dy: Any, x: Any, *, p: float, axes: Sizes, eps: float) -> Any:
    """The largest terms of the gradient, where it may be smaller by cancellation."""
    by = np.maximum(_size(x, p, axes), eps)
    along = np.abs(_slope(x / by, p)) * np.abs(dy * x).sum(axis=axes, keepdims=True) / by
    return (np.abs(dy) + along) / by * np.maximum(_amplified(by, p), _amplified(np.abs(x) + (x == 0), p))


def _scale(x: Any, *, p: float, axes: Sizes, eps: float) -> Any:
    by = np.maximum(_size(x, p, axes), eps)
    return np.abs(x) / by * _amplified(by, p)


lp_norm.rules["scale"] = _scale
lp_norm_dx.rules["scale"] = _terms
tolerance(lp_norm, ulp=8)
tolerance(lp_norm_dx, ulp=16)


@backward(lp_norm, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Array:
    return lp_norm_dx(dy, x, **attrs)


_PROBLEMS: tuple[tuple[Sizes, dict[str, Any]], ...] = (
    ((1,), {}),
    ((17,), {"p": 1.0}),
    ((3, 33), {}),
    ((5, 3, 9), {"axes": 1, "p": 3.0}),
    ((5, 3, 9), {"axes": (0, 2), "p": 1.0}),
    ((2, 3, 17), {"axes": (0, 1), "eps": 2.0}),
    ((3, 0), {}),
)


@samples(lp_norm)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape),), attrs)
    yield sample(fill(9, 4, 3).T, axes=1, p=2.5)


@samples(lp_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape), fill(*shape)), attrs)


@errors(lp_norm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    for p in (0.0, -1.0, 17.0, math.nan):
        yield ErrorCase(sample(fill(3), p=p), AttrError, f"p={p:g}; want a number above 0, at most 16")
    yield ErrorCase(sample(fill(3), eps=-1.0), AttrError, "eps=-1; want a finite number, 0 or more")
    yield ErrorCase(sample(fill(3), axes=1), AttrError, "axes=1")
    yield ErrorCase(sample(fill(3), axes=None), AttrTypeError, "axes=None")
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64")


@errors(lp_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(3)), ShapeError, "x has shape (3,)")


@workloads(lp_norm)
def _() -> Iterator[Workload]:
    yield Workload("4096x1024", ((4096, 1024),))
    yield Workload("channels 8x256x56x56", ((8, 256, 56, 56),), {"axes": 1})


@workloads(lp_norm_dx)
def _() -> Iterator[Workload]:
    yield Workload("4096x1024", ((4096, 1024), (4096, 1024)))


for _target in (lp_norm, lp_norm_dx):
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- OpenCL


def _problem(x: Any, axes: Sizes) -> tuple[Any, int]:
    """lp_norm.cl's struct Lines, every member filled up to eight axes, and the number of lines."""
    kept = [a for a in range(x.ndim) if a not in axes]
    steps = [math.prod(x.shape[a + 1 :]) for a in range(x.ndim)]
    lines, n = math.prod(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axes)
    members = [lines, n]
    for group in (kept, axes):
        fill = 8 - len(group)
        members += [1] * fill + [x.shape[a] for a in group] + [0] * fill + [steps[a] for a in group]
    return np.array(members, np.int64), lines


@opencl(lp_norm)
def _(queue: Queue, x: Any, y: Any, *, p: float, axes: Sizes, eps: float) -> None:
    problem, lines = _problem(x, axes)
    queue.launch("lp_norm.cl", "lp_norm", lines, GROUP_SIZE, (x, y, problem, p, eps), DTYPE=x.dtype)


@opencl(lp_norm_dx)
def _(queue: Queue, dy: Any, x: Any, dx: Any, *, p: float, axes: Sizes, eps: float) -> None:
    problem, lines = _problem(x, axes)
    queue.launch("lp_norm.cl", "lp_norm_dx", lines, GROUP_SIZE, (dy, x, dx, problem, p, eps), DTYPE=x.dtype)
