"""Thresholds of pictures."""

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
def threshold(
    image: Array, *, value: float, high: float = 255.0, kind: Kind = "binary", out: Array | None = None
) -> Array:
    """Compares each element of image, of any shape, with ``value``: the same shape and type.

    Where x exceeds ``value``, "binary" gives ``high`` and else 0, "trunc" gives ``value`` and else x, "tozero" gives x
    and else 0; "binary_inv" and "tozero_inv" are the other way round. Elements are uint8 or uint16, between which
    integers ``high`` must be, or float32, to which ``value`` is rounded and of which a NaN exceeds nothing. The bits
    are those of ``cv2.threshold`` 5.0.
    """
    ...


def _rules(dtype: Any, value: float, high: float, kind: Kind) -> tuple[float, float, float, int]:
    """The largest element that does not exceed, what others become above and else, and which of them stay: bits."""
    if np.dtype(dtype) == np.float32:
        with np.errstate(over="ignore"):
            limit = capped = float(np.float32(value))
    else:
        limit = math.floor(min(max(value, -1.0), float(np.iinfo(dtype).max)))
        capped = max(limit, 0.0)
    return {
        "binary": (limit, high, 0.0, 0),
        "binary_inv": (limit, 0.0, high, 0),
        "trunc": (limit, capped, 0.0, 2),
        "tozero": (limit, 0.0, 0.0, 1),
        "tozero_inv": (limit, 0.0, 0.0, 2),
    }[kind]


@reference(threshold)
def _(image: Any, *, value: float, high: float, kind: Kind) -> Any:
    dtype = np.float32 if image.dtype == np.float64 else image.dtype
    limit, above, other, keeps = _rules(dtype, value, high, kind)
    x = image.astype(np.float64)
    return np.where(x > limit, x if keeps & 1 else above, x if keeps & 2 else other)


dtypes(threshold, "uint8", "uint16", "float32")
tolerance(threshold, ulp=0.5)


@samples(threshold)
def _(fill: Fill) -> Iterator[Sample]:
    kinds: tuple[Kind, ...] = ("binary", "binary_inv", "trunc", "tozero", "tozero_inv")
    for kind in kinds:
        yield sample(fill(9, 37), value=127.5 if fill.dtype.kind == "u" else 0.1, kind=kind)
    for value in (-1.0, 254.0, 255.0, -math.inf, math.inf, 1e300):
        yield sample(fill(3, 19, 3), value=value, high=200, kind="trunc" if value < 254 else "binary_inv")
    yield sample(fill(9, 5).T, value=99.0, high=1)
    yield sample(fill(), value=0.0)
    yield sample(fill(0, 3), value=1.0)


@errors(threshold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3, 4)
    yield ErrorCase(sample(x.astype(np.float64), value=1.0), DTypeError, "want uint8, uint16 or float32")
    yield ErrorCase(sample(x, value=math.nan), AttrError, "value=nan; want a number")
    yield ErrorCase(sample(x.astype(np.uint8), value=1.0, high=256), AttrError, "high=256; want 0 to 255, whole")


@workloads(threshold)
def _() -> Iterator[Workload]:
    yield Workload("HD", ((1080, 1920),), {"value": 127.0}, ("vision",))


@opencl(threshold)
def _(queue: Queue, image: Any, y: Any, *, value: float, high: float, kind: Kind) -> None:
    *numbers, keeps = _rules(image.dtype, value, high, kind)
    queue.each("threshold.cl", "threshold", (image, y), *map(float, numbers), keeps, DTYPE=image.dtype)
