"""scikit-image, for the pools whose blocks do not overlap and for the filters of pictures with the same result."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads  # noqa: F401  (scikit-image runs on numpy's threads)
from tilework.bench.problems import Problem

Call = Callable[[], Any]


def _extreme(name: str) -> Callable[[Any, dict[str, Any]], Call | None]:
    def make(image: Any, a: dict[str, Any]) -> Call | None:
        if image.ndim != 2 or any(k % 2 == 0 for k in a["kernel"]):
            return None
        function = getattr(importlib.import_module("skimage.morphology"), name)
        around = np.ones(tuple(a["kernel"]), np.uint8)
        return lambda: function(image, around)

    return make


def _threshold(image: Any, a: dict[str, Any]) -> Call | None:
    """What its users write: a comparison, as its own thresholds are only numbers."""
    return (lambda: (image > a["value"]).astype(np.uint8) * np.uint8(a["high"])) if a["kind"] == "binary" else None


_PICTURES: dict[str, Callable[[Any, dict[str, Any]], Call | None]] = {
    "dilate": _extreme("dilation"),
    "erode": _extreme("erosion"),
    "threshold": _threshold,
}


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """``block_reduce`` with the kernel as block, or the filter of a picture."""
    functions = {"avg_pool": np.mean, "max_pool": np.max}
    if problem.op in _PICTURES and problem.direction == "fwd" and not problem.out_given:
        made = _PICTURES[problem.op](operands[0], registry.resolve(problem.target, operands, dict(problem.attrs)))
        return {"scikit-image": Contestant(made)} if made else {}
    if problem.op not in functions or problem.direction != "fwd" or problem.out_given:
        return {}
    a, x = registry.resolve(problem.target, operands, dict(problem.attrs)), operands[0]
    kernel, padded = tuple(a["kernel"]), bool(np.any(a["padding"]))
    uneven = any(n % k for n, k in zip(x.shape[2:], kernel, strict=True))
    if tuple(a["stride"]) != kernel or padded or uneven or a.get("return_indices") or a.get("divisor"):
        return {}
    reduce, function = importlib.import_module("skimage.measure").block_reduce, functions[problem.op]
    return {"scikit-image": Contestant(lambda: reduce(x, (1, 1, *kernel), function))}
