"""Timing on an OpenCL device: kernels alone by its own clock, calls in a row by a stopwatch, torch's in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework.backends.opencl_device import Device

TURNS = 5  # of ours and theirs
TURN_SECONDS = 0.06


class Timed:
    """A device whose launches are recorded: the time of kernels alone, without what Python and the driver add."""

    def __init__(self, device: Device) -> None:
        import pyopencl as cl

        device.queue()  # which makes its context
        events_timed = cl.command_queue_properties.PROFILING_ENABLE
        self.device = device
        self.queue = device.queue(cl.CommandQueue(device.context, properties=events_timed))
        self.events: list[Any] = []
        original = device.programs.kernel

        def recorded(*request: Any) -> Any:
            kernel = original(*request)

            def enqueue(*args: Any) -> Any:
                event = kernel(*args)
                self.events.append(event)
                return event

            return enqueue

        device.programs.kernel = recorded  # type: ignore[method-assign]

    def seconds(self, call: Callable[[], Any], repeats: int = 7) -> float:
        """The median over calls of what their kernels took."""
        call()
        self.queue.finish()
        taken = []
        for _ in range(repeats):
            self.events.clear()
            call()
            self.queue.finish()
            taken.append(sum(e.profile.end - e.profile.start for e in self.events) * 1e-9)
        return statistics.median(taken)

    def empty(self, m: int, n: int, dtype: Any) -> Any:
        """A result full of a value that no product has, so that an element left out shows."""
        dtype = np.dtype(dtype)
        made = self.queue.empty((m, n), np.dtype(f"u{dtype.itemsize}"))
        self.queue.fill(made, 0x4242)
        return made.view(dtype)


def torch_beside() -> Any:
    """torch with a GPU and without TF32, or None."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch


def one_turn(call: Callable[[], Any], wait: Callable[[], Any], seconds: float) -> float:
    """Seconds per call over as many calls as fill a turn of ``seconds``."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    count = max(1, min(200, int(seconds / max(time.perf_counter() - start, 1e-6))))
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - start) / count


def beside(
    timed: Timed,
    ours: Callable[[], Any],
    torch: Any,
    theirs: Callable[[], Any] | None,
    turns: int = TURNS,
    seconds: float = TURN_SECONDS,
) -> tuple[float, float]:
    """Median seconds of both per call, measured in turn; theirs is NaN without torch."""
    mine, other = [], []
    ours()
    for _ in range(turns):
        mine.append(one_turn(ours, timed.queue.finish, seconds))
        timed.events.clear()
        if theirs is not None:
            other.append(one_turn(theirs, torch.cuda.synchronize, seconds))
    return statistics.median(mine), statistics.median(other) if other else float("nan")
