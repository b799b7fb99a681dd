"""How far each pixel of a mask is from the nearest zero."""

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
def distance_transform(mask: Array, *, out: Array | None = None) -> Array:
    """Computes how far each pixel of mask (H, W), uint8, is from the nearest zero of it: float32 (H, W), exact.

    Euclidean distances between pixel centres, each rounded once (a device rounds its root); 0 on zeros, infinity where
    there is no zero at all. Within rounding ``cv2.distanceTransform`` with ``DIST_L2`` and ``DIST_MASK_PRECISE``.
    """
    ...


@reference(distance_transform)
def _(mask: Any) -> Any:
    if mask.size == 0:
        return np.zeros(mask.shape)
    rows = np.arange(len(mask))[:, None]
    above = np.maximum.accumulate(np.where(mask, -np.inf, rows), 0)
    below = np.minimum.accumulate(np.where(mask, np.inf, rows)[::-1], 0)[::-1]
    column = np.minimum(rows - above, below - rows) ** 2
    nearest = column.copy()
    for apart in range(1, mask.shape[1]):
        if apart**2 >= nearest.max():
            break
        nearest[:, apart:] = np.minimum(nearest[:, apart:], column[:, :-apart] + apart**2)
        nearest[:, :-apart] = np.minimum(nearest[:, :-apart], column[:, apart:] + apart**2)
    return np.sqrt(nearest)


dtypes(distance_transform, "uint8")
tolerance(distance_transform, ulp=3)  # of a device's root


def _mask(fill: Fill, *shape: int, zeros: float) -> Any:
    """Ones with a share of zeros."""
    return (fill.integers(*shape, low=0, high=1000) >= 1000 * zeros).astype(np.uint8)


@samples(distance_transform)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(_mask(fill, 37, 70, zeros=0.1))
    yield sample(_mask(fill, 20, 301, zeros=0.001))
    yield sample(_mask(fill, 9, 33, zeros=0.02).T)
    yield sample(np.ones((3, 5), np.uint8))
    yield sample(np.pad(np.zeros((1, 1), np.uint8), ((2, 0), (300, 0)), constant_values=9))
    yield sample(fill(1, 1))
    yield sample(fill(0, 4))


@errors(distance_transform)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3, 4).astype(bool)), DTypeError, "mask has dtype bool; want uint8")
    yield ErrorCase(sample(fill(3, 4, 3)), ShapeError, "mask has shape (3, 4, 3); want (H, W)")
    yield ErrorCase(sample(np.zeros((1, 32768), np.uint8)), ShapeError, "want at most 32767 rows and columns")


@workloads(distance_transform)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


@opencl(distance_transform)
def _(queue: Queue, mask: Any, y: Any) -> None:
    far = queue.empty(mask.shape, np.uint16)
    queue.launch("distance.cl", "columns", mask.shape[1] if mask.size else 0, 64, (mask, far, *mask.shape))
    queue.launch("distance.cl", "rows", y.size, GROUP_SIZE, (far, y, *mask.shape))
