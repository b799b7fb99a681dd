"""The histogram of pictures of 8 and 16 bits, and the map that spreads it evenly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
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
def histogram(image: Array, *, out: Array | None = None) -> Array:
    """Counts how often each value occurs in image, uint8 or uint16 of any shape: int32 (256,) or (65536,)."""
    ...


@op
def equalize_hist(image: Array, *, out: Array | None = None) -> Array:
    """Spreads the values of image, uint8 or uint16 of any shape, evenly over all there are: the same shape and type.

    The least value becomes 0 and the largest 255 or 65535; a picture of one value stays as it is. Of uint8 the bits are
    those of ``cv2.equalizeHist`` 5.0, whose map is float32; that of uint16 is float64, rounded halves to even. float32
    is refused: it has no levels to count, so cast it to the one of these types whose levels matter. On a device the
    call waits for the histogram.
    """
    ...


@op
def look_up(image: Array, table: Array, *, out: Array | None = None) -> Array:
    """Replaces each element x of image of any shape by table[x]: uint8 and (256,), or uint16 and (65536,)."""
    ...


def _map(counts: Any) -> Any:
    """What each value becomes."""
    occurs = np.flatnonzero(counts)
    first = int(occurs[0])
    spread = int(counts.sum() - counts[first])
    if spread == 0:
        return np.full(len(counts), first)
    sums = np.cumsum(counts) - counts[: first + 1].sum()
    real, top = (np.float32 if len(counts) == 256 else np.float64), len(counts) - 1
    return np.clip(np.rint(sums.astype(real) * (real(top) / real(spread))), 0, top)


def _counts(image: Any) -> Any:
    return np.bincount(image.ravel(), minlength=1 << 8 * image.dtype.itemsize)


@reference(histogram)
def _(image: Any) -> Any:
    return _counts(image)


@reference(equalize_hist)
def _(image: Any) -> Any:
    return _map(_counts(image))[image] if image.size else image


@reference(look_up)
def _(image: Any, table: Any) -> Any:
    return table[image.astype(np.int64)]


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(7, 39))
    yield sample(fill(5, 3, 3).T)
    yield sample(fill(2, 9)[:, ::-2] // 8 + 90)
    yield sample(np.full((3, 5), 7, fill.dtype))
    yield sample(fill())
    yield sample(fill(0, 4))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4).astype(np.float32)), DTypeError, "image has dtype float32; want uint8 or uint16")


for _op in (histogram, equalize_hist):
    dtypes(_op, "uint8", "uint16")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)


dtypes(look_up, "uint8", "uint16")
tolerance(look_up, ulp=0.5)


def _levels(fill: Fill) -> int:
    """How many values an element can have."""
    return 256 if fill.dtype.itemsize == 1 else 1 << 16


@samples(look_up)
def _(fill: Fill) -> Iterator[Sample]:
    for made in _samples(fill):
        yield sample(made.args[0], fill(_levels(fill)))
    yield sample(fill(3, 4), fill(2 * _levels(fill))[::-2])


@errors(look_up)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, table = fill(3, 4), fill(_levels(fill))
    yield ErrorCase(sample(x.astype(np.float32), table), DTypeError, "image has dtype float32; want uint8 or uint16")
    yield ErrorCase(sample(x, table.astype(np.int32)), DTypeError, f"table has dtype int32 but image has {x.dtype}")
    yield ErrorCase(sample(x, table[:-1]), ShapeError, f"table has shape ({len(table) - 1},)")


@workloads(equalize_hist)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


_PER_ITEM = 16


def _count(queue: Queue, image: Any, counts: Any) -> None:
    queue.fill(counts, 0)
    items = -(-image.size // _PER_ITEM)
    queue.launch("histogram.cl", "count", items, GROUP_SIZE, (image, counts, image.size, _PER_ITEM), DTYPE=image.dtype)


@opencl(histogram)
def _(queue: Queue, image: Any, y: Any) -> None:
    _count(queue, image, y)


@opencl(equalize_hist)
def _(queue: Queue, image: Any, y: Any) -> None:
    if y.size == 0:
        return
    levels = 1 << 8 * image.dtype.itemsize
    counts, there = queue.empty((levels,), np.int32), queue.empty((levels,), image.dtype)
    _count(queue, image, counts)
    queue.write(_map(queue.read(counts).astype(np.int64)).astype(image.dtype), there)
    queue.launch("histogram.cl", "look_up", y.size, GROUP_SIZE, (image, there, y, y.size), DTYPE=y.dtype)


@opencl(look_up)
def _(queue: Queue, image: Any, table: Any, y: Any) -> None:
    queue.launch("histogram.cl", "look_up", y.size, GROUP_SIZE, (image, table, y, y.size), DTYPE=y.dtype)
