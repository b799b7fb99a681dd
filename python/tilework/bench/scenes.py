"""Pictures whose straight edges are known: polygons, thin bars and a chessboard that cover each other, discs as bait.

A scene is drawn from a seed: convex shapes of one brightness each lie on each other under uneven light; pixels on an
edge are averages of 64 samples, a Gaussian of 0.6 pixels is the lens, and white noise comes last. The truth is where a
straight edge can be seen: runs of at least 16 pixels whose sides differ by at least 24. Weaker and shorter runs are
neither right nor wrong. A homography moves the shapes themselves, so that no picture is sampled twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEAST_CONTRAST = 24.0
LEAST_LENGTH = 16.0
_PSF = 0.6
_STEP = 0.25  # pixels between looks along an edge


@dataclass(frozen=True)
class Scene:
    """A picture (H, W), uint8, and its edges: (N, 4) x1 y1 x2 y2, pixel centres at integers."""

    image: Array
    truth: Array
    ignored: Array


@dataclass(frozen=True)
class _Shape:
    corners: Array  # (N, 2) of a convex polygon, in order
    value: float
    straight: bool


def mapped(homography: Array, points: Array) -> Array:
    """Points (N, 2) where a homography (3, 3) puts them."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    flat: Array = moved[:, :2] / moved[:, 2:]
    return flat


def homography(seed: int, size: tuple[int, int]) -> Array:
    """A turn of up to 20 degrees, a scale of 0.78 to 1.16 and some perspective about the middle of a picture."""
    random = np.random.default_rng([seed, 77])
    height, width = size
    angle, scale = np.radians(random.uniform(-20, 20)), random.uniform(0.78, 1.16)
    turn = np.eye(3)
    turn[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[2, :2] = random.uniform(-1, 1, 2) * 0.15 / width
    middle, back = np.eye(3), np.eye(3)
    middle[:2, 2], back[:2, 2] = (-width / 2, -height / 2), (width / 2, height / 2)
    moved: Array = back @ turn @ middle
    return moved


def _ring(random: np.random.Generator, middle: Array, radius: float, count: int) -> Array:
    """Corners of a convex polygon on a stretched circle."""
    at = (np.arange(count) + random.uniform(0, 0.8, count)) * 2 * np.pi / count
    turn, stretch = random.uniform(0, np.pi), random.uniform(0.6, 1)
    points = radius * np.column_stack([np.cos(at), stretch * np.sin(at)])
    c, s = np.cos(turn), np.sin(turn)
    ring: Array = points @ np.array([[c, s], [-s, c]]) + middle
    return ring


def _value(random: np.random.Generator) -> float:
    return float(random.uniform(25, 230))


def _board(random: np.random.Generator, middle: Array) -> list[_Shape]:
    """A chessboard in perspective, with a margin."""
    rows, columns, cell = 4, 6, random.uniform(22, 34)
    dark, light = random.uniform(20, 70), random.uniform(150, 230)
    tilt = homography(int(random.integers(1 << 30)), (480, 640))
    tilt[2, :2] *= 4

    def quad(x0: float, y0: float, x1: float, y1: float) -> Array:
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - (columns / 2, rows / 2)
        return mapped(tilt, corners * cell + (320, 240)) - (320, 240) + middle

    shapes = [_Shape(quad(-0.7, -0.7, columns + 0.7, rows + 0.7), light, True)]
    for y in range(rows):
        shapes += [_Shape(quad(x, y, x + 1, y + 1), dark, True) for x in range(y % 2, columns, 2)]
    return shapes


def _shapes(random: np.random.Generator, size: tuple[int, int], board: bool) -> list[_Shape]:
    height, width = size
    extent = np.array([width, height])
    shapes: list[_Shape] = []
    for _ in range(10):
        middle = random.uniform(0.08, 0.92, 2) * extent
        shapes.append(
            _Shape(_ring(random, middle, random.uniform(35, 110), int(random.integers(3, 6))), _value(random), True)
        )
    around = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    for _ in range(2):
        middle, radius = random.uniform(0.1, 0.9, 2) * extent, random.uniform(20, 55)
        circle = middle + radius * np.column_stack([np.cos(around), np.sin(around)])
        shapes.append(_Shape(circle, _value(random), False))
    for _ in range(6):
        middle, angle = random.uniform(0.1, 0.9, 2) * extent, random.uniform(0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)]) * random.uniform(40, 130)
        across = np.array([-np.sin(angle), np.cos(angle)]) * random.uniform(5, 12) / 2
        corners = middle + np.array([along + across, along - across, -along - across, -along + across])
        shapes.append(_Shape(corners, _value(random), True))
    order = random.permutation(len(shapes))
    shapes = [shapes[i] for i in order]
    if board:
        shapes += _board(random, random.uniform(0.3, 0.7, 2) * extent)
    return shapes


def _inside(corners: Array, x: Array, y: Array) -> Array:
    """How far points lie inside a convex polygon; negative outside."""
    step = np.roll(corners, -1, 0) - corners
    turned = np.sign(np.sum(corners[:, 0] * np.roll(corners[:, 1], -1) - corners[:, 1] * np.roll(corners[:, 0], -1)))
    depth = np.full(np.broadcast(x, y).shape, np.inf)
    for (cx, cy), (dx, dy) in zip(corners, step, strict=True):
        depth = np.minimum(depth, turned * (dx * (y - cy) - dy * (x - cx)) / np.hypot(dx, dy))
    return depth


def _paint(image: Array, shape: _Shape) -> None:
    height, width = image.shape
    x0, y0 = np.maximum(np.floor(shape.corners.min(0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(shape.corners.max(0)).astype(int) + 2, (width, height))
    if x0 >= x1 or y0 >= y1:
        return
    y, x = np.mgrid[y0:y1, x0:x1]
    depth = _inside(shape.corners, x, y)
    cover = (depth > 0).astype(float)
    edge = np.abs(depth) < 0.75
    offset = (np.arange(8) - 3.5) / 8
    oy, ox = (o.ravel() for o in np.meshgrid(offset, offset))
    cover[edge] = (_inside(shape.corners, x[edge][:, None] + ox, y[edge][:, None] + oy) > 0).mean(1)
    image[y0:y1, x0:x1] += cover * (shape.value - image[y0:y1, x0:x1])


def _blurred(image: Array) -> Array:
    at = np.arange(-3, 4)
    taps = np.exp(-at * at / (2 * _PSF * _PSF))
    taps /= taps.sum()
    for axis in (0, 1):
        wide = np.pad(image, [(3, 3) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
        image = sum(t * np.take(wide, range(k, k + image.shape[axis]), axis) for k, t in enumerate(taps))
    return image


def _runs(shapes: list[_Shape], background: float, size: tuple[int, int], light: Any) -> tuple[Array, Array]:
    """What can be seen of each straight edge: the truth, and what is too weak or too short for it."""
    height, width = size
    found: list[list[float]] = []
    ignored: list[list[float]] = []
    for k, shape in enumerate(shapes):
        if not shape.straight:
            continue
        for a, b in zip(shape.corners, np.roll(shape.corners, -1, 0), strict=True):
            count = max(int(np.hypot(*(b - a)) / _STEP), 2)
            points = a + (b - a) * ((np.arange(count) + 0.5) / count)[:, None]
            x, y = points.T
            seen = (x > 0.5) & (y > 0.5) & (x < width - 1.5) & (y < height - 1.5)
            below = np.full(count, background)
            for other in shapes[:k]:
                below[_inside(other.corners, x, y) > 0] = other.value
            for other in shapes[k + 1 :]:
                seen &= _inside(other.corners, x, y) < 0
            contrast = (shape.value - below) * light(x, y)
            kind = np.where(seen, np.where(np.abs(contrast) >= LEAST_CONTRAST, np.sign(contrast) * 2, 1), 0)
            starts = np.flatnonzero(np.diff(kind, prepend=-9))
            for i, j in zip(starts, [*starts[1:], count], strict=True):
                if kind[i] == 0:
                    continue
                ends = a + (b - a) * (np.array([i, j]) / count)[:, None]
                good = abs(kind[i]) == 2 and np.hypot(*(ends[1] - ends[0])) >= LEAST_LENGTH
                (found if good else ignored).append([float(v) for v in ends.ravel()])
    return np.array(found).reshape(-1, 4), np.array(ignored).reshape(-1, 4)


def scene(
    seed: int,
    size: tuple[int, int] = (480, 640),
    *,
    noise: float = 0.0,
    board: bool = False,
    moved: Array | None = None,
) -> Scene:
    """Draws the scene of a seed, its shapes moved by a homography (3, 3) if there is one."""
    random = np.random.default_rng([seed, 5])
    background = _value(random)
    shapes = _shapes(random, size, board)
    slope = random.uniform(-0.25, 0.25, 2)
    height, width = size

    def light(x: Any, y: Any) -> Any:
        return 0.85 + slope[0] * (x / width - 0.5) + slope[1] * (y / height - 0.5)

    if moved is not None:
        shapes = [_Shape(mapped(moved, s.corners), s.value, s.straight) for s in shapes]
    image = np.full(size, background)
    for shape in shapes:
        _paint(image, shape)
    y, x = np.mgrid[:height, :width]
    image = _blurred(image * light(x, y))
    image += noise * np.random.default_rng([seed, 6, moved is not None]).normal(size=size)
    truth, ignored = _runs(shapes, background, size, light)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), truth, ignored)


# ------------------------------------------------------------------------------------------------------ scores

_NEAR = 2.0
_ALIKE = np.cos(np.radians(5))


def _frame(lines: Array) -> tuple[Array, Array, Array]:
    """Start, direction and length of each line."""
    step = lines[:, 2:] - lines[:, :2]
    length = np.hypot(*step.T)
    return lines[:, :2], step / np.maximum(length, 1e-9)[:, None], length


def _covered(lines: Array, by: Array) -> list[Array]:
    """For points one pixel apart on each line, whether a line of about its direction is near."""
    start, along, length = _frame(lines)
    other, direction, extent = _frame(by)
    answer = []
    for p, u, n in zip(start, along, length, strict=True):
        alike = np.abs(direction @ u) >= _ALIKE
        points = p + u * (np.arange(max(round(float(n)), 1)) + 0.5)[:, None]
        apart = points[:, None] - other[alike]
        at = np.einsum("pld,ld->pl", apart, direction[alike])
        across = apart[..., 0] * direction[alike, 1] - apart[..., 1] * direction[alike, 0]
        answer.append(((np.abs(across) <= _NEAR) & (at >= -1) & (at <= extent[alike] + 1)).any(1))
    return answer


def _pairs(lines: Array, truth: Array) -> list[tuple[int, int]]:
    """Lines and truths that are each other's: half their union overlaps, both ends of the overlap near; each once."""
    start, along, length = _frame(truth)
    candidates: list[tuple[float, int, int]] = []
    for i, line in enumerate(lines):
        ends = line.reshape(2, 2)
        own = (ends[1] - ends[0]) / max(float(np.hypot(*(ends[1] - ends[0]))), 1e-9)
        for j in np.flatnonzero(np.abs(along @ own) > 0.9):
            apart = ends - start[j]
            at = apart @ along[j]
            across = apart[:, 0] * along[j, 1] - apart[:, 1] * along[j, 0]
            low, high = sorted(at)
            overlap = min(high, length[j]) - max(low, 0.0)
            union = max(high, length[j]) - min(low, 0.0)
            if overlap <= 0 or overlap < 0.5 * union:
                continue
            slope = (across[1] - across[0]) / (at[1] - at[0] if at[1] != at[0] else 1e-9)
            edges = [across[0] + slope * (e - at[0]) for e in (max(low, 0.0), min(high, length[j]))]
            if max(map(abs, edges)) <= _NEAR:
                candidates.append((float(overlap / union), i, int(j)))
    used_lines: set[int] = set()
    used_truth: set[int] = set()
    answer: list[tuple[int, int]] = []
    for _, i, k in sorted(candidates, reverse=True):
        if i not in used_lines and k not in used_truth:
            used_lines.add(i)
            used_truth.add(k)
            answer.append((i, k))
    return answer


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _offset(line: Array, truth: Array) -> float:
    """Mean square distance of a line's middle part from the truth it belongs to."""
    start, along, _ = _frame(truth[None])
    points = line[:2] + (line[2:] - line[:2]) * np.linspace(0.1, 0.9, 9)[:, None]
    apart = points - start[0]
    return float(np.mean((apart[:, 0] * along[0, 1] - apart[:, 1] * along[0, 0]) ** 2))


def score(lines: Any, of: Scene) -> dict[str, float]:
    """Compares lines (N, 4) with the truth.

    ``one`` is F of lines that are one truth's alone, ``length`` F of the share of length near a truth, ``ends`` F of
    lines whose two ends are within 5 pixels; ``offset`` the root mean square distance from the truth and ``gap`` the
    median distance of ends, both of lines that are a truth's.
    """
    found = np.asarray(lines, dtype=np.float64).reshape(-1, 4)
    truth = of.truth
    on_truth = _covered(found, truth)
    on_ignored = _covered(found, of.ignored)
    pairs = _pairs(found, truth)
    matched = {i for i, _ in pairs}
    counted = [i for i in range(len(found)) if i in matched or on_ignored[i].mean() < 0.5]
    hits = len(pairs)
    precise, recalled = hits / max(len(counted), 1), hits / max(len(truth), 1)
    right = sum(int(c.sum()) for c in on_truth)
    wrong = sum(int((~(c | g)).sum()) for c, g in zip(on_truth, on_ignored, strict=True))
    seen = _covered(truth, found)
    covered = sum(int(c.sum()) for c in seen) / max(sum(c.size for c in seen), 1)
    gaps = []
    for i, j in pairs:
        ends, want = found[i].reshape(2, 2), truth[j].reshape(2, 2)
        same = np.hypot(*(ends - want).T)
        turned = np.hypot(*(ends - want[::-1]).T)
        gaps.append(same if same.sum() <= turned.sum() else turned)
    close = sum(1 for g in gaps if g.max() <= 5)
    return {
        "one": _harmonic(precise, recalled),
        "precision": precise,
        "recall": recalled,
        "length": _harmonic(right / max(right + wrong, 1), covered),
        "ends": _harmonic(close / max(len(counted), 1), close / max(len(truth), 1)),
        "offset": float(np.sqrt(np.mean([_offset(found[i], truth[j]) for i, j in pairs]))) if pairs else 0.0,
        "gap": float(np.median(np.concatenate(gaps))) if gaps else 0.0,
        "lines": float(len(found)),
        "truth": float(len(truth)),
    }


def repeatability(first: Any, second: Any, moved: Array, size: tuple[int, int]) -> float:
    """Share of lines of two pictures of one scene that are each other's, the second picture moved by a homography.

    2 m / (n1 + n2) over lines whose middle lies in both pictures.
    """
    height, width = size
    there = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    back = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    inverse = np.linalg.inv(moved)

    def within(lines: Array, by: Array) -> Array:
        points = mapped(by, (lines[:, :2] + lines[:, 2:]) / 2)
        seen: Array = np.asarray(np.all((points > 2) & (points < (width - 3, height - 3)), axis=1))
        return seen

    there, back = there[within(there, moved)], back[within(back, inverse)]
    carried = np.column_stack([mapped(moved, there[:, :2]), mapped(moved, there[:, 2:])])
    return 2 * len(_pairs(carried, back)) / max(len(carried) + len(back), 1)
