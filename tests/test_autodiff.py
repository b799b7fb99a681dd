"""Gradients of composed functions: against slopes and against torch, eager and traced, once and twice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core, nested

RANDOM = np.random.default_rng(2)


def normal(*shape: int, scale: float = 1.0) -> Any:
    return scale * RANDOM.standard_normal(shape)


def slope(function: Callable[..., Any], args: tuple[Any, ...], direction: Any, step: float = 1e-5) -> float:
    """The slope of a scalar function along a direction of its first argument."""

    def at(by: float) -> float:
        moved = nested.mapped(lambda a, d: a + by * d, args[0], direction)
        return float(function(moved, *args[1:]))

    return (at(step) - at(-step)) / (2 * step)


def check(function: Callable[..., Any], *args: Any) -> None:
    """The gradient in the first argument is the slope, eager and traced alike."""
    value, grads = tw.value_and_grad(function)(*args)
    direction = nested.mapped(lambda a: normal(*a.shape), args[0])
    along = sum(
        float((g * d).sum()) for g, d in zip(nested.flatten(grads)[0], nested.flatten(direction)[0], strict=True)
    )
    assert along == pytest.approx(slope(function, args, direction), rel=1e-5, abs=1e-7)
    exe = tw.trace(tw.value_and_grad(function), *args).compile()
    traced, again = exe(*args)
    assert traced == value
    for a, b in zip(nested.flatten(grads)[0], nested.flatten(again)[0], strict=True):
        np.testing.assert_array_equal(a, b)


def perceptron(p: Any, x: Any) -> Any:
    for w, b in p:
        x = tw.tanh(tw.linear(x, w, b))
    return tw.reduce_mean(x * x)


def convnet(p: Any, x: Any) -> Any:
    y = tw.max_pool(tw.conv(x, p["w1"], p["b1"], padding=1, activation="relu"), kernel=2)
    y = tw.avg_pool(tw.conv(y, p["w2"], stride=2), kernel=2, stride=1)
    return tw.reduce_sum(tw.linear(y.reshape(len(y), -1), p["w3"]))


def residual(p: Any, x: Any) -> Any:
    y = tw.relu(tw.batch_norm(tw.conv(x, p["w"], padding=1), p["g"], p["b"], np.zeros(3), np.ones(3))) + x
    return tw.reduce_mean(tw.sigmoid(y) / (1.0 + tw.exp(-y)))


def block(p: Any, x: Any) -> Any:
    b, t, d = x.shape
    y = tw.layer_norm(x, p["g"], p["b"])
    q, k, v = (tw.linear(y, w).reshape(b, t, 2, d // 2).transpose(0, 2, 1, 3) for w in p["qkv"])
    x = x + tw.linear(tw.attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(b, t, d), p["out"])
    return tw.reduce_mean(x + tw.linear(tw.linear(x, p["up"], activation="gelu"), p["down"]))


def recurrent(p: Any, x: Any) -> Any:
    y, _, _ = tw.lstm(x, p["w"], p["r"], p["b"])
    return tw.reduce_sum(y * y)


def slices(p: Any, x: Any) -> Any:
    y = tw.concat([p[1:, ::2], p[:-1, 1::2], x[:, None, 0]], axis=1)
    return tw.reduce_sum(tw.einsum("ij,kj->ik", y, y[::-1]) * y.T[0, 1])


def shared(p: Any, x: Any) -> Any:
    y = p["a"] * p["a"] - 2.0 * p["a"]
    return tw.reduce_sum(tw.log(1.0 + tw.exp(y))) + tw.reduce_max(y) * tw.reduce_sum(x)


NETWORKS = {
    "perceptron": (perceptron, [(normal(4, 3), normal(4)), (normal(2, 4), normal(2))], normal(5, 3)),
    "convnet": (
        convnet,
        {"w1": normal(4, 2, 3, 3), "b1": normal(4), "w2": normal(3, 4, 2, 2), "w3": normal(2, 3)},
        normal(2, 2, 8, 8),
    ),
    "residual": (
        residual,
        {"w": normal(3, 3, 3, 3), "g": normal(3), "b": normal(3)},
        normal(2, 3, 5, 5),
    ),
    "block": (
        block,
        {"g": normal(8), "b": normal(8), "qkv": [normal(8, 8, scale=0.3) for _ in "qkv"], "out": normal(8, 8)}
        | {"up": normal(16, 8), "down": normal(8, 16)},
        normal(2, 5, 8),
    ),
    "recurrent": (recurrent, {"w": normal(1, 12, 4), "r": normal(1, 12, 3), "b": normal(1, 12)}, normal(5, 2, 4)),
    "slices": (slices, normal(4, 6), normal(3, 2)),
    "shared": (shared, {"a": normal(7)}, normal(3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_slopes(name: str) -> None:
    function, *args = NETWORKS[name]
    check(function, *args)


def test_second_order() -> None:
    x = normal(6)
    function = lambda x: tw.reduce_sum(tw.tanh(x) * x * x)  # noqa: E731
    twice = tw.grad(lambda x: tw.reduce_sum(tw.grad(function)(x)))
    t, s = np.tanh(x), 1 - np.tanh(x) ** 2
    want = 2 * t + 4 * x * s - 2 * x * x * t * s
    np.testing.assert_allclose(twice(x), want, rtol=1e-12)
    np.testing.assert_allclose(tw.trace(twice, x).compile()(x), want, rtol=1e-12)


def test_vjp_takes_and_gives_structures() -> None:
    a, b = normal(3), normal(3)
    (s, _), pullback = tw.vjp(lambda p: (p["a"] + p["b"], [p["a"] * 1.0]), {"a": a, "b": b})
    np.testing.assert_array_equal(s, a + b)
    (grads,) = pullback((np.ones(3), [None]))
    np.testing.assert_array_equal(grads["a"], np.ones(3))
    (grads,) = pullback((np.ones(3), [np.full(3, 2.0)]))  # again, with others
    np.testing.assert_array_equal(grads["a"], np.full(3, 3.0))
    np.testing.assert_array_equal(grads["b"], np.ones(3))


def test_several_arguments_aux_and_unused_ones() -> None:
    x, y, z = normal(2), normal(2), normal(2)
    f = lambda x, y, z: (tw.reduce_sum(x * y), {"product": x * y, "n": 3})  # noqa: E731
    (loss, aux), (dx, dz) = tw.value_and_grad(f, argnums=(0, -1), has_aux=True)(x, y, z)
    np.testing.assert_array_equal(aux["product"], x * y)
    assert aux["n"] == 3
    np.testing.assert_array_equal(dx, y)
    np.testing.assert_array_equal(dz, np.zeros(2))
    assert loss == pytest.approx(float((x * y).sum()))


def test_stop_gradient() -> None:
    x = normal(3)
    np.testing.assert_array_equal(tw.grad(lambda x: tw.reduce_sum(tw.stop_gradient(x) * x))(x), x)


def test_python_decides_by_values_when_eager() -> None:
    f = lambda x: tw.reduce_sum(x * x) if float(tw.reduce_sum(x)) > 0 else tw.reduce_sum(x)  # noqa: E731
    np.testing.assert_array_equal(tw.grad(f)(np.ones(2)), [2, 2])
    np.testing.assert_array_equal(tw.grad(f)(-np.ones(2)), [1, 1])


def test_differentiable_ops_are_those_with_a_rule() -> None:
    names = tw.differentiable_ops()
    assert {"conv", "softmax", "reshape"} <= set(names)
    assert "canny" not in names


def faults() -> Any:
    x = normal(3)
    total = tw.reduce_sum
    yield lambda: tw.grad(lambda x: x * 2.0)(x), tw.ShapeError, r"returned shape \(3,\); want \(\)"
    yield lambda: tw.grad(lambda x: 3.0)(x), tw.DTypeError, "returned a float"
    yield lambda: tw.grad(total)(np.arange(3)), tw.DTypeError, "int64, in which nothing has a gradient"
    yield lambda: tw.grad(lambda p: total(p["a"]))({"a": [1.0]}), tw.DTypeError, r"argument \[0\].a\[0\] is a float"
    yield lambda: tw.grad(total, argnums=1)(x), tw.AttrError, "argnums=1 but there are 1"
    yield lambda: tw.grad(total, argnums="x")(x), tw.AttrTypeError, "argnums='x'; want an int"
    yield lambda: tw.value_and_grad(total, has_aux=True)(x), tw.AttrTypeError, "want a pair"
    yield lambda: tw.grad(lambda x: total(tw.reduce_max_dx(x, x, x)))(x), tw.Error, "reduce_max_dx"
    yield lambda: tw.grad(lambda x: tw.sgd_step(x, x, lr=0.1))(x), tw.UnsupportedError, "w would be updated in place"
    yield lambda: tw.grad(lambda x: total(tw.relu(x, out=np.empty(3))))(x), tw.AttrTypeError, "out cannot be followed"
    yield (
        lambda: tw.grad(lambda m: total(tw.attention(*[normal(1, 1, 3, 4)] * 3, alibi=m)))(normal(1)),
        tw.UnsupportedError,
        "attention: has no gradient in alibi",
    )
    yield lambda: tw.vjp(tw.tanh, x)[1](normal(2)), tw.ShapeError, "a gradient is float64"
    yield lambda: tw.vjp(tw.tanh, x)[1]((x, x)), tw.AttrTypeError, "gradients are"
    yield lambda: tw.vjp(tw.tanh, x)[1](1.0), tw.ShapeError, "a gradient is float; want float64"
    yield lambda: tw.vjp(lambda y: x, x)[1](x[:1]), tw.ShapeError, r"a gradient is float64 \(1,\)"
    for differentiate in (tw.grad, tw.value_and_grad, lambda f: tw.vjp(f, x)):
        for odd in (3, None, "f"):
            yield lambda d=differentiate, f=odd: d(f), tw.AttrTypeError, "want a function"
    for odd in (1.5, None, True, (), (0, 1.5), {0}):
        yield lambda n=odd: tw.grad(total, argnums=n), tw.AttrTypeError, "want an int or several"
    for odd in (-2, (0, 1), 2**70):
        yield lambda n=odd: tw.grad(total, argnums=n)(x), tw.AttrError, "but there are 1 arguments"
    yield lambda: tw.grad(total, argnums=(0, -1))(x), tw.AttrError, "names one twice"

    def late(differentiate: Any) -> Any:
        kept: list[Any] = []
        differentiate(lambda x: (kept.append(x), total(x))[1])
        return tw.relu(kept[0])

    yield lambda: late(lambda f: tw.grad(f)(x)), tw.UnsupportedError, "relu: takes an array that a gradient followed"
    yield lambda: late(lambda f: tw.vjp(f, x)), tw.UnsupportedError, "in a function which has returned"


@pytest.mark.parametrize(("call", "error", "text"), list(faults()))
def test_faults_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_arrays_are_freed_without_a_collector() -> None:
    x = np.ones(1 << 16, np.float32)

    def step() -> Any:
        y, back = tw.vjp(lambda v: {"y": tw.tanh(tw.mul(v["x"], tw.exp(v["x"])))}, {"x": x})
        return y, back({"y": x}), tw.grad(lambda v: tw.reduce_sum(tw.mul(v, v)))(x)

    gc.collect()
    gc.disable()
    try:
        before = _core.pool_stats()[1]
        step()
        assert _core.pool_stats()[1] == before
    finally:
        gc.enable()
