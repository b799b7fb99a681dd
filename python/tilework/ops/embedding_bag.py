"""Sums, means and maxima of rows of a table, bag by bag, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
from tilework.ops.embedding import Held, held, norm_factors
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
    terms,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill

Mode = Literal["sum", "mean", "max"]


@op
def embedding_bag(
    w: Array,
    indices: Array,
    offsets: Array,
    weights: Array | None = None,
    *,
    mode: Literal["sum", "mean", "max"] = "sum",
    padding_idx: int | None = None,
    scale_by_frequency: bool = False,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    out: Array | None = None,
) -> Array:
    """Looks up rows of w (R, D) at indices (I,) and joins those of each bag to a row of (B, D), by sum, mean or max.

    Bag b is the places offsets[b] to offsets[b + 1], the last one up to the end; an empty one is zero. With weights
    (I,), of sums only, rows are multiplied first. Places of padding_idx do not count. An index outside [0, R) and
    offsets that do not rise from 0 are IndexContentErrors. max_norm, norm_type and, but for the largest,
    scale_by_frequency are those of ``embedding``.
    """
    ...


@op
def embedding_bag_dw(
    dy: Array,
    w: Array,
    indices: Array,
    offsets: Array,
    weights: Array | None = None,
    *,
    mode: Literal["sum", "mean", "max"] = "sum",
    padding_idx: int | None = None,
    scale_by_frequency: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradient of embedding_bag in w from dy (B, D), and that in weights where they are given."""
    ...


# ------------------------------------------------------------------------------------------------- references


def _bags(indices: Any, offsets: Any, padding_idx: int | None) -> Iterator[tuple[int, Any]]:
    """Each bag and its places that count."""
    for b, begin in enumerate(offsets):
        places = np.arange(begin, offsets[b + 1] if b + 1 < len(offsets) else len(indices))
        yield b, places[indices[places] != (-1 if padding_idx is None else padding_idx)]


def _bag(w: Any, indices: Any, offsets: Any, weights: Any, mode: str, padding_idx: int | None) -> Any:
    y = np.zeros((len(offsets), w.shape[1]))
    for b, places in _bags(indices, offsets, padding_idx):
        rows = w[indices[places]]
        if len(places) and mode == "max":
            y[b] = rows.max(axis=0)
        elif len(places):
            scaled = rows if weights is None else rows * weights[places, None]
            y[b] = scaled.sum(axis=0) / (len(places) if mode == "mean" else 1)
    return y


@reference(embedding_bag)
def _(
    w: Any,
    indices: Any,
    offsets: Any,
    weights: Any,
    *,
    mode: str,
    padding_idx: int | None,
    scale_by_frequency: bool,
    max_norm: float | None,
    norm_type: float,
) -> Any:
    return _bag(held(w, max_norm, norm_type), indices, offsets, weights, mode, padding_idx)


@reference(embedding_bag_dw)
def _bag_dw(
    dy: Any,
    w: Any,
    indices: Any,
    offsets: Any,
    weights: Any,
    *,
    mode: str,
    padding_idx: int | None,
    scale_by_frequency: bool,
) -> Any:
    dw, slopes = np.zeros(w.shape), np.zeros(len(indices))
    for b, places in _bags(indices, offsets, padding_idx):
        if not len(places):
            continue
        rows = w[indices[places]]
        if mode == "max":
            best = np.where(np.isnan(rows), np.inf, rows).argmax(axis=0)
            np.add.at(dw, (indices[places][best], np.arange(w.shape[1])), dy[b])
            continue
        by = np.full(len(places), 1 / len(places) if mode == "mean" else 1.0) if weights is None else weights[places]
        np.add.at(dw, indices[places], by[:, None] * dy[b])
        slopes[places] = rows @ dy[b]
    if scale_by_frequency:
        dw /= np.fmax(np.bincount(indices, minlength=len(w)), 1)[:, None]
    return dw if weights is None else (dw, slopes)


# Sizes of what is summed, of means the sum's; the largest of a bag is exact.
@terms(embedding_bag)
def _(w: Any, indices: Any, offsets: Any, weights: Any, *, mode: str, padding_idx: int | None, **attrs: Any) -> Any:
    sizes = None if weights is None else np.abs(weights)
    return (_bag(np.abs(w), indices, offsets, sizes, mode, padding_idx),)


@terms(embedding_bag_dw)
def _(dy: Any, w: Any, indices: Any, offsets: Any, weights: Any, *, mode: str, **attrs: Any) -> Any:
    if mode == "max":
        return (_bag_dw(np.abs(dy), w, indices, offsets, weights, mode=mode, **attrs),)
    sizes = None if weights is None else np.abs(weights)
    made = _bag_dw(np.abs(dy), np.abs(w), indices, offsets, sizes, mode=mode, **attrs)
    return made if isinstance(made, tuple) else (made,)


@depth(embedding_bag)
def _(w: Any, indices: Any, *others: Any, **attrs: Any) -> int:
    return max(1, len(indices))


@depth(embedding_bag_dw)
def _(dy: Any, w: Any, indices: Any, *others: Any, **attrs: Any) -> int:
    return int(max(1, len(indices), w.shape[1]))


@backward(embedding_bag, of=("w", "weights"))
def _(
    dy: Array,
    w: Array,
    indices: Array,
    offsets: Array,
    weights: Array,
    *,
    saved: None,
    wanted: Wanted,
    max_norm: float | None,
    norm_type: float,
    **attrs: Any,
) -> Any:
    grads: Any = (None, None)
    if wanted:
        holds = None if max_norm is None or w.size == 0 else Held(w, max_norm, norm_type)
        table = w if holds is None else holds.table()
        made = embedding_bag_dw(dy, table, indices, offsets, weights, **attrs)
        grads = (made, None) if weights is None else made
        if holds is not None and "w" in wanted:
            grads = holds.back(grads[0]), grads[1]
    return tuple(g if n in wanted else None for g, n in zip(grads, ("w", "weights"), strict=True))


dtypes(embedding_bag, *FLOATING)
dtypes(embedding_bag_dw, *FLOATING)


# ------------------------------------------------------------------------------------------------- samples


@samples(embedding_bag)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1), np.array([0]), np.array([0]))
    indices = fill.integers(9, low=0, high=5, dtype=np.int32)
    offsets = np.array([0, 3, 3, 8])
    yield sample(fill(5, 17), indices, offsets, fill(9), padding_idx=2)
    yield sample(fill(5, 17), indices, offsets, mode="mean", padding_idx=1)
    yield sample(fill.distinct(5, 9), fill.integers(9, low=0, high=5), offsets.astype(np.int32), mode="max")
    yield sample(fill(8, 6).T, indices[::2], offsets[:2], fill(5))
    yield sample(fill(5, 17), indices, offsets, fill(9), padding_idx=2, max_norm=1.1)
    yield sample(fill.distinct(5, 9), indices, offsets, mode="max", max_norm=0.7, norm_type=math.inf)
    yield sample(fill(3, 4), np.zeros(0, np.int64), np.zeros(2, np.int64))
    yield sample(fill(3, 4), np.zeros(0, np.int64), np.zeros(0, np.int64), mode="mean")
    yield sample(fill(3, 0), np.array([1, 2]), np.array([0]))


@samples(embedding_bag_dw)
def _(fill: Fill) -> Iterator[Sample]:
    for made in embedding_bag.rules["samples"](fill):
        w, _, offsets = made.args[:3]
        attrs = {n: a for n, a in made.attrs.items() if n not in ("max_norm", "norm_type")}
        yield Sample((fill(len(offsets), w.shape[1]), *made.args), attrs)
        if attrs.get("padding_idx") == 1:
            yield Sample((fill(len(offsets), w.shape[1]), *made.args), attrs | {"scale_by_frequency": True})


@errors(embedding_bag)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, indices, offsets = fill(5, 3), np.array([1, 4, 0]), np.array([0, 2])
    yield ErrorCase(sample(w[0], indices, offsets), ShapeError, "w has 1 dimensions; want 2")
    yield ErrorCase(sample(w, indices[None], offsets), ShapeError, "indices has 2 dimensions; want 1")
    yield ErrorCase(sample(w, fill(3), offsets), DTypeError, "want int32 or int64")
    yield ErrorCase(
        sample(w, np.array([1, 5, 0]), offsets), IndexContentError, "indices has 5 at position 1; want 0 to 4"
    )
    for bad, text in (
        ([1, 2], "offsets has 1 at position 0; want 0 to 0"),
        ([0, 2, 1], "offsets has 1 at position 2; want 2 to 3"),
        ([0, 4], "offsets has 4 at position 1; want 0 to 3"),
        ([0, -1], "offsets has -1 at position 1; want 0 to 3"),
    ):
        yield ErrorCase(sample(w, indices, np.array(bad)), IndexContentError, text)
    none = np.zeros(0, np.int64)
    yield ErrorCase(sample(w, indices, none), IndexContentError, "offsets is empty but there are 3 indices")
    yield ErrorCase(sample(w, indices, offsets, fill(2)), ShapeError, "weights has shape (2,); want (3,)")
    yield ErrorCase(
        sample(w, indices, offsets, fill(3), mode="mean"), AttrError, 'mode is not "sum" but weights are given'
    )
    yield ErrorCase(sample(w, indices, offsets, padding_idx=5), AttrError, "padding_idx=5; want None or 0 to 4")
    yield ErrorCase(sample(w, indices, offsets, mode="prod"), AttrError, "mode='prod'")
    yield ErrorCase(sample(w, indices, offsets, max_norm=-1.0), AttrError, "max_norm=-1; want None or 0 or more")
    made = sample(w, indices, offsets, mode="max", scale_by_frequency=True)
    yield ErrorCase(made, AttrError, 'scale_by_frequency with mode="max"; want "sum" or "mean"')


@errors(embedding_bag_dw)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, indices, offsets = fill(5, 3), np.array([1, 4, 0]), np.array([0, 2])
    yield ErrorCase(sample(fill(3, 3), w, indices, offsets), ShapeError, "dy has shape (3, 3); want (2, 3)")
    yield ErrorCase(sample(fill(2, 3), w, indices, np.array([0, 4])), IndexContentError, "offsets has 4 at position 1")


_SIZES = ((8192, 64), (4096,), (256,))


@workloads(embedding_bag)
def _() -> Iterator[Workload]:
    yield Workload("8192x64 I4096 B256", _SIZES)


@workloads(embedding_bag_dw)
def _() -> Iterator[Workload]:
    yield Workload("8192x64 I4096 B256", ((256, 64), *_SIZES))


@fills(embedding_bag)
def _(fill: Fill, w: Sizes, indices: Sizes, offsets: Sizes, *others: Any, **attrs: Any) -> Any:
    even = np.arange(offsets[0], dtype=np.int64) * (indices[0] // max(offsets[0], 1))
    return fill(*w), fill.integers(*indices, low=0, high=w[0]), even, None


@fills(embedding_bag_dw)
def _(fill: Fill, dy: Sizes, *bags: Any, **attrs: Any) -> Any:
    return fill(*dy), *embedding_bag.rules["fills"](fill, *bags)


@bytes_moved(embedding_bag)
def _(w: Sizes, indices: Sizes, offsets: Sizes, *others: Any, **attrs: Any) -> tuple[float, float]:
    return 4.0 * indices[0] * w[1] + 8.0 * (indices[0] + offsets[0]), 4.0 * offsets[0] * w[1]


# ------------------------------------------------------------------------------------------------- OpenCL


class _Launch:
    """Checks indices and offsets, and launches embedding_bag.cl."""

    def __init__(
        self,
        queue: Queue,
        w: Any,
        indices: Any,
        offsets: Any,
        weights: Any,
        *,
        mode: str,
        padding_idx: int | None,
        scale_by_frequency: bool,
        max_norm: float | None = None,
        norm_type: float = 2.0,
    ) -> None:
        queue.check_indices("indices", indices, w.shape[0])
        self.queue, self.w = queue, w
        starts, places = queue.read(queue.contiguous(offsets)), indices.shape[0]
        for b, start in enumerate(starts.tolist()):
            least, most = (int(starts[b - 1]), places) if b else (0, 0)
            if not least <= start <= most:
                text = f"offsets has {start} at position {b}; want {least} to {most}"
                raise IndexContentError(text, argument="offsets")
        if places and not len(starts):
            text = f"offsets is empty but there are {places} indices; want bags for them"
            raise IndexContentError(text, argument="offsets")
        none = queue.number(0, w.dtype)
        indices = queue.as_int64(indices)
        by = norm_factors(queue, w, indices, max_norm, norm_type)
        self.arrays = (w, indices, queue.as_int64(offsets), *(none if a is None else a for a in (weights, by)))
        padding, kind = -1 if padding_idx is None else padding_idx, ("sum", "mean", "max").index(mode)
        flags = (weights is not None, kind, by is not None, scale_by_frequency)
        self.sizes = (w.shape[1], places, len(starts), padding, *flags)

    def __call__(self, kernel: str, *arrays: Any) -> None:
        items = arrays[-1].size
        none = self.queue.number(0, np.int32)  # for a kernel that never looks at it
        args = [none if a.size == 0 else a for a in (*self.arrays, *arrays)]
        sizes = np.array([items, *self.sizes], np.int64)
        self.queue.launch("embedding_bag.cl", kernel, items, GROUP_SIZE, (*args, sizes), DTYPE=self.w.dtype)


@opencl(embedding_bag)
def _(queue: Queue, *arrays: Any, **attrs: Any) -> None:
    *operands, y = arrays
    _Launch(queue, *operands, **attrs)("bag_rows", y)


@opencl(embedding_bag_dw)
def _(queue: Queue, dy: Any, *arrays: Any, **attrs: Any) -> None:
    operands, results = arrays[:4], arrays[4:]
    launch = _Launch(queue, *operands, **attrs)
    launch("bag_dw", dy, results[0])
    if len(results) > 1:
        launch("bag_dweights", dy, results[1])
