"""The plain recurrent layer and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilework.arrays import Array, GateActivation, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_recurrent import GATES, Layer
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, ShapeError
from tilework.ops.recurrent import (
    Size,
    gate,
    gradients,
    is_staircase,
    largest,
    layer,
    measured,
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
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    h0: Array | None = None,
    lengths: Array | None = None,
    *,
    activation: GateActivation = "tanh",
    dtype: npt.DTypeLike | None = None,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Runs h = activation(x wᵀ + b + h rᵀ) over x (T, N, I) with w (D, H, I), r (D, H, H), b (D, H).

    Directions, h0, lengths and ``dtype`` as in lstm. The result is y (T, N, D H) and the last state h (D, N, H). Elman,
    "Finding structure in time", 1990.
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
    activation: GateActivation = "tanh",
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of rnn in x, w, r, b and h0 from dy (T, N, D H) and the result y (T, N, D H).

    dh (D, N, H) is the gradient of the last state, zero unless given.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _run(x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any, *, activation: str, dtype: Any) -> tuple[Any, ...]:
    """y, h, and the largest size of a sum."""
    hidden, size = r.shape[2], Size(dtype)
    w, r = size.stored(w), size.stored(r)
    h, y = state(h0, x, r), np.zeros((*x.shape[:2], r.shape[0] * r.shape[2]))
    for d, rows, t, _ in visits(x, r, lengths):
        a = size.met(h[d, rows], r[d], 0.0 if b is None else b[d], size.met(x[t, rows], w[d]))
        h[d, rows] = gate(activation, a)
        y[t, rows, d * hidden : (d + 1) * hidden] = h[d, rows]
    return y, h, size.top * largest(h)


@reference(rnn)
def _(*operands: Any, **attrs: Any) -> Any:
    return _run(*operands, **attrs)[:2]


@reference(rnn_dx)
def _slopes(dy: Any, x: Any, w: Any, r: Any, y: Any, h0: Any, lengths: Any, dh: Any, *, activation: str) -> Any:
    hidden = r.shape[2]
    h0, dh = (state(s, x, r) for s in (h0, dh))
    dx, dw, dr, db = gradients(x, w, r)
    for d, rows, t, before in visits(x, r, lengths, back=True):
        of = slice(d * hidden, (d + 1) * hidden)
        h = h0[d, rows] if before is None else y[before, rows, of]
        da = (dh[d, rows] + dy[t, rows, of]) * slope(activation, y[t, rows, of])
        dh[d, rows] = da @ r[d]
        dx[t, rows] += da @ w[d]
        dw[d], dr[d], db[d] = dw[d] + da.T @ x[t, rows], dr[d] + da.T @ h, db[d] + da.sum(axis=0)
    return dx, dw, dr, db, dh


# What is summed: a state is a sum of products, and its error passes on to states of size 1 or more.
def _scale(*operands: Any, **attrs: Any) -> Any:
    *results, size = _run(*operands, **attrs)
    return tuple(np.broadcast_to(np.float64(size), a.shape) for a in results)


rnn.rules["scale"] = _scale
rnn.rules["staircase"] = is_staircase
rnn_dx.rules["scale"] = partial(slope_scale, _slopes)
# A weight that is no number may spread to the states of sequences that have ended.
rnn_dx.rules["spreading"] = ("r",)
tolerance(rnn, ulp=8)
tolerance(rnn_dx, ulp=16)
rnn_dx.rules["spare_results"] = (0,)
dtypes(rnn, *FLOATING)
rnn.rules["reads_packed"] = ("r",)
dtypes(rnn_dx, *FLOATING)


# ------------------------------------------------------------------------------------------------- gradients


@forward(rnn)
def _(*operands: Array, **attrs: Any) -> tuple[Any, Any]:
    results = rnn(*operands, **attrs)
    return results, results[0]


@backward(rnn, of=("x", "w", "r", "b", "h0"))
def _(dy: Array, *operands: Array, saved: Array | None, wanted: Wanted, activation: Any, dtype: Any) -> Any:
    x, w, r, _, *others = operands
    y = rnn(*operands, activation=activation, dtype=dtype)[0] if saved is None else saved
    return wanted_of(rnn, rnn_dx(dy, x, w, r, y, *others, activation=activation), wanted)


# ------------------------------------------------------------------------------------------------- samples


@samples(rnn)
def _(fill: Fill) -> Iterator[Sample]:
    made = partial(layer, fill, 1)
    yield sample(*made(1, 1, 1, 1))
    yield sample(*made(4, 3, 3, 2, 2), fill(2, 3, 2), np.array([4, 0, 2], np.int32), activation="relu")
    x, w, r, b = made(2, 9, 3, 17)
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), w, r, b)
    for activation in GATES[3:] + GATES[:1]:
        yield sample(*made(2, 1, 2, 3), activation=activation)
    yield from stored_samples(fill, 1)
    yield sample(*made(0, 2, 3, 2), fill(1, 2, 2))
    yield sample(*made(2, 0, 3, 2))
    yield sample(*made(2, 3, 0, 2)[:3])


@samples(rnn_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for k, made in enumerate(rnn.rules["samples"](fill)):
        if "dtype" in made.attrs:
            continue
        operands: list[Any] = [*made.args, *[None] * (6 - len(made.args))]
        y, h = rnn.reference(*operands, **made.attrs)
        end = fill(*h.shape) if k % 2 else None
        yield sample(fill(*y.shape), *operands[:3], y, *operands[4:], end, **made.attrs)


@errors(rnn)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from refusals(fill, 1, "H", 4, 5)
    x, w, r = fill(4, 3, 5), fill(1, 2, 5), fill(1, 2, 2)
    yield ErrorCase(sample(x, w, r, activation="gelu"), AttrError, "activation='gelu'")


@errors(rnn_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, r, y = fill(4, 3, 5), fill(1, 2, 5), fill(1, 2, 2), fill(4, 3, 2)
    yield ErrorCase(sample(y[:3], x, w, r, y), ShapeError, "dy has shape (3, 3, 2); want (4, 3, 2)")
    yield ErrorCase(sample(y, x, w, r, y, None, None, fill(1, 3, 3)), ShapeError, "dh has shape (1, 3, 3); want")


measured(rnn, rnn_dx, 1, 1, ())


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(rnn)
def _(
    queue: Queue, x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any, y: Any, h: Any, *, activation: str, dtype: Any
) -> None:
    own = Layer(queue, "rnn.cl", 1, x, w, r, lengths, cell=activation, dtype=dtype)
    sums = own.sums(None if b is None else own.widened(b), own.per_step(own.wide))

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        own.launch("rnn_on", d, step, own.r, now, own.met(now), then, sums, y)

    own.forward(h0, y, h, step_on)


@opencl(rnn_dx)
def _(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    h0: Any,
    lengths: Any,
    dh: Any,
    *results: Any,
    activation: str,
) -> None:
    own = Layer(queue, "rnn.cl", 1, x, w, r, lengths, cell=activation)
    first, last, start = (own.state(s) for s in (h0, dh, None))
    da, before = own.per_step(own.wide), own.per_step(own.hidden)
    own.backward(lambda d, step: own.launch("rnn_dx", d, step, own.r, dy, y, first, last, da, before, start))
    own.gradients(da, lambda d: [(0, own.flat(da, d), own.flat(before, d))], results[:4])
    queue.cast(start, results[4])
