"""scikit-image, for the pools whose blocks do not overlap."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads  # noqa: F401  (scikit-image runs on numpy's threads)
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """``block_reduce`` with the kernel as block."""
    functions = {"avg_pool": np.mean, "max_pool": np.max}
    if problem.op not in functions or problem.direction != "fwd" or problem.out_given:
        return {}
    a, x = registry.resolve(problem.target, operands, dict(problem.attrs)), operands[0]
    kernel, padded = tuple(a["kernel"]), bool(np.any(a["padding"]))
    uneven = any(n % k for n, k in zip(x.shape[2:], kernel, strict=True))
    if tuple(a["stride"]) != kernel or padded or uneven or a.get("return_indices") or a.get("divisor"):
        return {}
    reduce, function = importlib.import_module("skimage.measure").block_reduce, functions[problem.op]
    return {"scikit-image": Contestant(lambda: reduce(x, (1, 1, *kernel), function))}
