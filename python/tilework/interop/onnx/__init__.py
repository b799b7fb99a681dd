"""ONNX models on tilework's graph: ``prepare`` once, ``run`` many times; an ``onnx.backend.base.Backend``.

Every node becomes calls of tilework's ops when the model is prepared. A node that has none is an error there, which
lists every such node and why: nothing is computed by anything else.
"""

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
