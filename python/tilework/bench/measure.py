"""Interleaved passes and what follows from them: medians, paired ratios with their intervals, verdicts.

A neighbour on the machine only ever slows a block down, and not every library by the same factor. So a *round* is a few
passes in a row, each with one block of every contestant in random order, and counts the fastest block of each.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.bench.problems import BenchError
from tilework.bench.protocol import CLEAN, WorkerLostError

Sample = dict[str, float]
Asker = Callable[[], dict[str, Any]]

MARGIN = 0.02  # a difference within it is no difference
_ROUNDS = 9  # of as many passes as there are, where there are enough
_FEWEST = 3


@dataclass(frozen=True)
class Plan:
    """When a row has been measured enough."""

    least: int = 9  # passes, unless they take four times the budget
    most: int = 90  # passes
    budget: float = 2.5  # seconds


@dataclass(frozen=True)
class Ratio:
    """Their time over ours, round by round: above 1 we are faster. ``low`` to ``high`` holds the median with 95 %."""

    ratio: float
    low: float
    high: float
    verdict: str
    rounds: int


def interleave(
    askers: dict[str, Asker], plan: Plan, pause: float, seed: int = 0
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Passes in which every contestant runs one block, in random order: samples by contestant, and who was lost, why.

    ``pause`` seconds before each block let the threads of the one before fall asleep.
    """
    shuffle = random.Random(seed)
    samples: dict[str, list[Any]] = {name: [] for name in askers}
    lost: dict[str, str] = {}
    begin, passes = time.monotonic(), 0
    while passes < plan.most:
        order = [n for n in askers if n not in lost]
        if not order:
            break
        shuffle.shuffle(order)
        for name in order:
            time.sleep(pause)
            try:
                answer = askers[name]()
            except WorkerLostError as error:
                answer = {"error": str(error)}
            if "error" in answer:
                lost[name] = str(answer["error"])
            else:
                samples[name].append(answer)
        passes += 1
        took = time.monotonic() - begin
        if (passes >= plan.least and took > plan.budget) or (passes >= _FEWEST and took > 4 * plan.budget):
            break
    return samples, lost


def rounds(samples: list[Sample]) -> list[Sample]:
    """The fastest sample of each round: passes in order, in rounds of equal size."""
    size = max(1, len(samples) // _ROUNDS)
    count = len(samples) // size
    # The last round takes what is left over.
    edges = [i * size for i in range(count)] + [len(samples)]
    return [min(samples[a:b], key=lambda s: s["seconds"]) for a, b in itertools.pairwise(edges)]


def summary(samples: list[Sample]) -> dict[str, Any]:
    """Median, 10th and 90th percentile of the rounds, the median of their kernels, whether the machine was busy."""
    seconds = [s["seconds"] for s in rounds(samples)]
    p10, median, p90 = (float(v) for v in np.percentile(seconds, (10, 50, 90)))
    kernel = rounds([{"seconds": s["kernel"]} for s in samples if s.get("kernel")])
    quiet = sum(s["waited"] < CLEAN for s in samples)
    return {
        "median": median,
        "p10": p10,
        "p90": p90,
        "kernel": float(np.median([s["seconds"] for s in kernel])) if kernel else None,
        "passes": len(samples),
        "clean_passes": quiet,
        "busy": quiet < len(samples) / 2,
    }


def paired(ours: list[Sample], theirs: list[Sample]) -> Ratio:
    """The ratio of two contestants of the same rounds."""
    logs = [
        math.log(b["seconds"] / a["seconds"])
        for a, b in zip(*(rounds(s[: min(len(ours), len(theirs))]) for s in (ours, theirs)), strict=True)
    ]
    low, high = interval(logs)
    middle = float(np.median(logs))
    return Ratio(math.exp(middle), math.exp(low), math.exp(high), verdict(low, high), len(logs))


def interval(logs: list[float], others: list[float] | None = None) -> tuple[float, float]:
    """The 95 % bootstrap interval of a median, or of the difference of two samples' medians."""
    if len(logs) < _FEWEST or (others is not None and len(others) < _FEWEST):
        return -math.inf, math.inf
    if np.ptp(logs) == 0 and (others is None or np.ptp(others) == 0):
        middle = logs[0] - (others[0] if others else 0.0)
        return middle, middle
    stats: Any = statistics_library()

    def difference(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) - np.median(b, axis=axis)

    statistic: Any = np.median if others is None else difference
    data = (logs,) if others is None else (logs, others)
    found = stats.bootstrap(data, statistic, n_resamples=2000, method="percentile", vectorized=True)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def statistics_library() -> Any:
    """scipy.stats, or an error that says how to get it."""
    if importlib.util.find_spec("scipy") is None:
        raise BenchError("scipy is not installed; want pip install 'tilework[bench]'")
    return importlib.import_module("scipy.stats")


def verdict(low: float, high: float) -> str:
    """faster, slower, same or undecided, from the interval of the logarithm of a ratio."""
    edge = math.log1p(MARGIN)
    if low > edge:
        return "faster"
    if high < -edge:
        return "slower"
    return "same" if -edge <= low and high <= edge else "undecided"


def geometric_mean(values: list[float]) -> float:
    """The geometric mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
