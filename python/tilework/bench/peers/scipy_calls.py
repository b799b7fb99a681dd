"""scipy.special, where it has the function that numpy lacks."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads  # noqa: F401  (scipy.special itself runs on one thread)
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """scipy's function for the forward op."""
    special: Any = importlib.import_module("scipy.special")
    x, attrs = operands[0], problem.attrs
    if problem.direction != "fwd" or problem.out_given:
        return {}
    axis = attrs.get("axis", -1)
    found: dict[str, Any] = {
        "erf": lambda: special.erf(x),
        "sigmoid": lambda: special.expit(x),
        "softmax": lambda: special.softmax(x, axis=axis),
        "log_softmax": lambda: special.log_softmax(x, axis=axis),
    }
    if attrs.get("approximate", "none") == "none":
        found["gelu"] = lambda: x * np.asarray(0.5, x.dtype) * (1 + special.erf(x * np.asarray(0.5**0.5, x.dtype)))
    return {"scipy": Contestant(found[problem.op])} if problem.op in found else {}
