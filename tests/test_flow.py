"""Optical flow: a known movement is found, whatever the preset; colours of flows; bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import vision


def _pair(x: int, y: int) -> tuple[Any, Any]:
    """Two windows of one smooth picture, of which the second moved by (x, y)."""
    picture = np.random.default_rng(3).integers(0, 256, (160, 200), np.uint8)
    picture = vision.equalize_hist(vision.gaussian_blur(picture, sigma=2.0))
    return picture[20:140, 20:180], picture[20 - y : 140 - y, 20 - x : 180 - x]


@pytest.mark.parametrize(("preset", "bound"), [("fast", 0.5), ("medium", 0.2), ("fine", 0.1)])
def test_a_movement_is_found(preset: Any, bound: float) -> None:
    flow = vision.optical_flow(*_pair(7, -4), preset=preset)
    assert flow.shape == (120, 160, 2)
    assert flow.dtype == np.float32
    apart = np.hypot(flow[..., 0] - 7, flow[..., 1] + 4)[16:-16, 16:-16]
    assert float(np.mean(apart)) <= bound


def test_pictures_of_sixteen_bits_and_floats_have_the_same_flow() -> None:
    pair = [picture.copy() for picture in _pair(3, 2)]
    pair[0][0, :2] = pair[1][0, :2] = 0, 255
    want = vision.optical_flow(*pair)
    np.testing.assert_array_equal(vision.optical_flow(*(np.uint16(257) * p.astype(np.uint16) for p in pair)), want)
    np.testing.assert_array_equal(vision.optical_flow(*((p / np.float32(255)).astype(np.float32) for p in pair)), want)
    with pytest.raises(ValueError, match="second holds NaN"):
        vision.optical_flow(pair[0].astype(np.float32), np.full_like(pair[1], np.nan, np.float32))


def test_threads_do_not_change_bits() -> None:
    pair = _pair(3, 2)
    with tw.threads(1):
        want = vision.optical_flow(*pair)
    with tw.threads(3):
        np.testing.assert_array_equal(vision.optical_flow(*pair), want)


def test_no_movement_is_no_flow() -> None:
    first, _ = _pair(0, 0)
    assert float(np.max(np.abs(vision.optical_flow(first, first)))) < 1e-3


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 60), (13, 5)])
def test_small_pictures(shape: tuple[int, int]) -> None:
    picture = np.zeros(shape, np.uint8)
    for preset in ("fast", "medium"):
        flow = vision.optical_flow(picture, picture, preset=preset)  # type: ignore[arg-type]
        np.testing.assert_array_equal(flow, np.zeros((*shape, 2), np.float32))


def test_the_stereo_pair_of_a_motorcycle() -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the pictures")
    left, right, disparity = data.stereo_motorcycle()
    first, second = (vision.rgb_to_gray(picture) for picture in (left, right))
    known = np.isfinite(disparity) & (disparity > 0)
    flow = vision.optical_flow(first, second)
    apart = np.hypot(flow[..., 0] + np.where(known, disparity, 0), flow[..., 1])[known]
    assert float(np.mean(apart)) <= 2.6


def test_colours_of_directions() -> None:
    flow = np.array([[[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0], [np.nan, 0]]], np.float32)
    want = [[255, 0, 0], [128, 255, 0], [0, 255, 255], [128, 0, 255], [255, 255, 255], [0, 0, 0]]
    np.testing.assert_allclose(vision.draw_flow(flow)[0], want, atol=1)
    np.testing.assert_allclose(vision.draw_flow(flow, longest=2)[0, 0], [255, 128, 128], atol=1)


def test_bad_input_is_refused() -> None:
    picture = np.zeros((40, 50), np.uint8)
    with pytest.raises(tw.errors.AttrError, match="preset='best'; want one of fast, medium, fine"):
        vision.optical_flow(picture, picture, preset="best")  # type: ignore[arg-type]
    with pytest.raises(tw.errors.ShapeError):
        vision.optical_flow(picture, picture[1:])
    with pytest.raises(tw.errors.ShapeError, match="want \\(H, W, 2\\)"):
        vision.draw_flow(np.zeros((3, 4), np.float32))
    with pytest.raises(tw.errors.AttrError, match="longest=0"):
        vision.draw_flow(np.zeros((3, 4, 2), np.float32), longest=0)
