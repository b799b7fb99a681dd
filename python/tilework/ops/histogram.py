"""The histogram of 8-bit pictures, and the map that spreads it evenly."""

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
    """Counts how often each value occurs in image, uint8 of any shape: int32 (256,)."""
    ...


@op
def equalize_hist(image: Array, *, out: Array | None = None) -> Array:
    """Spreads the values of image, uint8 of any shape, evenly over 0 to 255: the same shape and type.

    The least value becomes 0 and the largest 255; a picture of one value stays as it is. The bits are those of
    ``cv2.equalizeHist`` 5.0. On a device the call waits for the histogram.
    """
    ...


@op
def look_up(image: Array, table: Array, *, out: Array | None = None) -> Array:
    """Replaces each element x of image, uint8 of any shape, by table[x], uint8 (256,): the same shape and type."""
    ...


def _map(counts: Any) -> Any:
    """What each value becomes."""
    occurs = np.flatnonzero(counts)
    first = int(occurs[0])
    spread = int(counts.sum() - counts[first])
    if spread == 0:
        return np.full(256, first)
    sums = np.cumsum(counts) - counts[: first + 1].sum()
    even = np.rint(sums.astype(np.float32) * (np.float32(255) / np.float32(spread)))
    return np.clip(even, 0, 255)


@reference(histogram)
def _(image: Any) -> Any:
    return np.bincount(image.ravel(), minlength=256)


@reference(equalize_hist)
def _(image: Any) -> Any:
    return _map(np.bincount(image.ravel(), minlength=256))[image] if image.size else image


@reference(look_up)
def _(image: Any, table: Any) -> Any:
    return table[image.astype(np.int64)]


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(7, 39))
    yield sample(fill(5, 3, 3).T)
    yield sample(fill(2, 9)[:, ::-2] // 8 + 90)
    yield sample(np.full((3, 5), 7, np.uint8))
    yield sample(fill())
    yield sample(fill(0, 4))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4).astype(np.float32)), DTypeError, "image has dtype float32; want uint8")


for _op in (histogram, equalize_hist):
    dtypes(_op, "uint8")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)


dtypes(look_up, "uint8")
tolerance(look_up, ulp=0.5)


@samples(look_up)
def _(fill: Fill) -> Iterator[Sample]:
    for made in _samples(fill):
        yield sample(made.args[0], fill(256))
    yield sample(fill(3, 4), fill(512)[::-2])


@errors(look_up)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, table = fill(3, 4), fill(256)
    yield ErrorCase(sample(x.astype(np.float32), table), DTypeError, "image has dtype float32; want uint8")
    yield ErrorCase(sample(x, table.astype(np.int32)), DTypeError, "table has dtype int32; want uint8")
    yield ErrorCase(sample(x, table[:255]), ShapeError, "table has shape (255,)")


@workloads(equalize_hist)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


_PER_ITEM = 16


def _count(queue: Queue, image: Any, counts: Any) -> None:
    queue.fill(counts, 0)
    items = -(-image.size // _PER_ITEM)
    queue.launch("histogram.cl", "count", items, GROUP_SIZE, (image, counts, image.size, _PER_ITEM))


@opencl(histogram)
def _(queue: Queue, image: Any, y: Any) -> None:
    _count(queue, image, y)


@opencl(equalize_hist)
def _(queue: Queue, image: Any, y: Any) -> None:
    if y.size == 0:
        return
    counts, there = queue.empty((256,), np.int32), queue.empty((256,), np.uint8)
    _count(queue, image, counts)
    queue.write(_map(queue.read(counts).astype(np.int64)).astype(np.uint8), there)
    queue.launch("histogram.cl", "look_up", y.size, GROUP_SIZE, (image, there, y, y.size))


@opencl(look_up)
def _(queue: Queue, image: Any, table: Any, y: Any) -> None:
    queue.launch("histogram.cl", "look_up", y.size, GROUP_SIZE, (image, table, y, y.size))
