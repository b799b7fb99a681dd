"""Random numbers that depend on seed, offset and position alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array
from tilework.backends.opencl_queue import Queue
from tilework.backends.philox import philox
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError
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
    terms,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from tilework.testing import Fill


@op
def random_uniform(
    like: Array,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: npt.DTypeLike | None = None,
    seed: int,
    offset: int = 0,
    out: Array | None = None,
) -> Array:
    """Draws numbers in [low, high) of the shape of like, on its device, in its dtype or ``dtype``.

    The draws are those of Philox4x32-10 with key ``seed`` and counter (position / 4, ``offset``), the same on every
    device and for any number of threads. They have as many digits as the dtype; 16 bits may round up to high.
    """
    ...


@op
def random_normal(
    like: Array,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: npt.DTypeLike | None = None,
    seed: int,
    offset: int = 0,
    out: Array | None = None,
) -> Array:
    """Draws normal numbers of the shape of like, on its device, in its dtype or ``dtype``.

    Box and Muller's pairs of the draws of :func:`random_uniform`: at most 5.8 times ``std`` from the mean, of float64
    8.6 times.
    """
    ...


@op
def bernoulli(p: Array, *, seed: int, offset: int = 0, out: Array | None = None) -> Array:
    """Draws 1 with probability p and else 0 for each element of p, of any shape, in its dtype.

    Word k of Philox4x32-10 with key ``seed`` and counter (k / 4, ``offset``) is compared with p 2^32, exactly. Where p
    is NaN the draw is 0.
    """
    ...


_DIGITS = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}


def _units(shape: Any, digits: int, offset: int, seed: int) -> Any:
    """Numbers in [0, 1) of so many digits, in the order of the elements of the shape."""
    n = int(np.prod(shape, dtype=np.int64)) + 1 & ~1
    if digits <= 32:
        return (philox(n, offset, seed) >> np.uint64(32 - digits)).astype(np.float64) * 2.0**-digits
    high, low = philox(2 * n, offset, seed).reshape(-1, 2).T
    return ((high >> np.uint64(5)) * 2.0**26 + (low >> np.uint64(6))) * 2.0**-53


@reference(random_uniform)
def _(like: Any, *, low: float, high: float, dtype: Any, seed: int, offset: int) -> Any:
    units = _units(like.shape, _DIGITS[np.dtype(dtype).name], offset, seed)
    return low + (high - low) * units[: like.size].reshape(like.shape)


@reference(random_normal)
def _(like: Any, *, mean: float, std: float, dtype: Any, seed: int, offset: int) -> Any:
    units = _units(like.shape, max(_DIGITS[np.dtype(dtype).name], 24), offset, seed)
    size, turn = np.sqrt(-2 * np.log(1 - units[0::2])), 4 * units[1::2]
    quarter = np.floor(turn + 0.5)
    rest = (turn - quarter) * (np.pi / 2)
    parts = np.stack([np.cos(rest), np.sin(rest), -np.cos(rest), -np.sin(rest)])
    at, each = quarter.astype(np.int64) % 4, np.arange(len(quarter))
    cosine, sine = parts[(0, 3, 2, 1), :][at, each], parts[(1, 0, 3, 2), :][at, each]
    drawn = np.stack([size * cosine, size * sine], -1).reshape(-1)
    return mean + std * drawn[: like.size].reshape(like.shape)


@reference(bernoulli)
def _(p: Any, *, seed: int, offset: int) -> Any:
    return (philox(p.size, offset, seed).reshape(p.shape).astype(np.float64) < p * 2.0**32).astype(np.float64)


@terms(random_uniform)
def _(like: Any, *, low: float, high: float, **_attrs: Any) -> float:
    return max(abs(low), abs(high))


@terms(random_normal)
def _(like: Any, *, mean: float, **_attrs: Any) -> float:
    return abs(mean)


@samples(random_uniform)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 16, 63, 64, 65, 130):
        yield sample(fill(n), seed=n)
    yield sample(fill(), seed=3)
    yield sample(fill(7, 5, 4), low=2.0, high=5.0, seed=(1 << 62) + 5, offset=(1 << 40) + 7)
    yield sample(fill(5, 9).T, low=0.5, high=0.5, seed=4)
    yield sample(np.zeros((3, 41), np.int32), dtype=fill.dtype, seed=6)
    yield sample(fill(0, 3), seed=1)


@samples(random_normal)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 16, 63, 64, 65, 130):
        yield sample(fill(n), seed=n)
    yield sample(fill(), seed=3)
    yield sample(fill(7, 5, 4), mean=-8.0, std=0.5, seed=(1 << 62) + 5, offset=(1 << 40) + 7)
    yield sample(fill(5, 9).T, std=3.0, seed=4)
    yield sample(np.zeros((3, 41), np.int32), dtype=fill.dtype, std=0.0, mean=2.0, seed=6)
    yield sample(fill(0, 3), seed=1)


@samples(bernoulli)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 63, 64, 65, 130):
        yield sample(np.abs(fill(n)), seed=n)
    yield sample(np.asarray(np.abs(fill())), seed=3)
    yield sample(fill(7, 5, 4), seed=(1 << 62) + 5, offset=(1 << 40) + 7)
    yield sample(np.abs(fill(9, 5).T), seed=4)
    yield sample(np.array([0.0, 1.0, -1.0, 2.0, np.inf, -np.inf]).astype(fill.dtype), seed=2)
    yield sample(fill(0, 3), seed=1)


def _wrong(fill: Fill, name: str) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3), seed=-1), AttrError, "seed=-1; want 0 or more")
    yield ErrorCase(sample(fill(3), seed=1, offset=-2), AttrError, "offset=-2; want 0 or more")
    yield ErrorCase(sample(fill(3)), AttrTypeError, "seed is missing")
    yield ErrorCase(sample(np.arange(3), seed=1), DTypeError, f"{name} has dtype int64; want")


def _wrong_alike(fill: Fill, name: str) -> Iterator[ErrorCase]:
    yield from _wrong(fill, "like")
    yield ErrorCase(sample(fill(3), seed=1, dtype="int32"), AttrError, "dtype=int32; want float32, float64,")
    yield ErrorCase(sample(fill(3), seed=1, **{name: float("-inf")}), AttrError, f"{name}=-inf; want a number")


@errors(random_uniform)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _wrong_alike(fill, "low")
    yield ErrorCase(sample(fill(3), low=1.0, high=0.0, seed=1), AttrError, "low=1 and high=0; want low <= high")


@errors(random_normal)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _wrong_alike(fill, "mean")
    yield ErrorCase(sample(fill(3), std=-1.0, seed=1), AttrError, "std=-1; want 0 or more")


@errors(bernoulli)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _wrong(fill, "p")


for _op in (random_uniform, random_normal, bernoulli):
    dtypes(_op, *FLOATING)

    @workloads(_op)
    def _() -> Iterator[Workload]:
        yield Workload("1M", ((1 << 20,),), {"seed": 1})


tolerance(random_uniform, ulp=1.5)
tolerance(random_normal, ulp=6)
tolerance(bernoulli, ulp=0.5)


@opencl(random_uniform)
def _(queue: Queue, like: Any, y: Any, *, low: float, high: float, dtype: Any, seed: int, offset: int) -> None:
    digits = _DIGITS[y.dtype.name]
    queue.each("random.cl", "uniform_of", (y,), low, high - low, offset, seed, DTYPE=y.dtype, DIGITS=digits)


@opencl(random_normal)
def _(queue: Queue, like: Any, y: Any, *, mean: float, std: float, dtype: Any, seed: int, offset: int) -> None:
    digits = max(_DIGITS[y.dtype.name], 24)
    queue.each("random.cl", "normal_of", (y,), mean, std, offset, seed, DTYPE=y.dtype, DIGITS=digits)


@opencl(bernoulli)
def _(queue: Queue, p: Any, y: Any, *, seed: int, offset: int) -> None:
    queue.each("random.cl", "bernoulli", (p, y), offset, seed, DTYPE=p.dtype, DIGITS=24)
