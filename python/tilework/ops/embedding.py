"""Rows of a table by index, and the gradient of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import AttrError, AttrTypeError, DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    bytes_moved,
    depth,
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


@op
def embedding(
    w: Array,
    indices: Array,
    *,
    padding_idx: int | None = None,
    scale_by_frequency: bool = False,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    out: Array | None = None,
) -> Array:
    """Looks up the rows of w (R, D) at integer indices of any shape; the result has one axis of D more.

    An index outside [0, R) is an IndexContentError. Row padding_idx gets no gradient; with scale_by_frequency the
    gradient of a row is divided by how often it was looked up. A row whose norm, norm_type 1, 2 or inf, is beyond
    ``max_norm`` is looked up times max_norm / (norm + 1e-7), and its gradient is that of this product. PyTorch writes
    the product into the table, and lets the gradient pass it; here w stays as it is.
    """
    ...


@op
def embedding_dw(
    dy: Array,
    indices: Array,
    *,
    rows: int,
    padding_idx: int | None = None,
    scale_by_frequency: bool = False,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of embedding in w, (rows, D): row r is the sum of dy (*indices, D) where the index is r."""
    ...


def held(w: Any, max_norm: float | None, norm_type: float) -> Any:
    """Rows of a table held to a norm."""
    if max_norm is None:
        return w
    norm = np.linalg.norm(w, ord=norm_type, axis=1, keepdims=True) if w.size else np.zeros((w.shape[0], 1))
    return np.where(norm > max_norm, w * (max_norm / (norm + 1e-7)), w)


@reference(embedding)
def _(w: Any, indices: Any, *, max_norm: float | None, norm_type: float, **attrs: Any) -> Any:
    return held(w, max_norm, norm_type)[np.asarray(indices, np.int64)]


@reference(embedding_dw)
def _(dy: Any, indices: Any, *, rows: int, padding_idx: int | None, scale_by_frequency: bool) -> Any:
    flat = np.asarray(indices, np.int64).reshape(-1)
    dw = np.zeros((rows, dy.shape[-1]))
    np.add.at(dw, flat, dy.reshape(flat.size, dy.shape[-1]))
    if scale_by_frequency:
        dw /= np.fmax(np.bincount(flat, minlength=rows), 1)[:, None]
    if padding_idx is not None:
        dw[padding_idx] = 0
    return dw


class Held:
    """The rows of a table w (R, D) held to a norm, in ops, and the way of gradients back through it."""

    def __init__(self, w: Array, max_norm: float, norm_type: float) -> None:
        self._dtype, self._w = w.dtype, ops.cast(w, dtype=np.float32) if is_narrow(w.dtype) else w
        size = ops.abs(self._w)
        if norm_type == 2:
            norm = ops.sqrt(ops.reduce_sum(ops.mul(size, size), axes=1, keepdims=True))
        else:
            norm = (ops.reduce_sum if norm_type == 1 else ops.reduce_max)(size, axes=1, keepdims=True)
        self._beyond = ops.greater(norm, max_norm)
        self._share = ops.div(1.0, ops.add(norm, 1e-7))
        self._by = ops.where(self._beyond, ops.mul(self._share, max_norm), ops.add(ops.mul(norm, 0.0), 1.0))
        if norm_type == 2:
            self._slope = ops.div(self._w, ops.maximum(norm, 1e-30))
        else:
            self._slope = ops.sign(self._w)
            if norm_type != 1:
                self._slope = ops.where(ops.equal(size, norm), self._slope, ops.mul(self._w, 0.0))

    def table(self) -> Array:
        """The table that is looked up."""
        return self._narrowed(ops.mul(self._w, self._by))

    def back(self, dw: Array) -> Array:
        """The gradient of w from that of ``table()``."""
        dw = ops.cast(dw, dtype=self._w.dtype) if dw.dtype != self._w.dtype else dw
        along = ops.mul(ops.reduce_sum(ops.mul(dw, self._w), axes=1, keepdims=True), ops.mul(self._by, self._share))
        less = ops.mul(ops.where(self._beyond, along, ops.mul(along, 0.0)), self._slope)
        return self._narrowed(ops.sub(ops.mul(dw, self._by), less))

    def _narrowed(self, a: Array) -> Array:
        made: Array = ops.cast(a, dtype=self._dtype) if a.dtype != self._dtype else a
        return made


@backward(embedding, of=("w",))
def _(
    dy: Array,
    w: Array,
    indices: Array,
    *,
    saved: None,
    wanted: Wanted,
    max_norm: float | None,
    norm_type: float,
    **attrs: Any,
) -> Any:
    if "w" not in wanted:
        return (None,)
    dw = embedding_dw(dy, indices, rows=w.shape[0], **attrs)
    return (dw if max_norm is None or w.size == 0 else Held(w, max_norm, norm_type).back(dw),)


@depth(embedding_dw)
def _(dy: Any, indices: Any, **attrs: Any) -> int:
    return max(1, int(np.asarray(indices).size))


tolerance(embedding, ulp=4)  # of rows held to a norm; the others are copies
dtypes(embedding, *FLOATING)
dtypes(embedding_dw, *FLOATING)


@samples(embedding)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1), np.array([0]))
    yield sample(fill(5, 17), fill.integers(2, 7, low=0, high=4, dtype=np.int32), padding_idx=4)
    yield sample(fill(9, 4).T, fill.integers(3, 5, low=0, high=4).T)
    yield sample(fill(3, 8), np.array(2))
    for norm in (1.0, 2.0, math.inf):
        yield sample(fill(5, 17), np.array([4, 0, 4, 3]), max_norm=0.9, norm_type=norm)
    yield sample(fill(3, 4), np.zeros((2, 0), np.int64))
    yield sample(fill(3, 0), np.array([1, 2]))


@samples(embedding_dw)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1), np.array([0]), rows=1)
    yield sample(fill(2, 7, 17), fill.integers(2, 7, low=0, high=5, dtype=np.int32), rows=5, padding_idx=2)
    yield sample(fill(6, 40).T, fill.integers(40, low=0, high=3), rows=4, scale_by_frequency=True)
    yield sample(fill(8), np.array(2), rows=3)
    yield sample(fill(2, 0, 4), np.zeros((2, 0), np.int64), rows=3)


@errors(embedding)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w = fill(5, 3)
    for bad in (5, -1, 1 << 32, -(1 << 63)):
        indices = np.array([1, 0, bad])
        yield ErrorCase(sample(w, indices), IndexContentError, f"indices has {bad} at position 2; want 0 to 4")
    yield ErrorCase(sample(w, fill(3)), DTypeError, "want int32 or int64")
    yield ErrorCase(sample(w[0], np.array([0])), ShapeError, "w has 1 dimensions; want 2")
    yield ErrorCase(sample(w, np.array([0]), padding_idx=5), AttrError, "padding_idx=5; want None or 0 to 4")
    yield ErrorCase(sample(fill(0, 3), np.array([0])), IndexContentError, "indices has 0 at position 0")
    for norm in (-1.0, math.nan):
        yield ErrorCase(
            sample(w, np.array([0]), max_norm=norm), AttrError, f"max_norm={norm:g}; want None or 0 or more"
        )
    yield ErrorCase(sample(w, np.array([0]), norm_type=3.0), AttrError, "norm_type=3; want 1, 2 or inf")


@errors(embedding_dw)
def _(fill: Fill) -> Iterator[ErrorCase]:
    indices = np.array([1, 4])
    yield ErrorCase(sample(fill(2, 3), indices, rows=4), IndexContentError, "indices has 4 at position 1; want 0 to 3")
    yield ErrorCase(sample(fill(3, 3), indices, rows=5), ShapeError, "dy has shape (3, 3) but indices has (2,)")
    yield ErrorCase(sample(fill(2), indices, rows=5), ShapeError, "dy has 1 dimensions; want 2")
    yield ErrorCase(sample(fill(2, 3), indices, rows=-1), AttrError, "rows=-1; want 0 or more")
    yield ErrorCase(sample(fill(2, 3), indices, rows=5, padding_idx=-1), AttrError, "padding_idx=-1; want None or 0")
    yield ErrorCase(sample(fill(2, 3), indices), AttrTypeError, "rows is missing")


@workloads(embedding)
def _() -> Iterator[Workload]:
    yield Workload("8192x768 T1024", ((8192, 768), (1024,)), sets=("transformer",))


@workloads(embedding_dw)
def _() -> Iterator[Workload]:
    yield Workload("8192x768 T1024", ((1024, 768), (1024,)), {"rows": 8192}, sets=("transformer",))


@fills(embedding)
def _(fill: Fill, w: Sizes, indices: Sizes, **attrs: Any) -> Any:
    return fill(*w), fill.integers(*indices, low=0, high=w[0])


@fills(embedding_dw)
def _(fill: Fill, dy: Sizes, indices: Sizes, *, rows: int, **attrs: Any) -> Any:
    return fill(*dy), fill.integers(*indices, low=0, high=rows)


@bytes_moved(embedding)
def _(w: Sizes, indices: Sizes, **attrs: Any) -> tuple[float, float]:
    count = math.prod(indices)
    return 4.0 * count * w[1] + 8.0 * count, 4.0 * count * w[1]


# ------------------------------------------------------------------------------------------------- OpenCL


def norm_factors(queue: Queue, w: Any, indices: Any, max_norm: float | None, norm_type: float) -> Any:
    """What the looked up rows are multiplied by, one number per place; None without a norm."""
    if max_norm is None or not indices.size or not w.shape[1]:
        return None
    made = queue.empty((indices.size,), np.float32 if is_narrow(w.dtype) else w.dtype)
    kind = 0 if norm_type == math.inf else int(norm_type)
    args = (w, indices, made, max_norm, indices.size, w.shape[1], kind)
    queue.launch("embedding.cl", "hold_rows", made.size, GROUP_SIZE, args, DTYPE=w.dtype)
    return made


@opencl(embedding)
def _(queue: Queue, w: Any, indices: Any, y: Any, *, max_norm: float | None, norm_type: float, **attrs: Any) -> None:
    queue.check_indices("indices", indices, w.shape[0])
    indices = queue.as_int64(indices)
    by = norm_factors(queue, w, indices, max_norm, norm_type)
    args = (w, indices, queue.number(0, np.int32) if by is None else by, y, y.size, w.shape[1], int(by is not None))
    queue.launch("embedding.cl", "look_up", y.size, GROUP_SIZE, args, DTYPE=w.dtype)


@opencl(embedding_dw)
def _(
    queue: Queue,
    dy: Any,
    indices: Any,
    dw: Any,
    *,
    rows: int,
    padding_idx: int | None,
    scale_by_frequency: bool,
) -> None:
    queue.check_indices("indices", indices, rows)
    if indices.size == 0:
        queue.fill(dw, 0)
        return
    padding = -1 if padding_idx is None else padding_idx
    sizes = (dw.size, dw.shape[1], indices.size, padding, int(scale_by_frequency))
    args = (dy, queue.as_int64(indices), dw, *sizes)
    queue.launch("embedding.cl", "sum_rows", dw.size, GROUP_SIZE, args, DTYPE=dw.dtype)
