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
    depth,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def integral(image: Array, *, out: Array | None = None) -> Array:
    """Sums the pixels above and left of each corner of image (H, W): (H + 1, W + 1), int32 of uint8, else float64.

    int32 sums wrap around, so that the difference of four corners is right wherever the sum of that window is below
    2^31; of uint16 they are exact, of float32 rounded in float64. The bits are those of ``cv2.integral`` 5.0 of uint8.
    """
    ...


@op
def integral_squares(image: Array, *, out: Array | None = None) -> Array:
    """Sums the squares of the pixels above and left of each corner of image (H, W): float64 (H + 1, W + 1).

    The second result of ``cv2.integral2``; exact of uint8 and uint16 (below 2^53), of float32 rounded in float64.
    """
    ...


def _summed(x: Any) -> Any:
    return np.pad(x, ((1, 0), (1, 0))).cumsum(0).cumsum(1)


@reference(integral)
def _(image: Any) -> Any:
    if image.dtype == np.uint8:
        return _summed(image.astype(np.int64)).astype(np.int32)
    return _summed(image.astype(np.float64))


@reference(integral_squares)
def _(image: Any) -> Any:
    return _summed(image.astype(np.float64) ** 2)


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 67))
    yield sample(fill(130, 3))
    yield sample(fill(4, 69).T)
    yield sample(fill(7, 40)[::-1, ::-2])
    yield sample(fill(0, 4))
    yield sample(fill(3, 0))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.int32)), DTypeError, "image has dtype int32; want uint8, uint16 or float32")
    yield ErrorCase(sample(fill(3, 4, 3)), ShapeError, "image has shape (3, 4, 3); want (H, W)")


def _hd() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


for _op in (integral, integral_squares):
    dtypes(_op, "uint8", "uint16", "float32")
    depth(_op)(lambda image: float(image.size))
    samples(_op)(_samples)
    errors(_op)(_refused)
    workloads(_op)(_hd)


def _launch(queue: Queue, image: Any, y: Any, **define: Any) -> None:
    queue.fill(y, 0)
    define["DTYPE"] = image.dtype
    queue.launch("integral.cl", "rows", image.shape[0], 64, (image, y, *image.shape), **define)
    queue.launch("integral.cl", "columns", image.shape[1], 64, (y, *image.shape), **define)


@opencl(integral)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, SUM="uint" if image.dtype == np.uint8 else "double")


@opencl(integral_squares)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, SUM="double", SQUARES=1)
