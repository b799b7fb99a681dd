"""Values between the elements, at the places of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    op,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def grid_sample(
    x: Array,
    grid: Array,
    *,
    mode: Literal["linear", "nearest", "cubic"] = "linear",
    padding: Literal["zeros", "border", "reflection"] = "zeros",
    align_corners: bool = False,
    out: Array | None = None,
) -> Array:
    """Takes x (N, C, *sp) between its elements at the places of grid (N, *out, rank); the result is (N, C, *out).

    A place has one number per spatial axis, the last axis first: -1 and 1 are the centres of the first and the last
    element with ``align_corners``, else their outer edges. ``padding`` says what lies beyond. Jaderberg et al.,
    "Spatial transformer networks", 2015.
    """
    ...


def _cubic(t: Any) -> list[Any]:
    a = -0.75
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    return [far[0], *near, far[1]]


def _reflected(v: Any, low: float, high: float) -> Any:
    if high <= low:
        return np.full_like(v, low)
    period = 2 * (high - low)
    inside = np.mod(v - low, period)
    return low + np.minimum(inside, period - inside)


def _brought_in(v: Any, size: int, padding: str, *, align_corners: bool) -> Any:
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    outside = (v < low) | (v > high)
    if padding == "border":
        return np.where(outside, np.clip(v, 0, size - 1), v)
    return np.where(outside, _reflected(v, low, high), v) if padding == "reflection" else v


@reference(grid_sample)
def _(x: Any, grid: Any, *, mode: str, padding: str, align_corners: bool) -> Any:
    rank = x.ndim - 2
    taps: list[tuple[Any, Any, list[Any]]] = [(np.ones(grid.shape[:-1]), True, [])]
    for d in range(rank):
        size, v = x.shape[d + 2], grid[..., rank - 1 - d]
        v = (v + 1) / 2 * (size - 1) if align_corners else ((v + 1) * size - 1) / 2
        v = np.where(np.isnan(v), -1.0, np.clip(v, -(2.0**40), 2.0**40))
        v = np.rint(v) if mode == "nearest" else v
        v = _brought_in(v, size, padding, align_corners=align_corners)
        first = np.trunc(v) if mode == "nearest" else np.floor(v) - (mode == "cubic")
        t = v - np.floor(v)
        weights = {"nearest": [np.ones_like(t)], "linear": [1 - t, t], "cubic": _cubic(t)}[mode]
        along = []
        for k, weight in enumerate(weights):
            at = first + k
            outside = (at < 0) | (at >= size)
            if padding != "zeros":
                at = np.where(outside, np.trunc(_brought_in(at, size, padding, align_corners=align_corners)), at)
            reads = ~outside | (padding != "zeros")
            along.append((weight, reads, np.clip(at, 0, size - 1).astype(np.int64)))
        taps = [(w * weight, r & reads, [*places, at]) for w, r, places in taps for weight, reads, at in along]
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * rank)
    y = sum(np.where(r[..., None], w[..., None] * x[(batch, slice(None), *places)], 0.0) for w, r, places in taps)
    return np.moveaxis(np.asarray(y), -1, 1)


tolerance(grid_sample, ulp=4)
dtypes(grid_sample, *FLOATING)
grid_sample.rules["scale"] = lambda x, grid, *, mode, padding, align_corners: (
    8.0 * np.max(np.abs(x), axis=tuple(range(2, x.ndim)), keepdims=True, initial=0)
)


@samples(grid_sample)
def _(fill: Fill) -> Iterator[Sample]:
    for padding in ("zeros", "border", "reflection"):
        for mode in ("linear", "nearest", "cubic"):
            grid = np.asarray(fill(2, 3, 4, 2) * 1.3, fill.dtype)
            yield sample(fill(2, 3, 5, 4), grid, mode=mode, padding=padding, align_corners=mode == "cubic")
    yield sample(fill(1, 2, 3, 4, 5), fill(1, 2, 2, 3, 3))
    yield sample(fill(2, 1, 7), fill(2, 5, 1), padding="border", align_corners=True)
    yield sample(fill(5, 4, 3, 2).T, fill(3, 2, 2, 2)[::-1].transpose(2, 0, 1, 3)[:, :, :, ::-1])
    yield sample(fill(1, 2, 3, 3), fill(1, 0, 4, 2))


@errors(grid_sample)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(2, 3, 5, 4)
    yield ErrorCase(sample(x, fill(2, 3, 4, 3)), ShapeError, "grid has shape (2, 3, 4, 3); want the batch of x")
    yield ErrorCase(sample(x, fill(2, 3, 2)), ShapeError, "grid has 3 dimensions; want 4")
    yield ErrorCase(sample(fill(2, 3, 0, 4), fill(2, 3, 4, 2)), ShapeError, "want spatial sizes of at least 1")
    yield ErrorCase(sample(x, np.ones((2, 3, 4, 2), np.int64)), DTypeError, "grid has dtype int64")
    yield ErrorCase(sample(x, fill(2, 3, 4, 2), mode="area"), AttrError, "mode='area'; want one of")


@workloads(grid_sample)
def _() -> Iterator[Workload]:
    yield Workload("64 channels 128x128", ((1, 64, 128, 128), (1, 128, 128, 2)))
