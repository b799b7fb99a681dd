"""Contours, lines, segments and trajectories: found where they were drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import vision

Image = np.ndarray[Any, Any]


# --------------------------------------------------------------------------------------------------- contours


def test_contours_nest() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:18, 3:27] = 255
    mask[5:15, 6:24] = 0
    mask[8:12, 10:13] = 1
    mask[9:11, 18] = 1
    ring, hole, *islands = vision.find_contours(mask)
    assert (ring.parent, ring.hole, hole.parent, hole.hole) == (None, False, 0, True)
    assert [(c.parent, c.hole) for c in islands] == [(1, False)] * 2
    assert ring.points.tolist()[:2] == [[3, 2], [3, 3]]  # down the left side: counterclockwise
    assert len(ring.points) == 2 * (16 + 24) - 4
    assert islands[1].points.tolist() == [[18, 9], [18, 10]]


def test_contours_are_those_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    for seed in range(60):
        random = np.random.default_rng(seed)
        height, width = (int(n) for n in random.integers(1, 60, 2))
        mask = (random.random((height, width)) < random.choice([0.1, 0.5, 0.8, 0.95])).astype(np.uint8)
        theirs, tree = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
        chains = [tuple(sorted(map(tuple, c.reshape(-1, 2).tolist()))) for c in theirs]
        parents = [int(row[3]) for row in (tree[0] if tree is not None else [])]
        want = sorted((c, chains[p] if p >= 0 else ()) for c, p in zip(chains, parents, strict=True))
        ours = vision.find_contours(mask)
        own = [tuple(sorted(map(tuple, c.points.tolist()))) for c in ours]
        got = sorted((own[i], own[c.parent] if c.parent is not None else ()) for i, c in enumerate(ours))
        assert got == want, f"seed {seed}"


def test_more_contours_than_there_was_room_for() -> None:
    mask = np.zeros((41, 61), np.uint8)
    mask[::2, ::2] = 1
    assert len(vision.find_contours(mask)) == 21 * 31


def test_a_polygon_comes_within_epsilon() -> None:
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([50 * np.cos(turn), 50 * np.sin(turn)], 1)
    polygon = vision.approx_polygon(circle, epsilon=1.0)
    assert 8 <= len(polygon) <= 32
    ends = np.roll(polygon, -1, 0)
    along = ends - polygon
    share = np.einsum("kpd,pd->kp", circle[:, None] - polygon, along) / (along**2).sum(1)
    nearest = polygon + np.clip(share, 0, 1)[..., None] * along
    assert np.sqrt(((circle[:, None] - nearest) ** 2).sum(2)).min(1).max() <= 1.0
    corners = np.array([[0, 0], [5, 0], [9, 0], [9, 4], [9, 9], [0, 9], [0, 5]])
    assert vision.approx_polygon(corners, epsilon=0.5).tolist() == [[0, 0], [9, 0], [9, 9], [0, 9]]
    assert vision.approx_polygon(corners[:4], epsilon=0.5, closed=False).tolist() == [[0, 0], [9, 0], [9, 4]]
    with pytest.raises(tw.ShapeError, match="points has shape"):
        vision.approx_polygon([1, 2, 3], epsilon=1)


# ------------------------------------------------------------------------------------------- lines, keypoints


def drawn(height: int, width: int, *segments: tuple[int, int, int, int]) -> Image:
    image = np.zeros((height, width), np.uint8)
    for x1, y1, x2, y2 in segments:
        n = max(abs(x2 - x1), abs(y2 - y1)) + 1
        image[np.rint(np.linspace(y1, y2, n)).astype(int), np.rint(np.linspace(x1, x2, n)).astype(int)] = 255
    return image


def test_lines_are_found_where_they_were_drawn() -> None:
    image = drawn(100, 150, (10, 20, 140, 20), (30, 5, 30, 95), (10, 10, 90, 90))
    lines = vision.hough_lines(image, 60)
    found = {(round(rho), round(float(np.degrees(angle)))) for rho, angle, _ in lines}
    assert {(20, 90), (30, 0), (0, 135)} <= found
    assert lines[0, 2] == 131
    assert len(vision.hough_lines(image, 60, max_lines=1)) == 1
    assert vision.hough_lines(0 * image, 5).shape == (0, 3)


def test_segments_are_found_where_they_were_drawn() -> None:
    want = [(10, 20, 60, 20), (90, 20, 140, 20), (30, 35, 30, 95), (50, 40, 100, 90), (120, 90, 140, 50)]
    got = vision.hough_segments(drawn(100, 150, *want), 30, angles=360, min_length=30, max_gap=3)
    assert len(got) == len(want)
    for segment in want:
        ends = np.array(segment).reshape(2, 2)
        apart = [min(np.abs(e - ends).max(), np.abs(e[::-1] - ends).max()) for e in got.reshape(-1, 2, 2)]
        assert min(apart) <= 2, segment


def test_keypoints_are_peaks() -> None:
    response = np.zeros((20, 30), np.uint8)
    response[3, 4], response[3, 5], response[10, 20], response[0, 29] = 90, 80, 200, 50
    places, values = vision.find_keypoints(response, 40)
    assert places.tolist() == [[20, 10], [4, 3], [29, 0]]
    assert values.tolist() == [200, 90, 50]
    assert len(vision.find_keypoints(response, 40, max_points=2)[0]) == 2
    with pytest.raises(tw.AttrError, match="radius=0; want 1 or more"):
        vision.find_keypoints(response, 40, radius=0)


# ----------------------------------------------------------------------------------------------- trajectories


def film(count: int, *paths: Any) -> list[Image]:
    y, x = np.mgrid[:240, :320]
    noise = np.random.default_rng(0)
    frames = []
    for t in range(count):
        frame = 90 + x // 8 + noise.integers(-3, 4, x.shape)
        for path in paths:
            cx, cy = path(t)
            frame = np.where((x - cx) ** 2 + (y - cy) ** 2 <= 25, 230, frame)
        frames.append(frame.astype(np.uint8))
    return frames


def test_a_ball_flies_along_a_parabola() -> None:
    def ball(t: int) -> tuple[float, float]:
        return 20 + 14 * t, 200 - 22 * t + 1.1 * t * t

    def wanderer(t: int) -> tuple[float, float]:
        return 250 + 14 * (t % 2), 30 + 15 * (t // 2 % 2)

    detector = vision.TrajectoryDetector(length=5)
    seen: dict[int, Any] = {}
    for frame in film(18, ball, wanderer):
        for trajectory in detector.feed(frame):
            seen[trajectory.number] = trajectory
    assert len(seen) == 1
    (found,) = seen.values()
    want = np.array([ball(t) for t in range(18)])
    assert len(found.points) >= 14
    first = int(np.argmin(np.abs(want[:, 0] - found.points[0, 0])))
    np.testing.assert_allclose(found.points, want[first : first + len(found.points)], atol=0.8)
    # y = 200 - 22 t + 1.1 t^2 with t = (x - 20) / 14
    a, b = 1.1 / 196, -22 / 14 - 40 * 1.1 / 196
    np.testing.assert_allclose(found.coefficients[:2], (a, b), rtol=0.05)
    assert np.abs(found.projected - found.points).max() < 1
    assert 4 < found.radius < 6.5


def test_frames_of_one_film_have_one_size() -> None:
    detector = vision.TrajectoryDetector()
    detector.feed(np.zeros((4, 5), np.uint8))
    with pytest.raises(tw.ShapeError, match="want \\(4, 5\\), that of the frame before"):
        detector.feed(np.zeros((5, 4), np.uint8))
    with pytest.raises(tw.AttrError, match="length=4; want 5 or more"):
        vision.TrajectoryDetector(4)
