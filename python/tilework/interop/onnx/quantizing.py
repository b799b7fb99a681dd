"""Numbers as codes of few bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

import tilework as tw
from tilework.dtypes import SMALL_INTEGERS, is_integer
from tilework.interop.onnx.rules import NodeView, axis_of, node


def _spread(v: Any, shape: tuple[int, ...], axis: int, block: int) -> Any:
    """A scale or zero point, one number, one per channel or one per block, in a shape that broadcasts."""
    if len(v.shape) == len(shape) and block:
        return tw.gather(v, np.arange(shape[axis]) // block, axis=axis)
    if v.shape in ((), (1,)):
        return tw.reshape(v, ())
    return tw.reshape(v, (v.shape[0], *(1,) * (len(shape) - 1 - axis)))


@node("QuantizeLinear")
def quantize(n: NodeView, x: Any, scale: Any, zero: Any = None) -> Any:
    block, axis = n.get("block_size", 0), axis_of(n.get("axis", 1), max(2, len(x.shape)))
    code, precision, saturate = n.get("output_dtype", 0), n.get("precision", 0), bool(n.get("saturate", 1))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else np.dtype(np.uint8)
    dtype = dtype if zero is None else np.dtype(zero.dtype)
    if dtype in (np.int8, np.uint8) and (zero is not None or dtype == np.uint8):
        return tw.quantize_linear(x, scale, zero, axis=axis, block=block)
    shape, scale = tuple(x.shape), _spread(scale, tuple(x.shape), axis, block)
    if precision:
        wide = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(precision))
        x, scale = tw.cast(x, dtype=wide), tw.cast(scale, dtype=wide)
    y = tw.div(x, scale)
    whole = is_integer(dtype) or dtype.name in SMALL_INTEGERS
    y = tw.round(y) if whole else y
    if zero is not None and (whole or dtype.name == "float4_e2m1fn"):  # that of a float8 is 0
        y = tw.add(y, tw.cast(_spread(zero, shape, axis, block), dtype=y.dtype))
    return tw.cast(y, dtype=dtype, saturate=saturate or whole)


@node("DequantizeLinear")
def dequantize(n: NodeView, x: Any, scale: Any, zero: Any = None) -> Any:
    block, axis = n.get("block_size", 0), axis_of(n.get("axis", 1), max(2, len(x.shape)))
    code = n.get("output_dtype", 0)
    if x.dtype in (np.int8, np.uint8, np.int32) and not code:
        return tw.dequantize_linear(x, scale, zero, axis=axis, block=block)
    shape = tuple(x.shape)
    y = tw.cast(x, dtype="float32")
    if zero is not None:
        y = tw.sub(y, tw.cast(_spread(zero, shape, axis, block), dtype="float32"))
    y = tw.mul(y, tw.cast(_spread(scale, shape, axis, block), dtype="float32"))
    return tw.cast(y, dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else scale.dtype)


@node("DynamicQuantizeLinear")
def dynamic_quantize(n: NodeView, x: Any) -> Any:
    return tw.dynamic_quantize_linear(x)
