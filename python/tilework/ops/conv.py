"""Convolution over 1, 2 or 3 spatial axes; its gradients are in conv_gradients.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.dtypes import is_narrow
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.ops.elementwise import activated, activation_dx, forward_activated
from tilework.registry import (
    ErrorCase,
    Rule,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    flops,
    forward,
    op,
    opencl,
    preparing,
    reference,
    sample,
    samples,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

Layout: TypeAlias = Literal["NCHW", "NHWC"]
Algo: TypeAlias = Literal["winograd", "winograd_2x2"] | None


@op
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    residual: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Algo = None,
    out: Array | None = None,
) -> Array:
    """Convolves x (N, C, *spatial) with w (K, C/groups, *kernel), adds b (K,) and applies the activation.

    A residual of the shape of the result is added before the activation. With layout="NHWC" x, residual and result are
    (N, *spatial, channels), while w stays as it is.

    The rank, 1 to 3, follows x. The result is (N, K, *out) with out = (size + padding - dilation (kernel - 1) - 1) //
    stride + 1 along each axis. Padding is zeros: one number for all axes, one per axis, one (before, after) pair per
    axis, "valid" for none, or "same" for out = ceil(size / stride), the odd zero behind. As in PyTorch, the kernel is
    not flipped.

    algo="winograd" makes tiles of 4x4 results with 4 times fewer products, "winograd_2x2" of 2x2 with 2.25 times fewer:
    for 3x3 kernels of stride 1, dilation 1 and one group in NCHW. In float32 the largest error is about 30 times that
    of the direct sums, with "winograd_2x2" 1.5 times, and whole numbers are not summed exactly; an infinity or a NaN in
    x is seen by all results of its tiles. Gradients and OpenCL sum directly. ``prepare`` folds a batch_norm that
    follows into w and b: prepare(w=w, b=b, batch_norm=...).
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def channels_first(x: Any, layout: str) -> Any:
    """An array in this layout, seen as (N, C, *spatial); on any backend."""
    return x if layout == "NCHW" else x.transpose((0, x.ndim - 1, *range(1, x.ndim - 1)))


def channels_last(x: Any, layout: str) -> Any:
    """An array of (N, C, *spatial), seen in this layout."""
    return x if layout == "NCHW" else x.transpose((0, *range(2, x.ndim), 1))


def _windows(x: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Any:
    """The windows of the zero-padded x that the kernel meets: (N, C, *out, *kernel)."""
    rank = len(kernel)
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in (*stride, *dilation))
    return windows[(slice(None), slice(None), *steps)]


# Labels of numpy's einsum in its list form: sample, group, channel within the group of x and of y.
_N, _G, _C, _K = range(4)


def labels(rank: int) -> tuple[list[int], list[int]]:
    return list(range(4, 4 + rank)), list(range(4 + rank, 4 + 2 * rank))


@reference(conv)
def _(
    x: Any,
    w: Any,
    b: Any,
    residual: Any,
    *,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    groups: int,
    activation: Activation,
    layout: str,
    algo: Algo = None,
) -> Any:
    x = channels_first(x, layout)
    n, c, *_ = x.shape
    k, _, *kernel = w.shape
    windows = _windows(x, tuple(kernel), stride, padding, dilation)
    sizes = windows.shape[2 : 2 + len(kernel)]
    out, taps = labels(len(kernel))
    y = np.einsum(
        windows.reshape(n, groups, c // groups, *sizes, *kernel),
        [_N, _G, _C, *out, *taps],
        w.reshape(groups, k // groups, c // groups, *kernel),
        [_G, _K, _C, *taps],
        [_N, _G, _K, *out],
    ).reshape(n, k, *sizes)
    if b is not None:
        y = y + b.reshape(k, *(1 for _ in kernel))
    y = channels_last(y, layout)
    return activated(y if residual is None else y + residual, activation)


dtypes(conv, "float32", "float64", "float16", "bfloat16")
conv.rules["reads_packed"] = ("w",)


@preparing(conv)
def _(given: dict[str, Any]) -> dict[str, Any]:
    from tilework.ops.batch_norm import with_batch_norm

    return with_batch_norm(conv, given)


@depth(conv)
def _(x: Any, w: Any, b: Any, residual: Any, **attrs: Any) -> int:
    return int(np.prod(w.shape[1:])) + 2


# -------------------------------------------------------------------------------------------------- gradients


def wide_forward(rule: Rule) -> Rule:
    """A forward rule that 16-bit operands go through in float32; the result is rounded once."""

    def run(x: Array, *others: Array, **attrs: Any) -> tuple[Array, Array | None]:
        if not is_narrow(x.dtype):
            return cast("tuple[Array, Array | None]", rule(x, *others, **attrs))
        y, saved = rule(*map(_wide, (x, *others)), **attrs)
        return ops.cast(y, dtype=x.dtype), saved

    return run


def wide_backward(rule: Rule) -> Rule:
    """A backward rule that 16-bit operands go through in float32; every gradient is rounded once."""

    def run(dy: Array, x: Array, *others: Array, **attrs: Any) -> Any:
        if not is_narrow(x.dtype):
            return rule(dy, x, *others, **attrs)
        gradients = rule(*map(_wide, (dy, x, *others)), **attrs)
        return tuple(None if g is None else ops.cast(g, dtype=x.dtype) for g in gradients)

    return run


def _wide(x: Array | None) -> Array | None:
    return None if x is None else ops.cast(x, dtype=np.float32)


@forward(conv)
@wide_forward
def _(
    x: Array, w: Array, b: Array, residual: Array, *, activation: Activation, **attrs: Any
) -> tuple[Array, Array | None]:
    return forward_activated(lambda last: conv(x, w, b, residual, activation=last, **attrs), activation)


@backward(conv, of=("x", "w", "b", "residual"), where_given=("residual",))
@wide_backward
def _(
    dy: Array,
    x: Array,
    w: Array,
    b: Array,
    residual: Array,
    *,
    saved: Array | None,
    wanted: Wanted,
    activation: Activation,
    layout: Layout,
    algo: Algo = None,
    **attrs: Any,
) -> Any:
    attrs = {"layout": layout, **attrs}
    if activation and saved is None:
        saved = forward_activated(
            lambda last: conv(x, w, b, residual, activation=last, algo=algo, **attrs), activation
        )[1]
    dy = activation_dx(dy, saved, activation)
    dx = ops.conv_dx(dy, w, shape=spatial(x, layout), **attrs) if "x" in wanted else None
    dw = ops.conv_dw(dy, x, kernel=w.shape[2:], **attrs) if "w" in wanted else None
    db = ops.reduce_sum(dy, axes=all_but_channels(dy, layout)) if "b" in wanted else None
    return dx, dw, db, dy if "residual" in wanted else None


def all_but_channels(x: Array, layout: Layout) -> Sizes:
    return (0, *range(2, x.ndim)) if layout == "NCHW" else tuple(range(x.ndim - 1))


def spatial(x: Array, layout: Layout) -> Sizes:
    sizes: Sizes = tuple(x.shape[2:] if layout == "NCHW" else x.shape[1:-1])
    return sizes


# ---------------------------------------------------------------------------------------------------- samples


# x, w and the attributes of problems that the three ops share; the sizes of dy follow from them.
PROBLEMS: tuple[tuple[Sizes, Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 3, 17), (4, 3, 3), {"padding": 1}),
    ((1, 4, 20), (6, 2, 5), {"stride": 2, "padding": ((1, 3),), "groups": 2}),
    ((2, 5, 9), (5, 1, 3), {"dilation": 2, "padding": 2, "groups": 5}),
    ((1, 3, 5, 6), (2, 3, 1, 1), {}),
    ((2, 3, 8, 7), (17, 3, 3, 3), {"padding": 1}),
    ((1, 8, 9, 33), (9, 8, 3, 3), {"padding": "same"}),
    ((1, 3, 13, 12), (5, 3, 3, 2), {"stride": (2, 3), "padding": "same"}),
    ((2, 4, 9, 10), (8, 4, 3, 3), {"padding": "valid", "dilation": (2, 1)}),
    ((1, 3, 15, 14), (4, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((1, 2, 6, 5), (3, 2, 2, 3), {"padding": ((2, 0), (1, 3))}),
    ((2, 6, 7, 7), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ((1, 4, 7, 9), (8, 1, 3, 3), {"padding": 1, "groups": 4, "stride": 2}),
    ((1, 16, 4, 5), (32, 16, 1, 1), {"stride": 2}),
    ((1, 2, 3, 4), (2, 2, 5, 6), {"padding": 3}),
    ((1, 2, 5, 4, 6), (3, 2, 3, 2, 3), {"padding": 1, "stride": (1, 2, 1)}),
    ((2, 4, 4, 4, 4), (4, 2, 1, 3, 2), {"groups": 2, "dilation": (1, 1, 2), "padding": ((0, 0), (1, 1), (0, 1))}),
)


# The same with x (N, *spatial, C).
NHWC: tuple[tuple[Sizes, Sizes, dict[str, Any]], ...] = (
    ((2, 9, 4), (6, 2, 3), {"padding": 1, "groups": 2, "stride": 2}),
    ((1, 8, 9, 5), (17, 5, 3, 3), {"padding": ((1, 0), (2, 1)), "dilation": (2, 1)}),
    ((2, 7, 9, 9), (9, 1, 3, 3), {"padding": 1, "groups": 9, "stride": (1, 2)}),
    ((1, 3, 12, 9), (9, 1, 2, 3), {"padding": 1, "groups": 9}),
    ((1, 4, 3, 5, 3), (4, 3, 2, 3, 2), {"padding": 1, "dilation": (1, 1, 2)}),
)


def first(x: Sizes) -> Sizes:
    return (x[0], x[-1], *x[1:-1])


def out_sizes(x: Sizes, w: Sizes, attrs: dict[str, Any]) -> Sizes:
    """The spatial sizes of conv's result, by the docstring's formula."""
    rank = len(x) - 2
    stride, dilation = (
        a if isinstance(a, tuple) else (a,) * rank for a in (attrs.get("stride", 1), attrs.get("dilation", 1))
    )
    padding = attrs.get("padding", 0)
    if padding == "same":
        return tuple(-(-n // s) for n, s in zip(x[2:], stride, strict=True))
    if isinstance(padding, tuple):
        both = [sum(p) for p in padding]
    else:
        both = [0 if padding == "valid" else 2 * padding] * rank
    return tuple(
        (n + p - d * (k - 1) - 1) // s + 1 for n, k, p, d, s in zip(x[2:], w[2:], both, dilation, stride, strict=True)
    )


@samples(conv)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, attrs in PROBLEMS:
        yield Sample((fill(*x), fill(*w), fill(w[0])), attrs)
    # A bias, and more terms than one block of any tier sums.
    yield sample(fill(1, 30, 9, 9), fill(13, 30, 3, 6), fill(13), padding=3)
    yield sample(fill(1, 3, 6, 6), fill(4, 3, 3, 3))
    yield sample(fill(4, 3, 6, 2).transpose(3, 1, 0, 2), fill(3, 3, 3, 4).T, fill(4), padding=1)
    for activation in ("relu6", "sigmoid", "tanh", "gelu"):
        yield sample(fill(1, 3, 5, 6), fill(4, 3, 3, 3), fill(4), padding=1, activation=activation)
    yield sample(fill(1, 3, 9), fill(4, 3, 3), activation="gelu", stride=2)
    yield sample(fill(0, 3, 5, 5), fill(4, 3, 3, 3), fill(4))
    yield sample(fill(1, 0, 3, 3), fill(2, 0, 3, 3), fill(2), padding=1)
    # Enough pixels for every packer; residuals, added before the activation.
    yield sample(fill(1, 3, 21, 40), fill(14, 3, 3, 3), fill(14), fill(1, 14, 11, 20), stride=2, padding=1)
    yield sample(fill(1, 9, 12, 23), fill(14, 9, 3, 3), fill(14), fill(1, 14, 12, 23), padding=1, activation="relu")
    yield sample(fill(1, 9, 12, 23), fill(14, 9, 1, 1), fill(14), activation="tanh")
    # Images of few pixels, convolved side by side; one and two columns beyond whole panels.
    yield sample(fill(5, 3, 2, 3), fill(14, 3, 3, 3), fill(14), fill(5, 14, 2, 3), padding=1, activation="relu")
    yield sample(fill(9, 5, 1, 1), fill(8, 5, 1, 1))
    yield sample(fill(3, 4, 11), fill(7, 4, 3), fill(7), stride=2, padding=1)
    yield sample(fill(1, 9, 7, 7), fill(14, 9, 3, 3), fill(14), padding=1)
    yield sample(fill(1, 9, 5, 10), fill(14, 9, 1, 1))
    residual = fill(1, 4, 9, 27)
    yield sample(fill(1, 4, 9, 27), fill(4, 1, 3, 3), fill(4), residual, padding=1, groups=4, activation="relu6")
    yield sample(fill(1, 2, 11, 26), fill(2, 1, 5, 5), fill(2), padding=2, groups=2, activation="gelu")
    residual = fill(1, 2, 5, 14)
    yield sample(
        fill(1, 2, 9, 27), fill(2, 1, 3, 3), fill(2), residual, padding=1, groups=2, stride=2, activation="relu"
    )
    for x, w, attrs in NHWC:
        yield Sample((fill(*x), fill(*w), fill(w[0])), {"layout": "NHWC", **attrs})
    yield sample(fill(1, 4, 5, 3), fill(6, 3, 2, 2), fill(6), fill(1, 3, 4, 6), layout="NHWC", activation="relu6")


# ----------------------------------------------------------------------------------------------------- errors


@errors(conv)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, b = fill(1, 4, 6, 6), fill(6, 4, 3, 3), fill(6)
    yield ErrorCase(sample(fill(1, 3, 6, 6), w), ShapeError, "x has C=3 but w has C/groups=4 with groups=1; want C=4")
    yield ErrorCase(sample(x, w, groups=2), ShapeError, "x has C=4 but w has C/groups=4 with groups=2; want C=8")
    yield ErrorCase(sample(x, fill(5, 2, 3, 3), groups=2), AttrError, "groups=2 does not divide C=4 and K=5")
    yield ErrorCase(sample(x, fill(6, 4, 3)), ShapeError, "w has shape (6, 4, 3)")
    yield ErrorCase(sample(fill(4, 6), fill(6, 4)), ShapeError, "x has 2 dimensions; want 3 to 5")
    yield ErrorCase(sample(x, w, fill(5)), ShapeError, "b has shape (5,) but w has K=6; want (6,)")
    yield ErrorCase(sample(x, fill(6, 4, 7, 3)), ShapeError, "kernel")
    yield ErrorCase(sample(x, fill(6, 4, 0, 3)), ShapeError, "kernel")
    for name in ("stride", "dilation", "groups"):
        yield ErrorCase(sample(x, w, b, **{name: 0}), AttrError, f"{name}=0")
        yield ErrorCase(sample(x, w, b, **{name: -1}), AttrError, f"{name}=-1")
        yield ErrorCase(sample(x, w, b, **{name: 1.5}), AttrTypeError, f"{name}=1.5 is a float; want an int")
    yield ErrorCase(sample(x, w, b, stride=(1, 1, 1)), AttrError, "stride")
    yield ErrorCase(sample(x, w, b, padding=-1), AttrError, "padding=-1")
    yield ErrorCase(sample(x, w, b, padding="full"), AttrError, "padding='full'")
    yield ErrorCase(sample(x, w, b, padding=(1, 1, 1)), AttrError, "padding")
    yield ErrorCase(sample(x, w, b, dilation=1 << 62), AttrError, "dilation=4611686018427387904")
    yield ErrorCase(sample(x, w, b, activation="swish"), AttrError, "activation='swish'; want one of")
    yield ErrorCase(sample(x, w, b, layout="nchw"), AttrError, "layout='nchw'")
    yield ErrorCase(sample(x, w, b, algo="fft"), AttrError, "algo='fft'; want one of")
    yield ErrorCase(sample(x, w, b, stride=2, algo="winograd"), AttrError, "algo='winograd' needs a 3x3 kernel")
    yield ErrorCase(sample(x, fill(6, 4, 3, 2), b, algo="winograd_2x2"), AttrError, "w has shape (6, 4, 3, 2)")
    yield ErrorCase(sample(x, w, layout="NHWC"), ShapeError, "x has C=6 but w has C/groups=4 with groups=1; want C=4")
    yield ErrorCase(sample(x, w, b, fill(1, 6, 4, 5)), ShapeError, "residual has shape (1, 6, 4, 5); want (1, 6, 4, 4)")
    yield ErrorCase(sample(x, w, fill(6, 1)), ShapeError, "b has shape (6, 1) but w has K=6; want (6,)")
    yield ErrorCase(sample(x, w, b, padding=1 << 62), AttrError, "padding=4611686018427387904")
    yield ErrorCase(sample(x, w, b, strides=2), AttrTypeError, "strides")
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(x, w.astype(other), b), DTypeError, f"w has dtype {np.dtype(other)}")
    yield ErrorCase(sample(x, w, b.astype(other)), DTypeError, f"b has dtype {np.dtype(other)}")


# -------------------------------------------------------------------------------------------------- workloads


# name, x, w and attributes of the layers that the bench times; dy follows.
LAYERS: tuple[tuple[str, Sizes, Sizes, dict[str, Any], tuple[str, ...]], ...] = (
    ("3x3 64ch 56x56", (1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, ("resnet50",)),
    ("3x3 128ch 28x28", (1, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}, ("resnet50",)),
    ("3x3 256ch 14x14", (1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}, ("resnet50",)),
    ("3x3 512ch 7x7", (1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}, ("resnet50",)),
    ("1x1 256->64 56x56", (1, 256, 56, 56), (64, 256, 1, 1), {}, ("resnet50",)),
    ("stem 7x7 s2 3->64 224", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}, ("resnet50",)),
    ("depthwise 3x3 96ch 56x56", (1, 96, 56, 56), (96, 1, 3, 3), {"padding": 1, "groups": 96}, ("mobilenet",)),
    ("1d k9 64ch 4096", (1, 64, 4096), (64, 64, 9), {"padding": 4}, ("audio",)),
    ("3d 3x3x3 32ch 16x28x28", (1, 32, 16, 28, 28), (32, 32, 3, 3, 3), {"padding": 1}, ("video",)),
)


@workloads(conv)
def _() -> Iterator[Workload]:
    for name, x, w, attrs, sets in LAYERS:
        yield Workload(name, (x, w, (w[0],), None), attrs, sets)


@flops(conv)
def _(
    x: Sizes,
    w: Sizes,
    b: Sizes | None,
    residual: Sizes | None,
    *,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    layout: Layout,
    **attrs: Any,
) -> float:
    x = x if layout == "NCHW" else first(x)
    sizes = out_sizes(x, w, {"stride": stride, "padding": padding, "dilation": dilation})
    return 2.0 * x[0] * math.prod(w) * math.prod(sizes)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(conv)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    b: Any,
    residual: Any,
    y: Any,
    *,
    activation: Activation,
    layout: str,
    algo: Algo = None,
    **attrs: Any,
) -> None:
    from tilework.backends import opencl_conv

    kept = opencl_conv.in_rows(queue, channels_first(x, layout), channels_first(y, layout), attrs["groups"])
    with opencl_conv.in_float(queue, (x, w, b, residual), y, unless=kept) as ((x, w, b, residual), y):
        x, y = channels_first(x, layout), channels_first(y, layout)
        residual = None if residual is None else channels_first(residual, layout)
        opencl_conv.forward(queue, opencl_conv.Conv(x, y, w.shape[2:], **attrs), w, b, residual, activation)
