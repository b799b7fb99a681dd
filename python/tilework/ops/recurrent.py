"""Recurrent layers, lstm, gru and rnn, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends import opencl_recurrent
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
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
    peep: Array | None = None,
    *,
    clip: float = 0.0,
    coupled: bool = False,
    return_saved: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs an LSTM layer over x (T, N, I) with weights w (D, 4H, I), r (D, 4H, H), b (D, 4H), D directions of 1 or 2.

    Gates are in the order i, f, g, o: c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c). Peepholes peep
    (D, 3H) let i and f see the cell before and o the new one; coupled gates are f = 1 - i; a clip keeps cells in
    [-clip, clip], and gradients do not pass where it did. The second direction runs backward in time. h0 and c0
    (D, N, H) are zero unless given. Sequence n has lengths[n] of the T steps; behind them y is zero, states stay, and x
    is never used. The result is y (T, N, D H) and the last states h and c (D, N, H); with return_saved also what
    ``lstm_dx`` needs: the gates (D, T, N, 4H) and the cells (D, T, N, H), float32 for 16-bit x. Hochreiter and
    Schmidhuber, "Long short-term memory", 1997.
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
    peep: Array | None = None,
    *,
    clip: float = 0.0,
    coupled: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of lstm in x, w, r, b, h0, c0 and peep from dy (T, N, D H) and what return_saved kept.

    dh and dc (D, N, H) are the gradients of the last states, zero unless given.
    """
    ...


@op
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    rb: Array | None = None,
    h0: Array | None = None,
    lengths: Array | None = None,
    *,
    reset_after: bool = True,
    return_saved: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs a GRU layer over x (T, N, I) with weights w (D, 3H, I), r (D, 3H, H) and biases b, rb (D, 3H).

    Gates are in the order r, z, n: h = (1 - z) n + z h, with n = tanh(x wᵀ + b + r (h rᵀ + rb)) as in PyTorch, or with
    reset_after=False n = tanh(x wᵀ + b + (r h) rᵀ + rb) as in the paper. Directions, h0 and lengths as in lstm. The
    result is y (T, N, D H) and the last state h (D, N, H); with return_saved also what ``gru_dx`` needs, (D, T, N, 4H),
    float32 for 16-bit x. Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.
    """
    ...


@op
def gru_dx(
    dy: Array,
    x: Array,
    w: Array,
    r: Array,
    y: Array,
    gates: Array,
    h0: Array | None = None,
    lengths: Array | None = None,
    dh: Array | None = None,
    *,
    reset_after: bool = True,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of gru in x, w, r, b, rb and h0 from dy (T, N, D H) and what return_saved kept.

    dh (D, N, H) is the gradient of the last state, zero unless given.
    """
    ...


@op
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    h0: Array | None = None,
    lengths: Array | None = None,
    *,
    activation: Literal["tanh", "relu"] = "tanh",
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs h = activation(x wᵀ + b + h rᵀ) over x (T, N, I) with w (D, H, I), r (D, H, H), b (D, H).

    Directions, h0 and lengths as in lstm. The result is y (T, N, D H) and the last state h (D, N, H). Elman, "Finding
    structure in time", 1990.
    """
    ...


@op
def rnn_dx(
    dy: Array,
    x: Array,
    w: Array,
    r: Array,
    y: Array,
    h0: Array | None = None,
    lengths: Array | None = None,
    dh: Array | None = None,
    *,
    activation: Literal["tanh", "relu"] = "tanh",
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of rnn in x, w, r, b and h0 from dy (T, N, D H) and the result y (T, N, D H).

    dh (D, N, H) is the gradient of the last state, zero unless given.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _state(state: Any, x: Any, r: Any) -> Any:
    return np.zeros((r.shape[0], x.shape[1], r.shape[2])) if state is None else state.copy()


def _visits(x: Any, r: Any, lengths: Any, *, back: bool = False) -> Iterator[tuple[int, Any, Any, Any]]:
    """Steps of each direction in order, or back from the last: the direction, its sequences that have the step, where
    it lies in time, and where the step before lies, None for the first."""
    steps, count = x.shape[:2]
    length = np.full(count, steps) if lengths is None else np.asarray(lengths, np.int64)
    for d in range(r.shape[0]):
        for step in reversed(range(steps)) if back else range(steps):
            rows = np.flatnonzero(step < length)
            t = length[rows] - 1 - step if d else np.full(rows.size, step)
            yield d, rows, t, (t + 1 if d else t - 1) if step else None


class _Size:
    """The largest sum of sizes that a sum of products has had."""

    def __init__(self) -> None:
        self.top = 1.0

    def product(self, x: Any, w: Any, bias: Any = 0.0, beside: Any = 0.0) -> Any:
        """X wᵀ + bias + beside, where the size of beside is already counted."""
        sums = np.abs(x) @ np.abs(w).T + np.abs(bias) + np.abs(beside)
        self.top = max(self.top, float(np.nan_to_num(sums).max(initial=0.0)))
        return x @ w.T + bias + beside

    def sum(self, a: Any, b: Any) -> Any:
        """A + b, where the size of a is already counted."""
        self.top = max(self.top, float(np.nan_to_num(np.abs(a) + np.abs(b)).max(initial=0.0)))
        return a + b


def _zeros(x: Any, r: Any, blocks: int) -> Any:
    return np.zeros((r.shape[0], *x.shape[:2], blocks * r.shape[2]))


def _run_lstm(
    x: Any, w: Any, r: Any, b: Any, h0: Any, c0: Any, lengths: Any, peep: Any, *, clip: float, coupled: bool
) -> tuple[Any, ...]:
    """y, h, c, gates, cells, and the largest size of a sum."""
    hidden, size = r.shape[2], _Size()
    h, c, y = _state(h0, x, r), _state(c0, x, r), np.zeros((*x.shape[:2], r.shape[0] * r.shape[2]))
    gates, cells = _zeros(x, r, 4), _zeros(x, r, 1)
    for d, rows, t, _ in _visits(x, r, lengths):
        a = size.product(h[d, rows], r[d], 0.0 if b is None else b[d], size.product(x[t, rows], w[d]))
        i, f, g, o = np.split(a, 4, axis=-1)
        seen = None if peep is None else peep[d].reshape(3, hidden)
        if seen is not None:
            i, f = size.sum(i, seen[0] * c[d, rows]), size.sum(f, seen[1] * c[d, rows])
        i, g = _sigmoid(i), np.tanh(g)
        f = 1 - i if coupled else _sigmoid(f)
        cell = f * c[d, rows] + i * g
        cell = np.clip(cell, -clip, clip) if clip > 0 else cell
        o = _sigmoid(o if seen is None else size.sum(o, seen[2] * cell))
        c[d, rows], h[d, rows] = cell, o * np.tanh(cell)
        y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
        gates[d, t, rows], cells[d, t, rows] = np.concatenate([i, f, g, o], axis=-1), c[d, rows]
    return y, h, c, gates, cells, size.top


def _run_gru(x: Any, w: Any, r: Any, b: Any, rb: Any, h0: Any, lengths: Any, *, reset_after: bool) -> tuple[Any, ...]:
    """y, h, gates, and the largest size of a sum."""
    hidden, size = r.shape[2], _Size()
    h, y, gates = _state(h0, x, r), np.zeros((*x.shape[:2], r.shape[0] * r.shape[2])), _zeros(x, r, 4)
    two = slice(2 * hidden)
    last = slice(2 * hidden, None)
    for d, rows, t, _ in _visits(x, r, lengths):
        own, before = (np.zeros(3 * hidden) if rb is None else rb[d]), h[d, rows]
        a = size.product(x[t, rows], w[d], 0.0 if b is None else b[d])
        reset, z = np.split(_sigmoid(size.product(before, r[d, two], own[two], a[:, two])), 2, axis=-1)
        if reset_after:
            m = size.product(before, r[d, last], own[last])
            n = np.tanh(a[:, last] + reset * m)
        else:
            m = reset * before
            n = np.tanh(size.product(m, r[d, last], own[last], a[:, last]))
        h[d, rows] = (1 - z) * n + z * before
        y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
        gates[d, t, rows] = np.concatenate([reset, z, n, m], axis=-1)
    return y, h, gates, size.top * max(1.0, float(np.nan_to_num(np.abs(h)).max(initial=0.0)))


def _run_rnn(x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any, *, activation: str) -> tuple[Any, ...]:
    """y, h, and the largest size of a sum."""
    hidden, size = r.shape[2], _Size()
    h, y = _state(h0, x, r), np.zeros((*x.shape[:2], r.shape[0] * r.shape[2]))
    for d, rows, t, _ in _visits(x, r, lengths):
        a = size.product(h[d, rows], r[d], 0.0 if b is None else b[d], size.product(x[t, rows], w[d]))
        h[d, rows] = np.where(a <= 0, 0.0, a) if activation == "relu" else np.tanh(a)
        y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
    return y, h, size.top


@reference(lstm)
def _(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    return _run_lstm(*operands, **attrs)[: 5 if return_saved else 3]


@reference(gru)
def _(*operands: Any, return_saved: bool, reset_after: bool) -> Any:
    return _run_gru(*operands, reset_after=reset_after)[: 3 if return_saved else 2]


@reference(rnn)
def _(*operands: Any, activation: str) -> Any:
    return _run_rnn(*operands, activation=activation)[:2]


def _gradients(x: Any, w: Any, r: Any) -> tuple[Any, ...]:
    """Zeros for dx, dw, dr and db."""
    return np.zeros(x.shape), np.zeros(w.shape), np.zeros(r.shape), np.zeros(w.shape[:2])


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
    peep: Any,
    *,
    clip: float,
    coupled: bool,
    minus: Any = np.subtract,
) -> Any:
    hidden = r.shape[2]
    h0, c0, dh, dc = (_state(s, x, r) for s in (h0, c0, dh, dc))
    dx, dw, dr, db = _gradients(x, w, r)
    dpeep = np.zeros((r.shape[0], 3, hidden))
    for d, rows, t, before in _visits(x, r, lengths, back=True):
        of = slice(d * hidden, (d + 1) * hidden)
        first = before is None
        h, c = (h0[d, rows], c0[d, rows]) if first else (y[before, rows, of], cells[d, before, rows])
        i, f, g, o = np.split(gates[d, t, rows], 4, axis=-1)
        seen = None if peep is None else peep[d].reshape(3, hidden)
        now = cells[d, t, rows]
        q, slope = np.tanh(now), dh[d, rows] + dy[t, rows, of]
        ao = slope * q * o * (1 - o)
        cell = dc[d, rows] + slope * o * (1 - q * q)
        if seen is not None:
            cell = cell + ao * seen[2]
        if clip > 0:
            cell = np.where(np.abs(now) < clip, cell, 0.0)
        ai = cell * (minus(g, c) if coupled else g) * i * (1 - i)
        af = np.zeros_like(ai) if coupled else cell * c * f * (1 - f)
        da = np.concatenate([ai, af, cell * i * (1 - g * g), ao], axis=-1)
        dh[d, rows], dc[d, rows] = da @ r[d], cell * f
        if seen is not None:
            dc[d, rows] += ai * seen[0] + af * seen[1]
        dx[t, rows] += da @ w[d]
        dw[d], dr[d], db[d] = dw[d] + da.T @ x[t, rows], dr[d] + da.T @ h, db[d] + da.sum(axis=0)
        dpeep[d] += np.stack([(ai * c).sum(axis=0), (af * c).sum(axis=0), (ao * now).sum(axis=0)])
    return dx, dw, dr, db, dh, dc, *(() if peep is None else (dpeep.reshape(peep.shape),))


@reference(gru_dx)
def _gru_dx(
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    h0: Any,
    lengths: Any,
    dh: Any,
    *,
    reset_after: bool,
    minus: Any = np.subtract,
) -> Any:
    hidden = r.shape[2]
    h0, dh = (_state(s, x, r) for s in (h0, dh))
    dx, dw, dr, db = _gradients(x, w, r)
    drb = np.zeros(db.shape)
    for d, rows, t, before in _visits(x, r, lengths, back=True):
        of = slice(d * hidden, (d + 1) * hidden)
        h = h0[d, rows] if before is None else y[before, rows, of]
        reset, z, n, m = np.split(gates[d, t, rows], 4, axis=-1)
        slope = dh[d, rows] + dy[t, rows, of]
        dn, dz = slope * (1 - z) * (1 - n * n), slope * minus(h, n) * z * (1 - z)
        if reset_after:  # m = h rᵀ + rb
            dm, past = dn * reset, slope * z
            da = np.concatenate([dn * m * reset * (1 - reset), dz, dn], axis=-1)
            beside = np.concatenate([da[:, : 2 * hidden], dm], axis=-1)
            dr[d] += beside.T @ h
        else:  # m = reset h
            dm = dn @ r[d, 2 * hidden :]
            past = slope * z + dm * reset
            da = beside = np.concatenate([dm * h * reset * (1 - reset), dz, dn], axis=-1)
            dr[d, : 2 * hidden] += da[:, : 2 * hidden].T @ h
            dr[d, 2 * hidden :] += dn.T @ m
        dh[d, rows] = past + (beside @ r[d] if reset_after else da[:, : 2 * hidden] @ r[d, : 2 * hidden])
        dx[t, rows] += da @ w[d]
        dw[d], db[d], drb[d] = dw[d] + da.T @ x[t, rows], db[d] + da.sum(axis=0), drb[d] + beside.sum(axis=0)
    return dx, dw, dr, db, drb, dh


@reference(rnn_dx)
def _rnn_dx(dy: Any, x: Any, w: Any, r: Any, y: Any, h0: Any, lengths: Any, dh: Any, *, activation: str) -> Any:
    hidden = r.shape[2]
    h0, dh = (_state(s, x, r) for s in (h0, dh))
    dx, dw, dr, db = _gradients(x, w, r)
    for d, rows, t, before in _visits(x, r, lengths, back=True):
        of = slice(d * hidden, (d + 1) * hidden)
        h, now = (h0[d, rows] if before is None else y[before, rows, of]), y[t, rows, of]
        slope = dh[d, rows] + dy[t, rows, of]
        da = np.where(now > 0, slope, 0.0) if activation == "relu" else slope * (1 - now * now)
        dh[d, rows] = da @ r[d]
        dx[t, rows] += da @ w[d]
        dw[d], dr[d], db[d] = dw[d] + da.T @ x[t, rows], dr[d] + da.T @ h, db[d] + da.sum(axis=0)
    return dx, dw, dr, db, dh


# What is summed: gates are sums of products, and their error passes on to states of size 1 or of the cells.
def _lstm_scale(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    y, h, c, gates, cells, size = _run_lstm(*operands, **attrs)
    one, top = np.float64(size), size * max(1.0, float(np.nan_to_num(np.abs(cells)).max(initial=0.0)))
    kept = (np.broadcast_to(one, gates.shape), np.broadcast_to(top, cells.shape)) if return_saved else ()
    return (np.broadcast_to(one, y.shape), np.broadcast_to(one, h.shape), np.broadcast_to(top, c.shape), *kept)


def _gru_scale(*operands: Any, return_saved: bool, reset_after: bool) -> Any:
    *results, size = _run_gru(*operands, reset_after=reset_after)
    return tuple(np.broadcast_to(np.float64(size), a.shape) for a in results[: 3 if return_saved else 2])


def _rnn_scale(*operands: Any, activation: str) -> Any:
    *results, size = _run_rnn(*operands, activation=activation)
    return tuple(np.broadcast_to(np.float64(size), a.shape) for a in results)


def _slope_scale(run: Any, *operands: Any, **attrs: Any) -> Any:
    sizes = run(*(None if a is None else a if a.dtype.kind in "iu" else np.abs(a) for a in operands), **attrs)
    return tuple(np.broadcast_to(np.abs(s).max(initial=0.0), s.shape) for s in sizes)


lstm.rules["scale"] = _lstm_scale
gru.rules["scale"] = _gru_scale
rnn.rules["scale"] = _rnn_scale
lstm_dx.rules["scale"] = partial(_slope_scale, partial(_lstm_dx, minus=np.add))
gru_dx.rules["scale"] = partial(_slope_scale, partial(_gru_dx, minus=np.add))
rnn_dx.rules["scale"] = partial(_slope_scale, _rnn_dx)
# A weight that is no number may spread to the states of sequences that have ended.
lstm_dx.rules["spreading"] = gru_dx.rules["spreading"] = rnn_dx.rules["spreading"] = ("r",)
_bounds: list[tuple[Any, float]] = [(lstm, 8), (gru, 8), (rnn, 8), (lstm_dx, 16), (gru_dx, 16), (rnn_dx, 16)]
for _target, _ulp in _bounds:
    tolerance(_target, ulp=_ulp)
    dtypes(_target, *FLOATING)


# ------------------------------------------------------------------------------------------------- gradients


def _wanted(target: Any, grads: Any, wanted: Wanted) -> Any:
    return tuple(g if n in wanted else None for g, n in zip(grads, target.differentiable, strict=True))


@forward(lstm)
def _(*operands: Array, return_saved: bool, **attrs: Any) -> tuple[Any, Any]:
    results = lstm(*operands, return_saved=True, **attrs)
    return results if return_saved else results[:3], (results[0], *results[3:])


@backward(lstm, of=("x", "w", "r", "b", "h0", "c0", "peep"))
def _(
    dy: Array,
    *operands: Array,
    saved: tuple[Array, Array, Array] | None,
    wanted: Wanted,
    return_saved: bool,
    **attrs: Any,
) -> Any:
    x, w, r, _, *states, peep = operands
    if saved is None:
        results = lstm(*operands, return_saved=True, **attrs)
        saved = (results[0], *results[3:])
    h0, c0, lengths = states
    grads = lstm_dx(dy, x, w, r, *saved, h0, c0, lengths, None, None, peep, **attrs)
    return _wanted(lstm, grads if peep is not None else (*grads, None), wanted)


@forward(gru)
def _(*operands: Array, return_saved: bool, reset_after: bool) -> tuple[Any, Any]:
    results = gru(*operands, reset_after=reset_after, return_saved=True)
    return results if return_saved else results[:2], (results[0], results[2])


@backward(gru, of=("x", "w", "r", "b", "rb", "h0"))
def _(
    dy: Array,
    *operands: Array,
    saved: tuple[Array, Array] | None,
    wanted: Wanted,
    return_saved: bool,
    reset_after: bool,
) -> Any:
    x, w, r, _, _, *others = operands
    if saved is None:
        results = gru(*operands, reset_after=reset_after, return_saved=True)
        saved = results[0], results[2]
    return _wanted(gru, gru_dx(dy, x, w, r, *saved, *others, reset_after=reset_after), wanted)


@forward(rnn)
def _(*operands: Array, activation: Any) -> tuple[Any, Any]:
    results = rnn(*operands, activation=activation)
    return results, results[0]


@backward(rnn, of=("x", "w", "r", "b", "h0"))
def _(dy: Array, *operands: Array, saved: Array | None, wanted: Wanted, activation: Any) -> Any:
    x, w, r, _, *others = operands
    y = rnn(*operands, activation=activation)[0] if saved is None else saved
    return _wanted(rnn, rnn_dx(dy, x, w, r, y, *others, activation=activation), wanted)


# ------------------------------------------------------------------------------------------------- samples


def _layer(fill: Fill, blocks: int, steps: int, count: int, inputs: int, hidden: int, directions: int = 1) -> list[Any]:
    """x, w, r and b."""
    shapes = ((steps, count, inputs), (directions, blocks * hidden, inputs), (directions, blocks * hidden, hidden))
    half = np.asarray(0.5, fill.dtype)
    return [*(fill(*s) * half for s in shapes), fill(directions, blocks * hidden) * half]


@samples(lstm)
def _(fill: Fill) -> Iterator[Sample]:
    layer = partial(_layer, fill, 4)
    yield sample(*layer(1, 1, 1, 1))
    state = fill(2, 3, 2), fill(2, 3, 2)
    yield sample(*layer(4, 3, 3, 2, 2), *state, np.array([4, 0, 2], np.int32), return_saved=True)
    yield sample(*layer(3, 9, 2, 5)[:3])
    yield sample(*layer(2, 1, 3, 17))
    yield sample(*layer(2, 2, 3, 9), fill(1, 2, 9))
    x, w, r, b = layer(3, 5, 4, 3, 2)
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, b, None, None, np.array([3, 1, 2, 3, 1]))
    lengths, peep = np.array([3, 1, 2]), fill(2, 6)
    yield sample(*layer(3, 3, 3, 2, 2), *state, lengths, peep, clip=0.5)
    yield sample(*layer(3, 2, 2, 9), None, None, None, fill(1, 27), coupled=True, return_saved=True)
    yield sample(*layer(0, 2, 3, 2), *(s[:1, :2] for s in state))
    yield sample(*layer(2, 0, 3, 2))
    yield sample(*layer(2, 3, 0, 2))


@samples(gru)
def _(fill: Fill) -> Iterator[Sample]:
    layer = partial(_layer, fill, 3)
    for after in (True, False):
        lengths = np.array([4, 0, 2], np.int32)
        made = (*layer(4, 3, 3, 2, 2), fill(2, 6), fill(2, 3, 2), lengths)
        yield sample(*made, reset_after=after, return_saved=True)
        x, w, r, b = layer(2, 9, 3, 9)
        yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, None, b, reset_after=after)
    yield sample(*layer(1, 1, 1, 1)[:3])
    yield sample(*layer(0, 2, 3, 2), fill(1, 6), fill(1, 2, 2))
    yield sample(*layer(2, 0, 3, 2))
    yield sample(*layer(2, 3, 0, 2), reset_after=False)


@samples(rnn)
def _(fill: Fill) -> Iterator[Sample]:
    layer = partial(_layer, fill, 1)
    yield sample(*layer(1, 1, 1, 1))
    yield sample(*layer(4, 3, 3, 2, 2), fill(2, 3, 2), np.array([4, 0, 2], np.int32), activation="relu")
    x, w, r, b = layer(2, 9, 3, 17)
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, b)
    yield sample(*layer(0, 2, 3, 2), fill(1, 2, 2))
    yield sample(*layer(2, 0, 3, 2))
    yield sample(*layer(2, 3, 0, 2)[:3])


@samples(lstm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(lstm.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (8 - len(made.args))]
        attrs = {n: a for n, a in made.attrs.items() if n != "return_saved"}
        y, h, c, gates, cells = lstm.reference(*operands, return_saved=True, **attrs)
        ends = (fill(*h.shape), fill(*c.shape)) if k % 2 else (None, None)
        yield sample(fill(*y.shape), *operands[:3], y, gates, cells, *operands[4:7], *ends, operands[7], **attrs)


@samples(gru_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(gru.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (7 - len(made.args))]
        after = made.attrs.get("reset_after", True)
        y, h, gates = gru.reference(*operands, reset_after=after, return_saved=True)
        end = fill(*h.shape) if k % 2 else None
        yield sample(fill(*y.shape), *operands[:3], y, gates, *operands[5:], end, reset_after=after)


@samples(rnn_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(rnn.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (6 - len(made.args))]
        y, h = rnn.reference(*operands, **made.attrs)
        end = fill(*h.shape) if k % 2 else None
        yield sample(fill(*y.shape), *operands[:3], y, *operands[4:], end, **made.attrs)


def _refusals(fill: Fill, blocks: int, rows: str, h0: int, lengths: int) -> Iterator[ErrorCase]:
    """Calls of a layer that must fail; h0 and lengths are the places of these operands."""
    wide = 2 * blocks
    x, w, r, b = fill(4, 3, 5), fill(1, wide, 5), fill(1, wide, 2), fill(1, wide)

    def given(**at: Any) -> Sample:
        operands: list[Any] = [x, w, r, b, *[None] * (lengths - 3)]
        for place, value in ((h0, at.get("h0")), (lengths, at.get("lengths"))):
            operands[place] = value
        return sample(*operands)

    yield ErrorCase(sample(x[0], w, r), ShapeError, "x has 2 dimensions; want 3")
    yield ErrorCase(sample(x, w[..., :4], r), ShapeError, f"w has shape (1, {wide}, 4) but x has I=5")
    yield ErrorCase(sample(x, w, fill(1, wide, 3)), ShapeError, f"want r (D, {rows}, H) and w (D, {rows}, I)")
    yield ErrorCase(sample(x, fill(3, wide, 5), fill(3, wide, 2)), ShapeError, "w has D=3 directions; want 1 or 2")
    yield ErrorCase(sample(x, fill(2, wide, 5), r), ShapeError, f"r has shape (1, {wide}, 2) but w has (2, {wide}, 5)")
    yield ErrorCase(sample(x, w, r, fill(1, wide + 1)), ShapeError, f"b has shape (1, {wide + 1}); want (1, {wide})")
    yield ErrorCase(given(h0=fill(1, 2, 2)), ShapeError, "h0 has shape (1, 2, 2); want (1, 3, 2)")
    for bad in (5, -1):
        text = f"lengths has {bad} at position 2; want 0 to T=4"
        yield ErrorCase(given(lengths=np.array([4, 1, bad])), IndexContentError, text)
    yield ErrorCase(given(lengths=np.array([4, 1])), ShapeError, "lengths has shape (2,); want (3,)")
    yield ErrorCase(given(lengths=fill(3)), DTypeError, "want int32 or int64")


@errors(lstm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refusals(fill, 4, "4H", 4, 6)
    x, w, r = fill(4, 3, 5), fill(1, 8, 5), fill(1, 8, 2)
    made = sample(x, w, r, None, None, fill(1, 3, 3))
    yield ErrorCase(made, ShapeError, "c0 has shape (1, 3, 3); want (1, 3, 2)")
    made = sample(x, w, r, None, None, None, None, fill(1, 8))
    yield ErrorCase(made, ShapeError, "peep has shape (1, 8); want (1, 6)")
    for clip in (-1.0, math.nan):
        yield ErrorCase(sample(x, w, r, clip=clip), AttrError, f"clip={clip:g}; want 0 for none")


@errors(gru)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refusals(fill, 3, "3H", 5, 6)
    made = sample(fill(4, 3, 5), fill(1, 6, 5), fill(1, 6, 2), None, fill(1, 2))
    yield ErrorCase(made, ShapeError, "rb has shape (1, 2); want (1, 6)")


@errors(rnn)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _refusals(fill, 1, "H", 4, 5)
    x, w, r = fill(4, 3, 5), fill(1, 2, 5), fill(1, 2, 2)
    yield ErrorCase(sample(x, w, r, activation="gelu"), AttrError, "activation='gelu'")


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


@errors(gru_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    wide = np.float32 if is_narrow(fill.dtype) else fill.dtype
    x, w, r, y = fill(4, 3, 5), fill(1, 6, 5), fill(1, 6, 2), fill(4, 3, 2)
    gates = np.zeros((1, 4, 3, 8), wide)
    yield ErrorCase(sample(y, x, w, r, y[..., :1], gates), ShapeError, "y has shape (4, 3, 1); want (4, 3, 2)")
    yield ErrorCase(sample(y, x, w, r, y, gates[..., :6]), ShapeError, "gates has shape (1, 4, 3, 6); want")
    yield ErrorCase(sample(y, x, w, r, y, gates.astype(np.int32)), DTypeError, "gates has dtype int32; want")
    made = sample(y, x, w, r, y, gates, None, None, fill(1, 3, 3))
    yield ErrorCase(made, ShapeError, "dh has shape (1, 3, 3); want (1, 3, 2)")


@errors(rnn_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, r, y = fill(4, 3, 5), fill(1, 2, 5), fill(1, 2, 2), fill(4, 3, 2)
    yield ErrorCase(sample(y[:3], x, w, r, y), ShapeError, "dy has shape (3, 3, 2); want (4, 3, 2)")
    yield ErrorCase(sample(y, x, w, r, y, None, None, fill(1, 3, 3)), ShapeError, "dh has shape (1, 3, 3); want")


# ------------------------------------------------------------------------------------------------- workloads


_SIZES = ((100, 1, 256), (50, 32, 512))


def _shapes(blocks: int, steps: int, count: int, hidden: int) -> tuple[tuple[int, ...], ...]:
    return (steps, count, hidden), (1, blocks * hidden, hidden), (1, blocks * hidden, hidden)


def _workloads(blocks: int, biases: int) -> Iterator[Workload]:
    for steps, count, hidden in _SIZES:
        shapes = (*_shapes(blocks, steps, count, hidden), *((1, blocks * hidden),) * biases)
        yield Workload(f"T{steps} B{count} H{hidden}", shapes, sets=("rnn",))


def _slope_workloads(blocks: int, kept: tuple[int, ...]) -> Iterator[Workload]:
    for steps, count, hidden in _SIZES:
        y, saved = (steps, count, hidden), tuple((1, steps, count, n * hidden) for n in kept)
        shapes = (y, *_shapes(blocks, steps, count, hidden), y, *saved)
        yield Workload(f"T{steps} B{count} H{hidden}", shapes, sets=("rnn",))


def _layer_operands(fill: Fill, x: Sizes, *others: Sizes | None, **attrs: Any) -> Any:
    """Normal x, smaller weights and biases."""
    small = np.asarray(1 / math.sqrt(others[1][2] if others[1] else 1), fill.dtype)
    return fill(*x), *(None if s is None else fill(*s) * small for s in others)


def _slope_operands(fill: Fill, dy: Sizes, x: Sizes, w: Sizes, r: Sizes, *others: Sizes | None, **attrs: Any) -> Any:
    """Normal dy and x, smaller weights, results between 0 and 1."""
    small = np.asarray(1 / math.sqrt(r[2]), fill.dtype)
    kept = (None if s is None else np.tanh(fill.positive(*s)) for s in others)
    return fill(*dy), fill(*x), fill(*w) * small, fill(*r) * small, *kept


def _flops(x: Sizes, w: Sizes, r: Sizes, *others: Any, **attrs: Any) -> float:
    return 2.0 * x[0] * x[1] * w[0] * w[1] * (x[2] + r[2])


def _slope_flops(dy: Sizes, *layer: Sizes, **attrs: Any) -> float:
    return 2 * _flops(*layer)


_layers: list[tuple[Any, int, int]] = [(lstm, 4, 1), (gru, 3, 2), (rnn, 1, 1)]
for _target, _blocks, _biases in _layers:
    workloads(_target)(partial(_workloads, _blocks, _biases))
    fills(_target)(_layer_operands)
    flops(_target)(_flops)
_slopes: list[tuple[Any, int, tuple[int, ...]]] = [(lstm_dx, 4, (4, 1)), (gru_dx, 3, (4,)), (rnn_dx, 1, ())]
for _target, _blocks, _kept in _slopes:
    workloads(_target)(partial(_slope_workloads, _blocks, _kept))
    fills(_target)(_slope_operands)
    flops(_target)(_slope_flops)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(lstm)
def _(queue: Queue, *arrays: Any, return_saved: bool, **attrs: Any) -> None:
    opencl_recurrent.lstm(queue, *arrays, **attrs)


@opencl(gru)
def _(queue: Queue, *arrays: Any, return_saved: bool, reset_after: bool) -> None:
    opencl_recurrent.gru(queue, *arrays, reset_after=reset_after)


opencl(rnn)(opencl_recurrent.rnn)
opencl(lstm_dx)(opencl_recurrent.lstm_dx)
opencl(gru_dx)(opencl_recurrent.gru_dx)
opencl(rnn_dx)(opencl_recurrent.rnn_dx)
