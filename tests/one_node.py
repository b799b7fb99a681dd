"""What ONNX Runtime makes of a model of one node."""

from __future__ import annotations

from typing import Any

import pytest


def onnxruntime_of(op: str, inputs: dict[str, Any], outputs: list[str], *, domain: str = "", **attrs: Any) -> list[Any]:
    """What ONNX Runtime makes of one operator."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, names = onnx.helper, list(inputs)
    given = [n for n in names if inputs[n] is not None]
    node = make.make_node(op, [n if inputs[n] is not None else "" for n in names], outputs, domain=domain, **attrs)
    values = [
        make.make_tensor_value_info(n, make.np_dtype_to_tensor_dtype(inputs[n].dtype), inputs[n].shape) for n in given
    ]
    # Output types are inferred by the runtime when a model leaves them out.
    results = [onnx.ValueInfoProto(name=n) for n in outputs]
    graph = make.make_graph([node], "one", values, results)
    model = make.make_model(
        graph, opset_imports=[make.make_opsetid("", 21), make.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {n: inputs[n] for n in given}))
