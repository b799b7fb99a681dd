"""Borders of the components of a mask and of their holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    op,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def trace_contours(mask: Array, *, borders: int, points: int, out: tuple[Array, ...] | None = None) -> Any:
    """Follows the borders of what is not zero in mask (H, W), uint8, with room for ``borders`` and ``points``.

    Gives the points (points, 2) as x and y, int32, one border behind the other; where each border begins among them,
    (borders + 1,), int64; the border directly around each, or -1, int32; whether it is that of a hole, uint8; and how
    many borders and points there are, (2,), int64, of which only those that fit are written; the rest is zero.
    :func:`tilework.vision.find_contours` makes a list of it. Borders come in the order of their first pixels, their
    points counterclockwise around components and clockwise around holes. S. Suzuki and K. Abe, "Topological structural
    analysis of digitized binary images by border following", 1985. On the CPU alone: one border after the other.
    """
    ...


_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _follow(f: Any, start: tuple[int, int], zero: int, mark: int) -> list[tuple[int, int]]:
    """The points of one border, as (x, y); zero is the direction in which the start has a neighbour of 0."""

    def beside(at: tuple[int, int], d: int) -> tuple[int, int]:
        return at[0] + _AROUND[d % 8][0], at[1] + _AROUND[d % 8][1]

    clockwise = [d % 8 for d in range(zero, zero - 8, -1) if f[beside(start, d)]]
    if not clockwise:
        f[start] = -mark
        return [(start[1] - 1, start[0] - 1)]
    first, found, at, back = beside(start, clockwise[0]), [], start, clockwise[0]
    while True:
        found.append((at[1] - 1, at[0] - 1))
        turn = next(k for k in range(1, 9) if f[beside(at, back + k)])
        if 0 in [(back + k) % 8 for k in range(1, turn)]:
            f[at] = -mark
        elif f[at] == 1:
            f[at] = mark
        following = beside(at, back + turn)
        if following == start and at == first:
            return found
        at, back = following, (back + turn + 4) % 8


@reference(trace_contours)
def _(mask: Any, *, borders: int, points: int) -> Any:
    f = np.pad((mask != 0).astype(np.int64), 1)
    found: list[tuple[list[tuple[int, int]], int, bool]] = []
    for y in range(1, mask.shape[0] + 1):
        seen = 1
        for x in range(1, mask.shape[1] + 1):
            if f[y, x] == 0:
                continue
            outer = f[y, x] == 1 and f[y, x - 1] == 0
            hole = not outer and f[y, x] >= 1 and f[y, x + 1] == 0
            if outer or hole:
                seen = int(f[y, x]) if hole and f[y, x] > 1 else seen
                within_hole = seen == 1 or found[seen - 2][2]
                beyond, crossed = (found[seen - 2][1], seen - 2) if seen > 1 else (-1, -1)
                parent = beyond if within_hole == hole else crossed
                chain = _follow(f, (y, x), 4 if outer else 0, len(found) + 2)
                found.append((chain, parent, bool(hole)))
            seen = abs(int(f[y, x])) if f[y, x] != 1 else seen
    places, begins = np.zeros((points, 2), np.int64), np.zeros(borders + 1, np.int64)
    chains = [p for chain, _, _ in found for p in chain][:points]
    places[: len(chains)] = np.array(chains).reshape(-1, 2)
    ends = np.cumsum([0] + [len(chain) for chain, _, _ in found])[: borders + 1]
    begins[: len(ends)] = ends
    parents, holes = np.zeros(borders, np.int64), np.zeros(borders, np.int64)
    for k, (_, parent, hole) in enumerate(found[:borders]):
        parents[k], holes[k] = parent, hole
    return places, begins, parents, holes, np.array([len(found), sum(len(chain) for chain, _, _ in found)])


dtypes(trace_contours, "uint8")
tolerance(trace_contours, ulp=0.5)


def _rings(height: int, width: int) -> Any:
    y, x = np.mgrid[:height, :width]
    return (np.maximum(abs(y - height // 2), abs(x - width // 2)) // 2 % 2).astype(np.uint8)


@samples(trace_contours)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(_rings(23, 30), borders=10, points=400)
    yield sample((fill(12, 31) > 99).astype(np.uint8) * 7, borders=60, points=500)
    yield sample((fill(19, 8) > 160).astype(np.uint8).T, borders=60, points=500)
    yield sample(fill(6, 9)[::-1, ::2], borders=2, points=7)
    yield sample(fill(1, 1), borders=0, points=0)
    yield sample(fill(0, 4), borders=1, points=3)


@errors(trace_contours)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(bool), borders=1, points=1), DTypeError, "mask has dtype bool; want uint8")
    yield ErrorCase(sample(x[0], borders=1, points=1), ShapeError, "mask has shape (4,); want (H, W)")
    yield ErrorCase(sample(x, borders=-1, points=1), AttrError, "borders=-1; want 0 to 2^30")
    yield ErrorCase(sample(x, borders=1, points=1 << 31), AttrError, "points=2147483648; want 0 to 2^30")


@workloads(trace_contours)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {"borders": 1 << 19, "points": 1 << 22}, ("vision",))
