"""Launching matmul.cl: matrix products of any strides and batches, in floats of any width and in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, merged, strides_of
from tilework.backends.opencl_tiles import Tiles, shares_for, tiles_for
from tilework.errors import Error


def accumulator(dtype: Any) -> Any:
    """The element type in which a product of ``dtype`` is summed."""
    dtype = np.dtype(dtype)
    return dtype if dtype == np.float64 else np.dtype(np.int32 if dtype.kind in "iu" else np.float32)


def warpgroups_work(queue: Queue) -> bool:
    """Whether a product by warpgroups is built and comes out right: their instructions pass by the compiler.

    Small integers, so that every sum is exact.
    """
    m, k, n = 70, 72, 136
    a = (np.arange(m * k) % 5 - 2).reshape(m, k).astype(np.float16)
    b = (np.arange(k * n) % 7 - 3).reshape(k, n).astype(np.float16)
    there = [queue.empty(shape, np.float16) for shape in ((m, k), (k, n), (m, n))]
    try:
        queue.write(a, there[0])
        queue.write(b, there[1])
        multiply(queue, *there)
        y = queue.read(there[2])
    except Error:
        return False
    return bool(np.array_equal(y, a.astype(np.float32) @ b.astype(np.float32)))


def add_shares(
    queue: Queue,
    partial: Any,
    y: Any,
    bias: Any,
    addend: Any = None,
    scales: tuple[float, float] = (1.0, 1.0),
    **define: Any,
) -> None:
    """y = activation(alpha (shares of ``partial`` (shares, *y.shape), in order, + bias) + beta addend)."""
    scaled = addend is not None or scales[0] != 1
    flags = {"ADDEND": addend is not None, "SCALED": scaled}
    define |= {name: 1 for name, on in flags.items() if on}
    args = [partial, *(x for x in (bias, addend) if x is not None), *(scales if scaled else ())]
    args += [y, y.size, y.shape[-1], partial.shape[0]]
    queue.launch("matmul.cl", "add_shares", y.size, GROUP_SIZE, args, DTYPE=y.dtype, SUM_ONLY=1, **define)


def epilogue(bias: Any, activation: str | None) -> dict[str, Any]:
    """The -D options of an epilogue."""
    define: dict[str, Any] = {} if bias is None else {"BIAS": 1}
    if activation is not None:
        define["ACTIVATION"] = f"act_{activation}"
    return define


def multiply(
    queue: Queue,
    a: Any,
    b: Any,
    y: Any,
    bias: Any = None,
    activation: str | None = None,
    *,
    addend: Any = None,
    scales: tuple[float, float] = (1.0, 1.0),
    zeros: tuple[Any, Any] = (None, None),
) -> None:
    """y = activation(alpha (a b + bias) + beta addend) by numpy.matmul's rules, ``scales`` being (alpha, beta).

    y is contiguous, a and b may have any strides.
    a and y have one floating dtype, or a is int8 or uint8 and y int32: then sums are modulo 2^32. b may differ from a
    where its elements fit into a's sums. ``zeros`` are taken off bytes of a and b first: each None, one number, one per
    row of a or column of b, or of the shape of a or b with 1 for K. ``addend`` has the shape and dtype of y.
    """
    if a.dtype.itemsize == 1 and queue.device.core == "S":
        a, b = _bytes_along_k(queue, a, -1), _bytes_along_k(queue, b, -2)
    zeroed = any(z is not None for z in zeros)
    if zeroed:
        zeros = (
            queue.number(0, a.dtype) if zeros[0] is None else zeros[0],
            (queue.number(0, b.dtype) if zeros[1] is None else zeros[1]),
        )
    product = Product(a, b, zeros if zeroed else None)
    if product.m * product.n * product.count == 0:
        return
    tiles = product.tiles(queue)
    shares, share = (1, product.k + -product.k % tiles.k) if zeroed else product.shares(tiles)
    last = epilogue(bias, activation)
    define = product.define(tiles, y) | {"DTYPE": a.dtype, "SHARES": shares}
    args = [Strided(a), Strided(b)]
    # What is added to or scaled needs the sums unrounded: they are written as shares are.
    partial = shares > 1 or addend is not None or scales[0] != 1
    if partial:
        define.pop("PAIRS", None)
        define["PARTIAL"] = 1
        target = queue.empty((shares, product.count * product.m, product.n), accumulator(a.dtype))
    else:
        define |= last
        args += [bias] if bias is not None else []
        target = y
    if zeroed:
        define["ZEROS"] = 1
        args += [*map(Strided, zeros), product.sums(queue, a, "A_SUMS"), product.sums(queue, b, "B_SUMS")]
    items = tiles.count(product.m, product.n) * product.count * shares * tiles.group
    queue.launch("matmul.cl", "matmul", items, tiles.group, (*args, target, product.struct(share)), **define)
    if partial:
        flat = y.reshape(product.count * product.m, product.n)
        add_shares(queue, target, flat, bias, addend, scales, **last)


def _bytes_along_k(queue: Queue, x: Any, axis: int) -> Any:
    """x with bytes along ``axis`` side by side, as instructions take them: copied so on the device where need be."""
    k = x.shape[axis] if x.ndim > 1 else x.size
    if k < 2 or x.strides[max(axis, -x.ndim)] == 1 or x.size == 0:
        return x
    turn = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2) if axis == -2 and x.ndim > 1 else tuple(range(x.ndim))
    lines = x.transpose(turn)
    copy = queue.empty((*lines.shape[:-1], k + -k % 16), x.dtype)[..., :k]
    queue.copy(lines, copy)
    return copy.transpose(turn)


class Product:
    """A matrix product by numpy.matmul's rules as matmul.cl reads it: ``count`` products of (m, k) by (k, n)."""

    def __init__(self, a: Any, b: Any, zeros: tuple[Any, Any] | None = None) -> None:
        a_shape, a_strides = _matrix(a, row=True)
        b_shape, b_strides = _matrix(b, row=False)
        lead = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
        a_zero_strides: tuple[int, ...] = (0, 0)
        b_zero_strides: tuple[int, ...] = (0, 0)
        if zeros is not None:
            a_zero_strides, b_zero_strides = _zero_strides(zeros[0], row=True), _zero_strides(zeros[1], row=False)
        dims, (a_rows, b_rows, a_zero, b_zero) = merged(
            (*lead, a_shape[-2]),
            [
                [*_broadcast(a_shape[:-2], a_strides[:-2], lead), a_strides[-2] if a_shape[-2] > 1 else 0],
                [*_broadcast(b_shape[:-2], b_strides[:-2], lead), 0],
                [*([0] * (len(lead) - len(a_zero_strides) + 2)), *a_zero_strides[:-1]],
                [*([0] * (len(lead) - len(b_zero_strides) + 2)), *b_zero_strides[:-2], 0],
            ],
        )
        # Axes that b does not have are rows of one product; what is left in front of them is the batch.
        walks = [a_rows, b_rows, a_zero, b_zero]
        if b_rows[-1] != 0 or b_zero[-1] != 0:
            dims, walks = [*dims, 1], [[*walk, 0] for walk in walks]
        if len(dims) == 1:
            dims, walks = [1, *dims], [[0, *walk] for walk in walks]
        self.m, self.k, self.n = dims[-1], *b_shape[-2:]
        self.batch = dims[:-1]
        self.count = math.prod(self.batch)
        self.a_m, self.a_k = walks[0][-1], a_strides[-1]
        self.b_k, self.b_n = b_strides[-2], b_strides[-1]
        self.a_along_k = abs(self.a_k) <= abs(self.a_m)
        self.b_along_k = abs(self.b_k) < abs(self.b_n)
        self.a_chunks = _in_chunks(a, self.a_k, self.a_m, self.a_along_k, walks[0][:-1])
        self.b_chunks = _in_chunks(b, self.b_k, self.b_n, self.b_along_k, walks[1][:-1])
        self._dtypes = a.dtype, b.dtype
        self._zero_steps = walks[2][-1], b_zero_strides[-1]
        self._batches = [step for walk in walks for step in walk[:-1]]

    def tiles(self, queue: Queue) -> Tiles:
        """The blocking that the device takes."""
        own, other = self._dtypes
        copied = self.a_chunks and self.b_chunks and own.itemsize == other.itemsize
        return tiles_for(queue.device, self.m, self.n, self.count, own, copied=copied)

    def shares(self, tiles: Tiles) -> tuple[int, int]:
        """(number, length) of the shares of K."""
        return shares_for(tiles, self.m, self.n, self.k, self.count)

    def define(self, tiles: Tiles, y: Any) -> dict[str, Any]:
        """The -D options of the loaders and the store."""
        own, other = self._dtypes
        define = tiles.define() | {"BATCH": len(self.batch)} | ({"B_DTYPE": other} if own != other else {})
        if not tiles.grouped:
            return define
        as_stored = tiles.warp_m or own.itemsize != 2  # core S widens 16 bits on their way
        flags = {
            "A_ALONG_K": self.a_along_k,
            "B_ALONG_K": self.b_along_k,
            "A_COPIED": self.a_chunks and as_stored,
            "B_COPIED": self.b_chunks and as_stored and own.itemsize == other.itemsize,
            "PAIRS": self.n % 2 == 0 and y.offset // y.dtype.itemsize % 2 == 0,
        }
        return define | {name: 1 for name, on in flags.items() if on}

    def struct(self, share: int) -> Any:
        """matmul.cl's struct Product."""
        steps = (self.a_m, self.a_k, self.b_k, self.b_n, *self._zero_steps)
        return np.array([self.m, self.n, self.k, share, *steps, *self.batch, *self._batches], np.int64)

    def sums(self, queue: Queue, x: Any, which: str) -> Any:
        """The sums along k of all rows of a or columns of b, bytes, as int32."""
        lines = self.count * (self.m if which == "A_SUMS" else self.n)
        sums = queue.empty((lines,), np.int32)
        define = {"DTYPE": x.dtype, "BATCH": len(self.batch), which: 1}
        args = (Strided(x), sums, lines, self.struct(0))
        queue.launch("matmul.cl", "line_sums", lines, GROUP_SIZE, args, **define)
        return sums


def _zero_strides(zero: Any, *, row: bool) -> tuple[int, ...]:
    """Strides over (..., rows, columns) of one number, one per line, or a matrix with 1 for K."""
    steps = tuple(0 if n == 1 else s for n, s in zip(zero.shape, strides_of(zero), strict=True))
    if zero.ndim > 1:
        return steps
    return (0, 0) if not steps else (steps[0], 0) if row else (0, steps[0])


def _in_chunks(x: Any, k: int, other: int, along_k: bool, batch: Sequence[int]) -> bool:
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
