"""ONNX Runtime on the CPU: a session over a one-node model, run on numpy arrays."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from tilework.bench.peers import Contestant, onnx_models
from tilework.bench.problems import Problem


def set_threads(count: int) -> int:
    """Each session is made for its thread count."""
    return count


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """``onnxruntime`` with every operand fed, ``onnxruntime const`` with the weights in the model."""
    runtime: Any = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(4)
    found = {}
    for model in onnx_models.models(problem, operands):
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        session = runtime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        name = "onnxruntime const" if model.prepacked else "onnxruntime"
        found[name] = Contestant(partial(session.run, None, model.feeds), prepacked=model.prepacked)
    return found
