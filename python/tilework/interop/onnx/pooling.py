"""Pooling, and the windows that it shares with convolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilework as tw
from tilework.dtypes import is_floating
from tilework.interop.onnx.rules import NodeView, node, spatial_pads


def windows_of(n: NodeView, x: Any, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Stride, dilation and padding as tilework takes them, auto_pad resolved."""
    rank = len(kernel)
    n.want(n.get("kernel_shape", kernel) == kernel, f"kernel_shape={n.get('kernel_shape')} of a kernel {kernel}")
    stride = n.get("strides") or (1,) * rank
    dilation = n.get("dilations") or (1,) * rank
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        padding = spatial_pads(n.get("pads") or (0,) * (2 * rank))
    elif auto == "VALID":
        padding = ((0, 0),) * rank
    else:
        n.want(auto in ("SAME_UPPER", "SAME_LOWER"), f"auto_pad={auto:.40}")
        padding = tuple(
            _same(size, k, s, d, auto) for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        )
    return {"stride": stride, "dilation": dilation, "padding": padding}


def _same(size: int, kernel: int, stride: int, dilation: int, auto: str) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _padded(x: Any, windows: dict[str, Any], kernel: tuple[int, ...], value: float) -> Any:
    """x with the padding written out where there is more of it than pooling takes."""
    pairs = windows["padding"]
    if all(2 * max(pair) <= k for pair, k in zip(pairs, kernel, strict=True)):
        return x
    windows["padding"] = 0
    return tw.pad(x, pads=((0, 0), (0, 0), *pairs), value=value)


def _is_odd(windows: dict[str, Any], kernel: tuple[int, ...]) -> bool:
    """Whether tilework's average does not know such windows: dilated, or padded beyond half of them."""
    wide = any(2 * max(pair) > k for pair, k in zip(windows["padding"], kernel, strict=True))
    return wide or set(windows["dilation"]) != {1}


def _window_sums(x: Any, kernel: tuple[int, ...], windows: dict[str, Any], *, ceil: bool, counted: bool) -> Any:
    """The sums over windows of each channel, a convolution with ones, and how many elements each window counts."""
    pads, reach = [], []
    for size, k, s, d, (before, after) in zip(
        x.shape[2:], kernel, windows["stride"], windows["dilation"], windows["padding"], strict=True
    ):
        whole = d * (k - 1) + 1
        rest = size + before + after - whole
        count = (-(-rest // s) if ceil else rest // s) + 1
        count -= ceil and (count - 1) * s >= size + before  # a last window starts inside
        pads.append((before, max(after, (count - 1) * s + whole - size - before)))
        reach.append((before, after))
    ones = np.ones((1, 1, *kernel), x.dtype)
    how = {"stride": windows["stride"], "dilation": windows["dilation"]}
    one_channel = tw.reshape(x, (x.shape[0] * x.shape[1], 1, *x.shape[2:]))
    sums = tw.conv(tw.pad(one_channel, pads=((0, 0), (0, 0), *pads)), ones, **how)
    inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if counted:
        inside = np.pad(inside, ((0, 0), (0, 0), *reach), constant_values=1)
    edges = [(0, 0), (0, 0)]
    for (b, e), (_, after) in zip(pads, reach, strict=True):
        edges.append((0, e - after) if counted else (b, e))
    counts = tw.conv(tw.pad(inside, pads=tuple(edges)), ones, **how)
    return tw.reshape(sums, (*x.shape[:2], *sums.shape[2:])), counts


@node("MaxPool")
def max_pool(n: NodeView, x: Any) -> Any:
    kernel = n.get("kernel_shape")
    windows = {"kernel": kernel, "ceil_mode": bool(n.get("ceil_mode", 0)), **windows_of(n, x, kernel)}
    by_column = n.get("storage_order", 0)
    if not is_floating(x.dtype):
        n.want(not n.wants(1) and np.dtype(x.dtype).itemsize == 1, "integers of more than 8 bits, or their places")
        return tw.cast(tw.max_pool(tw.cast(x, dtype="float32"), **windows), dtype=x.dtype)
    if not n.wants(1):
        return tw.max_pool(_padded(x, windows, kernel, -math.inf), **windows)
    y, places = tw.max_pool(x, return_indices=True, flat_indices=True, **windows)
    if by_column:  # along the last but one of the spatial axes first
        n.want(len(kernel) == 2, "storage_order=1 of other than two spatial axes")
        h, w = x.shape[2:]
        inside = tw.mod(places, h * w)
        row = tw.div(inside, w)
        places = tw.add(tw.sub(places, inside), tw.add(tw.mul(tw.mod(inside, w), h), row))
    return y, places


@node("MaxUnpool")
def max_unpool(n: NodeView, x: Any, places: Any, shape: Any = None) -> Any:
    kernel = n.get("kernel_shape")
    rank = len(kernel)
    stride, pads = n.get("strides") or (1,) * rank, n.get("pads") or (0,) * (2 * rank)
    inner = tuple(
        (size - 1) * s - (pads[d] + pads[d + rank]) + k
        for d, (size, s, k) in enumerate(zip(x.shape[2:], stride, kernel, strict=True))
    )
    whole = (*x.shape[:2], *inner)
    flat = tw.scatter_elements(np.zeros(math.prod(whole), x.dtype), tw.reshape(places, (-1,)), tw.reshape(x, (-1,)))
    y = tw.reshape(flat, whole)
    if shape is None:
        return y
    return tw.pad(y, pads=tuple((0, w - s) for w, s in zip(n.ints(shape, "output_shape"), whole, strict=True)))


@node("AveragePool")
def average_pool(n: NodeView, x: Any) -> Any:
    kernel = n.get("kernel_shape")
    windows = windows_of(n, x, kernel)
    counted, ceil = bool(n.get("count_include_pad", 0)), bool(n.get("ceil_mode", 0))
    if _is_odd(windows, kernel):
        sums, counts = _window_sums(x, kernel, windows, ceil=ceil, counted=counted)
        return tw.div(sums, counts)
    del windows["dilation"]
    return tw.avg_pool(x, kernel=kernel, count_include_pad=counted, ceil_mode=ceil, **windows)


@node("LpPool")
def lp_pool(n: NodeView, x: Any) -> Any:
    kernel = n.get("kernel_shape")
    windows, p, ceil = windows_of(n, x, kernel), float(n.get("p", 2)), bool(n.get("ceil_mode", 0))
    if _is_odd(windows, kernel):
        sums, _ = _window_sums(tw.pow(tw.abs(x), p), kernel, windows, ceil=ceil, counted=False)
        return tw.pow(sums, 1 / p)
    del windows["dilation"]
    return tw.lp_pool(x, p=p, kernel=kernel, ceil_mode=ceil, **windows)


@node("GlobalAveragePool")
def global_average(n: NodeView, x: Any) -> Any:
    return tw.reduce_mean(x, axes=tuple(range(2, len(x.shape))), keepdims=True)


@node("GlobalMaxPool")
def global_max(n: NodeView, x: Any) -> Any:
    return tw.reduce_max(x, axes=tuple(range(2, len(x.shape))), keepdims=True)


@node("GlobalLpPool")
def global_lp(n: NodeView, x: Any) -> Any:
    return tw.global_lp_pool(x, p=float(n.get("p", 2)))


@node("RoiAlign")
def roi_align(n: NodeView, x: Any, boxes: Any, images: Any) -> Any:
    transform = n.get("coordinate_transformation_mode", "half_pixel" if n.opset >= 16 else "output_half_pixel")
    return tw.roi_align(
        x,
        boxes,
        images,
        size=(n.get("output_height", 1), n.get("output_width", 1)),
        scale=n.get("spatial_scale", 1.0),
        sampling_ratio=n.get("sampling_ratio", 0),
        mode="avg" if n.get("mode", "avg") == "avg" else "max_corner",
        aligned=transform == "half_pixel",
    )
