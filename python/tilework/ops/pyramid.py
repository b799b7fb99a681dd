"""Half and twice the size of 8-bit pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import DTypeError, ShapeError
from tilework.ops.blur import mirrored, weighted
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
def pyramid_down(image: Array, *, out: Array | None = None) -> Array:
    """Halves a picture (H, W) or (H, W, 3), uint8: smoothed by 1 4 6 4 1, every second pixel, sizes rounded up.

    Outside, pixels mirror at the edge without repeating it. The bits are those of ``cv2.pyrDown`` 5.0.
    """
    ...


@op
def pyramid_up(image: Array, *, out: Array | None = None) -> Array:
    """Doubles a picture (H, W) or (H, W, 3), uint8, smoothed by 1 4 6 4 1: (2H, 2W) or (2H, 2W, 3).

    The bits are those of ``cv2.pyrUp`` 5.0, which mirrors before the first pixel and repeats the last.
    """
    ...


_TAPS = (1, 4, 6, 4, 1)


@reference(pyramid_down)
def _(image: Any) -> Any:
    x = image.astype(np.int64)
    if x.size:
        for axis in (0, 1):
            x = weighted(mirrored(x, 2, axis), _TAPS, axis)
    return ((x + 128) >> 8)[::2, ::2]


def _doubled(x: Any) -> Any:
    """Twice as long along the first axis, 8 times as bright."""
    before, behind = np.concatenate([x[1:2] if len(x) > 1 else x, x[:-1]]), np.concatenate([x[1:], x[-1:]])
    pairs = np.stack([before + 6 * x + behind, 4 * (x + behind)], 1)
    return pairs.reshape(2 * len(x), *x.shape[1:])


@reference(pyramid_up)
def _(image: Any) -> Any:
    x = image.astype(np.int64)
    if x.size == 0:
        return np.zeros((2 * x.shape[0], 2 * x.shape[1], *x.shape[2:]))
    for _ in range(2):
        x = _doubled(x).swapaxes(0, 1)
    return (x + 32) >> 6


def _samples(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(7, 67))
    yield sample(fill(66, 3, 3))
    yield sample(fill(4, 19).T)
    yield sample(fill(2, 12, 3)[:, ::-1])
    yield sample(fill(1, 1))
    yield sample(fill(0, 4))


def _refused(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float32)), DTypeError, "image has dtype float32; want uint8")
    yield ErrorCase(sample(x[0]), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")


def _hd() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


for _op in (pyramid_down, pyramid_up):
    dtypes(_op, "uint8")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)
    workloads(_op)(_hd)


def _launch(queue: Queue, image: Any, y: Any, kernel: str) -> None:
    sizes = (*image.shape[:2], *y.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("pyramid.cl", kernel, y.size, GROUP_SIZE, (image, y, *sizes))


@opencl(pyramid_down)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, "down")


@opencl(pyramid_up)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, "up")
