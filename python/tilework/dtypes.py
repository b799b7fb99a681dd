"""Element types: what numpy alone does not say about bfloat16 and the small ones, which ml_dtypes adds to it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

FLOATING = ("float32", "float64", "float16", "bfloat16")

# Numbers of 8 bits or fewer, a byte each: they are moved, cast and quantised, and nothing is computed in them.
SMALL_FLOATS = (
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
)
SMALL_INTEGERS = ("int4", "uint4", "int2", "uint2")
SMALL = (*SMALL_FLOATS, *SMALL_INTEGERS)
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
KNOWN = (*FLOATING, *INTEGERS, *SMALL, "bool")

# Of floats that ml_dtypes adds: the digits of a number, the leading one included, and 2^n as the smallest one.
_DIGITS = {
    "bfloat16": (8, -133),
    "float8_e4m3fn": (4, -9),
    "float8_e4m3fnuz": (4, -10),
    "float8_e5m2": (3, -16),
    "float8_e5m2fnuz": (3, -17),
    "float4_e2m1fn": (2, -1),
}


def named(name: str) -> np.dtype[Any]:
    """The dtype called ``name``; ml_dtypes is imported for bfloat16 and the small ones."""
    foreign = name == "bfloat16" or name in SMALL
    made: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name) if foreign else name)
    return made


def is_known(dtype: Any) -> bool:
    """Whether arrays of a dtype are taken: in native byte order, of numbers or bool."""
    dtype = np.dtype(dtype)
    return bool(dtype.isnative and dtype.name in KNOWN)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is one of the floating types that ops compute in, bfloat16 included."""
    dtype = np.dtype(dtype)
    return bool((dtype.kind == "f" and dtype.itemsize > 1) or dtype.name == "bfloat16")


def is_small(dtype: Any) -> bool:
    """Whether a dtype is one of 8 bits or fewer that nothing is computed in."""
    dtype = np.dtype(dtype)
    return dtype.itemsize == 1 and dtype.name in SMALL


def is_integer(dtype: Any) -> bool:
    """Whether a dtype is one of numpy's integers, bool excluded."""
    return np.dtype(dtype).kind in "iu"


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16: stored in 16 bits, computed in float32."""
    return np.dtype(dtype).name in ("float16", "bfloat16")


def finfo(dtype: Any) -> Any:
    """``numpy.finfo``, of the floats of ml_dtypes too."""
    dtype = np.dtype(dtype)
    own = dtype.kind == "f" and dtype.itemsize > 1
    return np.finfo(dtype) if own else importlib.import_module("ml_dtypes").finfo(dtype)


def rounded(x: Any, dtype: Any) -> Any:
    """Values rounded once to ``dtype``, what is too large to infinity: ml_dtypes rounds float64 twice."""
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name not in _DIGITS:
            return np.asarray(x).astype(dtype)
        return _nearest(np.asarray(x, np.float64), *_DIGITS[dtype.name]).astype(dtype)


def _nearest(x: Any, digits: int, least: int) -> Any:
    """x rounded once to numbers of so many digits, the smallest of which is 2^least."""
    _, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent - digits, least))
    nearest = np.where(np.isfinite(x), np.rint(x / unit) * unit, x)
    return np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, x), nearest)
