"""Layers on an OpenCL device, right and how fast beside torch on the same card: attention, norms, LSTM, pictures.

    python bench/opencl_layers.py [device] [--only NAME ...] [--small]

A line per case: what ours takes by the device's own clock (events, kernels alone) and by a stopwatch over many enqueued
calls, what each of torch's ways takes by the stopwatch, in turn with ours, and the ratio theirs / ours. A result is
compared first, with torch's in float32 or with tilework's on the CPU; what is wrong is not timed. On a CPU device sizes
are small and no speed means anything.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tilework as tw
from tilework import vision
from tilework.backends.opencl_device import select

Call = Callable[[], Any]
TURNS = 5  # of ours and theirs
TURN_SECONDS = 0.05
COMPARED = 1 << 20  # elements at either end


@dataclass
class Case:
    """Ours, what it moves (GB) or computes (TFLOP), how far it is from what it should be, and torch's ways."""

    ours: Call
    work: float
    unit: str
    error: Callable[[], float]
    limit: float
    theirs: dict[str, Call] = field(default_factory=dict)


class Bench:
    """A device whose launches are recorded, torch beside it if there is one, and arrays for both."""

    def __init__(self, name: str, small: bool) -> None:
        import pyopencl as cl

        device = select(name)
        device.queue()
        self.small = small or device.is_cpu
        self.device = device
        self.queue = device.queue(
            cl.CommandQueue(device.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
        )
        self.events: list[Any] = []
        self.rng = np.random.default_rng(0)
        original = device.programs.kernel

        def recorded(*request: Any) -> Any:
            kernel = original(*request)

            def enqueue(*args: Any) -> Any:
                event = kernel(*args)
                self.events.append(event)
                return event

            return enqueue

        device.programs.kernel = recorded  # type: ignore[method-assign]
        try:
            import torch

            self.torch: Any = torch if torch.cuda.is_available() else None
        except ImportError:
            self.torch = None
        if self.torch is not None:
            self.torch.backends.cuda.matmul.allow_tf32 = False
            self.torch.backends.cudnn.allow_tf32 = False
            self.torch.backends.cudnn.benchmark = True

    def pair(self, *shape: int, dtype: str = "float16", low: bool = False) -> tuple[Any, Any]:
        """Random numbers here, and the same there (None without torch)."""
        if self.torch is None:
            host = self.rng.standard_normal(shape, dtype=np.float32).astype(dtype)
            return tw.to_device(host, self.queue.cl), None
        made = self.torch.randn(shape, device="cuda", dtype=self.torch.float32)
        made = (made * (0.1 if low else 1)).to(getattr(self.torch, dtype))
        return tw.to_device(made.cpu().numpy(), self.queue.cl), made

    def seconds(self, call: Call, repeats: int = 5) -> float:
        """The median over calls of what their kernels took."""
        taken = []
        for _ in range(repeats):
            self.events.clear()
            call()
            self.queue.finish()
            taken.append(sum(e.profile.end - e.profile.start for e in self.events) * 1e-9)
        return statistics.median(taken)

    def turn(self, call: Call, wait: Call) -> float:
        """Seconds per call over as many calls as fill a turn."""
        wait()
        start = time.perf_counter()
        call()
        wait()
        count = max(1, min(300, int(TURN_SECONDS / max(time.perf_counter() - start, 1e-6))))
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        self.events.clear()
        return (time.perf_counter() - start) / count

    def told(self, case: Case) -> str:
        """The line of one case."""
        case.ours()
        error = case.error()
        if not error <= case.limit:
            return f"WRONG by {error:.2g} (limit {case.limit:g})"
        alone = self.seconds(case.ours)
        times: dict[str, list[float]] = {"ours": [], **{n: [] for n in case.theirs}}
        for call in case.theirs.values():
            call()
        for _ in range(1 if self.small else TURNS):
            times["ours"].append(self.turn(case.ours, self.queue.finish))
            for name, call in case.theirs.items():
                times[name].append(self.turn(call, self.torch.cuda.synchronize))
        taken = {n: statistics.median(t) for n, t in times.items()}
        mine = taken.pop("ours")
        best = f"{case.work / alone:.0f} {case.unit} alone" if case.work else ""
        line = f"{alone * 1e3:.3f} ms {best}, {mine * 1e3:.3f} in a row, error {error:.1g}"
        for name, other in taken.items():
            line += f"; {name} {other * 1e3:.3f} ms, ratio {other / mine:.2f}"
        return line

    def error(self, got: Any, want: Any) -> float:
        """||got - want|| / ||want||, of a device array and a tensor or an array; of large ones the two ends."""
        flat, other = got.reshape(-1), want.reshape(-1)
        ends = [slice(None)] if flat.size <= COMPARED else [slice(COMPARED), slice(flat.size - COMPARED, None)]
        mine = np.concatenate([tw.to_host(flat[e]) for e in ends]).astype(np.float64)
        parts = [other[e] for e in ends]
        other = np.concatenate([p if isinstance(p, np.ndarray) else p.double().cpu().numpy() for p in parts])
        return float(np.linalg.norm(mine - other) / max(np.linalg.norm(other), 1e-30))


Maker = Callable[[Bench], Iterator[tuple[str, Callable[[], Case]]]]
SECTIONS: dict[str, Maker] = {}


def section(make: Maker) -> Maker:
    """Adds a section to the table."""
    SECTIONS[make.__name__] = make
    return make


# ------------------------------------------------------------------------------------------------------- attention


def _sdpa(torch: Any, kind: str) -> Callable[..., Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}

    def call(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(backends[kind]):
            return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)

    return call


def _ways(bench: Bench, make: Callable[[Callable[..., Any]], Call]) -> dict[str, Call]:
    """Torch's ways that work."""
    ways: dict[str, Call] = {}
    for kind in ("flash", "cudnn") if bench.torch is not None else ():
        try:
            call = make(_sdpa(bench.torch, kind))
            call()
            ways[kind] = call
        except RuntimeError as failure:
            print(f"    {kind}: {' '.join(str(failure).split())[:80]}", flush=True)
    return ways


def _plain_attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Float32 attention of few heads, as torch or numpy writes it."""
    s = np.matmul(q, np.swapaxes(k, -1, -2)) / math.sqrt(q.shape[-1])
    if causal:
        rows = np.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        s = np.where(np.arange(k.shape[2]) <= rows, s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.matmul(p / p.sum(-1, keepdims=True), v)


def _attention(bench: Bench, b: int, h: int, kv: int, t: int, s: int, d: int, causal: bool) -> Case:
    (q, tq), (k, tk), (v, tv) = (bench.pair(b, n, m, d) for n, m in ((h, t), (kv, s), (kv, s)))
    y = bench.queue.empty(q.shape, q.dtype)
    bench.queue.fill(y, 99)

    def error() -> float:
        some = [tw.to_host(a[:1, :1]).astype(np.float32) for a in (q, k, v)]
        return bench.error(y[:1, :1], _plain_attention(*some, causal))

    more = {"enable_gqa": True} if h != kv else {}
    ways = _ways(bench, lambda sdpa: lambda: sdpa(tq, tk, tv, is_causal=causal and t == s, **more))
    work = 4e-12 * b * h * t * s * d / (2 if causal and t == s else 1)
    if t < 16:
        return Case(
            lambda: tw.attention(q, k, v, causal=causal, out=y), (k.nbytes + v.nbytes) / 1e9, "GB/s", error, 2e-3, ways
        )
    return Case(lambda: tw.attention(q, k, v, causal=causal, out=y), work, "TFLOP/s", error, 2e-3, ways)


@section
def attention(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 13 and 14."""
    b, h, t = (1, 2, 128) if bench.small else (4, 16, 4096)
    for d in (64, 128):
        for causal in (False, True):
            yield (
                f"B{b} H{h} L{t} D{d}{' causal' if causal else ''}",
                lambda d=d, c=causal: _attention(bench, b, h, h, t, t, d, c),
            )  # type: ignore[misc]


@section
def decode(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 16."""
    s = 300 if bench.small else 32768
    for b, h, kv in ((1, 32, 8), (4, 32, 8), (4, 32, 32)):
        yield f"B{b} H{h}/{kv} L1 of {s} D128", lambda b=b, h=h, kv=kv: _attention(bench, b, h, kv, 1, s, 128, False)  # type: ignore[misc]


@section
def attention_dx(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 15."""
    b, h, t = (1, 2, 128) if bench.small else (4, 16, 4096)

    def make(d: int, causal: bool) -> Case:
        (q, tq), (k, tk), (v, tv), (dy, tdy) = (bench.pair(b, h, t, d) for _ in range(4))
        y, lse = tw.attention(q, k, v, causal=causal, return_lse=True)
        outs = tuple(bench.queue.empty(q.shape, q.dtype) for _ in range(3))
        ways = {}
        if bench.torch is not None:
            leaves = [x.clone().requires_grad_() for x in (tq, tk, tv)]

            def theirs(sdpa: Callable[..., Any]) -> Call:
                result = sdpa(*leaves, is_causal=causal)
                return lambda: bench.torch.autograd.grad(result, leaves, tdy, retain_graph=True)

            ways = _ways(bench, theirs)

        def error() -> float:
            some = [tw.to_host(a[:1, :1]).astype(np.float32) for a in (dy, q, k, v, y)] + [tw.to_host(lse[:1, :1])]
            want = tw.attention_dx(*some, causal=causal)
            return max(bench.error(g[:1, :1], w) for g, w in zip(outs, want, strict=True))

        work = 10e-12 * b * h * t * t * d / (2 if causal else 1)
        call = lambda: tw.attention_dx(dy, q, k, v, y, lse, causal=causal, out=outs)  # noqa: E731
        return Case(call, work, "TFLOP/s", error, 3e-3, ways)

    for d in (64, 128):
        for causal in (False, True):
            yield f"B{b} H{h} L{t} D{d}{' causal' if causal else ''}", lambda d=d, c=causal: make(d, c)  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------- bound by memory


def _same(
    bench: Bench, ours: Callable[[], Any], theirs: Call | None, gigabytes: float, limit: float, want: Any = None
) -> Case:
    """A case whose result is torch's, or numpy's without it."""

    def error() -> float:
        if bench.torch is None and want is None:
            return 0.0
        got, other = ours(), theirs() if theirs is not None else want
        pairs = zip(got, other, strict=True) if isinstance(got, tuple) else [(got, other)]
        return max(bench.error(g, w) for g, w in pairs)

    return Case(ours, gigabytes, "GB/s", error, limit, {} if theirs is None else {"torch": theirs})


@section
def elementwise(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 1, and chains."""
    torch = bench.torch

    def copy(dtype: str, count: int) -> Case:
        x, tx = bench.pair(count, dtype=dtype)
        y = bench.queue.empty(x.shape, x.dtype)
        ty = None if torch is None else torch.empty_like(tx)
        return _same(
            bench,
            lambda: bench.queue.copy(x, y) or y,
            None if torch is None else lambda: ty.copy_(tx),
            2e-9 * x.nbytes,
            0,
        )

    def map_(name: str, dtype: str, count: int, theirs: Any) -> Case:
        x, tx = bench.pair(count, dtype=dtype)
        y = bench.queue.empty(x.shape, x.dtype)
        call = None if torch is None else lambda: theirs(tx)
        return _same(
            bench, lambda: getattr(tw, name)(x, out=y), call, 2e-9 * x.nbytes, 1e-3 if dtype == "float16" else 1e-6
        )

    def binary(dtype: str, count: int) -> Case:
        (x, tx), (z, tz) = bench.pair(count, dtype=dtype), bench.pair(count, dtype=dtype)
        y = bench.queue.empty(x.shape, x.dtype)
        call = None if torch is None else lambda: torch.add(tx, tz)
        return _same(bench, lambda: tw.add(x, z, out=y), call, 3e-9 * x.nbytes, 1e-3)

    def chain(count: int) -> Case:
        (x, tx), (z, tz) = bench.pair(count), bench.pair(count)
        y = bench.queue.empty(x.shape, x.dtype)
        call = None if torch is None else lambda: torch.nn.functional.gelu(tx * 1.5 + tz)
        program = "mul $0 1.5; add $2 $1; gelu $3"
        return _same(bench, lambda: tw.fused([x, z], program=program, out=y), call, 3e-9 * x.nbytes, 2e-3)

    n = 5000 if bench.small else 1 << 27
    functional = None if torch is None else torch.nn.functional
    yield "copy float32 0.5 GB", lambda: copy("float32", n)
    yield "copy float16 0.25 GB", lambda: copy("float16", n)
    yield "add float32", lambda: binary("float32", n)
    yield "add float16", lambda: binary("float16", n)
    for name in ("relu", "exp", "gelu", "sigmoid"):
        theirs = (
            None
            if torch is None
            else {"relu": functional.relu, "gelu": functional.gelu}.get(name) or getattr(torch, name)
        )
        for dtype in ("float32", "float16"):
            yield f"{name} {dtype}", lambda name=name, dtype=dtype, f=theirs: map_(name, dtype, n // 2, f)  # type: ignore[misc]
    yield "gelu(1.5 x + z) float16", lambda: chain(n // 2)


@section
def reductions(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Sums and maxima of rows, of columns and of all."""
    torch = bench.torch

    def make(name: str, dtype: str, axes: Any) -> Case:
        x, tx = bench.pair(*((40, 300) if bench.small else (16384, 8192)), dtype=dtype)
        y = bench.queue.empty(() if axes is None else (x.shape[1 - axes],), x.dtype)
        call = (
            None
            if torch is None
            else lambda: (tx.sum() if axes is None else tx.sum(axes)) if name == "reduce_sum" else tx.amax(axes)
        )
        return _same(bench, lambda: getattr(tw, name)(x, axes=axes, out=y), call, 1e-9 * x.nbytes, 2e-3)

    for dtype in ("float32", "float16"):
        for name, axes in (("reduce_sum", 1), ("reduce_sum", 0), ("reduce_sum", None), ("reduce_max", 1)):
            yield f"{name} {dtype} axes={axes}", lambda n=name, t=dtype, a=axes: make(n, t, a)  # type: ignore[misc]


@section
def norms(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 21."""
    torch = bench.torch
    rows, n = (20, 300) if bench.small else (16384, 4096)

    def gradient(theirs: Any, leaves: list[Any], dy: Any) -> Call | None:
        if torch is None:
            return None
        wanted = [x.clone().requires_grad_() for x in leaves]
        result = theirs(*wanted)
        return lambda: torch.autograd.grad(result, wanted, dy, retain_graph=True)

    def softmax(dtype: str, back: bool) -> Case:
        x, tx = bench.pair(rows, n, dtype=dtype)
        y, limit = bench.queue.empty(x.shape, x.dtype), 1e-3 if dtype == "float16" else 1e-5
        if not back:
            call = None if torch is None else lambda: torch.softmax(tx, -1)
            return _same(bench, lambda: tw.softmax(x, out=y), call, 2e-9 * x.nbytes, limit)
        dy, tdy = bench.pair(rows, n, dtype=dtype)
        tw.softmax(x, out=y)
        dx = bench.queue.empty(x.shape, x.dtype)
        call = gradient(lambda a: torch.softmax(a, -1), [tx], tdy)
        theirs = None if call is None else lambda: call()[0]
        return _same(bench, lambda: tw.softmax_dx(dy, y, out=dx), theirs, 3e-9 * x.nbytes, 3e-3)

    def norm(name: str, dtype: str, back: bool) -> Case:
        x, tx = bench.pair(rows, n, dtype=dtype)
        parameters = [bench.pair(n, dtype=dtype) for _ in range(2 if name == "layer_norm" else 1)]
        mine, other = [p[0] for p in parameters], [p[1] for p in parameters]
        y = bench.queue.empty(x.shape, x.dtype)
        limit = 2e-3 if dtype == "float16" else 1e-5

        def theirs(a: Any, *p: Any) -> Any:
            f = torch.nn.functional
            return f.layer_norm(a, (n,), *p) if len(p) == 2 else f.rms_norm(a, (n,), *p, eps=1e-5)

        op = getattr(tw, name)
        if not back:
            call = None if torch is None else lambda: theirs(tx, *other)
            return _same(bench, lambda: op(x, *mine, eps=1e-5, out=y), call, 2e-9 * x.nbytes, limit)
        dy, tdy = bench.pair(rows, n, dtype=dtype)
        stats = op(x, *mine, eps=1e-5, return_stats=True)[1:]
        dx = getattr(tw, f"{name}_dx")
        call = gradient(theirs, [tx, *other], tdy)
        return _same(bench, lambda: dx(dy, x, *stats, mine[0], return_dw=True), call, 3e-9 * x.nbytes, 5e-3)

    def batch(dtype: str, back: bool) -> Case:
        shape = (4, 8, 6, 6) if bench.small else (64, 256, 56, 56)
        x, tx = bench.pair(*shape, dtype=dtype)
        c = shape[1]
        (w, tw_), (b, tb), (m, tm), (v, tv) = (bench.pair(c, dtype="float32") for _ in range(4))
        v = tw.to_device(np.ones(c, np.float32), bench.queue.cl)
        f = None if torch is None else torch.nn.functional
        narrow = (lambda a: a.half()) if dtype == "float16" else (lambda a: a)
        ours_w, ours_b = (tw.cast(a, dtype=dtype) if dtype == "float16" else a for a in (w, b))
        if torch is not None:
            tv = torch.ones(c, device="cuda")
        call: Call | None = None
        if not back:
            if torch is not None:
                call = lambda: f.batch_norm(tx, tm, tv, narrow(tw_).float(), narrow(tb).float(), True, 0.0)  # noqa: E731
            ours = lambda: tw.batch_norm(x, ours_w, ours_b, m, v, training=True, momentum=0.0)  # noqa: E731
            return _same(bench, ours, call, 2e-9 * x.nbytes, 2e-3)
        dy, tdy = bench.pair(*shape, dtype=dtype)
        saved = tw.batch_norm(x, ours_w, ours_b, m, v, training=True, momentum=0.0, return_stats=True)
        if torch is not None:
            call = gradient(
                lambda a, p, q: f.batch_norm(a, tm, tv, p, q, True, 0.0), [tx, narrow(tw_).float(), tb], tdy
            )
        ours = lambda: tw.batch_norm_dx(dy, x, *saved[-2:], ours_w, training=True, return_dw=True)  # noqa: E731
        return _same(bench, ours, call, 3e-9 * x.nbytes, 5e-3)

    for dtype in ("float32", "float16"):
        for back in (False, True):
            way = "bwd" if back else "fwd"
            yield f"softmax {dtype} {way}", lambda t=dtype, k=back: softmax(t, k)  # type: ignore[misc]
            for name in ("layer_norm", "rms_norm"):
                yield f"{name} {dtype} {way}", lambda m=name, t=dtype, k=back: norm(m, t, k)  # type: ignore[misc]
            yield f"batch_norm {dtype} {way}", lambda t=dtype, k=back: batch(t, k)  # type: ignore[misc]


@section
def windows(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Pools, and row 12: depthwise convolutions."""
    torch = bench.torch
    f = None if torch is None else torch.nn.functional
    shape = (2, 8, 12, 12) if bench.small else (64, 256, 56, 56)

    def pool(name: str, dtype: str) -> Case:
        x, tx = bench.pair(*shape, dtype=dtype)
        theirs = None
        if torch is not None:
            theirs = (lambda: f.max_pool2d(tx, 2)) if name == "max_pool" else (lambda: f.avg_pool2d(tx, 2))
        ours = getattr(tw, name)
        return _same(bench, lambda: ours(x, kernel=2, stride=2), theirs, 1.25e-9 * x.nbytes, 1e-3)

    def depthwise(which: str) -> Case:
        c = shape[1]
        (x, tx), (w, tw_), (dy, tdy) = bench.pair(*shape), bench.pair(c, 1, 3, 3), bench.pair(*shape)
        leaves = []
        theirs: Call | None = None
        if torch is not None:
            leaves = [tx.clone().requires_grad_(), tw_.clone().requires_grad_()]
            result = f.conv2d(*leaves, padding=1, groups=c)
            i = 0 if which == "conv_dx" else 1
            theirs = lambda: torch.autograd.grad(result, leaves[i], tdy, retain_graph=True)[0]  # noqa: E731
            if which == "conv":
                theirs = lambda: f.conv2d(tx, tw_, padding=1, groups=c)  # noqa: E731
        ours: dict[str, Call] = {
            "conv": lambda: tw.conv(x, w, padding=1, groups=c),
            "conv_dx": lambda: tw.conv_dx(dy, w, shape=shape[2:], padding=1, groups=c),
            "conv_dw": lambda: tw.conv_dw(dy, x, kernel=3, padding=1, groups=c),
        }
        return _same(bench, ours[which], theirs, 2e-9 * x.nbytes, 5e-3)

    for dtype in ("float32", "float16"):
        for name in ("max_pool", "avg_pool"):
            yield f"{name} 2x2 {dtype}", lambda m=name, t=dtype: pool(m, t)  # type: ignore[misc]
    for which in ("conv", "conv_dx", "conv_dw"):
        yield f"depthwise 3x3 {which} float16", lambda w=which: depthwise(w)  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------------- recurrent


@section
def recurrent(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Rows 17 and 18: an LSTM over 512 steps of 64 sequences."""
    torch = bench.torch
    steps, count = (5, 3) if bench.small else (512, 64)

    def make(hidden: int, back: bool) -> Case:
        x, tx = bench.pair(steps, count, hidden)
        scale = 1 / math.sqrt(hidden)
        rng = np.random.default_rng(1)
        w, r = ((rng.standard_normal((1, 4 * hidden, hidden)) * scale).astype(np.float16) for _ in range(2))
        bias = (rng.standard_normal((1, 4 * hidden)) * 0.1).astype(np.float16)
        here = [tw.to_device(a, bench.queue.cl) for a in (w, r, bias)]
        dy, tdy = bench.pair(steps, count, hidden)
        ways: dict[str, Call] = {}
        layer = None
        if torch is not None:
            layer = torch.nn.LSTM(hidden, hidden).cuda().half()
            with torch.no_grad():
                for p, a in ((layer.weight_ih_l0, w[0]), (layer.weight_hh_l0, r[0]), (layer.bias_ih_l0, bias[0])):
                    p.copy_(torch.from_numpy(a))  # gates i, f, g, o as ours
                layer.bias_hh_l0.zero_()
            layer.flatten_parameters()
            leaf = tx.clone().requires_grad_()

            def forward() -> Any:
                with torch.no_grad():
                    return layer(tx)[0]

            def both() -> Any:
                y = layer(leaf)[0]
                return torch.autograd.grad(y, [leaf, *layer.parameters()], tdy)

            ways["cudnn"] = both if back else forward

        def ours() -> Any:
            if not back:
                return tw.lstm(x, *here)
            y, _, _, gates, cells = tw.lstm(x, *here, return_saved=True)
            return tw.lstm_dx(dy, x, here[0], here[1], y, gates, cells)

        def error() -> float:
            if torch is None:
                return 0.0
            return bench.error(ours()[0], ways["cudnn"]()[0] if back else ways["cudnn"]())

        work = 16e-12 * steps * count * hidden * hidden * (3 if back else 1)
        return Case(ours, work, "TFLOP/s", error, 2e-2, ways)

    for back in (False, True):
        for hidden in (64,) if bench.small else (512, 1024):
            yield (
                f"lstm T{steps} B{count} H{hidden} float16 {'fwd + bwd' if back else 'fwd'}",
                lambda h=hidden, k=back: make(h, k),
            )  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- pictures


def _picture(bench: Bench, height: int, width: int) -> Any:
    """Shapes and noise, smooth enough that edges are chains."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = 60 * np.sin(x / 37) + 60 * np.sin(y / 23 + x / 91) + 80 * (((x // 97 + y // 61) % 2) > 0)
    return np.clip(waves + 90 + bench.rng.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)


@section
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


@section
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


@section
def launches(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 24: calls on one element."""
    torch = bench.torch

    def make(name: str, count: int) -> Case:
        x, tx = bench.pair(count, dtype="float32")
        y = bench.queue.empty(x.shape, x.dtype)
        one = tw.to_device(np.ones(count, np.float32), bench.queue.cl)
        if name == "add":
            return _same(bench, lambda: tw.add(x, one, out=y), None if torch is None else lambda: tx + 1, 0, 1e-6)
        return _same(bench, lambda: tw.relu(x, out=y), None if torch is None else lambda: torch.relu(tx), 0, 1e-6)

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


@section
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
