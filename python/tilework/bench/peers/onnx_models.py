"""ONNX models of ops: what ONNX Runtime and OpenVINO are given."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench import networks
from tilework.bench.networks import NetworkProblem
from tilework.bench.peers import onnx_layers
from tilework.bench.peers.onnx_graph import Graph, ends, node, then
from tilework.bench.problems import Problem

_IR = 10  # the newest format that both know; with opset 23 comes 11


# Operands that do not change from call to call, where there is one called w.
_WEIGHTS = ("w", "r", "b", "w_scale", "w_zero", "scales", "zeros")


@dataclass(frozen=True)
class Model:
    """A serialized model and the arrays to feed it; ``prepacked`` if its weights are constants."""

    data: bytes
    feeds: dict[str, Any]
    prepacked: bool


def _conv(a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["layout"] != "NCHW":
        return None
    attrs = {"strides": a["stride"], "pads": ends(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}
    graph = node("Conv", *("" if n == "b" and n not in given else n for n in ("x", "w", "b")), **attrs)
    if "residual" in given:
        op, inputs, _, attrs = graph.nodes[-1]
        graph.nodes = [(op, inputs, ["product"], attrs), ("Add", ["product", "residual"], ["y"], {})]
    return then(graph, a["activation"])


def _conv_dx(a: dict[str, Any], shapes: tuple[Any, ...]) -> Graph | None:
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
    attrs = {"strides": a["stride"], "pads": ends(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}
    return node("ConvTranspose", "dy", "w", output_padding=rest, **attrs)


def _linear(a: dict[str, Any], given: list[str]) -> Graph:
    addends = [name for name in ("b", "residual") if name in given]
    sums = [f"sum{i}" for i in range(len(addends))] + ["y"]
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [("MatMul", ["x", "w"], [sums[0]], {})]
    nodes += [("Add", [sums[i], name], [sums[i + 1]], {}) for i, name in enumerate(addends)]
    return then(Graph(nodes, {}), a["activation"])


def _pool(op: str, a: dict[str, Any]) -> Graph:
    attrs = {
        "kernel_shape": a["kernel"],
        "strides": a["stride"],
        "pads": ends(a["padding"]),
        "ceil_mode": int(a["ceil_mode"]),
    }
    if op == "MaxPool":
        return Graph([(op, ["x"], ["y", "indices"][: 1 + a["return_indices"]], {**attrs, "dilations": a["dilation"]})])
    return node(op, "x", count_include_pad=int(a["count_include_pad"]), **attrs)


def _softmax(op: str, a: dict[str, Any]) -> Graph | None:
    return node(op, "x", axis=a["axis"][0]) if len(a["axis"]) == 1 else None


def _reduce(op: str, a: dict[str, Any]) -> Graph:
    return Graph(
        [(op, ["x", "axes"], ["y"], {"keepdims": int(a["keepdims"])})], {"axes": np.array(a["axes"], np.int64)}
    )


def _pad(a: dict[str, Any], dtype: str) -> Graph:
    constants = {"pads": np.array(ends(a["pads"]), np.int64), "value": np.array(a["value"], dtype)}
    return Graph([("Pad", ["x", "pads", "value"], ["y"], {})], constants)


def _graph(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
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
        return node(plain[problem.op], *given)
    made: dict[str, Callable[[], Graph | None]] = {
        "gelu": lambda: node("Gelu", "x", approximate=a["approximate"]),
        "linear": lambda: _linear(a, given),
        "conv": lambda: _conv(a, given),
        "conv_dx": lambda: _conv_dx(a, problem.shapes),
        "max_pool": lambda: None if a["return_indices"] and not a["flat_indices"] else _pool("MaxPool", a),
        "avg_pool": lambda: None if a["divisor"] else _pool("AveragePool", a),
        "reduce_sum": lambda: _reduce("ReduceSum", a),
        "reduce_mean": lambda: _reduce("ReduceMean", a),
        "reduce_max": lambda: _reduce("ReduceMax", a),
        "softmax": lambda: _softmax("Softmax", a),
        "log_softmax": lambda: _softmax("LogSoftmax", a),
        "concat": lambda: node("Concat", *given, axis=a["axis"]),
        "pad": lambda: _pad(a, problem.dtype),
        "expand": lambda: Graph([("Expand", ["x", "shape"], ["y"], {})], {"shape": np.array(a["shape"], np.int64)}),
    }
    made |= {
        "matmul_integer": lambda: node("MatMulInteger", *given),
        "linear_int8": lambda: _linear_int8(problem, a, given),
        "quantize_linear": lambda: None if a.get("block") else node("QuantizeLinear", *given, axis=a["axis"]),
        "dequantize_linear": lambda: None if a.get("block") else node("DequantizeLinear", *given, axis=a["axis"]),
        "dynamic_quantize_linear": lambda: Graph([("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"], {})], {}),
        "layer_norm": lambda: _layer_norm(problem, a, given),
        "instance_norm": lambda: node("InstanceNormalization", *given, epsilon=a["eps"]) if len(given) == 3 else None,
        "batch_norm": lambda: (
            None
            if a["training"] or a["activation"] or len(given) < 5
            else node("BatchNormalization", *given, epsilon=a["eps"])
        ),
        "einsum": lambda: _einsum(a, given),
        "det": lambda: node("Det", *given),
    }
    return made[problem.op]() if problem.op in made else onnx_layers.graph(problem, a, given)


def _linear_int8(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    """ONNX Runtime's own node; it quantises all of x by one range."""
    if a["activation"] or problem.dtype != "float32" or (len(problem.shapes) > 4 and problem.shapes[4] is not None):
        return None
    inputs = ["x", "w", "w_scale", "w_zero", *(["b"] if "b" in given else [])]
    return Graph([("DynamicQuantizeMatMul", inputs, ["y"], {"domain": "com.microsoft"})], {})


def _layer_norm(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["return_stats"] or a["return_sum"] or "residual" in given:
        return None
    axes, rank = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]], len(problem.shapes[0])
    first = min(axis % rank for axis in axes)
    if sorted(axis % rank for axis in axes) != list(range(first, rank)) or "weight" not in given:
        return None
    return node("LayerNormalization", *given, axis=first, epsilon=a["eps"])


def _einsum(a: dict[str, Any], given: list[str]) -> Graph | None:
    plain = all(a.get(k) == v for k, v in (("alpha", 1.0), ("beta", 1.0), ("largest", None)))
    return node("Einsum", *given, equation=a["subscripts"]) if plain and "c" not in given else None


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
    onnx_layers.arrange(problem.op, feeds)
    graph = _graph(problem, registry.resolve(problem.target, operands, dict(problem.attrs)), list(feeds))
    if graph is None:
        return []
    made = [Model(_serialized(graph, feeds, {}), feeds, False)]
    weights = {n: v for n, v in feeds.items() if n in _WEIGHTS and "w" in feeds and "dy" not in feeds}
    if weights:
        rest = {n: v for n, v in feeds.items() if n not in weights}
        made.append(Model(_serialized(graph, rest, weights), rest, True))
    return made


def _serialized(graph: Graph, feeds: dict[str, Any], weights: dict[str, Any]) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(n, kind(v.dtype), v.shape) for n, v in feeds.items()]
    # Types and shapes of results are inferred.
    results = [onnx.ValueInfoProto(name=n) for n in graph.results or graph.nodes[-1][2]]
    nodes = [helper.make_node(op, ins, outs, **attrs) for op, ins, outs, attrs in graph.nodes]
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in {**graph.constants, **weights}.items()]
    made = helper.make_graph(nodes, "problem", inputs, results, constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", graph.opset), helper.make_opsetid("com.microsoft", 1)]
    )
    model.ir_version = _IR + (graph.opset > 20)
    return bytes(model.SerializeToString())
