"""The same blocks as ONNX models with their weights as constants."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework.bench.networks.gpt2 import EPS, HEAD
from tilework.bench.networks.network import Weights

_OPSET, _IR = 20, 10


def inference(weights: Weights, shape: tuple[int, ...], blocks: int, *, encoder: bool) -> bytes:
    """A serialized model that takes ``x`` of this shape."""
    onnx: Any = importlib.import_module("onnx")
    helper = onnx.helper
    batch, length, width = shape
    nodes: list[Any] = []
    constants: dict[str, Any] = {n: w.T if n.endswith(".w") else w for n, w in weights.items()}  # as MatMul takes them
    constants["heads"] = np.array([batch, length, 3, width // HEAD, HEAD], np.int64)
    constants["joined"] = np.array(shape, np.int64)
    constants["scale"] = np.float32(HEAD**-0.5)
    if not encoder:
        constants["future"] = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def node(op: str, name: str, *inputs: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def layer(name: str, x: str) -> str:
        return node("Add", name, node("MatMul", f"{name}.product", x, f"{name}.w"), f"{name}.b")

    def norm(name: str, x: str) -> str:
        inputs = (x, f"{name}.weight", f"{name}.bias")
        return node("LayerNormalization", name, *inputs, axis=-1, epsilon=EPS)

    def attend(i: int, x: str) -> str:
        qkv = node("Reshape", f"{i}.split", layer(f"{i}.qkv", x), "heads")
        parts = node("Transpose", f"{i}.parts", qkv, perm=[2, 0, 3, 1, 4])
        names = [f"{i}.{n}4" for n in "qkv"]
        nodes.append(helper.make_node("Split", [parts], names, axis=0, num_outputs=3))
        constants["first"] = np.array([0], np.int64)
        q, k, v = (node("Squeeze", n[:-1], n, "first") for n in names)
        turned = node("Transpose", f"{i}.turned", k, perm=[0, 1, 3, 2])
        scores = node("Mul", f"{i}.scores", node("MatMul", f"{i}.raw", q, turned), "scale")
        if not encoder:
            scores = node("Add", f"{i}.masked", scores, "future")
        y = node("MatMul", f"{i}.attended", node("Softmax", f"{i}.shares", scores, axis=-1), v)
        side = node("Transpose", f"{i}.side", y, perm=[0, 2, 1, 3])
        return layer(f"{i}.out", node("Reshape", f"{i}.joined", side, "joined"))

    def widen(i: int, x: str) -> str:
        return layer(f"{i}.down", node("Gelu", f"{i}.gelu", layer(f"{i}.up", x)))

    x = "x"
    for i in range(blocks):
        if encoder:
            x = norm(f"{i}.before", node("Add", f"{i}.first", x, attend(i, x)))
            x = norm(f"{i}.between", node("Add", f"{i}.second", x, widen(i, x)))
        else:
            x = node("Add", f"{i}.first", x, attend(i, norm(f"{i}.before", x)))
            x = node("Add", f"{i}.second", x, widen(i, norm(f"{i}.between", x)))
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(w).reshape(w.shape), n) for n, w in constants.items()]
    kind = onnx.TensorProto.FLOAT
    inputs, outputs = (helper.make_tensor_value_info(n, kind, shape) for n in ("x", x))
    graph = helper.make_graph(nodes, "transformer", [inputs], [outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    return bytes(model.SerializeToString())
