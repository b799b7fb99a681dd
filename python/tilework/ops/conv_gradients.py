"""The two gradients of convolution: conv_dx in its input, conv_dw in its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.errors import AttrError, AttrTypeError, ShapeError
from tilework.ops.conv import (
    LAYERS,
    NHWC,
    PROBLEMS,
    Layout,
    channels_first,
    channels_last,
    conv,
    first,
    labels,
    out_sizes,
    spatial,
)
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    flops,
    op,
    opencl,
    reference,
    sample,
    samples,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

# Labels of numpy's einsum in its list form, as in conv.
_N, _G, _C, _K = range(4)


@op
def conv_dx(
    dy: Array,
    w: Array,
    c: Array | None = None,
    *,
    shape: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: Layout = "NCHW",
    out: Array | None = None,
) -> Array:
    """Computes the gradient of conv in x, (N, C, *shape), from dy (N, K, *out) and w (K, C/groups, *kernel).

    ``shape`` holds the spatial sizes of x, which dy and the attributes alone do not determine. layout="NHWC" is that of
    dy and of the result. ``c``, of the shape of the result, is added; ``out`` may be ``c``, which then accumulates.
    """
    ...


@op
def conv_dw(
    dy: Array,
    x: Array,
    c: Array | None = None,
    *,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    layout: Layout = "NCHW",
    out: Array | None = None,
) -> Array:
    """Computes the gradient of conv in w, (K, C/groups, *kernel), from dy (N, K, *out) and x (N, C, *spatial).

    ``kernel`` holds the spatial sizes of w, which dy and the attributes alone do not determine. layout="NHWC" is that
    of dy and x. ``c``, of the shape of the result, is added; ``out`` may be ``c``, which then accumulates.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


@reference(conv_dx)
def _(
    dy: Any, w: Any, c: Any, *, shape: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int, layout: str
) -> Any:
    dy = channels_first(dy, layout)
    dx = channels_last(scattered(dy, w, shape, stride, padding, dilation, groups), layout)
    return dx if c is None else dx + c


def scattered(dy: Any, w: Any, shape: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int) -> Any:
    """Each of dy (N, K, *out) times w (K, C/groups, *kernel), added where its window lies in (N, C, *shape)."""
    n, k, *sizes = dy.shape
    _, per_group, *kernel = w.shape
    padded = np.zeros((n, groups * per_group, *(s + sum(p) for s, p in zip(shape, padding, strict=True))))
    for tap in np.ndindex(*kernel):
        at_tap = np.einsum(
            "ngk...,gkc->ngc...",
            dy.reshape(n, groups, k // groups, *sizes),
            w[(slice(None), slice(None), *tap)].reshape(groups, k // groups, per_group),
        )
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        met = tuple(slice(f, f + s * m, s) for f, s, m in zip(first, stride, sizes, strict=True))
        padded[(slice(None), slice(None), *met)] += at_tap.reshape(n, groups * per_group, *sizes)
    inside = tuple(slice(before, before + s) for s, (before, _) in zip(shape, padding, strict=True))
    return padded[(slice(None), slice(None), *inside)]


@reference(conv_dw)
def _(
    dy: Any, x: Any, c: Any, *, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, groups: int, layout: str
) -> Any:
    dy, x = channels_first(dy, layout), channels_first(x, layout)
    n, channels, *shape = x.shape
    _, k, *sizes = dy.shape
    by_group = dy.reshape(n, groups, k // groups, *sizes)
    dw = np.zeros((k, channels // groups, *kernel))
    for tap in np.ndindex(*kernel):
        met, seen = [], []  # the windows whose tap falls inside x, and where
        for t, size, m, s, (before, _), d in zip(tap, shape, sizes, stride, padding, dilation, strict=True):
            at = np.arange(m) * s - before + t * d
            met.append(np.flatnonzero((at >= 0) & (at < size)))
            seen.append(at[met[-1]])
        dy_met = by_group[(..., *np.ix_(*met))]
        x_seen = x.reshape(n, groups, channels // groups, *shape)[(..., *np.ix_(*seen))]
        out, _ = labels(len(kernel))
        products = np.einsum(dy_met, [_N, _G, _K, *out], x_seen, [_N, _G, _C, *out], [_G, _K, _C])
        dw[(..., *tap)] = products.reshape(k, channels // groups)
    return dw if c is None else dw + c


# A tap that falls outside meets a zero there, and 0 NaN is NaN: one may reach further than the sums need.
conv_dx.rules["spreading"] = ("w",)
conv_dw.rules["spreading"] = ("dy",)


for _op in (conv_dx, conv_dw):
    dtypes(_op, "float32", "float64", "float16", "bfloat16")


@depth(conv_dx)
def _(dy: Any, w: Any, c: Any, *, groups: int, **attrs: Any) -> int:
    return int(np.prod(w.shape) // (groups * max(w.shape[1], 1))) + 1


@depth(conv_dw)
def _(dy: Any, x: Any, c: Any, *, layout: str, **attrs: Any) -> int:
    return int(dy.shape[0] * np.prod(channels_first(dy, layout).shape[2:])) + 1


# -------------------------------------------------------------------------------------------------- gradients


@backward(conv_dx, of=("dy", "w", "c"), where_given=("c",))
def _(g: Array, dy: Array, w: Array, c: Array, *, saved: None, wanted: Wanted, shape: Sizes, **attrs: Any) -> Any:
    d_dy = conv(g, w, **attrs) if "dy" in wanted else None
    d_w = conv_dw(dy, g, kernel=w.shape[2:], **attrs) if "w" in wanted else None
    return d_dy, d_w, g if "c" in wanted else None


@backward(conv_dw, of=("dy", "x", "c"), where_given=("c",))
def _(g: Array, dy: Array, x: Array, c: Array, *, saved: None, wanted: Wanted, kernel: Sizes, **attrs: Any) -> Any:
    d_dy = conv(x, g, **attrs) if "dy" in wanted else None
    d_x = conv_dx(dy, g, shape=spatial(x, attrs["layout"]), **attrs) if "x" in wanted else None
    return d_dy, d_x, g if "c" in wanted else None


# ---------------------------------------------------------------------------------------------------- samples


@samples(conv_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, attrs in PROBLEMS:
        yield Sample((fill(x[0], w[0], *out_sizes(x, w, attrs)), fill(*w)), {"shape": x[2:], **attrs})
    yield sample(fill(0, 4, 3, 3), fill(4, 3, 3, 3), shape=(5, 5))
    yield sample(fill(1, 2, 9, 30), fill(2, 1, 3, 3), shape=(9, 30), padding=1, groups=2)
    yield sample(fill(1, 2, 5, 15), fill(2, 1, 3, 3), shape=(9, 30), padding=1, groups=2, stride=2)
    yield sample(fill(1, 2, 4, 36), fill(2, 1, 3, 3), shape=(10, 73), groups=2, stride=2)
    yield sample(fill(1, 5, 5, 7), fill(5, 13, 3, 3), fill(1, 13, 5, 7), shape=(5, 7), padding=1)
    # Many filters are folded, small images side by side.
    yield sample(fill(3, 130, 2, 3), fill(130, 5, 3, 3), shape=(2, 3), padding=1)
    for x, w, attrs in NHWC:
        dy = (x[0], *out_sizes(first(x), w, attrs), w[0])
        yield Sample((fill(*dy), fill(*w)), {"shape": x[1:-1], "layout": "NHWC", **attrs})


@samples(conv_dw)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, attrs in PROBLEMS:
        yield Sample((fill(x[0], w[0], *out_sizes(x, w, attrs)), fill(*x)), {"kernel": w[2:], **attrs})
    yield sample(fill(0, 4, 3, 3), fill(0, 3, 5, 5), kernel=(3, 3))
    yield sample(fill(1, 2, 9, 19), fill(1, 2, 9, 19), kernel=3, padding=1, groups=2)
    yield sample(fill(1, 2, 5, 36), fill(1, 2, 9, 71), kernel=3, padding=1, groups=2, stride=2)
    yield sample(fill(1, 5, 5, 7), fill(1, 3, 5, 7), fill(5, 3, 3, 3), kernel=3, padding=1)
    for x, w, attrs in NHWC:
        dy = (x[0], *out_sizes(first(x), w, attrs), w[0])
        yield Sample((fill(*dy), fill(*x)), {"kernel": w[2:], "layout": "NHWC", **attrs})


# ----------------------------------------------------------------------------------------------------- errors


@errors(conv_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, w = fill(1, 6, 4, 4), fill(6, 4, 3, 3)
    yield ErrorCase(sample(dy, w, shape=(7, 6)), ShapeError, "dy has shape (1, 6, 4, 4)")
    yield ErrorCase(
        sample(fill(1, 5, 4, 4), w, shape=(6, 6)), ShapeError, "dy has shape (1, 5, 4, 4); want (1, 6, 4, 4)"
    )
    yield ErrorCase(sample(dy, w, shape=(6, 6, 6)), AttrError, "shape=(6, 6, 6)")
    yield ErrorCase(sample(dy, w, shape=(-6, 6)), AttrError, "shape=(-6, 6)")
    yield ErrorCase(sample(dy, w), AttrTypeError, "shape")
    yield ErrorCase(sample(dy, w, w, shape=(6, 6)), ShapeError, "c has shape (6, 4, 3, 3); want (1, 4, 6, 6)")
    yield ErrorCase(sample(dy, w, shape=(6, 6), groups=4), AttrError, "groups=4 does not divide")


@errors(conv_dw)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, x = fill(1, 6, 4, 4), fill(1, 4, 6, 6)
    yield ErrorCase(sample(dy, x, kernel=(2, 3)), ShapeError, "dy has shape (1, 6, 4, 4)")
    yield ErrorCase(sample(fill(2, 6, 4, 4), x, kernel=3), ShapeError, "dy has shape (2, 6, 4, 4); want (1, 6, 4, 4)")
    yield ErrorCase(sample(dy, x, kernel=0), AttrError, "kernel=0")
    yield ErrorCase(sample(dy, x, kernel=(3, 3, 3)), AttrError, "kernel=(3, 3, 3)")
    yield ErrorCase(sample(dy, x), AttrTypeError, "kernel")
    yield ErrorCase(sample(dy, x, x, kernel=3), ShapeError, "c has shape (1, 4, 6, 6); want (6, 4, 3, 3)")
    yield ErrorCase(sample(dy, x, kernel=3, groups=4), AttrError, "groups=4 does not divide")


# -------------------------------------------------------------------------------------------------- workloads


@workloads(conv_dx)
def _() -> Iterator[Workload]:
    for name, x, w, attrs, sets in LAYERS:
        dy = (x[0], w[0], *out_sizes(x, w, attrs))
        yield Workload(name, (dy, w), {"shape": x[2:], **attrs}, sets)


@workloads(conv_dw)
def _() -> Iterator[Workload]:
    for name, x, w, attrs, sets in LAYERS:
        dy = (x[0], w[0], *out_sizes(x, w, attrs))
        yield Workload(name, (dy, x), {"kernel": w[2:], **attrs}, sets)


@flops(conv_dx)
def _(dy: Sizes, w: Sizes, c: Sizes | None, **attrs: Any) -> float:
    return 2.0 * math.prod(dy) * math.prod(w[1:])


@flops(conv_dw)
def _(dy: Sizes, x: Sizes, c: Sizes | None, *, kernel: Sizes, groups: int, layout: Layout, **attrs: Any) -> float:
    channels = x[1] if layout == "NCHW" else x[-1]
    return 2.0 * math.prod(dy) * (channels // groups) * math.prod(kernel)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(conv_dx)
def _(queue: Queue, dy: Any, w: Any, c: Any, dx: Any, *, shape: Sizes, layout: str, **attrs: Any) -> None:
    from tilework.backends import opencl_conv

    views = channels_first(dx, layout), channels_first(dy, layout)
    kept = c is None and opencl_conv.in_rows(queue, *views, attrs["groups"])
    with (
        opencl_conv.in_float(queue, (dy, w, c), dx, unless=kept) as ((dy, w, c), dx),
        opencl_conv.plus(queue, c, dx) as sums,
    ):
        x, dy = channels_first(sums, layout), channels_first(dy, layout)
        opencl_conv.gradient_x(queue, opencl_conv.Conv(x, dy, w.shape[2:], **attrs), w)


@opencl(conv_dw)
def _(queue: Queue, dy: Any, x: Any, c: Any, dw: Any, *, kernel: Sizes, layout: str, **attrs: Any) -> None:
    from tilework.backends import opencl_conv

    views = channels_first(x, layout), channels_first(dy, layout)
    kept = c is None and opencl_conv.in_rows(queue, *views, attrs["groups"]) and opencl_conv.channels_dense(views[1])
    with (
        opencl_conv.in_float(queue, (dy, x, c), dw, unless=kept) as ((dy, x, c), dw),
        opencl_conv.plus(queue, c, dw) as sums,
    ):
        x, dy = channels_first(x, layout), channels_first(dy, layout)
        opencl_conv.gradient_w(queue, opencl_conv.Conv(x, dy, kernel, **attrs), sums)
