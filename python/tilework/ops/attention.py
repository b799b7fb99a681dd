"""Scaled dot product attention and its gradients, with masks, windows and shared key heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Ints, Sizes, Wanted
from tilework.backends.opencl_attention import Launch
from tilework.backends.opencl_queue import Queue
from tilework.backends.opencl_reduce import accumulator
from tilework.backends.philox import philox
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import AttrError, AttrTypeError, DTypeError, IndexContentError, ShapeError
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
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    alibi: Array | None = None,
    sinks: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Ints | None = None,
    softcap: float = 0.0,
    dropout: float = 0.0,
    seed: int | None = None,
    offset: int = 0,
    return_lse: bool = False,
    out: Array | tuple[Array, ...] | None = None,
) -> Any:
    """Attends from q (B, H, T, D) to k (B, Hkv, S, D) and returns softmax(scale q kᵀ + mask) v, v (B, Hkv, S, Dv).

    Hkv divides H: neighbouring heads of q share one of k and v. scale is 1 / sqrt(D) unless given; a softcap c bends
    scaled scores to c tanh(score / c). mask broadcasts to (B, H, T, S): True lets a query see a key, numbers of the
    dtype of q are added. Only the first lengths[b] keys of sequence b count, others are never read, and the last query
    stands at the last key that counts: a ``causal`` query sees no key behind its place, and a window (left, right)
    leaves it that many before and behind its place. A query that sees no key gets zeros. What a forbidden key has in v
    counts nothing but for NaN and infinities, which may spread.

    alibi (H,) takes its slope times the distance of key and place off a score. sinks (H,) are scores of one more key
    each, whose weight goes nowhere. dropout sets weights to zero with that probability and divides the others by
    1 - dropout: draws of Philox4x32-10 as in ``dropout``, by the place of a weight in (B, H, T, S).

    The result is (B, H, T, Dv), or with return_lse a tuple of it and the logarithm of the sum of exp(score), (B, H, T),
    float32 for 16-bit q and -inf where no key is seen. Vaswani et al., "Attention is all you need", 2017.
    """
    ...


@op
def attention_dx(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    alibi: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Ints | None = None,
    softcap: float = 0.0,
    dropout: float = 0.0,
    seed: int | None = None,
    offset: int = 0,
    return_slopes: bool = False,
    out: tuple[Array, ...] | None = None,
) -> Any:
    """Computes the gradients of attention in q, k and v from its results y (B, H, T, Dv) and lse (B, H, T).

    With return_slopes also those of what is added to the scores, (B, H, T, S), float32 for 16-bit q: the gradient of a
    mask is their sum over the axes along which it repeats.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _grouped(x: Any, heads: int) -> Any:
    """Heads of k or v repeated to those of q."""
    return x if x.shape[1] == heads else np.repeat(x, heads // max(x.shape[1], 1), axis=1)


def _seen(q: Any, k: Any, mask: Any, lengths: Any, causal: bool, window: Any) -> Any:
    """Which keys count, of a shape that broadcasts to (B, H, T, S)."""
    queries, keys = q.shape[2], k.shape[2]
    length = np.full(q.shape[0], keys) if lengths is None else np.asarray(lengths, np.int64)
    length = length.reshape(-1, 1, 1, 1)
    place, key = np.arange(queries)[:, None] + length - queries, np.arange(keys)
    seen = np.broadcast_to(key < length, (q.shape[0], 1, queries, keys))
    if causal:
        seen = seen & (key <= place)
    if window is not None:
        seen = seen & (key >= place - window[0]) & (key <= place + window[1])
    return seen & mask if mask is not None and mask.dtype == np.bool_ else seen


def _distance(q: Any, k: Any, lengths: Any) -> Any:
    """How far keys are from the places of queries, (B, 1, T, S)."""
    length = np.full(q.shape[0], k.shape[2]) if lengths is None else np.asarray(lengths, np.int64)
    place = np.arange(q.shape[2])[:, None] + length.reshape(-1, 1, 1, 1) - q.shape[2]
    return np.abs(np.arange(k.shape[2]) - place)


def factors(shape: Sizes, *, dropout: float, seed: int, offset: int) -> Any:
    """What weights of a shape (B, H, T, S) are multiplied by."""
    if dropout == 0:
        return 1.0
    words = philox(math.prod(shape), offset, seed).reshape(shape)
    return np.where(words >= np.uint64(int(dropout * 2.0**32)), 1 / (1 - dropout), 0.0)


def _scores(
    q: Any,
    k: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    *,
    causal: bool,
    scale: float,
    window: Any,
    softcap: float,
) -> tuple[Any, Any, Any]:
    """Scores, -inf where a key does not count; the slope that the cap leaves; the size of what was summed."""
    wide = _grouped(k, q.shape[1])
    s = np.matmul(q * scale, np.swapaxes(wide, -1, -2))
    size = np.matmul(np.abs(q * scale), np.swapaxes(np.abs(wide), -1, -2))
    slope = np.ones_like(s)
    if softcap > 0:
        bent = np.tanh(s / softcap)
        s, slope = softcap * bent, 1 - bent**2
    if alibi is not None:
        far = alibi[:, None, None] * _distance(q, k, lengths)
        s, size = s - far, size + np.abs(far)
    if mask is not None and mask.dtype != np.bool_:
        s, size = s + mask, size + np.abs(mask)
    return np.where(_seen(q, k, mask, lengths, causal, window), s, -np.inf), slope, size


def _weighted(p: Any, v: Any) -> Any:
    """p v, where a weight of zero makes nothing of whatever v holds."""
    if np.all(np.isfinite(v)):
        return np.matmul(p, v)
    return np.where(p[..., None] == 0, 0.0, p[..., None] * v[..., None, :, :]).sum(axis=-2)


def powers_of(s: Any, sinks: Any) -> tuple[Any, Any, Any]:
    """exp(s - top), their sum, and top, the largest of a row; a sink is one score more."""
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    sink = np.full(top.shape, -np.inf) if sinks is None else np.broadcast_to(sinks[:, None, None], top.shape)
    top = np.maximum(top, sink)
    base = np.where(top == -np.inf, 0.0, top)
    powers = np.exp(s - base)
    return powers, powers.sum(axis=-1, keepdims=True) + np.exp(sink - base), top


def shares(powers: Any, total: Any) -> Any:
    """Powers as parts of their sum, zero where there is none."""
    return powers / np.where(total == 0, 1.0, total)


def _probabilities(s: Any, lse: Any) -> Any:
    return np.where((s == -np.inf) | (lse[..., None] == -np.inf), 0.0, np.exp(np.minimum(s - lse[..., None], 0.0)))


@reference(attention)
def _attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    sinks: Any,
    *,
    return_lse: bool,
    dropout: float,
    seed: int,
    offset: int,
    **attrs: Any,
) -> Any:
    powers, total, top = powers_of(_scores(q, k, mask, lengths, alibi, **attrs)[0], sinks)
    p = shares(powers, total) * factors(powers.shape, dropout=dropout, seed=seed, offset=offset)
    y = _weighted(p, _grouped(v, q.shape[1]))
    return (y, (top + np.log(total))[..., 0]) if return_lse else y


def _fold(x: Any, like: Any) -> Any:
    """Sums over the heads that share one of ``like``."""
    batch, heads, keys = like.shape[:3]
    group = x.shape[1] // max(heads, 1)
    return x.reshape(batch, heads, group, keys, x.shape[-1]).sum(axis=2)


@reference(attention_dx)
def _attention_dx(
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    y: Any,
    lse: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    *,
    scale: float,
    dropout: float,
    seed: int,
    offset: int,
    return_slopes: bool,
    **attrs: Any,
) -> Any:
    s, slope, _ = _scores(q, k, mask, lengths, alibi, scale=scale, **attrs)
    p, kept = _probabilities(s, lse), factors(s.shape, dropout=dropout, seed=seed, offset=offset)
    wide_k, wide_v = _grouped(k, q.shape[1]), _grouped(v, q.shape[1])
    dp = np.matmul(dy, np.swapaxes(wide_v, -1, -2)) * kept - (dy * y).sum(axis=-1, keepdims=True)
    added = np.where(p == 0, 0.0, p * dp)
    ds = np.where(p == 0, 0.0, added * slope)
    turned = np.swapaxes(ds, -1, -2)
    dq, dk = _weighted(ds, wide_k) * scale, _weighted(turned, q) * scale
    grads = dq, _fold(dk, k), _fold(_weighted(np.swapaxes(p * kept, -1, -2), dy), v)
    return (*grads, added) if return_slopes else grads


# A score is off by the roundings of its sum, and a power by as much, relatively; so is what is weighted by it.
@terms(attention)
def _(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    sinks: Any,
    *,
    return_lse: bool,
    dropout: float,
    seed: int,
    offset: int,
    **attrs: Any,
) -> Any:
    s, _, size = _scores(q, k, mask, lengths, alibi, **attrs)
    powers, total, top = powers_of(s, sinks)
    p = shares(powers, total)
    off = np.where(p > 0, p * (1 + size + np.abs(s - top)), 0.0)
    wide, kept = np.abs(_grouped(v, q.shape[1])), 1 / (1 - dropout)
    y = kept * (np.matmul(off, wide) + off.sum(axis=-1, keepdims=True) * np.matmul(p, wide))
    return (
        (y, np.where(total == 0, 0.0, 1 + np.abs(top) + off.sum(axis=-1, keepdims=True))[..., 0]) if return_lse else y
    )


@terms(attention_dx)
def _(
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    y: Any,
    lse: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    *,
    scale: float,
    dropout: float,
    seed: int,
    offset: int,
    return_slopes: bool,
    **attrs: Any,
) -> Any:
    s, _, size = _scores(q, k, mask, lengths, alibi, scale=scale, **attrs)
    p, kept = _probabilities(s, lse), 1 / (1 - dropout)
    off = np.where(p > 0, p * (1 + size + np.abs(s - lse[..., None])), 0.0)
    wide_k, wide_v = np.abs(_grouped(k, q.shape[1])), np.abs(_grouped(v, q.shape[1]))
    dp = kept * np.matmul(np.abs(dy), np.swapaxes(wide_v, -1, -2)) + np.abs(dy * y).sum(axis=-1, keepdims=True)
    ds = off * dp * abs(scale)
    dk, dv = np.matmul(np.swapaxes(ds, -1, -2), np.abs(q)), kept * np.matmul(np.swapaxes(off, -1, -2), np.abs(dy))
    grads = np.matmul(ds, wide_k), _fold(dk, k), _fold(dv, v)
    return (*grads, off * dp) if return_slopes else grads


@depth(attention)
def _(q: Any, k: Any, v: Any, *others: Any, **attrs: Any) -> int:
    return int(q.shape[3] + k.shape[2])


@depth(attention_dx)
def _(dy: Any, q: Any, k: Any, v: Any, *others: Any, **attrs: Any) -> int:
    return int(q.shape[3] + v.shape[3] + k.shape[2] + q.shape[1] * q.shape[2])


# ------------------------------------------------------------------------------------------------- gradients


@forward(attention)
def _(*operands: Array, return_lse: bool, **attrs: Any) -> tuple[Any, Any]:
    saved = attention(*operands, return_lse=True, **attrs)
    return saved if return_lse else saved[0], saved


@backward(attention, of=("q", "k", "v", "mask", "sinks"))
def _(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    lengths: Array,
    alibi: Array,
    sinks: Array,
    *,
    saved: tuple[Array, Array] | None,
    wanted: Wanted,
    return_lse: bool,
    **attrs: Any,
) -> Any:
    y, lse = saved or attention(q, k, v, mask, lengths, alibi, sinks, return_lse=True, **attrs)
    slopes = "mask" in wanted and mask is not None and mask.dtype != np.bool_
    grads: Any = (None,) * 3
    if slopes or wanted & {"q", "k", "v"}:
        grads = attention_dx(dy, q, k, v, y, lse, mask, lengths, alibi, return_slopes=slopes, **attrs)
    kept = (g if n in wanted else None for g, n in zip(grads, ("q", "k", "v"), strict=False))
    dmask = _slope_of_mask(grads[3], mask) if slopes else None
    return *kept, dmask, _slope_of_sinks(dy, y, lse, sinks) if "sinks" in wanted else None


def _slope_of_mask(slopes: Array, mask: Array) -> Array:
    """The sum of slopes (B, H, T, S) over the axes along which the mask repeats."""
    whole = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    repeated = tuple(k for k in range(4) if whole[k] == 1 and slopes.shape[k] != 1)
    summed = ops.reduce_sum(slopes, axes=repeated) if repeated else slopes
    return ops.cast(ops.reshape(summed, shape=tuple(mask.shape)), dtype=mask.dtype)


def _slope_of_sinks(dy: Array, y: Array, lse: Array, sinks: Array) -> Array:
    """What the weight of a sink takes from all others: -sum of exp(sink - lse) dy y over sequences and queries."""
    narrow = sinks.dtype
    wide = dy.dtype if not is_narrow(dy.dtype) else np.float32
    dy, y, sinks = (ops.cast(a, dtype=wide) for a in (dy, y, sinks))
    weight = ops.exp(ops.sub(ops.reshape(sinks, shape=(-1, 1)), lse))
    delta = ops.reduce_sum(ops.mul(dy, y), axes=-1)
    return ops.cast(ops.neg(ops.reduce_sum(ops.mul(weight, delta), axes=(0, 2))), dtype=narrow)


for _target in (attention, attention_dx):
    dtypes(_target, *FLOATING)
    _target.rules["narrow_factors"] = True  # powers, on devices with matrix instructions
    _target.rules["tiles"] = True  # of bfloat16, powers and slopes among them, on tiers that have tiles
attention.rules["spreading"] = ("v",)
attention_dx.rules["spreading"] = ("dy", "q", "k", "v", "y", "lse")


# ------------------------------------------------------------------------------------------------- samples


@samples(attention)
def _(fill: Fill) -> Iterator[Sample]:
    def qkv(b: int, h: int, hkv: int, t: int, s: int, d: int, dv: int) -> tuple[Any, Any, Any]:
        return fill(b, h, t, d), fill(b, hkv, s, d), fill(b, hkv, s, dv)

    def some(*shape: int) -> Any:
        return fill.integers(*shape, low=0, high=3) > 0

    yield sample(*qkv(1, 1, 1, 1, 1, 1, 1))
    yield sample(*qkv(2, 2, 1, 3, 4, 5, 3), some(2, 1, 3, 4), np.array([3, 4], np.int32), causal=True, window=(2, 1))
    yield sample(*qkv(1, 1, 1, 13, 35, 17, 18), causal=True, return_lse=True)
    yield sample(*qkv(1, 2, 2, 12, 7, 8, 16), fill(12, 7), causal=True, softcap=3.0, scale=0.5)
    yield sample(*qkv(1, 4, 1, 2, 19, 4, 4), fill(4, 1, 19), return_lse=True)
    yield sample(*qkv(1, 2, 1, 7, 9, 3, 2), some(1, 2, 7, 1), window=1)
    yield sample(*qkv(2, 1, 1, 9, 5, 4, 3), None, np.array([0, 5]), scale=-1.0)
    q, k, v = (np.swapaxes(fill(1, n, 2, 6), 1, 2) for n in (10, 11, 11))
    yield sample(q, k, v, some(1, 1, 1, 11))
    yield sample(*qkv(1, 1, 1, 3, 300, 9, 5), softcap=2.0)
    yield sample(*qkv(1, 1, 1, 10, 270, 4, 3), None, np.array([262]), window=(261, 0))
    yield sample(*qkv(2, 2, 1, 3, 9, 5, 3), None, np.array([9, 0]), fill(2), fill(2), dropout=0.3, seed=5)
    drawn: dict[str, Any] = {"causal": True, "dropout": 0.5, "seed": 1 << 40, "offset": 3}
    yield sample(*qkv(1, 2, 2, 19, 21, 8, 9), some(1, 1, 19, 21), None, fill(2), fill(2), **drawn)
    for t, s, d, dv in ((0, 3, 2, 2), (3, 0, 2, 2), (3, 2, 0, 2), (9, 2, 2, 0)):
        yield sample(*qkv(1, 2, 1, t, s, d, dv))
    yield sample(*qkv(0, 2, 1, 3, 3, 2, 2))


@samples(attention_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for made in attention.rules["samples"](fill):
        attrs = {n: a for n, a in made.attrs.items() if n != "return_lse"}
        y, lse = attention.reference(*made.args, return_lse=True, **attrs)
        slopes = {"return_slopes": True} if len(made.args) > 3 else {}
        yield Sample((fill(*y.shape), *made.args[:3], y, lse, *made.args[3:6]), attrs | slopes)


@errors(attention)
def _(fill: Fill) -> Iterator[ErrorCase]:
    q, k, v = fill(2, 4, 3, 5), fill(2, 2, 6, 5), fill(2, 2, 6, 4)
    yield ErrorCase(sample(q, fill(2, 2, 6, 4), v), ShapeError, "want k (B, Hkv, S, D) with B=2 and D=5")
    yield ErrorCase(sample(q, k, fill(2, 2, 1, 4)), ShapeError, "v has shape (2, 2, 1, 4) but k has (2, 2, 6, 5)")
    yield ErrorCase(sample(q, fill(1, 2, 6, 5), v), ShapeError, "k has shape (1, 2, 6, 5)")
    yield ErrorCase(sample(q, fill(2, 3, 6, 5), fill(2, 3, 6, 4)), ShapeError, "q has H=4 heads but k has 3")
    yield ErrorCase(sample(q, fill(2, 0, 6, 5), fill(2, 0, 6, 4)), ShapeError, "q has H=4 heads but k has 0")
    yield ErrorCase(sample(q[0], k, v), ShapeError, "q has 3 dimensions; want 4")
    yield ErrorCase(sample(q, k, v, fill(2, 6)), ShapeError, "want one that broadcasts to (2, 4, 3, 6)")
    yield ErrorCase(sample(q, k, v, fill(1, 2, 4, 3, 6)), ShapeError, "mask has 5 dimensions; want 0 to 4")
    yield ErrorCase(sample(q, k, v, np.ones((3, 6), np.int32)), DTypeError, "mask has dtype int32; want bool or")
    yield ErrorCase(sample(q, k, v, None, np.array([3, 7])), IndexContentError, "lengths has 7 at position 1; want 0")
    yield ErrorCase(sample(q, k, v, None, np.array([-1, 7])), IndexContentError, "lengths has -1 at position 0; want 0")
    yield ErrorCase(sample(q, k, v, None, np.array([3])), ShapeError, "lengths has shape (1,); want (2,)")
    yield ErrorCase(sample(q, k, v, None, fill(2)), DTypeError, "want int32 or int64")
    for scale in (math.nan, math.inf, 1e30):
        yield ErrorCase(sample(q, k, v, scale=scale), AttrError, f"scale={scale:g}; want a number between")
    yield ErrorCase(sample(q, k, v, softcap=-1.0), AttrError, "softcap=-1; want 0 for none")
    yield ErrorCase(sample(q, k, v, None, None, fill(2)), ShapeError, "alibi has shape (2,); want (4,)")
    yield ErrorCase(sample(q, k, v, None, None, None, fill(3)), ShapeError, "sinks has shape (3,); want (4,)")
    for p in (-0.1, 1.0, math.nan):
        yield ErrorCase(sample(q, k, v, dropout=p, seed=1), AttrError, f"dropout={p:g}; want a probability")
    yield ErrorCase(sample(q, k, v, dropout=0.1), AttrError, "seed is None with dropout=0.1; want a number")
    yield ErrorCase(sample(q, k, v, dropout=0.1, seed=-1), AttrError, "seed=-1; want 0 or more")
    yield ErrorCase(sample(q, k, v, window=-1), AttrError, "window=-1; want 0 or more")
    yield ErrorCase(sample(q, k, v, window=(1, 2, 3)), AttrError, "has 3 numbers; want one or 2")
    yield ErrorCase(sample(q, k, v, causal=2), AttrTypeError, "causal=2")


@errors(attention_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    q, k, v, y = fill(1, 2, 3, 5), fill(1, 2, 6, 5), fill(1, 2, 6, 4), fill(1, 2, 3, 4)
    lse = np.zeros((1, 2, 3), np.float64 if fill.dtype == np.float64 else np.float32)
    yield ErrorCase(sample(y[..., :3], q, k, v, y, lse), ShapeError, "dy has shape (1, 2, 3, 3); want (1, 2, 3, 4)")
    yield ErrorCase(sample(y, q, k, v, y[:, :1], lse), ShapeError, "y has shape (1, 1, 3, 4); want (1, 2, 3, 4)")
    yield ErrorCase(sample(y, q, k, v, y, lse[:, :, :2]), ShapeError, "lse has shape (1, 2, 2); want (1, 2, 3)")
    yield ErrorCase(sample(y, q, k, v, y, lse.astype(np.int32)), DTypeError, "lse has dtype int32; want float")


# ------------------------------------------------------------------------------------------------- workloads


_DECODE = ("llm-decode",)


@workloads(attention)
def _() -> Iterator[Workload]:
    yield Workload("H12 S512 D64", ((1, 12, 512, 64),) * 3, sets=("transformer",))
    yield Workload("H32 S2048 D128 causal", ((1, 32, 2048, 128),) * 3, {"causal": True}, sets=("transformer",))
    for kv_heads in (32, 8):
        keys = (1, kv_heads, 2048, 128)
        yield Workload(f"decode H32/{kv_heads} S2048 D128", ((1, 32, 1, 128), keys, keys), sets=_DECODE)


@workloads(attention_dx)
def _() -> Iterator[Workload]:
    for heads, size, width, attrs in ((12, 512, 64, {}), (32, 2048, 128, {"causal": True})):
        one = (1, heads, size, width)
        name = f"H{heads} S{size} D{width}" + (" causal" if attrs else "")
        yield Workload(name, (one,) * 5 + (one[:3],), dict(attrs), sets=("transformer",))


@fills(attention_dx)
def _(fill: Fill, dy: Sizes, q: Sizes, k: Sizes, v: Sizes, y: Sizes, lse: Sizes, *others: Any, **attrs: Any) -> Any:
    sums = fill.positive(*lse).astype(np.float32 if is_narrow(fill.dtype) else fill.dtype)
    return (
        fill(*dy),
        fill(*q),
        fill(*k),
        fill(*v),
        fill(*y),
        sums + sums.dtype.type(math.log(max(k[2], 1))),
        None,
        None,
        None,
    )


@flops(attention)
def _(q: Sizes, k: Sizes, v: Sizes, *others: Any, causal: bool, **attrs: Any) -> float:
    return 2.0 * math.prod(q[:3]) * k[2] * (q[3] + v[3]) / (2 if causal else 1)


@flops(attention_dx)
def _(dy: Sizes, q: Sizes, k: Sizes, v: Sizes, *others: Any, causal: bool, **attrs: Any) -> float:
    return 2.0 * math.prod(q[:3]) * k[2] * (3 * q[3] + 2 * v[3]) / (2 if causal else 1)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(attention)
def _(
    queue: Queue,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    sinks: Any,
    y: Any,
    *lse: Any,
    return_lse: bool,
    **attrs: Any,
) -> None:
    launch = Launch(queue, q, k, v, mask, lengths, alibi, sinks, **attrs)
    launch.attend(sinks, y, lse[0] if return_lse else queue.empty(q.shape[:3], accumulator(q.dtype)))


@opencl(attention_dx)
def _(
    queue: Queue,
    dy: Any,
    q: Any,
    k: Any,
    v: Any,
    y: Any,
    lse: Any,
    mask: Any,
    lengths: Any,
    alibi: Any,
    dq: Any,
    dk: Any,
    dv: Any,
    *slopes: Any,
    **attrs: Any,
) -> None:
    Launch(queue, q, k, v, mask, lengths, alibi, **attrs).gradients(dy, y, lse, dq, dk, dv, *slopes)
