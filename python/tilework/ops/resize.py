"""A picture of another size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

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


Interpolation = Literal["linear", "nearest", "area", "cubic", "lanczos"]


@op
def resize(
    image: Array, *, size: int | Sizes, interpolation: Interpolation = "linear", out: Array | None = None
) -> Array:
    """Resizes a picture (H, W) or (H, W, 3) to ``size`` (height, width): the same type.

    Pixel centres are at halves, as in ``cv2.resize``. "area" weighs each pixel by how much of it the result covers,
    "cubic" is Keys' with a = -3/4, "lanczos" takes 8 by 8. Weights of uint8 are in 1/2^14, sums exact, rounded half up;
    "nearest", and half the size by "linear" or "area", have the bits of OpenCV 5. Weights of uint16 and float32 are
    float32: sums down and then along in float64, in order, each rounded to float32, uint16 at last half up.
    """
    ...


def resample_weights(kind: Interpolation, source: int, size: int, deep: bool = False) -> tuple[Any, Any]:
    """The first pixel of each result, and weights (size, taps) in 1/2^14, or as float32 numbers of sum 1."""
    taps = {"nearest": 1, "linear": 2, "cubic": 4, "lanczos": 8}.get(
        kind, source // size if source % size == 0 else source // size + 2
    )
    scale, i = 1 / (size / source), np.arange(size)
    start, stop, middle = i * scale, (i + 1) * scale, (i + 0.5) * scale - 0.5
    whole = kind in ("nearest", "area")
    first = np.floor(start if whole else middle).astype(np.int64) - (0 if whole else taps // 2 - 1)
    place = first[:, None] + np.arange(taps)
    far = np.abs(place - middle[:, None])
    if kind == "area":
        exact = np.maximum(0, np.minimum(place + 1, stop[:, None]) - np.maximum(place, start[:, None]))
    elif kind == "nearest":
        exact = np.ones(place.shape)
    elif kind == "linear":
        exact = np.maximum(0, 1 - far)
    elif kind == "cubic":
        near, outer = (1.25 * far - 2.25) * far * far + 1, ((-0.75 * far + 3.75) * far - 6) * far + 3
        exact = np.where(far <= 1, near, np.where(far < 2, outer, 0))
    else:
        x = np.where(far == 0, 1, far)
        exact = 4 * np.sin(np.pi * x) * np.sin(np.pi * x / 4) / (np.pi * np.pi * x * x)
        exact = np.where(far == 0, 1, np.where(far < 4, exact, 0))
    sums = np.cumsum(exact, 1)
    if deep:
        return np.minimum(first, source - 1), (exact / sums[:, -1:]).astype(np.float32)
    weights = np.diff(np.rint(sums / sums[:, -1:] * (1 << 14)), axis=1, prepend=0).astype(np.int64)
    return np.minimum(first, source - 1), weights


def _resampled(x: Any, kind: Interpolation, size: int) -> Any:
    """Weighted sums along the first axis, of integers or floats."""
    first, weights = resample_weights(kind, x.shape[0], size, x.dtype == np.float64)
    weights = weights.astype(x.dtype)
    total = np.zeros((size, *x.shape[1:]), x.dtype)
    for k in range(weights.shape[1]):
        pixels = x[np.clip(first + k, 0, x.shape[0] - 1)]
        total += weights[:, k].reshape(-1, *(1,) * (x.ndim - 1)) * pixels
    return total


@reference(resize)
def _(image: Any, *, size: Sizes, interpolation: Interpolation) -> Any:
    if 0 in size:
        return np.zeros((*size, *image.shape[2:]))
    if image.dtype != np.uint8:
        sums = _resampled(image.astype(np.float64), interpolation, size[0]).astype(np.float32).astype(np.float64)
        total = _resampled(sums.swapaxes(0, 1), interpolation, size[1]).swapaxes(0, 1)
        return np.clip(np.floor(total + 0.5), 0, 65535) if image.dtype == np.uint16 else total
    down = (_resampled(image.astype(np.int64), interpolation, size[0]) + (1 << 7)) >> 8
    along = _resampled(down.swapaxes(0, 1), interpolation, size[1]).swapaxes(0, 1)
    return np.clip((along + (1 << 19)) >> 20, 0, 255)


dtypes(resize, "uint8", "uint16", "float32")
tolerance(resize, ulp=0.5)


@samples(resize)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(9, 37), size=(7, 50))
    yield sample(fill(8, 74), size=(4, 37))
    yield sample(fill(40, 6, 3), size=(33, 4), interpolation="cubic")
    yield sample(fill(6, 23).T, size=(11, 13), interpolation="lanczos")
    yield sample(fill(7, 12, 3)[:, ::-1], size=(3, 5), interpolation="area")
    yield sample(fill(30, 40), size=(5, 8), interpolation="area")
    yield sample(fill(5, 9), size=12, interpolation="nearest")
    yield sample(fill(1, 1), size=(2, 3), interpolation="lanczos")
    yield sample(fill(0, 4), size=(0, 3))
    yield sample(fill(3, 4), size=(5, 0))


@errors(resize)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float64), size=2), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x[0], size=2), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x[:0], size=2), ShapeError, "image has shape (0, 4); want 1 to 2^30 rows and columns")
    yield ErrorCase(sample(x, size=(2, -1)), AttrError, "size=(2, -1); want 0 or more")
    yield ErrorCase(sample(x, size=1 << 31), AttrError, "want at most 2^30 rows and columns")


@workloads(resize)
def _() -> Iterator[Workload]:
    yield Workload("HD half", ((1080, 1920),), {"size": (540, 960)}, ("vision",))
    yield Workload("HD 0.73", ((1080, 1920),), {"size": (788, 1402)}, ("vision",))
    yield Workload("HD 0.73 cubic", ((1080, 1920),), {"size": (788, 1402), "interpolation": "cubic"}, ("vision",))


@opencl(resize)
def _(queue: Queue, image: Any, y: Any, *, size: Sizes, interpolation: Interpolation) -> None:
    if y.size == 0:
        return
    tables = []
    for axis in (0, 1):
        deep = image.dtype != np.uint8
        for host in resample_weights(interpolation, image.shape[axis], size[axis], deep):
            host = np.ascontiguousarray(host, np.int32 if host.dtype == np.int64 else np.float32)
            tables.append(queue.empty(host.shape, host.dtype))
            queue.write(host, tables[-1])
    taps = (tables[1].shape[1], tables[3].shape[1])
    sizes = (*taps, *image.shape[:2], *size, image.shape[2] if image.ndim == 3 else 1)
    queue.launch("resize.cl", "resample", y.size, GROUP_SIZE, (image, *tables, y, *sizes), DTYPE=image.dtype)
