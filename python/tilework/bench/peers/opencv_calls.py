"""OpenCV. None of the ops so far has a counterpart in it; image ops will."""

from __future__ import annotations

import importlib
from typing import Any

from tilework.bench.peers import Contestant
from tilework.bench.problems import Problem


def set_threads(count: int) -> int:
    """OpenCV's own thread count."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(count)
    return int(cv2.getNumThreads())


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """Nothing yet."""
    return {}
