"""Pictures: edges, lines and filters of uint8 images (H, W) or (H, W, 3), on the CPU and on OpenCL devices.

The ops of their names; canny takes its thresholds where a reader of a call expects them.
"""

from __future__ import annotations

import math

import numpy as np

from tilework import ops
from tilework.arrays import Array
from tilework.devices import to_host
from tilework.errors import ShapeError
from tilework.lines import Edges, Lines, detect_edges, detect_lines, draw_lines, mps_edlines, overlay_edges
from tilework.ops import (
    dilate,
    edge_gradients,
    equalize_hist,
    erode,
    gaussian_blur,
    histogram,
    laplacian,
    scharr,
    sobel,
    spatial_gradient,
    threshold,
)

__all__ = [
    "Edges",
    "Lines",
    "canny",
    "canny_gradients",
    "detect_edges",
    "detect_lines",
    "dilate",
    "draw_lines",
    "edge_gradients",
    "equalize_hist",
    "erode",
    "gaussian_blur",
    "histogram",
    "laplacian",
    "mps_canny",
    "mps_edlines",
    "overlay_edges",
    "scharr",
    "sobel",
    "spatial_gradient",
    "threshold",
    "threshold_otsu",
]


def canny(
    image: Array,
    low: float,
    high: float,
    *,
    sigma: float = 0.0,
    ksize: int = 3,
    l2: bool = False,
    out: Array | None = None,
) -> Array:
    """Finds the edges of a picture (H, W) or (H, W, 3), uint8: see :data:`tilework.canny`."""
    return ops.canny(image, low=low, high=high, sigma=sigma, ksize=ksize, l2=l2, out=out)


def canny_gradients(
    dx: Array, dy: Array, low: float, high: float, *, l2: bool = False, out: Array | None = None
) -> Array:
    """Finds edges from gradients dx and dy (H, W), int16: see :data:`tilework.canny_gradients`."""
    return ops.canny_gradients(dx, dy, low=low, high=high, l2=l2, out=out)


# The Sobel sums of the steepest edge between 0 and 255.
_STEEPEST = 4 * 255


def mps_canny(
    image: Array,
    low: float = 0.2,
    high: float = 0.4,
    *,
    sigma: float = math.sqrt(2),
    color_transform: tuple[float, float, float] = (0.299, 0.587, 0.114),
    out: Array | None = None,
) -> Array:
    """Finds edges of a picture (H, W) or (H, W, 3), uint8, with the arguments and defaults of Apple's MPSImageCanny.

    Colours are joined to grey by ``color_transform``, blurred, and the Euclidean length of their Sobel gradient is
    compared with the thresholds, of which 1 is the steepest edge there can be. Apple does not document what its
    thresholds are relative to, and its default mode may end a weak edge early, which this never does. Results were not
    compared on Apple's hardware.
    """
    if len(image.shape) == 3:
        if len(color_transform) != 3:
            raise ShapeError(f"mps_canny: color_transform has {len(color_transform)} weights; want 3")
        channels = (ops.cast(image[..., c], dtype="float32") for c in range(3))
        weighted = [ops.mul(channel, weight) for channel, weight in zip(channels, color_transform, strict=True)]
        grey = ops.add(ops.add(weighted[0], weighted[1]), weighted[2])
        image = ops.cast(ops.add(grey, 0.5), dtype="uint8")
    return ops.canny(image, low=low * _STEEPEST, high=high * _STEEPEST, sigma=sigma, l2=True, out=out)


def threshold_otsu(image: Array) -> int:
    """Finds the value that parts the pixels of image, uint8 of any shape, into the two classes farthest apart.

    The value for :data:`threshold` that makes the variance between those above and the others the largest; the least
    such value, and 0 where all pixels are equal. N. Otsu, "A threshold selection method from gray-level histograms",
    1979.
    """
    found = ops.histogram(image)
    counts = [int(n) for n in (found if isinstance(found, np.ndarray) else to_host(found))]
    pixels, total = sum(counts), sum(v * n for v, n in enumerate(counts))
    best, largest = 0, (0, 1)
    below = sum_below = 0
    for value, n in enumerate(counts):
        below, sum_below = below + n, sum_below + value * n
        # The variance between the classes, as a fraction of integers.
        variance = (sum_below * pixels - total * below) ** 2, below * (pixels - below)
        if variance[1] and variance[0] * largest[1] > largest[0] * variance[1]:
            best, largest = value, variance
    return best
