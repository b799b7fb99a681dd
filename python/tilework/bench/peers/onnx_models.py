"""One-node ONNX models of ops: what onnxruntime and OpenVINO are given."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench import networks
from tilework.bench.networks import NetworkProblem
from tilework.bench.problems import Problem

_OPSET, _IR = 20, 10


@dataclass(frozen=True)
class Model:
    """A serialized model and the arrays to feed it; ``prepacked`` if its weights are constants."""

    data: bytes
    feeds: dict[str, Any]
    prepacked: bool


@dataclass
class _Graph:
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]]
    constants: dict[str, Any]


def _node(op: str, *inputs: str, **attrs: Any) -> _Graph:
    return _Graph([(op, list(inputs), ["y"], attrs)], {})


def _then(graph: _Graph, activation: str | None) -> _Graph:
    if activation:
        op, inputs, _, attrs = graph.nodes[-1]
        graph.nodes[-1] = (op, inputs, ["before"], attrs)
        graph.nodes.append((activation.capitalize(), ["before"], ["y"], {}))
    return graph


def _ends(padding: Any) -> list[int]:
    return [p[0] for p in padding] + [p[1] for p in padding]


def _conv(a: dict[str, Any], given: list[str]) -> _Graph | None:
    if a["layout"] != "NCHW":
        return None
    attrs = {"strides": a["stride"], "pads": _ends(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}
    graph = _node("Conv", *("" if n == "b" and n not in given else n for n in ("x", "w", "b")), **attrs)
    if "residual" in given:
        op, inputs, _, attrs = graph.nodes[-1]
        graph.nodes = [(op, inputs, ["product"], attrs), ("Add", ["product", "residual"], ["y"], {})]
    return _then(graph, a["activation"])


def _conv_dx(a: dict[str, Any], shapes: tuple[Any, ...]) -> _Graph | None:
    """The gradient of a convolution in x is ONNX's ConvTranspose with the same weights."""
    if a["layout"] != "NCHW":
        return None
    if len(shapes) > 2 and shapes[2] is not None:
        return None
    dy, w = shapes[:2]
    reached = [
        (o - 1) * s + d * (k - 1) + 1 - sum(p)
        for o, s, d, k, p in zip(dy[2:], a["stride"], a["dilation"], w[2:], a["padding"], strict=True)
    ]
    rest = [n - r for n, r in zip(a["shape"], reached, strict=True)]
    attrs = {"strides": a["stride"], "pads": _ends(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}
    return _node("ConvTranspose", "dy", "w", output_padding=rest, **attrs)


def _linear(a: dict[str, Any], given: list[str]) -> _Graph:
    addends = [name for name in ("b", "residual") if name in given]
    sums = [f"sum{i}" for i in range(len(addends))] + ["y"]
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [("MatMul", ["x", "w"], [sums[0]], {})]
    nodes += [("Add", [sums[i], name], [sums[i + 1]], {}) for i, name in enumerate(addends)]
    return _then(_Graph(nodes, {}), a["activation"])


def _pool(op: str, a: dict[str, Any]) -> _Graph:
    attrs = {
        "kernel_shape": a["kernel"],
        "strides": a["stride"],
        "pads": _ends(a["padding"]),
        "ceil_mode": int(a["ceil_mode"]),
    }
    if op == "MaxPool":
        return _node(op, "x", dilations=a["dilation"], **attrs)
    return _node(op, "x", count_include_pad=int(a["count_include_pad"]), **attrs)


def _softmax(op: str, a: dict[str, Any]) -> _Graph | None:
    return _node(op, "x", axis=a["axis"][0]) if len(a["axis"]) == 1 else None


def _reduce(op: str, a: dict[str, Any]) -> _Graph:
    return _Graph(
        [(op, ["x", "axes"], ["y"], {"keepdims": int(a["keepdims"])})], {"axes": np.array(a["axes"], np.int64)}
    )


def _pad(a: dict[str, Any], dtype: str) -> _Graph:
    constants = {"pads": np.array(_ends(a["pads"]), np.int64), "value": np.array(a["value"], dtype)}
    return _Graph([("Pad", ["x", "pads", "value"], ["y"], {})], constants)


def _graph(problem: Problem, a: dict[str, Any], given: list[str]) -> _Graph | None:
    plain = {
        "add": "Add",
        "sub": "Sub",
        "mul": "Mul",
        "div": "Div",
        "relu": "Relu",
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "exp": "Exp",
        "log": "Log",
        "erf": "Erf",
        "matmul": "MatMul",
    }
    if problem.op == "matmul" and ("c" in given or a["alpha"] != 1):
        return None
    if problem.op in plain:
        return _node(plain[problem.op], *given)
    made: dict[str, Callable[[], _Graph | None]] = {
        "gelu": lambda: _node("Gelu", "x", approximate=a["approximate"]),
        "linear": lambda: _linear(a, given),
        "conv": lambda: _conv(a, given),
        "conv_dx": lambda: _conv_dx(a, problem.shapes),
        "max_pool": lambda: None if a["return_indices"] else _pool("MaxPool", a),
        "avg_pool": lambda: None if a["divisor"] else _pool("AveragePool", a),
        "reduce_sum": lambda: _reduce("ReduceSum", a),
        "reduce_mean": lambda: _reduce("ReduceMean", a),
        "reduce_max": lambda: _reduce("ReduceMax", a),
        "softmax": lambda: _softmax("Softmax", a),
        "log_softmax": lambda: _softmax("LogSoftmax", a),
        "concat": lambda: _node("Concat", *given, axis=a["axis"]),
        "pad": lambda: _pad(a, problem.dtype),
        "expand": lambda: _Graph([("Expand", ["x", "shape"], ["y"], {})], {"shape": np.array(a["shape"], np.int64)}),
    }
    made |= {
        "matmul_integer": lambda: _node("MatMulInteger", *given),
        "linear_int8": lambda: _linear_int8(problem, a, given),
        "quantize_linear": lambda: None if a.get("block") else _node("QuantizeLinear", *given, axis=a["axis"]),
        "dequantize_linear": lambda: None if a.get("block") else _node("DequantizeLinear", *given, axis=a["axis"]),
        "dynamic_quantize_linear": lambda: _Graph([("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"], {})], {}),
        "layer_norm": lambda: _layer_norm(problem, a, given),
        "instance_norm": lambda: _node("InstanceNormalization", *given, epsilon=a["eps"]) if len(given) == 3 else None,
        "batch_norm": lambda: (
            None if a["training"] or len(given) < 5 else _node("BatchNormalization", *given, epsilon=a["eps"])
        ),
        "einsum": lambda: _einsum(a, given),
        "det": lambda: _node("Det", *given),
    }
    return made[problem.op]() if problem.op in made else None


def _linear_int8(problem: Problem, a: dict[str, Any], given: list[str]) -> _Graph | None:
    """ONNX Runtime's own node; it quantises all of x by one range."""
    if a["activation"] or "w_zero" in given or problem.dtype != "float32":
        return None
    inputs = ["x", "w", "w_scale", "", "b"] if "b" in given else ["x", "w", "w_scale"]
    return _Graph([("DynamicQuantizeMatMul", inputs, ["y"], {"domain": "com.microsoft"})], {})


def _layer_norm(problem: Problem, a: dict[str, Any], given: list[str]) -> _Graph | None:
    if a["return_stats"] or a["return_sum"] or "residual" in given:
        return None
    axes, rank = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]], len(problem.shapes[0])
    first = min(axis % rank for axis in axes)
    if sorted(axis % rank for axis in axes) != list(range(first, rank)) or "weight" not in given:
        return None
    return _node("LayerNormalization", *given, axis=first, epsilon=a["eps"])


def _einsum(a: dict[str, Any], given: list[str]) -> _Graph | None:
    plain = all(a.get(k) == v for k, v in (("alpha", 1.0), ("beta", 1.0), ("largest", None)))
    return _node("Einsum", *given, equation=a["subscripts"]) if plain and "c" not in given else None


def models(problem: Problem, operands: tuple[Any, ...]) -> list[Model]:
    """The models of a forward problem: all operands fed, and, where there are weights, with these as constants."""
    if problem.direction != "fwd" or problem.out_given:
        return []
    if isinstance(problem, NetworkProblem):
        data = networks.onnx_model(problem)
        return [Model(data, {"x": operands[0]}, True)] if data else []
    if isinstance(operands[0], list):
        feeds = {f"x{i}": x for i, x in enumerate(operands[0])}
    else:
        feeds = {n: o for n, o in zip(problem.target.operands, operands, strict=True) if o is not None}
    if problem.op in ("linear", "linear_int8"):
        feeds["w"] = np.ascontiguousarray(feeds["w"].T)
    graph = _graph(problem, registry.resolve(problem.target, operands, dict(problem.attrs)), list(feeds))
    if graph is None:
        return []
    made = [Model(_serialized(graph, feeds, {}), feeds, False)]
    weights = {n: v for n, v in feeds.items() if n in ("w", "b", "w_scale") and "w" in feeds}
    if weights:
        rest = {n: v for n, v in feeds.items() if n not in weights}
        made.append(Model(_serialized(graph, rest, weights), rest, True))
    return made


def _serialized(graph: _Graph, feeds: dict[str, Any], weights: dict[str, Any]) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(n, kind(v.dtype), v.shape) for n, v in feeds.items()]
    # Types and shapes of results are inferred.
    results = [onnx.ValueInfoProto(name=n) for n in graph.nodes[-1][2]]
    nodes = [helper.make_node(op, ins, outs, **attrs) for op, ins, outs, attrs in graph.nodes]
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in {**graph.constants, **weights}.items()]
    made = helper.make_graph(nodes, "problem", inputs, results, constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    )
    model.ir_version = _IR
    return bytes(model.SerializeToString())
