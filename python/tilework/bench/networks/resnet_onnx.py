"""The same networks as ONNX models with their folded weights as constants."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework.bench.networks.network import Weights
from tilework.bench.networks.resnet import CLASSES, ResNet, Unit

_OPSET, _IR = 20, 10


def inference(form: ResNet, weights: Weights, shape: tuple[int, ...]) -> bytes:
    """A serialized model that takes ``x`` of this shape."""
    onnx: Any = importlib.import_module("onnx")
    helper = onnx.helper
    nodes: list[Any] = []

    def node(op: str, inputs: list[str], name: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def unit(u: Unit, x: str) -> str:
        attrs = {"strides": [u.stride] * 2, "pads": [u.padding] * 4, "kernel_shape": [u.kernel] * 2}
        y = node("Conv", [x, f"{u.name}.w", f"{u.name}.b"], u.name, **attrs)
        return node("Relu", [y], f"{u.name}.relu") if u.relu else y

    x = node("MaxPool", [unit(form.stem, "x")], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for i, block in enumerate(form.blocks()):
        y = x
        for u in block.units:
            y = unit(u, y)
        y = node("Add", [y, unit(block.shortcut, x) if block.shortcut else x], f"{i}.sum")
        x = node("Relu", [y], f"{i}.relu")
    x = node("Flatten", [node("GlobalAveragePool", [x], "mean")], "flat")
    node("Gemm", [x, "classes.w", "classes.b"], "y", transB=1)
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (shape[0], CLASSES))]
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "resnet", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    model.ir_version = _IR
    return bytes(model.SerializeToString())
