"""Filters of pictures beside OpenCV: the same bits where they are promised; and what is made of filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import vision

Image = np.ndarray[Any, Any]


def opencv() -> Any:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not cv2.__version__.startswith("5."):
        pytest.skip(f"OpenCV is {cv2.__version__}; the bits are those of 5.0")
    return cv2


def pictures(count: int) -> Any:
    for seed in range(count):
        random = np.random.default_rng(seed)
        height, width = (int(n) for n in random.integers(1, 150, 2))
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        yield random, image if seed % 2 else image[..., 0].copy()


def test_filters_have_the_bits_of_opencv() -> None:
    cv2 = opencv()
    for random, image in pictures(40):
        height, width = image.shape[:2]
        pairs = [(vision.median_blur(image, ksize=k), cv2.medianBlur(image, k)) for k in (3, 5, 7, 15, 17)]
        kh, kw = (2 * int(n) + 1 for n in random.integers(0, 9, 2))
        pairs.append((vision.box_blur(image, kernel=(kh, kw)), cv2.blur(image, (kw, kh))))
        pairs.append((vision.pyramid_down(image), cv2.pyrDown(image)))
        pairs.append((vision.pyramid_up(image), cv2.pyrUp(image)))
        if image.ndim == 2:
            pairs += zip((vision.integral(image), vision.integral_squares(image)), cv2.integral2(image), strict=True)
        else:
            pairs.append((vision.rgb_to_gray(image), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))
        ones = np.ones((kh, kw), np.uint8)
        for operation in ("open", "close", "gradient", "tophat", "blackhat"):
            code = getattr(cv2, f"MORPH_{operation.upper()}")
            got = vision.morphology(image, operation, kernel=(kh, kw))  # type: ignore[arg-type]
            pairs.append((got, cv2.morphologyEx(image, code, ones)))
        size = (int(random.integers(1, 200)), int(random.integers(1, 200)))
        nearest = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)
        pairs.append((vision.resize(image, size=size, interpolation="nearest"), nearest))
        even = np.ascontiguousarray(image[: height // 2 * 2, : width // 2 * 2])
        if even.size:
            half = (height // 2, width // 2)
            pairs.append((vision.resize(even, size=half), cv2.resize(even, half[::-1])))
            area = cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA)
            pairs.append((vision.resize(even, size=half, interpolation="area"), area))
        for i, (got, want) in enumerate(pairs):
            np.testing.assert_array_equal(got, want.reshape(got.shape), f"{image.shape}, filter {i}")


def test_resize_is_near_opencv() -> None:
    cv2 = opencv()
    for random, image in pictures(20):
        size = (int(random.integers(1, 200)), int(random.integers(1, 200)))
        for name, code in (("linear", 1), ("cubic", 2), ("lanczos", 4)):
            got = vision.resize(image, size=size, interpolation=name)  # type: ignore[arg-type]
            want = cv2.resize(image, size[::-1], interpolation=code).reshape(got.shape)
            assert np.max(np.abs(got.astype(int) - want)) <= 1, name


def test_sep_filter_is_two_filters() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 31), np.uint8)
    along, down = np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32)
    np.testing.assert_array_equal(vision.sep_filter(image, along, down), vision.sobel(image, dx=0, dy=1))
    with pytest.raises(tw.ShapeError, match="down has shape \\(1, 3\\); want one axis"):
        vision.sep_filter(image, along, down[None])


def test_statistics_are_those_of_numpy() -> None:
    image = np.random.default_rng(1).integers(20, 200, (33, 47, 3), np.uint8)
    assert vision.minmax(image) == (image.min(), image.max())
    assert vision.mean_variance(image) == pytest.approx((image.mean(), image.var()), rel=1e-12)
    for deep in (image.astype(np.uint16) * 300, image.astype(np.float32) / 7 - 9):
        assert vision.minmax(deep) == (deep.min(), deep.max())
        wide = deep.astype(np.float64)
        assert vision.mean_variance(deep) == pytest.approx((wide.mean(), wide.var()), rel=1e-12)
    for empty in (image[:0], image[:0].astype(np.float32)):
        with pytest.raises(tw.ShapeError, match="minmax: image has shape"):
            vision.minmax(empty)


def test_a_matched_histogram_is_that_of_the_other() -> None:
    random = np.random.default_rng(2)
    image = random.permutation(256).astype(np.uint8).repeat(4).reshape(32, 32)
    like = random.integers(60, 90, (32, 32), np.uint8)
    matched = vision.match_histogram(image, like)
    np.testing.assert_allclose(np.sort(matched, None), np.sort(like, None), atol=1)
    assert (np.diff(matched.ravel()[np.argsort(image, None, "stable")].astype(int)) >= 0).all()
    np.testing.assert_array_equal(vision.match_histogram(image, image), image)


def test_morphology_names_what_it_knows() -> None:
    with pytest.raises(tw.AttrError, match="operation='opening'; want one of open, close, gradient, tophat, blackhat"):
        vision.morphology(np.zeros((2, 2), np.uint8), "opening")  # type: ignore[arg-type]


def masks(count: int) -> Any:
    for seed in range(count):
        random = np.random.default_rng(seed)
        height, width = (int(n) for n in random.integers(1, 90, 2))
        mask = random.random((height, width)) < random.choice([0.02, 0.3, 0.5, 0.7, 0.98])
        yield random, mask.astype(np.uint8) * int(random.integers(1, 256))


def test_distances_are_exact() -> None:
    for _, mask in masks(30):
        got, want = vision.distance_transform(mask), tw.distance_transform.reference(mask)
        np.testing.assert_array_equal(got, want)


def test_distances_are_exact_where_zeros_are_far() -> None:
    for seed in range(12):
        random = np.random.default_rng(seed)
        height, width = (int(n) for n in random.integers(1, 600, 2))
        slope = random.integers(0, 300) + np.abs(np.arange(width) - random.integers(0, width)) * random.choice(
            [0, 0.3, 1]
        )
        mask = (np.arange(height)[:, None] < slope) | (
            random.random((height, width)) < 1 - 10.0 ** -random.integers(2, 6)
        )
        got = vision.distance_transform(mask.astype(np.uint8))
        np.testing.assert_array_equal(got, np.float32(tw.distance_transform.reference(mask.astype(np.uint8))))


def test_labels_count_what_opencv_counts() -> None:
    cv2 = opencv()
    for _, mask in masks(60):
        for connectivity in (4, 8):
            labels, count = vision.label(mask, connectivity=connectivity)
            others, theirs = cv2.connectedComponents(mask, connectivity=connectivity)
            assert count == others - 1
            pairs = np.unique(np.stack([labels.ravel(), theirs.ravel()]), axis=1)
            assert pairs.shape[1] == len(np.unique(labels)), "components differ"


def test_warps_are_near_opencv() -> None:
    cv2 = opencv()
    for seed in range(8):
        random = np.random.default_rng(seed)
        image = vision.gaussian_blur(random.integers(0, 256, (60, 80), np.uint8), sigma=2.0)
        turn = float(random.uniform(-1, 1))
        matrix = np.array([[np.cos(turn), -np.sin(turn), 30], [np.sin(turn), np.cos(turn), -9], [1e-3, -1e-3, 1]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pairs = [
            (vision.warp_affine(image, matrix[:2]), cv2.warpAffine(image, matrix[:2], (80, 60), flags=flags)),
            (vision.warp_perspective(image, matrix), cv2.warpPerspective(image, matrix, (80, 60), flags=flags)),
        ]
        for got, want in pairs:
            inside = vision.erode(((got > 0) & (want > 0)).astype(np.uint8), kernel=5) > 0
            assert np.max(np.abs(got.astype(int) - want)[inside], initial=0) <= 2


def test_a_turn_by_a_right_angle_moves_pixels_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    quarter = np.array([[0.0, -1.0, 8.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    want = np.rot90(image)[::1]
    np.testing.assert_array_equal(vision.warp_affine(image, quarter[:2], size=(9, 7)), want)
    np.testing.assert_array_equal(vision.warp_perspective(image, quarter * -0.1, size=(9, 7)), want)


def test_warps_of_many_tiles_have_the_bits_of_the_reference() -> None:
    for seed in range(24):
        random = np.random.default_rng(seed)
        height, width, *size = (int(n) for n in random.integers(1, 200, 4))
        image = random.integers(0, 256, (height, width, 3), np.uint8)[:, :: seed % 3 - 1 or 2]
        image = image if seed % 4 else image[..., 1]
        turn, scale = random.uniform(-4, 4), 2.0 ** random.uniform(-2.5, 2.5)
        matrix = np.eye(3)
        matrix[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale
        matrix[:2, 2] = random.uniform(-20, 200, 2)
        matrix[2, :2] = random.normal(size=2) * 10.0 ** random.uniform(-6, -2)
        if seed % 3 == 0:  # places half way between two that there are
            matrix = np.rint(matrix * 256) / 256
        how: Any = {"size": tuple(size), "border": 9.0, "interpolation": "linear"}
        for op, m in ((tw.warp_affine, matrix[:2]), (tw.warp_perspective, matrix)):
            want = op.reference(image, m, **how)
            np.testing.assert_array_equal(op(image, m, **how), want, f"{op.name}, seed {seed}")


def test_bilateral_of_wide_pictures_has_the_bits_of_the_reference() -> None:
    random = np.random.default_rng(5)
    image = (random.integers(0, 30, (70, 1000)) + np.arange(1000) // 5).astype(np.uint8)
    for sigma in (3.0, 30.0, 80.0, 1000.0):
        how: Any = {"d": 7, "sigma_color": sigma, "sigma_space": 2.0}
        np.testing.assert_array_equal(vision.bilateral(image, **how), tw.bilateral.reference(image, **how))


def test_bilateral_is_near_opencv() -> None:
    cv2 = opencv()
    for random, image in pictures(8):
        plane = vision.gaussian_blur(image, sigma=1.5)
        plane = np.ascontiguousarray(plane if plane.ndim == 2 else plane[..., 1])
        color, space = (float(v) for v in random.uniform(5, 60, 2))
        got = vision.bilateral(plane, d=5, sigma_color=color, sigma_space=space)
        want = cv2.bilateralFilter(plane, 5, color, space)
        assert np.max(np.abs(got.astype(int) - want)) <= 3


def test_deep_medians_of_many_tiles_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(5)
    for dtype in ("uint16", "float32"):
        for k, shape in ((7, (150, 140)), (51, (70, 66))):
            image = random.integers(0, 400, shape).astype(dtype)
            want = ndimage.median_filter(image, k, mode="nearest")
            np.testing.assert_array_equal(vision.median_blur(image, ksize=k), want)


def _windows(x: Image, radius: int) -> Image:
    """The windows around pixels, in the last axis."""
    wide, size = np.pad(x.astype(np.float64), radius, "reflect"), 2 * radius + 1
    return np.lib.stride_tricks.sliding_window_view(wide, (size, size)).reshape(*x.shape, -1)


def _guided(image: Image, guide: Image, radius: int, epsilon: float) -> Image:
    """Windows one by one: the linear function of the guide nearest to image (H, W), means of them."""
    x = np.stack([_windows(guide[..., c], radius) for c in range(guide.shape[2])], -2)
    p = _windows(image, radius)
    mean_x, mean_p = x.mean(-1, keepdims=True), p.mean(-1, keepdims=True)
    spread = (x - mean_x) @ (x - mean_x).swapaxes(-1, -2) / p.shape[-1] + epsilon * np.eye(guide.shape[2])
    slope = np.linalg.solve(spread, (x - mean_x) @ (p - mean_p)[..., None] / p.shape[-1])[..., 0]
    offset = mean_p[..., 0] - (slope * mean_x[..., 0]).sum(-1)
    means = [_windows(slope[..., c], radius).mean(-1) for c in range(guide.shape[2])]
    return (np.stack(means, -1) * guide).sum(-1) + _windows(offset, radius).mean(-1)


@pytest.mark.parametrize("guide_shape", [None, (24, 31), (24, 31, 3)])
@pytest.mark.parametrize("shape", [(24, 31), (24, 31, 3)])
def test_guided_filter_is_its_formula(shape: tuple[int, ...], guide_shape: tuple[int, ...] | None) -> None:
    random = np.random.default_rng(3)
    image = random.integers(0, 256, shape, np.uint8)
    guide = None if guide_shape is None else random.random(guide_shape, np.float32) * 255
    got = vision.guided_filter(image, guide, radius=3, epsilon=400.0)
    channels, colours = (x if x.ndim == 3 else x[..., None] for x in (image, image if guide is None else guide))
    want = [_guided(channels[..., c], colours.astype(np.float64), 3, 400.0) for c in range(channels.shape[2])]
    np.testing.assert_allclose(got, np.stack(want, -1).reshape(shape), atol=0.05)
    out = np.empty(shape, np.float32)
    assert vision.guided_filter(image, guide, radius=3, epsilon=400.0, out=out) is out
    np.testing.assert_array_equal(out, got)


def test_guided_filter_is_that_of_opencv_inside() -> None:
    filters = pytest.importorskip("cv2.ximgproc")
    random = np.random.default_rng(4)
    image, guide = random.integers(0, 256, (40, 50), np.uint8), random.integers(0, 256, (40, 50, 3), np.uint8)
    for p, x in ((image, guide), (guide, image), (guide, guide)):
        want = filters.guidedFilter(x, p, 2, 300.0, dDepth=5)
        got = vision.guided_filter(p, x, radius=2, epsilon=300.0)
        np.testing.assert_allclose(got[4:-4, 4:-4], want[4:-4, 4:-4], atol=0.05)


def test_guided_filter_says_what_is_wrong() -> None:
    image = np.zeros((24, 31), np.uint8)
    with pytest.raises(tw.AttrError, match="epsilon=0; want a number above 0"):
        vision.guided_filter(image, radius=3, epsilon=0)
    with pytest.raises(tw.ShapeError, match=r"image has shape \(24, 31, 1\); want \(H, W\) or \(H, W, 3\)"):
        vision.guided_filter(image[..., None], radius=3, epsilon=1)
    with pytest.raises(tw.ShapeError, match=r"guide has shape \(24, 30\); want \(24, 31\) or \(24, 31, 3\)"):
        vision.guided_filter(image, image[:, 1:], radius=3, epsilon=1)


_PICTURE = np.zeros((9, 8), np.uint8)
_MADE_OF_OPS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "detect_edges": ([], {"sigma": None}),
    "detect_lines": ([], {"sigma": "x", "bridge": -1}),
    "draw_lines": ([np.zeros((1, 4))], {"color": (1, 2, 300)}),
    "find_contours": ([], {}),
    "find_keypoints": ([3], {"radius": None, "max_points": 0}),
    "guided_filter": ([], {"radius": 1, "epsilon": [1.0]}),
    "hough_lines": ([3], {"rho": 0.0, "angles": 0, "max_lines": 0}),
    "hough_segments": ([3], {"rho": (1,), "min_length": None}),
    "match_histogram": ([_PICTURE], {}),
    "mean_variance": ([], {}),
    "minmax": ([], {}),
    "morphology": (["open"], {"kernel": (1, 2, 3)}),
    "mps_canny": ([], {"low": None, "sigma": np.nan}),
    "mps_edlines": ([], {"sigma": np.inf, "max_lines": -1}),
    "optical_flow": ([_PICTURE], {"preset": []}),
    "overlay_edges": ([_PICTURE], {"color": None}),
    "threshold_otsu": ([], {}),
}


@pytest.mark.parametrize("name", _MADE_OF_OPS)
def test_functions_made_of_ops_say_what_is_wrong_in_their_own_name(name: str) -> None:
    others, attrs = _MADE_OF_OPS[name]
    needed = {k: v for k, v in attrs.items() if k in ("radius", "epsilon") and name == "guided_filter"}
    for image in (None, "x", [[1]], _PICTURE > 0, np.zeros((3, 3, 2), np.complex64)):
        with pytest.raises(tw.Error, match=f"^{name}: .+") as raised:
            getattr(vision, name)(image, *others, **needed)
        assert "\n" not in str(raised.value)
    for attr, value in attrs.items():
        if value != 1:
            with pytest.raises(tw.Error, match=f"^{name}: {attr}"):
                getattr(vision, name)(_PICTURE, *others, **(needed | {attr: value}))


def test_histograms_of_large_pictures_count_every_pixel() -> None:
    random = np.random.default_rng(5)
    rows = np.repeat(np.arange(256, dtype=np.uint8), 400)
    pictures = [random.integers(0, 256, (701, 999), np.uint8), random.integers(0, 2, (300, 307), np.uint8), rows]
    slopes = np.arange(1 << 19) // 512  # blocks that lie near each other, to both ends, and some that do not
    pictures += [(slopes + random.integers(0, n, slopes.shape)).astype(np.uint8) for n in (2, 20, 34, 50, 66, 120)]
    for image in (*pictures, np.full(1 << 20, 255, np.uint8), rows.reshape(256, 400).T[:, 1:], rows[::-2]):
        counts = np.bincount(image.ravel(), minlength=256)
        for threads in (1, 2):
            with tw.threads(threads):
                np.testing.assert_array_equal(vision.histogram(image), counts)


@pytest.mark.parametrize("bend", [1e-6, 5e-5, 1e-4, 1e-3, 5e-3, 0.03])
def test_warp_perspective_is_exact_however_much_it_bends(bend: float) -> None:
    random = np.random.default_rng(6)
    for shape, size in (((150, 190), (70, 130)), ((90, 40, 3), (65, 1)), ((300, 20), (9, 200))):
        image = random.integers(0, 256, shape, np.uint8)
        matrix = np.array([[1.1, 0.2, -3.0], [-0.1, 0.9, 5.0], [bend, -bend / 3, 1.0]]) * 7.3
        got = vision.warp_perspective(image, matrix, size=size)
        np.testing.assert_array_equal(got, vision.warp_perspective.reference(image, matrix, size=size))
