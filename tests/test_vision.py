"""Edges: equal to OpenCV's bit for bit, the whole chain however long, and a command that says what went wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import cli, vision

Image = np.ndarray[Any, Any]


def picture(random: np.random.Generator, height: int, width: int, channels: int) -> Image:
    """Noise, soft noise, or polygons: few edges, many, and all at once."""
    shape = (height, width, channels)
    image = random.integers(0, 256, shape)
    kind = random.integers(3)
    if kind == 1:
        for axis in (0, 1):
            image = (image + np.roll(image, 1, axis) + np.roll(image, 2, axis)) // 3
    if kind == 2:
        y, x = np.mgrid[:height, :width]
        image = random.integers(-4, 5, shape) + 20
        for _ in range(6):
            a, b, c = random.normal(size=3)
            image = image + (a * (x - width / 2) + b * (y - height / 2) > 9 * c)[..., None] * random.integers(70)
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image[..., 0].copy() if channels == 1 else image


def case(seed: int) -> tuple[Image, dict[str, Any]]:
    """A picture and settings, drawn from a seed."""
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(1, 80, 2))
    ksize = int(random.choice([3, 5, 7]))
    low = float(random.uniform(0, 200) * (1, 5.2, 27)[ksize // 2 - 1] * random.choice([0.3, 1]))
    settings = {
        "low": low,
        "high": low + float(random.uniform(0, 300)),
        "sigma": float(random.choice([0, 0, 0.6, 1, 1.5, 2.3, 4])),
        "ksize": ksize,
        "l2": bool(random.integers(2)),
    }
    return picture(random, height, width, int(random.choice([1, 3]))), settings


def opencv(image: Image, low: float, high: float, sigma: float, ksize: int, l2: bool) -> Image:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not cv2.__version__.startswith("5."):
        pytest.skip(f"OpenCV is {cv2.__version__}; the bits are those of 5.0")
    if sigma > 0:
        size = round(6 * sigma + 1) | 1
        image = cv2.GaussianBlur(image, (size, size), sigma)
    return np.asarray(cv2.Canny(image, low, high, apertureSize=ksize, L2gradient=l2))


@pytest.mark.parametrize("seed", range(40))
def test_edges_are_those_of_the_reference(seed: int) -> None:
    image, settings = case(seed)
    np.testing.assert_array_equal(tw.canny(image, **settings), tw.canny.reference(image, **settings))


def assert_edges_are_those_of_opencv(seeds: range) -> None:
    for seed in seeds:
        image, settings = case(seed)
        edges = tw.canny(image, **settings)
        np.testing.assert_array_equal(edges, opencv(image, **settings), f"seed {seed}: {settings}")


def test_edges_are_those_of_opencv() -> None:
    assert_edges_are_those_of_opencv(range(200))


@pytest.mark.slow
@pytest.mark.parametrize("tier", tw.tiers())
def test_ten_thousand_pictures_have_the_edges_of_opencv(tier: str) -> None:
    before = tw.isa()
    tw.set_isa(tier)
    try:
        for threads in (1, 2):
            with tw.threads(threads):
                assert_edges_are_those_of_opencv(range(1000, 11000))
    finally:
        tw.set_isa(before)


def test_gradients_give_the_edges_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    for seed in range(60):
        random = np.random.default_rng(seed)
        dx, dy = random.integers(-3000, 3001, (2, 31, 70)).astype(np.int16)
        for l2 in (False, True):
            want = cv2.Canny(dx, dy, 500, 2500, L2gradient=l2)
            np.testing.assert_array_equal(vision.canny_gradients(dx, dy, 500, 2500, l2=l2), want)


def spiral(size: int) -> Image:
    """One path of weak gradient from the rim to the middle, three pixels of nothing between its turns."""
    path = np.zeros((size, size), bool)
    y, x, dy, dx = 1, 1, 0, 1
    path[y, x] = True
    while True:
        far = path[y + 4 * dy, x + 4 * dx] if 0 <= y + 4 * dy < size and 0 <= x + 4 * dx < size else True
        if far or not (0 < y + dy < size - 1 and 0 < x + dx < size - 1):
            dy, dx = dx, -dy
            if path[y + dy, x + dx] or path[y + 4 * dy, x + 4 * dx]:
                return path
        y, x = y + dy, x + dx
        path[y, x] = True


@pytest.mark.parametrize(("size", "threads"), [(45, 1), (701, 1), (701, 2)])
def test_one_strong_pixel_carries_a_chain_to_its_end(size: int, threads: int) -> None:
    path = spiral(size)
    # A step sideways along the path has its gradient upright, so that no neighbour across it is as large.
    level = path & (np.roll(path, 1, 1) | np.roll(path, -1, 1))
    dx, dy = (np.where(part, 100, 0).astype(np.int16) for part in (path & ~level, level))
    start = tuple(np.argwhere(path)[0])
    (dy if dy[start] else dx)[start] = 200
    with tw.threads(threads):
        edges = vision.canny_gradients(dx, dy, 50, 150)
        everything = vision.canny_gradients(dx, dy, 50, 50)
    np.testing.assert_array_equal(edges, everything)
    assert np.count_nonzero(edges) > 0.9 * np.count_nonzero(path)
    if size < 100:  # the reference takes a pass for each pixel of the chain
        np.testing.assert_array_equal(edges, tw.canny_gradients.reference(dx, dy, low=50, high=150))


def test_apples_defaults_find_a_square() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    image[10:30, 12:37] = 200, 220, 180
    edges = vision.mps_canny(image)
    assert edges.shape == (40, 50)
    assert set(np.unique(edges)) == {0, 255}
    assert edges[20, 11:14].any()
    assert not edges[20, 20:30].any()
    for deep in (image.astype(np.uint16) * 257, image.astype(np.float32) / 255):
        np.testing.assert_array_equal(vision.mps_canny(deep, sigma=0.0), vision.mps_canny(image, sigma=0.0))
    with pytest.raises(tw.DTypeError, match="mps_canny: image has dtype float64; want uint8, uint16 or float32"):
        vision.mps_canny(image.astype(np.float64))


# ------------------------------------------------------------------------------------------------ the command

needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


@needs_pillow
def test_command_writes_the_edges_of_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image as Pillow

    image = picture(np.random.default_rng(3), 40, 60, 3)
    Pillow.fromarray(image).save(tmp_path / "in.png")
    arguments = ["edges", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--low", "20", "--sigma", "0"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "60 x 40" in said
    assert tw.isa() in said
    want = tw.canny(image, low=20, high=150)
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "out.png")), want)
    assert f"{np.count_nonzero(want)} edge pixels" in said


@needs_pillow
@pytest.mark.parametrize(
    ("source", "target", "options", "text"),
    [
        ("absent.png", "out.png", [], "absent.png cannot be read as a picture"),
        ("text.png", "out.png", [], "text.png cannot be read as a picture"),
        ("good.png", "no/such/out.png", [], "cannot be written"),
        ("good.png", "out.nothing", [], "cannot be written"),
        ("good.png", "out.png", ["--low", "300"], "low=300 exceeds high=150"),
        ("good.png", "out.png", ["--sigma", "nan"], "sigma=nan"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(
    source: str, target: str, options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image as Pillow

    Pillow.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not a picture")
    assert cli.main(["edges", str(tmp_path / source), "-o", str(tmp_path / target), *options]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not (tmp_path / target).exists()


# ------------------------------------------------------------------------------------------------ filters


def test_filters_are_those_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    kinds = ("binary", "binary_inv", "trunc", "tozero", "tozero_inv")
    for seed in range(60):
        random = np.random.default_rng(seed)
        image = picture(random, *(int(n) for n in random.integers(1, 70, 2)), (1, 3)[seed % 2])
        dx, dy = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1))[seed % 6]
        pairs = [
            (vision.sobel(image, dx=dx, dy=dy, ksize=size), cv2.Sobel(image, cv2.CV_16S, dx, dy, ksize=size))
            for size in (3, 5, 7)
        ]
        pairs += [(vision.laplacian(image, ksize=k), cv2.Laplacian(image, cv2.CV_16S, ksize=k)) for k in (1, 3)]
        pairs.append((vision.scharr(image, dx=1, dy=0), cv2.Scharr(image, cv2.CV_16S, 1, 0)))
        if image.ndim == 2:
            pairs += zip(vision.spatial_gradient(image), cv2.spatialGradient(image), strict=True)
        sigma = float(random.uniform(0.1, 5))
        size = round(6 * sigma + 1) | 1
        pairs.append((vision.gaussian_blur(image, sigma=sigma), cv2.GaussianBlur(image, (size, size), sigma)))
        height, width = (int(n) for n in random.integers(1, 20, 2))
        ones = np.ones((height, width), np.uint8)
        pairs.append((vision.dilate(image, kernel=(height, width)), cv2.dilate(image, ones)))
        pairs.append((vision.erode(image, kernel=(height, width)), cv2.erode(image, ones)))
        if image.ndim == 2:
            pairs.append((vision.equalize_hist(image), cv2.equalizeHist(image)))
            pairs.append((vision.histogram(image), cv2.calcHist([image], [0], None, [256], [0, 256]).ravel()))
            pairs.append((vision.threshold_otsu(image), cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)[0]))
        for i, kind in enumerate(kinds):
            value = float(random.uniform(-20, 280))
            got = vision.threshold(image, value=value, high=200, kind=kind)  # type: ignore[arg-type]
            pairs.append((got, cv2.threshold(image, value, 200, i)[1]))
        for i, (got, want) in enumerate(pairs):
            np.testing.assert_array_equal(got, want, f"seed {seed}, filter {i}")
