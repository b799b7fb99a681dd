"""Launching gemm.clh: which tiles, how many shares of a long K, and matrix products of any strides and batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, merged, strides_of

# Enough tiles to keep a large GPU busy; fewer are cut along K, into shares of at least MIN_SHARE.
WANTED_TILES = 256
MIN_SHARE = 256


@dataclass(frozen=True)
class Tiles:
    """The blocking of one gemm.clh kernel; the portable core has lanes, core S reg_m and reg_n."""

    m: int
    n: int
    k: int = 1
    reg_m: int = 0
    reg_n: int = 0
    lanes: int = 0

    @property
    def group(self) -> int:
        """Work items that share a tile."""
        return self.m // self.reg_m * (self.n // self.reg_n) if self.reg_m else 1

    def define(self) -> dict[str, Any]:
        """The -D options of this blocking."""
        tile = {"TILE_M": self.m, "TILE_N": self.n}
        if self.reg_m:
            return tile | {"TILE_K": self.k, "REG_M": self.reg_m, "REG_N": self.reg_n}
        return tile | {"LANES": self.lanes}

    def count(self, m: int, n: int) -> int:
        """Tiles of an m x n result."""
        return -(-m // self.m) * -(-n // self.n)


# Two stages of A and B tiles take 33 KB of local memory in the first, third and fourth, 17 KB in the second.
LARGE_F32 = Tiles(128, 128, 16, 8, 8)
SMALL_F32 = Tiles(64, 64, 16, 8, 8)
LARGE_F64 = Tiles(64, 64, 16, 4, 4)
PORTABLE_F32 = Tiles(6, 16, lanes=8)
PORTABLE_F64 = Tiles(6, 8, lanes=4)


def tiles_for(queue: Queue, m: int, n: int, products: int, dtype: Any) -> Tiles:
    """The blocking for ``products`` results of m x n: a function of shape, dtype and core."""
    wide = np.dtype(dtype) == np.float64
    if queue.device.core == "P":
        return PORTABLE_F64 if wide else PORTABLE_F32
    if wide:
        return LARGE_F64
    return LARGE_F32 if m > 64 and n > 64 and LARGE_F32.count(m, n) * products >= WANTED_TILES // 2 else SMALL_F32


def shares_for(tiles: Tiles, m: int, n: int, k: int, products: int) -> tuple[int, int]:
    """(number, length) of the shares that K is cut into so that there is work for every multiprocessor."""
    number = 1
    if tiles.reg_m and products:
        number = max(1, min(WANTED_TILES // max(1, tiles.count(m, n) * products), k // MIN_SHARE))
    length = -(-k // number)
    length += -length % tiles.k
    return (max(1, -(-k // length)), length) if length else (1, 0)


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
    a_shape, a_strides = _matrix(a, row=True)
    b_shape, b_strides = _matrix(b, row=False)
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    k, n = b_shape[-2:]
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
    m, products = rows[-1], math.prod(rows[:-1])
    if m * n * products == 0:
        return
    a_m, a_k, b_k, b_n = a_rows[-1], a_strides[-1], b_strides[-2], b_strides[-1]
    tiles = tiles_for(queue, m, n, products, y.dtype)
    shares, share = shares_for(tiles, m, n, k, products)
    define = tiles.define() | {"BATCH": len(rows) - 1, "SHARES": shares}
    if tiles.reg_m and abs(a_k) <= abs(a_m):
        define["A_ALONG_K"] = 1
    if tiles.reg_m and abs(b_k) < abs(b_n):
        define["B_ALONG_K"] = 1
    problem = np.array([m, n, k, share, a_m, a_k, b_k, b_n, *rows[:-1], *a_rows[:-1], *b_rows[:-1]], np.int64)
    last = epilogue(bias, activation)
    target = queue.empty((shares, products * m, n), y.dtype) if shares > 1 else y
    with_bias = bias is not None and shares == 1
    args = (Strided(a), Strided(b), *([bias] if with_bias else []), target, problem)
    items = tiles.count(m, n) * products * shares * tiles.group
    define |= {} if shares > 1 else last
    queue.launch("matmul.cl", "matmul", items, tiles.group, args, DTYPE=y.dtype, **define)
    if shares > 1:
        add_shares(queue, target, y.reshape(products * m, n), bias, **last)


def _matrix(x: Any, *, row: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of an operand of at least two axes: a vector becomes a row or a column."""
    shape, strides = tuple(x.shape), strides_of(x)
    if len(shape) > 1:
        return shape, strides
    return ((1, *shape), (0, *strides)) if row else ((*shape, 1), (*strides, 0))


def _broadcast(shape: Sequence[int], strides: Sequence[int], to: Sequence[int]) -> list[int]:
    kept = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    return [0] * (len(to) - len(kept)) + kept
