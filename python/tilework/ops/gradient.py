"""Derivatives of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_separable import launch_separable
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.blur import mirrored, summed, weighted
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
def sobel(image: Array, *, dx: int, dy: int, ksize: int = 3, out: Array | None = None) -> Array:
    """Derives a picture (H, W) or (H, W, 3) ``dx`` times along x and ``dy`` times along y: the same shape.

    Orders are 0 to 2, windows of ``ksize`` 3, 5 or 7 pixels; sums are not divided. Outside, pixels mirror at the edge
    without repeating it. Of uint8 the result is int16, saturated, with the bits of ``cv2.Sobel`` 5.0 with ``CV_16S``;
    of uint16 and float32 it is float32: sums down and then along in float64, in order, each rounded to float32.
    """
    ...


@op
def scharr(image: Array, *, dx: int, dy: int, out: Array | None = None) -> Array:
    """Derives a picture (H, W) or (H, W, 3) once along x (dx=1, dy=0) or y: the same shape, types as sobel has them.

    As sobel with 3 pixels, but smoothed by 3, 10, 3, which turns more evenly with the gradient. The bits are those of
    ``cv2.Scharr`` 5.0 with ``CV_16S``.
    """
    ...


@op
def spatial_gradient(image: Array, *, out: tuple[Array, Array] | None = None) -> Any:
    """Derives a picture (H, W) or (H, W, 3) along x and along y at once: two arrays of its shape.

    The same as sobel of 3 pixels, twice.
    """
    ...


@op
def laplacian(image: Array, *, ksize: int = 1, out: Array | None = None) -> Array:
    """Sums the second derivatives along x and y of a picture (H, W) or (H, W, 3): the same shape, types as of sobel.

    ``ksize`` 1 takes the four neighbours less four times the pixel, 3 the sum of two sobels. The bits are those of
    ``cv2.Laplacian`` 5.0 with ``CV_16S``.
    """
    ...


Terms = list[tuple[tuple[int, ...], tuple[int, ...]]]  # weights along x, weights down


def _derivative(size: int, order: int) -> tuple[int, ...]:
    """Weights of a derivative: binomial smoothing, differenced ``order`` times."""
    taps = np.ones(1, np.int64)
    for i in range(size - 1):
        taps = np.convolve(taps, (-1, 1) if i < order else (1, 1))
    return tuple(int(t) for t in taps)


def _sobel(size: int, dx: int, dy: int) -> Terms:
    return [(_derivative(size, dx), _derivative(size, dy))]


def _scharr(dx: int) -> Terms:
    smooth, change = (3, 10, 3), (-1, 0, 1)
    return [(change, smooth) if dx else (smooth, change)]


def _laplacian(size: int) -> Terms:
    second, middle = (1, -2, 1), (0, 1, 0) if size == 1 else (1, 2, 1)
    return [(second, middle), (middle, second)]


def _filtered(image: Any, terms: Terms) -> Any:
    if image.size == 0:
        return image
    half = len(terms[0][0]) // 2
    if image.dtype != np.uint8:
        wide = mirrored(mirrored(image.astype(np.float64), half, 0), half, 1)
        return summed(wide, [(down, along) for along, down in terms])
    wide = mirrored(mirrored(image.astype(np.int64), half, 0), half, 1)
    total = sum(weighted(weighted(wide, down, 0), along, 1) for along, down in terms)
    return np.clip(total, -32768, 32767)


@reference(sobel)
def _(image: Any, *, dx: int, dy: int, ksize: int) -> Any:
    return _filtered(image, _sobel(ksize, dx, dy))


@reference(scharr)
def _(image: Any, *, dx: int, dy: int) -> Any:
    return _filtered(image, _scharr(dx))


@reference(spatial_gradient)
def _(image: Any) -> Any:
    return _filtered(image, _sobel(3, 1, 0)), _filtered(image, _sobel(3, 0, 1))


@reference(laplacian)
def _(image: Any, *, ksize: int) -> Any:
    return _filtered(image, _laplacian(ksize))


for _op in (sobel, scharr, spatial_gradient, laplacian):
    dtypes(_op, "uint8", "uint16", "float32")
    tolerance(_op, ulp=0.5)


def _pictures(fill: Fill) -> Iterator[Any]:
    yield fill(5, 300)
    yield fill(67, 3, 3)
    yield fill(4, 19).T
    yield fill(1, 2)[:, ::-1]
    yield fill(0, 4)


@samples(sobel)
def _(fill: Fill) -> Iterator[Sample]:
    orders = ((1, 0, 3), (0, 1, 5), (2, 1, 7), (0, 2, 3), (1, 0, 7))
    for image, (dx, dy, size) in zip(_pictures(fill), orders, strict=True):
        yield sample(image, dx=dx, dy=dy, ksize=size)
    steps = np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 9, 1)
    yield sample(steps, dx=1, dy=0, ksize=7)


@samples(scharr)
def _(fill: Fill) -> Iterator[Sample]:
    for i, image in enumerate(_pictures(fill)):
        yield sample(image, dx=i % 2, dy=1 - i % 2)


@samples(spatial_gradient)
def _(fill: Fill) -> Iterator[Sample]:
    yield from map(sample, _pictures(fill))


@samples(laplacian)
def _(fill: Fill) -> Iterator[Sample]:
    for i, image in enumerate(_pictures(fill)):
        yield sample(image, ksize=1 + 2 * (i % 2))


def _refused(fill: Fill, **attrs: Any) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.int16), **attrs), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(fill(3, 4, 2), **attrs), ShapeError, "image has shape (3, 4, 2); want (H, W) or (H, W, 3)")


@errors(sobel)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield from _refused(fill, dx=1, dy=0)
    yield ErrorCase(sample(x, dx=0, dy=0), AttrError, "dx=0 and dy=0; want a derivative along x or y")
    yield ErrorCase(sample(x, dx=3, dy=0), AttrError, "dx=3; want a derivative of order 0 to 2")
    yield ErrorCase(sample(x, dx=0, dy=-1), AttrError, "dy=-1; want a derivative of order 0 to 2")
    yield ErrorCase(sample(x, dx=1, dy=0, ksize=4), AttrError, "ksize=4; want 3, 5 or 7")


@errors(scharr)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refused(fill, dx=1, dy=0)
    yield ErrorCase(sample(fill(3, 4), dx=1, dy=1), AttrError, "dx=1 and dy=1; want a derivative along one of x and y")
    yield ErrorCase(sample(fill(3, 4), dx=2, dy=0), AttrError, "dx=2; want a derivative of order 0 to 1")


@errors(spatial_gradient)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refused(fill)


@errors(laplacian)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refused(fill)
    yield ErrorCase(sample(fill(3, 4), ksize=5), AttrError, "ksize=5; want 1 or 3")


@workloads(sobel)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {"dx": 1, "dy": 0}, ("vision",))


@flops(sobel)
def _(image: Any, *, ksize: int = 3, **attrs: Any) -> float:
    return 4.0 * ksize * float(math.prod(image))


# ------------------------------------------------------------------------------------------------------ OpenCL


def _launch(queue: Queue, image: Any, y: Any, terms: Terms) -> None:
    if image.dtype != np.uint8:
        launch_separable(queue, image, y, [(down, along) for along, down in terms])
        return
    host = np.array(terms, np.int16)
    taps = queue.empty(host.shape, np.int16)
    queue.write(host, taps)
    sizes = (host.shape[2], len(terms), *image.shape[:2], image.shape[2] if image.ndim == 3 else 1)
    queue.launch("gradient.cl", "filtered", y.size, GROUP_SIZE, (image, taps, y, *sizes))


@opencl(sobel)
def _(queue: Queue, image: Any, y: Any, *, dx: int, dy: int, ksize: int) -> None:
    _launch(queue, image, y, _sobel(ksize, dx, dy))


@opencl(scharr)
def _(queue: Queue, image: Any, y: Any, *, dx: int, dy: int) -> None:
    _launch(queue, image, y, _scharr(dx))


@opencl(spatial_gradient)
def _(queue: Queue, image: Any, dx: Any, dy: Any) -> None:
    _launch(queue, image, dx, _sobel(3, 1, 0))
    _launch(queue, image, dy, _sobel(3, 0, 1))


@opencl(laplacian)
def _(queue: Queue, image: Any, y: Any, *, ksize: int) -> None:
    _launch(queue, image, y, _laplacian(ksize))
