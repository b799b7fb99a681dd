"""opt_einsum over numpy: contractions in an order it finds per call."""

from __future__ import annotations

import importlib
from typing import Any

from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads as set_threads
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """``opt_einsum.contract`` for plain contractions."""
    if (
        problem.op != "einsum"
        or problem.direction != "fwd"
        or problem.out_given
        or set(problem.attrs) != {"subscripts"}
    ):
        return {}
    contract = importlib.import_module("opt_einsum").contract
    text, arrays = problem.attrs["subscripts"], operands[0]
    return {"opt_einsum": Contestant(lambda: contract(text, *arrays))}
