"""Normalisation by neighbouring channels, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Wanted
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
def local_response_norm(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, out: Array | None = None
) -> Array:
    """Divides x (N, C, ...) by (k + alpha / size sum(x^2))^beta, the sum being over ``size`` channels around each.

    Those are c - size // 2 to c + (size - 1) // 2, as in PyTorch; ONNX's LRN is the same where size is odd.
    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012.
    """
    ...


@op
def local_response_norm_dx(
    dy: Array, x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, out: Array | None = None
) -> Array:
    """Computes the gradient of local_response_norm in x from dy and x, both (N, C, ...)."""
    ...


def _window_sums(v: Any, before: int, after: int) -> Any:
    sums = np.zeros(v.shape)
    for c in range(v.shape[1]):
        sums[:, c] = v[:, max(c - before, 0) : c + after + 1].sum(axis=1)
    return sums


def _base(x: Any, size: int, alpha: float, k: float) -> Any:
    return k + alpha / size * _window_sums(x * x, size // 2, (size - 1) // 2)


@reference(local_response_norm)
def _(x: Any, *, size: int, alpha: float, beta: float, k: float) -> Any:
    return x * _base(x, size, alpha, k) ** -beta


@reference(local_response_norm_dx)
def _(dy: Any, x: Any, *, size: int, alpha: float, beta: float, k: float) -> Any:
    b = _base(x, size, alpha, k)
    around = _window_sums(dy * x * b ** (-beta - 1), (size - 1) // 2, size // 2)
    return dy * b**-beta - 2 * beta * alpha / size * x * around


def _terms(dy: Any, x: Any, *, size: int, alpha: float, beta: float, k: float) -> Any:
    """The largest terms of the gradient, where it may be smaller by cancellation."""
    b = _base(x, size, alpha, k)
    size_of = np.abs(dy) * b**-beta * _amplified(b, beta)
    around = _window_sums(size_of * np.abs(x) / b, (size - 1) // 2, size // 2)
    return size_of + np.abs(2 * beta * alpha / size * x) * around


def _amplified(b: Any, beta: float) -> Any:
    """How much of a power's rounding its logarithm brings."""
    return 1 + beta * np.abs(np.log(b))


def _scale(x: Any, *, size: int, alpha: float, beta: float, k: float) -> Any:
    b = _base(x, size, alpha, k)
    return np.abs(x) * b**-beta * _amplified(b, beta)


local_response_norm.rules["scale"] = _scale
local_response_norm_dx.rules["scale"] = _terms


@backward(local_response_norm, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Array:
    return local_response_norm_dx(dy, x, **attrs)


def _problems(count: int, fill: Fill) -> Iterator[Sample]:
    for shape, attrs in (
        ((1, 1), {"size": 1}),
        ((2, 7, 5), {"size": 5, "alpha": 0.5}),
        ((2, 6, 3, 17), {"size": 4, "alpha": 1.0, "beta": 0.5}),
        ((1, 3, 2, 9), {"size": 9, "alpha": 2.0, "beta": 1.3, "k": 2.0}),
        ((0, 3, 4), {"size": 3}),
    ):
        yield Sample(tuple(fill(*shape) for _ in range(count)), attrs)


@samples(local_response_norm)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _problems(1, fill)
    yield sample(fill(5, 4, 3).T, size=3, alpha=1.0)


@samples(local_response_norm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _problems(2, fill)


@errors(local_response_norm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(2, 5, 3)
    for size in (0, -3):
        yield ErrorCase(sample(x, size=size), AttrError, f"size={size}; want 1 to 2^40 channels")
    yield ErrorCase(sample(x, size=3, beta=math.nan), AttrError, "beta=nan; want a number from 0 to 16")
    yield ErrorCase(sample(x), AttrTypeError, "size")
    yield ErrorCase(sample(fill(3), size=3), ShapeError, "x has shape (3,); want (N, C, ...)")
    yield ErrorCase(sample(np.ones((2, 3), np.int64), size=3), DTypeError, "x has dtype int64")


@errors(local_response_norm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(3, 2), size=1), ShapeError, "x has shape (3, 2)")


@workloads(local_response_norm)
def _() -> Iterator[Workload]:
    yield Workload("size 5 8x96x55x55", ((8, 96, 55, 55),), {"size": 5})


@workloads(local_response_norm_dx)
def _() -> Iterator[Workload]:
    yield Workload("size 5 8x96x55x55", ((8, 96, 55, 55), (8, 96, 55, 55)), {"size": 5})


for _target in (local_response_norm, local_response_norm_dx):
    tolerance(_target, ulp=8)
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- OpenCL


def _launch(queue: Queue, kernel: str, *arrays: Any, size: int, alpha: float, beta: float, k: float) -> None:
    x = arrays[-1]
    inner = math.prod(x.shape[2:])
    args = (*arrays, x.size, x.shape[1], inner, size // 2, (size - 1) // 2, alpha / size, beta, k)
    queue.launch("local_response_norm.cl", kernel, x.size, GROUP_SIZE, args, DTYPE=x.dtype)


@opencl(local_response_norm)
def _(queue: Queue, x: Any, y: Any, **attrs: Any) -> None:
    _launch(queue, "local_response_norm", x, y, **attrs)


@opencl(local_response_norm_dx)
def _(queue: Queue, dy: Any, x: Any, dx: Any, **attrs: Any) -> None:
    _launch(queue, "local_response_norm_dx", dy, x, dx, **attrs)
