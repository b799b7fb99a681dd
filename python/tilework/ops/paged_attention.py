"""Attention to keys and values in the pages of a pool that sequences share, in 8 bits too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Ints, Sizes
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import FLOATING, rounded
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
from tilework.ops.attention import attention
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    bytes_moved,
    depth,
    dtypes,
    errors,
    fills,
    flops,
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
def paged_attention(
    q: Array,
    k: Array,
    v: Array,
    table: Array,
    lengths: Array,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    alibi: Array | None = None,
    sinks: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Ints | None = None,
    softcap: float = 0.0,
    out: Array | None = None,
) -> Array:
    """Attends from q (B, H, T, D) to pages k (P, Hkv, L, D) and v (P, Hkv, L, Dv) of a pool, giving (B, H, T, Dv).

    The keys of sequence b are those of pages table[b, 0], table[b, 1] ... of table (B, M), one behind the other; the
    first lengths[b] of them count, and what is behind is never read, in the table neither. Several sequences may name
    one page. k and v have the dtype of q, or beside 32 bits or fewer any of float32, float16, bfloat16 and int8: codes
    that stand for k_scale k and v_scale v, both (P, Hkv, L) in float32, as ``quantize_rows`` makes them. All the rest
    is as in ``attention``, without a gradient. Kwon et al., "Efficient memory management for large language model
    serving with PagedAttention", 2023.
    """
    ...


def _gathered(pool: Any, table: Any, lengths: Any, by: Any) -> Any:
    """Places (B, Hkv, M L, D) of all sequences, zero behind their lengths, in float64."""
    _, heads, page, columns = pool.shape
    made = np.zeros((len(table), heads, table.shape[1] * page, columns))
    for b, length in enumerate(lengths):
        for i in range(-(-int(length) // page) if page else 0):
            own = pool[table[b, i]].astype(np.float64)
            made[b, :, i * page : (i + 1) * page] = own if by is None else own * by[table[b, i]][..., None]
        made[b, :, int(length) :] = 0
    return made


def _as_attention(
    q: Any, k: Any, v: Any, table: Any, lengths: Any, k_scale: Any, v_scale: Any, alibi: Any, sinks: Any
) -> tuple[Any, ...]:
    """The operands of ``attention`` that mean the same."""
    keys, values = (_gathered(pool, table, lengths, by) for pool, by in ((k, k_scale), (v, v_scale)))
    return q, keys, values, None, lengths, alibi, sinks


_PLAIN: dict[str, Any] = {"dropout": 0.0, "seed": 0, "offset": 0, "return_lse": False}


@reference(paged_attention)
def _(*operands: Any, **attrs: Any) -> Any:
    return attention.rules["reference"](*_as_attention(*operands), **attrs, **_PLAIN)


@terms(paged_attention)
def _(*operands: Any, **attrs: Any) -> Any:
    y = attention.rules["terms"](*_as_attention(*operands), **attrs, **_PLAIN)
    return y if isinstance(y, tuple) else (y,)


@depth(paged_attention)
def _(q: Any, k: Any, v: Any, table: Any, *others: Any, **attrs: Any) -> int:
    return int(q.shape[3] + table.shape[1] * k.shape[2])


dtypes(paged_attention, *FLOATING)
paged_attention.rules["spreading"] = ("v", "v_scale")


# ------------------------------------------------------------------------------------------------- samples


def _pool(fill: Fill, pages: int, heads: int, page: int, depth: int, width: int) -> tuple[Any, Any]:
    return fill(pages, heads, page, depth), fill(pages, heads, page, width)


def _codes(fill: Fill, *shape: int) -> tuple[Any, Any]:
    return fill.integers(*shape, low=-127, high=128, dtype=np.int8), np.asarray(
        fill.positive(*shape[:3]) * 0.01, np.float32
    )


@samples(paged_attention)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1, 1, 1), *_pool(fill, 1, 1, 1, 1, 1), np.array([[0]]), np.array([1]))
    table = np.array([[4, 0, 2, 7], [1, 4, -5, 99]], np.int32)
    pool, lengths = _pool(fill, 8, 2, 5, 17, 9), np.array([17, 8], np.int32)
    yield sample(fill(2, 4, 3, 17), *pool, table, lengths, None, None, fill(4), fill(4), causal=True, softcap=3.0)
    yield sample(fill(2, 2, 40, 17), *pool, table, lengths, causal=True, window=(4, 0))
    q, k, v = (np.swapaxes(fill(3, n, 2, 6), 1, 2) for n in (2, 11, 11))
    yield sample(q, k, v, np.array([[2], [0], [1]]), np.array([11, 0, 5]), scale=-0.5)
    yield sample(fill(1, 2, 1, 3), *_pool(fill, 3, 1, 200, 3, 2), np.array([[2, 1]]), np.array([390]))
    if fill.dtype != np.float64:
        k, k_scale = _codes(fill, 8, 2, 5, 17)
        v, v_scale = _codes(fill, 8, 2, 5, 9)
        yield sample(fill(2, 4, 3, 17), k, v, table, lengths, k_scale, v_scale, causal=True)
        for name in ("float32", "float16"):
            yield sample(fill(2, 4, 1, 17), *(rounded(a, name) for a in pool), table, lengths)
    yield sample(fill(0, 2, 3, 17), *pool, table[:0], lengths[:0])
    yield sample(fill(1, 2, 2, 3), *_pool(fill, 0, 1, 4, 3, 2), np.zeros((1, 0), np.int64), np.array([0]))


@errors(paged_attention)
def _(fill: Fill) -> Iterator[ErrorCase]:
    q, (k, v) = fill(2, 4, 3, 5), _pool(fill, 6, 2, 4, 5, 3)
    table, lengths = np.array([[0, 1], [2, 3]]), np.array([8, 5])
    codes, scales = np.ones((6, 2, 4, 5), np.int8), np.ones((6, 2, 4), np.float32)

    def made(*operands: Any, **attrs: Any) -> Sample:
        return sample(*operands, *(q, k, v, table, lengths)[len(operands) :], **attrs)

    yield ErrorCase(made(q[0]), ShapeError, "q has 3 dimensions; want 4")
    yield ErrorCase(made(q, k[..., :4]), ShapeError, "want k (P, Hkv, L, D) with D=5")
    yield ErrorCase(made(fill(2, 3, 3, 5)), ShapeError, "q has H=3 heads but k has 2; want a divisor of H")
    yield ErrorCase(made(q, k, v[:5]), ShapeError, "v has shape (5, 2, 4, 3) but k has (6, 2, 4, 5)")
    yield ErrorCase(made(q, k.astype(np.int32)), DTypeError, "k has dtype int32; want")
    yield ErrorCase(made(q, k, v, table[:1]), ShapeError, "table has shape (1, 2) but q has B=2; want (2, pages)")
    yield ErrorCase(made(q, k, v, fill(2, 2)), DTypeError, "want int32 or int64")
    for bad in (6, -1):
        text = f"table has {bad} at position 3; want 0 to 5"
        yield ErrorCase(made(q, k, v, np.array([[0, 1], [2, bad]])), IndexContentError, text)
    for bad in (9, -1):
        text = f"lengths has {bad} at position 1; want 0 to 8"
        yield ErrorCase(made(q, k, v, table, np.array([8, bad])), IndexContentError, text)
    yield ErrorCase(made(q, k, v, table, lengths, scales), DTypeError, "k_scale is given but k has dtype")
    if fill.dtype != np.float64:
        yield ErrorCase(made(q, codes, codes), DTypeError, "k_scale is None but k has int8; want float32 scales")
        operands = q, codes, codes, table, lengths, scales
        yield ErrorCase(made(*operands, scales[:5]), ShapeError, "v_scale has shape (5, 2, 4); want (6, 2, 4)")
    yield ErrorCase(made(scale=math.nan), AttrError, "scale=nan; want a number between")


# ------------------------------------------------------------------------------------------------- workloads

_PAGES = ((1, 32, 1, 128), (40, 8, 64, 128), (40, 8, 64, 128), (1, 32), (1,))


@workloads(paged_attention)
def _() -> Iterator[Workload]:
    yield Workload("decode H32/8 S2048 D128, pages of 64", _PAGES, sets=("llm-decode",))


@fills(paged_attention)
def _(
    fill: Fill,
    q: Sizes,
    k: Sizes,
    v: Sizes,
    table: Sizes,
    lengths: Sizes,
    k_scale: Sizes | None,
    *others: Any,
    **attrs: Any,
) -> Any:
    order = np.arange(math.prod(table), dtype=np.int64) % max(k[0], 1)
    rows = order.reshape(table), np.full(lengths, table[1] * k[2], np.int64)
    if k_scale is None:
        return fill(*q), fill(*k), fill(*v), *rows, None, None, None, None
    (keys, by_key), (values, by_value) = _codes(fill, *k), _codes(fill, *v)
    return fill(*q), keys, values, *rows, by_key, by_value, None, None


@flops(paged_attention)
def _(q: Sizes, k: Sizes, v: Sizes, table: Sizes, *others: Any, causal: bool, **attrs: Any) -> float:
    return 2.0 * math.prod(q[:3]) * table[1] * k[2] * (q[3] + v[3]) / (2 if causal else 1)


@bytes_moved(paged_attention)
def _(
    q: Sizes, k: Sizes, v: Sizes, table: Sizes, lengths: Sizes, k_scale: Sizes | None, *others: Any, **attrs: Any
) -> tuple[float, float]:
    places, each = math.prod(table) * k[1] * k[2], 1.0 if k_scale else 4.0
    scales = 8.0 * places if k_scale else 0.0
    return each * places * (k[3] + v[3]) + scales + 4.0 * math.prod(q), 4.0 * math.prod(q[:3]) * v[3]


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(paged_attention)
def _(
    queue: Queue,
    q: Any,
    k: Any,
    v: Any,
    table: Any,
    lengths: Any,
    k_scale: Any,
    v_scale: Any,
    alibi: Any,
    sinks: Any,
    y: Any,
    *,
    causal: bool,
    scale: float,
    window: Any,
    softcap: float,
) -> None:
    group = 64
    places, pages, page = table.shape[1] * k.shape[2], k.shape[0], k.shape[2]
    queue.check_indices("lengths", lengths, places + 1)
    counts, named = (queue.read(queue.contiguous(a)).astype(np.int64) for a in (lengths, table))
    for b, count in enumerate(counts.tolist()):
        own = named[b, : -(-count // page) if page else 0]
        for i in np.flatnonzero((own < 0) | (own >= pages)):
            text = f"table has {own[i]} at position {b * table.shape[1] + i}; want 0 to {pages - 1}"
            raise IndexContentError(text, argument="table")
    far = 1 << 40
    left, right = window or (far, far)
    right = min(right, 0) if causal else right
    none = queue.number(0, np.int32)  # for a kernel that never looks at it
    sizes = (q.shape[1], k.shape[1], q.shape[2], table.shape[1], page, q.shape[3], v.shape[3], left, right)
    flags = (alibi is not None, sinks is not None, k_scale is not None)
    operands = (q, k, v, queue.as_int64(table), queue.as_int64(lengths), k_scale, v_scale, alibi, sinks, y)
    args = [none if a is None or a.size == 0 else a for a in operands]
    args += [scale, softcap, np.array([*sizes, *flags], np.int64)]
    columns = 1 << max(-(-v.shape[3] // group) - 1, 0).bit_length()
    define = {"DTYPE": q.dtype, "STORED": k.dtype, "GROUP": group, "COLUMNS": columns}
    queue.launch("paged_attention.cl", "attend_pages", math.prod(q.shape[:3]) * group, group, args, **define)
