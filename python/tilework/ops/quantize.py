"""Linear quantisation: floats to 8-bit codes and back, ONNX's conventions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from tilework.testing import Fill

# -------------------------------------------------------------------------------------------- quantize_linear


@op
def quantize_linear(
    x: Array,
    scale: Array,
    zero: Array | None = None,
    *,
    axis: int = 1,
    block: int = 0,
    dtype: npt.DTypeLike | None = None,
    out: Array | None = None,
) -> Array:
    """Quantises x, of any shape, to clamp(rint(x / scale) + zero) in int8 or uint8: that of zero, or ``dtype``.

    scale and zero are of one shape: () for all of x, (D,) for one per index of ``axis``, or, with ``block``, the shape
    of x with ceil(D / block) in place of D along ``axis``. Halves round to even, infinities, as of
    a scale of 0, saturate, and NaN becomes zero; the quotient is computed in float32. ONNX QuantizeLinear.
    """
    ...


@op
def dequantize_linear(
    x: Array,
    scale: Array,
    zero: Array | None = None,
    *,
    axis: int = 1,
    block: int = 0,
    out: Array | None = None,
) -> Array:
    """Computes (x - zero) * scale of x in int8, uint8 or int32, of any shape, in the dtype of scale.

    The shapes of scale and zero are those of quantize_linear; zero has the dtype of x. ONNX DequantizeLinear.
    """
    ...


@op
def dynamic_quantize_linear(x: Array, *, out: tuple[Array, Array, Array] | None = None) -> Any:
    """Quantises x, of any shape, to uint8 by its own range: q of that shape, and scale and zero of shape ().

    scale = (max(x, 0) - min(x, 0)) / 255, or 1 / 255 where that would be 0, and zero = clamp(rint(-min(x, 0) / scale)).
    A NaN in x makes scale NaN. ONNX DynamicQuantizeLinear.
    """
    ...


@op
def quantize_rows(x: Array, *, out: tuple[Array, Array] | None = None) -> Any:
    """Quantises each row of x (..., D) to int8 by its own range: q of that shape and scale (...), float32.

    scale = largest |x| of the row / 127, at least 2^-126, and q = rint(x / scale), multiplying by 1 / scale: q scale is
    x to half a step. A row with a NaN or an infinity has the scale NaN. It is what ``paged_attention`` reads, and how
    weights in 8 bits are stored.
    """
    ...


def _spread(v: Any, shape: tuple[int, ...], axis: int, block: int) -> Any:
    """A scale or zero point broadcast to ``shape``."""
    if block:
        return np.take(np.repeat(v, block, axis), range(shape[axis]), axis)
    return v.reshape([-1 if d == axis else 1 for d in range(len(shape))]) if v.size != 1 else v.reshape(())


def _codes(quotient: Any, zero: Any, low: int, high: int) -> Any:
    """clamp(rint(quotient) + zero), NaN as 0: float32 in, integers out."""
    whole = np.rint(np.where(np.isnan(quotient), np.float32(0), quotient)).astype(np.float64) + zero
    return np.clip(whole, low, high).astype(np.int64)


@reference(quantize_linear)
def _(x: Any, scale: Any, zero: Any, *, axis: int, block: int, dtype: Any) -> Any:
    scale = _spread(scale.astype(np.float32), x.shape, axis, block)
    less = 0 if zero is None else _spread(zero, x.shape, axis, block).astype(np.int64)
    limits = np.iinfo(dtype)
    return _codes(x.astype(np.float32) / scale, less, limits.min, limits.max).astype(dtype)


@reference(dequantize_linear)
def _(x: Any, scale: Any, zero: Any, *, axis: int, block: int) -> Any:
    less = 0 if zero is None else _spread(zero, x.shape, axis, block).astype(np.int64)
    whole = (x.astype(np.int64) - less).astype(np.int32)
    return whole.astype(np.float32) * _spread(scale.astype(np.float32), x.shape, axis, block)


@reference(dynamic_quantize_linear)
def _(x: Any) -> Any:
    x = x.astype(np.float32)
    low, high = np.min(x, initial=np.float32(0)), np.max(x, initial=np.float32(0))
    scale = np.float32(1 if low == high else high - low) / np.float32(255)
    zero = _codes(np.clip(np.float32(0) - low / scale, np.float32(0), np.float32(255)), 0, 0, 255)
    return _codes(x / scale, zero, 0, 255).astype(np.uint8), np.asarray(scale), np.asarray(zero).astype(np.uint8)


def row_scales(x: Any) -> Any:
    """The scales (..., 1) of the rows of a float32 x."""
    largest = np.max(np.abs(x), axis=-1, keepdims=True, initial=np.float32(0))
    scale = largest * np.float32(np.float32(1) / np.float32(127))
    return np.where(scale < np.inf, np.maximum(scale, np.float32(2.0**-126)), np.float32(np.nan))


@reference(quantize_rows)
def _(x: Any) -> Any:
    x = x.astype(np.float32)
    scale = row_scales(x)
    return np.clip(_codes(x * (np.float32(1) / scale), 0, -128, 127), -127, 127).astype(np.int8), scale[..., 0]


for _op in (quantize_linear, dequantize_linear, dynamic_quantize_linear, quantize_rows):
    dtypes(_op, "float32", "float16", "bfloat16")
    tolerance(_op, ulp=0.5)


@samples(quantize_linear)
def _(fill: Fill) -> Iterator[Sample]:
    def scale(*shape: int) -> Any:
        return np.asarray(fill.positive(*shape) * fill.dtype.type(0.03))

    edges = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -129, 1e4, np.inf, -np.inf, np.nan, -0.0, 254.5])
    yield sample(edges.astype(fill.dtype), np.ones((), np.float32))
    yield sample(edges.astype(fill.dtype), np.zeros(1, np.float32), np.array([-3], np.int8))
    yield sample(fill(3, 37), scale(), np.full((), 131, np.uint8))
    yield sample(fill(3, 5, 17), scale(5), fill.integers(5, low=-128, high=128, dtype=np.int8))
    yield sample(fill(3, 5, 17), scale(17), axis=-1, dtype="int8")
    yield sample(fill(4, 19).T, scale(19).astype(np.float32), axis=0, dtype="int8")
    yield sample(fill(2, 70, 3), scale(2, 3, 3), fill.integers(2, 3, 3, low=0, high=256, dtype=np.uint8), block=32)
    yield sample(fill(3, 32), scale(3, 2), axis=1, block=16, dtype="int8")
    yield sample(fill(), scale())
    yield sample(fill(3, 0), scale())


@samples(dequantize_linear)
def _(fill: Fill) -> Iterator[Sample]:
    def codes(dtype: Any, *shape: int) -> Any:
        limits = np.iinfo(dtype)
        return fill.integers(*shape, low=limits.min, high=limits.max + 1, dtype=dtype)

    yield sample(codes(np.int8, 3, 37), fill.positive())
    yield sample(codes(np.uint8, 3, 5, 17), fill(5), codes(np.uint8, 5))
    yield sample(codes(np.int32, 5, 9).T, fill(9), codes(np.int32, 9), axis=0)
    yield sample(codes(np.int8, 2, 70, 3), fill(2, 3, 3), codes(np.int8, 2, 3, 3), block=32)
    yield sample(codes(np.uint8, 3, 32), fill(3, 2), axis=-1, block=16)
    yield sample(codes(np.int8), fill())
    yield sample(codes(np.int8, 0, 3), fill(3))


@samples(dynamic_quantize_linear)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(3, 37))
    yield sample(np.abs(fill(5, 17)).T)
    yield sample(-np.abs(fill(2, 3, 9)))
    yield sample(np.zeros((4, 3), fill.dtype))
    yield sample(fill())
    yield sample(fill(0, 3))


@samples(quantize_rows)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 7, 8, 17, 35):
        yield sample(fill(3, n))
    yield sample(np.swapaxes(fill(2, 9, 5), 0, 2))
    yield sample(np.zeros((2, 5), fill.dtype))
    yield sample(fill(19))
    yield sample(fill(0, 3))
    yield sample(fill(3, 0))


@errors(quantize_rows)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.ones((2, 3), np.int8)), DTypeError, "x has dtype int8; want float32, float16 or bfloat16")
    yield ErrorCase(sample(fill()), ShapeError, "x has 0 dimensions; want 1 to 8")


@errors(quantize_linear)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, one = fill(3, 4), np.ones((), np.float32)
    yield ErrorCase(sample(np.ones((3, 4), np.int32), one), DTypeError, "x has dtype int32; want float32, float16 or")
    yield ErrorCase(sample(x, np.ones(4, np.float64)), DTypeError, "scale has dtype float64 but x has")
    yield ErrorCase(
        sample(x, fill(3)), ShapeError, "scale has shape (3,) but x has 4 elements along axis=1; want () or (4,)"
    )
    yield ErrorCase(sample(x, fill(4), np.zeros(3, np.int8)), ShapeError, "zero has shape (3,) but scale has (4,)")
    yield ErrorCase(sample(x, one, np.zeros((), np.float32)), DTypeError, "the result would have dtype float32")
    yield ErrorCase(sample(x, one, dtype="int32"), AttrError, "the result would have dtype int32; want int8 or uint8")
    yield ErrorCase(
        sample(x, one, np.zeros((), np.int8), dtype="uint8"), DTypeError, "zero has dtype int8 but dtype=uint8"
    )
    yield ErrorCase(sample(x, fill(4), axis=2), AttrError, "axis=2 is out of range for 2 dimensions")
    yield ErrorCase(sample(x, fill(3, 3), block=3), ShapeError, "scale has shape (3, 3); want (3, 2)")
    yield ErrorCase(sample(x, one, block=-1), AttrError, "block=-1; want 0, or the elements that share a scale")


@errors(dequantize_linear)
def _(fill: Fill) -> Iterator[ErrorCase]:
    q = np.ones((3, 4), np.int8)
    yield ErrorCase(sample(fill(3, 4), fill()), DTypeError, "want int8, uint8 or int32")
    yield ErrorCase(sample(q, np.ones((), np.float64)), DTypeError, "scale has dtype float64; want float32, float16 or")
    yield ErrorCase(sample(q, fill(), np.zeros((), np.uint8)), DTypeError, "zero has dtype uint8 but x has int8")
    yield ErrorCase(sample(q, fill(3)), ShapeError, "scale has shape (3,) but x has 4 elements along axis=1")
    yield ErrorCase(sample(q, fill(3, 1), block=2), ShapeError, "scale has shape (3, 1); want (3, 2)")


@errors(dynamic_quantize_linear)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.ones(3, np.int8)), DTypeError, "x has dtype int8; want float32, float16 or bfloat16")


@workloads(quantize_linear)
def _() -> Iterator[Workload]:
    yield Workload("4M", ((1024, 4096), (), None))
    yield Workload("4M per row", ((1024, 4096), (1024,), None), {"axis": 0})


@workloads(quantize_rows)
def _() -> Iterator[Workload]:
    yield Workload("4M", ((1024, 4096),))


@workloads(dynamic_quantize_linear)
def _() -> Iterator[Workload]:
    yield Workload("4M", ((1024, 4096),))


# ------------------------------------------------------------------------------------------------- OpenCL

RANGES = 4096  # work items that each find the range of a share of x


def _shared(x: Any, scale: Any, axis: int, block: int) -> Any:
    """Where quantize.cl finds the scale of an element of x."""
    shape, d = (x.shape, x.shape[axis]) if x.ndim else ((1,), 1)
    inner = math.prod(shape[axis + 1 :]) if x.ndim else 1
    if block:
        return np.array([x.size, d, inner, block, -(-d // block) * inner, inner, 1], np.int64)
    return np.array([x.size, d, inner, 1, 0, int(scale.size > 1), 0], np.int64)


@opencl(quantize_linear)
def _(queue: Queue, x: Any, scale: Any, zero: Any, y: Any, *, axis: int, block: int, dtype: Any) -> None:
    define = {"DTYPE": x.dtype, "SCALE": scale.dtype, "CODE": y.dtype} | ({} if zero is None else {"ZERO": 1})
    args = (x, scale, *([] if zero is None else [zero]), y, _shared(x, scale, axis, block))
    queue.launch("quantize.cl", "quantize", x.size, GROUP_SIZE, args, **define)


@opencl(dequantize_linear)
def _(queue: Queue, x: Any, scale: Any, zero: Any, y: Any, *, axis: int, block: int) -> None:
    define = {"DTYPE": y.dtype, "CODE": x.dtype} | ({} if zero is None else {"ZERO": 1})
    args = (x, scale, *([] if zero is None else [zero]), y, _shared(x, scale, axis, block))
    queue.launch("quantize.cl", "dequantize", x.size, GROUP_SIZE, args, **define)


@opencl(quantize_rows)
def _(queue: Queue, x: Any, q: Any, scale: Any) -> None:
    rows, k = math.prod(x.shape[:-1]), x.shape[-1]
    if not rows:
        return
    source = queue.contiguous(x) if k else scale
    args = (source, q if k else scale, scale, rows, k)
    queue.launch("quantize.cl", "quantize_rows", rows, GROUP_SIZE, args, DTYPE=x.dtype)


@opencl(dynamic_quantize_linear)
def _(queue: Queue, x: Any, q: Any, scale: Any, zero: Any) -> None:
    x = queue.contiguous(x)
    items = max(1, min(RANGES, x.size))
    ranges = queue.empty((items, 2), np.float32)
    queue.launch(
        "quantize.cl", "range", items, GROUP_SIZE, (x if x.size else ranges, ranges, x.size, items), DTYPE=x.dtype
    )
    queue.launch("quantize.cl", "range_code", 1, 1, (ranges, scale, zero, items), DTYPE=x.dtype)
    args = (x, scale, zero, q, _shared(x, scale, 0, 0))
    queue.launch(
        "quantize.cl", "quantize", x.size, GROUP_SIZE, args, DTYPE=x.dtype, SCALE=scale.dtype, CODE=q.dtype, ZERO=1
    )
