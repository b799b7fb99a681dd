"""Dilation and erosion of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
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
def dilate(image: Array, *, kernel: int | Sizes = 3, out: Array | None = None) -> Array:
    """Gives each pixel of (H, W) or (H, W, 3) the largest of a ``kernel`` of pixels (kh, kw): the same shape and type.

    Pixels are uint8, uint16 or float32; a NaN in a window is its result. The window of an even size reaches one further
    up and left. Outside the picture there are no pixels. The bits are those of ``cv2.dilate`` 5.0 with a kernel of
    ones.
    """
    ...


@op
def erode(image: Array, *, kernel: int | Sizes = 3, out: Array | None = None) -> Array:
    """Gives each pixel of (H, W) or (H, W, 3) the smallest of a ``kernel`` of pixels (kh, kw): the same shape and type.

    As dilate, with the smallest.
    """
    ...


def _extreme(image: Any, kernel: Sizes, pick: Any, none: float) -> Any:
    x = image.astype(np.float64)
    for axis, k in enumerate(kernel):
        k = min(k, 2 * image.shape[axis] + 1)
        pads = [(0, 0)] * x.ndim
        pads[axis] = (k // 2, k - 1 - k // 2)
        padded = np.pad(x, pads, constant_values=none)
        shifts = [padded.take(range(i, i + x.shape[axis]), axis) for i in range(k)]
        x = pick.reduce(shifts)
    return x


@reference(dilate)
def _(image: Any, *, kernel: Sizes) -> Any:
    return _extreme(image, kernel, np.maximum, -np.inf)


@reference(erode)
def _(image: Any, *, kernel: Sizes) -> Any:
    return _extreme(image, kernel, np.minimum, np.inf)


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 37))
    yield sample(fill(70, 3, 3), kernel=(5, 2))
    yield sample(fill(4, 19).T, kernel=(1, 9))
    yield sample(fill(3, 2, 3)[:, ::-1], kernel=(100000, 1 << 39))
    yield sample(fill(0, 4))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4).astype(bool)), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(fill(4)), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(fill(3, 4), kernel=0), AttrError, "kernel")
    yield ErrorCase(sample(fill(3, 4), kernel=(1, 2, 3)), AttrError, "kernel")


for _op in (dilate, erode):
    dtypes(_op, "uint8", "uint16", "float32")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)


@workloads(dilate)
def _() -> Iterator[Workload]:
    yield Workload("HD 3x3", ((1080, 1920),), {}, ("vision",))
    yield Workload("HD 15x15", ((1080, 1920),), {"kernel": 15}, ("vision",))


def _launch(queue: Queue, image: Any, y: Any, kernel: Sizes, **define: Any) -> None:
    step = image.shape[2] if image.ndim == 3 else 1
    (height, width), rows = image.shape[:2], queue.empty(image.shape, image.dtype)
    define["DTYPE"] = image.dtype
    sizes = (min(kernel[0], 2 * height + 1), min(kernel[1], 2 * width + 1))
    along, down = (y.size, width, step, sizes[1]), (y.size, height, width * step, sizes[0])
    queue.launch("morphology.cl", "extreme", y.size, GROUP_SIZE, (image, rows, *along), **define)
    queue.launch("morphology.cl", "extreme", y.size, GROUP_SIZE, (rows, y, *down), **define)


@opencl(dilate)
def _(queue: Queue, image: Any, y: Any, *, kernel: Sizes) -> None:
    _launch(queue, image, y, kernel, MAX=1)


@opencl(erode)
def _(queue: Queue, image: Any, y: Any, *, kernel: Sizes) -> None:
    _launch(queue, image, y, kernel)
