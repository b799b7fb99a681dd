"""Things that fly: blobs that move along parabolas over the frames of a film."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tilework import ops
from tilework.arrays import Array
from tilework.devices import to_host
from tilework.errors import AttrError, ShapeError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """A blob on its way: where it was seen, and the parabola y = a x^2 + b x + c nearest to that."""

    number: int  # the same from frame to frame
    frames: tuple[int, ...]
    points: Floats  # (K, 2), x and y, one per frame
    coefficients: Floats  # a, b, c
    projected: Floats  # (K, 2), the points on the parabola
    radius: float  # of a disc as large as the blob, over the last frames


@dataclass
class _Track:
    number: int
    frames: list[int] = field(default_factory=list)
    points: list[Floats] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def predicted(self, frame: int) -> Floats:
        """Where the blob is expected: on the parabola in time through its last points, or straight on."""
        n = min(len(self.points), 5)
        if n == 1:
            return self.points[-1]
        times = np.array(self.frames[-n:], np.float64) - frame
        fit = np.polynomial.polynomial.polyfit(times, np.array(self.points[-n:]), min(n - 1, 2))
        return np.asarray(fit[0], np.float64)


class TrajectoryDetector:
    """Finds blobs that move along parabolas: feed it the frames (H, W), uint8, of a still camera, one after the other.

    What a frame shows is what differs by more than ``threshold`` both from the frame before it and from the one
    after it, so that it is known one frame late; its components of ``min_area`` to ``max_area`` pixels are blobs. A
    blob continues the track whose next place, on the parabola in time through its last points, is nearest, within
    ``reach`` pixels (three times that for a track of one point). A track is a trajectory from ``length`` points on,
    if it moved at least ``reach`` pixels and its points lie within ``tolerance`` pixels of a parabola in the mean.
    At least 5 points are asked for, as by Apple's VNDetectTrajectoriesRequest.
    """

    def __init__(
        self,
        length: int = 5,
        *,
        threshold: int = 24,
        min_area: int = 6,
        max_area: int = 4000,
        reach: float = 12.0,
        tolerance: float = 2.0,
    ) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 5:
            raise AttrError(f"TrajectoryDetector: length={length!r}; want 5 or more", argument="length")
        if not 1 <= min_area <= max_area:
            wrong = f"min_area={min_area} and max_area={max_area}"
            raise AttrError(f"TrajectoryDetector: {wrong}; want 1 or more, in order", argument="min_area")
        if not (reach > 0 and tolerance > 0):
            wrong = f"reach={reach} and tolerance={tolerance}"
            raise AttrError(f"TrajectoryDetector: {wrong}; want numbers above 0", argument="reach")
        self._length, self._threshold, self._areas = length, threshold, (min_area, max_area)
        self._reach, self._tolerance = reach, tolerance
        self._last: Array | None = None
        self._changed: Any = None  # what differed between the two frames before the last
        self._frame = -1
        self._next = 0
        self._tracks: list[_Track] = []

    def feed(self, frame: Array) -> list[Trajectory]:
        """Takes the next frame (H, W), uint8, and returns the trajectories of the frame before it."""
        if len(frame.shape) != 2 or (self._last is not None and tuple(frame.shape) != tuple(self._last.shape)):
            wanted = "(H, W)" if self._last is None else f"{tuple(self._last.shape)}, that of the frame before"
            shape = tuple(frame.shape)
            raise ShapeError(f"TrajectoryDetector: frame has shape {shape}; want {wanted}", argument="frame")
        before, self._last = self._last, frame.copy()
        if before is None:
            return []
        moved = ops.threshold(ops.absdiff(frame, before), value=float(self._threshold))
        changed, self._changed = self._changed, moved if isinstance(moved, np.ndarray) else to_host(moved)
        self._frame += 1
        if changed is not None:
            self._continue(self._blobs(changed & self._changed))
        return [t for t in map(self._trajectory, self._tracks) if t]

    def _blobs(self, mask: Any) -> list[tuple[Floats, float]]:
        """Centres and areas of the components of a mask."""
        labels, count = ops.label(mask)
        n = int(count) + 1
        flat = labels.ravel()
        area = np.bincount(flat, minlength=n)
        y, x = np.divmod(np.arange(flat.size), labels.shape[1])
        centres = np.stack([np.bincount(flat, x, n), np.bincount(flat, y, n)], 1) / np.maximum(area, 1)[:, None]
        low, high = self._areas
        return [(centres[k], float(area[k])) for k in range(1, n) if low <= area[k] <= high]

    def _continue(self, blobs: list[tuple[Floats, float]]) -> None:
        pairs = []
        for t, track in enumerate(self._tracks):
            expected = track.predicted(self._frame)
            reach = self._reach * (3 if len(track.points) == 1 else 1)
            for b, (centre, _) in enumerate(blobs):
                apart = float(np.hypot(*(centre - expected)))
                if apart <= reach:
                    pairs.append((apart, t, b))
        taken: set[int] = set()
        continued: set[int] = set()
        for _, t, b in sorted(pairs):
            if b in taken or t in continued:
                continue
            taken.add(b)
            continued.add(t)
            self._add(self._tracks[t], blobs[b])
        self._tracks = [track for t, track in enumerate(self._tracks) if t in continued]
        for b, blob in enumerate(blobs):
            if b not in taken:
                track = _Track(self._next)
                self._next += 1
                self._add(track, blob)
                self._tracks.append(track)

    def _add(self, track: _Track, blob: tuple[Floats, float]) -> None:
        track.frames.append(self._frame)
        track.points.append(blob[0])
        track.areas.append(blob[1])

    def _trajectory(self, track: _Track) -> Trajectory | None:
        if len(track.points) < self._length:
            return None
        points = np.array(track.points)
        x, y = points.T
        if np.ptp(x) < self._reach and np.ptp(y) < self._reach:
            return None
        # Centred, so that the sums are well conditioned.
        middle = float(x.mean())
        order = 2 if np.ptp(x) > 1 else 0
        fit = np.append(np.polynomial.polynomial.polyfit(x - middle, y, order), np.zeros(2 - order))
        off = y - np.polynomial.polynomial.polyval(x - middle, fit)
        if float(np.sqrt((off * off).mean())) > self._tolerance:
            return None
        a, b, c = fit[2], fit[1] - 2 * fit[2] * middle, fit[0] - fit[1] * middle + fit[2] * middle * middle
        projected = np.stack([x, y - off], 1)
        radius = float(np.sqrt(np.mean(track.areas[-5:]) / np.pi))
        return Trajectory(track.number, tuple(track.frames), points, np.array([a, b, c]), projected, radius)
