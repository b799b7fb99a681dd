"""Dropout with draws that depend on seed, offset and position alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Axes, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.philox import philox
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
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


@op
def dropout(
    x: Array, *, p: float = 0.5, seed: int, offset: int = 0, shared: Axes = None, out: Array | None = None
) -> Array:
    """Sets each element of x, of any shape, to zero with probability p and divides the others by 1 - p.

    The draws are those of Philox4x32-10 with key ``seed`` and counter (position / 4, ``offset``): the same on every
    device and for any number of threads, so that backward makes them again. Elements along the ``shared`` axes live or
    die together: shared=(2, 3) drops whole channels of (N, C, H, W). Srivastava et al., "Dropout", 2014.
    """
    ...


def _draws(x: Any, shared: Sizes) -> Sizes:
    return tuple(1 if d in shared else n for d, n in enumerate(x.shape))


@reference(dropout)
def _(x: Any, *, p: float, seed: int, offset: int, shared: Sizes) -> Any:
    shape = _draws(x, shared)
    passes = philox(math.prod(shape), offset, seed).reshape(shape) >= np.uint64(int(p * 2.0**32))
    return np.where(passes, x / (1 - p) if p < 1 else 0.0, 0.0)


@backward(dropout, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Array:
    return dropout(dy, **attrs)


@samples(dropout)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 7, 16, 65, 130):
        yield sample(fill(n), seed=n)
    yield sample(fill(), seed=3)
    yield sample(fill(3, 4, 5), p=0.2, seed=(1 << 62) + 5, offset=(1 << 40) + 7)
    yield sample(fill(2, 6, 3, 5), seed=11, shared=(2, 3))
    yield sample(fill(7, 5).T, seed=4, shared=0)
    yield sample(fill(9), p=0.0, seed=1)
    yield sample(fill(9), p=1.0, seed=1)
    yield sample(fill(0, 3), seed=1)


@errors(dropout)
def _(fill: Fill) -> Iterator[ErrorCase]:
    for p in (-0.1, 1.5, float("nan")):
        yield ErrorCase(sample(fill(3), p=p, seed=1), AttrError, f"p={p:g}; want a probability, 0 to 1")
    yield ErrorCase(sample(fill(3), seed=-1), AttrError, "seed=-1; want 0 or more")
    yield ErrorCase(sample(fill(3), seed=1, offset=-2), AttrError, "offset=-2; want 0 or more")
    yield ErrorCase(sample(fill(3), seed=1, shared=1), AttrError, "shared=1")
    yield ErrorCase(sample(fill(3)), AttrTypeError, "seed is missing")
    yield ErrorCase(sample(np.arange(3), seed=1), DTypeError, "x has dtype int64")


@workloads(dropout)
def _() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,),), {"p": 0.1, "seed": 1})
    yield Workload("128x1024", ((128, 1024),), {"p": 0.1, "seed": 1})


tolerance(dropout, ulp=1.5)
dtypes(dropout, *FLOATING)


@opencl(dropout)
def _(queue: Queue, x: Any, y: Any, *, p: float, seed: int, offset: int, shared: Sizes) -> None:
    shape = _draws(x, shared)
    passes = queue.empty(shape, np.uint8)
    args = (passes, passes.size, offset, seed, int(p * 2.0**32))
    queue.launch("dropout.cl", "draw", -(-passes.size // 4), GROUP_SIZE, args, DRAWS=1, ITEMS=1)
    queue.each("dropout.cl", "drop", (x, passes, y), 1 / (1 - p) if p < 1 else 0.0, DTYPE=x.dtype)
