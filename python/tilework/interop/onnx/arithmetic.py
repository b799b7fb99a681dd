"""Elementwise functions, reductions and element types."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

import tilework as tw
from tilework.interop.onnx.rules import NodeView, node

_UNARY = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Exp": "exp",
    "Log": "log",
    "Erf": "erf",
    "Sqrt": "sqrt",
    "Abs": "abs",
    "Neg": "neg",
    "Softplus": "softplus",
    "Mish": "mish",
    "HardSwish": "hard_swish",
}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}

# Ops of tilework that came later are taken where they are.
_UNARY |= {
    name: op
    for name, op in {
        "Ceil": "ceil", "Floor": "floor", "Round": "round", "Sign": "sign", "Sin": "sin", "Cos": "cos", "Tan": "tan",
        "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh",
        "Acosh": "acosh", "Atanh": "atanh", "Not": "logical_not", "IsNaN": "isnan", "BitwiseNot": "bitwise_not",
    }.items()
    if op in tw.__all__
}  # fmt: skip
_BINARY |= {
    name: op
    for name, op in {
        "Pow": "pow", "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less",
        "LessOrEqual": "less_equal", "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor",
        "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
    }.items()
    if op in tw.__all__
}  # fmt: skip


def _plain(op: str, count: int) -> Any:
    def rule(n: NodeView, *operands: Any) -> Any:
        return getattr(tw, op)(*operands[:count])

    return rule


for _name, _op in _UNARY.items():
    node(_name)(_plain(_op, 1))
for _name, _op in _BINARY.items():
    node(_name)(_plain(_op, 2))


@node("Identity")
def identity(n: NodeView, x: Any) -> Any:
    return x


@node("Reciprocal")
def reciprocal(n: NodeView, x: Any) -> Any:
    return tw.div(1.0, x)


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
    return tw.sub(tw.relu(x), tw.mul(slope, tw.relu(tw.neg(x))))


@node("Clip")
def clip(n: NodeView, x: Any, low: Any = None, high: Any = None) -> Any:
    given = {"low": n.get("min") if low is None else low, "high": n.get("max") if high is None else high}
    bounds = {name: n.scalar(v, name) for name, v in given.items() if v is not None}
    if bounds.get("low", -np.inf) > bounds.get("high", np.inf):
        bounds["low"] = bounds["high"]  # the upper one wins
    return tw.clip(x, **bounds) if bounds else x


@node("Sum")
def sum_of(n: NodeView, *operands: Any) -> Any:
    total = operands[0]
    for each in operands[1:]:
        total = tw.add(total, each)
    return total


@node("Mean")
def mean_of(n: NodeView, *operands: Any) -> Any:
    return tw.div(sum_of(n, *operands), float(len(operands)))


@node("Dropout")
def dropout(n: NodeView, x: Any, ratio: Any = None, training: Any = None) -> Any:
    n.read |= {"ratio", "seed"}  # of training alone
    if training is not None and n.known(training, "training_mode").any():
        n.want(ratio is not None and n.scalar(ratio, "ratio") == 0, "drawing at random")
    return (x, np.ones(tuple(x.shape), bool)) if n.wants(1) else x


# ------------------------------------------------------------------------------------------------------ reductions


def _axes(n: NodeView, axes: Any, ndim: int) -> tuple[int, ...] | None:
    """The axes to reduce; None means none, where the node says so."""
    found = n.ints(axes, "axes") if axes is not None else n.get("axes", ())
    nothing = n.get("noop_with_empty_axes", 0)
    if found:
        return tuple(a % ndim for a in found)
    return None if nothing else tuple(range(ndim))


_BEFORE: dict[str, Any] = {
    "ReduceL1": tw.abs,
    "ReduceL2": lambda x: tw.mul(x, x),
    "ReduceSumSquare": lambda x: tw.mul(x, x),
}
_AFTER: dict[str, Any] = {"ReduceL2": tw.sqrt, "ReduceLogSum": tw.log}
_REDUCED: dict[str, Any] = {
    "ReduceMean": tw.reduce_mean,
    "ReduceMax": tw.reduce_max,
    "ReduceLogSumExp": tw.logsumexp,
    "ReduceMin": lambda x, **how: tw.neg(tw.reduce_max(tw.neg(x), **how)),
}


def _reduction(n: NodeView, x: Any, axes: Any = None) -> Any:
    chosen, kept = _axes(n, axes, len(x.shape)), bool(n.get("keepdims", 1))
    x = _BEFORE[n.kind](x) if n.kind in _BEFORE else x
    if chosen is not None:
        op = _REDUCED.get(n.kind, tw.reduce_sum)
        x = op(x, axes=chosen, keepdims=kept)
    return _AFTER[n.kind](x) if n.kind in _AFTER else x


for _name in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", *_REDUCED):
    node(_name)(_reduction)


# -------------------------------------------------------------------------------------------------- element types


def _dtype(n: NodeView, code: int) -> Any:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(code)
    except KeyError:
        n.refuse(f"element type {code}")


@node("Cast")
def cast(n: NodeView, x: Any) -> Any:
    dtype = _dtype(n, n.get("to"))
    return x if dtype == x.dtype else tw.cast(x, dtype=dtype)


@node("CastLike")
def cast_like(n: NodeView, x: Any, like: Any) -> Any:
    return x if like.dtype == x.dtype else tw.cast(x, dtype=like.dtype)
