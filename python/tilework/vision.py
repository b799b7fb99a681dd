"""Pictures: edges, lines and filters of images (H, W) or (H, W, 3), on the CPU and on OpenCL devices.

The ops of their names; canny takes its thresholds where a reader of a call expects them.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from tilework import ops
from tilework.arrays import Array
from tilework.contours import Contour, approx_polygon, find_contours
from tilework.devices import to_device, to_host
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.guided import guided_filter
from tilework.hough import find_keypoints, hough_lines, hough_segments
from tilework.lines import Edges, Lines, detect_edges, detect_lines, draw_lines, mps_edlines, overlay_edges
from tilework.ops import (
    absdiff,
    bilateral,
    box_blur,
    dilate,
    distance_transform,
    edge_ways,
    equalize_hist,
    erode,
    filter2d,
    gaussian_blur,
    histogram,
    hough_votes,
    integral,
    integral_squares,
    label,
    laplacian,
    look_up,
    median_blur,
    pyramid_down,
    pyramid_up,
    resize,
    rgb_to_gray,
    scharr,
    sobel,
    spatial_gradient,
    threshold,
    warp_affine,
    warp_perspective,
)
from tilework.optical_flow import draw_flow, optical_flow
from tilework.trajectories import Trajectory, TrajectoryDetector
from tilework.wants import own_errors, want_array, want_number

__all__ = [
    "Contour",
    "Edges",
    "Lines",
    "Trajectory",
    "TrajectoryDetector",
    "absdiff",
    "approx_polygon",
    "bilateral",
    "box_blur",
    "canny",
    "canny_gradients",
    "detect_edges",
    "detect_lines",
    "dilate",
    "distance_transform",
    "draw_flow",
    "draw_lines",
    "edge_ways",
    "equalize_hist",
    "erode",
    "filter2d",
    "find_contours",
    "find_keypoints",
    "gaussian_blur",
    "guided_filter",
    "histogram",
    "hough_lines",
    "hough_segments",
    "hough_votes",
    "integral",
    "integral_squares",
    "label",
    "laplacian",
    "look_up",
    "match_histogram",
    "mean_variance",
    "median_blur",
    "minmax",
    "morphology",
    "mps_canny",
    "mps_edlines",
    "optical_flow",
    "overlay_edges",
    "pyramid_down",
    "pyramid_up",
    "resize",
    "rgb_to_gray",
    "scharr",
    "sep_filter",
    "sobel",
    "spatial_gradient",
    "threshold",
    "threshold_otsu",
    "warp_affine",
    "warp_perspective",
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
    """Finds the edges of a picture (H, W) or (H, W, 3): see :data:`tilework.canny`."""
    return ops.canny(image, low=low, high=high, sigma=sigma, ksize=ksize, l2=l2, out=out)


def canny_gradients(
    dx: Array, dy: Array, low: float, high: float, *, l2: bool = False, out: Array | None = None
) -> Array:
    """Finds edges from gradients dx and dy (H, W), int16 or float32: see :data:`tilework.canny_gradients`."""
    return ops.canny_gradients(dx, dy, low=low, high=high, l2=l2, out=out)


# The largest pixel of each type, or what stands for white.
_WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@own_errors()
def mps_canny(
    image: Array,
    low: float = 0.2,
    high: float = 0.4,
    *,
    sigma: float = math.sqrt(2),
    color_transform: tuple[float, float, float] = (0.299, 0.587, 0.114),
    out: Array | None = None,
) -> Array:
    """Finds edges of a picture (H, W) or (H, W, 3) with the arguments and defaults of Apple's MPSImageCanny.

    Pixels are uint8, uint16 or float32, of which white is 1. Colours are joined to grey by ``color_transform``,
    blurred, and the Euclidean length of their Sobel gradient is compared with the thresholds, of which 1 is the
    steepest edge there can be. Apple does not document what its thresholds are relative to, and its default mode may
    end a weak edge early, which this never does. Results were not compared on Apple's hardware.
    """
    want_array("mps_canny", image=image)
    want_number("mps_canny", low=low, high=high)
    kind = str(image.dtype)
    if kind not in _WHITE:
        raise DTypeError(f"mps_canny: image has dtype {kind}; want uint8, uint16 or float32", argument="image")
    if len(image.shape) == 3 and image.shape[2] == 3:
        if len(color_transform) != 3:
            raise ShapeError(f"mps_canny: color_transform has {len(color_transform)} weights; want 3")
        channels = (ops.cast(image[..., c], dtype="float32") for c in range(3))
        weighted = [ops.mul(channel, weight) for channel, weight in zip(channels, color_transform, strict=True)]
        grey = ops.add(ops.add(weighted[0], weighted[1]), weighted[2])
        image = grey if kind == "float32" else ops.cast(ops.add(grey, 0.5), dtype=kind)
    steepest = 4 * _WHITE[kind]  # the Sobel sums of an edge between black and white
    return ops.canny(image, low=low * steepest, high=high * steepest, sigma=sigma, l2=True, out=out)


Operation = Literal["open", "close", "gradient", "tophat", "blackhat"]


@own_errors()
def morphology(
    image: Array, operation: Operation, *, kernel: int | tuple[int, int] = 3, out: Array | None = None
) -> Array:
    """Joins dilate and erode by a ``kernel`` (kh, kw) of a picture (H, W) or (H, W, 3): the same shape and type.

    "open" erodes, then dilates; "close" the other way round; "gradient" is what dilate exceeds erode by, "tophat" the
    picture less its open and "blackhat" its close less the picture. Of odd kernels the bits are those of
    ``cv2.morphologyEx`` 5.0.
    """
    if operation not in get_args(Operation):
        wanted = ", ".join(get_args(Operation))
        raise AttrError(f"morphology: operation={operation!r}; want one of {wanted}", argument="operation")
    if operation in ("open", "tophat"):
        eroded = ops.erode(image, kernel=kernel)
        opened = ops.dilate(eroded, kernel=kernel, out=out if operation == "open" else None)
        return opened if operation == "open" else ops.absdiff(image, opened, out=out)
    dilated = ops.dilate(image, kernel=kernel)
    if operation == "gradient":
        return ops.absdiff(dilated, ops.erode(image, kernel=kernel), out=out)
    closed = ops.erode(dilated, kernel=kernel, out=out if operation == "close" else None)
    return closed if operation == "close" else ops.absdiff(closed, image, out=out)


@own_errors()
def sep_filter(image: Array, along: Array, down: Array, *, out: Array | None = None) -> Array:
    """Correlates a picture (H, W) or (H, W, 3), of any pixels, with ``along`` (kw,), then ``down`` (kh,): float32.

    Twice :data:`filter2d`, of which it has the borders. As ``cv2.sepFilter2D`` with ``CV_32F``, but for its rounding.
    """
    want_array("sep_filter", along=along, down=down)
    for name, taps in (("along", along), ("down", down)):
        if len(taps.shape) != 1:
            raise ShapeError(f"sep_filter: {name} has shape {tuple(taps.shape)}; want one axis", argument=name)
    return ops.filter2d(ops.filter2d(image, along.reshape(1, -1)), down.reshape(-1, 1), out=out)


def _counts(image: Array) -> list[int]:
    """The histogram of an image, on the host."""
    found = ops.histogram(image)
    return [int(n) for n in (found if isinstance(found, np.ndarray) else to_host(found))]


def _some_counts(op: str, image: Array) -> list[int]:
    counts = _counts(image)
    if not any(counts):
        raise ShapeError(f"{op}: image has shape {tuple(image.shape)}; want at least one element", argument="image")
    return counts


def _deep(op: str, image: Array) -> bool:
    """Whether elements are uint16 or float32, of which there is no histogram."""
    want_array(op, image=image)
    if image.dtype not in (np.uint16, np.float32):
        return False
    if image.size == 0:
        raise ShapeError(f"{op}: image has shape {tuple(image.shape)}; want at least one element", argument="image")
    return True


def _number(found: Array) -> float:
    """An array without axes, on the host."""
    return float(found if isinstance(found, np.ndarray) else to_host(found))


@own_errors()
def minmax(image: Array) -> tuple[float, float]:
    """Finds the least and the largest element of image, uint8, uint16 or float32 of any shape but empty.

    Integers of integers; where a NaN is, both are NaN.
    """
    if _deep("minmax", image):
        kind = float if image.dtype == np.float32 else int
        x = ops.cast(image, dtype="float32")
        return kind(_number(ops.reduce_min(x))), kind(_number(ops.reduce_max(x)))
    occur = [value for value, n in enumerate(_some_counts("minmax", image)) if n]
    return occur[0], occur[-1]


@own_errors()
def mean_variance(image: Array) -> tuple[float, float]:
    """Computes the mean and the variance (the mean squared distance from it) of image, of any shape but empty.

    Of uint8 from exact sums, each rounded once; of uint16 and float32 in float64, the mean first.
    """
    if _deep("mean_variance", image):
        x = ops.cast(image, dtype="float64")
        mean = _number(ops.reduce_mean(x))
        apart = ops.sub(x, mean)
        return mean, _number(ops.reduce_mean(ops.mul(apart, apart)))
    counts = _some_counts("mean_variance", image)
    pixels = sum(counts)
    total = sum(value * n for value, n in enumerate(counts))
    squares = sum(value * value * n for value, n in enumerate(counts))
    return total / pixels, (squares * pixels - total * total) / (pixels * pixels)


@own_errors()
def match_histogram(image: Array, like: Array, *, out: Array | None = None) -> Array:
    """Gives image, uint8 or uint16 of any shape, the distribution of the values of ``like``, all of one type.

    Each value becomes the least one up to which ``like`` has at least its share of elements. Exact on every device.
    """
    want_array("match_histogram", image=image, like=like)
    if image.dtype != like.dtype:
        text = f"match_histogram: like has dtype {like.dtype} but image has {image.dtype}; want one type"
        raise DTypeError(text, argument="like")
    counts, wanted = _counts(image), _some_counts("match_histogram", like)
    pixels, others = max(sum(counts), 1), sum(wanted)
    table = np.zeros(len(counts), image.dtype)
    below, reached, value = 0, wanted[0], 0
    for x, n in enumerate(counts):
        below += n
        while reached * pixels < below * others:
            value += 1
            reached += wanted[value]
        table[x] = value
    return ops.look_up(image, table if isinstance(image, np.ndarray) else to_device(table, like=image), out=out)


@own_errors()
def threshold_otsu(image: Array) -> int:
    """Finds the value that parts the pixels of image, uint8 or uint16 of any shape, into two classes farthest apart.

    The value for :data:`threshold` that makes the variance between those above and the others the largest; the least
    such value, and 0 where all pixels are equal. N. Otsu, "A threshold selection method from gray-level histograms",
    1979.
    """
    counts = _counts(image)
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
