"""scipy: special functions that numpy lacks, filters of images, factorisations."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench.peers import Contestant
from tilework.bench.peers.numpy_calls import set_threads  # noqa: F401  (scipy.special itself runs on one thread)
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """scipy's function for the forward op."""
    special: Any = importlib.import_module("scipy.special")
    x, attrs = operands[0], problem.attrs
    if isinstance(x, list):
        return {}
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
    if problem.op in ("dilate", "erode", "sobel"):
        made = _picture(problem, operands)
        return {"scipy": Contestant(made)} if made else {}
    if problem.op in ("conv", "max_pool"):
        made = _filter(problem, operands)
        return {"scipy": Contestant(made)} if made else {}
    found.update(_algebra(problem.op, operands, attrs))
    return {"scipy": Contestant(found[problem.op])} if problem.op in found else {}


def _filter(problem: Problem, operands: tuple[Any, ...]) -> Any:
    """scipy.ndimage on one image, where the op is a filter that keeps its size."""
    x, a = operands[0], registry.resolve(problem.target, operands, dict(problem.attrs))
    sizes = operands[1].shape[2:] if problem.op == "conv" else tuple(a["kernel"])
    same = all(
        s == 1 and tuple(p) == (k // 2, k // 2) for s, p, k in zip(a["stride"], a["padding"], sizes, strict=True)
    )
    if x.shape[:2] != (1, 1) or not same or any(d != 1 for d in a["dilation"]):
        return None
    images, image = importlib.import_module("scipy.ndimage"), x[0, 0]
    if problem.op == "max_pool":
        if a["return_indices"]:
            return None
        return lambda: images.maximum_filter(image, sizes, mode="constant", cval=-np.inf)
    w = operands[1]
    if w.shape[:2] != (1, 1) or operands[2] is not None or a["activation"]:
        return None
    return lambda: images.correlate(image, w[0, 0], mode="constant")


def _picture(problem: Problem, operands: tuple[Any, ...]) -> Any:
    """scipy.ndimage on one 8-bit picture."""
    image, a = operands[0], registry.resolve(problem.target, operands, dict(problem.attrs))
    images: Any = importlib.import_module("scipy.ndimage")
    if image.ndim != 2:
        return None
    if problem.op == "sobel":
        if a["ksize"] != 3 or a["dx"] + a["dy"] != 1:
            return None
        axis = 1 if a["dx"] else 0
        return lambda: images.sobel(image, axis, np.int16, mode="mirror")
    if any(k % 2 == 0 for k in a["kernel"]):
        return None
    function, outside = {"dilate": (images.grey_dilation, 0), "erode": (images.grey_erosion, 255)}[problem.op]
    return lambda: function(image, size=tuple(a["kernel"]), mode="constant", cval=outside)


def _algebra(op: str, operands: tuple[Any, ...], attrs: dict[str, Any]) -> dict[str, Any]:
    """scipy.linalg on one matrix."""
    if op not in ("lu", "cholesky", "inv", "det", "solve", "triangular_solve", "lu_solve", "cholesky_solve"):
        return {}
    if any(o.ndim > 2 for o in operands):
        return {}
    linear: Any = importlib.import_module("scipy.linalg")
    quick = {"check_finite": False}
    flag = {k: attrs.get(k, False) for k in ("upper", "transpose", "unit_diagonal")}
    made = {
        "lu": lambda: linear.lu_factor(operands[0], **quick),
        "cholesky": lambda: linear.cholesky(operands[0], lower=not flag["upper"], **quick),
        "inv": lambda: linear.inv(operands[0], **quick),
        "det": lambda: linear.det(operands[0], **quick),
        "solve": lambda: linear.solve(*operands, **quick),
        "lu_solve": lambda: linear.lu_solve(operands[:2], operands[2], int(flag["transpose"]), **quick),
        "cholesky_solve": lambda: linear.cho_solve((operands[1], not flag["upper"]), operands[0], **quick),
        "triangular_solve": lambda: linear.solve_triangular(
            *operands, int(flag["transpose"]), not flag["upper"], flag["unit_diagonal"], **quick
        ),
    }
    return made if attrs.get("left", True) else {}
