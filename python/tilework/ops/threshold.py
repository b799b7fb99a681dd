"""Thresholds of 8-bit pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import Queue
from tilework.errors import AttrError, DTypeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill

Kind = Literal["binary", "binary_inv", "trunc", "tozero", "tozero_inv"]


@op
def threshold(image: Array, *, value: float, high: int = 255, kind: Kind = "binary", out: Array | None = None) -> Array:
    """Compares each element of image, uint8 of any shape, with ``value``: uint8 of the same shape.

    Where x exceeds ``value``, "binary" gives ``high`` and else 0, "trunc" gives ``value`` and else x, "tozero" gives x
    and else 0; "binary_inv" and "tozero_inv" are the other way round. The bits are those of ``cv2.threshold`` 5.0.
    """
    ...


def _rules(value: float, high: int, kind: Kind) -> tuple[int, int, int]:
    """The largest integer that does not exceed, and both rules: (x & low byte) | high byte."""
    limit = math.floor(min(max(value, -1.0), 255.0))
    zero, same, bright, capped = 0, 255, high << 8, max(limit, 0) << 8
    above, other = {
        "binary": (bright, zero),
        "binary_inv": (zero, bright),
        "trunc": (capped, same),
        "tozero": (same, zero),
        "tozero_inv": (zero, same),
    }[kind]
    return limit, above, other


@reference(threshold)
def _(image: Any, *, value: float, high: int, kind: Kind) -> Any:
    x = image.astype(np.int64)
    above = x > value
    capped = math.floor(min(max(value, 0.0), 255.0))
    if kind == "trunc":
        return np.where(above, capped, x)
    if kind.startswith("binary"):
        return np.where(above == (kind == "binary"), high, 0)
    return np.where(above == (kind == "tozero"), x, 0)


dtypes(threshold, "uint8")
tolerance(threshold, ulp=0.5)


@samples(threshold)
def _(fill: Fill) -> Iterator[Sample]:
    kinds: tuple[Kind, ...] = ("binary", "binary_inv", "trunc", "tozero", "tozero_inv")
    for kind in kinds:
        yield sample(fill(9, 37), value=127.5, kind=kind)
    for value in (-1.0, 254.0, 255.0, -math.inf, math.inf, 1e300):
        yield sample(fill(3, 19, 3), value=value, high=200, kind="trunc" if value < 254 else "binary_inv")
    yield sample(fill(9, 5).T, value=99.0, high=1)
    yield sample(fill(), value=0.0)
    yield sample(fill(0, 3), value=1.0)


@errors(threshold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float32), value=1.0), DTypeError, "image has dtype float32; want uint8")
    yield ErrorCase(sample(x, value=math.nan), AttrError, "value=nan; want a number")
    yield ErrorCase(sample(x, value=1.0, high=256), AttrError, "high=256; want 0 to 255")


@workloads(threshold)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {"value": 127.0}, ("vision",))


@opencl(threshold)
def _(queue: Queue, image: Any, y: Any, *, value: float, high: int, kind: Kind) -> None:
    queue.each("threshold.cl", "threshold", (image, y), *_rules(value, high, kind))
