"""What edges are drawn along: gradients, their sizes, and the way along the edge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.blur import blurred, launch_blur
from tilework.ops.canny import scene, shifted, steepest
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    flops,
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
def edge_gradients(
    image: Array,
    *,
    sigma: float = 1.0,
    threshold: int = 16,
    anchor: int = 0,
    out: tuple[Array, Array] | None = None,
) -> Any:
    """Prepares a picture (H, W) or (H, W, 3), uint8, for Edge Drawing: strength (H, W) and gradient (H, W, 2).

    gradient, int16, is dx and dy: Sobel sums after a blur of ``sigma`` pixels, of three channels those with the largest
    |dx| + |dy|. strength, uint16, is 0 on the rim and where |dx| + |dy| is below ``threshold``; else it is
    8 (|dx| + |dy|) + 4 (an edge starts here) + heading. An edge starts where the size exceeds that of the neighbours
    across the edge by ``anchor``, and that of the first one in any case. Headings 0 to 3 are right, down, left and up,
    with the brighter side on the right.
    """
    ...


@reference(edge_gradients)
def _(image: Any, *, sigma: float, threshold: int, anchor: int) -> Any:
    x = (image if image.ndim == 3 else image[..., None]).astype(np.int64)
    if x.size == 0:
        return np.zeros(x.shape[:2]), np.zeros((*x.shape[:2], 2))
    size, dx, dy = steepest(blurred(x, sigma) if sigma > 0 else x, 3, l2=False)
    upright = np.abs(dx) >= np.abs(dy)
    before = np.where(upright, shifted(size, 0, -1), shifted(size, -1, 0))
    after = np.where(upright, shifted(size, 0, 1), shifted(size, 1, 0))
    starts = (size > before) & (size - before >= anchor) & (size - after >= anchor)
    heading = upright + 2 * np.where(upright, dx > 0, dy < 0)
    strength = np.where(size >= threshold, 8 * size + 4 * starts + heading, 0)
    strength[[0, -1]] = strength[:, [0, -1]] = 0
    return strength, np.stack([dx, dy], axis=-1)


dtypes(edge_gradients, "uint8")
tolerance(edge_gradients, ulp=0.5)


@samples(edge_gradients)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(scene(fill, 70, 37))
    yield sample(scene(fill, 9, 70, 3), sigma=0.0, threshold=1)
    yield sample(scene(fill, 11, 35).T, sigma=1.4, threshold=60, anchor=9)
    yield sample(scene(fill, 3, 1), sigma=0.0)
    yield sample(scene(fill, 1, 9), sigma=0.0)
    yield sample(np.zeros((0, 5), np.uint8))


@errors(edge_gradients)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = scene(fill, 5, 6)
    yield ErrorCase(sample(x.astype(np.float64)), DTypeError, "image has dtype float64; want uint8")
    yield ErrorCase(sample(x[None]), ShapeError, "image has shape (1, 5, 6); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, sigma=float("nan")), AttrError, "sigma=nan; want 0 (no blur) to 100 pixels")
    yield ErrorCase(sample(x, threshold=0), AttrError, "threshold=0; want 1 to 32767")
    yield ErrorCase(sample(x, anchor=-1), AttrError, "anchor=-1; want 0 to 32767")


@workloads(edge_gradients)
def _() -> Iterator[Workload]:
    yield Workload("VGA", ((480, 640),), {}, ("vision",))


@flops(edge_gradients)
def _(image: Any, **attrs: Any) -> float:
    return 30.0 * float(math.prod(image))


@opencl(edge_gradients)
def _(queue: Queue, image: Any, strength: Any, gradient: Any, *, sigma: float, threshold: int, anchor: int) -> None:
    (height, width), channels = strength.shape, image.shape[2] if image.ndim == 3 else 1
    if sigma > 0:
        sharp, image = image, queue.empty(image.shape, np.uint8)
        launch_blur(queue, sharp, image, sigma)
    args = (image, strength, gradient, height, width, channels, threshold, anchor)
    queue.launch("edge_gradients.cl", "gradients", strength.size, GROUP_SIZE, args, SIZE=3)
