"""Launching conv.cl: the problem as the kernels read it, and which kernel takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilework.backends.opencl_gemm import accumulator, add_shares, epilogue
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
        ]
        return np.array([n for member in members for n in member], np.int64)

    def define(self, tiles: Tiles) -> dict[str, Any]:
        """The -D options of a GEMM kernel; on a GPU the kernel's sizes are fixed, as they are divided by."""
        define = tiles.define()
        if tiles.grouped:
            define |= {f"KERNEL{axis}": n for axis, n in enumerate(self._three(self.kernel))}
        return define

    def _three(self, sizes: Iterable[int], fill: int = 1) -> tuple[int, ...]:
        return (*(fill,) * (3 - len(self.kernel)), *sizes)

    def _strides(self, array: Any) -> tuple[int, ...]:
        own = strides_of(array)
        return (*own[:2], *self._three(own[2:], 0))


@contextmanager
def in_float(queue: Queue, operands: Sequence[Any], result: Any) -> Iterator[tuple[list[Any], Any]]:
    """Operands and result as the kernels take them: float32 copies of 16-bit ones, rounded once at the end."""
    if result.dtype.itemsize > 2:
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
    tiles = tiles_for(queue.device, conv.k, columns, conv.groups, dw.dtype)
    shares, share = shares_for(tiles, conv.k, columns, depth, conv.groups)
    target = queue.empty((shares, *dw.shape), accumulator(dw.dtype)) if shares > 1 else dw
    define = conv.define(tiles) | {"CONV_DW": 1, "SHARES": shares}
    if tiles.grouped:
        define |= {"A_ALONG_K": 1, "B_ALONG_K": 1}
    items = tiles.count(conv.k, columns) * conv.groups * shares * tiles.group if dw.size else 0
    args = (Strided(conv.y), Strided(conv.x), target, conv.struct(share))
    queue.launch("conv.cl", "conv_dw", items, tiles.group, args, DTYPE=dw.dtype, **define)
    if shares > 1:
        add_shares(queue, target, dw, None)
