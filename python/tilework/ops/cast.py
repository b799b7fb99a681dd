"""Conversions between element types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import (
    SMALL,
    SMALL_FLOATS,
    SMALL_INTEGERS,
    finfo,
    is_floating,
    is_integer,
    is_small,
    named,
    rounded,
)
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
    import numpy.typing as npt

    from tilework.testing import Fill


@op
def cast(x: Array, *, dtype: npt.DTypeLike, saturate: bool = True, out: Array | None = None) -> Array:
    """Converts x, of any shape, to ``dtype``, any of tilework's or one of ml_dtypes of 8 bits or fewer.

    Between floats it rounds half to even, and to float8_e8m0fnu up. Floats to integers truncate; what is out of range
    saturates and NaN becomes 0. Integers saturate too, and so does what is too large for a float of 8 bits or fewer. To
    bool, everything but 0 is True. With ``saturate=False`` integers made of integers, and those of 4 and 2 bits, keep
    their low bits, and what is too large for a float8 is infinite, or NaN where it has no infinity. ONNX Cast.
    """
    ...


@op
def bitcast(x: Array, *, dtype: npt.DTypeLike, out: Array | None = None) -> Array:
    """Reads the bits of x, of any shape, as elements of another ``dtype`` of as many bytes. ONNX BitCast."""
    ...


# -------------------------------------------------------------------------------------------------- reference


def _to_power(x: Any, *, saturate: bool) -> Any:
    """float8_e8m0fnu: the next power of two, whose exponent is the code less 127."""
    mantissa, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    code = np.where(x == 0, 0, np.maximum(exponent - (mantissa == 0.5) + 127, 0))
    code = np.minimum(code, 254) if saturate else code
    strange = (x < 0) | ~np.isfinite(x) | (code > 254)
    return np.asarray(np.where(strange, 255, code).astype(np.uint8)).view(named("float8_e8m0fnu"))


def _to_float(x: Any, dtype: np.dtype[Any], *, saturate: bool) -> Any:
    if dtype.name == "float8_e8m0fnu":
        return _to_power(np.asarray(x, np.float64), saturate=saturate)
    if saturate and dtype.name in SMALL_FLOATS:
        most = float(finfo(dtype).max)
        x = np.clip(np.asarray(x, np.float64), -most, most)
    return rounded(x, dtype)


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.name not in SMALL_INTEGERS:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    bits = int(dtype.name[-1])
    return (0, (1 << bits) - 1) if dtype.name[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def _to_integer(x: Any, dtype: np.dtype[Any], *, saturate: bool) -> Any:
    floating = is_floating(x.dtype)
    if floating:
        x = np.clip(np.where(np.isnan(x), 0.0, x), -(2.0**65), 2.0**65)
    whole = np.asarray(np.frompyfunc(int, 1, 1)(x), object)  # Python's, which are exact
    low, high = _limits(dtype)
    if saturate or (floating and dtype.name not in SMALL_INTEGERS):
        whole = np.clip(whole, low, high)
    else:
        whole = np.clip(whole, -(1 << 63), (1 << 63) - 1) if floating else whole
        whole = (whole - low) % (high - low + 1) + low
    return np.asarray(whole, np.int8 if dtype.name in SMALL_INTEGERS else dtype).astype(dtype)


@reference(cast)
def _(x: Any, *, dtype: np.dtype[Any], saturate: bool) -> Any:
    if is_small(x.dtype):
        x = x.astype(np.int8 if x.dtype.name in SMALL_INTEGERS else np.float32)
        x = x if x.dtype == np.int8 else x.astype(np.float64)
    if is_integer(dtype) or dtype.name in SMALL_INTEGERS:
        return _to_integer(x, dtype, saturate=saturate)
    return _to_float(x, dtype, saturate=saturate)


@backward(cast, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, dtype: np.dtype[Any], saturate: bool) -> Array | None:
    return cast(dy, dtype=x.dtype) if is_floating(dtype) and is_floating(x.dtype) else None


_FLOATS = {4: np.float32, 8: np.float64, 2: np.float16}  # references are given floats as float64


@reference(bitcast)
def _(x: Any, *, dtype: np.dtype[Any]) -> Any:
    return (x.astype(_FLOATS[dtype.itemsize]) if is_floating(x.dtype) else x).view(dtype)


for _op in (cast, bitcast):
    tolerance(_op, ulp=0.5)
dtypes(bitcast, "float32")


# ---------------------------------------------------------------------------------------------------- samples


@samples(cast)
def _(fill: Fill) -> Iterator[Sample]:
    edges = np.array(
        [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 128, -128.5, -129, 255.9, 256, 1e9, -1e9, 2**31, 1e10]
    )
    wild = np.array(
        [2.0**63, -(2.0**63), 1e30, -1e30, np.inf, -np.inf, np.nan, 65504, 65520, 3.3e38, 1e-40, 6e-8, 1e-8]
    )
    whole = np.array([0, 1, -1, 127, 128, -128, 255, 256, 65537, 1 << 31, -(1 << 31), 1 << 62])
    natural = np.array([0, 3, 255, 65537, (1 << 31) + 1, (1 << 53) + 3, (1 << 63) + 1025, (1 << 64) - 1], np.uint64)
    for dtype in (
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "int64",
        "bool",
    ):
        yield sample(fill(3, 17) * 100, dtype=dtype)
        yield sample(np.concatenate([edges, wild]).astype(fill.dtype), dtype=dtype)
        yield sample(whole, dtype=dtype)
        yield sample(np.array([True, False]), dtype=dtype)
        yield sample(fill(2, 9).astype(np.float16), dtype=dtype)
        yield sample(np.arange(256).astype(np.uint8), dtype=dtype)
        yield sample(np.array([0, -1, 127, -129, 255, 32767, -32768], np.int16), dtype=dtype)
        yield sample(fill(0, 3), dtype=dtype)
    for dtype in ("uint32", "uint64", *SMALL):
        yield sample(np.concatenate([edges, wild]).astype(fill.dtype), dtype=dtype)
        yield sample(np.arange(4).astype(named(dtype)), dtype=fill.dtype)
    for dtype in ("uint32", "float8_e4m3fn", "uint2"):
        yield sample(whole, dtype=dtype)
        yield sample(natural, dtype=dtype)
    for dtype in ("float32", "float64", "bfloat16", "int16", "int64", "bool"):
        yield sample(natural, dtype=dtype)
    for dtype in ("int8", "uint32", "int4", "float8_e5m2"):
        yield sample(np.array([0, 1, -1, 9, 128, 65537, (1 << 62) + 5, -(1 << 33) - 1]), dtype=dtype, saturate=False)
    yield sample(np.concatenate([edges, wild]).astype(fill.dtype), dtype="float8_e4m3fn", saturate=False)
    yield sample(fill(5, 3).T, dtype=np.float16)
    yield sample(fill(), dtype=np.float64)


@samples(bitcast)
def _(fill: Fill) -> Iterator[Sample]:
    whole, natural = (f"{sign}int{8 * fill.dtype.itemsize}" for sign in ("", "u"))
    yield sample(fill(3, 17), dtype=whole)
    yield sample(fill(5, 3).T, dtype=natural)
    yield sample(np.arange(-4, 5).astype(whole), dtype=natural)
    yield sample(fill(2, 9).view(whole), dtype=fill.dtype)
    yield sample(np.array([True, False]), dtype="uint8")
    yield sample(fill(), dtype=whole)
    yield sample(fill(0, 3), dtype=natural)


@errors(cast)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2)), AttrTypeError, "dtype")
    yield ErrorCase(sample(fill(2), dtype="complex64"), AttrTypeError, "dtype='complex64' is a str")
    yield ErrorCase(sample(fill(2), dtype="nonsense"), AttrTypeError, "dtype='nonsense' is a str")
    yield ErrorCase(sample(fill(2).astype(np.complex64), dtype="float32"), DTypeError, "x has dtype complex64")


@errors(bitcast)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2)), AttrTypeError, "dtype")
    yield ErrorCase(sample(fill(2), dtype="uint8"), AttrError, "dtype=uint8 has 1 bytes but x, of")


@workloads(bitcast)
def _() -> Iterator[Workload]:
    yield Workload("4M to int32", ((1 << 22,),), {"dtype": "int32"})


@workloads(cast)
def _() -> Iterator[Workload]:
    for dtype in ("float16", "bfloat16", "int8", "float64"):
        yield Workload(f"4M to {dtype}", ((1 << 22,),), {"dtype": dtype})


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(bitcast)
def _(queue: Queue, x: Any, y: Any, *, dtype: np.dtype[Any]) -> None:
    queue.copy(x, y)


@opencl(cast)
def _(queue: Queue, x: Any, y: Any, *, dtype: np.dtype[Any], saturate: bool) -> None:
    queue.cast(x, y, saturate=saturate or is_floating(x.dtype))
