"""Blurs of pictures: Gaussian and box."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_separable import launch_separable
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    flops,
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
def gaussian_blur(image: Array, *, sigma: float, out: Array | None = None) -> Array:
    """Blurs a picture (H, W) or (H, W, 3) by a Gaussian of ``sigma`` pixels: the same shape and type.

    The filter has round(6 sigma + 1) | 1 taps; outside, pixels mirror at the edge without repeating it. Of uint8 taps
    are in 1/256, and the bits are those of ``cv2.GaussianBlur`` 5.0 for that size and ``sigma``. Of uint16 and float32
    they are float32: sums down and then along in float64, in order, each rounded to float32, uint16 at last half up.
    """
    ...


@op
def box_blur(image: Array, *, kernel: int | Sizes = 3, out: Array | None = None) -> Array:
    """Gives each pixel of (H, W) or (H, W, 3) the mean of a ``kernel`` of pixels (kh, kw): the same shape and type.

    Means of uint8 and uint16 are rounded half up. The window of an even size reaches one further up and left; outside,
    pixels mirror at the edge without repeating it. With an odd number of pixels the bits are those of ``cv2.blur`` 5.0
    of uint8; sums of uint16 and float32 are taken as gaussian_blur takes them.
    """
    ...


# ---------------------------------------------------------------------------- integer filters, as references have them


def weighted(x: Any, taps: Any, axis: int) -> Any:
    """Sums of the window at each place of an axis; x is wider by the window less one."""
    n = x.shape[axis] - len(taps) + 1
    return sum(tap * x.take(range(k, k + n), axis) for k, tap in enumerate(taps))


def mirrored(x: Any, half: int, axis: int) -> Any:
    """x, wider by ``half`` at either end of an axis, where it mirrors without repeating its edge."""
    n = x.shape[axis]
    at = np.abs(np.arange(-half, n + half)) % max(2 * (n - 1), 1)
    return x.take(np.minimum(at, 2 * (n - 1) - at), axis)


def gaussian_taps(sigma: float) -> Any:
    """Taps in 1/256 whose sum is 256: from the outside in, each hands its rounding error on to the next."""
    n = round(6 * sigma + 1) | 1
    half = n // 2
    at = np.arange(n) - half
    exact = np.exp(-at * at / (2 * sigma * sigma))
    exact *= 256 / exact.sum()
    taps, carried = np.zeros(n, np.int64), 0.0
    for i in range(half):
        taps[i] = taps[-1 - i] = np.rint(exact[i] + carried)
        carried += exact[i] - taps[i]
    taps[half] = 256 - taps.sum()
    return taps


def blurred(x: Any, sigma: float) -> Any:
    """Integers x (H, W, ...) blurred: exact sums, one rounding half up."""
    taps = gaussian_taps(sigma)
    for axis in (1, 0):
        x = weighted(mirrored(x, len(taps) // 2, axis), taps, axis)
    return (x + (1 << 15)) >> 16


def summed(wide: Any, terms: Any, divisor: float = 1, whole: bool = False) -> Any:
    """Separable sums of floats, wider by the window less one: weights down, then along, as csrc/image/separable.h."""
    total: Any = 0.0
    for down, along in terms:
        sums = weighted(wide, down, 0).astype(np.float32).astype(np.float64)
        n = sums.shape[1] - len(along) + 1
        for k, weight in enumerate(along):
            total = total + weight * sums.take(range(k, k + n), 1)
    total = total / divisor
    return np.floor(total + 0.5) if whole else total


def gaussian_weights(sigma: float) -> Any:
    """Float32 weights of sum 1."""
    n = round(6 * sigma + 1) | 1
    at = np.arange(n) - n // 2
    exact = np.exp(-at * at / (2 * sigma * sigma))
    return (exact / exact.sum()).astype(np.float32)


def blurred_deep(image: Any, sigma: float) -> Any:
    """uint16 as uint16 has it, or floats, blurred: a number of float64."""
    weights = gaussian_weights(sigma).astype(np.float64)
    wide = mirrored(mirrored(image.astype(np.float64), len(weights) // 2, 0), len(weights) // 2, 1)
    return summed(wide, [(weights, weights)], whole=image.dtype == np.uint16)


@reference(gaussian_blur)
def _(image: Any, *, sigma: float) -> Any:
    if image.size and image.dtype != np.uint8:
        return blurred_deep(image, sigma)
    return blurred(image.astype(np.int64), sigma) if image.size else image


@reference(box_blur)
def _(image: Any, *, kernel: Sizes) -> Any:
    if image.size == 0:
        return image
    if image.dtype != np.uint8:
        wide = image.astype(np.float64)
        for axis, k in enumerate(kernel):
            wide = mirrored(wide, k // 2, axis).take(range(image.shape[axis] + k - 1), axis)
        ones = [np.ones(k) for k in kernel]
        return summed(wide, [ones], kernel[0] * kernel[1], image.dtype == np.uint16)
    x = image.astype(np.int64)
    for axis, k in enumerate(kernel):
        wide = mirrored(x, k // 2, axis)
        x = weighted(wide.take(range(x.shape[axis] + k - 1), axis), (1,) * k, axis)
    area = kernel[0] * kernel[1]
    return (2 * x + area) // (2 * area)


for _op in (gaussian_blur, box_blur):
    dtypes(_op, "uint8", "uint16", "float32")
    tolerance(_op, ulp=0.5)


@samples(gaussian_blur)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(9, 37), sigma=1.0)
    yield sample(fill(70, 5, 3), sigma=0.7)
    yield sample(fill(3, 19).T, sigma=2.6)
    yield sample(fill(1, 1), sigma=100.0)
    yield sample(fill(4, 6, 3)[:, ::-1], sigma=0.01)
    yield sample(fill(0, 4), sigma=1.0)


@errors(gaussian_blur)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(bool), sigma=1.0), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x[0], sigma=1.0), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, sigma=0.0), AttrError, "sigma=0; want more than 0, at most 100 pixels")
    yield ErrorCase(sample(x, sigma=float("nan")), AttrError, "sigma=nan")


@samples(box_blur)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(9, 37))
    yield sample(fill(70, 5, 3), kernel=(5, 2))
    yield sample(fill(3, 19).T, kernel=(4, 9))
    yield sample(fill(4, 6, 3)[:, ::-1], kernel=(1, 1))
    yield sample(fill(2, 3), kernel=(190, 181))
    yield sample(np.full((3, 5), 255, np.uint8), kernel=(181, 181))
    yield sample(fill(0, 4))


@errors(box_blur)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(bool)), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x[0]), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, kernel=(3, 0)), AttrError, "kernel=(3, 0); want 1 or more")
    yield ErrorCase(sample(x, kernel=1024), AttrError, "want 1 to 1023 each")


@workloads(gaussian_blur)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {"sigma": 1.0}, ("vision",))


@workloads(box_blur)
def _() -> Iterator[Workload]:
    yield Workload("HD 15x15", ((1080, 1920),), {"kernel": 15}, ("vision",))


@flops(gaussian_blur)
def _(image: Any, *, sigma: float) -> float:
    return 4.0 * (round(6 * sigma + 1) | 1) * float(math.prod(image))


# ------------------------------------------------------------------------------------------------------ OpenCL


def launch_blur(queue: Queue, image: Any, y: Any, sigma: float) -> None:
    """Enqueues the blur of a picture into y."""
    if image.dtype != np.uint8:
        weights = gaussian_weights(sigma)
        launch_separable(queue, image, y, [(weights, weights)])
        return
    host = gaussian_taps(sigma).astype(np.int16)
    taps, along = queue.empty(host.shape, np.int16), queue.empty(image.shape, np.uint16)
    queue.write(host, taps)
    sizes = (host.size, *image.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("blur.cl", "blur_x", y.size, GROUP_SIZE, (image, taps, along, *sizes))
    queue.launch("blur.cl", "blur_y", y.size, GROUP_SIZE, (along, taps, y, *sizes))


@opencl(gaussian_blur)
def _(queue: Queue, image: Any, y: Any, *, sigma: float) -> None:
    launch_blur(queue, image, y, sigma)


@opencl(box_blur)
def _(queue: Queue, image: Any, y: Any, *, kernel: Sizes) -> None:
    if image.dtype != np.uint8:
        ones = [1.0] * kernel[0], [1.0] * kernel[1]
        launch_separable(queue, image, y, [ones], divisor=kernel[0] * kernel[1])
        return
    sizes = (*kernel, *image.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("blur.cl", "box", y.size, GROUP_SIZE, (image, y, *sizes))
