"""Contours as lists of points, and the polygons that come near them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilework import ops
from tilework.arrays import Array
from tilework.errors import AttrError, ShapeError
from tilework.wants import own_errors, want_number

Points = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Contour:
    """The border of a component, or of a hole in one: its pixels in order, and what it lies in."""

    points: Points  # (K, 2), x and y
    parent: int | None  # number of the contour directly around it
    hole: bool


@own_errors()
def find_contours(mask: Array) -> list[Contour]:
    """Finds the borders of what is not zero in mask (H, W), uint8, and of its holes, by their first pixels.

    Components are 8-connected. Points run counterclockwise around a component and clockwise around a hole; those of a
    hole are pixels of the component. The sets of points and the nesting are those of ``cv2.findContours`` with
    ``RETR_TREE`` and ``CHAIN_APPROX_NONE``. S. Suzuki and K. Abe, 1985. On the CPU alone.
    """
    pixels = 1
    for n in getattr(mask, "shape", ()):
        pixels *= n
    some, more = pixels // 64 + 16, pixels // 8 + 64
    found = ops.trace_contours(mask, borders=some, points=more)
    borders, points = (int(n) for n in found[4])
    if borders > some or points > more:
        found = ops.trace_contours(mask, borders=borders, points=points)
    places, starts, parents, holes = found[0][:points].copy(), found[1].tolist(), found[2].tolist(), found[3].tolist()
    return [
        Contour(places[starts[k] : starts[k + 1]], parents[k] if parents[k] >= 0 else None, bool(holes[k]))
        for k in range(borders)
    ]


def approx_polygon(points: npt.ArrayLike, *, epsilon: float, closed: bool = True) -> Any:
    """Leaves out points of a chain (K, 2) that lie within ``epsilon`` of the polygon through the others: (M, 2).

    A closed chain keeps its first point and the one farthest from it. D. Douglas and T. Peucker, "Algorithms for the
    reduction of the number of points required to represent a digitized line", 1973.
    """
    chain = np.asarray(points)
    if chain.ndim != 2 or chain.shape[1] != 2:
        raise ShapeError(f"approx_polygon: points has shape {chain.shape}; want (K, 2)", argument="points")
    want_number("approx_polygon", epsilon=epsilon)
    if epsilon < 0:
        raise AttrError(f"approx_polygon: epsilon={epsilon}; want 0 or more", argument="epsilon")
    count = len(chain)
    if count < 3:
        return chain.copy()
    place = chain.astype(np.float64)
    keep = np.zeros(count + 1, bool)
    keep[[0, count if closed else count - 1]] = True
    spans = [(0, count - 1)]
    if closed:
        place = np.vstack([place, place[:1]])
        far = int(np.argmax(((place - place[0]) ** 2).sum(1)))
        keep[far] = True
        spans = [(0, far), (far, count)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        along, between = place[last] - place[first], place[first + 1 : last] - place[first]
        length = float(along @ along)
        # Distance from the piece itself, so that a chain that turns back is seen.
        share = np.clip(between @ along / length, 0, 1) if length else np.zeros(len(between))
        apart = ((between - share[:, None] * along) ** 2).sum(1)
        worst = int(np.argmax(apart))
        if apart[worst] > epsilon * epsilon:
            keep[first + 1 + worst] = True
            spans += [(first, first + 1 + worst), (first + 1 + worst, last)]
    return chain[keep[:count]]
