"""The long short-term memory layer and its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_gemm import multiply
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import reduce
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
    flops,
    forward,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
    *,
    return_saved: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs an LSTM layer over x (T, N, I) with weights w (D, 4H, I), r (D, 4H, H), b (D, 4H), D directions of 1 or 2.

    Gates are in the order i, f, g, o; the second direction runs backward in time. h0 and c0 (D, N, H) are zero unless
    given. Sequence n has lengths[n] of the T steps; behind them y is zero, states stay, and x is never used. The result
    is y (T, N, D H) and the last states h and c (D, N, H); with return_saved also what ``lstm_dx`` needs: the gates
    (D, T, N, 4H) and the cells (D, T, N, H), float32 for 16-bit x. Hochreiter and Schmidhuber, "Long short-term
    memory", 1997.
    """
    ...


@op
def lstm_dx(
    dy: Array,
    x: Array,
    w: Array,
    r: Array,
    y: Array,
    gates: Array,
    cells: Array,
    h0: Array | None = None,
    c0: Array | None = None,
    lengths: Array | None = None,
    dh: Array | None = None,
    dc: Array | None = None,
    *,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of lstm in x, w, r, b, h0 and c0 from dy (T, N, D H) and what return_saved kept.

    dh and dc (D, N, H) are the gradients of the last states, zero unless given.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _state(state: Any, x: Any, w: Any, r: Any) -> Any:
    return np.zeros((w.shape[0], x.shape[1], r.shape[2])) if state is None else state


def _lengths(lengths: Any, x: Any) -> Any:
    return np.full(x.shape[1], x.shape[0]) if lengths is None else np.asarray(lengths, np.int64)


def _places(length: Any, step: int, direction: int) -> tuple[Any, Any]:
    """The sequences that have a step, and where it lies in time."""
    rows = np.flatnonzero(step < length)
    return rows, length[rows] - 1 - step if direction else np.full(rows.size, step)


def _run(x: Any, w: Any, r: Any, b: Any, h0: Any, c0: Any, lengths: Any) -> tuple[Any, ...]:
    """y, h, c, gates, cells, and the largest size of a sum."""
    (steps, count, _), hidden, length = x.shape, r.shape[2], _lengths(lengths, x)
    h, c = _state(h0, x, w, r).copy(), _state(c0, x, w, r).copy()
    y = np.zeros((steps, count, w.shape[0] * hidden))
    gates, cells = np.zeros((w.shape[0], steps, count, 4 * hidden)), np.zeros((w.shape[0], steps, count, hidden))
    size = 1.0
    for d in range(w.shape[0]):
        for step in range(steps):
            rows, t = _places(length, step, d)
            a = x[t, rows] @ w[d].T + h[d, rows] @ r[d].T
            sums = np.abs(x[t, rows]) @ np.abs(w[d].T) + np.abs(h[d, rows]) @ np.abs(r[d].T)
            if b is not None:
                a, sums = a + b[d], sums + np.abs(b[d])
            size = max(size, float(np.nan_to_num(sums).max(initial=0.0)))
            parts = np.split(a, 4, axis=-1)
            i, f, g, o = (np.tanh(p) if k == 2 else _sigmoid(p) for k, p in enumerate(parts))
            c[d, rows] = f * c[d, rows] + i * g
            h[d, rows] = o * np.tanh(c[d, rows])
            y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
            gates[d, t, rows], cells[d, t, rows] = np.concatenate([i, f, g, o], axis=-1), c[d, rows]
    return y, h, c, gates, cells, size


@reference(lstm)
def _(*operands: Any, return_saved: bool) -> Any:
    return _run(*operands)[: 5 if return_saved else 3]


@reference(lstm_dx)
def _lstm_dx(
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    cells: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    dh: Any,
    dc: Any,
) -> Any:
    (steps, _, _), hidden, length = x.shape, r.shape[2], _lengths(lengths, x)
    h0, c0, dh, dc = (_state(s, x, w, r).copy() for s in (h0, c0, dh, dc))
    dx, dw, dr, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(r.shape), np.zeros(w.shape[:2])
    for d in range(w.shape[0]):
        of = slice(d * hidden, (d + 1) * hidden)
        for step in reversed(range(steps)):
            rows, t = _places(length, step, d)
            before = t + 1 if d else t - 1
            h, c = (y[before, rows, of], cells[d, before, rows]) if step else (h0[d, rows], c0[d, rows])
            i, f, g, o = np.split(gates[d, t, rows], 4, axis=-1)
            q, slope = np.tanh(cells[d, t, rows]), dh[d, rows] + dy[t, rows, of]
            cell = dc[d, rows] + slope * o * (1 - q * q)
            parts = [cell * g * i * (1 - i), cell * c * f * (1 - f), cell * i * (1 - g * g), slope * q * o * (1 - o)]
            da = np.concatenate(parts, axis=-1)
            dh[d, rows], dc[d, rows] = da @ r[d], cell * f
            dx[t, rows] += da @ w[d]
            dw[d], dr[d], db[d] = dw[d] + da.T @ x[t, rows], dr[d] + da.T @ h, db[d] + da.sum(axis=0)
    return dx, dw, dr, db, dh, dc


# What is summed: gates are sums of products, and their error passes on to states of size 1 or of the cells.
def _scale(*operands: Any, return_saved: bool) -> Any:
    y, h, c, gates, cells, size = _run(*operands)
    one, top = np.float64(size), size * max(1.0, float(np.nan_to_num(np.abs(cells)).max(initial=0.0)))
    kept = (np.broadcast_to(one, gates.shape), np.broadcast_to(top, cells.shape)) if return_saved else ()
    return (np.broadcast_to(one, y.shape), np.broadcast_to(one, h.shape), np.broadcast_to(top, c.shape), *kept)


def _dx_scale(*operands: Any) -> Any:
    sizes = _lstm_dx(*(None if a is None else a if a.dtype.kind in "iu" else np.abs(a) for a in operands))
    return tuple(np.broadcast_to(np.abs(s).max(initial=0.0), s.shape) for s in sizes)


lstm.rules["scale"] = _scale
lstm_dx.rules["scale"] = _dx_scale
tolerance(lstm, ulp=8)
tolerance(lstm_dx, ulp=16)
for _target in (lstm, lstm_dx):
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- gradients


@forward(lstm)
def _(*operands: Array, return_saved: bool) -> tuple[Any, Any]:
    results = lstm(*operands, return_saved=True)
    return results if return_saved else results[:3], (results[0], *results[3:])


@backward(lstm, of=("x", "w", "r", "b", "h0", "c0"))
def _(
    dy: Array,
    x: Array,
    w: Array,
    r: Array,
    b: Array,
    h0: Array,
    c0: Array,
    lengths: Array,
    *,
    saved: tuple[Array, Array, Array] | None,
    wanted: Wanted,
    return_saved: bool,
) -> Any:
    if saved is None:
        results = lstm(x, w, r, b, h0, c0, lengths, return_saved=True)
        saved = (results[0], *results[3:])
    grads = lstm_dx(dy, x, w, r, *saved, h0, c0, lengths)
    return tuple(g if n in wanted else None for g, n in zip(grads, lstm.differentiable, strict=True))


# ------------------------------------------------------------------------------------------------- samples


@samples(lstm)
def _(fill: Fill) -> Iterator[Sample]:
    def layer(steps: int, count: int, inputs: int, hidden: int, directions: int = 1) -> list[Any]:
        shapes = ((steps, count, inputs), (directions, 4 * hidden, inputs), (directions, 4 * hidden, hidden))
        half = np.asarray(0.5, fill.dtype)
        return [*(fill(*s) * half for s in shapes), fill(directions, 4 * hidden) * half]

    yield sample(*layer(1, 1, 1, 1))
    state = fill(2, 3, 2), fill(2, 3, 2)
    yield sample(*layer(4, 3, 3, 2, 2), *state, np.array([4, 0, 2], np.int32), return_saved=True)
    yield sample(*layer(3, 9, 2, 5)[:3])
    yield sample(*layer(2, 1, 3, 17))
    yield sample(*layer(2, 2, 3, 9), fill(1, 2, 9))
    x, w, r, b = layer(3, 5, 4, 3, 2)
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, b, None, None, np.array([3, 1, 2, 3, 1]))
    yield sample(*layer(0, 2, 3, 2), *(s[:1, :2] for s in state))
    yield sample(*layer(2, 0, 3, 2))
    yield sample(*layer(2, 3, 0, 2))


@samples(lstm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(lstm.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (7 - len(made.args))]
        x, w, r, b, h0, c0, lengths = operands
        y, h, c, gates, cells = lstm.reference(x, w, r, b, h0, c0, lengths, return_saved=True)
        ends = (fill(*h.shape), fill(*c.shape)) if k % 2 else (None, None)
        yield sample(fill(*y.shape), x, w, r, y, gates, cells, h0, c0, lengths, *ends)


@errors(lstm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, r, b = fill(4, 3, 5), fill(1, 8, 5), fill(1, 8, 2), fill(1, 8)
    yield ErrorCase(sample(x[0], w, r), ShapeError, "x has 2 dimensions; want 3")
    yield ErrorCase(sample(x, w[..., :4], r), ShapeError, "w has shape (1, 8, 4) but x has I=5")
    yield ErrorCase(sample(x, w, fill(1, 8, 3)), ShapeError, "want r (D, 4H, H) and w (D, 4H, I)")
    yield ErrorCase(sample(x, fill(3, 8, 5), fill(3, 8, 2)), ShapeError, "w has D=3 directions; want 1 or 2")
    yield ErrorCase(sample(x, fill(2, 8, 5), r), ShapeError, "r has shape (1, 8, 2) but w has (2, 8, 5)")
    yield ErrorCase(sample(x, w, r, fill(1, 7)), ShapeError, "b has shape (1, 7); want (1, 8)")
    yield ErrorCase(sample(x, w, r, b, fill(1, 2, 2)), ShapeError, "h0 has shape (1, 2, 2); want (1, 3, 2)")
    yield ErrorCase(sample(x, w, r, b, None, fill(1, 3, 3)), ShapeError, "c0 has shape (1, 3, 3); want (1, 3, 2)")
    for bad in (5, -1):
        lengths = np.array([4, 1, bad])
        made = sample(x, w, r, b, None, None, lengths)
        yield ErrorCase(made, IndexContentError, f"lengths has {bad} at position 2; want 0 to T=4")
    yield ErrorCase(sample(x, w, r, b, None, None, np.array([4, 1])), ShapeError, "lengths has shape (2,); want (3,)")
    yield ErrorCase(sample(x, w, r, b, None, None, fill(3)), DTypeError, "want int32 or int64")


@errors(lstm_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    wide = np.float32 if is_narrow(fill.dtype) else fill.dtype
    x, w, r, y = fill(4, 3, 5), fill(1, 8, 5), fill(1, 8, 2), fill(4, 3, 2)
    gates, cells = np.zeros((1, 4, 3, 8), wide), np.zeros((1, 4, 3, 2), wide)
    yield ErrorCase(sample(y[:3], x, w, r, y, gates, cells), ShapeError, "dy has shape (3, 3, 2); want (4, 3, 2)")
    yield ErrorCase(sample(y, x, w, r, y, gates[..., :6], cells), ShapeError, "gates has shape (1, 4, 3, 6); want")
    yield ErrorCase(sample(y, x, w, r, y, gates, cells.astype(np.int32)), DTypeError, "cells has dtype int32; want")
    made = sample(y, x, w, r, y, gates, cells, None, None, None, fill(1, 3, 3))
    yield ErrorCase(made, ShapeError, "dh has shape (1, 3, 3); want (1, 3, 2)")


def _shapes(steps: int, count: int, hidden: int) -> tuple[tuple[int, ...], ...]:
    return (steps, count, hidden), (1, 4 * hidden, hidden), (1, 4 * hidden, hidden)


@workloads(lstm)
def _() -> Iterator[Workload]:
    for steps, count, hidden in ((100, 1, 256), (50, 32, 512)):
        shapes = (*_shapes(steps, count, hidden), (1, 4 * hidden))
        yield Workload(f"T{steps} B{count} H{hidden}", shapes, sets=("rnn",))


@workloads(lstm_dx)
def _() -> Iterator[Workload]:
    for steps, count, hidden in ((100, 1, 256), (50, 32, 512)):
        y, kept = (steps, count, hidden), ((1, steps, count, 4 * hidden), (1, steps, count, hidden))
        yield Workload(f"T{steps} B{count} H{hidden}", (y, *_shapes(steps, count, hidden), y, *kept), sets=("rnn",))


@fills(lstm)
def _(fill: Fill, x: Sizes, w: Sizes, r: Sizes, b: Sizes, *others: Any, **attrs: Any) -> Any:
    small = np.asarray(1 / math.sqrt(r[2]), fill.dtype)
    return fill(*x), fill(*w) * small, fill(*r) * small, fill(*b) * small, None, None, None


@fills(lstm_dx)
def _(fill: Fill, dy: Sizes, x: Sizes, w: Sizes, r: Sizes, y: Sizes, gates: Sizes, cells: Sizes, *others: Any) -> Any:
    small = np.asarray(1 / math.sqrt(r[2]), fill.dtype)
    kept = (np.tanh(fill.positive(*s)) for s in (y, gates, cells))
    return fill(*dy), fill(*x), fill(*w) * small, fill(*r) * small, *kept, *[None] * 5


@flops(lstm)
def _(x: Sizes, w: Sizes, *others: Any, **attrs: Any) -> float:
    return 2.0 * x[0] * x[1] * w[0] * w[1] * (x[2] + w[1] // 4)


@flops(lstm_dx)
def _(dy: Sizes, x: Sizes, w: Sizes, *others: Any) -> float:
    return 4.0 * x[0] * x[1] * w[0] * w[1] * (x[2] + w[1] // 4)


# ------------------------------------------------------------------------------------------------- OpenCL


class _Steps:
    """Launches lstm.cl once per step and direction; operands widened once."""

    def __init__(self, queue: Queue, x: Any, w: Any, r: Any, lengths: Any) -> None:
        self.queue = queue
        self.dtype = np.dtype(np.float32) if is_narrow(x.dtype) else x.dtype
        (self.steps, self.count, self.inputs), self.directions, self.hidden = x.shape, w.shape[0], r.shape[2]
        self.x, self.w, self.r = (self.wide(a) for a in (x, w, r))
        if lengths is not None:
            queue.check_indices("lengths", lengths, self.steps + 1)
        self.lengths, self.some, self.type = queue.as_int64(lengths), lengths is not None, x.dtype

    def wide(self, a: Any) -> Any:
        """A contiguous copy in the type of the sums, or the array itself."""
        a = self.queue.contiguous(a)
        if a.dtype == self.dtype:
            return a
        copy = self.queue.empty(a.shape, self.dtype)
        self.queue.cast(a, copy)
        return copy

    def empty(self, *shape: int) -> Any:
        return self.queue.empty(shape, self.dtype)

    def state(self, given: Any) -> Any:
        """A copy of a state, zero where it is not given."""
        made = self.empty(self.directions, self.count, self.hidden)
        if given is None:
            self.queue.fill(made, 0)
        else:
            self.queue.cast(self.queue.contiguous(given), made)
        return made

    def launch(self, kernel: str, direction: int, step: int, *arrays: Any) -> None:
        sizes = (direction, self.directions, step, self.steps, self.count, self.hidden, self.some)
        args = (self.lengths, *arrays, np.array(sizes, np.int64))
        self.queue.launch("lstm.cl", kernel, self.count * self.hidden, GROUP_SIZE, args, DTYPE=self.type)


@opencl(lstm)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    y: Any,
    h: Any,
    c: Any,
    *kept: Any,
    return_saved: bool,
) -> None:
    run = _Steps(queue, x, w, r, lengths)
    wide, rows = 4 * run.hidden, run.steps * run.count
    gates, cells = kept or (run.empty(run.directions, run.steps, run.count, n) for n in (wide, run.hidden))
    now, cell = [run.state(h0), run.state(h0)], run.state(c0)
    bias = None if b is None else run.wide(b)
    for d in range(run.directions):
        if rows and run.inputs:
            flat = run.x.reshape(rows, run.inputs)
            multiply(queue, flat, run.w[d].T, gates[d].reshape(rows, wide), None if bias is None else bias[d])
        elif rows:
            target = gates[d].reshape(rows, wide)
            queue.fill(target, 0) if bias is None else queue.copy(bias[d], target)
    for step in range(run.steps):
        for d in range(run.directions):
            run.launch("step_on", d, step, run.r, now[step % 2], now[1 - step % 2], cell, gates, cells, y)
    queue.cast(now[run.steps % 2], h)
    queue.cast(cell, c)


@opencl(lstm_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    cells: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    dh: Any,
    dc: Any,
    *results: Any,
) -> None:
    run = _Steps(queue, x, w, r, lengths)
    wide, rows = 4 * run.hidden, run.steps * run.count
    first_h, first_c, last_h, cell = (run.state(s) for s in (h0, c0, dh, dc))
    da, before = (run.empty(run.directions, run.steps, run.count, n) for n in (wide, run.hidden))
    start = run.empty(run.directions, run.count, run.hidden)
    arrays = (run.r, gates, cells, dy, y, first_h, first_c, last_h, cell, da, before, start)
    for step in reversed(range(-1, run.steps)):
        for d in range(run.directions):
            run.launch("step_dx", d, step, *arrays)
    dx, dw, dr, db = (run.empty(*a.shape) for a in results[:4])
    if rows == 0:
        for a in (dx, dw, dr, db):
            queue.fill(a, 0)
    else:
        for d in range(run.directions):
            own, turned = da[d].reshape(rows, wide), da[d].reshape(rows, wide).T
            if run.inputs:
                multiply(queue, turned, run.x.reshape(rows, run.inputs), dw[d])
            multiply(queue, turned, before[d].reshape(rows, run.hidden), dr[d])
            reduce(queue, "sum", own, db[d], (0,))
        if run.inputs and run.hidden:
            # Gates of all directions side by side, against their weights one below the other.
            beside = run.empty(run.steps, run.count, run.directions, wide)
            for d in range(run.directions):
                queue.copy(da[d], beside[:, :, d])
            multiply(queue, beside.reshape(rows, -1), run.w.reshape(-1, run.inputs), dx.reshape(rows, run.inputs))
    for made, result in zip((dx, dw, dr, db, start, cell), results, strict=True):
        queue.cast(made, result)
