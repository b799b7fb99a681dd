"""The median of a window of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
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
def median_blur(image: Array, *, ksize: int = 3, out: Array | None = None) -> Array:
    """Gives each pixel of (H, W) or (H, W, 3) the median of ``ksize`` by ``ksize`` around it: the same shape and type.

    Of uint8, uint16 and float32, where a NaN in a window is its median; ``ksize`` is odd, 3 to 181. Outside the picture
    the edge pixels repeat; the bits are those of ``cv2.medianBlur`` 5.0 where it has the type and size.
    """
    ...


@reference(median_blur)
def _(image: Any, *, ksize: int) -> Any:
    if image.size == 0:
        return image
    half = ksize // 2
    padded = np.pad(image, [(half, half)] * 2 + [(0, 0)] * (image.ndim - 2), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (ksize, ksize), (0, 1))
    return np.median(windows, (-2, -1))


dtypes(median_blur, "uint8", "uint16", "float32")
tolerance(median_blur, ulp=0.5)


@samples(median_blur)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 67))
    yield sample(fill(66, 3, 3))
    yield sample(fill(4, 19).T, ksize=5)
    yield sample(fill(7, 12, 3)[:, ::-1], ksize=5)
    yield sample(fill(0, 4))
    yield sample(fill(20, 133), ksize=7)
    yield sample(fill(9, 45, 3), ksize=15)
    yield sample(fill(6, 21).T, ksize=17)
    yield sample((fill(70, 3) / 64).astype(fill.dtype), ksize=9)
    yield sample(fill(1, 1), ksize=181)


@errors(median_blur)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float64)), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x[0]), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    for size in (1, 4, -3, 183):
        yield ErrorCase(sample(x, ksize=size), AttrError, f"ksize={size}; want an odd number of 3 to 181")


@workloads(median_blur)
def _() -> Iterator[Workload]:
    for size in (3, 5, 15):
        yield Workload(f"HD {size}", ((1080, 1920),), {"ksize": size}, ("vision",))


@opencl(median_blur)
def _(queue: Queue, image: Any, y: Any, *, ksize: int) -> None:
    sizes = (ksize, *image.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("median.cl", "median", y.size, GROUP_SIZE, (image, y, *sizes), DTYPE=image.dtype)
