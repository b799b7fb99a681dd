"""Pictures beside OpenCV in one process: how fast edges, lines, filters and flow are, and how right lines and flow."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework import settings, vision
from tilework.bench import table
from tilework.bench.problems import BenchError
from tilework.bench.scenes import homography, repeatability, scene, score
from tilework.ops.canny import photo

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

_VGA, _HD = (480, 640), (1080, 1920)
_FEWEST = 5  # rounds
_BLOCK = 4e-3  # seconds of calls of which the fastest counts


@dataclass(frozen=True)
class Race:
    """The same by tilework and by OpenCV: what their time over ours, and ours on one thread over two, should be."""

    what: str
    picture: str
    ours: Call
    theirs: Call
    bar: float
    gain: float | None = None
    equal: bool = True  # whether results have the same bits


@dataclass(frozen=True)
class Judged:
    """Something measured, by tilework and by OpenCV where it has it, and what it should reach or not exceed."""

    what: str
    ours: float
    theirs: float | None
    bar: float
    least: bool = False  # whether less is better

    @property
    def good(self) -> bool:
        """Whether the bar is reached."""
        return self.ours <= self.bar if self.least else self.ours >= self.bar


def opencv() -> Any:
    """OpenCV with its contributed modules."""
    if importlib.util.find_spec("cv2") is None:
        raise BenchError("pictures are measured beside OpenCV, which is missing; pip install 'tilework[bench]'")
    return importlib.import_module("cv2")


# ------------------------------------------------------------------------------------------------------ speed


def _edge_lines(cv2: Any, image: Array) -> Any:
    """Lines by OpenCV's EDLines (N, 4)."""
    drawing = cv2.ximgproc.createEdgeDrawing()
    drawing.detectEdges(image)
    found = drawing.detectLines()
    return np.zeros((0, 4)) if found is None else found.reshape(-1, 4)


def _blurred_edges(cv2: Any, image: Array) -> Any:
    return cv2.Canny(cv2.GaussianBlur(image, (7, 7), 1.0), 50, 150)


def races(cv2: Any) -> Iterator[Race]:
    """What is timed, picture by picture."""
    pictures = {
        f"{name} {size}": photo(f"{name}.jpg", *shape)
        for name in ("china", "flower")
        for size, shape in (("VGA", _VGA), ("HD", _HD))
    }
    if any(picture is None for picture in pictures.values()):
        raise BenchError("the pictures are scikit-learn's, which is missing; pip install scikit-learn")
    pictures["scene VGA"] = scene(101, noise=5.0).image
    for name, bar in (("china VGA", 10.0), ("china HD", 8.0), ("flower VGA", 6.0)):
        yield _edges(cv2, name, pictures[name], bar)
    x = pictures["china VGA"]
    yield Race(
        "canny, sigma 1", "china VGA", lambda: vision.canny(x, 50, 150, sigma=1), lambda: _blurred_edges(cv2, x), 8.0
    )
    for name, bar in (("china VGA", 6.0), ("scene VGA", 6.0), ("china HD", 5.0)):
        yield _lines(cv2, name, pictures[name], bar)
    yield from _filters(cv2, pictures["china HD"])


def _edges(cv2: Any, name: str, x: Array, bar: float) -> Race:
    gain = 1.7 if name.endswith("HD") else None
    return Race("canny", name, lambda: vision.canny(x, 50, 150), lambda: cv2.Canny(x, 50, 150), bar, gain)


def _lines(cv2: Any, name: str, x: Array, bar: float) -> Race:
    return Race("detect_lines", name, lambda: vision.detect_lines(x), lambda: _edge_lines(cv2, x), bar, equal=False)


def _filters(cv2: Any, x: Array) -> Iterator[Race]:
    turn = np.array([[0.98, 0.17, -90.0], [-0.17, 0.98, 160.0], [1e-5, -2e-5, 1.0]])
    inverse, size = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR, x.shape[::-1]
    bright, edges = (x > 100).astype(np.uint8) * 255, vision.canny(x, 50, 150)
    ones = np.ones((3, 3), np.uint8)
    calls: list[tuple[str, float, bool, Call, Call]] = [
        ("median_blur 15", 3, True, lambda: vision.median_blur(x, ksize=15), lambda: cv2.medianBlur(x, 15)),
        (
            "distance_transform",
            3,
            False,
            lambda: vision.distance_transform(bright),
            lambda: cv2.distanceTransform(bright, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
        ),
        (
            "warp_affine",
            3,
            False,
            lambda: vision.warp_affine(x, turn[:2]),
            lambda: cv2.warpAffine(x, turn[:2], size, flags=inverse),
        ),
        (
            "warp_perspective",
            3,
            False,
            lambda: vision.warp_perspective(x, turn),
            lambda: cv2.warpPerspective(x, turn, size, flags=inverse),
        ),
        (
            "bilateral 5",
            3,
            False,
            lambda: vision.bilateral(x, d=5, sigma_color=30.0, sigma_space=2.0),
            lambda: cv2.bilateralFilter(x, 5, 30, 2),
        ),
        (
            "hough_lines",
            3,
            False,
            lambda: vision.hough_lines(edges, threshold=400),
            lambda: cv2.HoughLines(edges, 1, np.pi / 180, 400),
        ),
        ("equalize_hist", 3, True, lambda: vision.equalize_hist(x), lambda: cv2.equalizeHist(x)),
        ("label", 3, False, lambda: vision.label(bright), lambda: cv2.connectedComponents(bright)),
        ("threshold", 1, True, lambda: vision.threshold(x, value=127.0), lambda: cv2.threshold(x, 127, 255, 0)[1]),
        ("resize, half", 1, True, lambda: vision.resize(x, size=(540, 960)), lambda: cv2.resize(x, (960, 540))),
        ("resize, 0.73", 1, False, lambda: vision.resize(x, size=(788, 1402)), lambda: cv2.resize(x, (1402, 788))),
        ("integral", 1, True, lambda: vision.integral(x), lambda: cv2.integral(x)),
        ("dilate 3x3", 1, True, lambda: vision.dilate(x), lambda: cv2.dilate(x, ones)),
        ("median_blur 3", 1, True, lambda: vision.median_blur(x), lambda: cv2.medianBlur(x, 3)),
    ]
    for what, bar, equal, ours, theirs in calls:
        yield Race(what, "china HD", ours, theirs, bar, 1.6, equal)


def _fastest(call: Call) -> float:
    begin = now = time.perf_counter()
    fastest = float("inf")
    while now - begin < _BLOCK:
        call()
        now, before = time.perf_counter(), now
        fastest = min(fastest, now - before)
    return fastest


def interleaved(ours: Call, theirs: Call, seconds: float) -> tuple[float, float]:
    """Our seconds and their time over ours, the medians of rounds in which both take turns."""
    ours()
    theirs()
    taken: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(taken) < _FEWEST or time.perf_counter() - begin < seconds:
        taken.append((_fastest(ours), _fastest(theirs)))
    return statistics.median(a for a, _ in taken), statistics.median(b / a for a, b in taken)


def _with_threads(count: int, call: Call) -> Call:
    def limited() -> None:
        with settings.threads(count):
            call()

    return limited


def timed(race: Race, cv2: Any, counts: Sequence[int], seconds: float) -> list[str]:
    """A line of the table of times."""
    if race.equal:
        np.testing.assert_array_equal(race.ours(), race.theirs(), f"{race.what} of {race.picture}")
    cells, good = [race.what, race.picture], True
    for count in counts:
        cv2.setNumThreads(count)
        with settings.threads(count):
            mine, ratio = interleaved(race.ours, race.theirs, seconds)
        cells += [table.seconds_text(mine), f"{ratio:.2f}x"]
        if count == 1:
            good = ratio >= race.bar
    if race.gain and 1 in counts and 2 in counts:
        gain = interleaved(_with_threads(2, race.ours), _with_threads(1, race.ours), seconds)[1]
        cells += [f"{gain:.2f}x", f"{race.bar:g}x, {race.gain:g}x", "yes" if good and gain >= race.gain else "no"]
    else:
        cells += ["", f"{race.bar:g}x", "yes" if good else "no"]
    return cells


# ------------------------------------------------------------------------------------------------------ quality

_SCENE_BARS = {0.0: (0.89, 0.965, 0.82, 0.15), 5.0: (0.89, 0.965, 0.80, None), 15.0: (0.84, 0.93, None, 0.22)}
_SCORES = {
    "one": "lines that are one edge's, F",
    "length": "length, F",
    "ends": "ends within 5 px, F",
    "offset": "offset, px",
}


def scene_scores(cv2: Any, seeds: Sequence[int]) -> Iterator[Judged]:
    """Lines of scenes whose edges are known."""
    for noise, bars in _SCENE_BARS.items():
        scenes = [scene(seed, noise=noise) for seed in seeds]
        ours = [score(vision.detect_lines(s.image), s) for s in scenes]
        theirs = [score(_edge_lines(cv2, s.image), s) for s in scenes]
        for (name, what), bar in zip(_SCORES.items(), bars, strict=True):
            if bar is not None:
                mine, other = (float(np.mean([s[name] for s in scored])) for scored in (ours, theirs))
                yield Judged(f"scenes, noise {noise:g}: {what}", mine, other, bar, name == "offset")


def moved_photo(image: Array, moved: Array, seed: int) -> Array:
    """A photo as a camera elsewhere would see it: moved by a homography, a tenth darker, with noise of 3."""
    seen = vision.warp_perspective(image, np.linalg.inv(moved))
    noise = np.random.default_rng([seed, 3]).normal(0, 3, image.shape)
    darker: Array = np.clip(np.rint(0.9 * seen + noise), 0, 255).astype(np.uint8)
    return darker


def _photos() -> dict[str, Array]:
    found = {name: photo(f"{name}.jpg", 427, 640) for name in ("china", "flower")}
    if importlib.util.find_spec("skimage") is not None:
        data: Any = importlib.import_module("skimage.data")
        found["coffee"] = np.asarray(vision.rgb_to_gray(data.coffee()))
    return found


def repeated(cv2: Any, seeds: Sequence[int]) -> Iterator[Judged]:
    """Lines that come again where the scene or the photo is moved."""
    finders = (vision.detect_lines, lambda image: _edge_lines(cv2, image))
    shares: list[tuple[float, ...]] = []
    for seed in seeds[:6]:
        moved = homography(seed, _VGA)
        pair = scene(seed, noise=5.0).image, scene(seed, noise=5.0, moved=moved).image
        shares.append(tuple(repeatability(find(pair[0]), find(pair[1]), moved, _VGA) for find in finders))
    ours, theirs = np.mean(shares, 0)
    yield Judged("scenes, noise 5: lines that come again when moved", float(ours), float(theirs), 0.87)
    shares = []
    for image in _photos().values():
        size = image.shape[0], image.shape[1]
        for seed in seeds[:6]:
            moved = homography(seed, size)
            other = moved_photo(image, moved, seed)
            shares.append(tuple(repeatability(find(image), find(other), moved, size) for find in finders))
    ours, theirs = np.mean(shares, 0)
    yield Judged(f"{len(shares)} photos: lines that come again when moved", float(ours), float(theirs), 0.56)


def false_lines(cv2: Any, seeds: Sequence[int]) -> Iterator[Judged]:
    """Lines in pictures of nothing but noise."""
    for noise in (5, 15, 30):
        counts = []
        for seed in seeds:
            empty = 128 + np.random.default_rng([seed, noise]).normal(0, noise, _VGA)
            image = np.clip(np.rint(empty), 0, 255).astype(np.uint8)
            counts.append((len(vision.detect_lines(image)), len(_edge_lines(cv2, image))))
        ours, theirs = np.mean(counts, 0)
        yield Judged(f"lines in noise of {noise}", float(ours), float(theirs), 1.0, least=True)


def flow_errors(cv2: Any, seconds: float) -> Iterator[Judged]:
    """The flow of scikit-image's stereo pair of a motorcycle, whose disparity is known."""
    if importlib.util.find_spec("skimage") is None:
        return
    data: Any = importlib.import_module("skimage.data")
    left, right, disparity = data.stereo_motorcycle()
    first, second = (vision.rgb_to_gray(picture) for picture in (left, right))
    known = np.isfinite(disparity) & (disparity > 0)

    def error(flow: Array) -> float:
        apart = np.hypot(flow[..., 0] + np.where(known, disparity, 0), flow[..., 1])[known]
        return float(np.mean(apart))

    dense = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def theirs() -> Any:
        return dense.calc(first, second, None)

    def ours() -> Any:
        return vision.optical_flow(first, second)

    cv2.setNumThreads(1)
    with settings.threads(1):
        yield Judged("flow of a motorcycle: mean error, px", error(ours()), error(theirs()), 2.6, least=True)
        ratio = interleaved(ours, theirs, seconds)[1]
        yield Judged("flow of a motorcycle: time of DIS medium over ours", ratio, None, 1.0)


# ------------------------------------------------------------------------------------------------------ the tables


def show(counts: Sequence[int], seconds: float, scenes: int, seed: int | None, markdown: bool) -> int:
    """Prints both tables: 0."""
    cv2 = opencv()
    former = cv2.getNumThreads()
    entropy = np.random.SeedSequence(seed)
    seeds = [int(s) for s in entropy.generate_state(scenes)]
    put = print_markdown if markdown else table.show
    columns = ["what", "picture", *(c for n in counts for c in (table.threads_text(n), "OpenCV takes"))]
    try:
        lines = [timed(race, cv2, counts, seconds) for race in races(cv2)]
        put([*columns, "2 for 1", "wanted", "reached"], lines, f"Time beside OpenCV {cv2.__version__}")
        cv2.setNumThreads(1)
        judged = [
            *scene_scores(cv2, seeds),
            *repeated(cv2, seeds),
            *false_lines(cv2, seeds[:4]),
            *flow_errors(cv2, seconds),
        ]
    finally:
        cv2.setNumThreads(former)
    rows = []
    for j in judged:
        theirs = "" if j.theirs is None else f"{j.theirs:.3f}"
        wanted = f"{'at most' if j.least else 'at least'} {j.bar:g}"
        rows.append([j.what, f"{j.ours:.3f}", theirs, wanted, "yes" if j.good else "no"])
    put(["what", "tilework", "OpenCV", "wanted", "reached"], rows, f"{scenes} scenes, --seed {entropy.entropy}")
    return 0


def print_markdown(columns: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
    """A table of Markdown under its title."""
    print(f"{title}\n\n{table.markdown(columns, lines)}\n")
