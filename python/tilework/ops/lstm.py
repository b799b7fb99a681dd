"""The LSTM layer with its peepholes, projection and activations, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilework.arrays import Array, GateActivation, Wanted
from tilework.backends import opencl_lstm
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_recurrent import Layer
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.recurrent import (
    Size,
    gate,
    gradients,
    is_staircase,
    largest,
    layer,
    measured,
    per_step,
    refusals,
    slope,
    slope_scale,
    state,
    stored_samples,
    visits,
    wanted_of,
)
from tilework.registry import (
    ErrorCase,
    Sample,
    backward,
    dtypes,
    errors,
    forward,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
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
    proj: Array | None = None,
    *,
    clip: float = 0.0,
    coupled: bool = False,
    gate_activation: GateActivation = "sigmoid",
    cell_activation: GateActivation = "tanh",
    output_activation: GateActivation = "tanh",
    return_saved: bool = False,
    dtype: npt.DTypeLike | None = None,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs an LSTM layer over x (T, N, I) with weights w (D, 4H, I), r (D, 4H, H), b (D, 4H), D directions of 1 or 2.

    Gates are in the order i, f, g, o: c = gate(f) c + gate(i) cell(g), h = gate(o) output(c), each by its activation.
    Peepholes let i and f see the cells before and o the new ones: peep (D, 3H) each its own cell, (D, 3H, H) all cells
    of its sequence. Coupled gates are f = 1 - i; a clip keeps cells in [-clip, clip], and gradients do not pass where
    it did. Behind a projection proj (D, P, H) the state is proj h, of P numbers, and r is (D, 4H, P). The second
    direction runs backward in time. h0 and c0 (D, N, H), of P numbers the former, are zero unless given. Sequence n has
    lengths[n] of the T steps; behind them y is zero, states stay, and x is never used.

    ``dtype`` is what w and r are rounded to and stored in, float16, bfloat16 or int8, by ``prepare`` once for all; x is
    of 32 bits or fewer. In 8 bits a row of weights is code * largest / 127, and rows of x and of states are quantised
    on the way as in ``linear_int8``. Gradients pass straight through the rounding.

    The result is y (T, N, D H) and the last states h and c (D, N, H), H of y and h the P of a projection; with
    return_saved also what ``lstm_dx`` needs: the gates (D, T, N, 4H) and the cells (D, T, N, H), float32 for 16-bit x.
    Hochreiter and Schmidhuber, "Long short-term memory", 1997.
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
    proj: Array | None = None,
    *,
    clip: float = 0.0,
    coupled: bool = False,
    gate_activation: GateActivation = "sigmoid",
    cell_activation: GateActivation = "tanh",
    output_activation: GateActivation = "tanh",
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of lstm in x, w, r, b, h0, c0, peep and proj from dy (T, N, D H) and what it kept.

    y, gates and cells are what lstm gives with return_saved; gradients of peep and proj come only where they are given.
    dh and dc (D, N, H) are the gradients of the last states, zero unless given.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _peephole(peep: Any, d: int, k: int, hidden: int) -> Any:
    """A view of the k-th peephole of direction d, (H,) or (H, H)."""
    return None if peep is None else peep[d, k * hidden : (k + 1) * hidden]


def _run(
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    peep: Any,
    proj: Any,
    *,
    clip: float,
    coupled: bool,
    gate_activation: str,
    cell_activation: str,
    output_activation: str,
    dtype: Any = None,
) -> tuple[Any, ...]:
    """y, h, c, gates, cells, and the largest size of a sum."""
    hidden, width, size = w.shape[1] // 4, r.shape[2], Size(dtype)
    w, r = size.stored(w), size.stored(r)
    h, c, y = state(h0, x, r), state(c0, x, r, hidden), np.zeros((*x.shape[:2], r.shape[0] * width))
    gates, cells = per_step(x, r, 4 * hidden), per_step(x, r, hidden)

    def seen(a: Any, d: int, k: int, cell: Any) -> Any:
        """A with what the k-th peephole sees of cells."""
        own = _peephole(peep, d, k, hidden)
        if own is None:
            return a
        return size.product(cell, own, beside=a) if own.ndim == 2 else size.sum(a, own * cell)

    for d, rows, t, _ in visits(x, r, lengths):
        a = size.met(h[d, rows], r[d], 0.0 if b is None else b[d], size.met(x[t, rows], w[d]))
        i, f, g, o = np.split(a, 4, axis=-1)
        i, g = gate(gate_activation, seen(i, d, 0, c[d, rows])), gate(cell_activation, g)
        f = 1 - i if coupled else gate(gate_activation, seen(f, d, 1, c[d, rows]))
        cell = f * c[d, rows] + i * g
        cell = np.clip(cell, -clip, clip) if clip > 0 else cell
        o = gate(gate_activation, seen(o, d, 2, cell))
        made = o * gate(output_activation, cell)
        c[d, rows], h[d, rows] = cell, made if proj is None else size.product(made, proj[d])
        y[t, rows, d * width : (d + 1) * width] = h[d, rows]
        gates[d, t, rows], cells[d, t, rows] = np.concatenate([i, f, g, o], axis=-1), c[d, rows]
    return y, h, c, gates, cells, size.top


@reference(lstm)
def _(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    return _run(*operands, **attrs)[: 5 if return_saved else 3]


@reference(lstm_dx)
def _slopes(
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
    proj: Any,
    *,
    clip: float,
    coupled: bool,
    gate_activation: str,
    cell_activation: str,
    output_activation: str,
    minus: Any = np.subtract,
) -> Any:
    hidden, width = w.shape[1] // 4, r.shape[2]
    h0, dh, c0, dc = state(h0, x, r), state(dh, x, r), state(c0, x, r, hidden), state(dc, x, r, hidden)
    dx, dw, dr, db = gradients(x, w, r)
    dpeep: Any = None if peep is None else np.zeros(peep.shape)
    dproj: Any = None if proj is None else np.zeros(proj.shape)

    def seen(a: Any, d: int, k: int) -> Any:
        """What slopes of gates pass on to the cells that the k-th peephole sees."""
        own = _peephole(peep, d, k, hidden)
        return 0.0 if own is None else a @ own if own.ndim == 2 else a * own

    for d, rows, t, before in visits(x, r, lengths, back=True):
        of = slice(d * width, (d + 1) * width)
        first = before is None
        h, c = (h0[d, rows], c0[d, rows]) if first else (y[before, rows, of], cells[d, before, rows])
        i, f, g, o = np.split(gates[d, t, rows], 4, axis=-1)
        now = cells[d, t, rows]
        q, back = gate(output_activation, now), dh[d, rows] + dy[t, rows, of]
        if proj is not None:
            dproj[d] += back.T @ (o * q)
            back = back @ proj[d]
        ao = back * q * slope(gate_activation, o)
        cell = dc[d, rows] + back * o * slope(output_activation, q) + seen(ao, d, 2)
        if clip > 0:
            cell = np.where(np.abs(now) < clip, cell, 0.0)
        ai = cell * (minus(g, c) if coupled else g) * slope(gate_activation, i)
        af = np.zeros_like(ai) if coupled else cell * c * slope(gate_activation, f)
        da = np.concatenate([ai, af, cell * i * slope(cell_activation, g), ao], axis=-1)
        dh[d, rows], dc[d, rows] = da @ r[d], cell * f + seen(ai, d, 0) + seen(af, d, 1)
        dx[t, rows] += da @ w[d]
        dw[d], dr[d], db[d] = dw[d] + da.T @ x[t, rows], dr[d] + da.T @ h, db[d] + da.sum(axis=0)
        for k, (a, cells_seen) in enumerate(((ai, c), (af, c), (ao, now))) if peep is not None else ():
            own = _peephole(dpeep, d, k, hidden)
            own += a.T @ cells_seen if own.ndim == 2 else (a * cells_seen).sum(axis=0)
    return dx, dw, dr, db, dh, dc, *(g for g in (dpeep, dproj) if g is not None)


# What is summed: gates are sums of products, and their error passes on to states of size 1 or of the cells.
def _scale(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    y, h, c, gates, cells, size = _run(*operands, **attrs)
    one, top = np.float64(size * largest(y)), size * largest(cells)
    kept = (np.broadcast_to(one, gates.shape), np.broadcast_to(top, cells.shape)) if return_saved else ()
    return (np.broadcast_to(one, y.shape), np.broadcast_to(one, h.shape), np.broadcast_to(top, c.shape), *kept)


lstm.rules["scale"] = _scale
lstm.rules["staircase"] = is_staircase
lstm_dx.rules["scale"] = partial(slope_scale, partial(_slopes, minus=np.add))
# A weight that is no number may spread to the states of sequences that have ended.
lstm_dx.rules["spreading"] = ("r", "peep", "proj")
tolerance(lstm, ulp=8)
tolerance(lstm_dx, ulp=16)
lstm_dx.rules["spare_results"] = (0,)
dtypes(lstm, *FLOATING)
lstm.rules["reads_packed"] = ("r",)
dtypes(lstm_dx, *FLOATING)


# ------------------------------------------------------------------------------------------------- gradients


@forward(lstm)
def _(*operands: Array, return_saved: bool, **attrs: Any) -> tuple[Any, Any]:
    results = lstm(*operands, return_saved=True, **attrs)
    return results if return_saved else results[:3], (results[0], *results[3:])


@backward(lstm, of=("x", "w", "r", "b", "h0", "c0", "peep", "proj"))
def _(
    dy: Array,
    *operands: Array,
    saved: tuple[Array, Array, Array] | None,
    wanted: Wanted,
    return_saved: bool,
    dtype: Any,
    **attrs: Any,
) -> Any:
    x, w, r, _, *states, peep, proj = operands
    if saved is None:
        results = lstm(*operands, return_saved=True, dtype=dtype, **attrs)
        saved = (results[0], *results[3:])
    h0, c0, lengths = states
    grads = list(lstm_dx(dy, x, w, r, *saved, h0, c0, lengths, None, None, peep, proj, **attrs))
    for place, given in ((6, peep), (7, proj)):
        if given is None:
            grads.insert(place, None)
    return wanted_of(lstm, grads, wanted)


# ------------------------------------------------------------------------------------------------- samples


@samples(lstm)
def _(fill: Fill) -> Iterator[Sample]:
    made = partial(layer, fill, 4)
    yield sample(*made(1, 1, 1, 1))
    states = fill(2, 3, 2), fill(2, 3, 2)
    yield sample(*made(4, 3, 3, 2, 2), *states, np.array([4, 0, 2], np.int32), return_saved=True)
    yield sample(*made(3, 9, 2, 5)[:3])
    yield sample(*made(2, 1, 3, 17))
    yield sample(*made(2, 2, 3, 9), fill(1, 2, 9))
    x, w, r, b = made(3, 5, 4, 3, 2)
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, b, None, None, np.array([3, 1, 2, 3, 1]))
    lengths, peep = np.array([3, 1, 2]), fill(2, 6)
    yield sample(*made(3, 3, 3, 2, 2), *states, lengths, peep, clip=0.5)
    yield sample(*made(3, 2, 2, 9), None, None, None, fill(1, 27), coupled=True, return_saved=True)
    half = np.asarray(0.5, fill.dtype)
    x, w, _, b = made(3, 3, 3, 2, 2)
    r, proj, h0 = fill(2, 8, 1) * half, fill(2, 1, 2), fill(2, 3, 1)
    yield sample(x, w, r, b, h0, states[1], lengths, fill(2, 6, 2) * half, proj, return_saved=True)
    x, w, _, b = made(2, 1, 2, 9)
    yield sample(x, w, fill(1, 36, 17) * half, b, None, None, None, None, fill(1, 17, 9) * half, coupled=True)
    x, w, r, b = made(2, 2, 2, 3)
    chosen: dict[str, Any] = {"gate_activation": "hard_sigmoid", "cell_activation": "softsign"}
    yield sample(x, w, r, b, None, None, None, fill(1, 9, 3) * half, clip=0.7, output_activation="elu", **chosen)
    yield from stored_samples(fill, 4)
    yield sample(*made(0, 2, 3, 2), *(s[:1, :2] for s in states))
    yield sample(*made(2, 0, 3, 2))
    yield sample(*made(2, 3, 0, 2))


@samples(lstm_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(lstm.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (9 - len(made.args))]
        if "dtype" in made.attrs:
            continue
        attrs = {n: a for n, a in made.attrs.items() if n != "return_saved"}
        y, h, c, gates, cells = lstm.reference(*operands, return_saved=True, **attrs)
        ends = (fill(*h.shape), fill(*c.shape)) if k % 2 else (None, None)
        yield sample(fill(*y.shape), *operands[:3], y, gates, cells, *operands[4:7], *ends, *operands[7:], **attrs)


@errors(lstm)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from refusals(fill, 4, "4H", 4, 6)
    x, w, r = fill(4, 3, 5), fill(1, 8, 5), fill(1, 8, 2)
    made = sample(x, w, r, None, None, fill(1, 3, 3))
    yield ErrorCase(made, ShapeError, "c0 has shape (1, 3, 3); want (1, 3, 2)")
    for peep, want in (((1, 8), "(1, 6)"), ((1, 6, 3), "(1, 6, 2)")):
        made = sample(x, w, r, None, None, None, None, fill(*peep))
        yield ErrorCase(made, ShapeError, f"peep has shape {peep}; want {want}")
    made = sample(x, w, fill(1, 8, 3), *[None] * 5, fill(1, 2, 2))
    yield ErrorCase(made, ShapeError, "proj has shape (1, 2, 2); want (1, 3, 2)")
    made = sample(x, fill(1, 6, 5), fill(1, 6, 3), *[None] * 5, fill(1, 3, 2))
    yield ErrorCase(made, ShapeError, "want r (D, 4H, P) and w (D, 4H, I)")
    made = sample(x, w, fill(1, 8, 0), *[None] * 5, fill(1, 0, 2))
    yield ErrorCase(made, ShapeError, "want (D, P, H) with P of 1 or more")
    for clip in (-1.0, math.nan):
        yield ErrorCase(sample(x, w, r, clip=clip), AttrError, f"clip={clip:g}; want 0 for none")
    yield ErrorCase(sample(x, w, r, cell_activation="gelu"), AttrError, "cell_activation='gelu'")


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


measured(lstm, lstm_dx, 4, 1, (4, 1))


# ------------------------------------------------------------------------------------------------- OpenCL


def _layer(queue: Queue, x: Any, w: Any, r: Any, lengths: Any, peep: Any, proj: Any, attrs: dict[str, Any]) -> Layer:
    gates: dict[str, Any] = {kind: attrs[f"{kind}_activation"] for kind in ("gate", "cell", "output")}
    form: dict[str, Any] = {"full": peep is not None and peep.ndim == 3, "projected": proj is not None}
    dtype = attrs.get("dtype")
    return Layer(queue, "lstm.cl", 4, x, w, r, lengths, flag=attrs["coupled"], dtype=dtype, **gates, **form)


def _peepholes(own: Layer, peep: Any) -> Any:
    """Peepholes in the type of the sums, zero where they are not given."""
    made = own.empty(*((own.directions, 3 * own.hidden) if peep is None else peep.shape))
    own.queue.fill(made, 0) if peep is None else own.queue.cast(own.queue.contiguous(peep), made)
    return made


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
    peep: Any,
    proj: Any,
    y: Any,
    h: Any,
    c: Any,
    *kept: Any,
    return_saved: bool,
    clip: float,
    **attrs: Any,
) -> None:
    own = _layer(queue, x, w, r, lengths, peep, proj, attrs)
    peepholes, weights = _peepholes(own, peep), None if proj is None else own.widened(proj)
    gates, cells = kept or (own.per_step(own.wide), own.per_step(own.hidden))
    if opencl_lstm.in_fragments(own, r, plain=peep is None and proj is None and clip == 0):
        bias = own.empty(own.directions, own.wide)
        queue.fill(bias, 0) if b is None else queue.cast(queue.contiguous(b), bias)
        opencl_lstm.sums(own, x, w, gates)
        opencl_lstm.steps(own, r, bias, h0, own.state(c0, own.hidden), gates, cells, y, h, c)
        return
    own.sums(None if b is None else own.widened(b), gates)
    own.zero_behind(cells)
    cell, made = [own.state(c0, own.hidden) for _ in range(2)], own.state(None, own.hidden)

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        was, new = cell[step % 2], cell[1 - step % 2]
        states = now, own.met(now), then, was, new
        own.launch("lstm_on", d, step, own.r, *states, peepholes, gates, cells, made, y, clip=clip)
        if peep is not None and peep.ndim == 3:
            own.launch("lstm_out", d, step, new, peepholes, gates, then, made, y)
        if proj is not None:
            own.launch("lstm_project", d, step, weights, made, now, then, y, width=own.outputs)

    own.forward(h0, y, h, step_on)
    queue.cast(cell[own.steps % 2], c)


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
    peep: Any,
    proj: Any,
    *results: Any,
    clip: float,
    **attrs: Any,
) -> None:
    own = _layer(queue, x, w, r, lengths, peep, proj, attrs)
    full, peepholes = peep is not None and peep.ndim == 3, _peepholes(own, peep)
    first_h, last_h, start = (own.state(s, own.outputs) for s in (h0, dh, None))
    first_c, cell = (own.state(s, own.hidden) for s in (c0, dc))
    da, before = own.per_step(own.wide), own.per_step(own.outputs)
    weights = slopes = made = queue.number(0, np.int32)  # for a kernel that never looks at them
    if proj is not None:
        weights, slopes, made = own.widened(proj), own.per_step(own.outputs), own.per_step(own.hidden)

    def step_back(d: int, step: int) -> None:
        if proj is not None:
            projected = (own.r, dy, y, first_h, last_h, da, before, start, slopes)
            own.launch("lstm_dh", d, step, *projected, width=own.outputs)
        arrays = (own.r, gates, cells, dy, y, first_h, first_c, last_h, cell, peepholes, da, before, start)
        own.launch("lstm_dx", d, step, *arrays, weights, slopes, made, clip=clip)
        if full and step >= 0:
            own.launch("lstm_dc", d, step, gates, cells, first_c, cell, peepholes, da, clip=clip)

    own.backward(step_back)
    own.gradients(da, lambda d: [(0, own.flat(da, d), own.flat(before, d))], results[:4])
    queue.cast(start, results[4])
    queue.cast(cell, results[5])
    if peep is not None:
        queue.cast(_peephole_slopes(own, peep, cells, first_c, da, full), results[6])
    if proj is not None:
        own_proj = own.empty(*proj.shape)
        for d in range(own.directions):
            own.product(own.flat(slopes, d), own.flat(made, d), own_proj[d])
        queue.cast(own_proj, results[-1])


def _peephole_slopes(own: Layer, peep: Any, cells: Any, first: Any, da: Any, full: bool) -> Any:
    """The gradient of peepholes: slopes of i and f times the cells before, of o times the cells, over all steps."""
    made, h = own.empty(*peep.shape), own.hidden
    if not full:
        for d in range(own.directions):
            own.launch("peep_dx", d, 0, cells, first, da, made, items=3 * h)
        return made
    before = own.per_step(h)
    for step in range(own.steps):
        for d in range(own.directions):
            own.launch("cells_before", d, step, cells, first, before)
    for d in range(own.directions):
        slopes = own.flat(da, d)
        for k, seen in enumerate((before, before, cells)):
            gate_at = (0, 1, 3)[k] * h
            own.product(slopes[:, gate_at : gate_at + h], own.flat(seen, d), made[d][k * h : (k + 1) * h])
    return made
