"""Attention on tiles: as near as the tier below, which takes the heads whose numbers do not fit pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.dtypes import named

pytestmark = pytest.mark.skipif("amx" not in tw.tiers(), reason="no tiles on this CPU")

DTYPES = ["float32", "float16", "bfloat16"]
# Of the largest error of an answer, as a part of the weighted sum of |v|.
BOUND = {"float32": 32 * 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-7}


@pytest.fixture(autouse=True)
def _tier() -> Iterator[None]:
    before = tw.isa()
    yield
    tw.set_isa(before)


def on(tier: str, *args: Any, **attrs: Any) -> np.ndarray:
    tw.set_isa(tier)
    return np.asarray(tw.attention(*args, **attrs))


def kernels(*args: Any, **attrs: Any) -> list[str]:
    tw.set_isa("amx")
    with tw.profile() as ran:
        tw.attention(*args, **attrs)
    return [one.kernel for one in ran]


def heads(dtype: str, *shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(named(dtype)) for shape in shapes]


def expected(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: Any = None, **attrs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The answer in float64, and the weighted sum of |v|."""
    tw.set_isa("amx")
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    mask = mask if mask is None or mask.dtype == bool else mask.astype(np.float64)
    alibi = attrs.pop("alibi", None)
    more = {} if alibi is None else {"alibi": alibi.astype(np.float64)}
    return tw.attention(q, k, v, mask, **more, **attrs), tw.attention(q, k, np.abs(v), mask, **more, **attrs)


CALLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [  # H, Hkv, T, S, D, Dv
    ((2, 2, 256, 256, 64, 64), {}),
    ((2, 1, 100, 333, 64, 80), {"causal": True}),
    ((2, 2, 130, 700, 128, 128), {"window": (100, 3)}),
    ((1, 1, 512, 100, 32, 32), {"causal": True}),
    ((4, 2, 90, 140, 96, 300), {"scale": 0.3, "softcap": 4.0}),
    ((2, 2, 65, 129, 72, 56), {"scale": -0.2}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "attrs"), CALLS)
@pytest.mark.parametrize("masked", ["", "bool", "added", "alibi"])
def test_tiles_are_near(sizes: tuple[int, ...], attrs: dict[str, Any], masked: str, dtype: str) -> None:
    h, kv, t, s, d, dv = sizes
    q, k, v, added, slopes = heads(dtype, (2, h, t, d), (2, kv, s, d), (2, kv, s, dv), (h, t, s), (h,))
    allowed = np.random.default_rng(1).random((t, s)) < 0.7
    mask = {"bool": allowed, "added": added}.get(masked)
    more = {**attrs, **({"alibi": np.abs(slopes)} if masked == "alibi" else {})}
    assert "tiles" in kernels(q, k, v, mask, **more)[0]
    want, size = expected(q, k, v, mask, **more)
    got = on("amx", q, k, v, mask, **more)
    assert np.max(np.abs(got.astype(np.float64) - want) / np.maximum(size, 1e-30)) < BOUND[dtype]
    with tw.threads(1):
        np.testing.assert_array_equal(on("amx", q, k, v, mask, **more), got)


@pytest.mark.parametrize("tier", ["avx512", "amx"])
def test_pieces_are_no_less_exact_than_floats(tier: str) -> None:
    q, k, v = heads("float32", *[(1, 2, 512, 64)] * 3)
    want, size = expected(q, k, v)
    off = {t: np.sqrt(np.mean(((on(t, q, k, v) - want) / size) ** 2)) for t in ("avx512", tier)}
    assert off[tier] <= off["avx512"] < 2.0**-24


@pytest.mark.parametrize("size", [0.1, 1.0, 6.0, 300.0])
@pytest.mark.parametrize("attrs", [{}, {"causal": True}])
def test_weights_whose_sum_nobody_asks_for(size: float, attrs: dict[str, Any]) -> None:
    q, k, v = heads("bfloat16", (1, 2, 300, 64), (1, 2, 700, 64), (1, 2, 700, 64))
    q = (q.astype(np.float64) * size).astype(q.dtype)
    want, weighted = expected(q, k, v, **attrs)
    got = np.asarray(on("amx", q, k, v, **attrs)).astype(np.float64)
    tw.set_isa("amx")
    exact = np.asarray(tw.attention(q, k, v, return_lse=True, **attrs)[0]).astype(np.float64)
    off, least = (np.sqrt(np.mean((y - want) ** 2)) for y in (got, exact))
    assert off < 1.4 * least
    assert np.max(np.abs(got - want) / weighted) < BOUND["bfloat16"]


HOSTILE = [np.inf, -np.inf, np.nan, 1e38, -3e38, 1e-38, 1e-40, 1e-45]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("attrs", [{}, {"causal": True}])
def test_heads_that_do_not_fit_are_the_tier_belows(which: int, value: float, attrs: dict[str, Any]) -> None:
    arrays = heads("float32", (2, 4, 70, 64), (2, 2, 200, 64), (2, 2, 200, 64))
    arrays[which][1, 1, 50, 3] = value
    lengths = np.array([200, 190])
    tw.set_isa("amx")
    with np.errstate(all="ignore"):
        below = on("avx512", *arrays, None, lengths, **attrs)
        got = on("amx", *arrays, None, lengths, **attrs)
        with tw.threads(1):
            np.testing.assert_array_equal(on("amx", *arrays, None, lengths, **attrs), got)
    own = slice(0, 2) if which == 0 else slice(2, 4)  # of two heads that share one of k and v
    np.testing.assert_array_equal(got[1, own], below[1, own])
    others = np.ones(got.shape[:2], bool)
    others[1, own] = False
    assert np.isfinite(got[others]).all()
    np.testing.assert_allclose(got[others], below[others], rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1e38, 1e30, 1e20, 1e-20, 1e-30, 1e-38, 1e-42])
def test_operands_of_any_size(size: float) -> None:
    q, k, v = heads("float32", *[(1, 2, 96, 64)] * 3)
    mask, slopes, sinks = heads("float32", (2, 96, 96), (2,), (2,), seed=5)
    slopes = np.abs(slopes) / 8
    scaled = (size * v.astype(np.float64)).clip(-3e38, 3e38).astype(np.float32)
    got, below = (
        on(tier, q, k, scaled, mask, alibi=slopes, sinks=sinks).astype(np.float64) for tier in ("amx", "avx512")
    )
    np.testing.assert_allclose(got, below, rtol=0, atol=4e-6 * size)
    scaled = (size * q.astype(np.float64)).clip(-3e38, 3e38).astype(np.float32)
    got, below = (on(tier, scaled, k, v) for tier in ("amx", "avx512"))
    if size < 1:
        np.testing.assert_allclose(got, below, rtol=0, atol=2e-6)
    assert np.array_equal(np.isnan(got), np.isnan(below))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_and_lengths_that_hide_all(dtype: str) -> None:
    q, k, v = heads(dtype, (2, 2, 80, 64), (2, 2, 300, 64), (2, 2, 300, 64))
    mask = np.random.default_rng(2).random((2, 1, 80, 300)) < 0.5
    mask[0, :, :40] = False
    mask[1, :, :, 128:256] = False
    lengths = np.array([260, 0])
    k[0, :, 260:] = v[0, :, 260:] = np.nan
    y = on("amx", q, k, v, mask, lengths).astype(np.float32)
    assert not y[0, :, :40].any()
    assert not y[1].any()
    below = on("avx512", q, k, v, mask, lengths).astype(np.float32)
    np.testing.assert_allclose(y, below, rtol=0, atol=4 * BOUND[dtype])


def test_strides_do_not_matter() -> None:
    q, k, v = heads("float32", *[(2, 70, 3, 64)] * 3)
    turned = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
    want = on("amx", *[np.ascontiguousarray(x) for x in turned])
    np.testing.assert_array_equal(on("amx", *turned), want)
    wide = [np.repeat(x, 2, axis=-1)[..., ::2] for x in turned]
    np.testing.assert_array_equal(on("amx", *wide), want)


# Of the gradients: a part of the largest.
NEAR = 2.0**-6


@pytest.mark.parametrize(("sizes", "attrs"), [*CALLS, ((4, 1, 70, 300, 16, 40), {"lengths": np.array([300, 90])})])
@pytest.mark.parametrize("masked", ["", "bool", "added", "alibi", "dropout"])
def test_gradients_by_tiles_are_near(sizes: tuple[int, ...], attrs: dict[str, Any], masked: str) -> None:
    h, kv, t, s, d, dv = sizes
    q, k, v, dy, added, slopes = heads(
        "bfloat16", (2, h, t, d), (2, kv, s, d), (2, kv, s, dv), (2, h, t, dv), (h, t, s), (h,)
    )
    allowed = np.random.default_rng(1).random((2, 1, t, s)) < 0.7
    more: dict[str, Any] = {**attrs, "mask": {"bool": allowed, "added": added}.get(masked)}
    if masked == "alibi":
        more["alibi"] = np.abs(slopes)
    if masked == "dropout":
        more |= {"dropout": 0.2, "seed": 7}
    tw.set_isa("amx")
    _, saved = tw.attention.forward(q, k, v, **more)

    def gradients() -> list[np.ndarray]:
        with tw.profile() as ran:
            found = tw.attention.backward(dy, q, k, v, saved=saved, **more)
        assert ("tiles" in next(iter(ran)).kernel) == (tw.isa() == "amx")
        return [np.asarray(x).astype(np.float64) for x in found[: 4 if masked == "added" else 3]]

    got = gradients()
    with tw.threads(1):
        for x, one in zip(got, gradients(), strict=True):
            np.testing.assert_array_equal(one, x)
    tw.set_isa("avx512")
    for x, below in zip(got, gradients(), strict=True):
        np.testing.assert_allclose(x, below, rtol=0, atol=NEAR * np.abs(below).max())
        assert np.sqrt(np.mean((x - below) ** 2)) < NEAR / 2 * np.sqrt(np.mean(below**2))
