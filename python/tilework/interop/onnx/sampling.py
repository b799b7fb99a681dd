"""Resizing, and sampling at the places of a grid: weights are worked out here, and applied axis by axis."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import tilework as tw
from tilework.interop.onnx.rules import NodeView, axis_of, node

# ------------------------------------------------------------------------------------------------------- resizing

_MOST_TAPS = 4  # of a result, up to which elements are gathered; beyond it is a product of matrices


class Axis(NamedTuple):
    """How one axis is resized."""

    axis: int
    size: int
    scale: float
    roi: tuple[float, float]


def _coordinates(n: NodeView, a: Axis, size: int, mode: str) -> Any:
    """Where the elements of the result lie among ``size`` of the input."""
    at = np.arange(a.size, dtype=np.float64)
    whole = a.scale * size
    if mode == "align_corners":
        return at * 0 if whole == 1 else at * (size - 1) / (whole - 1)
    if mode == "asymmetric":
        return at / a.scale
    if mode == "tf_crop_and_resize":
        first, last = a.roi
        step = (last - first) * (size - 1)
        return first * (size - 1) + (at * 0 + step / 2 if whole == 1 else at * step / (whole - 1))
    if mode == "pytorch_half_pixel" and whole == 1:
        return at * 0 - 0.5
    n.want(mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"), f"{mode=}")
    offset = size / 2 * (1 - a.size / whole) if mode == "half_pixel_symmetric" else 0.0
    return offset + (at + 0.5) / a.scale - 0.5


def _nearest(at: Any, mode: str) -> Any:
    below = np.floor(at)
    rest = at - below
    up = {
        "round_prefer_floor": rest > 0.5,
        "round_prefer_ceil": rest >= 0.5,
        "floor": np.zeros_like(rest, bool),
        "ceil": rest > 0,
    }[mode]
    return (below + up).astype(np.int64)


def _kernel(x: Any, mode: str, a: float) -> Any:
    x = np.abs(x)
    if mode == "linear":
        return np.clip(1 - x, 0, 1)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(n: NodeView, at: Any, size: int, scale: float, mode: str) -> tuple[Any, Any]:
    """The places and weights, one row per element of the result, that interpolation takes."""
    shrink = min(scale, 1.0) if n.get("antialias", 0) else 1.0
    reach = {"linear": 1, "cubic": 2}[mode]
    first = math.floor(-reach / shrink) + 1
    offsets = np.arange(first, 2 - first)
    base = np.floor(at)
    places = base[:, None] + offsets
    weights = _kernel((places - at[:, None]) * shrink, mode, n.get("cubic_coeff_a", -0.75))
    if n.get("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= size), 0.0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, size - 1).astype(np.int64), weights


def _apply(x: Any, axis: int, places: Any, weights: Any) -> Any:
    """sum over taps of weight times the element at its place, along one axis."""
    weights = weights.astype(x.dtype)
    size, ndim = x.shape[axis], len(x.shape)
    if places.shape[1] <= _MOST_TAPS:
        along = (-1, *(1,) * (ndim - 1 - axis))
        parts = [
            tw.mul(tw.gather(x, places[:, k], axis=axis), weights[:, k].reshape(along)) for k in range(places.shape[1])
        ]
        total = parts[0]
        for part in parts[1:]:
            total = tw.add(total, part)
        return total
    matrix = np.zeros((size, len(places)), weights.dtype)
    np.add.at(matrix, (places, np.arange(len(places))[:, None]), weights)
    order = (*(a for a in range(ndim) if a != axis), axis)
    return tw.transpose(tw.matmul(tw.transpose(x, order), matrix), tuple(np.argsort(order).tolist()))


def _resized_axes(n: NodeView, x: Any, roi: Any, scales: Any, sizes: Any) -> list[Axis]:
    ndim = len(x.shape)
    axes = [axis_of(a, ndim) for a in n.get("axes") or range(ndim)]
    shape = [x.shape[a] for a in axes]
    window = [0.0] * len(axes) + [1.0] * len(axes)
    if roi is not None and n.known(roi, "roi").size:
        window = [float(v) for v in n.known(roi, "roi").reshape(-1)]
    if sizes is not None and n.known(sizes, "sizes").size:
        wanted = list(n.ints(sizes, "sizes"))
        policy = n.get("keep_aspect_ratio_policy", "stretch")
        factors = [w / s for w, s in zip(wanted, shape, strict=True)]
        if policy != "stretch":
            one = (min if policy == "not_larger" else max)(factors)
            factors = [one] * len(axes)
            wanted = [math.floor(one * s + 0.5) for s in shape]
    else:
        factors = [float(v) for v in n.known(scales, "scales").reshape(-1)]
        n.want(all(0 < f < 2**40 for f in factors), f"scales={factors}")
        wanted = [math.floor(s * f) for s, f in zip(shape, factors, strict=True)]
    return [
        Axis(a, w, f, (window[i], window[i + len(axes)]))
        for i, (a, w, f) in enumerate(zip(axes, wanted, factors, strict=True))
    ]


@node("Resize")
def resize(n: NodeView, x: Any, *rest: Any) -> Any:
    roi, scales, sizes = ((None, *rest) if n.opset < 11 else rest + (None,) * 3)[:3] if rest else (None,) * 3
    if n.opset < 11:
        scales, sizes = rest[0], None
    mode, transform = n.get("mode", "nearest"), n.get("coordinate_transformation_mode", "half_pixel")
    if n.opset < 11:
        transform = "asymmetric"
    rounding = n.get("nearest_mode", "floor" if n.opset < 11 else "round_prefer_floor")
    beyond = n.get("extrapolation_value", 0.0)
    for read in ("antialias", "exclude_outside", "cubic_coeff_a", "keep_aspect_ratio_policy"):
        n.get(read)
    outside: Any = False
    for a in _resized_axes(n, x, roi, scales, sizes):
        size = x.shape[a.axis]
        if a.scale == 1 and a.size == size and transform != "tf_crop_and_resize":
            continue
        at = _coordinates(n, a, size, transform)
        if transform == "tf_crop_and_resize":
            row = ((at < 0) | (at > size - 1)).reshape(-1, *(1,) * (len(x.shape) - 1 - a.axis))
            outside = outside | row
        if mode == "nearest":
            x = tw.gather(x, np.clip(_nearest(at, rounding), 0, size - 1), axis=a.axis)
        else:
            x = _apply(x, a.axis, *_taps(n, at, size, a.scale, mode))
    if np.any(outside):
        return tw.where(np.ascontiguousarray(np.broadcast_to(outside, tuple(x.shape))), np.asarray(beyond, x.dtype), x)
    return x


@node("Upsample")
def upsample(n: NodeView, x: Any, scales: Any = None) -> Any:
    factors = n.get("scales") if scales is None else tuple(n.known(scales, "scales").reshape(-1).tolist())
    mode = n.get("mode", "nearest")
    for axis, factor in enumerate(factors):
        size = x.shape[axis]
        a = Axis(axis, math.floor(size * factor), factor, (0.0, 1.0))
        if a.size == size:
            continue
        at = _coordinates(n, a, size, "asymmetric")
        if mode == "nearest":
            x = tw.gather(x, np.clip(np.floor(at), 0, size - 1).astype(np.int64), axis=axis)
        else:
            x = _apply(x, axis, *_taps(n, at, size, factor, "linear"))
    return x


# --------------------------------------------------------------------------------------------------------- grids


@node("GridSample")
def grid_sample(n: NodeView, x: Any, grid: Any) -> Any:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(n.get("mode", "linear"), n.get("mode", "linear"))
    padding, aligned = n.get("padding_mode", "zeros"), bool(n.get("align_corners", 0))
    return tw.grid_sample(x, grid, mode=mode, padding=padding, align_corners=aligned)


@node("AffineGrid")
def affine_grid(n: NodeView, theta: Any, size: Any) -> Any:
    spatial, aligned = n.ints(size, "size")[2:], n.get("align_corners", 0)
    along = [np.linspace(-1, 1, s) if aligned else (2 * np.arange(s) + 1) / s - 1 for s in spatial]
    places = np.meshgrid(*along, indexing="ij")[::-1]
    points = np.stack([*(p.reshape(-1) for p in places), np.ones(math.prod(spatial))]).astype(theta.dtype)
    batch = theta.shape[0]
    moved = tw.matmul(theta, points)  # (N, rank, places)
    return tw.reshape(tw.transpose(moved, (0, 2, 1)), (batch, *spatial, len(spatial)))
