"""Non-maximum suppression: the best of boxes that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    errors,
    op,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def non_max_suppression(
    boxes: Array,
    scores: Array,
    *,
    most: int,
    iou_threshold: float = 0.0,
    score_threshold: float | None = None,
    centers: bool = False,
    out: tuple[Array, Array] | None = None,
) -> Any:
    """Selects boxes (N, K, 4) by scores (N, C, K): rows of sample, class and box, int64, and their count, ().

    From the best score down a box is selected unless it shares more than ``iou_threshold`` of the union with one that
    was, of the same sample and class: at most ``most`` of each, of scores above ``score_threshold``. There are
    N C min(most, K) rows; those behind the count are -1. A box is y1, x1, y2, x2 of any two opposite corners, or with
    ``centers`` x, y, width, height. ONNX NonMaxSuppression. On the CPU alone: what is selected depends on what was.
    """
    ...


def _corners(boxes: Any, centers: bool) -> Any:
    """x0, y0, x1, y1."""
    if centers:
        x, y, width, height = np.moveaxis(boxes, -1, 0)
        return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    y, x = np.sort(boxes[..., 0::2], -1), np.sort(boxes[..., 1::2], -1)
    return np.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def _area(box: Any) -> Any:
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def _overlaps(kept: Any, box: Any, threshold: float) -> bool:
    sides = np.minimum(kept[:, 2:], box[2:]) - np.maximum(kept[:, :2], box[:2])
    shared = np.minimum(sides[:, 0] * sides[:, 1], np.minimum(_area(kept), _area(box)))
    union = _area(kept) + _area(box) - shared
    return bool(np.any((sides > 0).all(-1) & (shared > 0) & (shared > threshold * union)))


@reference(non_max_suppression)
def _(boxes: Any, scores: Any, *, most: int, iou_threshold: float, score_threshold: float | None, centers: bool) -> Any:
    corners = _corners(boxes, centers)
    rows: list[tuple[int, int, int]] = []
    for n, k in np.ndindex(*scores.shape[:2]):
        score, kept = scores[n, k], list[int]()
        chosen = ~np.isnan(score) if score_threshold is None else score > score_threshold
        for box in np.argsort(-score, kind="stable"):
            if len(kept) < most and chosen[box] and not _overlaps(corners[n, kept], corners[n, box], iou_threshold):
                kept.append(box)
        rows += [(n, k, box) for box in kept]
    selected = np.full((scores.shape[0] * scores.shape[1] * min(most, boxes.shape[1]), 3), -1)
    selected[: len(rows)] = np.reshape(rows, (-1, 3))
    return selected, np.array(len(rows))


tolerance(non_max_suppression, ulp=0.5)


def _boxes(fill: Fill, *shape: int) -> Any:
    """Boxes of sizes up to 8, their corners on whole numbers, so that areas are exact."""
    return fill.integers(*shape, 4, low=0, high=9).astype(fill.dtype)


@samples(non_max_suppression)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(_boxes(fill, 1, 6), fill(1, 1, 6), most=3, iou_threshold=0.5)
    yield sample(_boxes(fill, 2, 17), fill(2, 3, 17), most=5, iou_threshold=0.3, score_threshold=0.0)
    yield sample(_boxes(fill, 1, 40), fill.integers(1, 2, 40, low=0, high=4).astype(fill.dtype), most=40)
    yield sample(_boxes(fill, 2, 9), fill(2, 1, 9), most=100, iou_threshold=0.4, centers=True)
    yield sample(_boxes(fill, 9, 2).transpose(1, 0, 2), fill(9, 5, 2).T, most=4, iou_threshold=1.0)
    yield sample(np.ones((1, 3, 4), fill.dtype), np.ones((1, 1, 3), fill.dtype), most=2)
    yield sample(_boxes(fill, 1, 5), fill(1, 2, 5), most=0)
    yield sample(_boxes(fill, 1, 5), fill(1, 2, 5), most=2, score_threshold=100.0)
    yield sample(_boxes(fill, 1, 0), fill(1, 2, 0), most=2)
    yield sample(_boxes(fill, 0, 3), fill(0, 2, 3), most=2)


@errors(non_max_suppression)
def _(fill: Fill) -> Iterator[ErrorCase]:
    boxes, scores = fill(2, 5, 4), fill(2, 3, 5)
    yield ErrorCase(sample(fill(5, 4), scores, most=1), ShapeError, "boxes has shape (5, 4); want (N, K, 4)")
    yield ErrorCase(sample(fill(2, 5, 5), scores, most=1), ShapeError, "boxes has shape (2, 5, 5); want (N, K, 4)")
    yield ErrorCase(sample(boxes, fill(2, 3, 4), most=1), ShapeError, "scores has shape (2, 3, 4); want (N, C, K)")
    yield ErrorCase(sample(boxes, fill(1, 3, 5), most=1), ShapeError, "scores has shape (1, 3, 5); want (N, C, K)")
    yield ErrorCase(sample(boxes, scores, most=-1), AttrError, "most=-1; want 0 or more")
    for threshold in (-0.5, 1.5, float("nan")):
        wrong = sample(boxes, scores, most=1, iou_threshold=threshold)
        yield ErrorCase(wrong, AttrError, f"iou_threshold={threshold:g}; want 0 to 1")
    wrong = sample(boxes, scores, most=1, score_threshold=float("nan"))
    yield ErrorCase(wrong, AttrError, "score_threshold=nan; want a number")
    yield ErrorCase(sample(boxes.astype(np.int32), scores, most=1), DTypeError, "boxes has dtype int32")
    yield ErrorCase(sample(boxes, scores.astype(np.float16), most=1), DTypeError, "scores has dtype float16")


@workloads(non_max_suppression)
def _() -> Iterator[Workload]:
    yield Workload("80 classes", ((1, 1000, 4), (1, 80, 1000)), {"most": 100, "iou_threshold": 0.5})
