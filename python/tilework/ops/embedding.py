"""Rows of a table by index, and the gradient of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING
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
    out: Array | None = None,
) -> Array:
    """Looks up the rows of w (R, D) at integer indices of any shape; the result has one axis of D more.

    An index outside [0, R) is an IndexContentError. Row padding_idx gets no gradient; with scale_by_frequency the
    gradient of a row is divided by how often it was looked up.
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


@reference(embedding)
def _(w: Any, indices: Any, *, padding_idx: int | None, scale_by_frequency: bool) -> Any:
    return w[np.asarray(indices, np.int64)]


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


@backward(embedding, of=("w",))
def _(dy: Array, w: Array, indices: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
    return (embedding_dw(dy, indices, rows=w.shape[0], **attrs) if "w" in wanted else None,)


@depth(embedding_dw)
def _(dy: Any, indices: Any, **attrs: Any) -> int:
    return max(1, int(np.asarray(indices).size))


tolerance(embedding, ulp=0.5)
dtypes(embedding, *FLOATING)
dtypes(embedding_dw, *FLOATING)


@samples(embedding)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1), np.array([0]))
    yield sample(fill(5, 17), fill.integers(2, 7, low=0, high=4, dtype=np.int32), padding_idx=4)
    yield sample(fill(9, 4).T, fill.integers(3, 5, low=0, high=4).T)
    yield sample(fill(3, 8), np.array(2))
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


@opencl(embedding)
def _(queue: Queue, w: Any, indices: Any, y: Any, **attrs: Any) -> None:
    queue.check_indices("indices", indices, w.shape[0])
    args = (w, queue.as_int64(indices), y, y.size, w.shape[1])
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
