"""Edge Drawing and line segments: chains of edge pixels, and the straight lines in them to a fraction of a pixel.

The gradients are an op, on any device; chains and lines are drawn from them on the CPU, the same ones for every device,
tier and number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tilework import _core, ops
from tilework.arrays import Array
from tilework.devices import to_host
from tilework.eight_bits import in_eight_bits
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.wants import own_errors, want_array, want_color

_AUTO = 30  # least |dx| + |dy| of an edge where nothing else is asked for and noise does not ask for more
_MOST = 2047


@dataclass(frozen=True)
class Lines:
    """Straight lines, the surest first; an array of (N, 4), x1 y1 x2 y2, where an array is wanted.

    Pixel centres are at integers. From 1 to 2 the brighter side lies on the right. All are float32.
    """

    segments: np.ndarray[Any, Any]  # (N, 4)
    width: np.ndarray[Any, Any]  # (N,) of the edge: pixels between the halves of its gradient
    nfa: np.ndarray[Any, Any]  # (N,) -log10 of how many such lines noise would have in a picture of this size
    strength: np.ndarray[Any, Any]  # (N,) mean gradient across the line, in Sobel sums

    @property
    def length(self) -> np.ndarray[Any, Any]:
        """Length in pixels, (N,)."""
        step = self.segments[:, 2:] - self.segments[:, :2]
        length: np.ndarray[Any, Any] = np.hypot(step[:, 0], step[:, 1])
        return length

    @property
    def angle(self) -> np.ndarray[Any, Any]:
        """Direction in radians in (-pi, pi], from x towards y, which points down, (N,)."""
        step = self.segments[:, 2:] - self.segments[:, :2]
        angle: np.ndarray[Any, Any] = np.arctan2(step[:, 1], step[:, 0])
        return angle

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[np.ndarray[Any, Any]]:
        return iter(self.segments)

    def __getitem__(self, at: Any) -> Lines:
        """The lines of a slice, of indices or of a mask."""
        if isinstance(at, (int, np.integer)):
            at = [at]
        return Lines(self.segments[at], self.width[at], self.nfa[at], self.strength[at])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        converted: np.ndarray[Any, Any] = self.segments.astype(dtype or np.float32, copy=bool(copy))
        return converted


@dataclass(frozen=True)
class Edges:
    """Chains of edge pixels in the order in which they follow each other, the brighter side on the right."""

    chains: list[np.ndarray[Any, Any]]  # of (K, 2), int32: x, y
    map: np.ndarray[Any, Any]  # (H, W), uint8: 255 on chains


def _want(good: bool, name: str, argument: str, value: object, wanted: str) -> None:
    if not good:
        raise AttrError(f"{name}: {argument}={value}; want {wanted}")


def _on_host(pixels: Any, **attrs: Any) -> tuple[Any, Any]:
    ways, blurred = ops.edge_ways(pixels, **attrs)
    return (ways, blurred) if isinstance(ways, np.ndarray) else (to_host(ways), to_host(blurred))


def _planes(name: str, image: Any, sigma: float, threshold: float | str, anchor: float) -> tuple[Any, Any, int]:
    """Where edges go on and the picture blurred, on the host, and the threshold, which may follow the noise."""
    auto = threshold == "auto"
    if not auto:
        good = isinstance(threshold, (int, float)) and 1 <= threshold <= _MOST
        _want(good, name, "gradient_threshold", threshold, f"'auto' or 1 to {_MOST}")
    _want(isinstance(anchor, (int, float)) and 0 <= anchor <= _MOST, name, "anchor_threshold", anchor, f"0 to {_MOST}")
    least = _AUTO if auto else math.ceil(float(threshold))
    (pixels,) = in_eight_bits(name, image=image)
    try:
        ways, blurred = _on_host(pixels, sigma=sigma, threshold=least, anchor=math.ceil(anchor))
        if auto and ways.size and (noise := _core.auto_threshold(ways, blurred)) > least:
            least = noise
            ways, blurred = _on_host(pixels, sigma=sigma, threshold=least, anchor=math.ceil(anchor))
    except (AttrError, DTypeError, ShapeError) as error:
        text = str(error).replace("edge_ways:", f"{name}:", 1)
        raise type(error)(text.replace("want uint8", "want uint8, uint16 or float32")) from None
    if max(ways.size, blurred[:1].size // 2) >= 2**30:
        raise ShapeError(f"{name}: image has {ways.size} pixels; want fewer than 2^30")
    return ways, blurred, least


@own_errors()
def detect_edges(
    image: Array,
    *,
    sigma: float = 1.0,
    gradient_threshold: float | Literal["auto"] = "auto",
    anchor_threshold: float = 0,
    scan_interval: int = 4,
    min_length: int = 10,
) -> Edges:
    """Draws the edges of a picture (H, W) or (H, W, 3) as chains of pixels, each one pixel wide (Edge Drawing).

    A chain starts where the gradient is largest across the edge, by ``anchor_threshold`` or more, in every
    ``scan_interval``-th row or column; the steepest come first. It follows the steepest neighbours both ways while
    |dx| + |dy| of the Sobel sums is at least ``gradient_threshold``: "auto" is 30, or 3 standard deviations of the
    noise if that is more. Chains of fewer than ``min_length`` pixels are left out.

    image is uint8, or uint16 or float32, whose range is then divided into 255 steps. C. Topal, C. Akinlar, "Edge
    Drawing", 2012.
    """
    name = "detect_edges"
    _want(
        isinstance(scan_interval, int) and 1 <= scan_interval < 2**30, name, "scan_interval", scan_interval, "1 or more"
    )
    _want(isinstance(min_length, int) and min_length >= 1, name, "min_length", min_length, "1 pixel or more")
    ways, blurred, _ = _planes(name, image, sigma, gradient_threshold, anchor_threshold)
    if ways.size == 0:
        return Edges([], np.zeros(ways.shape, np.uint8))
    pixels, start = _core.draw_chains(ways, blurred, interval=scan_interval, least=min(min_length, 2**30))
    drawn = np.zeros(ways.shape, np.uint8)
    drawn[pixels[:, 1], pixels[:, 0]] = 255
    return Edges([pixels[a:b] for a, b in itertools.pairwise(start)], drawn)


@own_errors()
def detect_lines(
    image: Array,
    *,
    sigma: float = 1.0,
    gradient_threshold: float | Literal["auto"] = "auto",
    anchor_threshold: float = 0,
    scan_interval: int = 8,
    min_length: float | Literal["auto"] = "auto",
    fit_error: float = 1.3,
    bridge: int = 9,
    validate: bool = True,
    log_eps: float = 0.0,
    subpixel: bool = True,
    max_lines: int | None = None,
) -> Lines:
    """Finds the straight edges of a picture (H, W) or (H, W, 3): lines to a fraction of a pixel, the surest first.

    Chains of edge pixels, as :func:`detect_edges` draws them, are cut where they stray ``fit_error`` pixels from a
    line. A line is fitted to the places where the gradient across it is largest, grows both ways over gaps of
    ``bridge`` pixels, at most half its length, and ends where that gradient has fallen to half. Parts of
    circles and other long bends are left out, and with ``validate`` lines of which noise would have 10^log_eps or more
    in a picture of this size. "auto" is the shortest line that could be valid. Without ``subpixel`` ends are whole
    pixels.

    image is uint8, or uint16 or float32, whose range is then divided into 255 steps. C. Akinlar, C. Topal, "EDLines",
    2011.
    """
    name = "detect_lines"
    _want(
        isinstance(scan_interval, int) and 1 <= scan_interval < 2**30, name, "scan_interval", scan_interval, "1 or more"
    )
    auto = min_length == "auto"
    good = auto or (isinstance(min_length, (int, float)) and 2 <= min_length < math.inf)
    _want(good, name, "min_length", min_length, "'auto' or at least 2 pixels")
    _want(
        isinstance(fit_error, (int, float)) and 0.1 <= fit_error <= 10, name, "fit_error", fit_error, "0.1 to 10 pixels"
    )
    _want(isinstance(bridge, int) and 0 <= bridge <= 1000, name, "bridge", bridge, "0 to 1000 pixels")
    _want(isinstance(log_eps, (int, float)) and math.isfinite(log_eps), name, "log_eps", log_eps, "a finite number")
    good = max_lines is None or (isinstance(max_lines, int) and max_lines >= 0)
    _want(good, name, "max_lines", max_lines, "None or a number of lines")
    ways, blurred, threshold = _planes(name, image, sigma, gradient_threshold, anchor_threshold)
    if ways.size == 0:
        return Lines(np.zeros((0, 4), np.float32), *(np.zeros(0, np.float32) for _ in range(3)))
    parts = _core.find_lines(
        ways,
        blurred,
        threshold=threshold,
        interval=scan_interval,
        least_length=0.0 if auto else float(min_length),
        fit_error=float(fit_error),
        gap=bridge,
        validate=bool(validate),
        log_eps=float(log_eps),
        subpixel=bool(subpixel),
        most=ways.size if max_lines is None else min(max_lines, ways.size),
    )
    return Lines(*parts)


@own_errors()
def mps_edlines(
    image: Array,
    *,
    sigma: float = 2.0,
    min_line_length: int = 32,
    max_lines: int = 256,
    detail_ratio: int = 32,
    gradient_threshold: float = 0.2,
    line_error_threshold: float = 0.05,
    merge_locality_threshold: float = 0.0025,
) -> Lines:
    """Finds lines in a picture (H, W) or (H, W, 3), uint8, with the arguments and defaults of Apple's MPSImageEDLines.

    Anchors lie in every ``detail_ratio``-th row and column; ``gradient_threshold`` 1 is the steepest edge there can be;
    a line may stray ``line_error_threshold`` of ``min_line_length``; ``merge_locality_threshold`` is a share of the
    picture's diagonal that a line may jump. Ends are whole pixels, the surest ``max_lines`` come first, and nothing is
    validated. Apple does not document what its gradients and errors are relative to; results were not compared on
    Apple's hardware.
    """
    name = "mps_edlines"
    want_array(name, image=image)
    for argument, value in (
        ("gradient_threshold", gradient_threshold),
        ("line_error_threshold", line_error_threshold),
        ("merge_locality_threshold", merge_locality_threshold),
    ):
        _want(isinstance(value, (int, float)) and 0 <= value <= 1, name, argument, value, "0 to 1")
    good = isinstance(min_line_length, int) and 2 <= min_line_length <= 65535
    _want(good, name, "min_line_length", min_line_length, "2 to 65535 pixels")
    _want(isinstance(max_lines, int) and max_lines >= 0, name, "max_lines", max_lines, "0 or more")
    return detect_lines(
        image,
        sigma=sigma,
        gradient_threshold=min(max(gradient_threshold * 1020, 1), _MOST),
        scan_interval=detail_ratio,
        min_length=min_line_length,
        fit_error=min(max(line_error_threshold * min_line_length, 0.1), 10.0),
        bridge=min(round(merge_locality_threshold * math.hypot(*image.shape[:2])), 1000),
        validate=False,
        subpixel=False,
        max_lines=max_lines,
    )


# ------------------------------------------------------------------------------------------------------ pictures

Color = tuple[int, int, int]


def _faded(image: Any) -> Any:
    """A picture in grey at half its contrast, as (H, W, 3) float64."""
    pixels = np.asarray(in_eight_bits("draw_lines", image=image)[0])
    if pixels.dtype != np.uint8:
        raise DTypeError(f"draw_lines: image has dtype {pixels.dtype}; want uint8, uint16 or float32")
    if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[2] == 3):
        raise ShapeError(f"draw_lines: image has shape {pixels.shape}; want (H, W) or (H, W, 3)")
    grey = pixels @ np.array([0.299, 0.587, 0.114]) if pixels.ndim == 3 else pixels.astype(np.float64)
    return np.repeat((64 + grey / 2)[..., None], 3, axis=2)


def _mix(canvas: Any, cover: Any, color: Color) -> Any:
    cover = cover[..., None]
    return np.floor(canvas * (1 - cover) + cover * np.array(color, np.float64) + 0.5).astype(np.uint8)


def draw_lines(image: Any, lines: Any, *, color: Color = (255, 60, 0)) -> Any:
    """Draws lines (N, 4) over a picture (H, W) or (H, W, 3) in grey: uint8 (H, W, 3), with a dot at each end.

    Lines are one pixel wide and smooth at fractions of a pixel; the picture has half its contrast.
    """
    want_color("draw_lines", color)
    canvas = _faded(image)
    height, width = canvas.shape[:2]
    segments = np.asarray(lines, dtype=np.float64)
    if segments.size == 0:
        segments = segments.reshape(0, 4)
    if segments.ndim != 2 or segments.shape[1] != 4:
        raise ShapeError(f"draw_lines: lines has shape {segments.shape}; want (N, 4)")
    if not np.isfinite(segments).all():
        raise AttrError("draw_lines: lines holds NaN or infinity; want finite ends")
    cover = np.zeros((height, width))
    for x1, y1, x2, y2 in segments:
        flat = abs(x2 - x1) >= abs(y2 - y1)
        a, b, c, d = (x1, y1, x2, y2) if flat else (y1, x1, y2, x2)
        plane = cover if flat else cover.T
        beside, along = plane.shape
        low, high = max(math.ceil(min(a, c)), 0), min(math.floor(max(a, c)), along - 1)
        if low > high:
            continue
        at = np.arange(low, high + 1)
        across = b + (d - b) * ((at - a) / (c - a) if c != a else 0 * at)
        across = np.clip(across, -2, beside + 1)
        first = np.floor(across).astype(np.int64)
        for row, share in ((first, 1 - (across - first)), (first + 1, across - first)):
            good = (row >= 0) & (row < beside)
            np.maximum.at(plane, (row[good], at[good]), share[good])
    drawn = _mix(canvas, cover, color)
    ends = np.rint(np.clip(segments.reshape(-1, 2), -9, max(height, width) + 9)).astype(np.int64)
    for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        x, y = ends[:, 0] + dx, ends[:, 1] + dy
        good = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        drawn[y[good], x[good]] = 255 - np.array(color, np.uint8)
    return drawn


@own_errors()
def overlay_edges(image: Any, edges: Any, *, color: Color = (255, 60, 0)) -> Any:
    """Colours a picture (H, W) or (H, W, 3), in grey at half contrast, where edges (H, W) is not 0: uint8 (H, W, 3)."""
    want_color("overlay_edges", color)
    canvas = _faded(image)
    marks = np.asarray(edges)
    if marks.shape != canvas.shape[:2]:
        raise ShapeError(f"overlay_edges: edges has shape {marks.shape}; want {canvas.shape[:2]}")
    return _mix(canvas, (marks != 0).astype(np.float64), color)
