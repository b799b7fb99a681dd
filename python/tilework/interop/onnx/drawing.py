"""Random numbers, anew in every run, and boxes that do not overlap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

import tilework as tw
from tilework.dtypes import FLOATING
from tilework.interop.onnx.rules import NodeView, node


def _drawn(n: NodeView, shape: Any, dtype: Any) -> dict[str, Any]:
    """What an op that draws is given: the element type, seed and offset."""
    n.want(dtype.name in FLOATING, f"numbers of {dtype} at random")
    n.want(math.prod(shape) < 2**40, f"{shape=}")
    return {"dtype": dtype} | n.key(n.get("seed"))


def _dtype(n: NodeView, default: Any) -> Any:
    code = n.get("dtype")
    return np.dtype(default if code is None else onnx.helper.tensor_dtype_to_np_dtype(code))


@node("RandomUniform", "RandomUniformLike")
def uniform(n: NodeView, x: Any = None) -> Any:
    shape = n.get("shape") if x is None else tuple(x.shape)
    how = _drawn(n, shape, _dtype(n, np.float32 if x is None else x.dtype))
    return tw.random_uniform(n.blank(shape), low=n.get("low", 0.0), high=n.get("high", 1.0), **how)


@node("RandomNormal", "RandomNormalLike")
def normal(n: NodeView, x: Any = None) -> Any:
    shape = n.get("shape") if x is None else tuple(x.shape)
    how = _drawn(n, shape, _dtype(n, np.float32 if x is None else x.dtype))
    return tw.random_normal(n.blank(shape), mean=n.get("mean", 0.0), std=n.get("scale", 1.0), **how)


@node("Bernoulli")
def bernoulli(n: NodeView, p: Any) -> Any:
    dtype = _dtype(n, p.dtype)
    made = tw.bernoulli(n.symbol(p), **n.key(n.get("seed")))
    return made if dtype == made.dtype else tw.cast(made, dtype=dtype)


@node("Multinomial")
def multinomial(n: NodeView, x: Any) -> Any:
    rows, classes = x.shape
    below = tw.cumsum(tw.softmax(n.symbol(x), axis=-1), axis=-1)
    how = _drawn(n, (rows, n.get("sample_size", 1), 1), np.dtype(x.dtype))
    draws = tw.random_uniform(n.blank((rows, n.get("sample_size", 1), 1)), **how)
    passed = tw.cast(tw.greater_equal(draws, tw.reshape(below, (rows, 1, classes))), dtype=np.float32)
    place = tw.minimum(tw.reduce_sum(passed, axes=-1), np.asarray(classes - 1, np.float32))
    return tw.cast(place, dtype=_dtype(n, np.int32))


@node("Dropout")
def dropout(n: NodeView, x: Any, ratio: Any = None, training: Any = None) -> Any:
    seed, p = n.get("seed"), 0.5 if ratio is None else n.scalar(ratio, "ratio")
    n.read |= {"ratio", "is_test"}  # of operator sets before 12, which draw in training alone
    if p == 0 or training is None or not n.known(training, "training_mode").any():
        return (x, np.ones(tuple(x.shape), bool)) if n.wants(1) else x
    key = n.key(seed)
    mask = tw.greater(tw.dropout(n.symbol(np.ones(tuple(x.shape), x.dtype)), p=p, **key), np.asarray(0, x.dtype))
    return (tw.dropout(n.symbol(x), p=p, **key), mask) if n.wants(1) else tw.dropout(n.symbol(x), p=p, **key)


@node("NonMaxSuppression")
def non_max_suppression(
    n: NodeView, boxes: Any, scores: Any, most: Any = None, iou: Any = None, least: Any = None
) -> Any:
    how: dict[str, Any] = {
        "most": 0 if most is None else max(n.ints(most, "max_output_boxes_per_class")[0], 0),
        "iou_threshold": 0.0 if iou is None else n.scalar(iou, "iou_threshold"),
        "score_threshold": None if least is None else n.scalar(least, "score_threshold"),
        "centers": bool(n.get("center_point_box", 0)),
    }
    # how many there are is the shape of the result
    selected, count = tw.non_max_suppression(n.known(boxes, "boxes"), n.known(scores, "scores"), **how)
    return selected[: int(count)]
