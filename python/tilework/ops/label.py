"""Connected components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
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
def label(mask: Array, *, connectivity: int = 8, out: tuple[Array, Array] | None = None) -> Any:
    """Numbers the connected components of what is not zero in mask (H, W), uint8: int32 (H, W), and their count, ().

    Numbers start at 1, in the order of the components' first pixels; zeros get 0. ``connectivity`` is 8, or 4 where
    corners do not connect. ``scipy.ndimage.label`` gives the same numbers.
    """
    ...


@reference(label)
def _(mask: Any, *, connectivity: int) -> Any:
    open_ = np.pad(mask != 0, 1)
    labels = np.where(open_, np.arange(1, open_.size + 1).reshape(open_.shape), 0)
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if connectivity == 8 or i * j == 0]
    while True:  # each pixel takes the least label around it, and the label of the pixel that this one numbers
        around = [np.where(labels, np.roll(labels, step, (0, 1)), 0) for step in steps]
        least = np.min([np.where(a, a, open_.size + 1) for a in around], 0) * open_
        if np.array_equal(least, labels):
            break
        labels = np.where(least, least.ravel()[least - 1], 0)
    found, numbers = np.unique(labels[1:-1, 1:-1], return_inverse=True)
    zero = 0 if found.size and found[0] == 0 else 1
    return numbers.reshape(mask.shape) + zero, np.array(found.size - 1 + zero)


dtypes(label, "uint8")
tolerance(label, ulp=0.5)


def _mask(fill: Fill, *shape: int, ones: float) -> Any:
    return (fill.integers(*shape, low=0, high=100) < 100 * ones).astype(np.uint8) * 5


@samples(label)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(_mask(fill, 23, 70, ones=0.4))
    yield sample(_mask(fill, 19, 133, ones=0.6), connectivity=4)
    yield sample(_mask(fill, 9, 65, ones=0.5).T)
    yield sample(_mask(fill, 6, 40, ones=0.3)[::-1, ::2], connectivity=4)
    y, x = np.mgrid[:31, :40]
    yield sample((np.maximum(abs(y - 15), abs(x - 20)) % 2).astype(np.uint8))
    yield sample(((y % 4 == 0) | (x == np.where(y % 8 < 4, 39, 0))).astype(np.uint8))
    yield sample(np.ones((2, 3), np.uint8))
    yield sample(np.zeros((1, 5), np.uint8))
    yield sample(fill(0, 4))


@errors(label)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4).astype(bool)), DTypeError, "mask has dtype bool; want uint8")
    yield ErrorCase(sample(fill(3, 4, 3)), ShapeError, "mask has shape (3, 4, 3); want (H, W)")
    yield ErrorCase(sample(fill(3, 4), connectivity=6), AttrError, "connectivity=6; want 4 or 8")


@workloads(label)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


_PIECE = 256  # pixels that an item numbers


@opencl(label)
def _(queue: Queue, mask: Any, y: Any, count: Any, *, connectivity: int) -> None:
    height, width = mask.shape
    n, pieces = mask.size, -(-mask.size // _PIECE)
    if n == 0:
        queue.fill(count, 0)
        return
    labels, numbers = queue.empty((n,), np.uint32), queue.empty((n,), np.int32)
    counts = queue.empty((pieces,), np.int32)
    queue.launch("label.cl", "start", n, GROUP_SIZE, (mask, labels, n))
    queue.launch("label.cl", "unite", n, GROUP_SIZE, (labels, height, width, int(connectivity == 8)))
    queue.launch("label.cl", "count", pieces, 64, (labels, counts, n))
    queue.launch("label.cl", "add_up", 1, 1, (counts, count, pieces))
    queue.launch("label.cl", "number", pieces, 64, (labels, counts, numbers, n))
    queue.launch("label.cl", "put", n, GROUP_SIZE, (labels, numbers, y, n))
