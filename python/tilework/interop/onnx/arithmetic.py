"""Elementwise functions and element types."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx

import tilework as tw
from tilework.dtypes import SMALL_INTEGERS, is_floating, is_integer
from tilework.graph import Symbol
from tilework.interop.onnx.rules import NodeView, node

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": tw.abs,
    "Acos": tw.acos,
    "Acosh": tw.acosh,
    "Asin": tw.asin,
    "Asinh": tw.asinh,
    "Atan": tw.atan,
    "Atanh": tw.atanh,
    "BitwiseNot": tw.bitwise_not,
    "Ceil": tw.ceil,
    "Cos": tw.cos,
    "Cosh": tw.cosh,
    "Erf": tw.erf,
    "Exp": tw.exp,
    "Floor": tw.floor,
    "HardSwish": tw.hard_swish,
    "IsNaN": tw.isnan,
    "Log": tw.log,
    "Mish": tw.mish,
    "Neg": tw.neg,
    "Not": tw.logical_not,
    "Relu": tw.relu,
    "Round": tw.round,
    "Sigmoid": tw.sigmoid,
    "Sign": tw.sign,
    "Sin": tw.sin,
    "Sinh": tw.sinh,
    "Softplus": tw.softplus,
    "Sqrt": tw.sqrt,
    "Tan": tw.tan,
    "Tanh": tw.tanh,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": tw.add,
    "And": tw.logical_and,
    "BitwiseAnd": tw.bitwise_and,
    "BitwiseOr": tw.bitwise_or,
    "BitwiseXor": tw.bitwise_xor,
    "Div": tw.div,
    "Equal": tw.equal,
    "Greater": tw.greater,
    "GreaterOrEqual": tw.greater_equal,
    "Less": tw.less,
    "LessOrEqual": tw.less_equal,
    "Mul": tw.mul,
    "Or": tw.logical_or,
    "Sub": tw.sub,
    "Xor": tw.logical_xor,
}


def _broadcast_to(n: NodeView, a: Any, b: Any) -> Any:
    """b as before version 7, when ``axis`` said where its shape lies in that of a."""
    axis = n.get("axis") if n.get("broadcast", 0) and n.opset < 7 else None
    if axis is None or not b.shape:
        return b
    return tw.reshape(b, (*b.shape, *(1,) * (len(a.shape) - axis % len(a.shape) - len(b.shape))))


def _plain_one(op: Callable[..., Any]) -> Any:
    return lambda n, x: op(x)


def _plain_two(op: Callable[..., Any]) -> Any:
    return lambda n, a, b: op(a, _broadcast_to(n, a, b))


for _name, _op in _UNARY.items():
    node(_name)(_plain_one(_op))
for _name, _op in _BINARY.items():
    node(_name)(_plain_two(_op))


@node("Identity")
def identity(n: NodeView, x: Any) -> Any:
    return (x,)  # which may be a list


@node("Reciprocal")
def reciprocal(n: NodeView, x: Any) -> Any:
    return tw.div(1.0, x)


@node("Pow")
def power(n: NodeView, a: Any, b: Any) -> Any:
    b = _broadcast_to(n, a, b)
    if a.dtype == b.dtype:
        return tw.pow(a, b)
    if is_floating(b.dtype) and not is_floating(a.dtype):
        return tw.cast(tw.pow(tw.cast(a, dtype=b.dtype), b), dtype=a.dtype)
    return tw.pow(a, tw.cast(b, dtype=a.dtype))


@node("Mod")
def mod(n: NodeView, a: Any, b: Any) -> Any:
    return tw.mod(a, b, truncated=bool(n.get("fmod", 0)))


@node("BitShift")
def bit_shift(n: NodeView, a: Any, b: Any) -> Any:
    return (tw.shift_left if n.get("direction") == "LEFT" else tw.shift_right)(a, b)


@node("Max", "Min", "Sum")
def joined(n: NodeView, *operands: Any) -> Any:
    op: Any = {"Max": tw.maximum, "Min": tw.minimum, "Sum": tw.add}[n.kind]
    return reduce(op, operands)


@node("Mean")
def mean_of(n: NodeView, *operands: Any) -> Any:
    return tw.div(reduce(tw.add, operands), float(len(operands)))


@node("Where")
def where(n: NodeView, condition: Any, a: Any, b: Any) -> Any:
    return tw.where(condition, a, b)


@node("IsInf")
def is_infinite(n: NodeView, x: Any) -> Any:
    signs = {"positive": bool(n.get("detect_positive", 1)), "negative": bool(n.get("detect_negative", 1))}
    return tw.isinf(x, **signs)


# -------------------------------------------------------------------------------------------------- activations


@node("LeakyRelu")
def leaky_relu(n: NodeView, x: Any) -> Any:
    return tw.leaky_relu(x, alpha=n.get("alpha", 0.01))


@node("Elu")
def elu(n: NodeView, x: Any) -> Any:
    return tw.elu(x, alpha=n.get("alpha", 1.0))


@node("Selu")
def selu(n: NodeView, x: Any) -> Any:
    return tw.mul(tw.elu(x, alpha=n.get("alpha", 1.67326319217681884765625)), n.get("gamma", 1.05070102214813232421875))


@node("Celu")
def celu(n: NodeView, x: Any) -> Any:
    alpha = n.get("alpha", 1.0)
    return tw.mul(tw.elu(tw.div(x, alpha), alpha=1.0), alpha)


@node("HardSigmoid")
def hard_sigmoid(n: NodeView, x: Any) -> Any:
    return tw.hard_sigmoid(x, alpha=n.get("alpha", 0.2), beta=n.get("beta", 0.5))


@node("Gelu")
def gelu(n: NodeView, x: Any) -> Any:
    return tw.gelu(x, approximate=n.get("approximate", "none"))


@node("Swish")
def swish(n: NodeView, x: Any) -> Any:
    alpha = n.get("alpha", 1.0)
    return tw.silu(x) if alpha == 1 else tw.mul(x, tw.sigmoid(tw.mul(x, alpha)))


@node("Softsign")
def softsign(n: NodeView, x: Any) -> Any:
    return tw.div(x, tw.add(tw.abs(x), 1.0))


@node("PRelu")
def prelu(n: NodeView, x: Any, slope: Any) -> Any:
    if n.opset < 9 and slope.shape[0] > 1:  # one number per channel
        slope = tw.reshape(slope, (*slope.shape, *(1,) * (len(x.shape) - 2)))
    return tw.sub(tw.relu(x), tw.mul(slope, tw.relu(tw.neg(x))))


@node("ThresholdedRelu")
def thresholded_relu(n: NodeView, x: Any) -> Any:
    return tw.where(tw.greater(x, n.get("alpha", 1.0)), x, np.zeros((), x.dtype))


@node("Shrink")
def shrink(n: NodeView, x: Any) -> Any:
    limit, bias, zero = n.get("lambd", 0.5), n.get("bias", 0.0), np.zeros((), x.dtype)
    lower = tw.where(tw.less(x, -limit), tw.add(x, bias), zero)
    return tw.where(tw.greater(x, limit), tw.sub(x, bias), lower)


@node("Clip")
def clip(n: NodeView, x: Any, low: Any = None, high: Any = None) -> Any:
    bounds = [n.get(name) if bound is None else bound for name, bound in (("min", low), ("max", high))]
    if is_floating(x.dtype) and not any(isinstance(b, Symbol) for b in bounds):  # which fuses with what is before it
        least, most = (v if b is None else float(b) for v, b in zip((-np.inf, np.inf), bounds, strict=True))
        return tw.clip(x, low=min(least, most), high=most)
    for op, bound in zip((tw.maximum, tw.minimum), bounds, strict=True):
        x = x if bound is None else op(x, tw.reshape(bound, ()))
    return x


# -------------------------------------------------------------------------------------------------- element types


def _dtype(n: NodeView, code: int) -> Any:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        n.refuse(f"element type {code}")


def _cast(n: NodeView, x: Any, dtype: Any) -> Any:
    mode, saturate = n.get("round_mode", "up"), bool(n.get("saturate", 1))
    n.want(mode == "up" or dtype.name != "float8_e8m0fnu", f"round_mode={mode!r}")
    whole = is_integer(dtype) or dtype.name in SMALL_INTEGERS  # of which ONNX keeps the low bits
    return x if dtype == x.dtype else tw.cast(x, dtype=dtype, saturate=not whole and saturate)


@node("Cast")
def cast(n: NodeView, x: Any) -> Any:
    return _cast(n, x, _dtype(n, n.get("to")))


@node("CastLike")
def cast_like(n: NodeView, x: Any, like: Any) -> Any:
    return _cast(n, x, np.dtype(like.dtype))


@node("BitCast")
def bit_cast(n: NodeView, x: Any) -> Any:
    return tw.bitcast(x, dtype=_dtype(n, n.get("to")))
