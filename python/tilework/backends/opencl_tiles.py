"""The blockings of gemm.clh, and which one a device takes for a product: a function of shape, dtype and core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tilework.backends.opencl_device import Device

LOCAL_BYTES = 48 << 10  # what an NVIDIA driver gives a work-group without being asked


@dataclass(frozen=True)
class Tiles:
    """One blocking: core P has ``lanes``, core S results ``reg_m`` x ``reg_n`` of an item, core T those of a warp."""

    m: int
    n: int
    k: int = 1
    reg_m: int = 0
    reg_n: int = 0
    stages: int = 2
    warp_m: int = 0
    warp_n: int = 0
    lanes: int = 0
    products: int = 1  # that core T makes of one of floats: 1 rounds to TF32, 3 keeps 21 bits
    together: bool = False  # core W: four warps multiply 64 rows by all columns of the tile
    registers: int = 0  # the most that an item may take, where the compiler can be told (NVIDIA); 0: its choice

    @property
    def grouped(self) -> bool:
        """Whether items share a tile."""
        return not self.lanes

    @property
    def group(self) -> int:
        """Work items that share a tile."""
        if self.lanes:
            return 1
        if self.warp_m:
            return 32 * (self.m // self.warp_m) * (self.n // self.warp_n)
        return self.m // self.reg_m * (self.n // self.reg_n)

    def local_bytes(self, itemsize: int) -> int:
        """Local memory of a group on a device where no fragment passes through it."""
        return self.stages * (self.m + self.n) * self.k * itemsize if self.grouped else 0

    def define(self) -> dict[str, Any]:
        """The -D options of this blocking."""
        tile = {"TILE_M": self.m, "TILE_N": self.n}
        if self.lanes:
            return tile | {"LANES": self.lanes}
        tile |= {"TILE_K": self.k, "STAGES": self.stages, "TILE_ITEMS": self.group}
        if self.registers:
            tile["REGISTERS"] = self.registers
        if self.warp_m:
            tile |= {"TENSOR": 1, "WARP_M": self.warp_m, "WARP_N": self.warp_n, "PRODUCTS": self.products}
            return tile | ({"WARPGROUPS": 1} if self.together else {})
        return tile | {"REG_M": self.reg_m, "REG_N": self.reg_n} | ({"ROLLED": 1} if self.registers else {})

    def count(self, m: int, n: int) -> int:
        """Tiles of an m x n result."""
        return -(-m // self.m) * -(-n // self.n)


def fma(m: int, n: int, k: int, reg_m: int, reg_n: int, stages: int = 2) -> Tiles:
    """A blocking of core S."""
    return Tiles(m, n, k, reg_m, reg_n, stages)


def matrix(m: int, n: int, k: int, warp_m: int, warp_n: int, stages: int = 3) -> Tiles:
    """A blocking of core T."""
    return Tiles(m, n, k, stages=stages, warp_m=warp_m, warp_n=warp_n)


def warpgroups(m: int, n: int, k: int, stages: int = 3) -> Tiles:
    """A blocking of core W."""
    return Tiles(m, n, k, stages=stages, warp_m=16, warp_n=n, together=True)


PORTABLE = {"f32": Tiles(6, 16, lanes=8), "f64": Tiles(6, 8, lanes=4)}

# (core, elements, whether both operands reach local memory in chunks) -> the blocking, and the one for small results.
# Elements that pass through registers need room beside the results. Depth k is counted in elements.
SHARED: dict[tuple[str, str, bool], tuple[Tiles, Tiles]] = {
    ("S", "f32", True): (fma(128, 128, 16, 8, 8), fma(64, 64, 16, 8, 8)),
    ("S", "f32", False): (fma(128, 128, 16, 8, 8), fma(64, 64, 16, 4, 4)),
    ("S", "f64", True): (fma(64, 64, 16, 4, 4), fma(64, 64, 16, 4, 4)),
    ("S", "f64", False): (fma(64, 64, 16, 4, 4), fma(64, 64, 16, 4, 4)),
    ("S", "i8", True): (fma(128, 128, 64, 8, 8), fma(64, 64, 64, 4, 4)),
    ("S", "i8", False): (fma(64, 64, 64, 4, 4), fma(64, 64, 64, 4, 4)),
    ("T", "f16", True): (matrix(128, 128, 32, 64, 64), matrix(64, 64, 32, 32, 32)),
    ("T", "f16", False): (matrix(128, 128, 32, 64, 32, 2), matrix(64, 64, 32, 32, 32, 2)),
    ("T", "f32", True): (matrix(64, 128, 16, 32, 64, 4), matrix(64, 64, 16, 32, 32)),
    ("T", "f32", False): (matrix(128, 128, 16, 64, 32, 2), matrix(64, 64, 16, 32, 32, 2)),
    ("T", "i8", True): (matrix(128, 128, 64, 64, 64), matrix(64, 64, 64, 32, 32)),
    ("T", "i8", False): (matrix(128, 128, 32, 64, 32, 2), matrix(64, 64, 32, 32, 32, 2)),
    ("W", "f16", True): (warpgroups(128, 128, 32), warpgroups(64, 64, 64)),
    ("W", "i8", True): (warpgroups(128, 128, 64), warpgroups(64, 64, 128)),
}

# Few rows: what counts is how many bytes of b are under way.
THIN = {
    "f16": matrix(16, 128, 64, 16, 32, 2),
    "f32": matrix(16, 128, 32, 16, 32, 2),
    "i8": matrix(16, 128, 128, 16, 32, 2),
}

# Enough tiles to keep a large GPU busy; fewer are cut along K, into shares of at least MIN_SHARE.
WANTED_TILES = 256
MIN_SHARE = 256
# So few results that writing and adding twice as many shares of them costs little.
CHEAP_RESULTS = 1 << 18

_KIND = {"float16": "f16", "bfloat16": "f16", "float32": "f32", "float64": "f64", "int8": "i8", "uint8": "i8"}


def tiles_for(device: Device, m: int, n: int, products: int, dtype: Any, *, copied: bool = False) -> Tiles:
    """The blocking for ``products`` results of m x n; ``copied`` if both operands reach local memory in chunks."""
    kind = _KIND[np.dtype(dtype).name]
    if device.core == "P":
        return PORTABLE["f64" if kind == "f64" else "f32"]
    on_tensor = device.products > 0 if kind == "f32" else device.tensor and kind != "f64"
    stored = "f32" if kind == "f16" and not on_tensor else kind
    copied = copied and stored == kind
    core = "S" if not on_tensor else "W" if copied and kind != "f32" and device.warpgroups else "T"
    large, small = SHARED[core, stored, copied]
    if core == "T" and copied and m <= 16:
        large = small = THIN[kind]
    if on_tensor and kind == "f32":
        large, small = replace(large, products=device.products), replace(small, products=device.products)
    return large if m > 64 and n > 64 and large.count(m, n) * products >= WANTED_TILES // 2 else small


def shares_for(tiles: Tiles, m: int, n: int, k: int, products: int) -> tuple[int, int]:
    """(number, length) of the shares that K is cut into so that there is work for every multiprocessor."""
    number = 1
    if tiles.grouped and products:
        wanted = WANTED_TILES if m * n * products > CHEAP_RESULTS else 2 * WANTED_TILES
        number = max(1, min(wanted // max(1, tiles.count(m, n) * products), k // MIN_SHARE))
    length = -(-k // number)
    length += -length % tiles.k
    return (max(1, -(-k // length)), length) if length else (1, 0)
