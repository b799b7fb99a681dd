"""Half and twice the size of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_separable import launch_separable
from tilework.errors import DTypeError, ShapeError
from tilework.ops.blur import mirrored, summed, weighted
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
    """Halves a picture (H, W) or (H, W, 3): smoothed by 1 4 6 4 1, every second pixel, sizes rounded up.

    Outside, pixels mirror at the edge without repeating it. Of uint8 the bits are those of ``cv2.pyrDown`` 5.0; of
    uint16 sums are rounded once, half up; of float32 those down and then along in float64, each to float32.
    """
    ...


@op
def pyramid_up(image: Array, *, out: Array | None = None) -> Array:
    """Doubles a picture (H, W) or (H, W, 3), smoothed by 1 4 6 4 1: (2H, 2W) or (2H, 2W, 3).

    It mirrors before the first pixel and repeats the last. Of uint8 the bits are those of ``cv2.pyrUp`` 5.0; uint16 and
    float32 are rounded as pyramid_down has them.
    """
    ...


_TAPS = (1, 4, 6, 4, 1)


@reference(pyramid_down)
def _(image: Any) -> Any:
    if image.size and image.dtype == np.float64:
        return summed(mirrored(mirrored(image, 2, 0), 2, 1), [(_TAPS, _TAPS)], 256)[::2, ::2]
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
    if image.size == 0:
        return np.zeros((2 * image.shape[0], 2 * image.shape[1], *image.shape[2:]))
    if image.dtype == np.float64:
        down = _doubled(image).astype(np.float32).astype(np.float64)
        return _doubled(down.swapaxes(0, 1)).swapaxes(0, 1) / 64
    x = image.astype(np.int64)
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
    yield ErrorCase(sample(x.astype(np.int8)), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x[0]), ShapeError, "image has shape (4,); want (H, W) or (H, W, 3)")


def _hd() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


for _op in (pyramid_down, pyramid_up):
    dtypes(_op, "uint8", "uint16", "float32")
    tolerance(_op, ulp=0.5)
    samples(_op)(_samples)
    errors(_op)(_refused)
    workloads(_op)(_hd)


def _launch(queue: Queue, image: Any, y: Any, kernel: str) -> None:
    sizes = (*image.shape[:2], *y.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("pyramid.cl", kernel, y.size, GROUP_SIZE, (image, y, *sizes), DTYPE=image.dtype)


@opencl(pyramid_down)
def _(queue: Queue, image: Any, y: Any) -> None:
    if image.dtype == np.uint8:
        _launch(queue, image, y, "down")
    else:
        launch_separable(queue, image, y, [(_TAPS, _TAPS)], divisor=256, pace=2)


@opencl(pyramid_up)
def _(queue: Queue, image: Any, y: Any) -> None:
    _launch(queue, image, y, "up")
