"""Multi-head attention, the whole layer: projections, attention biases, masks and dropout; made of other ops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.attention import factors, powers_of, shares
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
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
    terms,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def multi_head_attention(
    q: Array,
    k: Array,
    v: Array,
    wq: Array,
    wk: Array,
    wv: Array,
    wo: Array,
    bq: Array | None = None,
    bk: Array | None = None,
    bv: Array | None = None,
    bo: Array | None = None,
    key_bias: Array | None = None,
    value_bias: Array | None = None,
    mask: Array | None = None,
    key_mask: Array | None = None,
    *,
    heads: int,
    add_zero_attn: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offset: int = 0,
    out: Array | None = None,
) -> Array:
    """Attends from q (B, T, E) to k (B, S, Ek) and v (B, S, Ev) through weights (out, in) and returns (B, T, Eo).

    wq (H D, E), wk (H D, Ek) and wv (H Dv, Ev) project to H = heads, wo (Eo, H Dv) back; biases have their first axis.
    Behind the keys comes a row key_bias (H D) with value_bias (H Dv), both or neither, and with add_zero_attn a row of
    zeros; no mask hides them. mask broadcasts to (B, H, T, S): True lets a query see a key, numbers of the dtype of q
    are added; key_mask (B, S) is True where a key counts. scale is 1 / sqrt(D) unless given; dropout, seed and offset
    are those of attention, drawn by the place of a weight in (B, H, T, S), S with the row of biases. Vaswani et al.,
    "Attention is all you need", 2017.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _heads(x: Any, w: Any, b: Any, heads: int, last: Any) -> Any:
    """x wᵀ + b and a last row, as (B, H, rows, D)."""
    y = x @ w.T + (0.0 if b is None else b)
    if last is not None:
        y = np.concatenate([y, np.broadcast_to(last, (y.shape[0], 1, y.shape[2]))], axis=1)
    return np.swapaxes(y.reshape(*y.shape[:2], heads, w.shape[0] // heads), 1, 2)


def _hidden(q: Any, k: Any, mask: Any, key_mask: Any, heads: int) -> Any:
    """What is added to scores (B, H, T, S): -inf where a mask hides a key."""
    added = np.zeros((q.shape[0], heads, q.shape[1], k.shape[1]))
    if mask is not None:
        added = added + (np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask)
    return added if key_mask is None else np.where(key_mask[:, None, None, :], added, -np.inf)


def _attend(operands: Any, size: Any, attrs: Any) -> tuple[Any, ...]:
    """Heads of q, k and v, of ``size`` of the operands, and what hides keys (B, H, T, S), all with a row of biases."""
    q, k, v, wq, wk, wv, _, bq, bk, bv, _, key_bias, value_bias, mask, key_mask = operands
    heads = attrs["heads"]
    qs, ks, vs = (
        _heads(size(x), size(w), None if b is None else size(b), heads, None if last is None else size(last))
        for x, w, b, last in ((q, wq, bq, None), (k, wk, bk, key_bias), (v, wv, bv, value_bias))
    )
    hidden = _hidden(q, k, mask, key_mask, heads)
    if key_bias is not None:
        hidden = np.concatenate([hidden, np.zeros((*hidden.shape[:3], 1))], axis=3)
    return qs, ks, vs, hidden


def _scores(qs: Any, ks: Any, hidden: Any, attrs: Any) -> Any:
    """Scores (B, H, T, S), -inf where a key is hidden, whatever it holds."""
    return np.where(hidden == -np.inf, hidden, np.matmul(qs * attrs["scale"], np.swapaxes(ks, -1, -2)) + hidden)


def _probabilities(s: Any, attrs: Any) -> Any:
    """The weights of scores, beside a score of zero with add_zero_attn."""
    return shares(*powers_of(s, np.zeros(attrs["heads"]) if attrs["add_zero_attn"] else None)[:2])


def _joined(o: Any) -> Any:
    return np.swapaxes(o, 1, 2).reshape(o.shape[0], o.shape[2], o.shape[1] * o.shape[3])


@reference(multi_head_attention)
def _(*operands: Any, **attrs: Any) -> Any:
    qs, ks, vs, hidden = _attend(operands, lambda a: a, attrs)
    s = _scores(qs, ks, hidden, attrs)
    p = _probabilities(s, attrs) * factors(s.shape, **{n: attrs[n] for n in ("dropout", "seed", "offset")})
    wo, bo = operands[6], operands[10]
    return _joined(np.matmul(np.where(p == 0, 0.0, p), vs)) @ wo.T + (0.0 if bo is None else bo)


# Scores are off by the roundings of their sums, a power by as much, relatively; so is what is weighted by it.
@terms(multi_head_attention)
def _(*operands: Any, **attrs: Any) -> Any:
    qs, ks, _, hidden = _attend(operands, lambda a: a, attrs)
    p = _probabilities(_scores(qs, ks, hidden, attrs), attrs)
    qa, ka, va, _ = _attend(operands, np.abs, attrs)
    added = np.where(np.isfinite(hidden), np.abs(hidden), 0.0)
    size = np.matmul(qa * abs(attrs["scale"]), np.swapaxes(ka, -1, -2)) + added
    off = np.where(p > 0, p * (1 + 3 * size), 0.0) / (1 - attrs["dropout"])
    o = np.matmul(off, va) + off.sum(axis=-1, keepdims=True) * np.matmul(p, va)
    wo, bo = operands[6], operands[10]
    return (_joined(o) @ np.abs(wo).T + (0.0 if bo is None else np.abs(bo)),)


@depth(multi_head_attention)
def _(q: Any, k: Any, v: Any, wq: Any, *others: Any, **attrs: Any) -> int:
    return int(q.shape[2] + wq.shape[0] + k.shape[1] + max(k.shape[2], v.shape[2]))


dtypes(multi_head_attention, *FLOATING)
multi_head_attention.rules["reads_packed"] = ("wq", "wk", "wv", "wo")
# What a hidden key holds may spread, if it is no number.
multi_head_attention.rules["spreading"] = tuple(n for n in multi_head_attention.operands if n not in ("wo", "bo"))


# ------------------------------------------------------------------------------------------------- gradients


class _Layer:
    """The layer call by call, on any backend: what backward needs of it, and its gradients."""

    def __init__(self, operands: tuple[Any, ...], attrs: dict[str, Any], saved: Any = None) -> None:
        self.narrow = operands[0].dtype
        self.wide = np.dtype(np.float32) if is_narrow(self.narrow) else self.narrow
        bits = operands[13] is not None and operands[13].dtype == np.bool_
        self.given = [a if i == 14 or (i == 13 and bits) else self._cast(a, self.wide) for i, a in enumerate(operands)]
        self.heads, self.zero = attrs["heads"], attrs["add_zero_attn"]
        self.attrs = {n: attrs[n] for n in ("scale", "dropout", "seed", "offset")}
        q, k, v, wq, wk, wv, _, bq, bk, bv, _, key_bias, value_bias, mask, key_mask = self.given
        self.mask = self._joined_masks(mask, key_mask)
        self.sinks = self._zeros(self.heads) if self.zero else None
        if saved is None:
            heads = self._heads(q, wq, bq, None), self._heads(k, wk, bk, key_bias), self._heads(v, wv, bv, value_bias)
            saved = *heads, *ops.attention.forward(*heads, self.mask, None, None, self.sinks, **self.attrs)[1]
        self.saved = saved

    def _cast(self, a: Any, dtype: Any) -> Any:
        return a if a is None or a.dtype == dtype else ops.cast(a, dtype=dtype)

    def _zeros(self, count: int) -> Any:
        """Zeros where the operands are: nothing of one of them, padded."""
        wq = self.given[3]
        none = ops.crop(ops.reshape(ops.expand(wq, shape=wq.shape), (wq.size,)), ((0, wq.size),))
        return ops.pad(none, pads=((0, count),))

    def _joined_masks(self, mask: Any, key_mask: Any) -> Any:
        """What attention takes: a mask that was given, or both as numbers, 0 in front of a row of biases."""
        rows = None if key_mask is None else ops.reshape(ops.expand(key_mask, shape=key_mask.shape), self._per_key())
        masks = [m for m in (mask, rows) if m is not None]
        if not masks or (len(masks) == 1 and self.given[11] is None):
            return masks[0] if masks else None
        added = [ops.log(ops.cast(m, dtype=self.wide)) if m.dtype == np.bool_ else m for m in masks]
        joined = added[0] if len(added) == 1 else ops.add(*added)
        if self.given[11] is None:
            return joined
        keys = self.given[1].shape[1]
        whole = ops.expand(joined, shape=(*joined.shape[:-1], keys) if joined.ndim else (keys,))
        return ops.pad(whole, pads=(*((0, 0),) * (whole.ndim - 1), (0, 1)))

    def _per_key(self) -> Sizes:
        k = self.given[1]
        return (k.shape[0], 1, 1, k.shape[1])

    def _heads(self, x: Any, w: Any, b: Any, last: Any) -> Any:
        """X wᵀ + b and a last row, seen as (B, H, rows, D)."""
        y = ops.linear(x, w, b)
        if last is not None:
            y = ops.concat([y, ops.expand(last, shape=(y.shape[0], 1, y.shape[2]))], axis=1)
        return ops.transpose(ops.reshape(y, (*y.shape[:2], self.heads, w.shape[0] // self.heads)), (0, 2, 1, 3))

    def _rows(self, x: Any) -> Any:
        """(B, H, rows, D) as (B, rows, H D)."""
        batch, heads, rows, depth = x.shape
        turned = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(ops.expand(turned, shape=turned.shape), (batch, rows, heads * depth))

    def result(self) -> Any:
        """The result of the layer."""
        return self._cast(ops.linear(self._rows(self.saved[3]), self.given[6], self.given[10]), self.narrow)

    def gradients(self, dy: Any, wanted: Wanted) -> dict[str, Any]:
        """The gradients of operands in ``wanted``, by name."""
        q, k, v, wq, wk, wv, wo, bq, bk, bv, bo, key_bias, *_ = self.given
        qs, ks, vs, o, lse = self.saved
        made: dict[str, Any] = {}
        rows, made["wo"], made["bo"] = ops.linear.backward(self._cast(dy, self.wide), self._rows(o), wo, bo)[:3]
        slope = ops.transpose(ops.reshape(rows, (*rows.shape[:2], self.heads, wv.shape[0] // self.heads)), (0, 2, 1, 3))
        operands = (qs, ks, vs, self.mask, None, None, self.sinks)
        slopes = ops.attention.backward(slope, *operands, saved=(o, lse), wanted=("q", "k", "v"), **self.attrs)
        for d, x, w, b, names in zip(slopes, (q, k, v), (wq, wk, wv), (bq, bk, bv), _PROJECTIONS, strict=False):
            all_rows = own = self._rows(d)
            if key_bias is not None and names[3] is not None:
                count = x.shape[1]
                made[names[3]] = ops.reduce_sum(ops.crop(all_rows, ((0, 0), (count, 0), (0, 0))), axes=(0, 1))
                own = ops.crop(all_rows, ((0, 0), (0, 1), (0, 0)))
            made.update(zip(names[:3], ops.linear.backward(own, x, w, b), strict=False))
        return {n: self._cast(g, self.narrow) for n, g in made.items() if n in wanted}


# What a projection takes, its weights and its bias, and the row behind it.
_PROJECTIONS: tuple[tuple[Any, ...], ...] = (
    ("q", "wq", "bq", None),
    ("k", "wk", "bk", "key_bias"),
    ("v", "wv", "bv", "value_bias"),
)


@forward(multi_head_attention)
def _(*operands: Array, **attrs: Any) -> tuple[Any, Any]:
    layer = _Layer(operands, attrs)
    return layer.result(), layer.saved


@backward(multi_head_attention, of=multi_head_attention.operands[:13])
def _(dy: Array, *operands: Array, saved: Any, wanted: Wanted, **attrs: Any) -> Any:
    made = _Layer(operands, attrs, saved).gradients(dy, wanted)
    return tuple(made.get(n) for n in multi_head_attention.differentiable)


# ------------------------------------------------------------------------------------------------- samples


def _operands(fill: Fill, sizes: Sizes, *, biases: bool = False, rows: bool = False) -> list[Any]:
    """Operands up to value_bias for B, T, S, E, Ek, Ev, heads, D, Dv, Eo."""
    b, t, s, e, ek, ev, heads, d, dv, eo = sizes
    half = np.asarray(0.5, fill.dtype)
    weights = [fill(*shape) * half for shape in ((heads * d, e), (heads * d, ek), (heads * dv, ev), (eo, heads * dv))]
    own = [fill(w.shape[0]) if biases else None for w in weights]
    behind = [fill(heads * d), fill(heads * dv)] if rows else [None, None]
    return [fill(b, t, e), fill(b, s, ek), fill(b, s, ev), *weights, *own, *behind]


@samples(multi_head_attention)
def _(fill: Fill) -> Iterator[Sample]:
    def some(*shape: int) -> Any:
        return fill.integers(*shape, low=0, high=3) > 0

    yield sample(*_operands(fill, (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)), heads=1)
    full = _operands(fill, (2, 3, 4, 5, 3, 2, 2, 3, 2, 7), biases=True, rows=True)
    yield sample(*full, fill(2, 1, 4), some(2, 4), heads=2, add_zero_attn=True)
    yield sample(*full, some(3, 4), None, heads=2, scale=0.7, dropout=0.4, seed=3, offset=1)
    self_attention = _operands(fill, (2, 9, 9, 8, 8, 8, 2, 4, 4, 8), biases=True)
    self_attention[1] = self_attention[2] = self_attention[0]
    self_attention[8] = None  # a bias of all keys changes nothing: its gradient is rounding alone
    yield sample(*self_attention, None, some(2, 9), heads=2)
    yield sample(*self_attention, some(2, 1, 9, 9), some(2, 9), heads=2)
    x, *others = _operands(fill, (1, 5, 6, 4, 4, 4, 4, 1, 3, 5))
    yield sample(np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1), *others, fill(5, 6), heads=4, add_zero_attn=True)
    for sizes in ((0, 2, 2, 3, 3, 3, 1, 2, 2, 2), (1, 0, 2, 3, 3, 3, 1, 2, 2, 2), (1, 2, 0, 3, 3, 3, 1, 2, 2, 2)):
        yield sample(*_operands(fill, sizes, biases=True), heads=1)


@errors(multi_head_attention)
def _(fill: Fill) -> Iterator[ErrorCase]:
    given = _operands(fill, (2, 3, 4, 5, 5, 5, 2, 3, 2, 5), biases=True, rows=True)

    def but(place: int, value: Any, *masks: Any, **attrs: Any) -> Sample:
        return sample(*given[:place], value, *given[place + 1 :], *masks, **{"heads": 2, **attrs})

    yield ErrorCase(but(0, fill(3, 5)), ShapeError, "q has 2 dimensions; want 3")
    yield ErrorCase(but(1, fill(1, 4, 5)), ShapeError, "k has shape (1, 4, 5) but q has (2, 3, 5)")
    yield ErrorCase(but(2, fill(2, 3, 5)), ShapeError, "v has shape (2, 3, 5) but k has (2, 4, 5)")
    yield ErrorCase(but(3, fill(6, 4)), ShapeError, "wq has shape (6, 4); want (6, 5)")
    yield ErrorCase(but(4, fill(4, 5)), ShapeError, "wk has shape (4, 5); want (6, 5)")
    odd = [*given[:5], fill(3, 5), fill(5, 3)]
    yield ErrorCase(sample(*odd, heads=2), ShapeError, "wv has 3 rows with heads=2; want a multiple of it")
    yield ErrorCase(but(6, fill(5, 5)), ShapeError, "wo has shape (5, 5); want (5, 4)")
    yield ErrorCase(but(7, fill(5)), ShapeError, "bq has shape (5,); want (6,)")
    yield ErrorCase(but(11, None), ShapeError, "value_bias is given but key_bias is not; want both or neither")
    yield ErrorCase(but(12, fill(5)), ShapeError, "value_bias has shape (5,); want (4,)")
    yield ErrorCase(but(0, given[0], fill(2, 4)), ShapeError, "want one that broadcasts to (2, 2, 3, 4)")
    yield ErrorCase(but(0, given[0], np.ones((3, 4), np.int32)), DTypeError, "mask has dtype int32; want bool or")
    yield ErrorCase(but(0, given[0], None, np.ones((2, 3), bool)), ShapeError, "key_mask has shape (2, 3); want (2, 4)")
    yield ErrorCase(but(0, given[0], None, fill(2, 4)), DTypeError, "want bool")
    for heads in (0, -1):
        yield ErrorCase(but(0, given[0], heads=heads), AttrError, f"heads={heads}; want 1 or more")
    yield ErrorCase(but(0, given[0], heads=4), ShapeError, "wq has 6 rows with heads=4; want a multiple of it")
    yield ErrorCase(but(0, given[0], dropout=1.0, seed=1), AttrError, "dropout=1; want a probability")
    yield ErrorCase(but(0, given[0], dropout=0.5), AttrError, "seed is None with dropout=0.5")


@workloads(multi_head_attention)
def _() -> Iterator[Workload]:
    x, w = (1, 512, 768), (768, 768)
    yield Workload("T512 E768 H12", (x, x, x, w, w, w, w), {"heads": 12}, sets=("transformer",))


@fills(multi_head_attention)
def _(fill: Fill, *shapes: Sizes | None, **attrs: Any) -> Any:
    small = np.asarray(1 / 32, fill.dtype)
    return tuple(None if s is None else fill(*s) * small if k > 2 else fill(*s) for k, s in enumerate(shapes))


@flops(multi_head_attention)
def _(q: Sizes, k: Sizes, v: Sizes, wq: Sizes, wk: Sizes, wv: Sizes, wo: Sizes, *others: Any, **attrs: Any) -> float:
    projections = math.prod(q[:2]) * (math.prod(wq) + math.prod(wo)) + math.prod(k[:2]) * (
        math.prod(wk) + math.prod(wv)
    )
    return 2.0 * (projections + q[0] * q[1] * k[1] * (wq[0] + wv[0]))


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(multi_head_attention)
def _(queue: Queue, *arrays: Any, **attrs: Any) -> None:
    *operands, y = arrays
    queue.copy(_Layer(tuple(operands), attrs).result(), y)
