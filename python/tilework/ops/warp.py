"""Pictures seen through an affine or a projective map of the plane."""

from __future__ import annotations

import math
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
    fills,
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


Interpolation = Literal["linear", "nearest"]


@op
def warp_affine(
    image: Array,
    matrix: Array,
    *,
    size: int | Sizes | None = None,
    interpolation: Interpolation = "linear",
    border: float = 0.0,
    out: Array | None = None,
) -> Array:
    """Takes each pixel (x, y) of the result from matrix (2, 3) (x, y, 1) in a picture (H, W) or (H, W, 3), of its type.

    ``matrix``, float64, maps places of the result to places of the picture, as ``cv2.warpAffine`` has it with
    ``WARP_INVERSE_MAP``. ``size`` is (height, width) of the result, that of the picture by default. Places are rounded
    to 1/128 pixel (OpenCV: 1/32), mixtures of uint8 and uint16 half up, and those of float32, along and then down in
    float64, each to float32. Outside the picture all pixels are ``border``, and so is all of the result where the
    matrix is not finite. The same bits on every tier and device; a device call waits for the matrix.
    """
    ...


@op
def warp_perspective(
    image: Array,
    matrix: Array,
    *,
    size: int | Sizes | None = None,
    interpolation: Interpolation = "linear",
    border: float = 0.0,
    out: Array | None = None,
) -> Array:
    """Takes each pixel (x, y) of the result from (u / w, v / w), (u, v, w) = matrix (3, 3) (x, y, 1), in a picture.

    As warp_affine, with a homography; where w is 0 the result is ``border``.
    """
    ...


_BITS = 51


def whole_map(matrix: Any, height: int, width: int) -> tuple[Any, float, bool]:
    """The matrix (3, 3) in whole numbers of at most 51 bits, what makes them 1/128 pixel, and whether w counts."""
    m = np.concatenate([matrix, [[0.0, 0.0, 1.0]]])[:3]
    with np.errstate(all="ignore"):
        largest = np.max(np.abs(matrix) * (width, height, 1))
    if not np.isfinite(largest):
        return np.zeros((3, 3)), 128.0, True
    exponent = int(np.frexp(largest)[1]) if largest else 0
    scale = 128.0 if len(matrix) == 3 else math.ldexp(1, exponent - _BITS + 7)
    return np.rint(np.ldexp(m, _BITS - exponent)), scale, len(matrix) == 3


def _warped(image: Any, matrix: Any, size: Sizes, interpolation: Interpolation, border: float) -> Any:
    m, scale, projective = whole_map(matrix, *size)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in m)
    far = float(1 << 28)
    if projective:
        with np.errstate(all="ignore"):
            u, v = (np.where(w == 0, far, p / w) for p in (u, v))
    px, py = (np.clip(np.floor(p * scale + 0.5), -far, far).astype(np.int64) for p in (u, v))

    wide = np.float64 if image.dtype == np.float64 else np.int64

    def pixel(py: Any, px: Any) -> Any:
        height, width = image.shape[:2]
        inside = (py >= 0) & (py < height) & (px >= 0) & (px < width)
        if not image.size:
            return np.full((*px.shape, *image.shape[2:]), border, wide)
        found = image[np.clip(py, 0, height - 1), np.clip(px, 0, width - 1)].astype(wide)
        return np.where(inside.reshape(*inside.shape, *(1,) * (image.ndim - 2)), found, wide(np.float32(border)))

    if interpolation == "nearest":
        return pixel((py + 64) >> 7, (px + 64) >> 7)
    fx, fy = ((p & 127).reshape(*p.shape, *(1,) * (image.ndim - 2)) for p in (px, py))
    at, left = py >> 7, px >> 7
    upper, lower = (pixel(at + d, left) * (128 - fx) + pixel(at + d, left + 1) * fx for d in (0, 1))
    if wide is np.float64:
        upper, lower = (part.astype(np.float32).astype(np.float64) for part in (upper, lower))
        return (upper * (128 - fy) + lower * fy) / (1 << 14)
    return (upper * (128 - fy) + lower * fy + (1 << 13)) >> 14


_NEAR_ONE = np.array([[0.9, 0.2, -3.3], [-0.15, 1.1, 2.7], [1e-3, -2e-3, 1.0]])
_STRETCH = np.array([[0.21, 0.0, 0.5], [0.0, 0.37, 0.25], [0.0, 0.0, 3.0]])
_HORIZON = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.25, 0.0, -1.0]])


def _declare(target: Any, rows: int) -> None:
    @reference(target)
    def _(image: Any, matrix: Any, *, size: Sizes, interpolation: Interpolation, border: float) -> Any:
        return _warped(image, matrix, size, interpolation, border)

    dtypes(target, "uint8", "uint16", "float32")
    tolerance(target, ulp=0.5)

    @samples(target)
    def _(fill: Fill) -> Iterator[Sample]:
        yield sample(fill(37, 70), _NEAR_ONE[:rows])
        yield sample(fill(9, 12, 3), _STRETCH[:rows], size=(20, 45), border=77)
        yield sample(fill(9, 12).T, _HORIZON[:rows].T[:rows] if rows == 3 else _HORIZON[:rows])
        yield sample(fill(5, 300), _HORIZON[:rows], size=(3, 260), interpolation="nearest", border=9)
        yield sample(fill(5, 6, 3)[:, ::-1], 1e9 * _NEAR_ONE[:rows], border=255)
        yield sample(fill(4, 4), 0 * _NEAR_ONE[:rows])
        yield sample(fill(4, 4), np.nan * _NEAR_ONE[:rows], border=5)
        yield sample(fill(0, 4), _NEAR_ONE[:rows], size=(2, 3), border=3)
        yield sample(fill(4, 4), _NEAR_ONE[:rows], size=(0, 3))

    @errors(target)
    def _(fill: Fill) -> Iterator[ErrorCase]:
        x, m = fill(3, 4), _NEAR_ONE[:rows]
        yield ErrorCase(sample(x.astype(np.int16), m), DTypeError, "want uint8, uint16 or float32")
        yield ErrorCase(sample(x, m.astype(np.float32)), DTypeError, "matrix has dtype float32; want float64")
        yield ErrorCase(sample(x, m[:, :2]), ShapeError, "matrix has shape")
        yield ErrorCase(sample(x.astype(np.uint8), m, border=256), AttrError, "border=256; want 0 to 255, whole")
        yield ErrorCase(sample(x, m, size=40000), AttrError, "want at most 32767 rows and columns")

    @workloads(target)
    def _() -> Iterator[Workload]:
        yield Workload("HD", ((1080, 1920), (rows, 3)), {}, ("vision",))

    @fills(target)
    def _(fill: Fill, image: Any, matrix: Any, **attrs: Any) -> tuple[Any, Any]:
        turn = np.array([[0.98, 0.17, -90.0], [-0.17, 0.98, 160.0], [1e-5, -2e-5, 1.0]])
        return fill(*image), turn[:rows]

    @opencl(target)
    def _(
        queue: Queue, image: Any, matrix: Any, y: Any, *, size: Sizes, interpolation: Interpolation, border: float
    ) -> None:
        m, scale, projective = whole_map(queue.read(queue.contiguous(matrix)), *size)
        numbers = queue.empty((10,), np.float64)
        queue.write(np.append(m.ravel(), scale), numbers)
        define = (
            {"DTYPE": image.dtype}
            | ({"PROJECTIVE": 1} if projective else {})
            | ({"NEAREST": 1} if interpolation == "nearest" else {})
        )
        sizes = (*image.shape[:2], *size, image.shape[2] if image.ndim == 3 else 1, float(border))
        queue.launch("warp.cl", "warp", y.size, GROUP_SIZE, (image, numbers, y, *sizes), **define)


_declare(warp_affine, 2)
_declare(warp_perspective, 3)
