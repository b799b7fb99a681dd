"""Transposed convolution over 1, 2 or 3 spatial axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.conv import (
    Layout,
    all_but_channels,
    channels_first,
    channels_last,
    spatial,
    wide_backward,
    wide_forward,
)
from tilework.ops.conv_gradients import scattered
from tilework.ops.elementwise import activated, activation_dx, forward_activated
from tilework.registry import (
    ErrorCase,
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


@op
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    residual: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    output_padding: Ints = 0,
    activation: Activation = None,
    layout: Layout = "NCHW",
    out: Array | None = None,
) -> Array:
    """Spreads x (N, C, *spatial) with w (C, K/groups, *kernel), adds b (K,) and applies the activation.

    A residual of the shape of the result is added before the activation. With layout="NHWC" x, residual and result are
    (N, *spatial, channels), while w stays as it is.

    It is the gradient of conv in its input: the result is (N, K, *out) with out = (size - 1) stride + dilation (kernel
    - 1) + 1 + output_padding, less the padding before and behind, along each axis. Padding crops the result;
    output_padding, less than stride or dilation, lengthens it behind. "valid" crops nothing. ``prepare`` folds a
    batch_norm that follows into w and b: prepare(w=w, b=b, batch_norm=...).
    """
    ...


@reference(conv_transpose)
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
    output_padding: Sizes,
    activation: Activation,
    layout: str,
) -> Any:
    x = channels_first(x, layout)
    sizes = _out_sizes(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding)
    # Where output_padding outgrows the stride, the scattered image is wider than any window reaches.
    y = scattered(x, w, sizes, stride, padding, dilation, groups)
    if b is not None:
        y = y + b.reshape(-1, *(1 for _ in sizes))
    y = channels_last(y, layout)
    return activated(y if residual is None else y + residual, activation)


def _out_sizes(x: Sizes, w: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes, more: Sizes) -> Sizes:
    return tuple(
        (n - 1) * s + d * (k - 1) + 1 + m - sum(p)
        for n, k, s, p, d, m in zip(x, w, stride, padding, dilation, more, strict=True)
    )


dtypes(conv_transpose, "float32", "float64", "float16", "bfloat16")


@preparing(conv_transpose)
def _(given: dict[str, Any]) -> dict[str, Any]:
    from tilework.ops.batch_norm import with_batch_norm

    return with_batch_norm(conv_transpose, given, transposed=True)


# A phase of the stride multiplies the zeros beyond the border of x.
conv_transpose.rules["spreading"] = ("w",)


@depth(conv_transpose)
def _(x: Any, w: Any, b: Any, residual: Any, *, groups: int, **attrs: Any) -> int:
    return int(np.prod(w.shape) // (groups * max(w.shape[1], 1))) + 2


@forward(conv_transpose)
@wide_forward
def _(
    x: Array, w: Array, b: Array, residual: Array, *, activation: Activation, **attrs: Any
) -> tuple[Array, Array | None]:
    return forward_activated(lambda last: conv_transpose(x, w, b, residual, activation=last, **attrs), activation)


@backward(conv_transpose, of=("x", "w", "b", "residual"), where_given=("residual",))
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
    padding: Pairs,
    output_padding: Sizes,
    layout: Layout,
    **attrs: Any,
) -> Any:
    attrs["layout"] = layout
    if activation and saved is None:
        again = {**attrs, "padding": padding, "output_padding": output_padding}
        saved = forward_activated(lambda last: conv_transpose(x, w, b, residual, activation=last, **again), activation)[
            1
        ]
    dy = activation_dx(dy, saved, activation)
    d_residual = dy if "residual" in wanted else None
    db = ops.reduce_sum(dy, axes=all_but_channels(dy, layout)) if "b" in wanted else None
    # No window reaches what output_padding added: it is taken off the padding behind, then off dy itself.
    sizes = spatial(dy, layout)
    kept = [slice(0, n - max(0, m - p[1])) for n, m, p in zip(sizes, output_padding, padding, strict=True)]
    attrs["padding"] = tuple((p[0], max(0, p[1] - m)) for m, p in zip(output_padding, padding, strict=True))
    dy = dy[(slice(None), slice(None), *kept) if layout == "NCHW" else (slice(None), *kept)]
    dx = ops.conv(dy, w, **attrs) if "x" in wanted else None
    dw = ops.conv_dw(x, dy, kernel=w.shape[2:], **attrs) if "w" in wanted else None
    return dx, dw, db, d_residual


# ---------------------------------------------------------------------------------------------------- samples


_PROBLEMS: tuple[tuple[Sizes, Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 4, 9), (4, 3, 4), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((1, 4, 5), (4, 2, 3), {"dilation": 3, "output_padding": 2, "groups": 2}),
    ((1, 5, 6, 7), (5, 14, 3, 3), {"padding": 1}),
    ((2, 6, 5, 4), (6, 3, 4, 4), {"stride": 2, "padding": 1, "groups": 2}),
    ((1, 3, 4, 5), (3, 2, 2, 3), {"stride": 3, "padding": ((0, 1), (2, 0)), "output_padding": (2, 1)}),
    ((1, 4, 6, 5), (4, 1, 3, 3), {"stride": 2, "groups": 4}),
    ((1, 2, 2, 3, 3), (2, 3, 3, 2, 3), {"stride": (1, 2, 2), "padding": (1, 0, 1), "output_padding": (0, 1, 0)}),
)


@samples(conv_transpose)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, attrs in _PROBLEMS:
        yield Sample((fill(*x), fill(*w), fill(w[1] * attrs.get("groups", 1))), attrs)
    for activation in ("relu", "gelu"):
        yield sample(fill(1, 3, 4, 4), fill(3, 4, 3, 3), fill(4), stride=2, activation=activation)
    # Residuals: where sums are folded, where one GEMM takes all, and one per phase.
    yield sample(fill(1, 3, 4, 5), fill(3, 4, 3, 3), fill(4), fill(1, 4, 9, 11), stride=2, activation="relu")
    yield sample(fill(1, 3, 4, 5), fill(3, 13, 3, 3), None, fill(1, 13, 4, 5), padding=1)
    yield sample(fill(1, 3, 4, 5), fill(3, 4, 1, 1), fill(4), fill(1, 4, 7, 9), stride=2)
    yield sample(fill(2, 4, 5, 6), fill(6, 2, 3, 3), fill(4), fill(2, 9, 11, 4), stride=2, groups=2, layout="NHWC")
    yield sample(fill(1, 4, 5, 3), fill(3, 13, 3, 2), fill(13), layout="NHWC", activation="relu")
    yield sample(fill(0, 3, 4, 4), fill(3, 4, 3, 3), fill(4))
    yield sample(fill(1, 3, 1, 4), fill(3, 4, 3, 3), fill(4), stride=(1 << 31, 2))  # of one row, no stride is taken


@errors(conv_transpose)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, b = fill(1, 4, 5, 5), fill(4, 3, 3, 3), fill(3)
    yield ErrorCase(sample(fill(1, 3, 5, 5), w), ShapeError, "x has C=3 but w has C=4; want the same")
    yield ErrorCase(sample(x, w, groups=3), AttrError, "groups=3 does not divide C=4")
    yield ErrorCase(sample(x, w, groups=0), AttrError, "groups=0; want at least 1")
    yield ErrorCase(sample(x, w, fill(4)), ShapeError, "b has shape (4,) but w has K=3; want (3,)")
    yield ErrorCase(sample(x, fill(4, 3, 0, 3)), ShapeError, "want kernel sizes of at least 1")
    yield ErrorCase(sample(fill(1, 4, 0, 5), w), ShapeError, "x has no elements along spatial axis 0")
    yield ErrorCase(sample(x, w, b, stride=0), AttrError, "stride=0")
    yield ErrorCase(sample(x, w, b, stride=1 << 39), AttrError, "stride=549755813888 times 4 elements")
    yield ErrorCase(sample(x, w, b, output_padding=1), AttrError, "output_padding=1 along spatial axis 0")
    yield ErrorCase(sample(x, w, b, stride=2, output_padding=-1), AttrError, "output_padding=-1")
    yield ErrorCase(sample(x, w, b, padding=4), AttrError, "padding=(4, 4) along spatial axis 0 leaves nothing of 7")
    yield ErrorCase(sample(x, w, b, padding="same"), AttrError, "padding='same'")
    yield ErrorCase(sample(x, w, b, fill(1, 3, 5, 7)), ShapeError, "residual has shape (1, 3, 5, 7); want (1, 3, 7, 7)")
    yield ErrorCase(sample(x, w, b, layout="nhwc"), AttrError, "layout='nhwc'; want one of")
    yield ErrorCase(sample(x, w, b, dilation=1 << 62), AttrError, "dilation=4611686018427387904")
    yield ErrorCase(sample(x, w, b, dilation=0), AttrError, "dilation=0")
    yield ErrorCase(sample(x, w, b, padding=1 << 62), AttrError, "padding=4611686018427387904")
    yield ErrorCase(sample(x, np.arange(108).reshape(4, 3, 3, 3)), DTypeError, "w has dtype int64")


@workloads(conv_transpose)
def _() -> Iterator[Workload]:
    yield Workload(
        "4x4 s2 256->128 28x28", ((1, 256, 28, 28), (256, 128, 4, 4), None, None), {"stride": 2, "padding": 1}
    )


@flops(conv_transpose)
def _(x: Sizes, w: Sizes, b: Sizes | None, residual: Sizes | None, **attrs: Any) -> float:
    return 2.0 * math.prod(x) * math.prod(w[1:])


@opencl(conv_transpose)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    b: Any,
    residual: Any,
    y: Any,
    *,
    activation: Activation,
    output_padding: Sizes,
    layout: str,
    **attrs: Any,
) -> None:
    from tilework.backends import opencl_conv

    with opencl_conv.in_float(queue, (x, w, b, residual), y) as ((x, w, b, residual), y):
        x, y = channels_first(x, layout), channels_first(y, layout)
        residual = None if residual is None else channels_first(residual, layout)
        opencl_conv.gradient_x(queue, opencl_conv.Conv(y, x, w.shape[2:], **attrs), w, b, residual, activation)
