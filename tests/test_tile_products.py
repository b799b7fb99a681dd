"""Matrix products on tiles of bf16: as near as the tier below, which multiplies what tiles would flush or lose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tilework as tw
from tilework.dtypes import named

pytestmark = pytest.mark.skipif("amx" not in tw.tiers(), reason="no tiles on this CPU")

# The last two are summed in shares.
SHAPES = [(128, 160, 128), (130, 513, 700), (300, 200, 1111), (256, 256, 2048), (64, 96, 5001), (64, 200, 2100)]


@pytest.fixture(autouse=True)
def _tier() -> Iterator[None]:
    before = tw.isa()
    yield
    tw.set_isa(before)


def on(tier: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    tw.set_isa(tier)
    return np.asarray(tw.matmul(a, b))


def kernel_of(a: np.ndarray, b: np.ndarray) -> str:
    tw.set_isa("amx")
    with tw.profile() as ran:
        tw.matmul(a, b)
    return next(iter(ran)).kernel


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_pieces_are_no_less_exact_than_a_chain_of_fma(m: int, n: int, k: int) -> None:
    a, b = normal((m, k), 1), normal((k, n), 2)
    assert "tiles" in kernel_of(a, b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    off = {tier: np.sqrt(np.mean(((on(tier, a, b) - exact) / size) ** 2)) for tier in ("avx512", "amx")}
    assert off["amx"] <= off["avx512"]
    assert off["amx"] < 0.32 * 2.0**-24


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_whole_numbers_are_exact(m: int, n: int, k: int, dtype: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (
        rng.integers(-3, 4, (m, k)).astype(named(dtype)),
        (rng.integers(-3, 4, (k, n)) * (rng.random((k, n)) < 0.02)).astype(named(dtype)),
    )
    want = (a.astype(np.float64) @ b.astype(np.float64)).astype(named(dtype))
    np.testing.assert_array_equal(on("amx", a, b), want)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(95, 95, 95), (127, 127, 127), (150, 150, 150), (149, 130, 250), (126, 239, 2083)]
)
@pytest.mark.parametrize("turned", ["none", "a", "b"])
def test_edges_see_nothing_beyond(m: int, n: int, k: int, turned: str) -> None:
    a, b = normal((m, k), 31), normal((k, n), 32)
    within = []
    for x, turn in ((a, turned == "a"), (b, turned == "b")):
        around = np.full((x.shape[turn] + 5, x.shape[not turn] + 7), np.nan, np.float32)
        y = around[2:-3, 3:-4]
        y[...] = x.T if turn else x
        within.append(y.T if turn else y)
    assert "tiles" in kernel_of(*within)
    np.testing.assert_array_equal(on("amx", *within), on("amx", a, b))
    bias, w = normal((n,), 33), np.ascontiguousarray(b.T)
    np.testing.assert_array_equal(tw.linear(a, w, bias), tw.matmul(a, w.T) + bias)


def halves(kind: str, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands of float16 whose second pieces of bf16 are there, are the largest, or are in some parts alone."""
    if kind == "largest":
        return np.full((m, k), 1 + 2.0**-8, np.float16), np.full((k, n), -1 - 2.0**-8, np.float16)
    a, b = normal((m, k), 21).astype(np.float16), normal((k, n), 22).astype(np.float16)
    if kind in ("parts", "short a"):
        a[:, : k if kind == "short a" else k // 2] = np.rint(a[:, : k if kind == "short a" else k // 2] * 8)
    if kind in ("parts", "short b"):
        b[:, : n if kind == "short b" else n // 2] = np.rint(b[:, : n if kind == "short b" else n // 2] * 8)
        b[: k // 3] = 1
    return a, b


@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (48, 100, 600), (40, 64, 24)])
@pytest.mark.parametrize("kind", ["normal", "largest", "parts", "short a", "short b"])
def test_float16_leaves_out_less_than_it_rounds(kind: str, m: int, n: int, k: int) -> None:
    a, b = halves(kind, m, n, k)
    assert "tiles" in kernel_of(a, b) or k == 24
    exact = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    left_out = 0.0 if "short" in kind else 2.0**-16
    allowed = (left_out + 8 * 2.0**-24) * size + np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) / 2
    assert np.all(np.abs(on("amx", a, b) - exact) <= allowed)


@pytest.mark.parametrize("side", ["a", "b"])
def test_products_with_float16_of_eight_bits_are_exact(side: str) -> None:
    rng = np.random.default_rng(23)
    short = rng.integers(-255, 256, (96, 640)) * (rng.random((96, 640)) < 0.05)
    long = rng.integers(-2047, 2048, (640, 128))
    a, b = (short, long) if side == "a" else (long.T, short.T)
    with np.errstate(over="ignore"):
        want = (a @ b).astype(np.float16)
    np.testing.assert_array_equal(on("amx", a.astype(np.float16), b.astype(np.float16)), want)


def test_products_that_a_float_holds_are_exact() -> None:
    a, b = np.zeros((96, 64), np.float32), np.zeros((64, 96), np.float32)
    a[np.arange(64), np.arange(64)] = np.random.default_rng(4).integers(2**23, 2**24, 64)
    b[:] = 2.0 ** np.random.default_rng(5).integers(-20, 20, b.shape)
    np.testing.assert_array_equal(on("amx", a, b), a.astype(np.float64) @ b)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e-38, 1e-42, 3e38])
@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hostile_numbers_give_what_the_tier_below_gives(value: float, where: str, dtype: str) -> None:
    a, b = normal((200, 300), 6), normal((300, 260), 7)
    with np.errstate(over="ignore"):
        a, b = a.astype(named(dtype)), b.astype(named(dtype))
        (a if where == "a" else b)[37, 77] = value
    got, want = on("amx", a, b).astype(np.float64), on("avx512", a, b).astype(np.float64)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(
        got, want, rtol=1e-2 if dtype == "bfloat16" else 1e-3, atol=1e-4 if dtype == "float32" else 0.1
    )
    unit = (slice(32, 64), slice(0, 260)) if where == "a" else (slice(0, 200), slice(64, 128))
    if dtype == "float32":
        np.testing.assert_array_equal(got[unit], want[unit])


@pytest.mark.parametrize("scale", [1e-36, 1e-41, 1e-30, 1e18])
def test_small_and_large_matrices_keep_their_precision(scale: float) -> None:
    a, b = normal((128, 128), 8, scale), normal((128, 128), 9, 1.0 if scale < 1 else scale)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    assert np.max(np.abs(on("amx", a, b) - exact) / (size * 2.0**-24 + 2.0**-149)) < 64


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000])
def test_every_nan_is_one(bits: int) -> None:
    a, b = normal((64, 128), 10), normal((128, 96), 11)
    a.view(np.uint32)[5, 6] = bits
    got = on("amx", a, b)
    assert np.isnan(got[5]).all()
    assert not np.isnan(np.delete(got, 5, 0)).any()


@pytest.mark.parametrize(("m", "n", "k"), [(333, 777, 500), (95, 96, 4500)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_threads_do_not_change_bits(dtype: str, m: int, n: int, k: int) -> None:
    a, b = normal((m, k), 12).astype(named(dtype)), normal((k, n), 13).astype(named(dtype))
    a[90, 100] = np.inf
    tw.set_isa("amx")
    results = []
    for threads in (1, 2, 3, 8):
        with tw.threads(threads):
            results.append(np.asarray(tw.matmul(a, b)).view(np.uint32 if dtype == "float32" else np.uint16))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
