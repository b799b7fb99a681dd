"""The parts of a matrix below and above a diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, bits_of
from tilework.errors import AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
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
def tril(x: Array, *, diagonal: int = 0, out: Array | None = None) -> Array:
    """Keeps x[..., i, j] where j - i <= diagonal, and is 0 elsewhere: the lower triangles of x (..., M, N)."""
    ...


@op
def triu(x: Array, *, diagonal: int = 0, out: Array | None = None) -> Array:
    """Keeps x[..., i, j] where j - i >= diagonal, and is 0 elsewhere: the upper triangles of x (..., M, N)."""
    ...


def _mask(x: Any, diagonal: int, lower: bool) -> Any:
    distance = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
    return distance <= diagonal if lower else distance >= diagonal


reference(tril)(lambda x, *, diagonal: np.where(_mask(x, diagonal, True), x, 0))
reference(triu)(lambda x, *, diagonal: np.where(_mask(x, diagonal, False), x, 0))


@backward(tril, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, diagonal: int) -> Array:
    return tril(dy, diagonal=diagonal)


@backward(triu, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, diagonal: int) -> Array:
    return triu(dy, diagonal=diagonal)


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1))
    yield sample(fill(5, 5))
    yield sample(fill(3, 17), diagonal=2)
    yield sample(fill(17, 4), diagonal=-3)
    yield sample(fill(2, 3, 4, 5), diagonal=-1)
    yield sample(fill(5, 3).T, diagonal=1)
    yield sample(fill(3, 4), diagonal=-(1 << 62))
    yield sample(fill(3, 4), diagonal=1 << 62)
    yield sample(fill(2, 0, 3))
    yield sample(np.arange(12).reshape(3, 4))


def _errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3)), ShapeError, "x has 1 dimensions; want 2 to 8")
    yield ErrorCase(sample(fill(3, 3), diagonal=0.5), AttrTypeError, "diagonal=0.5 is a float")
    yield ErrorCase(sample([[1.0]]), DTypeError, "x is a list")


def _workloads() -> Iterator[Workload]:
    yield Workload("2048x2048", ((2048, 2048),))


for _op in (tril, triu):
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_errors)
    workloads(_op)(_workloads)


# ------------------------------------------------------------------------------------------------- OpenCL


def _launch(queue: Queue, x: Any, y: Any, diagonal: int, lower: int) -> None:
    m, n = x.shape[-2:]
    args = (x, y, y.size, m, n, max(-m - 1, min(n + 1, diagonal)))
    queue.launch("triangle.cl", "triangle", y.size, GROUP_SIZE, args, BITS=bits_of(x), LOWER=lower)


@opencl(tril)
def _(queue: Queue, x: Any, y: Any, *, diagonal: int) -> None:
    _launch(queue, x, y, diagonal, 1)


@opencl(triu)
def _(queue: Queue, x: Any, y: Any, *, diagonal: int) -> None:
    _launch(queue, x, y, diagonal, 0)
