"""OpenVINO on the CPU, in float32: an infer request over a one-node model, its inputs set beforehand."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tilework.bench.peers import Contestant, onnx_models
from tilework.bench.problems import BenchError, Problem


def set_threads(count: int) -> int:
    """Each model is compiled for its thread count."""
    return count


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """``openvino`` with every operand fed, ``openvino const`` with the weights in the model."""
    if problem.dtype != "float32":  # float64 would be computed in float32
        return {}
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    found = {}
    for model in onnx_models.models(problem, operands):
        compiled = core.compile_model(core.read_model(model=model.data, weights=b""), "CPU", settings)
        runs_on = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if runs_on != threads:
            raise BenchError(f"openvino runs on {runs_on} threads; want {threads}")
        request = compiled.create_infer_request()
        for index, array in enumerate(model.feeds.values()):
            request.set_input_tensor(index, openvino.Tensor(np.ascontiguousarray(array)))

        def answer(request: Any = request) -> list[Any]:
            request.infer()
            return [request.get_output_tensor(0).data.copy()]

        name = "openvino const" if model.prepacked else "openvino"
        found[name] = Contestant(request.infer, prepacked=model.prepacked, answer=answer, keep=model)
    return found
