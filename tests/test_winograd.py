"""Convolution with fewer products: how far it is from the direct sums, and what it has in common with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw

# The largest error in units of one that grows with the terms as those of direct sums do, which stay below 1.
_TIMES = {"winograd": 16.0, "winograd_2x2": 2.0}

_SHAPES = (
    ((1, 3, 5, 6), 4, 1),
    ((2, 5, 9, 33), 7, ((2, 0), (1, 3))),
    ((1, 64, 14, 14), 70, 1),
    ((1, 400, 6, 7), 13, "same"),
    ((3, 1, 3, 3), 1, 0),
    ((1, 8, 40, 70), 9, 1),
)


def _operands(x: tuple[int, ...], filters: int, dtype: str = "float32") -> list[Any]:
    random = np.random.default_rng(3)
    shapes = (x, (filters, x[1], 3, 3), (filters,))
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("algo", _TIMES)
@pytest.mark.parametrize(("x", "filters", "padding"), _SHAPES)
def test_winograd_is_as_near_as_it_says(algo: Any, x: Any, filters: int, padding: Any) -> None:
    operands = _operands(x, filters)
    exact = tw.conv(*(a.astype("float64") for a in operands), padding=padding)
    residual = np.ones(exact.shape, "float32")
    y = tw.conv(*operands, residual, padding=padding, algo=algo)
    size = np.abs(exact).max() + 9 * x[1]
    step = np.finfo("float32").eps * max(1.0, np.sqrt(9 * x[1]))
    assert np.abs(y - exact - 1).max() <= _TIMES[algo] * step * np.sqrt(size)

    prepared = tw.conv.prepare(w=operands[1], b=operands[2], padding=padding, algo=algo)
    np.testing.assert_array_equal(prepared(operands[0], residual), y)
    with tw.threads(1):
        np.testing.assert_array_equal(tw.conv(*operands, residual, padding=padding, algo=algo), y)


@pytest.mark.parametrize("algo", _TIMES)
def test_winograd_in_float64_and_through_float32(algo: Any) -> None:
    operands = _operands((1, 6, 11, 13), 9, "float64")
    exact = tw.conv(*operands, padding=1, activation="tanh")
    np.testing.assert_allclose(
        tw.conv(*operands, padding=1, activation="tanh", algo=algo), exact, rtol=1e-11, atol=1e-11
    )
    narrow = [a.astype("float16") for a in operands]
    direct = tw.conv(*(a.astype("float64") for a in narrow), padding=1)
    np.testing.assert_allclose(tw.conv(*narrow, padding=1, algo=algo), direct, rtol=2e-3, atol=2e-3)


def test_gradients_do_not_depend_on_the_algorithm() -> None:
    x, w, b = _operands((1, 4, 9, 8), 5)
    dy = np.ones((1, 5, 9, 8), "float32")
    direct = tw.conv.backward(dy, x, w, b, padding=1)
    for ours, theirs in zip(tw.conv.backward(dy, x, w, b, padding=1, algo="winograd"), direct, strict=True):
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)


def test_a_graph_runs_the_algorithms_where_it_is_asked_to() -> None:
    x, wide, b = _operands((1, 32, 20, 20), 40)
    deep = _operands((1, 40, 20, 20), 32)[1]

    def net(x: Any) -> Any:
        y = tw.relu(tw.conv(x, wide, b, padding=1))
        return tw.conv(tw.max_pool(y, kernel=3, stride=3), deep, padding=1) + tw.conv(x, wide, stride=3)[:, :32, :6, :6]

    graph = tw.trace(net, x)
    fewer, direct = graph.compile(winograd=True), graph.compile()
    chosen = {n.resolved["algo"] for n in fewer.graph.nodes if n.op.name == "conv"}
    assert chosen == {"winograd", "winograd_2x2", None}
    np.testing.assert_allclose(fewer(x), direct(x), rtol=1e-3, atol=1e-2)
    exact = graph.compile(winograd=True, deterministic=True)
    np.testing.assert_array_equal(exact(x), net(x))
