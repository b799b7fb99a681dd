"""Losses: softmax cross entropy from logits and class labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import group_for, reduce
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    errors,
    fills,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill

Reduction: TypeAlias = Literal["none", "sum", "mean"]


@op
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    out: Array | None = None,
) -> Array:
    """Computes the cross entropy of softmax(logits), logits (N, C, *spatial), with labels (N, *spatial) of C classes.

    Labels are int32 or int64. The loss has the shape of labels with "none", else (); "mean" divides by the sum of
    weight (C,) at the labels. Labels equal to ignore_index, -100 as in PyTorch, count nothing; any other outside
    [0, C) is an IndexContentError. Smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016.
    """
    ...


@op
def softmax_cross_entropy_dx(
    dy: Array,
    logits: Array,
    labels: Array,
    weight: Array | None = None,
    *,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of softmax_cross_entropy in logits, (N, C, *spatial), from dy of the shape of the loss."""
    ...


def _targets(logits: Any, labels: Any, weight: Any, label_smoothing: float, ignore_index: int) -> tuple[Any, Any, Any]:
    """Logits below their maximum, the weighted and smoothed targets, and the weights of labels: 0 where ignored."""
    classes = logits.shape[1]
    below = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    per_class = np.ones(classes) if weight is None else weight
    counted = labels != ignore_index
    label = np.where(counted, labels, 0)
    hot = np.moveaxis(label[..., None] == np.arange(classes), -1, 1)
    share = (1 - label_smoothing) * hot + label_smoothing / max(classes, 1)
    column = per_class.reshape(1, classes, *(1 for _ in labels.shape[1:]))
    target = np.where((share > 0) & counted[:, None], share * column, 0.0)
    return below, target, np.where(counted, per_class[label], 0.0)


def _softmax(below: Any) -> Any:
    powers = np.exp(below)
    return powers / powers.sum(axis=1, keepdims=True)


@reference(softmax_cross_entropy)
def _loss(
    logits: Any, labels: Any, weight: Any, *, reduction: Reduction, label_smoothing: float, ignore_index: int
) -> Any:
    below, target, weights = _targets(logits, labels, weight, label_smoothing, ignore_index)
    log_p = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
    loss = -np.where(target == 0, 0.0, target * log_p).sum(axis=1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / weights.sum()


@reference(softmax_cross_entropy_dx)
def _(
    dy: Any,
    logits: Any,
    labels: Any,
    weight: Any,
    *,
    reduction: Reduction,
    label_smoothing: float,
    ignore_index: int,
) -> Any:
    below, target, weights = _targets(logits, labels, weight, label_smoothing, ignore_index)
    each = dy / weights.sum() if reduction == "mean" else dy
    each = np.where(labels != ignore_index, each, 0.0)[:, None]
    counted = (labels != ignore_index)[:, None]
    return np.where(counted, each * (_softmax(below) * target.sum(axis=1, keepdims=True) - target), 0.0)


@backward(softmax_cross_entropy, of=("logits",))
def _(dy: Array, logits: Array, labels: Array, weight: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
    return (softmax_cross_entropy_dx(dy, logits, labels, weight, **attrs) if "logits" in wanted else None,)


def _loss_scale(logits: Any, labels: Any, weight: Any, *, reduction: Reduction, **attrs: Any) -> Any:
    terms = 1 + np.abs(_loss(logits, labels, weight, reduction="none", **attrs))
    return terms if reduction == "none" else terms.sum() if reduction == "sum" else terms.mean()


def _dx_scale(
    dy: Any, logits: Any, labels: Any, weight: Any, *, reduction: Reduction, label_smoothing: float, ignore_index: int
) -> Any:
    below, target, weights = _targets(logits, labels, weight, label_smoothing, ignore_index)
    each = np.abs(dy) / weights.sum() if reduction == "mean" else np.abs(dy)
    each = np.broadcast_to(each, labels.shape)[:, None]
    return each * (_softmax(below) * target.sum(axis=1, keepdims=True) + target)


# A loss is a difference of logits: its terms are of the size of 1 even where it is small.
softmax_cross_entropy.rules["scale"] = _loss_scale
softmax_cross_entropy_dx.rules["scale"] = _dx_scale
tolerance(softmax_cross_entropy, ulp=8)
tolerance(softmax_cross_entropy_dx, ulp=8)


@samples(softmax_cross_entropy)
def _(fill: Fill) -> Iterator[Sample]:
    def labels(classes: int, *shape: int, dtype: Any = np.int64) -> Any:
        return fill.integers(*shape, low=0, high=classes, dtype=dtype)

    for n, c in ((1, 1), (1, 2), (3, 5), (4, 8), (5, 17), (2, 33), (9, 100)):
        yield sample(fill(n, c), labels(c, n))
    yield sample(fill(4, 7) * 20, labels(7, 4, dtype=np.int32))
    ignored = labels(6, 5)
    ignored[1::2] = -100
    for reduction in ("none", "sum", "mean"):
        yield sample(fill(5, 6), ignored, fill.positive(6), reduction=reduction)
        yield sample(fill(5, 6), labels(6, 5), reduction=reduction, label_smoothing=0.1)
        yield sample(fill(5, 6), ignored, fill.positive(6), reduction=reduction, label_smoothing=0.3)
        yield sample(fill(2, 3, 4, 5), labels(3, 2, 4, 5), reduction=reduction, ignore_index=2)
    yield sample(fill(2, 5, 9), labels(5, 2, 9), fill.positive(5))
    yield sample(fill(7, 4).T, labels(7, 4))
    yield sample(fill(2, 3), np.full(2, -100), reduction="sum")
    yield sample(fill(0, 3), labels(3, 0), reduction="sum")
    yield sample(fill(0, 3), labels(3, 0), reduction="none")


@samples(softmax_cross_entropy_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for s in softmax_cross_entropy.rules["samples"](fill):
        shape = s.args[1].shape if s.attrs.get("reduction") == "none" else ()
        yield Sample((fill(*shape), *s.args), s.attrs)


@errors(softmax_cross_entropy)
def _(fill: Fill) -> Iterator[ErrorCase]:
    logits, labels = fill(2, 3), np.array([0, 2])
    for wrong in (3, -1, 1 << 40):
        yield ErrorCase(sample(logits, np.array([0, wrong])), IndexContentError, f"labels has {wrong}")
    yield ErrorCase(sample(logits, np.array([0])), ShapeError, "labels has shape (1,); want (2,)")
    yield ErrorCase(sample(logits, labels[:, None]), ShapeError, "labels has shape (2, 1); want (2,)")
    yield ErrorCase(sample(logits, labels, fill(2)), ShapeError, "weight has shape (2,); want (3,)")
    yield ErrorCase(sample(fill(3), np.array(1)), ShapeError, "logits has shape (3,)")
    yield ErrorCase(sample(logits, fill(2)), DTypeError, f"labels has dtype {fill.dtype}; want int32 or int64")
    yield ErrorCase(sample(logits, labels, reduction="Mean"), AttrError, "reduction='Mean'; want one of none|sum|mean")
    yield ErrorCase(sample(logits, labels, label_smoothing=1.5), AttrError, "label_smoothing=1.5")
    yield ErrorCase(sample(logits, labels, label_smoothing=float("nan")), AttrError, "label_smoothing=nan")


@errors(softmax_cross_entropy_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    logits, labels = fill(2, 3), np.array([0, 2])
    yield ErrorCase(sample(fill(), logits, np.array([0, 3])), IndexContentError, "labels has 3")
    yield ErrorCase(sample(fill(2), logits, labels), ShapeError, "dy has shape (2,); want ()")
    yield ErrorCase(sample(fill(), logits, labels, reduction="none"), ShapeError, "dy has shape (); want (2,)")


@workloads(softmax_cross_entropy)
def _() -> Iterator[Workload]:
    yield Workload("128x1000", ((128, 1000), (128,), None), sets=("resnet50",))
    yield Workload("128x50257", ((128, 50257), (128,), None), sets=("transformer",))
    yield Workload("1x21x256x256", ((1, 21, 256, 256), (1, 256, 256), None), sets=("segmentation",))


@workloads(softmax_cross_entropy_dx)
def _() -> Iterator[Workload]:
    yield Workload("128x1000", ((), (128, 1000), (128,), None), sets=("resnet50",))
    yield Workload("128x50257", ((), (128, 50257), (128,), None), sets=("transformer",))


@fills(softmax_cross_entropy)
def _(fill: Fill, logits: Sizes, labels: Sizes, weight: Sizes | None = None, **attrs: Any) -> Any:
    classes = fill.integers(*labels, low=0, high=logits[1])
    return fill(*logits), classes, None if weight is None else fill.positive(*weight)


@fills(softmax_cross_entropy_dx)
def _(fill: Fill, dy: Sizes, logits: Sizes, labels: Sizes, weight: Sizes | None = None, **attrs: Any) -> Any:
    return fill(*dy), *softmax_cross_entropy.rules["fills"](fill, logits, labels, weight)


# ------------------------------------------------------------------------------------------------- OpenCL


def _by_rows(
    queue: Queue,
    kernel: str,
    arrays: Sequence[Any],
    logits: Any,
    labels: Any,
    weight: Any,
    label_smoothing: float,
    ignore_index: int,
    **define: Any,
) -> None:
    """Launches a kernel of loss.cl, with those arrays that are given; its rows are the places (n, *spatial)."""
    n, inner = logits.shape[1], math.prod(logits.shape[2:])
    group = group_for(queue, n) if inner == 1 else 1
    rows = logits.shape[0] * inner
    args = (*(a for a in arrays if a is not None), rows, n, inner, ignore_index, float(label_smoothing))
    define |= {"DTYPE": logits.dtype, "LABELS": labels.dtype, "GROUP": group}
    define |= {"WEIGHT": 1} if weight is not None else {}
    define |= {"SMOOTHED": 1} if label_smoothing else {}
    queue.launch("loss.cl", kernel, rows * group, group if group > 1 else GROUP_SIZE, args, **define)


def _total(queue: Queue, x: Any) -> Any:
    total = queue.empty((), x.dtype)
    reduce(queue, "sum", x, total, tuple(range(x.ndim)))
    return total


@opencl(softmax_cross_entropy)
def _(queue: Queue, logits: Any, labels: Any, weight: Any, y: Any, *, reduction: Reduction, **attrs: Any) -> None:
    queue.check_indices("labels", labels, logits.shape[1], allowed=attrs["ignore_index"])
    losses = y if reduction == "none" else queue.empty(labels.shape, y.dtype)
    weights = queue.empty(labels.shape, y.dtype)
    arrays = (logits, labels, weight, losses, weights)
    _by_rows(queue, "cross_entropy", arrays, logits, labels, weight, **attrs)
    if reduction == "sum":
        reduce(queue, "sum", losses, y, tuple(range(labels.ndim)))
    elif reduction == "mean":
        queue.each(
            "elementwise.cl", "div", (_total(queue, losses), _total(queue, weights), y), chunks=True, DTYPE=y.dtype
        )


@opencl(softmax_cross_entropy_dx)
def _(
    queue: Queue, dy: Any, logits: Any, labels: Any, weight: Any, dx: Any, *, reduction: Reduction, **attrs: Any
) -> None:
    queue.check_indices("labels", labels, logits.shape[1], allowed=attrs["ignore_index"])
    divisor = None
    define = {"DY_ROWS": 1} if reduction == "none" else {}
    if reduction == "mean":
        weights = queue.empty(labels.shape, dx.dtype)
        _by_rows(queue, "label_weights", (labels, weight, weights), logits, labels, weight, **attrs)
        divisor = _total(queue, weights)
        define["DIVIDED"] = 1
    arrays = (dy, logits, labels, weight, divisor, dx)
    _by_rows(queue, "cross_entropy_dx", arrays, logits, labels, weight, **attrs, **define)
