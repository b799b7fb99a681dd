"""Pooling of boxes into grids of one size, and the gradient of its mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array, Ints, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, IndexContentError, ShapeError, UnsupportedError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
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

Mode = Literal["avg", "max", "max_corner"]


@op
def roi_align(
    x: Array,
    boxes: Array,
    images: Array,
    *,
    size: Ints,
    scale: float = 1.0,
    sampling_ratio: int = 0,
    mode: Mode = "avg",
    aligned: bool = True,
    out: Array | None = None,
) -> Array:
    """Pools boxes (R, 4) of x (N, C, H, W) into (R, C, *size), box r being of sample images[r], an int64.

    A box is x1, y1, x2, y2, in elements of x over ``scale``. Each cell takes the mean or the maximum of samples,
    sampling_ratio per axis or, if that is 0, as many as the cell has elements. A sample is interpolated between four
    elements; more than one element outside it is 0. max_corner takes the maximum of those four by their weights, as
    ONNX's mode max does. aligned is ONNX's half_pixel; without it boxes are half an
    element further right and below, and at least one element large. A box with a NaN or an infinity gives NaN. He et
    al., "Mask R-CNN", 2017.
    """
    ...


@op
def roi_align_dx(
    dy: Array,
    boxes: Array,
    images: Array,
    *,
    shape: Ints,
    scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of roi_align's mean in x, of ``shape`` (N, C, H, W), from dy (R, C, P, Q).

    Boxes (R, 4) and images (R,) are roi_align's; a box with a NaN or an infinity adds nothing.
    """
    ...


def _samples(low: float, high: float, cells: int, n: int, scale: float, ratio: int, aligned: bool) -> Any:
    """Per cell of a box along an axis of n elements: places of samples that may lie inside, and how many there are."""
    start, length = low * scale - (0.5 if aligned else 0.0), (high - low) * scale
    cell = (length if aligned else max(length, 1.0)) / cells
    grid = ratio or max(math.ceil(cell), 0)
    for c in range(cells):
        first, last = 0, grid
        if grid > 4 * (n + 4):  # leave out what lies outside for certain
            step = cell / grid
            first = int(min(max((-2 - start - c * cell) / step - 2, 0), grid))
            last = int(min(max((n + 1 - start - c * cell) / step + 2, 0), grid))
        yield start + c * cell + (np.arange(first, last, dtype=np.float64) + 0.5) * (cell / max(grid, 1)), grid


def _matrix(places: Any, n: int) -> Any:
    """One row per sample: the weights of the n elements that it is interpolated from."""
    rows = np.zeros((len(places), n))
    inside = (places >= -1) & (places <= n)
    at = np.clip(places, 0, n - 1)
    low = np.minimum(at.astype(np.int64), n - 1)
    part = at - low
    every = np.arange(len(places))
    np.add.at(rows, (every, low), np.where(inside, 1 - part, 0.0))
    np.add.at(rows, (every, np.minimum(low + 1, n - 1)), np.where(inside, part, 0.0))
    return rows


def _axes(box: Any, size: Sizes, shape: Sizes, scale: float, ratio: int, aligned: bool) -> Any:
    """Per axis and cell, the samples' weights and their number; None for a box that is not finite."""
    if not np.all(np.isfinite(box)):
        return None
    ends = ((box[1], box[3], size[0], shape[0]), (box[0], box[2], size[1], shape[1]))
    return [
        [(_matrix(places, n), grid) for places, grid in _samples(low, high, cells, n, scale, ratio, aligned)]
        for low, high, cells, n in ends
    ]


def _means(axis: Any) -> Any:
    """One row per cell: the weights of the elements in the mean of its samples."""
    return np.array([rows.sum(axis=0) / max(grid, 1) for rows, grid in axis])


def _weighted(weights: Any, values: Any) -> Any:
    """Products that are 0 where the weight is, whatever the value."""
    return np.where(weights == 0, 0.0, weights * values)


def _top(shares: Any) -> Any:
    """The largest of the four weighted neighbours of a sample; those of weight 0 are 0, as all others are here."""
    weighed = np.count_nonzero(shares, axis=(1, 2)) == 4
    lone = np.where(shares == 0, -np.inf, shares)
    return np.where(weighed, lone.max(axis=(1, 2)), shares.max(axis=(1, 2)))


@reference(roi_align)
def _(
    x: Any,
    boxes: Any,
    images: Any,
    *,
    size: Sizes,
    scale: float,
    sampling_ratio: int,
    mode: Mode,
    aligned: bool,
) -> Any:
    y = np.zeros((len(boxes), x.shape[1], *size))
    for r, box in enumerate(boxes):
        axes = _axes(box, size, x.shape[2:], scale, sampling_ratio, aligned)
        if axes is None:
            y[r] = np.nan
            continue
        means = [_means(axis) for axis in axes]
        for p, q in np.ndindex(*size):
            if mode == "avg":
                near = np.ix_(means[0][p] != 0, means[1][q] != 0)
                weights = np.outer(means[0][p], means[1][q])[near]
                y[r, :, p, q] = _weighted(weights, x[images[r]][(slice(None), *near)]).sum(axis=(1, 2))
                continue
            (rows, down), (columns, across) = axes[0][p], axes[1][q]
            shares = [_weighted(np.outer(v, h), x[images[r]]) for v in rows for h in columns]
            values = [_top(s) if mode == "max_corner" else s.sum(axis=(1, 2)) for s in shares]
            if len(values) < down * across or not values:
                values.append(np.zeros(x.shape[1]))  # samples that were left out
            y[r, :, p, q] = np.max(values, axis=0)
    return y


@reference(roi_align_dx)
def _(dy: Any, boxes: Any, images: Any, *, shape: Sizes, scale: float, sampling_ratio: int, aligned: bool) -> Any:
    dx = np.zeros(shape)
    for r, box in enumerate(boxes):
        axes = _axes(box, dy.shape[2:], shape[2:], scale, sampling_ratio, aligned)
        if axes is None:
            continue
        means = [_means(axis) for axis in axes]
        for p, q in np.ndindex(*dy.shape[2:]):
            near = np.ix_(means[0][p] != 0, means[1][q] != 0)
            weights = np.outer(means[0][p], means[1][q])[near]
            dx[images[r]][(slice(None), *near)] += _weighted(weights, dy[r, :, p, q, None, None])
    return dx


def _largest(x: Any, boxes: Any, images: Any, *, size: Sizes, **attrs: Any) -> Any:
    """The largest element of each channel: a place is rounded, and that counts by the difference of neighbours."""
    top = np.abs(x).max(axis=(2, 3), initial=0.0)[images]
    return np.broadcast_to(top[:, :, None, None], (*top.shape, *size))


def _largest_share(dy: Any, boxes: Any, images: Any, *, shape: Sizes, **attrs: Any) -> Any:
    """The largest share of each box, summed for each channel."""
    top = np.zeros(shape[:2])
    np.add.at(top, images, np.abs(dy).max(axis=(2, 3), initial=0.0))
    return np.broadcast_to(top[:, :, None, None], shape)


roi_align.rules["scale"] = _largest
roi_align_dx.rules["scale"] = _largest_share


@backward(roi_align, of=("x",))
def _(
    dy: Array,
    x: Array,
    boxes: Array,
    images: Array,
    *,
    saved: None,
    wanted: Wanted,
    size: Sizes,
    mode: Mode,
    **attrs: Any,
) -> tuple[Array | None]:
    if mode != "avg":
        raise UnsupportedError(
            f"roi_align: mode={mode!r} has no gradient; want mode='avg'", op="roi_align", argument="mode"
        )
    return (roi_align_dx(dy, boxes, images, shape=x.shape, **attrs) if "x" in wanted else None,)


@backward(roi_align_dx, of=("dy",))
def _(
    g: Array, dy: Array, boxes: Array, images: Array, *, saved: None, wanted: Wanted, shape: Sizes, **attrs: Any
) -> tuple[Array | None]:
    return (roi_align(g, boxes, images, size=dy.shape[2:], **attrs) if "dy" in wanted else None,)


def _boxes(fill: Fill) -> Any:
    """Boxes inside, across the border, outside, tiny and reversed; no cell is near a whole number of elements."""
    return np.array(
        [
            [1.1, 0.7, 6.4, 4.3],
            [-3.3, -2.6, 4.2, 3.1],
            [20.2, 20.3, 23.4, 24.4],
            [2.3, 2.2, 2.55, 2.45],
            [5.1, 4.2, 1.3, 1.2],
        ]
    ).astype(fill.dtype)


_ATTRS: tuple[dict[str, Any], ...] = (
    {"scale": 0.53, "sampling_ratio": 2},
    {"aligned": False},
    {"sampling_ratio": 3, "aligned": False, "scale": 1.7},
)


@samples(roi_align)
def _(fill: Fill) -> Iterator[Sample]:
    images = np.array([0, 1, 0, 1, 0])
    yield sample(fill(2, 3, 7, 9), _boxes(fill), images, size=(2, 3))
    yield sample(fill(1, 2, 1, 1), _boxes(fill)[:2], images[:2] * 0, size=1, sampling_ratio=2)
    for attrs in _ATTRS:
        yield Sample((fill(9, 7, 3, 2).T, _boxes(fill), images), {"size": (3, 2), **attrs})
    yield sample(fill(2, 3, 4, 4), _boxes(fill)[:0], images[:0], size=2)


@samples(roi_align_dx)
def _(fill: Fill) -> Iterator[Sample]:
    images = np.array([0, 1, 0, 1, 0])
    for attrs in ({}, *_ATTRS):
        yield Sample((fill(5, 3, 3, 2), _boxes(fill), images), {"shape": (2, 3, 7, 9), **attrs})
    yield sample(fill(0, 3, 2, 2), _boxes(fill)[:0], images[:0], shape=(1, 3, 4, 5))


@errors(roi_align)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, boxes, images = fill(2, 3, 5, 5), _boxes(fill), np.zeros(5, np.int64)
    for wrong in (2, -1, 1 << 62):
        bad = sample(x, boxes, np.where(np.arange(5) == 3, wrong, 0), size=2)
        yield ErrorCase(bad, IndexContentError, f"images has {wrong} at position 3; want 0 to 1")
    yield ErrorCase(sample(x, boxes[:, :3], images, size=2), ShapeError, "boxes has shape (5, 3); want (R, 4)")
    yield ErrorCase(sample(x, boxes, images[:4], size=2), ShapeError, "images has shape (4,)")
    yield ErrorCase(sample(x, boxes, images.astype(np.int32), size=2), DTypeError, "images has dtype int32; want int64")
    yield ErrorCase(sample(x[0], boxes, images, size=2), ShapeError, "x has")
    yield ErrorCase(sample(x, boxes, images, size=0), AttrError, "size=0")
    yield ErrorCase(sample(x, boxes, images, size=1 << 20), AttrError, "want at most 32768 cells")
    yield ErrorCase(sample(x, boxes, images, size=2, sampling_ratio=-1), AttrError, "sampling_ratio=-1")
    yield ErrorCase(
        sample(x, boxes, images, size=2, scale=0.0), AttrError, "scale=0; want a number above 0, at most 2^20"
    )
    yield ErrorCase(sample(x, boxes, images), AttrTypeError, "size")


@errors(roi_align_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, boxes, images = fill(5, 3, 2, 2), _boxes(fill), np.zeros(5, np.int64)
    yield ErrorCase(sample(dy, boxes, images + 1, shape=(1, 3, 4, 4)), IndexContentError, "images has 1 at position 0")
    yield ErrorCase(sample(dy[:4], boxes, images, shape=(1, 3, 4, 4)), ShapeError, "dy has shape (4, 3, 2, 2)")
    yield ErrorCase(sample(dy, boxes, images, shape=(1, 2, 4, 4)), ShapeError, "shape=(1, 2, 4, 4)")
    yield ErrorCase(sample(dy, boxes, images, shape=(4, 4)), AttrError, "shape=(4, 4)")


@workloads(roi_align)
def _() -> Iterator[Workload]:
    attrs = {"size": 7, "scale": 0.0625, "sampling_ratio": 2}
    yield Workload("256 boxes 7x7 of 256x50x50", ((1, 256, 50, 50), (256, 4), (256,)), attrs)


@workloads(roi_align_dx)
def _() -> Iterator[Workload]:
    attrs = {"shape": (1, 256, 50, 50), "scale": 0.0625, "sampling_ratio": 2}
    yield Workload("256 boxes 7x7 of 256x50x50", ((256, 256, 7, 7), (256, 4), (256,)), attrs)


@fills(roi_align)
@fills(roi_align_dx)
def _(fill: Fill, first: Sizes, boxes: Sizes, images: Sizes, **attrs: Any) -> Any:
    """Boxes of 50 to 450 pixels in an image of 800, all of the first sample."""
    middle, half = 400 + 100 * np.tanh(fill(boxes[0], 2)), 25 + 200 / (1 + np.exp(fill(boxes[0], 2)))
    corners = np.concatenate([middle - half, middle + half], axis=1).astype(fill.dtype)
    return fill(*first), corners, np.zeros(images, np.int64)


for _target in (roi_align, roi_align_dx):
    dtypes(_target, *FLOATING)
    tolerance(_target, ulp=8)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(roi_align)
def _(
    queue: Queue,
    x: Any,
    boxes: Any,
    images: Any,
    y: Any,
    *,
    size: Sizes,
    scale: float,
    sampling_ratio: int,
    mode: Mode,
    aligned: bool,
) -> None:
    queue.check_indices("images", images, x.shape[0])
    args = (x, boxes, images, y, y.size, *x.shape[1:], *size, sampling_ratio, int(aligned), scale)
    define = {"DTYPE": x.dtype} | ({} if mode == "avg" else {"LARGEST": 1 + (mode == "max_corner")})
    queue.launch("roi_align.cl", "roi_align", y.size, GROUP_SIZE, args, **define)


@opencl(roi_align_dx)
def _(
    queue: Queue,
    dy: Any,
    boxes: Any,
    images: Any,
    dx: Any,
    *,
    shape: Sizes,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    queue.check_indices("images", images, shape[0])
    args = (dy, boxes, images, dx, dx.size, *shape[1:], *dy.shape[2:], sampling_ratio, int(aligned), scale, dy.shape[0])
    queue.launch("roi_align.cl", "roi_align_dx", dx.size, GROUP_SIZE, args, DTYPE=dy.dtype)
