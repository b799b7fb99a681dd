"""Correlation of a picture with any small kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import DTypeError, ShapeError
from tilework.ops.blur import mirrored
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    depth,
    dtypes,
    errors,
    fills,
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
def filter2d(image: Array, kernel: Array, *, out: Array | None = None) -> Array:
    """Sums the pixels around each of (H, W) or (H, W, 3), weighted by kernel (kh, kw): float32, the same shape.

    ``image`` is uint8, uint16 or float32, the kernel float32 and not flipped; a window of an even size reaches one
    further up and left. Outside, pixels mirror at the edge without repeating it. As ``cv2.filter2D`` with ``CV_32F``,
    but for its rounding.
    """
    ...


@reference(filter2d)
def _(image: Any, kernel: Any) -> Any:
    if image.size == 0:
        return image.astype(np.float64)
    kh, kw = kernel.shape
    wide = mirrored(mirrored(image.astype(np.float64), kh // 2, 0), kw // 2, 1)
    height, width = image.shape[:2]
    parts = (kernel[u, v] * wide[u : u + height, v : v + width] for u in range(kh) for v in range(kw))
    return sum(parts)


dtypes(filter2d, "float32", "uint8", "uint16")


@depth(filter2d)
def _(image: Any, kernel: Any) -> float:
    return float(kernel.size)


def _kernel(*shape: int) -> Any:
    """Small whole numbers of both signs."""
    return (np.arange(np.prod(shape)).reshape(shape) % 7 - 3).astype(np.float32)


@samples(filter2d)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5, 67), _kernel(3, 3))
    yield sample(fill(66, 3, 3), _kernel(2, 5))
    yield sample(fill(4, 19).T, _kernel(1, 4))
    yield sample(fill(7, 12, 3)[:, ::-1], _kernel(3, 6).T)
    yield sample(fill(1, 1), _kernel(5, 9))
    yield sample(fill(0, 4), _kernel(1, 1))


@errors(filter2d)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, kernel = fill(3, 4), _kernel(3, 3)
    yield ErrorCase(
        sample(x.astype(np.int64), kernel), DTypeError, "image has dtype int64; want uint8, uint16 or float32"
    )
    yield ErrorCase(sample(x[0], kernel), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, kernel.astype(np.float64)), DTypeError, "kernel has dtype float64; want float32")
    yield ErrorCase(sample(x, kernel[0]), ShapeError, "kernel has shape (3,); want (kh, kw) of 1 to 255 each")
    yield ErrorCase(sample(x, kernel[:0]), ShapeError, "kernel has shape (0, 3)")


@workloads(filter2d)
def _() -> Iterator[Workload]:
    yield Workload("HD 5x5", ((1080, 1920), (5, 5)), {}, ("vision",))


@fills(filter2d)
def _(fill: Fill, image: Any, kernel: Any) -> tuple[Any, Any]:
    return fill(*image), _kernel(*kernel)


@opencl(filter2d)
def _(queue: Queue, image: Any, kernel: Any, y: Any) -> None:
    sizes = (*kernel.shape, *image.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("filter.cl", "filtered", y.size, GROUP_SIZE, (image, kernel, y, *sizes), DTYPE=image.dtype)
