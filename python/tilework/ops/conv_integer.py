"""Convolutions of 8-bit codes: exact in int32, requantised to 8 bits, or scaled back to floats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Ints, Padding, Sizes, Wanted
from tilework.dtypes import is_narrow
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.conv import conv
from tilework.ops.elementwise import activated, activation_dx, forward_activated
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
    flops,
    forward,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def conv_integer(
    x: Array,
    w: Array,
    x_zero: Array | None = None,
    w_zero: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Convolves 8-bit x (N, C, *spatial) with w (K, C/groups, *kernel) exactly, to int32 (N, K, *out).

    x - x_zero is convolved with w - w_zero as conv does it; the border is x_zero. x and w are int8 or uint8, each of
    its own; x_zero is one number, w_zero one or one per filter (K,). A filter of so many terms that their sum could
    leave int32 is an error: the most are 131071 for int8 by int8, 33025 for uint8 by uint8. ONNX ConvInteger.
    """
    ...


@op
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Convolves 8-bit x (N, C, *spatial) with w (K, C/groups, *kernel) and requantises to 8 bits, (N, K, *out).

    y = clamp(rint((sum + b) * scale) + y_zero) with the sums of conv_integer, b (K,) int32 and scale = x_scale *
    w_scale / y_scale in float32. w_scale and w_zero are one number or one per filter (K,), the others one number. The
    result has the dtype of y_zero, int8 or uint8. ONNX QLinearConv.
    """
    ...


@op
def conv_int8(
    x: Array,
    w: Array,
    w_scale: Array,
    b: Array | None = None,
    w_zero: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Convolves floating x (N, C, *spatial) with 8-bit w (K, C/groups, *kernel), w_scale (K,) or (), to (N, K, *out).

    y = activation(conv(x, w_scale (w - w_zero)) + b) with each image of x quantised by its own range to 255 steps, as
    linear_int8 does a row. w is int8 or uint8, b (K,) has the dtype of x, w_zero, (K,) or (), that of w. An image with
    a NaN or an infinity is NaN. The gradient passes straight through the rounding.
    """
    ...


# -------------------------------------------------------------------------------------------------- references


def _filters(v: Any, w: Any) -> Any:
    """One number, or one per filter, in shape to broadcast against w."""
    v = np.asarray(v)
    return v.reshape(-1, *(1 for _ in w.shape[1:])) if v.size != 1 else v.reshape(())


def _sums(x: Any, w: Any, x_zero: Any, w_zero: Any, attrs: dict[str, Any]) -> Any:
    """The exact sums, in int64: a float64 holds them. x_zero broadcasts against x."""
    left = np.asarray(x, np.float64) - (0 if x_zero is None else np.asarray(x_zero, np.float64))
    right = np.asarray(w, np.float64) - (0 if w_zero is None else _filters(w_zero, w).astype(np.float64))
    y = conv.rules["reference"](left, right, None, None, **attrs, activation=None, layout="NCHW")
    return y.astype(np.int64)


@reference(conv_integer)
def _(x: Any, w: Any, x_zero: Any, w_zero: Any, **attrs: Any) -> Any:
    return _sums(x, w, None if x_zero is None else x_zero.reshape(()), w_zero, attrs).astype(np.int32)


@reference(qlinear_conv)
def _(
    x: Any,
    x_scale: Any,
    x_zero: Any,
    w: Any,
    w_scale: Any,
    w_zero: Any,
    y_scale: Any,
    y_zero: Any,
    b: Any,
    **attrs: Any,
) -> Any:
    sums = _sums(x, w, x_zero.reshape(()), w_zero, attrs)
    one_each = (1, -1, *(1 for _ in w.shape[2:]))
    if b is not None:
        sums = sums + np.asarray(b, np.int64).reshape(one_each)
    single = [np.asarray(s, np.float32).reshape(-1) for s in (x_scale, w_scale, y_scale)]
    with np.errstate(all="ignore"):
        scale = single[0] * single[1] / single[2]
        scaled = sums.astype(np.int32).astype(np.float32) * scale.reshape(one_each)
    limits = np.iinfo(y_zero.dtype)
    whole = np.rint(np.where(np.isnan(scaled), np.float32(0), scaled)).astype(np.float64) + y_zero.reshape(())
    return np.clip(whole, limits.min, limits.max).astype(y_zero.dtype)


@reference(conv_int8)
def _(x: Any, w: Any, w_scale: Any, b: Any, w_zero: Any, *, activation: Activation, **attrs: Any) -> Any:
    from tilework.ops.linear_int8 import row_codes

    if len(x) == 0:
        codes, zero, scale = x, np.zeros((0, 1)), np.zeros((0, 1), np.float32)
    else:
        codes, zero, scale = row_codes(x.astype(np.float32).reshape(len(x), -1))
    each = (-1, *(1 for _ in x.shape[1:]))
    sums = _sums(codes.reshape(x.shape), w, zero.reshape(each), w_zero, attrs).astype(np.float32)
    y = sums * (scale.reshape(each) * w_scale.astype(np.float32).reshape(1, -1, *each[2:]))
    if b is not None:
        y = y + b.astype(np.float32).reshape(1, -1, *each[2:])
    return activated(y.astype(np.float64), activation)


# --------------------------------------------------------------------------------------------------- gradients


# 16-bit gradients are computed in float32 and rounded once; nothing is saved for them.
@forward(conv_int8)
def _(
    x: Array, w: Array, w_scale: Array, b: Array, w_zero: Array, *, activation: Activation, **attrs: Any
) -> tuple[Array, Array | None]:
    if is_narrow(x.dtype):
        return conv_int8(x, w, w_scale, b, w_zero, activation=activation, **attrs), None
    return forward_activated(lambda last: conv_int8(x, w, w_scale, b, w_zero, activation=last, **attrs), activation)


@backward(conv_int8, of=("x", "b"))
def _(
    dy: Array,
    x: Array,
    w: Array,
    w_scale: Array,
    b: Array,
    w_zero: Array,
    *,
    saved: Array | None,
    wanted: Wanted,
    activation: Activation,
    **attrs: Any,
) -> Any:
    dtype = np.dtype(np.float32) if is_narrow(x.dtype) else x.dtype

    def wide(a: Array) -> Array:
        return a if a is None or a.dtype == dtype else ops.cast(a, dtype=dtype)

    def each(a: Array) -> Array:
        return ops.reshape(ops.expand(wide(a), shape=(w.shape[0],)), shape=(w.shape[0], *(1 for _ in w.shape[1:])))

    dy = wide(dy)
    if activation and saved is None:
        saved = forward_activated(
            lambda last: conv_int8(wide(x), w, wide(w_scale), wide(b), w_zero, activation=last, **attrs), activation
        )[1]
    dy = activation_dx(dy, saved, activation)
    dx = db = None
    if "x" in wanted:
        weights = wide(w) if w_zero is None else ops.sub(wide(w), each(w_zero))
        dx = ops.cast(ops.conv_dx(dy, ops.mul(weights, each(w_scale)), shape=x.shape[2:], **attrs), dtype=x.dtype)
    if "b" in wanted:
        db = ops.cast(ops.reduce_sum(dy, axes=(0, *range(2, dy.ndim))), dtype=b.dtype)
    return dx, db


# ----------------------------------------------------------------------------------------------------- samples


for _op in (conv_integer, qlinear_conv):
    dtypes(_op, "int8", "uint8")
    tolerance(_op, ulp=0.5)
dtypes(conv_int8, "float32", "float16", "bfloat16")
tolerance(conv_int8, ulp=4)  # of the activation: without one, results are the reference's to the last bit


# Each goes another way through the packers: runs of a row, phases of a stride, no copy, the image itself, many groups.
_PROBLEMS: tuple[tuple[Sizes, Sizes, dict[str, Any]], ...] = (
    ((2, 3, 9, 21), (7, 3, 3, 3), {"padding": 1}),
    ((1, 5, 11, 13), (6, 5, 3, 2), {"stride": 2, "padding": ((1, 2), (0, 1)), "dilation": (1, 2)}),
    ((2, 6, 5, 7), (8, 3, 1, 1), {"groups": 2}),
    ((1, 4, 19), (4, 1, 5), {"groups": 4, "stride": 3, "padding": 2}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": 1, "stride": (1, 2, 1)}),
    ((1, 2, 3), (13, 2, 2), {"padding": 40, "stride": 37, "dilation": 41}),
    ((1, 70, 6, 6), (14, 70, 3, 3), {"padding": "same"}),
)


@samples(conv_integer)
def _(fill: Fill) -> Iterator[Sample]:
    mixed = np.uint8 if fill.dtype == np.int8 else np.int8
    for i, (x, w, attrs) in enumerate(_PROBLEMS):
        zeros = (None, None) if i % 2 else (fill(1), fill(w[0]).astype(mixed))
        yield Sample((fill(*x), fill(*w).astype(fill.dtype if i % 2 else mixed), *zeros), attrs)
    yield sample(fill(4, 3, 6, 2).transpose(3, 1, 0, 2), fill(3, 3, 3, 4).T, fill(), fill(), padding=1)
    yield sample(fill(0, 3, 5, 5), fill(4, 3, 3, 3))
    yield sample(fill(1, 0, 3, 3), fill(2, 0, 3, 3), fill(), padding=1)


@samples(qlinear_conv)
def _(fill: Fill) -> Iterator[Sample]:
    def scale(*shape: int) -> Any:
        return np.asarray(fill.integers(*shape, low=1, high=200) / 10000, np.float32)

    one = np.full((), 0.37, np.float32)
    for x, w, attrs in _PROBLEMS[:4]:
        bias = fill.integers(w[0], low=-1000, high=1000, dtype=np.int32)
        operands = (fill(*x), scale(), fill(), fill(*w), scale(w[0]), fill(w[0]), one, fill(), bias)
        yield Sample(operands, attrs)
    yield sample(fill(6, 5, 3, 2).T, scale(1), fill(1), fill(4, 3, 2, 2), scale(), fill(), one, fill(1))
    yield sample(fill(0, 3, 5), scale(), fill(), fill(4, 3, 3), scale(), fill(), one, fill())


@samples(conv_int8)
def _(fill: Fill) -> Iterator[Sample]:
    def weights(*shape: int, dtype: Any = np.int8) -> Any:
        limits = np.iinfo(dtype)
        return fill.integers(*shape, low=limits.min, high=limits.max + 1, dtype=dtype)

    def scale(*shape: int) -> Any:
        return np.asarray(fill.positive(*shape) * 0.02, np.float32)

    for x, w, attrs in _PROBLEMS[:4]:
        yield Sample((fill(*x), weights(*w), scale(w[0]), fill(w[0])), attrs)
    yield sample(fill(6, 9, 3, 2).T, weights(5, 3, 3, 2, dtype=np.uint8), scale(), fill(5), weights(5, dtype=np.uint8))
    yield sample(fill(1, 3, 9), weights(4, 3, 3), fill.positive(4), None, weights(), padding=1, activation="gelu")
    for activation in ("relu", "relu6", "silu"):
        yield sample(fill(1, 3, 9), weights(4, 3, 3), scale(4), fill(4), stride=2, activation=activation)
    yield sample(fill(0, 3, 5), weights(4, 3, 3), scale(4), fill(4))
    yield sample(fill(1, 0, 3, 3), weights(2, 0, 3, 3), scale(), fill(2), padding=1)


@errors(conv_integer)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w = fill(1, 4, 6, 6), fill(6, 4, 3, 3)
    yield ErrorCase(sample(fill(1, 3, 6, 6), w), ShapeError, "x has C=3 but w has C/groups=4 with groups=1; want C=4")
    yield ErrorCase(sample(x, np.ones((6, 4, 3, 3), np.float32)), DTypeError, "w has dtype float32; want int8 or uint8")
    yield ErrorCase(sample(x.astype(np.int32), w), DTypeError, "x has dtype int32; want int8 or uint8")
    yield ErrorCase(sample(x, w, np.zeros((), np.int32)), DTypeError, "x_zero has dtype int32 but x has")
    yield ErrorCase(sample(x, w, fill(4)), ShapeError, "x_zero has shape (4,); want one number")
    yield ErrorCase(sample(x, w, None, fill(4)), ShapeError, "w_zero has shape (4,) but w has K=6; want () or (6,)")
    yield ErrorCase(sample(x, w, stride=0), AttrError, "stride=0")
    yield ErrorCase(sample(x, w, groups=4), AttrError, "groups=4 does not divide C=4 and K=6")
    most = 131071 if fill.dtype == np.int8 else 33025
    long = np.lib.stride_tricks.as_strided(fill(1), (1, 1, most + 1), (0, 0, 0))
    yield ErrorCase(sample(long, long), ShapeError, f"w has {most + 1} terms per filter, whose sum could leave int32")


@errors(qlinear_conv)
def _(fill: Fill) -> Iterator[ErrorCase]:
    one, zero = np.ones((), np.float32), fill()

    def case(**changed: Any) -> Sample:
        given = {
            "x": fill(1, 2, 5), "x_scale": one, "x_zero": zero, "w": fill(4, 2, 3), "w_scale": one, "w_zero": zero,
            "y_scale": one, "y_zero": zero, "b": np.zeros(4, np.int32),
        }  # fmt: skip
        return sample(*(given | changed).values())

    yield ErrorCase(case(x_scale=np.ones(2, np.float32)), ShapeError, "x_scale has shape (2,); want one number")
    yield ErrorCase(case(w_scale=np.ones(3, np.float32)), ShapeError, "w_scale has shape (3,) but w has K=4")
    yield ErrorCase(case(w_scale=np.ones(())), DTypeError, "w_scale has dtype float64; want float32")
    yield ErrorCase(case(y_zero=np.zeros((), np.int32)), DTypeError, "y_zero has dtype int32; want int8 or uint8")
    yield ErrorCase(case(b=np.zeros(4, np.float32)), DTypeError, "b has dtype float32; want int32")
    yield ErrorCase(case(b=np.zeros(3, np.int32)), ShapeError, "b has shape (3,); want (4,)")


@errors(conv_int8)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, scale = fill(1, 4, 6, 6), np.ones((6, 4, 3, 3), np.int8), np.ones(6, np.float32)
    yield ErrorCase(sample(x, fill(6, 4, 3, 3), scale), DTypeError, "want int8 or uint8")
    yield ErrorCase(sample(x, w, scale[:3]), ShapeError, "w_scale has shape (3,) but w has K=6; want () or (6,)")
    yield ErrorCase(sample(x, w, scale.astype(np.int32)), DTypeError, "w_scale has dtype int32 but x has")
    yield ErrorCase(sample(x, w, scale, fill(3)), ShapeError, "b has shape (3,) but w has K=6; want (6,)")
    yield ErrorCase(
        sample(x, w, scale, None, np.zeros(6, np.uint8)), DTypeError, "w_zero has dtype uint8 but w has int8"
    )
    yield ErrorCase(sample(x, w, scale, activation="Relu"), AttrError, "activation='Relu'; want one of")


# --------------------------------------------------------------------------------------------------- workloads


_LAYERS: tuple[tuple[str, Sizes, Sizes, dict[str, Any]], ...] = (
    ("3x3 64ch 56x56", (1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ("3x3 256ch 14x14", (1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    ("3x3 512ch 7x7", (1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    ("1x1 256->64 56x56", (1, 256, 56, 56), (64, 256, 1, 1), {}),
    ("stem 7x7 s2 3->64 224", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
)


@workloads(conv_integer)
def _() -> Iterator[Workload]:
    for name, x, w, attrs in _LAYERS:
        yield Workload(name, (x, w, None, None), attrs, ("resnet50",))


@workloads(qlinear_conv)
def _() -> Iterator[Workload]:
    for name, x, w, attrs in _LAYERS:
        yield Workload(name, (x, (), (), w, (w[0],), (w[0],), (), (), (w[0],)), attrs, ("resnet50",))


@workloads(conv_int8)
def _() -> Iterator[Workload]:
    for name, x, w, attrs in _LAYERS:
        yield Workload(name, (x, w, (w[0],), (w[0],), None), attrs, ("resnet50",))


def _scales(fill: Fill, *shape: int) -> Any:
    return np.asarray(fill.integers(*shape, low=1, high=200) / 10000, np.float32)


@fills(qlinear_conv)
def _(fill: Fill, *shapes: Sizes, **attrs: Any) -> Any:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b = shapes
    zeros = np.zeros(w_zero, fill.dtype)
    operands = fill(*x), _scales(fill, *x_scale), fill(*x_zero), fill(*w), _scales(fill, *w_scale), zeros
    return *operands, np.ones(y_scale, np.float32), fill(*y_zero), np.zeros(b, np.int32)


@fills(conv_int8)
def _(fill: Fill, *shapes: Sizes, **attrs: Any) -> Any:
    x, w, w_scale, b, _ = shapes
    weights = fill.integers(*w, low=-127, high=128, dtype=np.int8)
    return fill(*x), weights, _scales(fill, *w_scale), fill(*b), None


def _operations(x: Sizes, w: Sizes, attrs: dict[str, Any]) -> float:
    return float(conv.rules["flops"](x, w, None, None, layout="NCHW", **attrs))


@flops(conv_integer)
def _(x: Sizes, w: Sizes, x_zero: Sizes | None, w_zero: Sizes | None, **attrs: Any) -> float:
    return _operations(x, w, attrs)


@flops(qlinear_conv)
def _(x: Sizes, x_scale: Sizes, x_zero: Sizes, w: Sizes, *others: Sizes | None, **attrs: Any) -> float:
    return _operations(x, w, attrs)


@flops(conv_int8)
def _(x: Sizes, w: Sizes, *others: Sizes | None, **attrs: Any) -> float:
    return _operations(x, w, attrs)


# ------------------------------------------------------------------------------------------------------ OpenCL


def _conv_codes(queue: Queue, x: Any, w: Any, x_zero: Any, w_zero: Any, y: Any, attrs: dict[str, Any]) -> Any:
    """The exact sums, in y or a new array; x_zero is one number or one per image."""
    from tilework.backends.opencl_queue import GROUP_SIZE

    def zero(given: Any, dtype: Any) -> Any:
        if given is not None:
            return given
        made = queue.empty((1,), dtype)
        queue.fill(made, 0)
        return made

    groups = attrs["groups"]
    if w.size == 0 and y.size:
        queue.fill(y, 0)
        return y
    x_zero, w_zero = zero(x_zero, x.dtype), zero(w_zero, w.dtype)

    def axes(values: Any, lead: int) -> list[int]:
        return [lead] * (3 - len(values)) + list(values)

    members = [
        [y.size, groups, w.shape[1], w.shape[0] // groups],
        axes(x.shape[2:], 1),
        axes(y.shape[2:], 1),
        axes(w.shape[2:], 1),
        axes(attrs["stride"], 1),
        axes(attrs["dilation"], 1),
        axes([before for before, _ in attrs["padding"]], 0),
        [int(x_zero.size > 1), int(w_zero.size > 1)],
    ]
    struct = np.array([n for member in members for n in member], np.int64)
    args = (x, w, x_zero, w_zero, y, struct)
    queue.launch("conv_integer.cl", "conv_codes", y.size, GROUP_SIZE, args, CODE=x.dtype, WEIGHT=w.dtype)
    return y


@opencl(conv_integer)
def _(queue: Queue, x: Any, w: Any, x_zero: Any, w_zero: Any, y: Any, **attrs: Any) -> None:
    _conv_codes(queue, x, w, x_zero, w_zero, y, attrs)


@opencl(qlinear_conv)
def _(
    queue: Queue,
    x: Any,
    x_scale: Any,
    x_zero: Any,
    w: Any,
    w_scale: Any,
    w_zero: Any,
    y_scale: Any,
    y_zero: Any,
    b: Any,
    y: Any,
    **attrs: Any,
) -> None:
    from tilework.backends.opencl_gemm import epilogue
    from tilework.backends.opencl_queue import GROUP_SIZE

    sums = _conv_codes(queue, x, w, x_zero, w_zero, queue.empty(y.shape, np.int32), attrs)
    pixels = y.size // max(y.shape[0] * y.shape[1], 1)
    bias = [] if b is None else [b]
    args = (sums, x_scale, w_scale, y_scale, y_zero, *bias, y, y.size, y.shape[1], pixels, int(w_scale.size > 1))
    define = epilogue(b, None) | {"REQUANTIZE": 1}
    queue.launch("conv_integer.cl", "requantize", y.size, GROUP_SIZE, args, DTYPE=y.dtype, **define)


@opencl(conv_int8)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    w_scale: Any,
    b: Any,
    w_zero: Any,
    y: Any,
    *,
    activation: Activation,
    **attrs: Any,
) -> None:
    from tilework.backends.opencl_gemm import epilogue
    from tilework.backends.opencl_queue import GROUP_SIZE

    if y.size == 0:
        return
    images, x = x.shape[0], queue.contiguous(x)
    scale, inverse = queue.empty((images,), np.float32), queue.empty((images,), np.float32)
    zero, codes = queue.empty((images,), np.uint8), queue.empty(x.shape, np.uint8)
    args: tuple[Any, ...]
    args = (x if x.size else queue.empty((1,), x.dtype), scale, inverse, zero, images, x.size // images)
    queue.launch("linear_int8.cl", "row_codes", images, GROUP_SIZE, args, DTYPE=x.dtype)
    args = (x, inverse, zero, codes, x.size, x.size // images)
    queue.launch("linear_int8.cl", "quantize_rows", x.size, GROUP_SIZE, args, DTYPE=x.dtype)
    sums = _conv_codes(queue, codes, w, zero, w_zero, queue.empty(y.shape, np.int32), attrs)
    pixels = y.size // (images * y.shape[1])
    bias = [] if b is None else [b]
    args = (sums, scale, w_scale, *bias, y, y.size, y.shape[1], pixels, int(w_scale.size > 1))
    define = epilogue(b, activation) | {"SCALE": w_scale.dtype}
    queue.launch("conv_integer.cl", "scale_sums", y.size, GROUP_SIZE, args, DTYPE=y.dtype, **define)
