"""What an OpenCL device can do, asked the first time one is at hand: tables in Markdown, and the same as JSON.

    python bench/opencl_first_contact.py [device] [--seconds 400] [--out FOLDER] [--only SECTION ...]

``device`` as in tilework.to_device: "nvidia:0", "gpu", ... Every section runs in a process of its own, as a probe that
fails may take its context with it, and within a time of its own; what it said before that time was up is kept. What
only an NVIDIA device can answer is skipped elsewhere, with the reason. On a CPU device sizes are small and no speed
means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import opencl_convolutions
import opencl_products
import tilework as tw
from tilework.backends.opencl_device import Device, select

Row = tuple[str, str]
# The seconds that a section may take, and whether it may run beside its neighbours.
SECTIONS: dict[str, tuple[Callable[[Probe], Iterator[Row]], int, bool]] = {}
TOGETHER = max(1, min(8, (os.cpu_count() or 1) // 2))


class Probe:
    """The device under question, and the small steps that the questions are made of."""

    def __init__(self, device: Device) -> None:
        import pyopencl as cl

        self.cl = cl
        self.device = device
        self.raw: Any = device.cl
        self.context = cl.Context([self.raw])
        self.queue = cl.CommandQueue(self.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
        self.nvidia = "nvidia" in device.platform.lower()
        self.small = device.is_cpu

    def build(self, source: str, *options: str) -> Any:
        """A built program; raises cl.Error."""
        return self.cl.Program(self.context, source).build(list(options))

    def kernel(self, source: str, name: str, *options: str) -> Any:
        """One kernel of a program."""
        return self.cl.Kernel(self.build(source, *options), name)

    def buffer(self, nbytes: int) -> Any:
        """A device buffer."""
        return self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, nbytes)

    def zeros(self, nbytes: int) -> Any:
        """A device buffer of zeros."""
        made = self.buffer(nbytes)
        self.cl.enqueue_fill_buffer(self.queue, made, np.zeros(1, np.int32), 0, nbytes)
        return made

    def read(self, buffer: Any, count: int, dtype: Any) -> Any:
        """The first elements of a buffer."""
        host = np.empty(count, dtype)
        self.cl.enqueue_copy(self.queue, host, buffer)
        return host

    def outcome(self, attempt: Callable[[], str], length: int = 160) -> str:
        """What ``attempt`` says, or the error it ends with, on one line."""
        try:
            return attempt()
        except Exception as error:
            text = str(error).replace("|", "/")
            told = re.findall(r"error:[^\n]*", text)
            shown = " ".join(told) if told and length == 160 else text
            return "no: " + " ".join(shown.split())[:length]

    def seconds(self, enqueue: Callable[[], Any], repeats: int = 10) -> float:
        """The best wall time of one enqueued step, of several."""
        best = float("inf")
        for _ in range(repeats + 1):
            self.queue.finish()
            start = time.perf_counter()
            enqueue()
            self.queue.finish()
            best = min(best, time.perf_counter() - start)
        return best


def section(run: Callable[[Probe], Iterator[Row]]) -> Callable[[Probe], Iterator[Row]]:
    """Adds a section to the table."""
    SECTIONS[run.__name__] = run, 45, False
    return run


# ------------------------------------------------------------------------------------------- 1 and 2: the driver


@section
def limits(probe: Probe) -> Iterator[Row]:
    raw = probe.raw
    yield "device", f"{probe.device.name}, {probe.device.platform}, driver {raw.driver_version}, {raw.version}"
    yield "OpenCL C", str(raw.opencl_c_version)
    yield "compute units, clock", f"{raw.max_compute_units}, {raw.max_clock_frequency} MHz"
    yield "local memory", f"{raw.local_mem_size} B"
    yield (
        "global memory, largest buffer",
        f"{raw.global_mem_size / 2**30:.1f} GiB, {raw.max_mem_alloc_size / 2**30:.1f} GiB",
    )
    yield "work-group, float64", f"{raw.max_work_group_size}, {'yes' if probe.device.has_float64 else 'no'}"
    yield "extensions", " ".join(sorted(raw.extensions.split()))
    if probe.small:
        yield "a buffer beyond the largest", "skipped: a CPU device accepts it and fills the host's memory"
        return
    size = raw.max_mem_alloc_size + (4 << 30)

    def oversize() -> str:
        made = probe.buffer(size)
        probe.cl.enqueue_fill_buffer(probe.queue, made, np.ones(1, np.int32), size - 4096, 4096)
        probe.queue.finish()
        return "accepted, and its end is writable"

    yield f"a buffer of {size / 2**30:.0f} GiB", probe.outcome(oversize)


_HALF = "__kernel void f(__global half* x) { half a = x[0], b = x[1]; x[2] = (a + b) * a - a / b; }"


@section
def language(probe: Probe) -> Iterator[Row]:
    def builds(source: str, *options: str) -> str:
        return probe.outcome(lambda: (probe.build(source, *options), "yes")[1])

    yield "half + - * / without a pragma", builds(_HALF)
    yield "half with the cl_khr_fp16 pragma", builds("#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n" + _HALF)
    yield (
        "vload_half, vstore_half",
        builds("__kernel void f(__global half* x) { vstore_half_rte(vload_half(0, x), 1, x); }"),
    )
    yield (
        "_Pragma in front of a loop",
        builds('__kernel void f(__global int* x) { _Pragma("unroll") for (int i = 0; i < 4; ++i) x[i] = i; }'),
    )
    yield (
        "union of a vector and an array",
        builds(
            "__kernel void f(__global float* x) { union { uint4 all; float one[4]; } u; u.all = (uint4)(1);"
            " for (int i = 0; i < 4; ++i) x[i] = u.one[i]; }"
        ),
    )
    if not probe.nvidia:
        yield "inline PTX", f"skipped: {probe.device.platform} is not NVIDIA's"
        return
    for keyword in ("asm", "__asm__"):
        move = f'{keyword} volatile("mov.u32 %0, %%laneid;" : "=r"(i));'
        lane = f"__kernel void f(__global uint* y) {{ uint i; {move} y[i] = i; }}"
        yield f"inline PTX with {keyword}", builds(lane)
    wait = 'asm volatile("cp.async.wait_group %0;" : : "n"(2) : "memory");'
    yield "a constant in inline PTX", builds(f"__kernel void f(__global uint* y) {{ {wait} y[0] = 1; }}")


# --------------------------------------------------------------------------------------- 3 to 5: tensor cores


_FRAGMENTS = """
#define MMA(shape, types, a, b, c, kind)                                                              \\
    __asm__ volatile("mma.sync.aligned." shape ".row.col." types " {%0,%1,%2,%3},{%4,%5,%6,%7},"       \\
                     "{%8,%9},{%0,%1,%2,%3};"                                                         \\
                     : "+" kind(c.x), "+" kind(c.y), "+" kind(c.z), "+" kind(c.w)                     \\
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y))
"""

_PIPELINE = (
    _FRAGMENTS
    + """
__kernel void ones(__global const uint* x, __global float* y) {
    __local uint tile[32 * 4] __attribute__((aligned(16)));
    const uint lane = get_local_id(0), at = (uint)(size_t)(tile + 4 * lane);
    __asm__ volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at), "l"(x + 4 * lane));
    __asm__ volatile("cp.async.commit_group;");
    __asm__ volatile("cp.async.wait_group 0;");
    barrier(CLK_LOCAL_MEM_FENCE);
    uint4 a;
    __asm__ volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w) : "r"(at));
    float4 c = 0;
    MMA("m16n8k16", "f32.f16.f16.f32", a, a.xy, c, "f");
    y[4 * lane] = c.x; y[4 * lane + 1] = c.y; y[4 * lane + 2] = c.z; y[4 * lane + 3] = c.w;
}
"""
)

_FENCE = '__kernel void f(__global int* y) { __asm__ volatile("wgmma.fence.sync.aligned;"); y[0] = 1; }'
# The front end makes code for sm_90, which has no wgmma: the instruction travels as a comment and is put in afterwards.
_WGMMA = """
__kernel __attribute__((reqd_work_group_size(128, 1, 1))) void f(__global float* y, const int turns) {
    __local uint4 tile[1024] __attribute__((aligned(128)));
    for (int i = get_local_id(0); i < 1024; i += 128) tile[i] = (uint4)(0x3c003c00);
    __asm__ volatile("fence.proxy.async.shared::cta;" ::: "memory");
    barrier(CLK_LOCAL_MEM_FENCE);
    const ulong at = ((uint)(size_t)(__local void*)tile & 0x3ffff) >> 4 | 8ul << 16 | 16ul << 32;
    float c[32];
    for (int i = 0; i < 32; ++i) c[i] = 0;
    for (int t = 0; t < turns; ++t)
        __asm__ volatile("// WGMMA %32 %33 | " LIST : OUTPUTS : "l"(at), "l"(at) : "memory");
    float sum = 0;
    for (int i = 0; i < 32; ++i) sum += c[i];
    y[get_global_id(0)] = sum;
}
""".replace("LIST", '"' + ", ".join(f"%{i}" for i in range(32)) + '"').replace(
    "OUTPUTS", ", ".join(f'"+f"(c[{i}])' for i in range(32))
)
_WGMMA_TEXT = (
    "wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
    r"{\3}, \1, \2, 1, 1, 1, 0, 0; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
)
_PLAIN = "__kernel void f(__global float* y) { y[get_global_id(0)] += 1; }"
_MANY = """
__kernel void f(__global float* y) {
    float a[96];
    for (int i = 0; i < 96; ++i) a[i] = y[i];
    for (int t = 0; t < 9; ++t)
        for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i + 7) % 96] + y[t];
    for (int i = 0; i < 96; ++i) y[i] = a[i];
}
"""


@section
def instructions(probe: Probe) -> Iterator[Row]:
    if not probe.nvidia:
        yield "cp.async, ldmatrix, mma.sync, wgmma, PTX", f"skipped: {probe.device.platform} is not NVIDIA's"
        return

    def pipeline() -> str:
        x, y = probe.buffer(512), probe.zeros(512)
        probe.cl.enqueue_copy(probe.queue, x, np.ones(256, np.float16))
        probe.kernel(_PIPELINE, "ones")(probe.queue, (32,), (32,), x, y)
        values = np.unique(probe.read(y, 128, np.float32))
        return f"runs, ones times ones is {values} (want [16.])"

    def wgmma(*options: str) -> str:
        y = probe.zeros(4)
        probe.kernel(_FENCE, "f", *options)(probe.queue, (128,), (128,), y)
        return "runs" if probe.read(y, 1, np.int32)[0] == 1 else "builds, but does not write"

    def binary() -> bytes:
        return bytes(probe.build(_PLAIN).get_info(probe.cl.program_info.BINARIES)[0])

    def header() -> str:
        text = binary().decode("ascii", "replace")
        return "; ".join(re.findall(r"\.(?:version|target|address_size) [^\n]*", text)) or "the binary is not PTX"

    def retargeted() -> str:
        text = bytes(probe.build(_WGMMA).get_info(probe.cl.program_info.BINARIES)[0]).decode("ascii").rstrip("\0")
        text = re.sub(r"\.target sm_\d+\w*", ".target sm_90a", text)
        text, count = re.subn(r"// WGMMA (%\w+) (%\w+) \| (.*)", _WGMMA_TEXT, text)
        program = probe.cl.Program(probe.context, [probe.raw], [text.encode()]).build()
        kernel = probe.cl.Kernel(program, "f")
        groups, turns = 4 * probe.raw.max_compute_units, 2048
        y = probe.zeros(groups * 128 * 4)
        kernel(probe.queue, (128,), (128,), y, np.int32(3))
        sums = np.unique(probe.read(y, 128, np.float32))
        best = probe.seconds(lambda: kernel(probe.queue, (groups * 128,), (128,), y, np.int32(turns)), 5)
        rate = groups * turns * 2 * 64 * 64 * 16 / best / 1e12
        return f"{count} put in, sums {sums} (want [{3 * 16 * 32}.]), {rate:.0f} T/s with a wait behind each"

    def registers(*options: str) -> str:
        program = probe.build(_MANY, "-cl-nv-verbose", *options)
        log = program.get_build_info(probe.raw, probe.cl.program_build_info.LOG)
        return ", ".join(re.findall(r"Used \d+ registers|\d+ bytes spill stores", log)) or "the log says nothing"

    yield "cp.async + ldmatrix + mma.sync", probe.outcome(pipeline)
    yield "wgmma, plain build", probe.outcome(wgmma)
    yield "wgmma with -cl-nv-arch sm_90a", probe.outcome(lambda: wgmma("-cl-nv-arch", "sm_90a"))
    yield "PTX of a plain build", probe.outcome(header)
    yield "wgmma in PTX with .target sm_90a, as a binary", probe.outcome(retargeted)
    yield "registers of a greedy kernel", probe.outcome(registers)
    yield "the same with -cl-nv-maxrregcount=64", probe.outcome(lambda: registers("-cl-nv-maxrregcount=64"))


_LAST = """
__kernel void f(__local int* m, int n, __global int* y) {
    m[n - 1] = 7;
    barrier(CLK_LOCAL_MEM_FENCE);
    y[0] = m[n - 1];
}
"""


@section
def local_memory(probe: Probe) -> Iterator[Row]:
    kernel = probe.kernel(_LAST, "f")
    for kib in (32, 48, 64, 96, 200):

        def attempt(kib: int = kib) -> str:
            y = probe.zeros(4)
            kernel(probe.queue, (32,), (32,), probe.cl.LocalMemory(kib << 10), np.int32(kib << 8), y)
            return "runs" if probe.read(y, 1, np.int32)[0] == 7 else "wrong result"

        yield f"{kib} KiB of __local as an argument", probe.outcome(attempt)


_PEAK = (
    _FRAGMENTS
    + """
__kernel void peak(__global FLOATS* y, const int turns) {
    const uint seed = get_local_id(0) & 1;
    const uint4 a = (uint4)(seed);
    FLOATS4 c[8];
    for (int i = 0; i < 8; ++i) c[i] = (FLOATS4)(0);
    for (int t = 0; t < turns; ++t)
#pragma unroll
        for (int i = 0; i < 8; ++i) MMA(SHAPE, TYPES, a, a.xy, c[i], KIND);
    FLOATS4 sum = 0;
    for (int i = 0; i < 8; ++i) sum += c[i];
    y[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}
"""
)


@section
def tensor_peaks(probe: Probe) -> Iterator[Row]:
    if not probe.nvidia:
        yield "mma.sync peaks", f"skipped: {probe.device.platform} is not NVIDIA's"
        return
    for name, shape, types, kind, floats, flops in (
        ("f16", "m16n8k16", "f32.f16.f16.f32", "f", "float", 4096),
        ("bf16", "m16n8k16", "f32.bf16.bf16.f32", "f", "float", 4096),
        ("tf32", "m16n8k8", "f32.tf32.tf32.f32", "f", "float", 2048),
        ("s8", "m16n8k32", "s32.s8.s8.s32", "r", "int", 8192),
    ):

        def attempt(
            shape: str = shape, types: str = types, kind: str = kind, floats: str = floats, flops: int = flops
        ) -> str:
            words = {"SHAPE": f'"{shape}"', "TYPES": f'"{types}"', "KIND": f'"{kind}"'}
            head = "".join(f"#define {k} {v}\n" for k, v in words.items())
            head += f"#define FLOATS {floats}\n#define FLOATS4 {floats}4\n"
            kernel = probe.kernel(head + _PEAK, "peak")
            groups, turns = 8 * probe.raw.max_compute_units, 4096
            y = probe.buffer(groups * 256 * 4)
            best = probe.seconds(lambda: kernel(probe.queue, (groups * 256,), (256,), y, np.int32(turns)), 5)
            return f"{groups * 8 * turns * 8 * flops / best / 1e12:.0f} T/s"

        yield f"mma.sync {name}, registers only", probe.outcome(attempt)


# ------------------------------------------------------------------------------------- 6 and 7: launches, copies


@section
def launches(probe: Probe) -> Iterator[Row]:
    cl, queue = probe.cl, probe.queue
    kernel = probe.kernel("__kernel void f(void) {}", "f")
    kernel(queue, (1,), (1,))
    queue.finish()
    start = time.perf_counter()
    for _ in range(1000):
        kernel(queue, (1,), (1,))
    enqueued = time.perf_counter() - start
    queue.finish()
    yield "enqueue of an empty kernel", f"{enqueued * 1e3:.1f} us"
    yield "round trip of an empty kernel", f"{probe.seconds(lambda: kernel(queue, (1,), (1,)), 100) * 1e6:.1f} us"
    times = []
    for _ in range(200):
        event = kernel(queue, (1,), (1,))
        event.wait()
        times.append(event.profile.end - event.profile.start)
    yield (
        "event time of an empty kernel",
        f"{min(times)} to {max(times)} ns; timer {probe.raw.profiling_timer_resolution} ns",
    )

    size = 16 << 20 if probe.small else 256 << 20
    there, other = probe.zeros(size), probe.zeros(size)
    pinned = cl.Buffer(probe.context, cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR, size)
    mapped, _ = cl.enqueue_map_buffer(
        queue, pinned, cl.map_flags.READ | cl.map_flags.WRITE, 0, (size,), np.uint8, is_blocking=True
    )
    plain = np.zeros(size, np.uint8)
    for name, host in (("pinned", mapped), ("pageable", plain)):
        up = probe.seconds(lambda host=host: cl.enqueue_copy(queue, there, host, is_blocking=True), 5)  # type: ignore[misc]
        down = probe.seconds(lambda host=host: cl.enqueue_copy(queue, host, there, is_blocking=True), 5)  # type: ignore[misc]
        yield f"{name} host to device, back", f"{size / up / 1e9:.1f}, {size / down / 1e9:.1f} GB/s"
    copied = probe.seconds(lambda: cl.enqueue_copy(queue, other, there, byte_count=size))
    yield "clEnqueueCopyBuffer, read + write", f"{2 * size / copied / 1e9:.0f} GB/s"


_SPIN = """
__kernel void spin(volatile __global int* arrived, __global int* passed, const int groups, const int patience) {
    if (get_local_id(0) == 0) {
        atomic_inc(arrived);
        for (int i = 0; i < patience; ++i)
            if (atomic_add(arrived, 0) >= groups) {
                atomic_inc(passed);
                break;
            }
    }
}
"""


@section
def persistence(probe: Probe) -> Iterator[Row]:
    groups = int(probe.raw.max_compute_units)
    kernel = probe.kernel(_SPIN, "spin")
    for per_unit in (1, 2):

        def attempt(count: int = groups * per_unit) -> str:
            arrived, passed = probe.zeros(4), probe.zeros(4)
            kernel(probe.queue, (count * 32,), (32,), arrived, passed, np.int32(count), np.int32(100000))
            return f"{probe.read(passed, 1, np.int32)[0]} of {count} met"

        yield f"grid barrier, {per_unit} group(s) per compute unit", probe.outcome(attempt)


# ------------------------------------------------------------------------------------------------ row 1


def _rival(name: str, run: Callable[[Any], float]) -> str:
    """A figure of torch on the same device, where there is one."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    torch.backends.cuda.matmul.allow_tf32 = False
    return f"torch {run(torch):.4g} {name}"


def _torch_best(torch: Any, step: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


@section
def copies(probe: Probe) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    x = tw.to_device(rng.standard_normal(1 << (22 if probe.small else 29), np.float32), probe.device)
    y = tw.to_device(np.zeros(x.shape, np.float32), probe.device)

    def ours(step: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(5 if probe.small else 30):
            tw.synchronize(probe.device)
            start = time.perf_counter()
            step()
            tw.synchronize(probe.device)
            best = min(best, time.perf_counter() - start)
        return best

    copied = ours(lambda: tw.expand(x, shape=x.shape, out=y))
    added = ours(lambda: tw.add(x, y, out=y))

    def torch_copy(torch: Any) -> float:
        a = torch.ones(x.size, device="cuda")
        b = torch.empty_like(a)
        return float(2 * x.nbytes / _torch_best(torch, lambda: b.copy_(a)) / 1e9)

    rival = _rival("GB/s", torch_copy)
    yield f"copy of {x.nbytes >> 20} MiB (row 1)", f"{2 * x.nbytes / copied / 1e9:.1f} GB/s; {rival}"
    yield f"add of {x.nbytes >> 20} MiB (row 1)", f"{3 * x.nbytes / added / 1e9:.1f} GB/s"


# ------------------------------------------------------------------------------------------------------- main


SECTIONS |= opencl_products.SECTIONS | opencl_convolutions.SECTIONS


def run_section(name: str, device: str, seconds: float) -> list[list[str]]:
    """The rows of one section, from a process of its own."""
    rows = []
    try:
        done = subprocess.run(
            [sys.executable, __file__, device, "--section", name], capture_output=True, text=True, timeout=seconds
        )
        said = done.stdout
        if done.returncode:
            rows.append([name, f"the process ended with {done.returncode}: {' '.join(done.stderr.split())[-600:]}"])
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        rows.append([name, f"the rest did not come within {seconds:.0f} s"])
    return [json.loads(line) for line in said.splitlines() if line.startswith("[")] + rows


def adapt(rows: list[list[str]]) -> None:
    """What the compiler of this device does not take is left out of later builds."""
    said = dict(rows)
    options = os.environ.get("TILEWORK_CL_OPTIONS", "").split()
    if said.get("_Pragma in front of a loop", "yes") != "yes":
        options.append("-DUNROLL=")
    if said.get("inline PTX with asm", "yes") != "yes" and said.get("inline PTX with __asm__") == "yes":
        options.append("-DASM=__asm__")
    os.environ["TILEWORK_CL_OPTIONS"] = " ".join(options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", nargs="?", default="")
    parser.add_argument("--seconds", type=float, default=400, help="for all sections together")
    parser.add_argument("--out", type=Path, help="where first_contact.json and first_contact.md go")
    parser.add_argument("--only", nargs="*", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = select(asked.device)
    if asked.section:
        for row in SECTIONS[asked.section][0](Probe(device)):
            print(json.dumps(row), flush=True)
        return 0
    start = time.monotonic()
    answers: dict[str, list[list[str]]] = {}
    text = ""

    def finished(name: str) -> list[list[str]]:
        left = asked.seconds - (time.monotonic() - start)
        return (
            run_section(name, asked.device, min(left, SECTIONS[name][1])) if left > 5 else [[name, "no time was left"]]
        )

    def together(names: Iterable[str]) -> Iterator[tuple[str, list[list[str]]]]:
        names = list(names)
        with ThreadPoolExecutor(TOGETHER) as pool:
            yield from zip(names, pool.map(finished, names), strict=True)

    for beside, group in groupby(asked.only, key=lambda name: SECTIONS[name][2]):
        for name, rows in together(group) if beside else ((name, finished(name)) for name in group):
            answers[name] = rows
            if name == "language":
                adapt(rows)
            lines = [f"| {question} | {' '.join(answer.split()).replace('|', '/')} |" for question, answer in rows]
            head = f"## {name.replace('_', ' ')}, at {time.monotonic() - start:.0f} s"
            part = f"\n{head}\n\n| question | answer |\n|---|---|\n" + "\n".join(lines)
            print(part, flush=True)
            text += part + "\n"
            if asked.out:
                asked.out.mkdir(parents=True, exist_ok=True)
                (asked.out / "first_contact.json").write_text(json.dumps({"device": device.name, "answers": answers}))
                (asked.out / "first_contact.md").write_text(f"# First contact with {device.name}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
