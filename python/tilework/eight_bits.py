"""Pixels of 16 bits and floats as 8 bits, for what is found in 8-bit pictures only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.errors import AttrError


def in_eight_bits(op: str, **images: Any) -> list[Any]:
    """Pictures of uint16 or float32, all of one type, between their least pixel, 0, and their greatest, 255: uint8.

    Anything else is left for the op to judge.
    """
    pictures = list(images.values())
    kinds = {picture.dtype.type if isinstance(picture, np.ndarray) else None for picture in pictures}
    if kinds not in ({np.uint16}, {np.float32}):
        return pictures
    if any(picture.size == 0 for picture in pictures):
        return [np.zeros(picture.shape, np.uint8) for picture in pictures]
    ranges = {name: (float(picture.min()), float(picture.max())) for name, picture in images.items()}
    for name, (least, greatest) in ranges.items():
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise AttrError(f"{op}: {name} holds NaN or infinity; want finite pixels", argument=name)
    low, high = min(least for least, _ in ranges.values()), max(greatest for _, greatest in ranges.values())
    scale = 255 / (high - low) if high > low else 0.0
    return [np.floor((picture.astype(np.float64) - low) * scale + 0.5).astype(np.uint8) for picture in pictures]
