"""Launching matmul.cl: matrix products of any strides and batches, in floats of any width and in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, merged, strides_of
from tilework.backends.opencl_tiles import Tiles, shares_for, tiles_for


def accumulator(dtype: Any) -> Any:
    """The element type in which a product of ``dtype`` is summed."""
    dtype = np.dtype(dtype)
    return dtype if dtype == np.float64 else np.dtype(np.int32 if dtype.kind in "iu" else np.float32)


def add_shares(queue: Queue, partial: Any, y: Any, bias: Any, **define: Any) -> None:
    """Adds the shares of ``partial`` (shares, *y.shape) in order into y, then bias and activation."""
    args = (partial, *([bias] if bias is not None else []), y, y.size, y.shape[-1], partial.shape[0])
    queue.launch("matmul.cl", "add_shares", y.size, GROUP_SIZE, args, DTYPE=y.dtype, SUM_ONLY=1, **define)


def epilogue(bias: Any, activation: str | None) -> dict[str, Any]:
    """The -D options of an epilogue."""
    define: dict[str, Any] = {} if bias is None else {"BIAS": 1}
    if activation is not None:
        define["ACTIVATION"] = f"act_{activation}"
    return define


def multiply(queue: Queue, a: Any, b: Any, y: Any, bias: Any = None, activation: str | None = None) -> None:
    """y = activation(a b + bias) by numpy.matmul's rules; y is contiguous, a and b may have any strides."""
    product = Product(a, b)
    if product.m * product.n * product.count == 0:
        return
    tiles = product.tiles(queue, y.dtype)
    shares, share = shares_for(tiles, product.m, product.n, product.k, product.count)
    last = epilogue(bias, activation)
    args = [Strided(a), Strided(b)]
    define = product.define(tiles, y) | {"DTYPE": y.dtype, "SHARES": shares}
    if shares == 1:
        define |= last
        args += [bias] if bias is not None else []
        target = y
    else:
        define.pop("PAIRS", None)
        target = queue.empty((shares, product.count * product.m, product.n), accumulator(y.dtype))
    items = tiles.count(product.m, product.n) * product.count * shares * tiles.group
    queue.launch("matmul.cl", "matmul", items, tiles.group, (*args, target, product.struct(share)), **define)
    if shares > 1:
        add_shares(queue, target, y.reshape(product.count * product.m, product.n), bias, **last)


def multiply_bytes(queue: Queue, a: Any, b: Any, y: Any, a_zero: Any = None, b_zero: Any = None) -> None:
    """y (M, N) int32 = (a - a_zero) (b - b_zero), modulo 2^32, of a (M, K) and b (K, N), each int8 or uint8.

    a_zero is None, or of a's dtype and shape () or (M,); b_zero is None, or of b's dtype and shape () or (N,). y is
    contiguous, the others may have any strides.
    """
    product = Product(a, b)
    if product.m * product.n == 0:
        return
    tiles = product.tiles(queue, a.dtype)
    define = product.define(tiles, y) | {"DTYPE": a.dtype, "B_DTYPE": b.dtype, "SHARES": 1}
    args: list[Any] = [Strided(a), Strided(b)]
    steps = [0, 0]
    if a_zero is not None or b_zero is not None:
        zeros = [queue.number(0, x.dtype) if z is None else z for x, z in ((a, a_zero), (b, b_zero))]
        steps = [strides_of(z)[0] if z.ndim and z.size > 1 else 0 for z in zeros]
        args += [*map(Strided, zeros), line_sums(queue, a), line_sums(queue, b.T)]
        define["ZEROS"] = 1
    items = tiles.count(product.m, product.n) * tiles.group
    struct = product.struct(product.k + -product.k % tiles.k, *steps)
    queue.launch("matmul.cl", "matmul", items, tiles.group, (*args, y, struct), **define)


def line_sums(queue: Queue, x: Any) -> Any:
    """The sums of the rows of x, int8 or uint8, as int32."""
    sums = queue.empty(x.shape[:1], np.int32)
    args = (Strided(x), sums, *x.shape, *strides_of(x))
    queue.launch("matmul.cl", "line_sums", sums.size, GROUP_SIZE, args, DTYPE=x.dtype, LINE_SUMS=1)
    return sums


class Product:
    """A matrix product by numpy.matmul's rules as matmul.cl reads it: ``count`` products of (m, k) by (k, n)."""

    def __init__(self, a: Any, b: Any) -> None:
        a_shape, a_strides = _matrix(a, row=True)
        b_shape, b_strides = _matrix(b, row=False)
        batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
        rows, (a_rows, b_rows) = merged(
            (*batch, a_shape[-2]),
            [
                [*_broadcast(a_shape[:-2], a_strides[:-2], batch), a_strides[-2] if a_shape[-2] > 1 else 0],
                [*_broadcast(b_shape[:-2], b_strides[:-2], batch), 0],
            ],
        )
        # Axes that b does not have are rows of one product; what is left in front of them is the batch.
        if b_rows[-1] != 0:
            rows, a_rows, b_rows = [*rows, 1], [*a_rows, 0], [*b_rows, 0]
        if len(rows) == 1:
            rows, a_rows, b_rows = [1, *rows], [0, *a_rows], [0, *b_rows]
        self.m, self.k, self.n = rows[-1], *b_shape[-2:]
        self.batch, self.a_batch, self.b_batch = rows[:-1], a_rows[:-1], b_rows[:-1]
        self.count = math.prod(self.batch)
        self.a_m, self.a_k = a_rows[-1], a_strides[-1]
        self.b_k, self.b_n = b_strides[-2], b_strides[-1]
        self.a_along_k = abs(self.a_k) <= abs(self.a_m)
        self.b_along_k = abs(self.b_k) < abs(self.b_n)
        self.a_chunks = _in_chunks(a, self.a_k, self.a_m, self.a_along_k, self.m, self.a_batch)
        self.b_chunks = _in_chunks(b, self.b_k, self.b_n, self.b_along_k, self.n, self.b_batch)

    def tiles(self, queue: Queue, dtype: Any) -> Tiles:
        """The blocking that the device takes."""
        copied = self.a_chunks and self.b_chunks
        return tiles_for(queue.device, self.m, self.n, self.count, dtype, copied=copied)

    def define(self, tiles: Tiles, y: Any) -> dict[str, Any]:
        """The -D options of the loaders and the store."""
        define = tiles.define() | {"BATCH": len(self.batch)}
        if not tiles.grouped:
            return define
        itemsize = y.dtype.itemsize
        floats = itemsize < 4 and not tiles.warp_m  # elements that core S widens on their way
        flags = {
            "A_ALONG_K": self.a_along_k,
            "B_ALONG_K": self.b_along_k,
            "A_COPIED": self.a_chunks and not floats,
            "B_COPIED": self.b_chunks and not floats,
            "PAIRS": self.n % 2 == 0 and y.offset // itemsize % 2 == 0,
        }
        return define | {name: 1 for name, on in flags.items() if on}

    def struct(self, share: int, a_zero_m: int = 0, b_zero_n: int = 0) -> Any:
        """matmul.cl's struct Product."""
        sizes = (self.m, self.n, self.k, share, self.a_m, self.a_k, self.b_k, self.b_n, a_zero_m, b_zero_n)
        return np.array([*sizes, *self.batch, *self.a_batch, *self.b_batch], np.int64)


def _in_chunks(x: Any, k: int, other: int, along_k: bool, lines: int, batch: Sequence[int]) -> bool:
    """Whether every row of x begins at a multiple of 16 bytes and lies in one piece, in the order it is fetched in.

    Bytes are kept along k, so they must lie so too.
    """
    size = x.dtype.itemsize
    inner, outer = (k, other) if along_k else (other, k)
    if inner != 1 or (size == 1 and not along_k):
        return False
    return all(step * size % 16 == 0 for step in (x.offset // size, outer, *batch))


def _matrix(x: Any, *, row: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of an operand of at least two axes: a vector becomes a row or a column."""
    shape, strides = tuple(x.shape), strides_of(x)
    if len(shape) > 1:
        return shape, strides
    return ((1, *shape), (0, *strides)) if row else ((*shape, 1), (*strides, 0))


def _broadcast(shape: Sequence[int], strides: Sequence[int], to: Sequence[int]) -> list[int]:
    kept = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    return [0] * (len(to) - len(kept)) + kept
