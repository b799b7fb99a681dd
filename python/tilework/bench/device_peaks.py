"""Peaks of an OpenCL device: multiply-adds, copying within its memory, and the cost of a launch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tilework
from tilework.backends.opencl_programs import expanded

_TURNS = 1024  # multiply-adds of each accumulator, as in peak.cl
_ACCUMULATORS = 8
_LANES = 4
_ROUNDS = 7


def measure(device: str) -> dict[str, Any]:
    """The best of a few rounds: FLOP/s, bytes read and written per second, and seconds per empty launch."""
    cl: Any = importlib.import_module("pyopencl")
    array = tilework.to_device(np.zeros(1 << 24, np.float32), device)
    queue, context = array.queue, array.context
    program = cl.Program(context, expanded("peak.cl")).build(["-cl-mad-enable"])
    multiply, empty = program.multiply_add, program.nothing
    items = max(1 << 14, queue.device.max_compute_units * 2048)
    result = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, items * 4)
    other = cl.Buffer(context, cl.mem_flags.READ_WRITE, array.nbytes)

    def launches() -> None:
        for _ in range(100):
            empty(queue, (1,), None)

    jobs: dict[str, tuple[Callable[[], Any], float]] = {
        "fma_f32": (
            lambda: multiply(queue, (items,), None, result, np.float32(0.5)),
            2.0 * items * _TURNS * _ACCUMULATORS * _LANES,
        ),
        "copy": (lambda: cl.enqueue_copy(queue, other, array.base_data, byte_count=array.nbytes), 2.0 * array.nbytes),
        "launch": (launches, 100.0),
    }
    best: dict[str, float] = {}
    for _ in range(_ROUNDS):
        for name, (job, work) in jobs.items():
            queue.finish()
            begin = time.perf_counter()
            job()
            queue.finish()
            best[name] = max(best.get(name, 0.0), work / (time.perf_counter() - begin))
    return {
        "device": queue.device.name.strip(),
        "fma_f32": best["fma_f32"],
        "copy": best["copy"],
        "launch_seconds": 1 / best["launch"],
    }
