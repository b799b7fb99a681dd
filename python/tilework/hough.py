"""Straight lines and segments from the votes of edge pixels, and the peaks of any response."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tilework import ops
from tilework.arrays import Array
from tilework.devices import to_host
from tilework.errors import AttrError, ShapeError
from tilework.wants import own_errors, want_array, want_number

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _on_host(a: Array) -> Any:
    return a if isinstance(a, np.ndarray) else to_host(a)


def _want_count(op: str, name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise AttrError(f"{op}: {name}={value!r}; want 1 or more", argument=name)


def _peaks(votes: Any, threshold: int) -> tuple[Ints, Ints, Ints]:
    """Angles, bins and votes of bins above a threshold that no neighbour along either axis exceeds, most first."""
    angle, place = np.divmod(np.flatnonzero(votes > threshold), votes.shape[1])
    own = votes[angle, place]

    def beside(turn: int, shift: int) -> Any:
        a, p = angle + turn, place + shift
        inside = (a >= 0) & (a < votes.shape[0]) & (p >= 0) & (p < votes.shape[1])
        return np.where(inside, votes[np.where(inside, a, 0), np.where(inside, p, 0)], 0)

    before, behind = (np.maximum(beside(d, 0), beside(0, d)) for d in (-1, 1))
    kept = (own > before) & (own >= behind)
    angle, place, own = angle[kept], place[kept], own[kept]
    order = np.lexsort((place, angle, -own.astype(np.int64)))
    return angle[order], place[order], own[order]


@own_errors()
def hough_lines(
    edges: Array, threshold: int, *, rho: float = 1.0, angles: int = 180, max_lines: int | None = None
) -> Floats:
    """Finds the lines on which more than ``threshold`` pixels of edges (H, W), uint8, lie: (N, 3), most votes first.

    A line is its distance from the first pixel, the angle of its normal in [0, pi) and its votes; there are ``angles``
    angles, and distances in steps of ``rho`` pixels. A line has more votes than its neighbours before it, in angle and
    in distance, and no less than those behind it. See :data:`hough_votes`.
    """
    want_number("hough_lines", threshold=threshold, rho=rho)
    _want_count("hough_lines", "threshold", threshold)
    _want_count("hough_lines", "max_lines", max_lines)
    votes = _on_host(ops.hough_votes(edges, rho=float(rho), angles=angles))
    angle, place, own = (part[:max_lines] for part in _peaks(votes, threshold))
    return np.stack([(place - votes.shape[1] // 2) * rho, angle * (math.pi / angles), own.astype(np.float64)], 1)


@own_errors()
def hough_segments(
    edges: Array,
    threshold: int,
    *,
    rho: float = 1.0,
    angles: int = 180,
    min_length: float = 30.0,
    max_gap: int = 5,
    max_segments: int | None = None,
) -> Ints:
    """Finds the pieces of lines that pixels of edges (H, W), uint8, cover: (N, 4), x1, y1, x2, y2.

    Lines are taken as :func:`hough_lines` finds them. Each is walked pixel by pixel; pixels at most one off it
    cover it, gaps of up to ``max_gap`` pixels are closed, and pieces of at least ``min_length`` are kept, whose
    pixels count for no other line. A line that other pieces left less than ``threshold`` pixels is passed over.
    Nothing is drawn at random.
    """
    want_number("hough_segments", min_length=min_length)
    _want_count("hough_segments", "max_segments", max_segments)
    if isinstance(max_gap, bool) or not isinstance(max_gap, int) or max_gap < 0:
        raise AttrError(f"hough_segments: max_gap={max_gap!r}; want 0 or more", argument="max_gap")
    if min_length < 0:
        raise AttrError(f"hough_segments: min_length={min_length}; want 0 or more", argument="min_length")
    lines = hough_lines(edges, threshold, rho=rho, angles=angles)
    left = np.pad(_on_host(edges) != 0, 1)
    found: list[tuple[int, int, int, int]] = []
    for distance, angle, _ in lines:
        for piece in _pieces(left, float(distance), float(angle), threshold, max_gap, min_length):
            found.append(piece)
            if len(found) == max_segments:
                return np.array(found, np.int64)
    return np.array(found, np.int64).reshape(-1, 4)


def _pieces(left: Any, distance: float, angle: float, threshold: int, max_gap: int, min_length: float) -> Any:
    """Pieces of one line, whose pixels are taken out of what is left (with a margin of one pixel)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    flat = abs(sine) >= abs(cosine)  # a step along x moves y by at most one
    plane = left if flat else left.T
    along = np.arange(plane.shape[1] - 2)
    across = np.rint((distance - along * (cosine if flat else sine)) / (sine if flat else cosine)).astype(np.int64)
    inside = (across >= 0) & (across < plane.shape[0] - 2)
    along, across = along[inside], across[inside]
    hit = plane[across + 1, along + 1] | plane[across, along + 1] | plane[across + 2, along + 1]
    at = np.flatnonzero(hit)
    if len(at) < threshold:
        return
    breaks = np.flatnonzero(np.diff(at) > max_gap + 1)
    for first, last in zip(np.append(0, breaks + 1), np.append(breaks, len(at) - 1), strict=True):
        i, j = at[first], at[last]
        ends = (along[i], across[i], along[j], across[j])
        if math.hypot(ends[2] - ends[0], ends[3] - ends[1]) < min_length:
            continue
        for d in (0, 1, 2):
            plane[across[i : j + 1] + d, along[i : j + 1] + 1] = False
        yield ends if flat else (ends[1], ends[0], ends[3], ends[2])


@own_errors(image="response")
def find_keypoints(
    response: Array, threshold: float, *, radius: int = 1, max_points: int | None = None
) -> tuple[Ints, Any]:
    """Finds the pixels of response (H, W), of any pixels, above ``threshold`` that none within ``radius`` exceeds.

    Gives their places (N, 2), x and y, and their values (N,), the largest first, then in the order of pixels. Of equal
    neighbours all are found. The window is a square, as that of :data:`dilate`.
    """
    want_array("find_keypoints", response=response)
    want_number("find_keypoints", threshold=threshold, radius=radius)
    _want_count("find_keypoints", "radius", radius)
    _want_count("find_keypoints", "max_points", max_points)
    if len(response.shape) != 2:
        raise ShapeError(
            f"find_keypoints: response has shape {tuple(response.shape)}; want (H, W)", argument="response"
        )
    reach = min(radius, max(response.shape))  # the whole picture
    largest = _on_host(ops.dilate(response, kernel=2 * max(reach, 1) + 1))
    values = _on_host(response)
    y, x = np.nonzero((values == largest) & (values > threshold))
    own = values[y, x]
    order = np.argsort(-own.astype(np.float64), kind="stable")[:max_points]
    return np.stack([x[order], y[order]], 1), own[order]
