"""The GRU layer with its reset before or after the product, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilework.arrays import Array, GateActivation, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_recurrent import Layer
from tilework.backends.opencl_reduce import reduce
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
    gate_activation: GateActivation = "sigmoid",
    cell_activation: GateActivation = "tanh",
    return_saved: bool = False,
    dtype: npt.DTypeLike | None = None,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs a GRU layer over x (T, N, I) with weights w (D, 3H, I), r (D, 3H, H) and biases b, rb (D, 3H).

    Gates are in the order r, z, n: h = (1 - z) n + z h, with n = cell(x wᵀ + b + r (h rᵀ + rb)) as in PyTorch, or with
    reset_after=False n = cell(x wᵀ + b + (r h) rᵀ + rb) as in the paper; r and z pass through gate. Directions, h0,
    lengths and ``dtype`` as in lstm. The result is y (T, N, D H) and the last state h (D, N, H); with return_saved also
    what ``gru_dx`` needs, (D, T, N, 4H), float32 for 16-bit x. Cho et al., "Learning phrase representations using RNN
    encoder-decoder", 2014.
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
    gate_activation: GateActivation = "sigmoid",
    cell_activation: GateActivation = "tanh",
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of gru in x, w, r, b, rb and h0 from dy (T, N, D H) and what return_saved kept.

    dh (D, N, H) is the gradient of the last state, zero unless given.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _run(
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    rb: Any,
    h0: Any,
    lengths: Any,
    *,
    reset_after: bool,
    gate_activation: str,
    cell_activation: str,
    dtype: Any = None,
) -> tuple[Any, ...]:
    """y, h, gates, and the largest size of a sum."""
    hidden, size = r.shape[2], Size(dtype)
    w, r = size.stored(w), size.stored(r)
    h, y, gates = state(h0, x, r), np.zeros((*x.shape[:2], r.shape[0] * r.shape[2])), per_step(x, r, 4 * hidden)
    two = slice(2 * hidden)
    last = slice(2 * hidden, None)
    for d, rows, t, _ in visits(x, r, lengths):
        own, before = (np.zeros(3 * hidden) if rb is None else rb[d]), h[d, rows]
        a = size.met(x[t, rows], w[d], 0.0 if b is None else b[d])
        reset, z = np.split(gate(gate_activation, size.met(before, r[d, two], own[two], a[:, two])), 2, axis=-1)
        if reset_after:
            m = size.met(before, r[d, last], own[last])
            n = gate(cell_activation, a[:, last] + reset * m)
        else:
            m = reset * before
            n = gate(cell_activation, size.met(m, r[d, last], own[last], a[:, last]))
        h[d, rows] = (1 - z) * n + z * before
        y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
        gates[d, t, rows] = np.concatenate([reset, z, n, m], axis=-1)
    return y, h, gates, size.top * largest(h)


@reference(gru)
def _(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    return _run(*operands, **attrs)[: 3 if return_saved else 2]


@reference(gru_dx)
def _slopes(
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
    gate_activation: str,
    cell_activation: str,
    minus: Any = np.subtract,
) -> Any:
    hidden = r.shape[2]
    h0, dh = (state(s, x, r) for s in (h0, dh))
    dx, dw, dr, db = gradients(x, w, r)
    drb = np.zeros(db.shape)
    for d, rows, t, before in visits(x, r, lengths, back=True):
        of = slice(d * hidden, (d + 1) * hidden)
        h = h0[d, rows] if before is None else y[before, rows, of]
        reset, z, n, m = np.split(gates[d, t, rows], 4, axis=-1)
        back = dh[d, rows] + dy[t, rows, of]
        dn = back * (1 - z) * slope(cell_activation, n)
        dz = back * minus(h, n) * slope(gate_activation, z)
        if reset_after:  # m = h rᵀ + rb
            dm, past = dn * reset, back * z
            da = np.concatenate([dn * m * slope(gate_activation, reset), dz, dn], axis=-1)
            beside = np.concatenate([da[:, : 2 * hidden], dm], axis=-1)
            dr[d] += beside.T @ h
        else:  # m = reset h
            dm = dn @ r[d, 2 * hidden :]
            past = back * z + dm * reset
            da = beside = np.concatenate([dm * h * slope(gate_activation, reset), dz, dn], axis=-1)
            dr[d, : 2 * hidden] += da[:, : 2 * hidden].T @ h
            dr[d, 2 * hidden :] += dn.T @ m
        dh[d, rows] = past + (beside @ r[d] if reset_after else da[:, : 2 * hidden] @ r[d, : 2 * hidden])
        dx[t, rows] += da @ w[d]
        dw[d], db[d], drb[d] = dw[d] + da.T @ x[t, rows], db[d] + da.sum(axis=0), drb[d] + beside.sum(axis=0)
    return dx, dw, dr, db, drb, dh


# What is summed: gates are sums of products, and their error passes on to states of size 1 or more.
def _scale(*operands: Any, return_saved: bool, **attrs: Any) -> Any:
    *results, size = _run(*operands, **attrs)
    return tuple(np.broadcast_to(np.float64(size), a.shape) for a in results[: 3 if return_saved else 2])


gru.rules["scale"] = _scale
gru.rules["staircase"] = is_staircase
gru_dx.rules["scale"] = partial(slope_scale, partial(_slopes, minus=np.add))
# A weight that is no number may spread to the states of sequences that have ended.
gru_dx.rules["spreading"] = ("r",)
tolerance(gru, ulp=8)
tolerance(gru_dx, ulp=16)
gru_dx.rules["spare_results"] = (0,)
dtypes(gru, *FLOATING)
gru.rules["reads_packed"] = ("r",)
dtypes(gru_dx, *FLOATING)


# ------------------------------------------------------------------------------------------------- gradients


@forward(gru)
def _(*operands: Array, return_saved: bool, **attrs: Any) -> tuple[Any, Any]:
    results = gru(*operands, return_saved=True, **attrs)
    return results if return_saved else results[:2], (results[0], results[2])


@backward(gru, of=("x", "w", "r", "b", "rb", "h0"))
def _(
    dy: Array,
    *operands: Array,
    saved: tuple[Array, Array] | None,
    wanted: Wanted,
    return_saved: bool,
    dtype: Any,
    **attrs: Any,
) -> Any:
    x, w, r, _, _, *others = operands
    if saved is None:
        results = gru(*operands, return_saved=True, dtype=dtype, **attrs)
        saved = results[0], results[2]
    return wanted_of(gru, gru_dx(dy, x, w, r, *saved, *others, **attrs), wanted)


# ------------------------------------------------------------------------------------------------- samples


@samples(gru)
def _(fill: Fill) -> Iterator[Sample]:
    made = partial(layer, fill, 3)
    for after in (True, False):
        lengths = np.array([4, 0, 2], np.int32)
        given = (*made(4, 3, 3, 2, 2), fill(2, 6), fill(2, 3, 2), lengths)
        yield sample(*given, reset_after=after, return_saved=True)
        x, w, r, b = made(2, 9, 3, 9)
        yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, None, b, reset_after=after)
    yield sample(*made(1, 1, 1, 1)[:3])
    chosen: dict[str, Any] = {"gate_activation": "hard_sigmoid", "cell_activation": "leaky_relu"}
    yield sample(*made(2, 2, 2, 3), fill(1, 9), reset_after=False, **chosen)
    yield from stored_samples(fill, 3)
    if fill.dtype != np.float64:
        yield sample(*made(3, 2, 5, 19), reset_after=False, dtype="int8")
    yield sample(*made(0, 2, 3, 2), fill(1, 6), fill(1, 2, 2))
    yield sample(*made(2, 0, 3, 2))
    yield sample(*made(2, 3, 0, 2), reset_after=False)


@samples(gru_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(gru.rules["samples"](fill)):
        operands: list[Any] = [*made.args, *[None] * (7 - len(made.args))]
        if "dtype" in made.attrs:
            continue
        attrs = {n: a for n, a in made.attrs.items() if n != "return_saved"}
        y, h, gates = gru.reference(*operands, return_saved=True, **attrs)
        end = fill(*h.shape) if k % 2 else None
        yield sample(fill(*y.shape), *operands[:3], y, gates, *operands[5:], end, **attrs)


@errors(gru)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from refusals(fill, 3, "3H", 5, 6)
    made = sample(fill(4, 3, 5), fill(1, 6, 5), fill(1, 6, 2), None, fill(1, 2))
    yield ErrorCase(made, ShapeError, "rb has shape (1, 2); want (1, 6)")
    made = sample(fill(4, 3, 5), fill(1, 6, 5), fill(1, 6, 2), gate_activation="gelu")
    yield ErrorCase(made, AttrError, "gate_activation='gelu'")


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


measured(gru, gru_dx, 3, 2, (4,))


# ------------------------------------------------------------------------------------------------- OpenCL


def _layer(queue: Queue, x: Any, w: Any, r: Any, lengths: Any, attrs: dict[str, Any]) -> Layer:
    dtype, gates = attrs.get("dtype"), {"gate": attrs["gate_activation"], "cell": attrs["cell_activation"]}
    return Layer(queue, "gru.cl", 3, x, w, r, lengths, flag=attrs["reset_after"], dtype=dtype, **gates)


@opencl(gru)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    rb: Any,
    h0: Any,
    lengths: Any,
    y: Any,
    h: Any,
    *kept: Any,
    return_saved: bool,
    **attrs: Any,
) -> None:
    own = _layer(queue, x, w, r, lengths, attrs)
    hidden = own.hidden
    gates = kept[0] if kept else own.per_step(4 * hidden)
    own.zero_behind(gates)
    bias, apart = own.empty(own.directions, own.wide), own.empty(own.directions, hidden)
    queue.fill(bias, 0) if b is None else queue.cast(queue.contiguous(b), bias)
    queue.fill(apart, 0)
    if rb is not None:
        wide = own.widened(rb)
        joined = 2 * hidden if attrs["reset_after"] else own.wide
        some = bias[:, :joined]
        queue.each("elementwise.cl", "add", (some, wide[:, :joined], some), chunks=True, DTYPE=own.dtype)
        if attrs["reset_after"]:
            queue.copy(wide[:, joined:], apart)
    sums = own.sums(bias, own.per_step(own.wide))

    scaled = own.empty(own.directions, own.count, hidden)  # r h, where the reset comes first
    queue.fill(scaled, 0)

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        own.launch("gru_gates", d, step, own.r, now, own.met(now), sums, apart, gates, scaled)
        own.launch("gru_on", d, step, own.r, now, then, own.met(scaled), sums, gates, y)

    own.forward(h0, y, h, step_on)


@opencl(gru_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    h0: Any,
    lengths: Any,
    dh: Any,
    *results: Any,
    **attrs: Any,
) -> None:
    own, reset_after = _layer(queue, x, w, r, lengths, attrs), attrs["reset_after"]
    hidden = own.hidden
    first_h, past, start = (own.state(s) for s in (h0, dh, None))
    da, other, before = own.per_step(own.wide), own.per_step(hidden), own.per_step(hidden)

    def step_back(d: int, step: int) -> None:
        own.launch("gru_dx", d, step, own.r, gates, dy, y, first_h, past, da, other, before, start)
        if step >= 0 and not reset_after:
            own.launch("gru_reset", d, step, own.r, gates, before, past, da)

    own.backward(step_back)

    def parts(d: int) -> list[tuple[int, Any, Any]]:
        slopes, beside, states = (own.flat(a, d) for a in (da, other, before))
        first, last = slopes[:, : 2 * hidden], slopes[:, 2 * hidden :]
        return [(0, first, states), (2 * hidden, *((beside, states) if reset_after else (last, beside)))]

    own.gradients(da, parts, results[:4])
    drb = own.empty(own.directions, own.wide)
    queue.cast(results[3], drb)
    if reset_after:
        for d in range(own.directions):
            if own.rows:
                reduce(queue, "sum", own.flat(other, d), drb[d][2 * hidden :], (0,))
    queue.cast(drb, results[4])
    queue.cast(start, results[5])
