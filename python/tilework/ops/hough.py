"""Votes of edge pixels for the lines that run through them."""

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
    fills,
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
def hough_votes(edges: Array, *, rho: float = 1.0, angles: int = 180, out: Array | None = None) -> Array:
    """Counts how many pixels of edges (H, W), uint8 and not zero, lie on each line: int32 (angles, bins).

    Line (k, r) has the normal (cos a, sin a), a = pi k / ``angles``, and lies ``rho`` (r - bins // 2) from the first
    pixel. Distances are rounded to bins in fixed point, with 1/2^16 pixel; exact on every tier and device.
    """
    ...


def normals(rho: float, angles: int) -> tuple[Any, Any]:
    """Cosines and sines in 1/2^16 bin."""
    angle = np.pi * np.arange(angles) / angles
    cosines, sines = (np.rint(part(angle) * (65536 / rho)).astype(np.int64) for part in (np.cos, np.sin))
    return cosines, sines


@reference(hough_votes)
def _(edges: Any, *, rho: float, angles: int) -> Any:
    reach = np.hypot(max(edges.shape[0] - 1, 0), max(edges.shape[1] - 1, 0)) / rho
    middle = int(np.ceil(reach)) + 1
    y, x = np.nonzero(edges)
    votes = np.zeros((angles, 2 * middle + 1), np.int64)
    for k, (cosine, sine) in enumerate(zip(*normals(rho, angles), strict=True)):
        np.add.at(votes[k], ((x * cosine + y * sine + (1 << 15)) >> 16) + middle, 1)
    return votes


dtypes(hough_votes, "uint8")
tolerance(hough_votes, ulp=0.5)


@samples(hough_votes)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample((fill(25, 40) > 128).astype(np.uint8) * 255)
    yield sample((fill(9, 33) > 200).astype(np.uint8).T, angles=7)
    yield sample(fill(4, 10)[::-1, ::2], rho=2.5, angles=30)
    yield sample(fill(1, 1), angles=1)
    yield sample(fill(0, 4), angles=3)


@errors(hough_votes)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(bool)), DTypeError, "edges has dtype bool; want uint8")
    yield ErrorCase(sample(x[0]), ShapeError, "edges has shape (4,); want (H, W)")
    for rho in (0.0, 0.5, float("nan")):
        yield ErrorCase(sample(x, rho=rho), AttrError, "want 1 pixel or more, at most 1e6")
    yield ErrorCase(sample(x, angles=0), AttrError, "angles=0; want 1 to 65536")
    yield ErrorCase(sample(np.zeros((1, 16385), np.uint8)), ShapeError, "want at most 16384 rows and columns")
    yield ErrorCase(sample(np.zeros((1, 16384), np.uint8), angles=65536), AttrError, "want at most 2^28")


@workloads(hough_votes)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {}, ("vision",))


@fills(hough_votes)
def _(fill: Fill, edges: Any, **attrs: Any) -> tuple[Any]:
    return ((fill.integers(*edges, low=0, high=5) == 0).astype(np.uint8),)


@opencl(hough_votes)
def _(queue: Queue, edges: Any, y: Any, *, rho: float, angles: int) -> None:
    queue.fill(y, 0)
    tables = []
    for host in normals(rho, angles):
        tables.append(queue.empty(host.shape, np.int32))
        queue.write(host.astype(np.int32), tables[-1])
    sizes = (edges.size, edges.shape[1], *y.shape)
    queue.launch("hough.cl", "vote", edges.size, GROUP_SIZE, (edges, *tables, y, *sizes))
