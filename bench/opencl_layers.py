"""Layers on an OpenCL device, right and how fast beside torch on the same card: attention, norms, LSTM, pictures.

    python bench/opencl_layers.py [device] [--only NAME ...] [--small]

A line per case: what ours takes by the device's own clock (events, kernels alone) and by a stopwatch over many enqueued
calls, what each of torch's ways takes by the stopwatch, in turn with ours, and the ratio theirs / ours. A result is
compared first, with torch's in float32 or with tilework's on the CPU; what is wrong is not timed. On a CPU device sizes
are small and no speed means anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tilework as tw
from opencl_cases import Bench, Case, same
from opencl_memory_bound import elementwise, norms, reductions, windows
from opencl_sequences import attention, attention_dx, decode, recurrent
from tilework import vision


def _picture(bench: Bench, height: int, width: int) -> Any:
    """Shapes and noise, smooth enough that edges are chains."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = 60 * np.sin(x / 37) + 60 * np.sin(y / 23 + x / 91) + 80 * (((x // 97 + y // 61) % 2) > 0)
    return np.clip(waves + 90 + bench.rng.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)


def pictures(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 22: Canny of pictures that lie on the device."""

    def make(height: int, width: int) -> Case:
        image = _picture(bench, height, width)
        there = tw.to_device(image, bench.queue.cl)
        y = bench.queue.empty(image.shape, np.uint8)
        want = tw.canny(image, low=60, high=120)
        start = time.perf_counter()
        tw.canny(image, low=60, high=120)
        taken = time.perf_counter() - start
        print(f"    tilework on the CPU: {taken * 1e3:.1f} ms", flush=True)
        try:
            import cv2

            cv2.Canny(image, 60, 120)
            start = time.perf_counter()
            cv2.Canny(image, 60, 120)
            print(f"    OpenCV on the CPU: {(time.perf_counter() - start) * 1e3:.1f} ms", flush=True)
        except ImportError:
            pass
        call = lambda: tw.canny(there, low=60, high=120, out=y)  # noqa: E731
        return Case(call, 2e-9 * image.size, "GB/s", lambda: float(np.sum(tw.to_host(y) != want)), 0)

    for height, width in ((64, 96),) if bench.small else ((2160, 3840), (8192, 8192)):
        yield f"canny {width}x{height} uint8", lambda h=height, w=width: make(h, w)  # type: ignore[misc]


def lines(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 23: lines of a picture, with its way to the device."""

    def make(height: int, width: int) -> Case:
        image = _picture(bench, height, width)
        want = vision.detect_lines(image)
        start = time.perf_counter()
        vision.detect_lines(image)
        print(f"    tilework on the CPU: {(time.perf_counter() - start) * 1e3:.1f} ms", flush=True)
        call = lambda: vision.detect_lines(tw.to_device(image, bench.queue.cl))  # noqa: E731
        return Case(call, 0, "", lambda: float(len(call()) != len(want)), 0)

    height, width = (64, 96) if bench.small else (2160, 3840)
    yield f"lines {width}x{height}", lambda: make(height, width)


# --------------------------------------------------------------------------------------------------------- launches


def launches(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 24: calls on one element."""
    torch = bench.torch

    def make(name: str, count: int) -> Case:
        x, tx = bench.pair(count, dtype="float32")
        y = bench.queue.empty(x.shape, x.dtype)
        one = tw.to_device(np.ones(count, np.float32), bench.queue.cl)
        if name == "add":
            return same(bench, lambda: tw.add(x, one, out=y), None if torch is None else lambda: tx + 1, 0, 1e-6)
        return same(bench, lambda: tw.relu(x, out=y), None if torch is None else lambda: torch.relu(tx), 0, 1e-6)

    for name in ("relu", "add"):
        yield f"{name} of one element", lambda m=name: make(m, 1)  # type: ignore[misc]

    def raw() -> Case:
        import pyopencl as cl

        program = cl.Program(bench.device.context, "__kernel void nothing(__global int *x) {}").build()
        kernel, data = cl.Kernel(program, "nothing"), bench.queue.empty((1,), np.int32)
        kernel.set_args(data.data)
        plain = cl.CommandQueue(bench.device.context)
        case = Case(lambda: cl.enqueue_nd_range_kernel(plain, kernel, (1,), (1,)), 0, "", lambda: 0.0, 0)
        if torch is not None:
            tx = torch.zeros(1, device="cuda")
            case.theirs["torch add_"] = lambda: tx.add_(1)
        return case

    yield "an empty kernel, pyopencl alone", raw


def first_calls(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 25: what the first call in a process takes, built before or not."""
    shown = (
        "import time, numpy as np, tilework as tw\n"
        "q = tw.to_device(np.zeros((1, 2, 64, 64), np.float16), {device!r})\n"
        "for name, call in (('relu', lambda: tw.relu(q)), ('softmax', lambda: tw.softmax(q)),"
        " ('matmul', lambda: tw.matmul(q, q)), ('attention', lambda: tw.attention(q, q, q))):\n"
        "    t = time.perf_counter(); call(); tw.synchronize()\n"
        "    print(f'{{name}} {{(time.perf_counter() - t) * 1e3:.0f}} ms', end=', ')\n"
    )
    for state in ("as it comes", "again"):
        code = shown.format(device=bench.device.platform.lower().split()[0])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        print(f"first calls, {state}: {done.stdout.strip(', ')}{done.stderr[-300:]}", flush=True)
    yield from ()


MEMORY_BOUND = (elementwise, reductions, norms, windows)
SECTIONS: dict[str, Callable[[Bench], Iterator[tuple[str, Callable[[], Case]]]]] = {
    make.__name__: make
    for make in (attention, decode, attention_dx, *MEMORY_BOUND, recurrent, pictures, lines, launches, first_calls)
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Layers on an OpenCL device, beside torch.")
    parser.add_argument("device", nargs="?", default="")
    parser.add_argument("--only", nargs="*", default=[], help="sections: " + ", ".join(SECTIONS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to build every kernel")
    given = parser.parse_args()
    bench = Bench(given.device, given.small)
    for name, make in SECTIONS.items():
        if given.only and name not in given.only:
            continue
        for label, case in make(bench):
            try:
                told = bench.told(case())
            except Exception as failure:
                told = "FAILED: " + " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
            print(f"{name}: {label}: {told}", flush=True)


if __name__ == "__main__":
    main()
