"""Keys and values of what was seen: of a batch in memory made once, or of many sequences in the pages of one pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tilework import ops
from tilework.arrays import Array
from tilework.errors import AttrError, ShapeError


class _Places:
    """Keys (N, Hkv, L, D) and values (N, Hkv, L, Dv) in one dtype; in 8 bits with their scales (N, Hkv, L)."""

    def __init__(self, shape: tuple[int, int, int], depth: int, width: int, dtype: npt.DTypeLike) -> None:
        self.k, self.v = np.zeros((*shape, depth), dtype), np.zeros((*shape, width), dtype)
        self.coded = self.k.dtype == np.int8
        self.k_scale, self.v_scale = (np.zeros(shape, np.float32) if self.coded else None for _ in range(2))

    @property
    def arrays(self) -> tuple[Any, ...]:
        return tuple(a for a in (self.k, self.v, self.k_scale, self.v_scale) if a is not None)

    def write(self, at: Any, k: Array, v: Array) -> None:
        """Rounds k and v (..., T, D) into the places ``at``."""
        for a, own, scale in ((k, self.k, self.k_scale), (v, self.v, self.v_scale)):
            if scale is None:
                ops.cast(a, dtype=own.dtype, out=own[at])
            else:
                ops.quantize_rows(a, out=(own[at], scale[at]))

    def extended(self, begin: int, count: int, more: int) -> _Places:
        """A copy of ``count`` places from ``begin`` on, with room for ``more``."""
        made = _Places((*self.k.shape[:2], count + more), self.k.shape[3], self.v.shape[3], self.k.dtype)
        for a, own in zip(made.arrays, self.arrays, strict=True):
            a[:, :, :count] = own[:, :, begin : begin + count]
        return made

    def attend(self, q: Array, table: Any, lengths: Any, **attrs: Any) -> Array:
        made: Array = ops.paged_attention(q, self.k, self.v, table, lengths, self.k_scale, self.v_scale, **attrs)
        return made


def _check(op: str, k: Array, v: Array, own: _Places, first: tuple[Any, ...]) -> None:
    """Raises a ShapeError unless k and v are as many new places."""
    for name, a, pool in (("k", k, own.k), ("v", v, own.v)):
        want = (*first, "T", pool.shape[3])
        if a.ndim != len(want) or (*a.shape[:-2], a.shape[-1]) != (*first, want[-1]) or a.shape[-2] != k.shape[-2]:
            raise ShapeError(f"{op}: {name} has shape {a.shape}; want {want}", op=op, argument=name)


def _positive(op: str, **sizes: Any) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise AttrError(f"{op}: {name}={value!r}; want 1 or more", op=op, argument=name)


class KVCache:
    """Keys (B, Hkv, n, D) and values (B, Hkv, n, Dv) of what was seen, in memory made once.

    ``dtype`` is any floating one, or int8: codes with a float32 scale per head and place, which ``attend`` reads as
    they are. It takes ``capacity`` places; one more is an error. With a ``window`` it keeps that many last places for
    ever: they slide through twice the window, and move to its front when they reach its end.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        depth: int,
        *,
        capacity: int | None = None,
        window: int | None = None,
        width: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if (capacity is None) == (window is None):
            text = f"KVCache: capacity={capacity!r} and window={window!r}; want one of them"
            raise AttrError(text, op="KVCache", argument="capacity")
        _positive("KVCache", **({"capacity": capacity} if window is None else {"window": window}))
        places = 2 * window if window is not None else capacity or 0
        self.window = window
        self._own = _Places((batch, heads, places), depth, depth if width is None else width, dtype)
        self._table = np.arange(batch)[:, None]
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def _seen(self, a: Any) -> Any:
        """The places that are kept."""
        return a[:, :, self._begin : self._end]

    @property
    def k(self) -> Array:
        """The keys, a view; in 8 bits codes."""
        return self._seen(self._own.k)

    @property
    def v(self) -> Array:
        """The values, a view; in 8 bits codes."""
        return self._seen(self._own.v)

    @property
    def scales(self) -> tuple[Array, Array] | None:
        """What codes of k and v are multiplied by, (B, Hkv, n) each, views."""
        if not self._own.coded:
            return None
        return self._seen(self._own.k_scale), self._seen(self._own.v_scale)

    def append(self, k: Array, v: Array) -> None:
        """Adds the places of k (B, Hkv, T, D) and v (B, Hkv, T, Dv), rounded to the dtype of the cache."""
        _check("KVCache", k, v, self._own, self._own.k.shape[:2])
        count, places = k.shape[2], self._own.k.shape[2]
        if self.window is not None and count > self.window:
            k, v, count = k[:, :, -self.window :], v[:, :, -self.window :], self.window
        if self._end + count > places:
            if self.window is None:
                raise ShapeError(
                    f"KVCache: {count} places more than {self._end} exceed capacity={places}; want a larger one",
                    op="KVCache",
                    argument="k",
                )
            kept = len(self)
            for own in self._own.arrays:
                own[:, :, :kept] = own[:, :, self._end - kept : self._end].copy()
            self._begin, self._end = 0, kept
        self._own.write((slice(None), slice(None), slice(self._end, self._end + count)), k, v)
        self._end += count
        if self.window is not None:
            self._begin = max(self._begin, self._end - self.window)

    def attend(self, q: Array, k: Array, v: Array, **attrs: Any) -> Array:
        """Appends k and v, then attends from q (B, H, T, D) of the same places to all that is kept, causally."""
        before = len(self)
        # Of many queries, the first sees places that the last of them has left behind.
        if self.window is None or k.shape[2] <= 1:
            self.append(k, v)
            seen = [self._seen(a) for a in self._own.arrays]
        else:
            _check("KVCache", k, v, self._own, self._own.k.shape[:2])
            whole = self._own.extended(self._begin, before, k.shape[2])
            whole.write((slice(None), slice(None), slice(before, None)), k, v)
            seen = list(whole.arrays)
            self.append(k, v)
        window = None if self.window is None else (self.window - 1, 0)
        keys, values, *scales = seen
        y: Array
        if q.dtype == keys.dtype:
            y = ops.attention(q, keys, values, causal=True, window=window, **attrs)
        else:
            k_scale, v_scale = scales or (None, None)
            lengths = np.full(len(self._table), keys.shape[2])
            operands = q, keys, values, self._table, lengths, k_scale, v_scale
            y = ops.paged_attention(*operands, causal=True, window=window, **attrs)
        return y


class KVPages:
    """Pages of ``page`` keys (Hkv, L, D) and values (Hkv, L, Dv), which sequences take from one pool and give back.

    ``dtype`` is any floating one, or int8: codes with a float32 scale per head and place.
    """

    def __init__(
        self,
        heads: int,
        depth: int,
        *,
        pages: int,
        page: int = 64,
        width: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        _positive("KVPages", pages=pages, page=page)
        self.page = page
        self._own = _Places((pages, heads, page), depth, depth if width is None else width, dtype)
        self._named = [0] * pages  # how many sequences name a page
        self._free = list(reversed(range(pages)))

    @property
    def free(self) -> int:
        """How many pages no sequence has."""
        return len(self._free)

    def sequence(self, *, window: int | None = None) -> KVSequence:
        """An empty sequence; with a ``window`` it gives pages back that lie wholly before its last places."""
        if window is not None:
            _positive("KVPages", window=window)
        return KVSequence(self, window)

    def attend(self, sequences: Sequence[KVSequence], q: Array, k: Array, v: Array, **attrs: Any) -> Array:
        """Appends k and v (B, Hkv, T, D) to B sequences, then attends from q (B, H, T, D) of the same places, causally.

        Each sequence sees its own places; all have the same window, or none.
        """
        count = len(sequences)
        if len({id(s) for s in sequences}) < count or any(s.pool is not self for s in sequences):
            text = "KVPages: sequences are not of this pool, or one stands there twice; want each once"
            raise AttrError(text, op="KVPages", argument="sequences")
        if len({s.window for s in sequences}) > 1:
            text = f"KVPages: windows are {[s.window for s in sequences]}; want the same of all"
            raise AttrError(text, op="KVPages", argument="sequences")
        _check("KVPages", k, v, self._own, (count, self._own.k.shape[1]))
        self._want(sum(s.pages_for(k.shape[2]) for s in sequences))
        for b, s in enumerate(sequences):
            s.extend(k[b], v[b])
        table = np.zeros((count, max((len(s.pages) for s in sequences), default=0)), np.int64)
        for b, s in enumerate(sequences):
            table[b, : len(s.pages)] = s.pages
        window = None if not count or sequences[0].window is None else (sequences[0].window - 1, 0)
        lengths = np.array([s.places for s in sequences], np.int64)
        y = self._own.attend(q, table, lengths, causal=True, window=window, **attrs)
        for s in sequences:
            s.slide()
        return y

    def _want(self, pages: int) -> None:
        if pages > len(self._free):
            text = f"KVPages: {pages} pages are needed but {len(self._free)} are free; want more, or release sequences"
            raise ShapeError(text, op="KVPages", argument="k")

    def take(self) -> int:
        """A page for one sequence."""
        page = self._free.pop()
        self._named[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more sequence names a page."""
        self._named[page] += 1

    def give_back(self, page: int) -> None:
        """One sequence less names a page; without any it is free."""
        self._named[page] -= 1
        if self._named[page] == 0:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether several sequences name a page."""
        return self._named[page] > 1

    def write(self, page: int, first: int, k: Array, v: Array) -> None:
        """Rounds k and v (Hkv, n, D) into the places of a page from ``first`` on."""
        self._own.write((page, slice(None), slice(first, first + k.shape[1])), k, v)

    def copy(self, source: int, target: int) -> None:
        """All places of one page into another."""
        for a in self._own.arrays:
            a[target] = a[source]


class KVSequence:
    """The places of one sequence in the pages of a pool: what ``KVPages.sequence`` gives."""

    def __init__(self, pool: KVPages, window: int | None) -> None:
        self.pool, self.window = pool, window
        self.pages: list[int] = []
        self.places = 0  # in these pages; those before the window too, as far as their page is there

    def __len__(self) -> int:
        return self.places if self.window is None else min(self.places, self.window)

    def pages_for(self, count: int) -> int:
        """How many free pages ``count`` more places need."""
        return -(-(self.places + count) // self.pool.page) - len(self.pages) + int(count > 0 and self._splits())

    def _splits(self) -> bool:
        """Whether the last page has room, and another sequence names it."""
        return self.places % self.pool.page != 0 and self.pool.is_shared(self.pages[-1])

    def append(self, k: Array, v: Array) -> None:
        """Adds the places of k (Hkv, T, D) and v (Hkv, T, Dv), rounded to the dtype of the pool."""
        _check("KVPages", k, v, self.pool._own, self.pool._own.k.shape[1:2])
        self.pool._want(self.pages_for(k.shape[1]))
        self.extend(k, v)
        self.slide()

    def extend(self, k: Array, v: Array) -> None:
        """``append`` for what is checked, without giving pages back."""
        page, count, done = self.pool.page, k.shape[1], 0
        if count and self._splits():
            shared, self.pages[-1] = self.pages[-1], self.pool.take()
            self.pool.copy(shared, self.pages[-1])
            self.pool.give_back(shared)
        while done < count:
            first = self.places % page
            if first == 0:
                self.pages.append(self.pool.take())
            some = min(page - first, count - done)
            self.pool.write(self.pages[-1], first, k[:, done : done + some], v[:, done : done + some])
            self.places, done = self.places + some, done + some

    def slide(self) -> None:
        """Gives back the pages that lie before the window."""
        while self.window is not None and self.places - self.pool.page >= self.window:
            self.pool.give_back(self.pages.pop(0))
            self.places -= self.pool.page

    def fork(self) -> KVSequence:
        """A sequence that begins with the same places: whole pages stay shared, the last is copied when one goes on."""
        other = KVSequence(self.pool, self.window)
        other.pages, other.places = list(self.pages), self.places
        for page in self.pages:
            self.pool.share(page)
        return other

    def release(self) -> None:
        """Gives all pages back and is empty."""
        for page in self.pages:
            self.pool.give_back(page)
        self.pages, self.places = [], 0
