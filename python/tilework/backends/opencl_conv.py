"""Launching conv.cl: the problem as the kernels read it, and which kernel takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework.backends.opencl_gemm import accumulator, add_shares, epilogue, multiply
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, strides_of
from tilework.backends.opencl_reduce import group_for
from tilework.backends.opencl_tiles import Tiles, shares_for, tiles_for

# A GEMM of fewer rows than this per group (depthwise convolution) would leave most of a tile empty.
DIRECT_CHANNELS = 3
DIRECT_WEIGHTS = 64


@dataclass(frozen=True)
class Conv:
    """One convolution, of which ``x`` may be dx and ``y`` dy."""

    x: Any
    y: Any
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def c(self) -> int:
        """Channels of x per group."""
        return int(self.x.shape[1]) // self.groups

    @property
    def k(self) -> int:
        """Channels of y per group."""
        return int(self.y.shape[1]) // self.groups

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    def struct(self, share: int = 0) -> Any:
        """conv.cl's struct Conv: every member filled up to three spatial axes."""
        gcds = [math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        members: list[Sequence[int]] = [
            (self.x.shape[0], self.groups, self.c, self.k),
            self._three(self.x.shape[2:]),
            self._three(self.y.shape[2:]),
            self._three(self.kernel),
            self._three(self.stride),
            self._three(self.dilation),
            self._three((before for before, _ in self.padding), 0),
            self._three(s // g for s, g in zip(self.stride, gcds, strict=True)),
            self._three(d // g for d, g in zip(self.dilation, gcds, strict=True)),
            self._strides(self.x),
            self._strides(self.y),
            (share,),
            [_reciprocal(n) for n in (*self._three(self.y.shape[2:]), self.c, self.k)],
        ]
        return np.array([n for member in members for n in member], np.int64)

    def define(self, tiles: Tiles) -> dict[str, Any]:
        """The -D options of a GEMM kernel; on a GPU the kernel's sizes are fixed, as they are divided by."""
        define = tiles.define()
        if tiles.grouped:
            define |= {f"KERNEL{axis}": n for axis, n in enumerate(self._three(self.kernel))}
        return define

    def define_rows(self, tiles: Tiles, result: Any) -> dict[str, Any]:
        """The -D options of a GEMM kernel that copies channels in chunks."""
        flags = {"UNIT_STRIDE": set(self.stride) == {1}, "DENSE_RESULT": channels_dense(result)}
        define = self.define(tiles) | {"ROWS": 1, "A_COPIED": 1, "B_COPIED": 1}
        return define | {name: 1 for name, on in flags.items() if on}

    @property
    def pointwise(self) -> bool:
        """Whether every pixel of y is a product of its own pixel of x alone, all in one matrix."""
        plain = self.taps == self.groups == 1 and set(self.stride) == {1} and not any(map(any, self.padding))
        return plain and channels_dense(self.x) and channels_dense(self.y)

    def arranged(self, queue: Queue, w: Any, **define: Any) -> Any:
        """w in the order that conv_rows, or with CONV_DX conv_dx_rows, reads it."""
        to = queue.empty(w.shape, w.dtype)
        define |= {f"KERNEL{axis}": n for axis, n in enumerate(self._three(self.kernel))}
        args = (w, to, self.struct())
        define |= {"ROWS": 1, "ARRANGE": 1, "DTYPE": w.dtype}
        queue.launch("conv.cl", "arrange", w.size, GROUP_SIZE, args, **define)
        return to

    def _three(self, sizes: Iterable[int], fill: int = 1) -> tuple[int, ...]:
        return (*(fill,) * (3 - len(self.kernel)), *sizes)

    def _strides(self, array: Any) -> tuple[int, ...]:
        own = strides_of(array)
        return (*own[:2], *self._three(own[2:], 0))


def in_rows(queue: Queue, x: Any, y: Any, groups: int) -> bool:
    """Whether the kernels copy the channels of x and y (N, C, *spatial) in chunks: side by side, in whole chunks."""
    device, size = queue.device, x.dtype.itemsize
    if device.core == "P" or size > 4 or (size == 2 and not device.tensor):
        return False
    chunk = 16 // size
    steps = [a.shape[1] // groups for a in (x, y)]
    steps += [step for a in (x, y) for step in (a.offset // size, *strides_of(a)[:1], *strides_of(a)[2:])]
    return strides_of(x)[1] == strides_of(y)[1] == 1 and all(step % chunk == 0 for step in steps)


def _reciprocal(size: int) -> int:
    """What conv.cl's ``divide`` multiplies with, and 2^32 times its shift."""
    shift = max(size - 1, 0).bit_length()
    return (((1 << 32) * ((1 << shift) - size) // max(size, 1) + 1) & 0xFFFFFFFF) | shift << 32


def _pixels(x: Any) -> Any:
    """x (N, C, *spatial), whose pixels follow each other without gaps, as (pixels, C)."""
    pitch = x.strides[-1]
    shape = (x.shape[0] * math.prod(x.shape[2:]), x.shape[1])
    return type(x)(x.queue, shape, x.dtype, strides=(pitch, x.dtype.itemsize), data=x.base_data, offset=x.offset)


def channels_dense(y: Any) -> bool:
    """Whether the pixels of y (N, C, *spatial) follow each other without gaps, all of C in each."""
    pixel = y.shape[1]
    lines = [pixel * math.prod(y.shape[axis + 1 :]) for axis in range(2, y.ndim)]
    return list(strides_of(y)) == [pixel * math.prod(y.shape[2:]), 1, *lines]


@contextmanager
def in_float(
    queue: Queue, operands: Sequence[Any], result: Any, *, unless: bool = False
) -> Iterator[tuple[list[Any], Any]]:
    """Operands and result as the kernels take them: float32 copies of 16-bit ones, rounded once at the end."""
    if result.dtype.itemsize > 2 or unless:
        yield list(operands), result
        return

    def cast(source: Any, target: Any) -> Any:
        queue.each("cast.cl", "cast", (source, target), SRC=source.dtype, DST=target.dtype)
        return target

    wide = [None if x is None else cast(x, queue.empty(x.shape, np.float32)) for x in operands]
    y = queue.empty(result.shape, np.float32)
    yield wide, y
    cast(y, result)


@contextmanager
def plus(queue: Queue, c: Any, result: Any) -> Iterator[Any]:
    """Where to put a gradient that ``c`` is added to, if there is one; it may be the result itself."""
    if c is None:
        yield result
        return
    sums = queue.empty(result.shape, result.dtype)
    yield sums
    queue.each("elementwise.cl", "add", (sums, c, result), DTYPE=result.dtype)


def forward(queue: Queue, conv: Conv, w: Any, bias: Any, residual: Any, activation: str | None) -> None:
    """Fills conv.y; it, conv.x and the residual may have any strides."""
    if residual is not None:
        queue.copy(residual, conv.y)
    args = (Strided(conv.x), w, *([] if bias is None else [bias]), Strided(conv.y), conv.struct())
    define = epilogue(bias, activation) | {"DTYPE": w.dtype} | ({} if residual is None else {"ADD_TO_RESULT": 1})
    columns = conv.x.shape[0] * math.prod(conv.y.shape[2:])
    if conv.k < DIRECT_CHANNELS:
        define |= {"DIRECT": 1, "GROUP": 1}
        queue.launch("conv.cl", "conv_direct", conv.y.size, GROUP_SIZE, args, **define)
        return
    if in_rows(queue, conv.x, conv.y, conv.groups):
        if conv.pointwise and residual is None:
            multiply(
                queue, _pixels(conv.x), queue.contiguous(w).reshape(conv.k, conv.c).T, _pixels(conv.y), bias, activation
            )
            return
        tiles = tiles_for(queue.device, columns, conv.k, conv.groups, w.dtype, copied=True)
        define |= conv.define_rows(tiles, conv.y) | {"CONV": 1, "A_ALONG_K": 1, "B_ALONG_K": 1}
        args = (args[0], conv.arranged(queue, w), *args[2:])
        items = tiles.count(columns, conv.k) * conv.groups * tiles.group if conv.y.size else 0
        queue.launch("conv.cl", "conv_rows", items, tiles.group, args, **define)
        return
    tiles = tiles_for(queue.device, conv.k, columns, conv.groups, w.dtype)
    define |= conv.define(tiles) | {"CONV": 1}
    if tiles.grouped:
        define["A_ALONG_K"] = 1
    items = tiles.count(conv.k, columns) * conv.groups * tiles.group if conv.y.size else 0
    queue.launch("conv.cl", "conv", items, tiles.group, args, **define)


def gradient_x(
    queue: Queue, conv: Conv, w: Any, bias: Any = None, residual: Any = None, activation: str | None = None
) -> None:
    """Fills dx, conv.x, from dy, conv.y, both of any strides; with what follows w, a transposed convolution."""
    # Along one pixel of dy no stride is taken: however large, it has no phases.
    taken = tuple(s if n > 1 else 1 for s, n in zip(conv.stride, conv.y.shape[2:], strict=True))
    conv = replace(conv, stride=taken)
    if residual is not None:
        queue.copy(residual, conv.x)
    args = (Strided(conv.y), w, *([] if bias is None else [bias]), Strided(conv.x), conv.struct())
    define = epilogue(bias, activation) | {"DTYPE": w.dtype} | ({} if residual is None else {"ADD_TO_RESULT": 1})
    if conv.c < DIRECT_CHANNELS:
        define |= {"DIRECT": 1, "GROUP": 1}
        queue.launch("conv.cl", "conv_dx_direct", conv.x.size, GROUP_SIZE, args, **define)
        return
    # Tiles are laid out for the largest phase.
    columns = conv.x.shape[0] * math.prod(-(-n // s) for n, s in zip(conv.x.shape[2:], conv.stride, strict=True))
    products = conv.groups * math.prod(conv.stride)
    if in_rows(queue, conv.x, conv.y, conv.groups):
        if conv.pointwise and residual is None:
            multiply(
                queue, _pixels(conv.y), queue.contiguous(w).reshape(conv.k, conv.c), _pixels(conv.x), bias, activation
            )
            return
        tiles = tiles_for(queue.device, columns, conv.c, products, w.dtype, copied=True)
        define |= conv.define_rows(tiles, conv.x) | {"CONV_DX": 1, "A_ALONG_K": 1, "B_ALONG_K": 1}
        args = (args[0], conv.arranged(queue, w, CONV_DX=1), *args[2:])
        items = tiles.count(columns, conv.c) * products * tiles.group if conv.x.size else 0
        queue.launch("conv.cl", "conv_dx_rows", items, tiles.group, args, **define)
        return
    tiles = tiles_for(queue.device, conv.c, columns, products, w.dtype)
    items = tiles.count(conv.c, columns) * products * tiles.group if conv.x.size else 0
    define |= conv.define(tiles) | {"CONV_DX": 1}
    queue.launch("conv.cl", "conv_dx", items, tiles.group, args, **define)


def gradient_w(queue: Queue, conv: Conv, dw: Any) -> None:
    """Fills dw, which is contiguous, from dy, conv.y, and conv.x."""
    columns, depth = conv.c * conv.taps, conv.x.shape[0] * math.prod(conv.y.shape[2:])
    if conv.k * columns <= DIRECT_WEIGHTS:
        group = group_for(queue, depth)
        items, local = dw.size * group, group if group > 1 else GROUP_SIZE
        define = {"DTYPE": dw.dtype, "DIRECT": 1, "GROUP": group}
        arrays = (Strided(conv.y), Strided(conv.x), dw)
        queue.launch("conv.cl", "conv_dw_direct", items, local, (*arrays, conv.struct()), **define)
        return
    rows = in_rows(queue, conv.x, conv.y, conv.groups) and channels_dense(conv.y)
    if rows and conv.pointwise:
        multiply(queue, _pixels(conv.y).T, _pixels(conv.x), dw.reshape(conv.k, conv.c))
        return
    tiles = tiles_for(queue.device, conv.k, columns, conv.groups, dw.dtype, copied=rows)
    shares, share = shares_for(tiles, conv.k, columns, depth, conv.groups)
    summed = shares > 1 or accumulator(dw.dtype) != dw.dtype
    target = queue.empty((shares, *dw.shape), accumulator(dw.dtype)) if summed else dw
    define = conv.define_rows(tiles, dw) if rows else conv.define(tiles)
    define |= {"CONV_DW": 1, "SHARES": shares}
    if tiles.grouped and not rows:
        define |= {"A_ALONG_K": 1, "B_ALONG_K": 1}
    items = tiles.count(conv.k, columns) * conv.groups * shares * tiles.group if dw.size else 0
    args = (Strided(conv.y), Strided(conv.x), target, conv.struct(share))
    queue.launch("conv.cl", "conv_dw_rows" if rows else "conv_dw", items, tiles.group, args, DTYPE=dw.dtype, **define)
    if summed:
        add_shares(queue, target, dw, None)
