"""The bilateral filter of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.blur import mirrored
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
def bilateral(image: Array, *, d: int, sigma_color: float, sigma_space: float, out: Array | None = None) -> Array:
    """Smooths a picture (H, W) or (H, W, 3) within its edges, means over discs of diameter ``d``: the same type.

    A pixel counts by how near it is in place (``sigma_space``) and in value (``sigma_color``), both Gaussian. Colours
    are as far apart as their channels added up, and their channels share a weight; ``d`` is odd and up to 17. Weights
    of uint8 are rounded to 1/255; those of uint16 are products of two, of place rounded to 1/255 and of value to
    1/(2^20 - 1). Means of both are exact and rounded half up. Of float32 nothing is rounded but float32 arithmetic.
    Outside, pixels mirror at the edge without repeating it. ``cv2.bilateralFilter``, whose weights are floats, is
    mostly the same and at most a few values away.
    """
    ...


def _channels(image: Any) -> int:
    return 3 if len(image.shape) == 3 else 1


def _weights(channels: int, d: int, sigma_color: float, sigma_space: float) -> Any:
    """Weights of uint8 by squared distance in place and by distance in value."""
    square, value = np.arange((d // 2) ** 2 + 1)[:, None], np.arange(255 * channels + 1)
    exponent = square * (-0.5 / (sigma_space * sigma_space)) + value * value * (-0.5 / (sigma_color * sigma_color))
    return np.rint(255 * np.exp(exponent)).astype(np.uint8)


def _factors(channels: int, d: int, sigma_color: float, sigma_space: float) -> tuple[Any, Any]:
    """Weights of uint16 by squared distance in place, and by distance in value."""
    square, value = np.arange((d // 2) ** 2 + 1), np.arange(65535 * channels + 1)
    place = np.rint(255 * np.exp(square * (-0.5 / (sigma_space * sigma_space))))
    near = np.rint(((1 << 20) - 1) * np.exp(value * value * (-0.5 / (sigma_color * sigma_color))))
    return place.astype(np.int32), near.astype(np.int32)


@reference(bilateral)
def _(image: Any, *, d: int, sigma_color: float, sigma_space: float) -> Any:
    if image.size == 0:
        return image
    half, whole, channels = d // 2, image.dtype.kind == "u", _channels(image)
    x = image.astype(np.int64 if whole else np.float64)
    if image.dtype == np.uint8:
        weights = _weights(channels, d, sigma_color, sigma_space).astype(np.int64)
    elif whole:
        place, near = _factors(channels, d, sigma_color, sigma_space)
    wide = mirrored(mirrored(x, half, 0), half, 1)
    total, sums = np.zeros_like(x[..., :1] if x.ndim == 3 else x), np.zeros_like(x)
    for u in range(-half, half + 1):
        for v in range(-half, half + 1):
            square = u * u + v * v
            if square > half * half:
                continue
            apart = wide[half + u : half + u + x.shape[0], half + v : half + v + x.shape[1]] - x
            distance = np.abs(apart).sum(2, keepdims=True) if x.ndim == 3 else np.abs(apart)
            if image.dtype == np.uint8:
                weight = weights[square, distance]
            elif whole:
                weight = place[square] * near[distance].astype(np.int64)
            else:
                weight = np.exp(-square / (2 * sigma_space**2) - distance**2 / (2 * sigma_color**2))
            sums += weight * apart
            total += weight
    return (2 * (sums + x * total) + total) // (2 * total) if whole else x + sums / total


def _largest(image: Any, *, d: int, sigma_color: float, sigma_space: float) -> Any:
    """The largest pixel of each window."""
    if image.size == 0:
        return image
    half = d // 2
    wide = np.lib.stride_tricks.sliding_window_view(mirrored(mirrored(np.abs(image), half, 0), half, 1), (d, d), (0, 1))
    return wide.max((-2, -1))


dtypes(bilateral, "uint8", "uint16", "float32")
tolerance(bilateral, ulp=16)
bilateral.rules["scale"] = _largest


@samples(bilateral)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(9, 70), d=5, sigma_color=25.0, sigma_space=3.0)
    yield sample((fill(40, 5) / 8).astype(fill.dtype), d=9, sigma_color=3.0, sigma_space=2.5)
    yield sample(fill(3, 39).T, d=17, sigma_color=1000.0, sigma_space=1e4)
    yield sample(fill(4, 40)[::-1, ::2], d=3, sigma_color=0.01, sigma_space=0.2)
    yield sample(fill(21, 45), d=7, sigma_color=9000.0, sigma_space=2.0)
    yield sample(fill(9, 70, 3), d=5, sigma_color=25.0, sigma_space=3.0)
    yield sample((fill(3, 5, 39) / 4).astype(fill.dtype).T, d=9, sigma_color=20.0, sigma_space=2.5)
    yield sample(fill(8, 6, 3)[::-1, ::2], d=3, sigma_color=150.0, sigma_space=5.0)
    yield sample(fill(5, 37, 3), d=7, sigma_color=30000.0, sigma_space=2.0)
    yield sample(fill(1, 1), d=1, sigma_color=1.0, sigma_space=1.0)
    yield sample(fill(0, 4), d=5, sigma_color=1.0, sigma_space=1.0)


@errors(bilateral)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, sigmas = fill(3, 4), {"sigma_color": 9.0, "sigma_space": 2.0}
    yield ErrorCase(sample(x.astype(np.float64), d=5, **sigmas), DTypeError, "want uint8, uint16 or float32")
    for shape in ((3, 4, 2), (12,), (1, 3, 4, 3)):
        text = f"image has shape {shape}; want (H, W) or (H, W, 3)"
        yield ErrorCase(sample(fill(*shape), d=5, **sigmas), ShapeError, text)
    for d in (-1, 4, 19):
        yield ErrorCase(sample(x, d=d, **sigmas), AttrError, f"d={d}; want an odd number of 1 to 17")
    yield ErrorCase(sample(x, d=3, sigma_color=0.0, sigma_space=1.0), AttrError, "sigma_color=0; want 0.001 to 1e6")
    yield ErrorCase(sample(x, d=3, sigma_color=1.0, sigma_space=np.nan), AttrError, "sigma_space=nan")


@workloads(bilateral)
def _() -> Iterator[Workload]:
    attrs = {"d": 5, "sigma_color": 25.0, "sigma_space": 5.0}
    yield Workload("HD d5", ((1080, 1920),), attrs, ("vision",))
    yield Workload("HD d5 in colour", ((1080, 1920, 3),), attrs, ("vision",))


@opencl(bilateral)
def _(queue: Queue, image: Any, y: Any, *, d: int, sigma_color: float, sigma_space: float) -> None:
    sizes, channels = (d // 2, *image.shape[:2]), _channels(image)
    pixels, values = y.size // channels, {"DTYPE": image.dtype, "CHANNELS": channels}
    if image.dtype == np.float32:
        factors = (-0.5 / (sigma_color * sigma_color), -0.5 / (sigma_space * sigma_space))
        queue.launch("bilateral.cl", "bilateral", pixels, GROUP_SIZE, (image, y, *sizes, *factors), **values)
        return
    host = (
        _weights(channels, d, sigma_color, sigma_space)
        if image.dtype == np.uint8
        else np.concatenate(_factors(channels, d, sigma_color, sigma_space))
    )
    weights = queue.empty(host.shape, host.dtype)
    queue.write(host, weights)
    queue.launch("bilateral.cl", "bilateral", pixels, GROUP_SIZE, (image, weights, y, *sizes), **values)
