"""Interleaved passes and what follows from them: medians, paired ratios with their intervals, verdicts.

A neighbour on the machine only ever slows a block down, and not every library by the same factor. So a *round* is a few
passes in a row, each with one block of every contestant in random order, and counts the fastest block of each.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.bench.problems import BenchError
from tilework.bench.protocol import CLEAN, WorkerLostError

Sample = dict[str, float]
Asker = Callable[[int | None], dict[str, Any]]  # of the CPU to run on, None for any

MARGIN = 0.02  # a difference within it is no difference
_ROUNDS = 9  # of as many passes as there are, where there are enough
_ROUND = 4  # passes of a round at least, where there are enough: one for each place of the operands
_FAR = 2.5  # times as slow as the fastest rival
_FEWEST = 3


@dataclass(frozen=True)
class Plan:
    """When a row has been measured enough."""

    least: int = 9  # passes, unless they take four times the budget
    most: int = 90  # passes
    budget: float = 2.5  # seconds


@dataclass(frozen=True)
class Ratio:
    """Their time over ours, in the fastest third of the rounds of each: above 1 we are faster.

    ``low`` to ``high`` is 95 % sure.
    """

    ratio: float
    low: float
    high: float
    verdict: str
    rounds: int


def interleave(
    askers: dict[str, Asker], plan: Plan, threads: int, seed: int = 0, rivals: Collection[str] = ()
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Passes in which every contestant runs one block, in random order: their samples, and who was lost and why.

    CPUs differ: a neighbour of a virtual machine may sit on one. So on one thread all blocks of a pass run on the same
    CPU, and rounds take turns with the CPUs. Of ``rivals``, those far behind the fastest are measured in the first
    round only.
    """
    cpus: list[int | None] = [*sorted(os.sched_getaffinity(0))] if threads == 1 else [None]
    shuffle = random.Random(seed)
    samples: dict[str, list[Any]] = {name: [] for name in askers}
    lost: dict[str, str] = {}
    retired: set[str] = set()
    begin, passes = time.monotonic(), 0
    while passes < plan.most:
        order = [n for n in askers if n not in lost and n not in retired]
        if not order:
            break
        shuffle.shuffle(order)
        cpu = cpus[passes // _ROUND % len(cpus)]
        for name in order:
            try:
                answer = askers[name](cpu)
            except WorkerLostError as error:
                answer = {"error": str(error)}
            if "error" in answer:
                lost[name] = str(answer["error"])
            else:
                samples[name].append(answer)
        passes += 1
        if passes == _ROUND:
            retired |= _far_behind({n: samples[n] for n in rivals if n not in lost})
        took = time.monotonic() - begin
        if (passes >= plan.least and took > plan.budget) or (passes >= _FEWEST and took > 4 * plan.budget):
            break
    return samples, lost


def _far_behind(samples: dict[str, list[Sample]]) -> set[str]:
    least = {name: min(s["seconds"] for s in taken) for name, taken in samples.items() if taken}
    return {name for name, seconds in least.items() if seconds > _FAR * min(least.values())}


def rounds(samples: list[Sample]) -> list[Sample]:
    """The fastest sample of each round: passes in order, in rounds of equal size; of a thinned run all."""
    if samples and samples[0].get("round"):
        return samples
    size = max(1, len(samples) // _ROUNDS, min(_ROUND, len(samples) // _FEWEST))
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
    """The ratio of two contestants of the same rounds; its interval is that of rounds drawn again, for both alike."""
    count = min(len(ours), len(theirs))
    a, b = ([math.log(s["seconds"]) for s in rounds(taken[:count])] for taken in (ours, theirs))

    few = -(-len(a) // 3)

    def fastest(a: Any, b: Any, axis: int = -1) -> Any:
        return _mean_of_least(b, few, axis) - _mean_of_least(a, few, axis)

    low, high = _bootstrap(a, b, fastest, paired=True)
    return Ratio(math.exp(fastest(a, b)), math.exp(low), math.exp(high), verdict(low, high), len(a))


def _mean_of_least(values: Any, count: int, axis: int) -> Any:
    least = np.sort(values, axis=axis)
    return np.mean(np.take(least, range(count), axis=axis), axis=axis)


def interval(logs: list[float], others: list[float]) -> tuple[float, float]:
    """The 95 % interval of the difference of two samples' medians."""

    def difference(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) - np.median(b, axis=axis)

    return _bootstrap(logs, others, difference, paired=False)


def _bootstrap(a: list[float], b: list[float], statistic: Any, *, paired: bool) -> tuple[float, float]:
    if min(len(a), len(b)) < _FEWEST:
        return -math.inf, math.inf
    if np.ptp(a) == np.ptp(b) == 0:
        return float(statistic(a, b)), float(statistic(a, b))
    stats: Any = statistics_library()
    options = {"n_resamples": 2000, "method": "percentile", "vectorized": True, "random_state": 0}
    found = stats.bootstrap((a, b), statistic, paired=paired, **options).confidence_interval
    return float(found.low), float(found.high)


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
