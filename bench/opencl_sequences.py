"""Sections of opencl_layers.py: attention, its gradients, decoding, and an LSTM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tilework as tw
from opencl_cases import Bench, Call, Case


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


def attention(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 13 and 14."""
    b, h, t = (1, 2, 128) if bench.small else (4, 16, 4096)
    for d in (64, 128):
        for causal in (False, True):
            yield (
                f"B{b} H{h} L{t} D{d}{' causal' if causal else ''}",
                lambda d=d, c=causal: _attention(bench, b, h, h, t, t, d, c),
            )  # type: ignore[misc]


def decode(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 16."""
    s = 300 if bench.small else 32768
    for b, h, kv in ((1, 32, 8), (4, 32, 8), (4, 32, 32)):
        yield f"B{b} H{h}/{kv} L1 of {s} D128", lambda b=b, h=h, kv=kv: _attention(bench, b, h, kv, 1, s, 128, False)  # type: ignore[misc]


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
