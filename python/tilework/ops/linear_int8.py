"""A dense layer with 8-bit weights, its activations quantised row by row on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import is_narrow
from tilework.errors import AttrError, DTypeError, ShapeError
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
    from tilework.testing import Fill


@op
def linear_int8(
    x: Array,
    w: Array,
    w_scale: Array,
    b: Array | None = None,
    w_zero: Array | None = None,
    *,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Applies a dense layer of 8-bit weights: x (..., I), w (O, I), w_scale (O,) or (), b (O,) to y (..., O).

    y = activation(x (w_scale (w - w_zero))ᵀ + b) with each row of x quantised by its own range to 255 steps: scale =
    max(x, 0) / 255 - min(x, 0) / 255, then as dynamic_quantize_linear but multiplying by 1 / scale. w is int8 or uint8;
    w_zero (O,) or () has its dtype. I is at most 65793, or 33025 with uint8 or w_zero. A row with a NaN or an infinity
    is NaN. The gradient passes straight through the rounding: that of x as if the weights were w_scale (w - w_zero).
    """
    ...


def row_codes(x: Any) -> tuple[Any, Any, Any]:
    """Codes, zero points and scales of the rows of a float32 x."""
    part = np.float32(1) / np.float32(255)
    low = np.min(x, axis=-1, keepdims=True, initial=np.float32(0))
    high = np.max(x, axis=-1, keepdims=True, initial=np.float32(0))
    scale = high * part - low * part
    scale = np.where(scale < np.inf, np.maximum(scale, np.float32(2.0**-126)), np.float32(np.nan))
    inverse = np.float32(1) / scale
    zero = np.clip(np.rint(np.nan_to_num(-low * inverse, nan=0.0)), 0, 255)
    codes = np.clip(np.rint(np.nan_to_num(x * inverse, nan=0.0)) + zero, 0, 255)
    return codes.astype(np.int64), zero.astype(np.int64), scale


@reference(linear_int8)
def _(x: Any, w: Any, w_scale: Any, b: Any, w_zero: Any, *, activation: Activation) -> Any:
    codes, zero, scale = row_codes(x.astype(np.float32))
    weights = np.asarray(w, np.int64) - (0 if w_zero is None else np.asarray(w_zero, np.int64).reshape(-1, 1))
    sums = np.matmul(codes - zero, weights.T).astype(np.float32)
    y = sums * (scale * w_scale.astype(np.float32))
    return activated((y if b is None else y + b.astype(np.float32)).astype(np.float64), activation)


# 16-bit gradients are computed in float32 and rounded once; nothing is saved for them.
@forward(linear_int8)
def _(
    x: Array, w: Array, w_scale: Array, b: Array, w_zero: Array, *, activation: Activation
) -> tuple[Array, Array | None]:
    if is_narrow(x.dtype):
        return linear_int8(x, w, w_scale, b, w_zero, activation=activation), None
    return forward_activated(lambda last: linear_int8(x, w, w_scale, b, w_zero, activation=last), activation)


@backward(linear_int8, of=("x", "b"))
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
) -> Any:
    dtype = np.dtype(np.float32) if is_narrow(x.dtype) else x.dtype

    def wide(a: Array) -> Array:
        return a if a is None or a.dtype == dtype else ops.cast(a, dtype=dtype)

    dy = wide(dy)
    if activation and saved is None:
        saved = forward_activated(
            lambda last: linear_int8(wide(x), w, w_scale, wide(b), w_zero, activation=last), activation
        )[1]
    dy = activation_dx(dy, saved, activation)
    dx = db = None
    if "x" in wanted:
        weights = wide(w)
        if w_zero is not None:
            zero = wide(ops.expand(w_zero, shape=(w.shape[0],)))
            weights = ops.sub(weights, ops.reshape(zero, shape=(w.shape[0], 1)))
        dx = ops.cast(ops.matmul(ops.mul(dy, wide(w_scale)), weights), dtype=x.dtype)
    if "b" in wanted:
        db = ops.cast(ops.reduce_sum(dy, axes=tuple(range(dy.ndim - 1))), dtype=b.dtype)
    return dx, db


dtypes(linear_int8, "float32", "float16", "bfloat16")
linear_int8.rules["reads_packed"] = ("w",)
tolerance(linear_int8, ulp=4)  # of the activation: without one, results are the reference's to the last bit


@samples(linear_int8)
def _(fill: Fill) -> Iterator[Sample]:
    def weights(*shape: int, dtype: Any = np.int8) -> Any:
        limits = np.iinfo(dtype)
        return fill.integers(*shape, low=limits.min, high=limits.max + 1, dtype=dtype)

    def scale(*shape: int) -> Any:
        return np.asarray(fill.positive(*shape) * 0.02, np.float32)

    for m, i, o in ((1, 1, 1), (3, 5, 7), (7, 64, 33), (13, 35, 16)):
        yield sample(fill(m, i), weights(o, i), scale(o), fill(o))
    yield sample(fill(2, 3, 70), weights(70, 17).T, scale())
    yield sample(fill(9, 6).T, weights(5, 9, dtype=np.uint8), scale(5), fill(5), weights(5, dtype=np.uint8))
    yield sample(fill(1, 40), weights(19, 40), scale(1), None, weights())
    for activation in ("relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "hard_swish"):
        yield sample(fill(3, 9), weights(17, 9), scale(17), fill(17), activation=activation)
    yield sample(fill(5), weights(4, 5), fill.positive(4))
    yield sample(np.zeros((2, 5), fill.dtype), weights(4, 5), scale(4))
    yield sample(fill(0, 5), weights(4, 5), scale(4), fill(4))
    yield sample(fill(3, 0), weights(4, 0), scale(4), fill(4), activation="relu")


@errors(linear_int8)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, scale = np.ones((4, 3), np.int8), np.ones(4, np.float32)
    yield ErrorCase(sample(fill(2, 5), w, scale), ShapeError, "x has I=5 but w has shape (4, 3); want w of shape")
    yield ErrorCase(sample(fill(2, 3), fill(4, 3), scale), DTypeError, "want int8 or uint8")
    yield ErrorCase(sample(fill(2, 3), w, scale[:3]), ShapeError, "w_scale has shape (3,) but w has O=4; want () or")
    yield ErrorCase(sample(fill(2, 3), w, scale.astype(np.int32)), DTypeError, "w_scale has dtype int32 but x has")
    yield ErrorCase(sample(fill(2, 3), w, scale, fill(3)), ShapeError, "b has shape (3,) but w has O=4; want (4,)")
    yield ErrorCase(
        sample(fill(2, 3), w, scale, None, np.zeros(4, np.uint8)), DTypeError, "w_zero has dtype uint8 but w has int8"
    )
    yield ErrorCase(sample(fill(2, 3), w, scale, activation="Relu"), AttrError, "activation='Relu'; want one of")
    long = np.lib.stride_tricks.as_strided(fill(1), (1, 65794), (0, 0))
    wide = np.lib.stride_tricks.as_strided(np.ones(1, np.int8), (4, 65794), (0, 0))
    yield ErrorCase(sample(long, wide, scale), ShapeError, "I=65794 terms could leave int32; want 65793 or fewer")


@workloads(linear_int8)
def _() -> Iterator[Workload]:
    for n in (128, 256, 1024):
        yield Workload(f"n={n}", ((n, n), (n, n), (n,), (n,), None), sets=("square",))
    for m in (1, 8):
        yield Workload(f"{m}x4096x4096", ((m, 4096), (4096, 4096), (4096,), None, None), sets=("llm-decode",))


@fills(linear_int8)
def _(fill: Fill, x: Sizes, w: Sizes, w_scale: Sizes, b: Sizes | None, w_zero: Sizes | None, **attrs: Any) -> Any:
    weights = fill.integers(*w, low=-127, high=128, dtype=np.int8)
    return fill(*x), weights, fill.positive(*w_scale).astype(np.float32), None if b is None else fill(*b), None


@flops(linear_int8)
def _(x: Sizes, w: Sizes, w_scale: Sizes, b: Sizes | None, w_zero: Sizes | None, *, activation: Activation) -> float:
    return 2.0 * math.prod(x) * w[0]


@opencl(linear_int8)
def _(queue: Queue, x: Any, w: Any, w_scale: Any, b: Any, w_zero: Any, y: Any, *, activation: Activation) -> None:
    from tilework.backends.opencl_gemm import epilogue, multiply

    if y.size == 0:
        return
    rows, k, n = math.prod(x.shape[:-1]), x.shape[-1], w.shape[0]
    x = queue.contiguous(x)
    scale, inverse = queue.empty((rows,), np.float32), queue.empty((rows,), np.float32)
    zero, codes = queue.empty((rows,), np.uint8), queue.empty((rows, k), np.uint8)
    sums = queue.empty((rows, n), np.int32)
    source = x if k else queue.empty((1,), x.dtype)
    args = (source, scale, inverse, zero, rows, k)
    queue.launch("linear_int8.cl", "row_codes", rows, GROUP_SIZE, args, DTYPE=x.dtype)
    if k:
        args = (x, inverse, zero, codes, rows * k, k)
        queue.launch("linear_int8.cl", "quantize_rows", rows * k, GROUP_SIZE, args, DTYPE=x.dtype)
        multiply(queue, codes, w.T, sums, zeros=(zero, w_zero))
    else:
        queue.fill(sums, 0)
    last = (sums, scale, w_scale, *([] if b is None else [b]), y, rows * n, n, int(w_scale.size > 1))
    define = epilogue(b, activation) | {"SCALE": w_scale.dtype}
    queue.launch("linear_int8.cl", "scale_sums", rows * n, GROUP_SIZE, last, DTYPE=y.dtype, **define)
