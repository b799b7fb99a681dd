"""What edges are drawn along: the way along the edge at each pixel, and the blurred picture."""

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
def edge_ways(
    image: Array,
    *,
    sigma: float = 1.0,
    threshold: int = 16,
    anchor: int = 0,
    out: tuple[Array, Array] | None = None,
) -> Any:
    """Prepares a picture (H, W) or (H, W, 3), uint8, for Edge Drawing: ways (H, W) and pixels (C, H + 2, W + 3).

    pixels, uint8, is the picture blurred by ``sigma`` pixels in a frame of its edge pixels, one before it and behind it
    one below and two at the right. dx and dy are its Sobel sums, of three channels those with the largest |dx| + |dy|,
    the size of a pixel. ways, uint8, says in bits 0 and 1 the heading of an edge, right, down, left or up, with the
    brighter side on the right; in bits 2 and 3 to which of the three neighbours at larger coordinates it goes on, that
    with the largest size: 2 the one ahead, 1 and 0 those before and behind it in the other direction, 3 none; in bits 4
    and 5 the same at smaller coordinates; in bit 6 whether it starts here. An edge does not go on where the size is
    below ``threshold`` or the heading turns back. It starts where the size exceeds that of the neighbours across the
    edge by ``anchor``, and that of the first one in any case. Sizes on the rim count as 0, and without an edge nothing
    leads on.
    """
    ...


@reference(edge_ways)
def _(image: Any, *, sigma: float, threshold: int, anchor: int) -> Any:
    x = (image if image.ndim == 3 else image[..., None]).astype(np.int64)
    height, width, channels = x.shape
    if x.size == 0:
        return np.zeros((height, width)), np.zeros((channels, height and height + 2, width and width + 3))
    smooth = blurred(x, sigma) if sigma > 0 else x
    size, dx, dy = steepest(smooth, 3, l2=False)
    size[[0, -1]] = size[:, [0, -1]] = 0
    upright = np.abs(dx) >= np.abs(dy)
    heading = upright + 2 * np.where(upright, dx > 0, dy < 0)

    def across(down: int, right: int) -> Any:
        return np.where(upright, shifted(size, down, right), shifted(size, right, down))

    def way(*places: tuple[int, int]) -> Any:
        sizes = np.stack([across(*place) for place in places])
        first = np.argmax(sizes, 0)
        turns = np.stack(
            [np.where(upright, shifted(heading, *p), shifted(heading, *p[::-1])) ^ heading for p in places]
        )
        ends = (np.max(sizes, 0) < threshold) | (np.take_along_axis(turns, first[None], 0)[0] == 2)
        return np.where(ends, 3, 2 - first)

    before, after = across(0, -1), across(0, 1)
    starts = (size > before) & (size - before >= anchor) & (size - after >= anchor)
    larger, smaller = way((1, 0), (1, -1), (1, 1)), way((-1, 0), (-1, -1), (-1, 1))
    ways = np.where(size >= threshold, heading + 4 * larger + 16 * smaller + 64 * starts, 4 * 3 + 16 * 3)
    return ways, np.pad(smooth.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 2)), mode="edge")


dtypes(edge_ways, "uint8")
tolerance(edge_ways, ulp=0.5)


@samples(edge_ways)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(scene(fill, 70, 37))
    yield sample(scene(fill, 9, 70, 3), sigma=0.0, threshold=1)
    yield sample(scene(fill, 11, 35).T, sigma=1.4, threshold=60, anchor=9)
    yield sample(scene(fill, 3, 1), sigma=0.0)
    yield sample(scene(fill, 1, 9), sigma=0.0)
    yield sample(np.zeros((0, 5), np.uint8))


@errors(edge_ways)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = scene(fill, 5, 6)
    yield ErrorCase(sample(x.astype(np.float64)), DTypeError, "image has dtype float64; want uint8")
    yield ErrorCase(sample(x[None]), ShapeError, "image has shape (1, 5, 6); want (H, W) or (H, W, 3)")
    yield ErrorCase(sample(x, sigma=float("nan")), AttrError, "sigma=nan; want 0 (no blur) to 100 pixels")
    yield ErrorCase(sample(x, threshold=0), AttrError, "threshold=0; want 1 to 32767")
    yield ErrorCase(sample(x, anchor=-1), AttrError, "anchor=-1; want 0 to 32767")


@workloads(edge_ways)
def _() -> Iterator[Workload]:
    yield Workload("VGA", ((480, 640),), {}, ("vision",))


@flops(edge_ways)
def _(image: Any, **attrs: Any) -> float:
    return 30.0 * float(math.prod(image))


@opencl(edge_ways)
def _(queue: Queue, image: Any, ways: Any, pixels: Any, *, sigma: float, threshold: int, anchor: int) -> None:
    (height, width), channels = ways.shape, image.shape[2] if image.ndim == 3 else 1
    if sigma > 0:
        sharp, image = image, queue.empty(image.shape, np.uint8)
        launch_blur(queue, sharp, image, sigma)
    sizes = queue.empty(ways.shape, np.uint16)
    args = (height, width, channels)
    queue.launch("edge_ways.cl", "frame", pixels.size, GROUP_SIZE, (image, pixels, *args), SIZE=3)
    queue.launch("edge_ways.cl", "head", ways.size, GROUP_SIZE, (image, sizes, *args), SIZE=3)
    queue.launch(
        "edge_ways.cl", "lead", ways.size, GROUP_SIZE, (sizes, ways, height, width, threshold, anchor), SIZE=3
    )
