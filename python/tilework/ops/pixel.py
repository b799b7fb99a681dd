"""One result per pixel: colours to grey, and how far two pictures are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
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
def rgb_to_gray(image: Array, *, out: Array | None = None) -> Array:
    """Joins the colours of image (H, W, 3), red first, to grey (H, W) of its type: 0.299 red, 0.587 green, 0.114 blue.

    Weights are in 1/2^15. uint8, with the bits of ``cv2.cvtColor`` 5.0 with ``COLOR_RGB2GRAY``, and uint16 are rounded
    half up; float32 is summed in float64.
    """
    ...


@op
def absdiff(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Computes |a - b| for the elements of two arrays of one shape and type: uint8, uint16 or float32."""
    ...


@reference(rgb_to_gray)
def _(image: Any) -> Any:
    if image.dtype == np.float64:
        r, g, b = (image[..., c] for c in range(3))
        return (9798 * r + 19235 * g + 3735 * b) / (1 << 15)
    return (image.astype(np.int64) @ np.array((9798, 19235, 3735)) + (1 << 14)) >> 15


@reference(absdiff)
def _(a: Any, b: Any) -> Any:
    return np.abs(a.astype(np.float64) - b.astype(np.float64))


for _op in (rgb_to_gray, absdiff):
    dtypes(_op, "uint8", "uint16", "float32")
    tolerance(_op, ulp=0.5)


@samples(rgb_to_gray)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 37, 3))
    yield sample(fill(3, 4, 9).transpose(1, 2, 0))
    yield sample(fill(2, 7, 3)[::-1, ::2])
    yield sample(fill(0, 4, 3))


@samples(absdiff)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(3, 67), fill(3, 67))
    yield sample(fill(5, 4, 3), fill(3, 4, 5).T)
    yield sample(fill(), fill())
    yield sample(fill(0, 3), fill(0, 3))


@errors(rgb_to_gray)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4, 3).astype(np.int32)), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(fill(3, 4)), ShapeError, "image has shape (3, 4); want (H, W, 3)")


@errors(absdiff)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.int8), x), DTypeError, "a has dtype int8; want uint8, uint16 or float32")
    yield ErrorCase(sample(x, x.astype(np.int8)), DTypeError, "b has dtype int8 but a has")
    yield ErrorCase(sample(x, fill(4)), ShapeError, "b has shape (4,)")


@workloads(rgb_to_gray)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920, 3),), {}, ("vision",))


@opencl(rgb_to_gray)
def _(queue: Queue, image: Any, y: Any) -> None:
    queue.launch("pixel.cl", "grey", y.size, GROUP_SIZE, (image, y, y.size), DTYPE=image.dtype)


@opencl(absdiff)
def _(queue: Queue, a: Any, b: Any, y: Any) -> None:
    queue.each("pixel.cl", "apart", (a, b, y), DTYPE=a.dtype)
