"""Element types: what numpy alone does not say about bfloat16, which ml_dtypes adds to it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

FLOATING = ("float32", "float64", "float16", "bfloat16")


def named(name: str) -> np.dtype[Any]:
    """The dtype called ``name``; ml_dtypes is imported for bfloat16."""
    made: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    return made


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is one of the floating types, bfloat16 included."""
    dtype = np.dtype(dtype)
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def is_integer(dtype: Any) -> bool:
    """Whether a dtype is one of numpy's integers, bool excluded."""
    return np.dtype(dtype).kind in "iu"


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16: stored in 16 bits, computed in float32."""
    return np.dtype(dtype).name in ("float16", "bfloat16")


def finfo(dtype: Any) -> Any:
    """``numpy.finfo``, of bfloat16 too."""
    dtype = np.dtype(dtype)
    return np.finfo(dtype) if dtype.kind == "f" else importlib.import_module("ml_dtypes").finfo(dtype)


def rounded(x: Any, dtype: Any) -> Any:
    """Values rounded once to ``dtype``: ml_dtypes rounds float64 twice on the way to bfloat16."""
    dtype = np.dtype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is infinite
        if dtype.name != "bfloat16":
            return np.asarray(x).astype(dtype)
        return _to_bfloat16(np.asarray(x, np.float64)).astype(dtype)


def _to_bfloat16(x: Any) -> Any:
    """x rounded once to 8 bits of mantissa: ml_dtypes rounds float64 twice."""
    _, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    nearest = np.where(np.isfinite(x), np.rint(x / unit) * unit, x)
    return np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, x), nearest)
