"""Matrix products around every edge of the blocking, where the derived checks have no samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.dtypes import finfo, is_narrow, named
from tilework.testing import Fill

# Around one register tile, a few, a panel group, and the blocks of rows and of k, of every tier.
ROWS = (1, 5, 6, 7, 12, 13, 47, 241)
COLUMNS = (1, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 129, 300)
TERMS = (0, 1, 3, 8, 127, 257, 385)
PAIRS = (("float32", "float32"), ("float64", "float64"), ("float16", "float16"), ("bfloat16", "bfloat16"))
MIXED = (("float32", "float16"), ("float32", "bfloat16"))


def _layouts(m: int, k: int, n: int) -> list[tuple[Any, Any]]:
    """Operands of small integers in the four combinations of row and column order."""
    fill = Fill(np.float32, exact=True)
    a, b = fill(m, k), fill(k, n)
    return [(x, y) for x in (a, np.asfortranarray(a)) for y in (b, np.asfortranarray(b))]


@pytest.mark.parametrize(("left", "right"), PAIRS + MIXED)
def test_integers_are_exact_at_every_edge(left: str, right: str) -> None:
    """Products of small integers are exact: a wrong edge cannot hide in a tolerance."""
    out_type = named(left)
    for i, (m, n) in enumerate((m, n) for m in ROWS for n in COLUMNS):
        k = TERMS[i % len(TERMS)]
        a, b = _layouts(m, k, n)[i % 4]
        want = (a.astype(np.float64) @ b.astype(np.float64)).astype(out_type)
        a, b = a.astype(named(left), order="K"), b.astype(named(right), order="K")
        assert np.array_equal(tw.matmul(a, b), want), f"{m}x{k}x{n}"
        assert np.array_equal(tw.matmul.prepare(b=b)(a), want), f"{m}x{k}x{n} prepared"
        out = np.empty((n, m), out_type).T
        assert np.array_equal(tw.matmul(a, b, out=out), want), f"{m}x{k}x{n} into columns"


@pytest.mark.parametrize(("left", "right"), PAIRS + MIXED)
def test_errors_stay_within_four_units_of_the_terms(left: str, right: str) -> None:
    """|error| <= 4 u |A| |B| + half a unit of the stored result, on normal data."""
    for m, k, n in ((6, 64, 33), (37, 300, 70), (64, 700, 64), (3, 2000, 5)):
        a, b = Fill(left)(m, k), Fill(right, 1)(k, n)
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        want, terms = wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b)
        accumulate = np.float64 if left == "float64" else np.float32
        bound = (5 if left == "float64" else 4) * 0.5 * float(finfo(accumulate).eps) * terms
        if is_narrow(named(left)):
            bound += np.abs(want) * float(finfo(named(left)).eps)
        got = tw.matmul(a, b)
        assert got.dtype == named(left)
        assert np.all(np.abs(got.astype(np.float64) - want) <= bound), f"{m}x{k}x{n}"


def test_no_terms_give_zeros() -> None:
    out = np.full((37, 70), np.nan, np.float32)
    tw.matmul(np.empty((37, 0), np.float32), np.empty((0, 70), np.float32), out=out)
    assert np.array_equal(out, np.zeros((37, 70), np.float32))


def test_threads_do_not_change_bits() -> None:
    """In every regime: in place, streamed, blocked, prepared, few columns."""
    for dtype in ("float32", "bfloat16"):
        for m, k, n in ((40, 50, 30), (100, 300, 400), (500, 300, 200), (7, 1500, 900), (300, 1100, 3)):
            a, b = Fill(dtype)(m, k), Fill(dtype, 1)(k, n)
            layer = tw.matmul.prepare(b=b)
            with tw.threads(1):
                want = tw.matmul(a, b), layer(a)
            for count in (2, 5):
                with tw.threads(count):
                    got = tw.matmul(a, b), layer(a)
                assert all(g.tobytes() == w.tobytes() for g, w in zip(got, want, strict=True)), f"{m}x{k}x{n} {dtype}"


def test_beta_zero_does_not_read_c() -> None:
    a, b = Fill(np.float32)(5, 300), Fill(np.float32, 1)(300, 33)
    c = np.full((5, 33), np.nan, np.float32)
    assert np.array_equal(tw.matmul(a, b, c, beta=0.0), tw.matmul(a, b))


@pytest.mark.parametrize(("left", "right"), PAIRS + MIXED)
def test_addends_are_exact_in_every_regime(left: str, right: str) -> None:
    """alpha a b + beta c and x w^T + b + residual on small integers: in place, streamed, blocked, prepared, dots."""
    fill = Fill(np.float32, exact=True)
    for m, k, n in ((5, 7, 9), (100, 60, 200), (300, 520, 70), (2, 400, 3)):
        a, b, c = fill(m, k).astype(named(left)), fill(k, n).astype(named(right)), fill(m, n).astype(named(left))
        wide = a.astype(np.float64) @ b.astype(np.float64)
        want = (2 * wide - c.astype(np.float64)).astype(named(left))
        assert np.array_equal(tw.matmul(a, b, c, alpha=2.0, beta=-1.0), want), f"{m}x{k}x{n}"
        layer = tw.matmul.prepare(b=b, alpha=2.0, beta=-1.0)
        assert np.array_equal(layer(a, c), want), f"{m}x{k}x{n} prepared"
        bias = fill(n).astype(named(left))
        want = np.maximum(wide + bias.astype(np.float64) + c.astype(np.float64), 0).astype(named(left))
        assert np.array_equal(tw.linear(a, b.T, bias, c, activation="relu"), want), f"linear {m}x{k}x{n}"
