"""NumExpr: a chain of elementwise operations as an expression."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework.bench.networks import NetworkProblem
from tilework.bench.networks.chains import Chain
from tilework.bench.peers import Contestant
from tilework.bench.problems import Problem


def set_threads(count: int) -> int:
    """NumExpr's own threads."""
    numexpr: Any = importlib.import_module("numexpr")
    numexpr.set_num_threads(count)
    return int(numexpr.get_num_threads())


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """The chain, forward."""
    if not isinstance(problem, NetworkProblem) or not isinstance(problem.network, Chain) or problem.direction != "fwd":
        return {}
    numexpr: Any = importlib.import_module("numexpr")
    # Numbers in the expression itself would make it one of doubles.
    given = {name: np.float32(value) for name, value in Chain.numbers.items()} | {"x": operands[0]}
    return {"numexpr": Contestant(lambda: numexpr.evaluate(Chain.expression, given, {}))}
