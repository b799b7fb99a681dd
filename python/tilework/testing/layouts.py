"""Arrays with given values in awkward places: strided, backward, misaligned, borrowed, between guard pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilework.dtypes import is_small
from tilework.testing.cases import Array


class Borrowed:
    """An array of another library: nothing but the two DLPack methods."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def dense_strides(a: Array) -> list[int]:
    """The strides in bytes of a contiguous array of the shape of ``a``."""
    return list(np.empty(a.shape, a.dtype).strides)


def placed(a: Array, strides: Sequence[int], start: int, nbytes: int) -> Array:
    """A copy of ``a`` with the given strides, in a buffer of bytes that is its base."""
    view: Array = np.ndarray(a.shape, a.dtype, np.full(nbytes, 0x5A, np.uint8), start, tuple(strides))
    view[...] = a
    return view


def layouts(a: Array) -> Iterator[tuple[str, Any]]:
    """The values of ``a`` in memory layouts that an op must read alike."""
    size, strides = a.itemsize, dense_strides(a)
    n = max(a.size, 1) * size
    last = sum(s * (m - 1) for s, m in zip(strides, a.shape, strict=True)) if a.size else 0
    packed = [s // size * (size + 1) for s in strides]
    yield "transposed", a.copy(order="F")
    yield "every third element", placed(a, [3 * s for s in strides], 0, 3 * n)
    yield "backward", placed(a, [-s for s in strides], last, n)
    yield "one element off", placed(a, strides, size, n + size)
    yield "misaligned by a byte", placed(a, strides, 1, n + 1)
    yield "a field of packed records", placed(a, packed, 1, n // size * (size + 1) + 1)
    frozen = a.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    if a.dtype.kind in "fiub" and not is_small(a.dtype):
        yield "borrowed", Borrowed(a.copy())


def gaps(a: Any) -> bytes:
    """The bytes of a placed array's buffer that are not its own."""
    base = getattr(a, "base", None)
    if not isinstance(base, np.ndarray) or base.dtype != np.uint8:
        return b""
    outside = np.ones(base.size, bool)
    start = a.ctypes.data - base.ctypes.data
    for index in np.ndindex(*a.shape):
        at = start + sum(i * s for i, s in zip(index, a.strides, strict=True))
        outside[at : at + a.itemsize] = False
    return base[outside].tobytes()


def guarded(a: Array, *, at_end: bool, step: int = 1) -> Array:
    """A copy of ``a``, ``step`` elements apart, that begins behind or ends before a page that cannot be touched."""
    libc = ctypes.CDLL(None, use_errno=True)
    nbytes = ((a.size - 1) * step + 1) * a.itemsize if a.size else 0
    inner = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
    pages = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for guard in (base, base + mmap.PAGESIZE + inner):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = mmap.PAGESIZE + (inner - nbytes if at_end else 0)
    view: Array = np.ndarray(a.shape, a.dtype, pages, start, tuple(s * step for s in dense_strides(a)))
    view[...] = a
    return view
