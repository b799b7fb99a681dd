"""How near a result must be to the reference, and how a failure is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.backends.reference import widen
from tilework.dtypes import finfo, is_floating, is_narrow, rounded
from tilework.registry import resolve
from tilework.settings import isa
from tilework.testing.cases import AnyOp, Array, Attrs, arrays_in, expected, mapped

# The one constant of the bound c eps sqrt(K) sum|a||b| of linear ops.
BOUND = 2.0

# A gradient is a chain of a few ops: this many eps sqrt(K), relative to its largest element.
GRADIENT_BOUND = 16.0

# In 16 bits each op of that chain also rounds what it hands on: this many eps of the largest element.
NARROW_GRADIENT_BOUND = 4.0

# An activation's slope is at most 1.13, and its own rounding at most 4 ULP.
_ACTIVATION_SLOPE, _ACTIVATION_ULP = 1.13, 4.0

# Tiers that multiply matrices of bfloat16.
_TILES = ("amx",)


def spacing(value: Array, dtype: Any) -> Array:
    """The distance from |value| to the next number of ``dtype``."""
    with np.errstate(all="ignore"):
        finite = np.minimum(np.abs(np.asarray(value, np.float64)), float(finfo(dtype).max))
        return np.asarray(np.spacing(finite.astype(dtype)), np.float64)


def bounds(
    op: AnyOp,
    args: Sequence[Any],
    attrs: Attrs,
    wide: Sequence[Array],
    dtypes: Sequence[Any],
    *,
    narrow_factors: bool = False,
) -> list[Array]:
    """How far each element may be from the float64 reference; 0 where it must be the reference rounded once.

    ``narrow_factors``: results of 16 bits may be sums of products whose factors were themselves rounded to 16 bits.
    Those of bfloat16 are where a tier with tiles runs an op by them.
    """
    by_tiles = "tiles" in op.rules and isa() in _TILES
    ulp = op.rules.get("ulp", 0.5)
    resolved = resolve(op, tuple(args), dict(attrs))
    linear = "depth" in op.rules
    with np.errstate(all="ignore"):
        terms = _largest_terms(op, args, resolved, len(wide))
        allowed = []
        for result, term, dtype in zip(wide, terms, dtypes, strict=True):
            if not is_floating(dtype) or (not linear and ulp == 0.5):
                allowed.append(np.zeros(result.shape))
                continue
            # A float64 result is judged by a float64 reference, whose own error counts too.
            judge = 2.0 if dtype == np.float64 else 1.0
            accumulate = np.dtype(np.float32) if is_narrow(dtype) else dtype
            if linear:
                k = max(1, op.rules["depth"](*args, **resolved))
                eps = float(finfo(accumulate).eps)
                bound = BOUND * judge * eps * math.sqrt(k) * np.broadcast_to(term, result.shape)
                last = _ACTIVATION_ULP * judge if resolved.get("activation") else 0.5
                slope = _ACTIVATION_SLOPE if resolved.get("activation") else 1.0
                bound = slope * bound + last * spacing(result, accumulate)
                if is_narrow(dtype) and (narrow_factors or (by_tiles and np.dtype(dtype).name == "bfloat16")):
                    bound = bound + 0.5 * float(finfo(dtype).eps) * np.broadcast_to(term, result.shape)
            else:
                top = np.fmax(np.abs(result), np.broadcast_to(0.0 if term is None else term, result.shape))
                bound = (judge * ulp + 2 * (judge - 1)) * spacing(top, accumulate)
            allowed.append(bound + 0.5 * spacing(np.abs(result) + bound, dtype) if is_narrow(dtype) else bound)
        return allowed


def _largest_terms(op: AnyOp, args: Sequence[Any], resolved: Attrs, count: int) -> tuple[Any, ...]:
    """Per result, the size of what was summed: ``terms`` or sum|a||b| of a linear op, ``scale`` of another, or None."""
    operands = tuple(widen(a) for a in args)
    if "terms" in op.rules:
        terms = op.rules["terms"](*operands, **resolved)
    elif "depth" in op.rules:
        absolute = mapped(lambda a: np.abs(a) if is_floating(a.dtype) else a, operands)
        sizes = {k: abs(v) for k, v in resolved.items() if isinstance(v, float)}  # factors
        without = {"activation": None} if "activation" in resolved else {}
        terms = op.rules["reference"](*absolute, **(resolved | sizes | without))
    else:
        terms = op.rules["scale"](*operands, **resolved) if "scale" in op.rules else None
    return terms if isinstance(terms, tuple) else (terms,) * count


def assert_close(got: Array, wide: Array, bound: Any, dtype: Any, what: str = "the result") -> None:
    """Asserts that ``got`` is within ``bound`` of ``wide``, with NaN and infinities where ``wide`` has them."""
    assert isinstance(got, np.ndarray), f"{what} is a {type(got).__name__}; want a numpy.ndarray"
    assert got.shape == wide.shape, f"{what} has shape {got.shape}; want {wide.shape}"
    assert got.dtype == dtype, f"{what} has dtype {got.dtype}; want {dtype}"
    bound = np.broadcast_to(bound, wide.shape)
    with np.errstate(all="ignore"):
        want = rounded(wide, dtype)
        if not is_floating(got.dtype):
            good = (got == want) | ((got != got) & (want != want))  # a float8 may be NaN
            error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        else:
            mine, ideal = got.astype(np.float64), want.astype(np.float64)
            error = np.abs(mine - np.asarray(wide, np.float64))
            finite = np.isfinite(mine) & np.isfinite(ideal)
            good = (mine == ideal) | (np.isnan(mine) & np.isnan(ideal)) | (finite & (error <= bound))
        if np.all(good):
            return
        badness = np.where(good, -1.0, np.where(np.isnan(error), np.inf, error / np.maximum(bound, 1e-300)))
        worst = np.unravel_index(int(np.argmax(badness)), badness.shape)
        ulps = f", {float(error[worst]) / spacing(want, dtype)[worst]:.3g} ULP apart" if is_floating(got.dtype) else ""
    raise AssertionError(
        f"{what}: {int(np.sum(~good))} of {got.size} elements are wrong; worst at {tuple(int(i) for i in worst)}: "
        f"got {got[worst]!r}, want {want[worst]!r}{ulps}, allowed {bound[worst]:.3g}"
    )


def assert_matches_reference(
    op: AnyOp, args: Sequence[Any], attrs: Attrs, got: Sequence[Array], *, narrow_factors: bool = False
) -> None:
    """Asserts that results are those of the reference for the same arguments, within the op's bound."""
    wide, dtypes = expected(op, args, attrs)
    assert len(got) == len(wide), f"{len(got)} results; want {len(wide)}"
    allowed = bounds(op, args, attrs, wide, dtypes, narrow_factors=narrow_factors)
    for i, (g, w, b, d) in enumerate(zip(got, wide, allowed, dtypes, strict=True)):
        assert_close(g, w, b, d, f"result {i}" if len(got) > 1 else "the result")


def assert_same_bits(got: Any, want: Any, what: str) -> None:
    """Asserts that two structures of arrays are equal to the last bit, in whatever layout."""
    mine, other = arrays_in(got), arrays_in(want)
    assert len(mine) == len(other), f"{what}: {len(mine)} arrays; want {len(other)}"
    for g, w in zip(mine, other, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), f"{what}: {g.dtype} {g.shape}; want {w.dtype} {w.shape}"
        if g.tobytes() != w.tobytes():
            assert_close(g, w, 0.0, w.dtype, what)
            raise AssertionError(f"{what}: equal values but other bits (the sign of a zero, or another NaN)")


def assert_same_results(op: AnyOp, args: Sequence[Any], attrs: Attrs, got: Any, want: Any, what: str) -> None:
    """Asserts that another layout gave the same bits; if the op reorders sums, a result within the bound."""
    if "reorders" not in op.rules:
        assert_same_bits(got, want, what)
        return
    try:
        assert_matches_reference(op, args, attrs, got)
    except AssertionError as failure:
        raise AssertionError(f"{what}: {failure}") from failure


def assert_near_gradient(got: Array, want: Array, terms: int, what: str) -> None:
    """Asserts that a gradient is near one that was computed another way; ``terms`` bounds the length of its sums."""
    top = max(float(np.max(np.abs(want), initial=0.0)), 1e-3)
    accumulate = np.dtype(np.float32) if is_narrow(got.dtype) else got.dtype
    allowed = GRADIENT_BOUND * float(finfo(accumulate).eps) * math.sqrt(max(terms, 1)) * top
    if is_narrow(got.dtype):
        allowed += NARROW_GRADIENT_BOUND * float(finfo(got.dtype).eps) * top
    assert_close(got, want.astype(np.float64), allowed, got.dtype, what)
