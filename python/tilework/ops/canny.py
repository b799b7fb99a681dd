"""Canny's edges: of a picture, and of gradients that exist already."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_separable import launch_separable
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.blur import blurred, blurred_deep, launch_blur, summed, weighted
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    fills,
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
def canny(
    image: Array,
    *,
    low: float,
    high: float,
    sigma: float = 0.0,
    ksize: int = 3,
    l2: bool = False,
    out: Array | None = None,
) -> Array:
    """Finds the edges of a picture (H, W) or (H, W, 3): 255 on edges and 0 elsewhere, uint8 (H, W).

    A pixel whose gradient is the largest across the edge is kept if it exceeds ``high``, or if it exceeds ``low`` and a
    chain of such pixels, 8-connected, leads to one above ``high``: the whole chain, however long. Thresholds are in
    units of the Sobel sums of ``ksize`` 3, 5 or 7 pixels: of |dx| + |dy|, or of their Euclidean length with ``l2``. Of
    three channels each pixel takes the one with the largest gradient. ``sigma`` blurs first, as gaussian_blur does.

    Of uint8 the bits are those of ``cv2.Canny`` 5.0, after ``cv2.GaussianBlur`` if there is a sigma; but thresholds
    that are negative, NaN or in the wrong order are errors here. Of uint16 and float32 gradients are as sobel has them,
    but that pixels outside repeat the edge, and those of 7 pixels are not divided by 16; magnitudes, the tangent of
    22.5 degrees and thresholds are float32, and lengths are compared as squares. The same bits on every tier and
    device. J. Canny, "A computational approach to edge detection", 1986.
    """
    ...


@op
def canny_gradients(
    dx: Array, dy: Array, *, low: float, high: float, l2: bool = False, out: Array | None = None
) -> Array:
    """Finds edges as canny does from gradients dx and dy (H, W), int16 or float32, that exist already: uint8 (H, W)."""
    ...


# ------------------------------------------------------------------------------------------------------ reference

_SMOOTH = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1), 7: (1, 6, 15, 20, 15, 6, 1)}
_CHANGE = {3: (-1, 0, 1), 5: (-1, -2, 0, 2, 1), 7: (-1, -4, -5, 0, 5, 4, 1)}


def _sobel(x: Any, size: int) -> tuple[Any, Any]:
    """Gradients of x (H, W); pixels outside repeat the edge."""
    padded = np.pad(x, size // 2, mode="edge")
    dx = weighted(weighted(padded, _SMOOTH[size], 0), _CHANGE[size], 1)
    dy = weighted(weighted(padded, _CHANGE[size], 0), _SMOOTH[size], 1)
    return (dx, dy) if size < 7 else (np.rint(dx / 16).astype(np.int64), np.rint(dy / 16).astype(np.int64))


def _single(x: Any) -> Any:
    """Rounded to float32."""
    return x.astype(np.float32).astype(np.float64)


def _magnitude(dx: Any, dy: Any, l2: bool) -> Any:
    if dx.dtype == np.float64:
        return _single(dx * dx + dy * dy if l2 else np.abs(dx) + np.abs(dy))
    return np.minimum(dx * dx + dy * dy if l2 else np.abs(dx) + np.abs(dy), 2**31 - 1)


def steepest(x: Any, size: int, l2: bool) -> Any:
    """Magnitudes and gradients of x (H, W, C), of each pixel in the channel where the magnitude is the largest."""
    m = dx = dy = np.zeros(x.shape[:2], x.dtype)
    for c in range(x.shape[2]):
        gx, gy = (_sobel if x.dtype == np.int64 else _sobel_deep)(x[..., c], size)
        magnitude = _magnitude(gx, gy, l2)
        wins = (magnitude > m) | (c == 0)
        m, dx, dy = np.where(wins, magnitude, m), np.where(wins, gx, dx), np.where(wins, gy, dy)
    return m, dx, dy


def _sobel_deep(x: Any, size: int) -> tuple[Any, Any]:
    """The same of floats, rounded to float32."""
    padded = np.pad(x, size // 2, mode="edge")
    smooth, change = _SMOOTH[size], _CHANGE[size]
    return _single(summed(padded, [(smooth, change)])), _single(summed(padded, [(change, smooth)]))


def _limit_deep(threshold: float, l2: bool) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(threshold * threshold if l2 else threshold))


def _limit(threshold: float, l2: bool) -> int:
    return math.floor(min(threshold, 32767.0) ** 2 if l2 else min(threshold, 2.0**31 - 1))


def shifted(m: Any, down: int, right: int) -> Any:
    """The neighbours of each element in one direction, 0 outside."""
    h, w = m.shape
    return np.pad(m, 1)[1 + down : 1 + down + h, 1 + right : 1 + right + w]


def _traced(m: Any, dx: Any, dy: Any, low: float, high: float) -> Any:
    """Edges from magnitudes and gradients."""
    x, y = np.abs(dx), np.abs(dy)
    if dx.dtype == np.float64:
        flat, steep = _single(x * float(np.float32(0.41421356))), _single(y - 2 * x)
    else:
        flat, steep = x * 13573 >> 15, y - 2 * x  # the tangent of 22.5 degrees in 15 bits
    sectors = [y <= flat, steep > flat, (dx < 0) != (dy < 0)]  # beside, upright, rising; else falling
    before = [shifted(m, *at) for at in ((0, -1), (-1, 0), (-1, 1), (-1, -1))]
    after = [shifted(m, *at) for at in ((0, 1), (1, 0), (1, -1), (1, 1))]
    first, second = (np.select(sectors, side[:3], side[3]) for side in (before, after))
    # A tie goes to the first of two neighbours, but to neither on a diagonal.
    largest = (m > first) & np.where(sectors[0] | sectors[1], m >= second, m > second)
    weak = largest & (m > low)
    strong = weak & (m > high)
    while True:
        around = np.any([shifted(strong, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], axis=0)
        grown = around & weak
        if np.array_equal(grown, strong):
            return np.where(strong, 255, 0)
        strong = grown


@reference(canny)
def _(image: Any, *, low: float, high: float, sigma: float, ksize: int, l2: bool) -> Any:
    if image.size == 0:
        return np.zeros(image.shape[:2])
    if image.dtype != np.uint8:
        deep = _single(blurred_deep(image, sigma)) if sigma > 0 else image.astype(np.float64)
        m, dx, dy = steepest(deep if deep.ndim == 3 else deep[..., None], ksize, l2)
        return _traced(m, dx, dy, _limit_deep(low, l2), _limit_deep(high, l2))
    x = (image if image.ndim == 3 else image[..., None]).astype(np.int64)
    if sigma > 0:
        x = blurred(x, sigma)
    m, dx, dy = steepest(x, ksize, l2)
    scale = 1 / 16 if ksize == 7 else 1
    return _traced(m, dx, dy, _limit(low * scale, l2), _limit(high * scale, l2))


@reference(canny_gradients)
def _(dx: Any, dy: Any, *, low: float, high: float, l2: bool) -> Any:
    if dx.dtype == np.float64:
        return _traced(_magnitude(dx, dy, l2), dx, dy, _limit_deep(low, l2), _limit_deep(high, l2))
    dx, dy = dx.astype(np.int64), dy.astype(np.int64)
    return _traced(_magnitude(dx, dy, l2), dx, dy, _limit(low, l2), _limit(high, l2))


# ------------------------------------------------------------------------------------------------------ checks

dtypes(canny, "uint8", "uint16", "float32")
dtypes(canny_gradients, "int16", "float32")
tolerance(canny, ulp=0.5)
tolerance(canny_gradients, ulp=0.5)


def scene(fill: Fill, *shape: int) -> Any:
    """A picture with edges, weak and strong ones, and noise."""
    h, w = shape[:2]
    y, x = np.mgrid[0:h, 0:w]
    base = 90 + 60 * (np.hypot(y - h / 2, x - w / 3) < min(h, w) / 3) + 50 * (x > 2 * w / 3) + 1.5 * y
    noise = fill.integers(*shape, low=-9, high=10)
    pixels = np.clip(base.reshape(h, w, *(1,) * (len(shape) - 2)) + noise, 0, 255)
    deep = fill.dtype.type in (np.uint16, np.float32)
    return pixels.astype(fill.dtype if deep else np.uint8)


def photo(name: str, height: int, width: int) -> Any:
    """A photograph of scikit-learn's in grey, mirrored to size; None without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.datasets import load_sample_image

    rgb = load_sample_image(name).astype(np.int64)
    grey = ((rgb * (4899, 9617, 1868)).sum(-1) + (1 << 13) >> 14).astype(np.uint8)
    return np.pad(grey, ((0, max(0, height - grey.shape[0])), (0, max(0, width - grey.shape[1]))), "symmetric")[
        :height, :width
    ].copy()


@samples(canny)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(scene(fill, 37, 70), low=40, high=120)
    yield sample(scene(fill, 131, 19), low=30.5, high=90.5)
    yield sample(scene(fill, 9, 331), low=20, high=200, sigma=1.0)
    yield sample(scene(fill, 24, 66, 3), low=60, high=150)
    yield sample(scene(fill, 23, 40), low=40, high=120, l2=True)
    yield sample(scene(fill, 20, 33), low=500, high=900, ksize=5)
    yield sample(scene(fill, 20, 33, 3), low=5000, high=15000, ksize=7, l2=True, sigma=0.7)
    yield sample(scene(fill, 11, 35).T, low=1000, high=8000, ksize=7)
    yield sample(scene(fill, 3, 1), low=0, high=0, sigma=2.0)
    yield sample(scene(fill, 1, 9), low=1, high=60)
    yield sample(scene(fill, 0, 5), low=1, high=2)


@samples(canny_gradients)
def _(fill: Fill) -> Iterator[Sample]:
    low, high = (9000.0, 40000.0) if fill.dtype.kind == "i" else (0.5, 2.0)
    for h, w in ((7, 70), (70, 33), (1, 5), (0, 3)):
        yield sample(fill(h, w), fill(h, w), low=low, high=high)
    wild = np.array([[-32768, 32767, 0, 1], [-32768, 5, -5, 9]], np.int16)
    yield sample(wild, wild[::-1].copy(), low=2, high=4, l2=True)
    yield sample(fill(8, 40).T, fill(8, 40).T, low=2 * low, high=1e9 if low > 1 else 2.5, l2=True)


@errors(canny)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = scene(fill, 5, 6)
    limits = {"low": 1.0, "high": 2.0}
    yield ErrorCase(
        sample(x.astype(np.float64), **limits), DTypeError, "image has dtype float64; want uint8, uint16 or float32"
    )
    yield ErrorCase(sample(x.astype(bool), **limits), DTypeError, "image has dtype bool")
    yield ErrorCase(sample(x[None], **limits), ShapeError, "image has shape (1, 5, 6); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(np.zeros((5, 6, 4), np.uint8), **limits), ShapeError, "want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, low=3, high=2), AttrError, "low=3 exceeds high=2")
    yield ErrorCase(sample(x, low=-1, high=2), AttrError, "low=-1; want a number of at least 0")
    yield ErrorCase(sample(x, low=1, high=float("nan")), AttrError, "high=nan; want a number of at least 0")
    yield ErrorCase(sample(x, **limits, sigma=-1.0), AttrError, "sigma=-1; want 0 (no blur) to 100 pixels")
    yield ErrorCase(sample(x, **limits, sigma=float("nan")), AttrError, "sigma=nan")
    yield ErrorCase(sample(x, **limits, ksize=4), AttrError, "ksize=4; want 3, 5 or 7")


@errors(canny_gradients)
def _(fill: Fill) -> Iterator[ErrorCase]:
    d = fill(3, 4)
    yield ErrorCase(
        sample(d.astype(np.float64), d, low=1, high=2), DTypeError, "dx has dtype float64; want int16 or float32"
    )
    yield ErrorCase(sample(d, fill(4, 3), low=1, high=2), ShapeError, "dy has shape (4, 3)")
    yield ErrorCase(sample(fill(3), fill(3), low=1, high=2), ShapeError, "dx has 1 dimension")
    yield ErrorCase(sample(d, d, low=2, high=1), AttrError, "low=2 exceeds high=1")


@workloads(canny)
def _() -> Iterator[Workload]:
    limits = {"low": 50.0, "high": 150.0}
    yield Workload("china VGA", ((480, 640),), limits, ("vision",))
    yield Workload("china VGA blurred", ((480, 640),), limits | {"sigma": 1.0}, ("vision",))
    yield Workload("china HD", ((1080, 1920),), limits, ("vision",))


@fills(canny)
def _(fill: Fill, image: Any, **attrs: Any) -> tuple[Any]:
    if len(image) == 3 or not fill(1).any():
        return (fill(*image),)
    found = photo("china.jpg", *image)
    return (scene(fill, *image) if found is None else found,)


@fills(canny_gradients)
def _(fill: Fill, *shapes: Any, **attrs: Any) -> tuple[Any, ...]:
    """As large as the sums of a Sobel filter get."""
    return tuple((fill(*shape) / 32).astype(fill.dtype) for shape in shapes)


@flops(canny)
def _(image: Any, **attrs: Any) -> float:
    return 40.0 * float(math.prod(image))


@workloads(canny_gradients)
def _() -> Iterator[Workload]:
    yield Workload("VGA", ((480, 640), (480, 640)), {"low": 50.0, "high": 150.0}, ("vision",))


# ------------------------------------------------------------------------------------------------------ OpenCL


def _trace(queue: Queue, labels: Any, strong: Any, y: Any) -> None:
    height, width = y.shape
    marks = queue.empty(y.shape, np.uint8)
    queue.fill(marks, 0)
    queue.launch("canny.cl", "unite", y.size, GROUP_SIZE, (labels, height, width))
    queue.launch("canny.cl", "mark", y.size, GROUP_SIZE, (labels, strong, marks, y.size))
    queue.launch("canny.cl", "edges", y.size, GROUP_SIZE, (labels, marks, y, y.size))


def _candidates(queue: Queue, y: Any) -> tuple[Any, Any]:
    if y.size >= 2**32 - 1:
        raise ShapeError(f"{y.shape} is too large for a device; want less than 2^32 - 1 pixels")
    return queue.empty(y.shape, np.uint32), queue.empty(y.shape, np.uint8)


def _deep_peaks(
    queue: Queue, dx: Any, dy: Any, labels: Any, strong: Any, channels: int, low: float, high: float, l2: bool
) -> None:
    limits = [_limit_deep(v, l2) for v in (low, high)]
    args = (dx, dy, labels, strong, *labels.shape, channels, *limits)
    queue.launch("canny.cl", "deep_peaks", labels.size, GROUP_SIZE, args, DEEP=1, **({"L2": 1} if l2 else {}))


@opencl(canny)
def _(queue: Queue, image: Any, y: Any, *, low: float, high: float, sigma: float, ksize: int, l2: bool) -> None:
    (height, width), channels = y.shape, image.shape[2] if image.ndim == 3 else 1
    labels, strong = _candidates(queue, y)
    if sigma > 0:
        sharp, image = image, queue.empty(image.shape, image.dtype)
        launch_blur(queue, sharp, image, sigma)
    if image.dtype != np.uint8:
        dx, dy = (queue.empty(image.shape, np.float32) for _ in range(2))
        smooth, change = _SMOOTH[ksize], _CHANGE[ksize]
        launch_separable(queue, image, dx, [(smooth, change)], repeats=True)
        launch_separable(queue, image, dy, [(change, smooth)], repeats=True)
        _deep_peaks(queue, dx, dy, labels, strong, channels, low, high, l2)
        _trace(queue, labels, strong, y)
        return
    scale = 1 / 16 if ksize == 7 else 1
    limits = [_limit(v * scale, l2) for v in (low, high)]
    define = {"SIZE": ksize} | ({"L2": 1} if l2 else {})
    args = (image, labels, strong, height, width, channels, *limits)
    queue.launch("canny.cl", "peaks", y.size, GROUP_SIZE, args, **define)
    _trace(queue, labels, strong, y)


@opencl(canny_gradients)
def _(queue: Queue, dx: Any, dy: Any, y: Any, *, low: float, high: float, l2: bool) -> None:
    labels, strong = _candidates(queue, y)
    if dx.dtype == np.float32:
        _deep_peaks(queue, dx, dy, labels, strong, 1, low, high, l2)
        _trace(queue, labels, strong, y)
        return
    limits = [_limit(v, l2) for v in (low, high)]
    args = (dx, dy, labels, strong, *y.shape, *limits)
    queue.launch("canny.cl", "given_peaks", y.size, GROUP_SIZE, args, GIVEN=1, **({"L2": 1} if l2 else {}))
    _trace(queue, labels, strong, y)
