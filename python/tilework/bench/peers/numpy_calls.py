"""numpy, with OpenBLAS or whatever it was built with. Compositions are what a numpy user writes."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework.bench.peers import Contestant
from tilework.bench.problems import BenchError, Problem


def set_threads(count: int) -> int:
    """Limits the BLAS under numpy; without threadpoolctl this cannot be done, nor known."""
    if importlib.util.find_spec("threadpoolctl") is None:
        raise BenchError("threadpoolctl not installed: numpy's thread count cannot be set (pip install threadpoolctl)")
    control = importlib.import_module("threadpoolctl").ThreadpoolController().select(user_api="blas")
    control.limit(limits=count)
    return max((int(lib["num_threads"]) for lib in control.info()), default=1)


def _gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))


def _softmax(x: Any, axis: int) -> Any:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _log_softmax(x: Any, axis: int) -> Any:
    below = x - x.max(axis=axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


def _linear(x: Any, w: Any, b: Any, activation: str | None) -> Any:
    y = x @ w.T if b is None else x @ w.T + b
    if activation is None:
        return y
    return np.maximum(y, 0) if activation == "relu" else np.tanh(y)


def _axes(a: dict[str, Any]) -> dict[str, Any]:
    axes = a.get("axes")
    return {"axis": tuple(axes) if isinstance(axes, (tuple, list)) else axes, "keepdims": a.get("keepdims", False)}


def _sgd(w: Any, g: Any, v: Any, a: dict[str, Any]) -> Any:
    if set(a) - {"lr", "momentum"}:
        return None
    lr, momentum = np.asarray(a["lr"], w.dtype), np.asarray(a.get("momentum", 0.0), w.dtype)

    def step() -> None:
        if v is not None:
            np.multiply(v, momentum, out=v)
            np.add(v, g, out=v)
        np.subtract(w, lr * (g if v is None else v), out=w)

    return step


def _adam(w: Any, g: Any, m: Any, v: Any, a: dict[str, Any]) -> Any:
    if set(a) - {"step", "lr"}:
        return None
    kind, step = w.dtype.type, a["step"]
    rate, root = kind(a.get("lr", 1e-3) / (1 - 0.9**step)), kind(1 / (1 - 0.999**step))

    def run() -> None:
        np.add(kind(0.9) * m, kind(0.1) * g, out=m)
        np.add(kind(0.999) * v, kind(0.001) * g * g, out=v)
        np.subtract(w, rate * m / (np.sqrt(root * v) + kind(1e-8)), out=w)

    return run


def _along(v: Any, x: Any, a: dict[str, Any]) -> Any:
    """A scale or zero point in the shape that broadcasts along its axis; None where it has blocks."""
    if a.get("block"):
        return None
    if v is None or not np.ndim(v):
        return 0 if v is None else v
    shape = [1] * x.ndim
    shape[a.get("axis", 1)] = -1
    return v.reshape(shape)


def _quantize(x: Any, scale: Any, zero: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    s, z = _along(scale, x, a), _along(zero, x, a)
    kind = np.dtype(a.get("dtype") or (np.uint8 if zero is None else zero.dtype))
    if s is None or kind.name not in ("int8", "uint8"):
        return None
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return lambda: np.clip(np.rint(x / s) + z, low, high).astype(kind)


def _dequantize(q: Any, scale: Any, zero: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    s, z = _along(scale, q, a), _along(zero, q, a)
    return None if s is None else lambda: (q.astype(scale.dtype) - z) * s


def _flat(x: Any) -> Any:
    return x.reshape(*x.shape[:2], -1)


def _rms_norm(x: Any, weight: Any, residual: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    if a.get("axes", -1) not in (-1, [-1], (-1,), x.ndim - 1) or set(a) - {"axes", "eps"} or residual is not None:
        return None
    eps = x.dtype.type(a.get("eps", 1e-6))

    def run() -> Any:
        y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
        return y if weight is None else y * weight

    return run


def _layer_norm(x: Any, weight: Any, bias: Any, residual: Any, a: dict[str, Any]) -> Callable[[], Any] | None:
    if a.get("axes", -1) not in (-1, [-1], (-1,), x.ndim - 1) or set(a) - {"axes", "eps"} or residual is not None:
        return None
    eps = x.dtype.type(a.get("eps", 1e-5))

    def run() -> Any:
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    return run


_UFUNCS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "matmul": np.matmul,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
}

_CALLS: dict[str, Callable[..., Callable[[], Any] | None]] = {
    "relu": lambda a, x: lambda: np.maximum(x, 0),
    "sigmoid": lambda a, x: lambda: 1 / (1 + np.exp(-x)),
    "gelu": lambda a, x: (lambda: _gelu_tanh(x)) if a.get("approximate") == "tanh" else None,
    "relu_dx": lambda a, dy, x: lambda: dy * (x > 0),
    "sigmoid_dx": lambda a, dy, y: lambda: dy * y * (1 - y),
    "tanh_dx": lambda a, dy, y: lambda: dy * (1 - y * y),
    "linear": lambda a, x, w, b, residual: (
        (lambda: _linear(x, w, b, a.get("activation")))
        if residual is None and a.get("activation") in (None, "relu", "tanh")
        else None
    ),
    "reduce_sum": lambda a, x: lambda: x.sum(**_axes(a)),
    "reduce_mean": lambda a, x: lambda: x.mean(**_axes(a)),
    "reduce_max": lambda a, x: lambda: x.max(**_axes(a)),
    "softmax": lambda a, x: lambda: _softmax(x, a.get("axis", -1)),
    "log_softmax": lambda a, x: lambda: _log_softmax(x, a.get("axis", -1)),
    "concat": lambda a, arrays: lambda: np.concatenate(arrays, axis=a.get("axis", 0)),
    "pad": lambda a, x: lambda: np.pad(x, a["pads"], constant_values=a.get("value", 0.0)),
    "expand": lambda a, x: lambda: np.broadcast_to(x, a["shape"]).copy(),
    "cast": lambda a, x: lambda: x.astype(a["dtype"]),
    "transpose": lambda a, x: lambda: np.transpose(x, a.get("axes")),
    "reshape": lambda a, x: lambda: np.reshape(x, a["shape"]),
    "tril": lambda a, x: lambda: np.tril(x, a.get("diagonal", 0)),
    "triu": lambda a, x: lambda: np.triu(x, a.get("diagonal", 0)),
    "cholesky": lambda a, x: None if a.get("upper") else lambda: np.linalg.cholesky(x),
    "inv": lambda a, x: lambda: np.linalg.inv(x),
    "det": lambda a, x: lambda: np.linalg.det(x),
    "slogdet": lambda a, x: lambda: np.linalg.slogdet(x),
    "solve": lambda a, x, b: lambda: np.linalg.solve(x, b),
    "quantize_linear": lambda a, x, scale, zero: _quantize(x, scale, zero, a),
    "dequantize_linear": lambda a, q, scale, zero: _dequantize(q, scale, zero, a),
    "layer_norm": lambda a, x, weight, bias, residual: _layer_norm(x, weight, bias, residual, a),
    "rms_norm": lambda a, x, weight, residual: _rms_norm(x, weight, residual, a),
    "abs": lambda a, x: lambda: np.abs(x),
    "neg": lambda a, x: lambda: np.negative(x),
    "sqrt": lambda a, x: lambda: np.sqrt(x),
    "rsqrt": lambda a, x: lambda: 1 / np.sqrt(x),
    "clip": lambda a, x: lambda: np.clip(x, a.get("low", -np.inf), a.get("high", np.inf)),
    "leaky_relu": lambda a, x: lambda: np.where(x > 0, x, x * np.asarray(a.get("alpha", 0.01), x.dtype)),
    "silu": lambda a, x: lambda: x / (1 + np.exp(-x)),
    "swiglu": lambda a, gate, x: lambda: gate / (1 + np.exp(-gate)) * x,
    "softplus": lambda a, x: lambda: np.logaddexp(x, np.asarray(0, x.dtype)),
    "embedding": lambda a, w, indices: None if set(a) else lambda: w[indices],
    "max_unpool_dx": lambda a, dy, i: lambda: np.take_along_axis(_flat(dy), _flat(i), 2).reshape(i.shape),
    "histogram": lambda a, x: lambda: np.bincount(x.reshape(-1), minlength=256).astype(np.int32),
    "threshold": lambda a, x: (
        (lambda: np.where(x > a["value"], np.uint8(a.get("high", 255)), np.uint8(0)))
        if a.get("kind", "binary") == "binary"
        else None
    ),
    "sgd_step": lambda a, w, g, v: _sgd(w, g, v, a),
    "adam_step": lambda a, w, g, m, v, vmax: _adam(w, g, m, v, a),
}


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """numpy's ufunc, method or composition for the forward op."""
    if problem.direction != "fwd":
        return {}
    if problem.op == "einsum":
        return _einsum(problem, operands)
    ufunc = _UFUNCS.get(problem.op)
    given = tuple(o for o in operands if o is not None)
    if problem.op == "matmul" and (len(given) > 2 or problem.attrs):
        return {}
    if problem.op == "cast" and problem.attrs["dtype"] == "bfloat16":
        importlib.import_module("ml_dtypes")
    if problem.out_given:
        ufunc = np.maximum if problem.op == "relu" else ufunc
        if ufunc is None:
            return {}
        inputs = (*given, 0) if problem.op == "relu" else given
        out = ufunc(*inputs)
        return {"numpy": Contestant(lambda: ufunc(*inputs, out=out))}
    if ufunc is not None:
        return {"numpy": Contestant(lambda: ufunc(*given))}
    if problem.op not in _CALLS:
        return {}
    call = _CALLS[problem.op](problem.attrs, *operands)
    return {} if call is None else {"numpy": in_place(problem, operands, call)}


def _einsum(problem: Problem, operands: tuple[Any, ...]) -> dict[str, Contestant]:
    """Plain contractions, with and without a path of pairs; without one, large ones take too long to time."""
    if set(problem.attrs) != {"subscripts"} or problem.out_given:
        return {}
    text, arrays = problem.attrs["subscripts"], operands[0]
    found = {"numpy optimize": Contestant(lambda: np.einsum(text, *arrays, optimize=True))}
    if (problem.facts.flops or 0) < 3e8:
        found["numpy"] = Contestant(lambda: np.einsum(text, *arrays))
    return found


def in_place(problem: Problem, operands: tuple[Any, ...], call: Callable[[], Any]) -> Contestant:
    """A contestant whose results are the operands it updates, where the op works in place."""
    if not problem.op.endswith("_step"):
        return Contestant(call)

    def answer() -> list[Any]:
        call()
        return [o.copy() for i, o in enumerate(operands) if i != 1 and o is not None]

    return Contestant(call, answer=answer)
