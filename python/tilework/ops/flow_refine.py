"""A flow between two 8-bit pictures, improved between pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.flow import given, moved
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    fills,
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
def flow_refine(first: Array, second: Array, flow: Array, *, steps: int = 5, out: Array | None = None) -> Array:
    """Improves the ``flow`` (H, W, 2), float32, from ``first`` (H, W) to ``second`` (H, W), uint8, between pixels.

    In each of ``steps`` it comes nearer to one that keeps colours and gradients and is smooth but for edges of its own.
    T. Brox et al., "High accuracy optical flow estimation based on a theory for warping", 2004. On the CPU alone.
    """
    ...


def _shifted(x: Any, axis: int, by: int) -> Any:
    return np.take(x, np.clip(np.arange(x.shape[axis]) + by, 0, x.shape[axis] - 1), axis)


def _slope(x: Any, axis: int) -> Any:
    return 0.5 * (_shifted(x, axis, 1) - _shifted(x, axis, -1))


def _warped(image: Any, u: Any, v: Any) -> Any:
    height, width = image.shape
    y, x = np.clip(np.mgrid[:height, :width] + np.stack([v, u]), 0, np.reshape([height - 1, width - 1], (2, 1, 1)))
    top, left = y.astype(np.int64), x.astype(np.int64)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    upper, lower = (image[row, left] + (image[row, right] - image[row, left]) * (x - left) for row in (top, below))
    return upper + (lower - upper) * (y - top)


def _refined(first: Any, second: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """One step."""
    seen = _warped(second, u, v)
    mean, gt = 0.5 * (seen + first), seen - first
    gx, gy = _slope(mean, 1), _slope(mean, 0)
    gxx, gxy, gyy, gxt, gyt = _slope(gx, 1), _slope(gx, 0), _slope(gy, 0), _slope(gt, 1), _slope(gt, 0)
    unit, unit_x, unit_y = (1 / (a * a + b * b + 0.01) for a, b in ((gx, gy), (gxx, gxy), (gxy, gyy)))
    colour = 5 * unit / np.sqrt(gt * gt * unit + 1e-6)
    gradient = 20 / np.sqrt(gxt * gxt * unit_x + gyt * gyt * unit_y + 1e-6)
    wx, wy = gradient * unit_x, gradient * unit_y
    a11 = colour * gx * gx + wx * gxx * gxx + wy * gxy * gxy
    a22 = colour * gy * gy + wx * gxy * gxy + wy * gyy * gyy
    a12 = colour * gx * gy + gxy * (wx * gxx + wy * gyy)
    b1 = -(colour * gx * gt + wx * gxx * gxt + wy * gxy * gyt)
    b2 = -(colour * gy * gt + wx * gxy * gxt + wy * gyy * gyt)
    soft = 20 / np.sqrt(sum(_slope(f, axis) ** 2 for f in (u, v) for axis in (0, 1)) + 1e-6)
    right, below = 0.5 * (soft + _shifted(soft, 1, 1)), 0.5 * (soft + _shifted(soft, 0, 1))
    right[:, -1] = 0
    below[-1] = 0
    left, above = np.roll(right, 1, 1), np.roll(below, 1, 0)
    total = right + left + below + above

    def held(f: Any) -> Any:
        beside = right * _shifted(f, 1, 1) + left * _shifted(f, 1, -1)
        return beside + below * _shifted(f, 0, 1) + above * _shifted(f, 0, -1)

    b1, b2 = b1 + held(u) - total * u, b2 + held(v) - total * v
    du, dv = np.zeros_like(u), np.zeros_like(v)
    for half in range(10):
        mine = np.sum(np.indices(u.shape), 0) % 2 == half % 2
        du = np.where(mine, -0.6 * du + 1.6 * (b1 - a12 * dv + held(du)) / (a11 + total + 1e-20), du)
        dv = np.where(mine, -0.6 * dv + 1.6 * (b2 - a12 * du + held(dv)) / (a22 + total + 1e-20), dv)
    return np.clip(u + du, -2047, 2047), np.clip(v + dv, -2047, 2047)


@reference(flow_refine)
def _(first: Any, second: Any, flow: Any, *, steps: int) -> Any:
    start = np.clip(np.nan_to_num(flow.astype(np.float64), nan=0, posinf=2047, neginf=-2047), -2047, 2047)
    u, v = start[..., 0], start[..., 1]
    for _ in range(steps if first.size else 0):
        u, v = _refined(first.astype(np.float64), second.astype(np.float64), u, v)
    return np.stack([u, v], -1)


dtypes(flow_refine, "uint8")
tolerance(flow_refine, ulp=4096)  # weights of up to 20 / 10^-3 multiply what roundings of slopes do
flow_refine.rules["scale"] = lambda first, second, flow, *, steps: 1 + np.nanmax(np.abs(flow), initial=0)


@samples(flow_refine)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(*moved(fill, 21, 34, 1, -1), given(21, 34), steps=2)
    yield sample(*moved(fill, 18, 17, -1, 1), given(17, 18).transpose(1, 0, 2), steps=1)
    yield sample(fill(12, 9).T, fill(9, 12)[:, ::-1], given(9, 12), steps=1)
    yield sample(fill(4, 5), fill(4, 5), given(4, 5), steps=0)
    yield sample(fill(2, 3), fill(2, 3), given(2, 3), steps=1)
    yield sample(fill(0, 4), fill(0, 4), np.zeros((0, 4, 2), np.float32))


@errors(flow_refine)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, flow = fill(9, 10), given(9, 10)
    yield ErrorCase(sample(x, x.astype(np.int32), flow), DTypeError, "second has dtype int32; want uint8")
    yield ErrorCase(sample(x, x, flow[1:]), ShapeError, "flow has shape (8, 10, 2); want (9, 10, 2)")
    yield ErrorCase(sample(x, x, flow.astype(np.float64)), DTypeError, "flow has dtype float64; want float32")
    yield ErrorCase(sample(x, x, flow, steps=-1), AttrError, "steps=-1; want 0 to 1000")


@workloads(flow_refine)
def _() -> Iterator[Workload]:
    yield Workload("VGA", ((480, 640), (480, 640), (480, 640, 2)), {}, ("vision",))


@fills(flow_refine)
def _(fill: Fill, first: Any, second: Any, flow: Any, **attrs: Any) -> tuple[Any, Any, Any]:
    return *moved(fill, first[0], first[1], 2, -1), given(first[0], first[1])
