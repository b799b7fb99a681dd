"""Lines: on scenes whose edges are known, in noise, on round things, and what was wrong in a call."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import cli, vision
from tilework.bench.pictures import moved_photo
from tilework.bench.scenes import homography, repeatability, scene, score
from tilework.ops.canny import photo

Image = np.ndarray[Any, Any]

# From the system's randomness, once; the detector was made on others.
SEEDS = (651062063, 1127712503, 1229660012, 2575566999, 4111548671, 915475536)


@pytest.fixture(scope="module", params=[0.0, 5.0, 15.0])
def mean_score(request: pytest.FixtureRequest) -> tuple[float, dict[str, float]]:
    noise = float(request.param)
    scenes = [scene(seed, noise=noise) for seed in SEEDS]
    scores = [score(vision.detect_lines(s.image), s) for s in scenes]
    return noise, {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}


# (one-to-one F, length F, F of ends within 5 pixels, offset in pixels)
BARS = {0.0: (0.89, 0.965, 0.82, 0.15), 5.0: (0.89, 0.965, 0.80, 0.18), 15.0: (0.84, 0.93, 0.60, 0.22)}


def test_lines_are_those_of_the_scene(mean_score: tuple[float, dict[str, float]]) -> None:
    noise, mean = mean_score
    one, length, ends, offset = BARS[noise]
    assert mean["one"] >= one
    assert mean["length"] >= length
    assert mean["ends"] >= ends
    assert mean["offset"] <= offset


def test_scores_know_right_from_wrong() -> None:
    s = scene(3)
    halves = np.concatenate([s.truth, s.truth])
    halves[: len(s.truth), 2:] = halves[len(s.truth) :, :2] = (s.truth[:, :2] + s.truth[:, 2:]) / 2
    assert score(s.truth, s)["one"] == score(s.truth, s)["length"] == 1.0
    assert score(halves, s)["one"] < 0.75
    assert score(halves, s)["length"] > 0.99
    assert score(np.concatenate([s.truth, s.truth]), s)["one"] == pytest.approx(2 / 3, abs=0.01)
    anywhere = np.random.default_rng(1).uniform(0, 480, (60, 4))
    assert score(anywhere, s)["one"] < 0.05
    assert score(np.zeros((0, 4)), s)["one"] == 0.0


def test_lines_come_again_in_a_moved_scene() -> None:
    size = (480, 640)
    shares = []
    for seed in SEEDS[:3]:
        moved = homography(seed, size)
        first, second = scene(seed, noise=5.0), scene(seed, noise=5.0, moved=moved)
        shares.append(repeatability(vision.detect_lines(first.image), vision.detect_lines(second.image), moved, size))
    assert np.mean(shares) >= 0.87


@pytest.mark.parametrize("name", ["china", "flower"])
def test_lines_come_again_in_a_moved_photo(name: str) -> None:
    image = photo(f"{name}.jpg", 427, 640)
    if image is None:
        pytest.skip("the photos are scikit-learn's, which is missing")
    size = image.shape[0], image.shape[1]
    shares = []
    for seed in SEEDS:
        moved = homography(seed, size)
        other = moved_photo(image, moved, seed)
        shares.append(repeatability(vision.detect_lines(image), vision.detect_lines(other), moved, size))
    assert np.mean(shares) >= {"china": 0.65, "flower": 0.48}[name]


@pytest.mark.parametrize("noise", [5.0, 15.0, 30.0])
def test_noise_has_no_lines(noise: float) -> None:
    found = []
    for seed in SEEDS[:4]:
        picture = 128 + noise * np.random.default_rng(seed).normal(size=(480, 640))
        found.append(len(vision.detect_lines(np.clip(picture, 0, 255).astype(np.uint8))))
    assert np.mean(found) <= 1


def disc(radius: float) -> Image:
    y, x = np.mgrid[:200, :220]
    depth = radius - np.hypot(y - 99.3, x - 108.6)
    return (60 + 120 * np.clip(depth + 0.5, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("radius", [12.0, 25.0, 50.0, 85.0])
def test_round_things_have_no_chords(radius: float) -> None:
    assert len(vision.detect_lines(disc(radius))) == 0


@pytest.mark.parametrize("noise", [0.0, 5.0, 15.0])
def test_large_round_things_have_no_chords(noise: float) -> None:
    y, x = np.mgrid[:1080, :1920]
    found = []
    for radius in (40, 60, 85, 100, 115, 130, 150, 200, 300, 450):
        random = np.random.default_rng(radius)
        depth = radius - np.hypot(x - 960 - random.random(), y - 540 - random.random())
        image = 80 + 100 * np.clip(depth + 0.5, 0, 1) + noise * random.normal(size=depth.shape)
        found.append(len(vision.detect_lines(np.clip(np.rint(image), 0, 255).astype(np.uint8))))
    assert max(found) <= 3
    assert np.mean(found) <= 0.5


def test_short_parts_of_round_things_are_no_lines() -> None:
    y, x = np.mgrid[:40, :40]
    for turn in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        depth = 60 - np.hypot(y - 19.7 - 60 * np.sin(turn), x - 19.2 - 60 * np.cos(turn))
        assert len(vision.detect_lines((60 + 120 * np.clip(depth + 0.5, 0, 1)).astype(np.uint8))) == 0


def test_an_edge_that_bends_a_little_between_corners_is_a_line() -> None:
    y, x = np.mgrid[:120, :160]
    depth = np.minimum(300 - np.hypot(y - 335.3, x - 79.6), 24 - np.abs(x - 79.6))
    lines = vision.detect_lines((60 + 120 * np.clip(depth + 0.5, 0, 1)).astype(np.uint8))
    flat = lines[np.abs(np.sin(lines.angle)) < 0.1]
    np.testing.assert_allclose(flat.length, [47], atol=3)


def square() -> Image:
    """Dark within bright, its edges at 29.5 and 89.5 across and 19.5 and 69.5 down."""
    image = np.full((90, 120), 200, np.uint8)
    image[20:70, 30:90] = 40
    return image


def test_lines_of_a_square() -> None:
    lines = vision.detect_lines(square())
    assert len(lines) == 4
    for x1, y1, x2, y2 in lines:
        across = (np.array([x1, x2]), (29.5, 89.5)) if abs(x1 - x2) < 1 else (np.array([y1, y2]), (19.5, 69.5))
        assert np.abs(across[0] - min(across[1], key=lambda v: abs(v - across[0][0]))).max() < 0.05
    for corner in ((29.5, 19.5), (89.5, 19.5), (29.5, 69.5), (89.5, 69.5)):
        near = np.hypot(*(lines.segments.reshape(-1, 2) - corner).T)
        assert np.sort(near)[1] < 1
    np.testing.assert_allclose(np.sort(lines.length), [50, 50, 60, 60], atol=1)
    assert (lines.width > 1).all()
    assert (lines.width < 5).all()
    assert (np.diff(lines.nfa) <= 0).all()


def test_the_brighter_side_is_on_the_right() -> None:
    image = scene(11, noise=3.0).image.astype(np.float64)
    for x1, y1, x2, y2 in vision.detect_lines(image.astype(np.uint8)):
        length = np.hypot(x2 - x1, y2 - y1)
        right = np.array([-(y2 - y1), x2 - x1]) / length
        middle = np.array([x1 + x2, y1 + y2]) / 2
        (ax, ay), (bx, by) = (np.rint(middle + side * 2.5 * right).astype(int) for side in (1, -1))
        assert image[ay, ax] > image[by, bx]


def test_a_bar_has_two_edges() -> None:
    image = np.full((100, 160), 90, np.uint8)
    image[50:55, 20:140] = 150
    lines = vision.detect_lines(image)
    long = lines[lines.length > 100]
    np.testing.assert_allclose(np.sort(long.segments[:, 1]), [49.5, 54.5], atol=0.2)
    assert sorted(np.sign(np.cos(long.angle)).tolist()) == [-1, 1]


def test_a_line_bridges_a_gap() -> None:
    image = np.full((60, 160), 60, np.uint8)
    image[30:] = 160
    image[:, 77:82] = 110
    lines, apart = (vision.detect_lines(image, bridge=gap, sigma=0.5) for gap in (9, 0))
    assert (np.abs(lines.segments[:, 1] - 29.5) < 1).sum() <= (np.abs(apart.segments[:, 1] - 29.5) < 1).sum()


def test_threads_tiers_and_layout_do_not_change_lines() -> None:
    image = scene(21, noise=8.0, board=True).image
    want = vision.detect_lines(image)
    assert len(want) > 50
    before = tw.isa()
    try:
        for tier in tw.tiers():
            tw.set_isa(tier)
            for threads in (1, 2):
                with tw.threads(threads):
                    np.testing.assert_array_equal(vision.detect_lines(image), want)
    finally:
        tw.set_isa(before)
    wide = np.zeros((480, 2000), np.uint8)
    wide[:, 100:740] = image
    np.testing.assert_array_equal(vision.detect_lines(wide[:, 100:740]), want)
    np.testing.assert_array_equal(vision.detect_lines(np.asfortranarray(image)), want)
    np.testing.assert_array_equal(vision.detect_lines(np.repeat(image[..., None], 3, 2)), want)
    image.flags.writeable = False
    np.testing.assert_array_equal(vision.detect_lines(image), want)


def test_other_types_are_divided_into_the_range_of_bytes() -> None:
    image = scene(22).image
    image[0, :2] = 0, 255
    want = vision.detect_lines(image)
    np.testing.assert_array_equal(vision.detect_lines(image.astype(np.uint16) * 257), want)
    np.testing.assert_array_equal(vision.detect_lines(image.astype(np.float32) / 255), want)
    assert len(vision.detect_lines(np.full((40, 40), 3.5, np.float32))) == 0


def test_chains_follow_edges() -> None:
    edges = vision.detect_edges(square())
    assert edges.map.shape == (90, 120)
    assert sum(len(c) for c in edges.chains) == np.count_nonzero(edges.map)
    for chain in edges.chains:
        assert np.abs(np.diff(chain, axis=0)).max() == 1
        assert len(chain) >= 10
    assert np.count_nonzero(edges.map) == pytest.approx(2 * (50 + 60), rel=0.05)


def test_lines_are_an_array() -> None:
    lines = vision.detect_lines(square())
    assert np.asarray(lines).shape == (4, 4)
    assert np.asarray(lines).dtype == np.float32
    assert len(lines[:2]) == 2
    assert len(lines[lines.length > 55]) == 2
    assert len(lines[0]) == 1
    assert len(vision.detect_lines(square(), max_lines=1)) == 1


def test_apples_defaults_find_a_square() -> None:
    lines = vision.mps_edlines(square(), gradient_threshold=0.1)
    assert len(lines) >= 4
    np.testing.assert_array_equal(lines.segments, np.rint(lines.segments))


@pytest.mark.parametrize(
    "shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 40), (40, 1), (2, 2), (3, 40), (5, 5), (9, 9, 3)]
)
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_any_size_works(shape: tuple[int, ...], sigma: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    assert np.asarray(vision.detect_lines(image, sigma=sigma, min_length=2, validate=False)).shape[1] == 4
    assert vision.detect_edges(image, sigma=sigma, min_length=1).map.shape == shape[:2]


def test_noise_of_any_kind_is_survived() -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        shape = tuple(int(n) for n in random.integers(1, 60, 2))
        image = (
            random.integers(0, 256, shape).astype(np.uint8)
            if seed % 2
            else random.choice([0, 255], shape).astype(np.uint8)
        )
        lines = vision.detect_lines(
            image,
            sigma=float(random.choice([0, 0.5, 1])),
            gradient_threshold=float(random.choice([1, 30, 2047])),
            scan_interval=int(random.integers(1, 70)),
            min_length=2,
            fit_error=float(random.uniform(0.1, 10)),
            bridge=int(random.integers(0, 60)),
            validate=False,
        )
        assert np.isfinite(np.asarray(lines)).all()
        ends = lines.segments.reshape(-1, 2)
        assert (ends >= -3).all()
        assert (ends <= np.array(shape[::-1]) + 2).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sigma": -1.0}, "detect_lines: sigma=-1; want 0"),
        ({"sigma": float("nan")}, "detect_lines: sigma=nan"),
        ({"gradient_threshold": 0.0}, "detect_lines: gradient_threshold=0.0; want 'auto' or 1 to 2047"),
        ({"gradient_threshold": float("nan")}, "gradient_threshold=nan"),
        ({"gradient_threshold": "some"}, "gradient_threshold=some"),
        ({"anchor_threshold": -1}, "anchor_threshold=-1; want 0 to 2047"),
        ({"scan_interval": 0}, "scan_interval=0; want 1 or more"),
        ({"min_length": float("inf")}, "min_length=inf; want 'auto' or at least 2 pixels"),
        ({"fit_error": float("nan")}, "fit_error=nan; want 0.1 to 10 pixels"),
        ({"bridge": -1}, "bridge=-1; want 0 to 1000 pixels"),
        ({"log_eps": float("nan")}, "log_eps=nan; want a finite number"),
        ({"max_lines": -1}, "max_lines=-1; want None or a number of lines"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        vision.detect_lines(square(), **settings)


def test_wrong_pictures_are_named() -> None:
    x = square()
    for wrong in (x.astype(np.float64), x.astype(bool)):
        with pytest.raises(TypeError, match=r"detect_lines: image has dtype .*; want uint8, uint16 or float32"):
            vision.detect_lines(wrong)
    with pytest.raises(TypeError, match="detect_lines: image has dtype complex128"):
        vision.detect_lines(x.astype(complex))
    for shape in ((5,), (5, 6, 2), (5, 6, 4), (1, 5, 6, 3)):
        with pytest.raises(ValueError, match="detect_lines: image has shape"):
            vision.detect_lines(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="NaN or infinity"):
        vision.detect_lines(np.full((9, 9), np.nan, np.float32))


def test_drawing() -> None:
    drawn = vision.draw_lines(square(), [[10, 40, 60, 40], [5, 5, 5, 60.5], [-(2.0**30), 7, 2.0**30, 9]])
    assert drawn.shape == (90, 120, 3)
    assert (drawn[40, 12:59] == (255, 60, 0)).all()
    assert (drawn[40, 10] == (0, 195, 255)).all()
    assert (drawn[8, 30] == (255, 60, 0)).all()
    assert vision.draw_lines(square(), np.zeros((0, 4))).shape == (90, 120, 3)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vision.draw_lines(square(), [[0, 0, np.nan, 1]])
    with pytest.raises(ValueError, match=r"lines has shape \(1, 3\); want \(N, 4\)"):
        vision.draw_lines(square(), [[0, 0, 1]])
    marked = vision.overlay_edges(square(), vision.canny(square(), 50, 150))
    assert (marked[40, 29] == (255, 60, 0)).all() or (marked[40, 30] == (255, 60, 0)).all()


# ------------------------------------------------------------------------------------------------ the command

needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


@needs_pillow
def test_command_draws_the_lines_of_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image as Pillow

    Pillow.fromarray(square()).save(tmp_path / "in.png")
    target, numbers = tmp_path / "out.png", tmp_path / "out.json"
    assert cli.main(["lines", str(tmp_path / "in.png"), "-o", str(target), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out
    assert "120 x 90, 4 lines" in said
    assert tw.isa() in said
    assert np.asarray(Pillow.open(target)).shape == (90, 120, 3)
    written = json.loads(numbers.read_text())
    assert len(written["lines"]) == 4
    assert set(written["lines"][0]) == {"x1", "y1", "x2", "y2", "width", "angle", "length", "nfa", "strength"}


@needs_pillow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.png", "-o", "out.png"], "absent.png cannot be read as a picture"),
        (["text.png", "-o", "out.png"], "text.png cannot be read as a picture"),
        (["good.png", "-o", "no/such/out.png"], "cannot be written"),
        (["good.png", "-o", "out.png", "--json", "no/such/out.json"], "out.json cannot be written"),
        (["good.png", "-o", "out.png", "--sigma", "nan"], "sigma=nan"),
        (["good.png", "-o", "out.png", "--min-length", "-3"], "min_length=-3"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image as Pillow

    monkeypatch.chdir(tmp_path)
    Pillow.fromarray(square()).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not a picture")
    assert cli.main(["lines", *arguments]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


@pytest.mark.opencl
def test_a_device_has_the_lines_of_the_cpu() -> None:
    pytest.importorskip("pyopencl", reason="pyopencl is not installed")
    try:
        device = tw.to_device(scene(23, noise=4.0).image, "opencl")
    except tw.Error as error:
        pytest.skip(f"no OpenCL device: {error}")
    np.testing.assert_array_equal(vision.detect_lines(device), vision.detect_lines(scene(23, noise=4.0).image))
