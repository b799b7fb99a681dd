"""Sections of opencl_layers.py that memory bounds: elementwise ops, reductions, norms, windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tilework as tw
from opencl_cases import Bench, Call, Case, same


def elementwise(bench: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Row 1, and chains."""
    torch = bench.torch

    def copy(dtype: str, count: int) -> Case:
        x, tx = bench.pair(count, dtype=dtype)
        y = bench.queue.empty(x.shape, x.dtype)
        ty = None if torch is None else torch.empty_like(tx)
        return same(
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
        return same(
            bench, lambda: getattr(tw, name)(x, out=y), call, 2e-9 * x.nbytes, 1e-3 if dtype == "float16" else 1e-6
        )

    def binary(dtype: str, count: int) -> Case:
        (x, tx), (z, tz) = bench.pair(count, dtype=dtype), bench.pair(count, dtype=dtype)
        y = bench.queue.empty(x.shape, x.dtype)
        call = None if torch is None else lambda: torch.add(tx, tz)
        return same(bench, lambda: tw.add(x, z, out=y), call, 3e-9 * x.nbytes, 1e-3)

    def chain(count: int) -> Case:
        (x, tx), (z, tz) = bench.pair(count), bench.pair(count)
        y = bench.queue.empty(x.shape, x.dtype)
        call = None if torch is None else lambda: torch.nn.functional.gelu(tx * 1.5 + tz)
        program = "mul $0 1.5; add $2 $1; gelu $3"
        return same(bench, lambda: tw.fused([x, z], program=program, out=y), call, 3e-9 * x.nbytes, 2e-3)

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
        return same(bench, lambda: getattr(tw, name)(x, axes=axes, out=y), call, 1e-9 * x.nbytes, 2e-3)

    for dtype in ("float32", "float16"):
        for name, axes in (("reduce_sum", 1), ("reduce_sum", 0), ("reduce_sum", None), ("reduce_max", 1)):
            yield f"{name} {dtype} axes={axes}", lambda n=name, t=dtype, a=axes: make(n, t, a)  # type: ignore[misc]


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
            return same(bench, lambda: tw.softmax(x, out=y), call, 2e-9 * x.nbytes, limit)
        dy, tdy = bench.pair(rows, n, dtype=dtype)
        tw.softmax(x, out=y)
        dx = bench.queue.empty(x.shape, x.dtype)
        call = gradient(lambda a: torch.softmax(a, -1), [tx], tdy)
        theirs = None if call is None else lambda: call()[0]
        return same(bench, lambda: tw.softmax_dx(dy, y, out=dx), theirs, 3e-9 * x.nbytes, 3e-3)

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
            return same(bench, lambda: op(x, *mine, eps=1e-5, out=y), call, 2e-9 * x.nbytes, limit)
        dy, tdy = bench.pair(rows, n, dtype=dtype)
        stats = op(x, *mine, eps=1e-5, return_stats=True)[1:]
        dx = getattr(tw, f"{name}_dx")
        call = gradient(theirs, [tx, *other], tdy)
        return same(bench, lambda: dx(dy, x, *stats, mine[0], return_dw=True), call, 3e-9 * x.nbytes, 5e-3)

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
            return same(bench, ours, call, 2e-9 * x.nbytes, 2e-3)
        dy, tdy = bench.pair(*shape, dtype=dtype)
        saved = tw.batch_norm(x, ours_w, ours_b, m, v, training=True, momentum=0.0, return_stats=True)
        if torch is not None:
            call = gradient(
                lambda a, p, q: f.batch_norm(a, tm, tv, p, q, True, 0.0), [tx, narrow(tw_).float(), tb], tdy
            )
        ours = lambda: tw.batch_norm_dx(dy, x, *saved[-2:], ours_w, training=True, return_dw=True)  # noqa: E731
        return same(bench, ours, call, 3e-9 * x.nbytes, 5e-3)

    for dtype in ("float32", "float16"):
        for back in (False, True):
            way = "bwd" if back else "fwd"
            yield f"softmax {dtype} {way}", lambda t=dtype, k=back: softmax(t, k)  # type: ignore[misc]
            for name in ("layer_norm", "rms_norm"):
                yield f"{name} {dtype} {way}", lambda m=name, t=dtype, k=back: norm(m, t, k)  # type: ignore[misc]
            yield f"batch_norm {dtype} {way}", lambda t=dtype, k=back: batch(t, k)  # type: ignore[misc]


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
        return same(bench, lambda: ours(x, kernel=2, stride=2), theirs, 1.25e-9 * x.nbytes, 1e-3)

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
        return same(bench, ours[which], theirs, 2e-9 * x.nbytes, 5e-3)

    for dtype in ("float32", "float16"):
        for name in ("max_pool", "avg_pool"):
            yield f"{name} 2x2 {dtype}", lambda m=name, t=dtype: pool(m, t)  # type: ignore[misc]
    for which in ("conv", "conv_dx", "conv_dw"):
        yield f"depthwise 3x3 {which} float16", lambda w=which: depthwise(w)  # type: ignore[misc]
