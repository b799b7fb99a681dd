"""OpenCV on the CPU: arithmetic of arrays, products, filters of one-channel images that ops amount to, and pictures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench.peers import Contestant, opencv_pictures
from tilework.bench.problems import Problem


def set_threads(count: int) -> int:
    """OpenCV's own thread count."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(count)
    return int(cv2.getNumThreads())


def _plane(x: Any) -> Any:
    """The same memory as a matrix: OpenCV takes a third axis for channels."""
    return x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x


def _elementwise(cv2: Any, op: str, operands: tuple[Any, ...]) -> Callable[[], Any] | None:
    made = {"add": cv2.add, "sub": cv2.subtract, "mul": cv2.multiply, "div": cv2.divide}
    if op in made and operands[0].shape == operands[1].shape:
        a, b = map(_plane, operands)
        return lambda: made[op](a, b)
    x = _plane(operands[0])
    single = {"exp": lambda: cv2.exp(x), "log": lambda: cv2.log(x), "relu": lambda: cv2.max(x, 0.0)}
    return single.get(op)


def _reduction(cv2: Any, op: str, x: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    kinds = {"reduce_sum": cv2.REDUCE_SUM, "reduce_mean": cv2.REDUCE_AVG, "reduce_max": cv2.REDUCE_MAX}
    axes = list(a["axes"])
    return (lambda: cv2.reduce(x, axes[0], kinds[op])) if x.ndim == 2 and len(axes) == 1 else None


def _image(x: Any) -> Any:
    """The image of an (1, 1, H, W) operand."""
    return x[0, 0] if x.ndim == 4 and x.shape[:2] == (1, 1) else None


def _keeps_size(padding: Any, kernel: tuple[int, ...]) -> bool:
    return all(k % 2 and p == (k // 2, k // 2) for p, k in zip(map(tuple, padding), kernel, strict=True))


def _filter(cv2: Any, x: Any, w: Any, b: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    image = _image(x)
    plain = set(a["stride"]) == set(a["dilation"]) == {1} and b is None and a["activation"] is None
    if image is None or w.shape[:2] != (1, 1) or not plain or not _keeps_size(a["padding"], w.shape[2:]):
        return None
    return lambda: cv2.filter2D(image, -1, w[0, 0], borderType=cv2.BORDER_CONSTANT)


def _pool(cv2: Any, op: str, x: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    image, kernel = _image(x), tuple(a["kernel"])
    if image is None or a.get("ceil_mode") or a.get("return_indices") or a.get("divisor"):
        return None
    if op == "avg_pool" and tuple(a["stride"]) == kernel and not np.any(a["padding"]):
        size = tuple(n // k for n, k in zip(image.shape, kernel, strict=True))[::-1]
        return lambda: cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    centred = tuple(a["stride"]) == (1, 1) and all(
        p == (k // 2, k // 2) for p, k in zip(a["padding"], kernel, strict=True)
    )
    around = np.ones(kernel, np.uint8)
    return (lambda: cv2.dilate(image, around)) if op == "max_pool" and centred else None


def _call(cv2: Any, problem: Problem, operands: tuple[Any, ...]) -> Callable[[], Any] | None:
    op, x = problem.op, operands[0]
    if op in ("add", "sub", "mul", "div", "exp", "log", "relu"):
        return _elementwise(cv2, op, operands)
    a = registry.resolve(problem.target, operands, dict(problem.attrs))
    if op in ("reduce_sum", "reduce_mean", "reduce_max"):
        return _reduction(cv2, op, x, a)
    if op in opencv_pictures.PICTURES:
        return opencv_pictures.call(cv2, op, operands, a)
    if op == "matmul" and all(o.ndim == 2 for o in operands[:2]) and all(o is None for o in operands[2:]):
        return lambda: cv2.gemm(operands[0], operands[1], 1.0, None, 0.0)
    if op == "conv":
        return _filter(cv2, x, operands[1], operands[2], a)
    if op in ("avg_pool", "max_pool"):
        return _pool(cv2, op, x, a)
    if op == "pad" and x.ndim == 2:
        (top, bottom), (left, right) = a["pads"]
        return lambda: cv2.copyMakeBorder(x, top, bottom, left, right, cv2.BORDER_CONSTANT, value=a["value"])
    return None


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """OpenCV's function of a problem in float32, or of a picture, where it has one."""
    right = problem.op in opencv_pictures.PICTURES or problem.dtype == "float32"
    if problem.direction != "fwd" or problem.out_given or not right or isinstance(operands[0], list):
        return {}
    made = _call(importlib.import_module("cv2"), problem, operands)
    return {"opencv": Contestant(made)} if made else {}
