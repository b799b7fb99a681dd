"""ONNX models on tilework's graph: ``prepare`` once, ``run`` many times; an ``onnx.backend.base.Backend``.

Every node becomes calls of tilework's ops when the model is prepared. A node that has none is an error there, which
lists every such node and why: nothing is computed by anything else.
"""

try:
    import onnx as onnx
except ModuleNotFoundError as error:
    raise ImportError("models want the package onnx; pip install 'tilework[onnx]'") from error

from tilework.interop.onnx.backend import (
    Backend,
    Prepared,
    coverage,
    is_compatible,
    prepare,
    run_model,
    run_node,
    supports_device,
)

__all__ = [
    "Backend",
    "Prepared",
    "coverage",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
