"""Gradients of convolutions on tiles of bf16: as near as sums in float32, and by FMA where numbers do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import ops

pytestmark = pytest.mark.skipif("amx" not in tw.tiers(), reason="no tiles on this CPU")

# x, w and attributes: flat, strided with phases that differ, dilated, in groups, 1-D, 3-D, many images, far padding.
LAYERS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ((3, 40, 17, 23), (70, 40, 3, 5), {"padding": (2, 1), "stride": 2}),
    ((2, 64, 21, 20), (64, 64, 3, 3), {"padding": 2, "dilation": 2}),
    ((2, 64, 12, 12), (64, 32, 3, 3), {"padding": 1, "groups": 2}),
    ((5, 33, 200), (35, 33, 9), {"padding": 4}),
    ((1, 32, 10, 19, 20), (32, 32, 3, 2, 3), {"padding": (1, 0, 2), "stride": (2, 1, 3), "dilation": (1, 2, 1)}),
    ((19, 256, 7, 7), (256, 256, 3, 3), {"padding": 1}),
    ((2, 64, 15, 15), (64, 64, 3, 3), {"padding": 7, "stride": 2}),
    ((1, 64, 28, 28), (96, 64, 4, 4), {"padding": 1, "stride": 2}),
]


@pytest.fixture(autouse=True)
def _tier() -> Iterator[None]:
    before = tw.isa()
    tw.set_isa("amx")
    yield
    tw.set_isa(before)


def operands(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    a, k = (random.standard_normal(s).astype(np.float32) for s in (x, w))
    return [a, k, random.standard_normal(tw.conv(a, k, **attrs).shape).astype(np.float32)]


def gradients(x: np.ndarray, w: np.ndarray, dy: np.ndarray, attrs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        "dx": np.asarray(ops.conv_dx(dy, w, shape=x.shape[2:], **attrs)),
        "dw": np.asarray(ops.conv_dw(dy, x, kernel=w.shape[2:], **attrs)),
    }


@pytest.mark.parametrize(("x", "w", "attrs"), LAYERS)
def test_gradients_are_as_near_as_sums_in_float32(
    x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    arrays = operands(x, w, attrs)
    got = gradients(*arrays, attrs)
    exact = gradients(*(a.astype(np.float64) for a in arrays), attrs)
    size = gradients(*(np.abs(a).astype(np.float64) for a in arrays), attrs)
    for name in got:
        terms = arrays[1].size / w[1] if name == "dx" else arrays[2].size / w[0]
        np.testing.assert_array_less(np.abs(got[name] - exact[name]), 2.0**-24 * (terms**0.5 * size[name] + 1e-30))


@pytest.mark.parametrize(("x", "w", "attrs"), LAYERS)
def test_threads_do_not_change_bits(x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]) -> None:
    arrays = operands(x, w, attrs)
    with tw.threads(1):
        one = gradients(*arrays, attrs)
    with tw.threads(3):
        three = gradients(*arrays, attrs)
    for name in one:
        np.testing.assert_array_equal(one[name], three[name])


def test_large_gradients_run_on_tiles() -> None:
    arrays = operands(*LAYERS[0])
    with tw.profile() as ran:
        gradients(*arrays, LAYERS[0][2])
    assert [r.kernel for r in ran] == ["windows in pieces", "conv_dw in pieces"]


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e-42, 1e-38, 3e38])
@pytest.mark.parametrize("hostile", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1, 6])
def test_hostile_numbers_give_what_the_tier_below_gives(value: float, hostile: int, layer: int) -> None:
    attrs = LAYERS[layer][2]
    arrays = operands(*LAYERS[layer])
    arrays[hostile].reshape(-1)[arrays[hostile].size // 2] = value
    got = gradients(*arrays, attrs)
    tw.set_isa("avx512")
    want = gradients(*arrays, attrs)
    for name in got:
        np.testing.assert_array_equal(np.isfinite(got[name]), np.isfinite(want[name]))
        np.testing.assert_allclose(got[name], want[name], rtol=1e-3, atol=1e-3)


def test_bias_residual_and_activation_of_every_phase() -> None:
    random = np.random.default_rng(1)
    x, w, b, residual = (
        random.standard_normal(s).astype(np.float32) for s in ((2, 96, 14, 15), (96, 48, 4, 3), (48,), (2, 48, 28, 29))
    )
    attrs: dict[str, Any] = {"stride": 2, "padding": 1, "activation": "silu"}
    with tw.profile() as ran:
        y = tw.conv_transpose(x, w, b, residual, **attrs)
    assert [r.kernel for r in ran] == ["windows in pieces"]
    want = tw.conv_transpose(*(a.astype(np.float64) for a in (x, w, b, residual)), **attrs)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-4)
    layer = tw.conv_transpose.prepare(w=w, b=b, **attrs)
    np.testing.assert_array_equal(layer(x, residual), y)
