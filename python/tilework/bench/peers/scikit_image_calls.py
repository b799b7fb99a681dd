"""scikit-image. None of the ops so far has a counterpart in it; image ops will."""

from __future__ import annotations

from typing import Any

from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads  # noqa: F401  (scikit-image runs on numpy's threads)
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """Nothing yet."""
    return {}
