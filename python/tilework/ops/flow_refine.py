"""A flow between two 8-bit pictures, improved between pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.flow import given, moved
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    depth,
    dtypes,
    errors,
    fills,
    op,
    reference,
    sample,
    samples,
    terms,
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


_HALF_UNIT = float(np.finfo(np.float32).eps) / 2


class _Shaken:
    """Numbers whose every result is off by up to half a unit of float32, by chance (Monte Carlo arithmetic)."""

    __array_ufunc__ = None

    def __init__(self, value: Any, random: np.random.Generator) -> None:
        self.value, self.random = value, random

    def moved(self, how: Callable[[Any], Any]) -> _Shaken:
        """Without arithmetic."""
        return _Shaken(how(self.value), self.random)

    def shaken(self, value: Any) -> _Shaken:
        """A new result."""
        return _Shaken(value * self.random.uniform(1 - _HALF_UNIT, 1 + _HALF_UNIT, value.shape), self.random)

    def __add__(self, other: Any) -> _Shaken:
        return self.shaken(self.value + _value(other))

    def __sub__(self, other: Any) -> _Shaken:
        return self.shaken(self.value - _value(other))

    def __rsub__(self, other: Any) -> _Shaken:
        return self.shaken(_value(other) - self.value)

    def __mul__(self, other: Any) -> _Shaken:
        return self.shaken(self.value * _value(other))

    def __truediv__(self, other: Any) -> _Shaken:
        return self.shaken(self.value / _value(other))

    def __rtruediv__(self, other: Any) -> _Shaken:
        return self.shaken(_value(other) / self.value)

    def __neg__(self) -> _Shaken:
        return _Shaken(-self.value, self.random)

    __radd__, __rmul__ = __add__, __mul__


def _value(x: Any) -> Any:
    return x.value if isinstance(x, _Shaken) else x


def _moved(x: Any, how: Callable[[Any], Any]) -> Any:
    return x.moved(how) if isinstance(x, _Shaken) else how(x)


def _root(x: Any) -> Any:
    return x.shaken(np.sqrt(x.value)) if isinstance(x, _Shaken) else np.sqrt(x)


def _either(mask: Any, a: Any, b: Any) -> Any:
    return _moved(a, lambda value: np.where(mask, value, _value(b)))


@functools.lru_cache
def _beside(n: int, by: int) -> Any:
    return np.clip(np.arange(n) + by, 0, n - 1)


def _shifted(x: Any, axis: int, by: int) -> Any:
    return _moved(x, lambda value: value.take(_beside(value.shape[axis], by), axis))


def _slope(x: Any, axis: int) -> Any:
    return 0.5 * (_shifted(x, axis, 1) - _shifted(x, axis, -1))


def _limited(x: Any, low: Any, high: Any) -> Any:
    return _moved(x, lambda value: np.clip(value, low, high))


def _warped(image: Any, u: Any, v: Any) -> Any:
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    u, v = _limited(u, -x, width - 1 - x), _limited(v, -y, height - 1 - y)
    whole_u, whole_v = (np.floor(_value(shift)).astype(np.int64) for shift in (u, v))
    left, top = x + whole_u, y + whole_v
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    along, down = u - whole_u, v - whole_v
    upper, lower = (image[row, left] + along * (image[row, right] - image[row, left]) for row in (top, below))
    return upper + (lower - upper) * down


def _refined(first: Any, second: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """One step."""
    seen = _warped(second, u, v)
    mean, gt = 0.5 * (seen + first), seen - first
    gx, gy = _slope(mean, 1), _slope(mean, 0)
    gxx, gxy, gyy, gxt, gyt = _slope(gx, 1), _slope(gx, 0), _slope(gy, 0), _slope(gt, 1), _slope(gt, 0)
    unit, unit_x, unit_y = (1 / (a * a + b * b + 0.01) for a, b in ((gx, gy), (gxx, gxy), (gxy, gyy)))
    colour = 5 * unit / _root(gt * gt * unit + 1e-6)
    gradient = 20 / _root(gxt * gxt * unit_x + gyt * gyt * unit_y + 1e-6)
    wx, wy = gradient * unit_x, gradient * unit_y
    a11 = colour * (gx * gx) + wx * (gxx * gxx) + wy * (gxy * gxy)
    a22 = colour * (gy * gy) + wx * (gxy * gxy) + wy * (gyy * gyy)
    a12 = colour * gx * gy + gxy * (wx * gxx + wy * gyy)
    b1 = -(colour * gx * gt + wx * gxx * gxt + wy * gxy * gyt)
    b2 = -(colour * gy * gt + wx * gxy * gxt + wy * gyy * gyt)
    slopes = [_slope(f, axis) for f in (u, v) for axis in (0, 1)]
    soft = 20 / _root(sum(slope * slope for slope in slopes) + 1e-6)
    height, width = first.shape
    right = 0.5 * (soft + _shifted(soft, 1, 1)) * (np.arange(width) < width - 1)
    below = 0.5 * (soft + _shifted(soft, 0, 1)) * (np.arange(height)[:, None] < height - 1)
    left, above = _moved(right, lambda w: np.roll(w, 1, 1)), _moved(below, lambda w: np.roll(w, 1, 0))
    total = right + left + below + above

    def held(f: Any) -> Any:
        beside = right * _shifted(f, 1, 1) + left * _shifted(f, 1, -1)
        return beside + below * _shifted(f, 0, 1) + above * _shifted(f, 0, -1)

    b1, b2 = b1 + held(u) - total * u, b2 + held(v) - total * v
    du, dv = 0 * u, 0 * v
    rows, columns = np.indices(first.shape)
    for half in range(10):
        mine = (rows + columns) % 2 == half % 2
        du = _either(mine, -0.6 * du + 1.6 * (b1 - a12 * dv + held(du)) / (a11 + total + 1e-20), du)
        dv = _either(mine, -0.6 * dv + 1.6 * (b2 - a12 * du + held(dv)) / (a22 + total + 1e-20), dv)
    return _limited(u + du, -2047, 2047), _limited(v + dv, -2047, 2047)


def _flow(flow: Any) -> tuple[Any, Any]:
    start = np.clip(np.nan_to_num(flow.astype(np.float64), nan=0, posinf=2047, neginf=-2047), -2047, 2047)
    return start[..., 0], start[..., 1]


def _iterated(first: Any, second: Any, start: tuple[Any, Any], steps: int) -> Any:
    u, v = start
    for _ in range(steps if first.size else 0):
        u, v = _refined(first.astype(np.float64), second.astype(np.float64), u, v)
    return np.stack([_value(u), _value(v)], -1)


def _start(flow: Any) -> tuple[Any, Any]:
    start = np.clip(np.nan_to_num(flow.astype(np.float64), nan=0, posinf=2047, neginf=-2047), -2047, 2047)
    return start[..., 0], start[..., 1]


@reference(flow_refine)
def _(first: Any, second: Any, flow: Any, *, steps: int) -> Any:
    return _iterated(first, second, _start(flow), steps)


dtypes(flow_refine, "uint8")
depth(flow_refine)(lambda first, second, flow, *, steps: 16.0)  # eight deviations

_RUNS = 3


@terms(flow_refine)
def _(first: Any, second: Any, flow: Any, *, steps: int) -> Any:
    """How far roundings carry each number and its neighbours: how far the equations do where every result is shaken."""
    exact = _iterated(first, second, _start(flow), steps)
    far = np.zeros(flow.shape)
    for seed in range(_RUNS):
        random = np.random.default_rng(seed)
        u, v = _start(flow)
        shaken = _iterated(first, second, (_Shaken(u, random), _Shaken(v, random)), steps)
        far = np.maximum(far, np.abs(shaken - exact))
    for axis in (0, 1):
        far = np.max([_shifted(far, axis, by) for by in range(-2, 3)], 0)
    return far / np.finfo(np.float32).eps


@samples(flow_refine)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(*moved(fill, 13, 22, 1, -1), given(13, 22), steps=2)
    yield sample(*moved(fill, 18, 17, -1, 1), given(17, 18).transpose(1, 0, 2), steps=1)
    yield sample(fill(12, 9).T, fill(9, 12)[:, ::-1], given(9, 12), steps=1)
    yield sample(*moved(fill, 9, 640, 2, -1), given(9, 640), steps=1)
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
