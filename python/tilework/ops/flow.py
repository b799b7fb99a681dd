"""Where the pixels of one 8-bit picture went in another: a search by patches."""

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
    fills,
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
def flow_search(
    first: Array,
    second: Array,
    flow: Array | None = None,
    *,
    stride: int = 4,
    steps: int = 12,
    rounds: int = 2,
    out: Array | None = None,
) -> Array:
    """Finds where pixels of ``first`` (H, W) went in ``second`` (H, W), uint8: the flow (H, W, 2), x and y, float32.

    Patches of 8 x 8 pixels, ``stride`` apart, descend from where ``flow`` has them, at most ``steps`` times, and in
    each of ``rounds`` from where their neighbours are, if that is better. ``flow`` is (H, W, 2), or that of pictures of
    half the size, rounded up, which is doubled. A brightness that all pixels of a patch gained does not count. T.
    Kroeger et al., "Fast optical flow using dense inverse search", 2016. The same bits on every tier. It is one level:
    :func:`tilework.vision.optical_flow` goes from coarse to fine. On the CPU alone.
    """
    ...


_PATCH, _UNIT, _FARTHEST = 8, 16, 32767


def _total(x: Any) -> Any:
    return x.sum(axis=(1, 2))


class _Search:
    """All patches at once; flows are integers (n, 2), x and y, in 1/16 pixel."""

    def __init__(self, first: Any, second: Any, stride: int) -> None:
        self.first, self.second, self.size = first, second, np.array(first.shape[::-1])
        ys, xs = (np.minimum(np.arange(_patches(n, stride)) * stride, max(n - _PATCH, 0)) for n in first.shape)
        self.grid = (len(ys), len(xs))
        self.corner = np.stack(np.broadcast_arrays(xs, ys[:, None]), -1).reshape(-1, 2)
        self.patch = self.pixels(first, self.corner, _PATCH) * _UNIT
        ahead = [self.pixels(first, self.corner + d, _PATCH) for d in ((1, 0), (0, 1))]
        behind = [self.pixels(first, self.corner - d, _PATCH) for d in ((1, 0), (0, 1))]
        self.slope = [a - b for a, b in zip(ahead, behind, strict=True)]
        self.tilt = [_total(g) for g in self.slope]
        (gx, gy), (sx, sy) = self.slope, self.tilt
        self.xx, self.yy = 64 * _total(gx * gx) - sx * sx, 64 * _total(gy * gy) - sy * sy
        self.xy = 64 * _total(gx * gy) - sx * sy

    @staticmethod
    def pixels(image: Any, corner: Any, n: int) -> Any:
        xs, ys = (np.clip(corner[:, d, None] + np.arange(n), 0, image.shape[1 - d] - 1) for d in (0, 1))
        return image[ys[:, :, None], xs[:, None, :]]

    def limited(self, flow: Any, which: Any) -> Any:
        corner = self.corner[which]
        low = np.maximum(-_FARTHEST, -_UNIT * (_PATCH + corner))
        return np.clip(flow, low, np.minimum(_FARTHEST, _UNIT * (self.size - corner)))

    def differences(self, flow: Any, which: Any) -> Any:
        at, part = self.corner[which] + (flow >> 4), (flow & 15)[:, :, None, None]
        p = self.pixels(self.second, at, _PATCH + 1)
        along = p[:, :, :-1] * (_UNIT - part[:, 0]) + p[:, :, 1:] * part[:, 0]
        mixed = along[:, :-1] * (_UNIT - part[:, 1]) + along[:, 1:] * part[:, 1]
        return (mixed >> 4) - self.patch[which]

    def cost(self, flow: Any, which: Any) -> tuple[Any, Any]:
        d = self.differences(flow, which)
        return 64 * _total(d * d) - _total(d) ** 2, d

    def descend(self, flow: Any, best: Any, which: Any, steps: int) -> None:
        """Improves what is in ``flow`` and ``best`` of the patches ``which``."""
        det = self.xx * self.yy - self.xy * self.xy
        which = which[det[which] > 0]
        d = self.differences(flow[which], which)
        for _ in range(steps):
            (gx, gy), (sx, sy) = (tuple(p[which] for p in pair) for pair in (self.slope, self.tilt))
            bx, by = (64 * _total(g * d) - s * _total(d) for g, s in ((gx, sx), (gy, sy)))
            xx, yy, xy = self.xx[which], self.yy[which], self.xy[which]
            b = np.stack([yy * bx - xy * by, xx * by - xy * bx], -1)
            step = np.clip(np.rint(2 * b.astype(np.float64) / det[which, None]), -128, 128)
            to = self.limited(flow[which] - step.astype(np.int64), which)
            found, d = self.cost(to, which)
            better = found < best[which]
            which, d = which[better], d[better]
            flow[which], best[which] = to[better], found[better]

    def begin(self, flow: Any, steps: int) -> tuple[Any, Any]:
        every = np.arange(len(self.corner))
        given = np.clip(np.nan_to_num(flow, nan=0, posinf=_FARTHEST, neginf=-_FARTHEST), -2047, 2047)
        if given.shape[:2] != self.first.shape:
            given = 2 * np.repeat(np.repeat(given, 2, axis=0), 2, axis=1)
        found, best = np.zeros_like(self.corner), np.full(len(every), np.iinfo(np.int64).max)
        for beside in ((0, 0), (-8, 0), (0, -8), (8, 0), (0, 8)):
            xs, ys = np.clip(self.corner + 4 + beside, 0, self.size - 1).T
            self._take(self.limited(np.rint(given[ys, xs] * _UNIT).astype(np.int64), every), found, best)
        self.descend(found, best, every, steps)
        return found, best

    def _take(self, flow: Any, found: Any, best: Any) -> Any:
        cost, _ = self.cost(flow, np.arange(len(flow)))
        better = cost < best
        found[better], best[better] = flow[better], cost[better]
        return better

    def share(self, own: Any, best: Any, steps: int) -> tuple[Any, Any]:
        found, best = own.copy(), best.copy()
        changed = np.zeros(len(own), bool)
        padded = np.pad(own.reshape(*self.grid, 2), ((1, 1), (1, 1), (0, 0)), "edge")
        for y, x in ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            flow = padded[1 + y : 1 + y + self.grid[0], 1 + x : 1 + x + self.grid[1]].reshape(-1, 2).copy()
            inside = np.zeros((self.grid[0] + 2, self.grid[1] + 2), bool)
            inside[1:-1, 1:-1] = True
            there = inside[1 + y : 1 + y + self.grid[0], 1 + x : 1 + x + self.grid[1]].ravel()
            there &= np.any(flow != own, axis=1)
            flow[~there] = own[~there]
            limited = self.limited(flow, np.arange(len(flow)))
            cost, _ = self.cost(limited, np.arange(len(flow)))
            better = (cost < best) & there
            found[better], best[better] = limited[better], cost[better]
            changed |= better
        self.descend(found, best, np.flatnonzero(changed), steps)
        return found, best

    def spread(self, flow: Any) -> Any:
        height, width = self.first.shape
        weight = 8192 // np.maximum(_UNIT, np.abs(self.differences(flow, np.arange(len(flow)))))
        total, sums = np.zeros((height + 8, width + 8)), np.zeros((height + 8, width + 8, 2))
        for (x, y), w, f in zip(self.corner, weight, flow, strict=True):
            total[y : y + 8, x : x + 8] += w
            sums[y : y + 8, x : x + 8] += w[..., None] * f
        return sums[:height, :width] / (_UNIT * total[:height, :width, None])


def _patches(n: int, stride: int) -> int:
    return 1 if n <= _PATCH else -(-(n - _PATCH) // stride) + 1


@reference(flow_search)
def _(first: Any, second: Any, flow: Any, *, stride: int, steps: int, rounds: int) -> Any:
    if first.size == 0:
        return np.zeros((*first.shape, 2))
    search = _Search(first.astype(np.int64), second.astype(np.int64), stride)
    found, best = search.begin(np.zeros((*first.shape, 2)) if flow is None else flow, steps)
    for _ in range(rounds):
        found, best = search.share(found, best, steps)
    return search.spread(found)


dtypes(flow_search, "uint8")
tolerance(flow_search, ulp=0.5)


def moved(fill: Fill, height: int, width: int, x: int, y: int) -> tuple[Any, Any]:
    """Two windows of one picture without sharp edges."""
    picture = fill(height + 4, width + 4).astype(np.int64)
    for axis in (0, 1):
        picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) >> 2
    picture = picture.astype(np.uint8)
    return picture[2:-2, 2:-2], picture[2 + y :, 2 + x :][:height, :width]


def given(height: int, width: int) -> Any:
    y, x = np.mgrid[:height, :width]
    return np.stack([np.sin(x / 5) * 2, np.cos(y / 7) * 1.5 + 0.3], -1).astype(np.float32)


@samples(flow_search)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(*moved(fill, 29, 43, 2, -1))
    yield sample(*moved(fill, 21, 19, -2, 1), given(11, 10), stride=3, steps=5, rounds=1)
    yield sample(fill(40, 12).T, fill(12, 40)[:, ::-1], 40 * given(12, 40), stride=8, rounds=3)
    yield sample(fill(5, 3), fill(5, 3), given(5, 3), stride=1)
    yield sample(fill(9, 9), fill(9, 9), np.full((9, 9, 2), np.nan, np.float32), steps=0, rounds=0)
    yield sample(fill(1, 20), fill(1, 20))
    yield sample(fill(0, 4), fill(0, 4))


@errors(flow_search)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(9, 10)
    yield ErrorCase(sample(x.astype(np.float32), x), DTypeError, "first has dtype float32; want uint8")
    yield ErrorCase(sample(x, x[1:]), ShapeError, "second has shape (8, 10) but first has (9, 10)")
    yield ErrorCase(sample(x, x, np.zeros((9, 10, 2))), DTypeError, "flow has dtype float64; want float32")
    yield ErrorCase(
        sample(x, x, np.zeros((9, 10), np.float32)), ShapeError, "flow has shape (9, 10); want (9, 10, 2) or (5, 5, 2)"
    )
    yield ErrorCase(sample(x, x, stride=9), AttrError, "stride=9; want 1 to 8")
    yield ErrorCase(sample(x, x, steps=-1), AttrError, "steps=-1; want 0 to 256")


@workloads(flow_search)
def _() -> Iterator[Workload]:
    yield Workload("VGA", ((480, 640), (480, 640), (480, 640, 2)), {}, ("vision",))


@fills(flow_search)
def _(fill: Fill, first: Any, second: Any, flow: Any, **attrs: Any) -> tuple[Any, Any, Any]:
    return *moved(fill, first[0], first[1], 2, -1), given(first[0], first[1])
