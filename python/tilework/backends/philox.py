"""Philox4x32-10, random words by counter and key: what the reference draws from."""

from __future__ import annotations

from typing import Any

import numpy as np


def philox(n: int, offset: int, seed: int) -> Any:
    """The first n words of Philox4x32-10 (Salmon et al., 2011)."""
    low = np.uint64(0xFFFFFFFF)
    block = np.arange(-(-n // 4), dtype=np.uint64)
    a, b = block & low, block >> np.uint64(32)
    c, d = np.full_like(block, offset & 0xFFFFFFFF), np.full_like(block, offset >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        x, y = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b = (y >> np.uint64(32)) ^ b ^ np.uint64(k0), y & low
        c, d = (x >> np.uint64(32)) ^ d ^ np.uint64(k1), x & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=-1).reshape(-1)[:n]
