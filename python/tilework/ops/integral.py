"""Sums over all pixels above and left of a place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import Queue
from tilework.errors import DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
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
def integral(image: Array, *, out: Array | None = None) -> Array:
    """Sums the pixels above and left of each corner of image (H, W), uint8: int32 (H + 1, W + 1).

    Sums wrap around, so that the difference of four corners is right wherever the sum of that window is below 2^31. The
    bits are those of ``cv2.integral`` 5.0.
    """
    ...


@op
def integral_squares(image: Array, *, out: Array | None = None) -> Array:
    """Sums the squares of the pixels above and left of each corner of image (H, W), uint8: float64 (H + 1, W + 1).

    The second result of ``cv2.integral2``; exact.
    """
    ...


def _summed(x: Any) -> Any:
    return np.pad(x, ((1, 0), (1, 0))).cumsum(0).cumsum(1)


@reference(integral)
def _(image: Any) -> Any:
    return _summed(image.astype(np.int64)).astype(np.int32)


@reference(integral_squares)
def _(image: Any) -> Any:
    return _summed(image.astype(np.int64) ** 2).astype(np.float64)


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 67))
    yield sample(fill(130, 3))
    yield sample(fill(4, 69).T)
    yield sample(fill(7, 40)[::-1, ::-2])
    yield sample(fill(0, 4))
    yield sample(fill(3, 0))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float32)), DTypeError, "image has dtype float32; want uint8")
    yield ErrorCase(sample(fill(3, 4, 3)), ShapeError, "image has shape (3, 4, 3); want (H, W)")


def _hd() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


for _op in (integral, integral_squares):
    dtypes(_op, "uint8")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)
    workloads(_op)(_hd)


def _launch(queue: Queue, image: Any, y: Any, **define: Any) -> None:
    queue.fill(y, 0)
    queue.launch("integral.cl", "rows", image.shape[0], 64, (image, y, *image.shape), **define)
    queue.launch("integral.cl", "columns", image.shape[1], 64, (y, *image.shape), **define)


@opencl(integral)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, SUM="uint")


@opencl(integral_squares)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, SUM="double", SQUARES=1)
