"""Gradients through choices and scans, in graphs and at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import nested

RANDOM = np.random.default_rng(6)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


@tw.kernel(lambda x: tw.spec((), "bool"))
def positive(x: Any) -> Any:
    return np.asarray(x.sum() > 0)


def chosen(w: Any, x: Any) -> Any:
    scale = tw.exp(w)  # from outside, in one branch alone
    made = tw.cond(
        positive(tw.stop_gradient(x)), lambda x: {"y": x * scale, "n": x}, lambda x: {"y": tw.tanh(x), "n": x * w}, x
    )
    return tw.reduce_sum(made["y"] * made["n"])


def recurrent(w: Any, h: Any, xs: Any) -> Any:
    def body(state: Any, x: Any) -> Any:
        h, n = state
        h = tw.tanh(tw.matmul(w, h.reshape(3, 1)).reshape(3) + x)
        return (h, n), {"h": h, "twice": h * 2.0}

    (last, _), ys = tw.scan(body, (h, np.zeros((), np.int64)), xs)
    return tw.reduce_sum(last * last) + tw.reduce_sum(ys["twice"] * xs)


def backwards(w: Any, xs: Any) -> Any:
    """Sums from behind, of which an inner scan and an inner choice are part."""

    def body(total: Any, x: Any) -> Any:
        inner, _ = tw.scan(lambda s, r: (s * 0.5 + r * w[0], s), total[0], x)
        total = tw.cond(positive(tw.stop_gradient(inner)), lambda t: t * inner, lambda t: t + w, total)
        return total, total

    _, ys = tw.scan(body, w * 1.0, xs, reverse=True)
    return tw.reduce_sum(ys * xs)


CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cond, true": (chosen, (normal(3), np.array([1.0, 0.5, -0.25]))),
    "cond, false": (chosen, (normal(3), np.array([-1.0, 0.5, -0.25]))),
    "scan": (recurrent, (normal(3, 3), normal(3), normal(4, 3))),
    "nested": (backwards, (normal(2), normal(3, 2))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_gives_the_gradients_of_the_turns_of_python(case: str) -> None:
    f, args = CASES[case]
    every = tuple(range(len(args)))
    value, grads = tw.value_and_grad(f, argnums=every)(*args)
    exe = tw.trace(tw.value_and_grad(f, argnums=every), *args).compile()
    got, found = exe(*args)
    np.testing.assert_allclose(got, value)
    for k, (a, b) in enumerate(zip(found, grads, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-10, err_msg=f"argument {k}")


def test_a_gradient_is_a_slope_and_has_one_of_its_own() -> None:
    f, (w, h, xs) = CASES["scan"]
    slope, step = tw.trace(tw.grad(f), w, h, xs).compile()(w, h, xs), np.zeros((3, 3))
    step[1, 2] = 1e-6
    np.testing.assert_allclose(slope[1, 2], (f(w + step, h, xs) - f(w - step, h, xs)) / 2e-6, rtol=1e-6)

    def of_slope(w: Any) -> Any:
        g = tw.grad(f)(w, h, xs)
        return tw.reduce_sum(g * g)

    np.testing.assert_allclose(tw.trace(tw.grad(of_slope), w).compile()(w), tw.grad(of_slope)(w), rtol=1e-9)


def test_a_scan_may_begin_with_the_last() -> None:
    f = lambda s, xs: tw.scan(lambda s, x: (s * 0.5 + x, s), s, xs, reverse=True)  # noqa: E731
    s, xs = normal(2), normal(3, 2)
    last, ys = f(s, xs)
    np.testing.assert_array_equal(ys[2], s)
    for a, b in zip(tw.trace(f, s, xs).compile()(s, xs), (last, ys), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_of_a_scan_is_saved(tmp_path: Path) -> None:
    f, args = CASES["nested"]
    exe = tw.trace(tw.grad(f), *args).compile()
    exe.save(tmp_path / "scan.tw")
    np.testing.assert_array_equal(tw.load(tmp_path / "scan.tw")(*args), exe(*args))


def halved(x: Any) -> Any:
    large = lambda x, n: tw.greater(tw.reduce_max(tw.abs(x)), 1.0)  # noqa: E731
    return tw.while_loop(large, lambda x, n: (x * 0.5, n + 1.0), x, np.zeros((), np.float32))


def either(x: Any, y: Any) -> Any:
    return tw.cond(tw.less(tw.reduce_sum(x), 0.0), lambda x: {"y": x * y}, lambda x: {"y": x + y}, x)["y"]


def summed(s: Any, xs: Any) -> Any:
    def body(s: Any, x: Any) -> Any:
        s = tw.tanh(s * 0.5 + x)
        return s, {"s": s, "any": tw.cond(tw.greater(tw.reduce_sum(s), 0.0), lambda s: s, lambda s: s * 2.0, s)}

    last, ys = tw.scan(body, s, xs)
    return tw.reduce_sum(last) + tw.reduce_sum(ys["s"] * ys["any"] * xs)


@pytest.mark.opencl
def test_a_device_takes_the_same_turns() -> None:
    if not tw.devices():
        pytest.skip("no OpenCL device")
    x, y, xs = (normal(*shape).astype(np.float32) for shape in ((5,), (5,), (4, 5)))
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (halved, (8 * x,)),
        (either, (x, y)),
        (either, (-x, y)),
        (tw.value_and_grad(summed, argnums=(0, 1)), (x, xs)),
    ]
    for f, args in cases:
        exe = tw.trace(f, *args).compile(device="opencl")
        want, got = nested.flatten(f(*args))[0], nested.flatten(exe(*(tw.to_device(a, "opencl") for a in args)))[0]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(tw.to_host(a), b, rtol=1e-5, atol=1e-6)


def test_a_loop_of_unknown_length_says_why_it_has_no_gradient() -> None:
    f = lambda x: tw.reduce_sum(tw.while_loop(positive, lambda x: x - 1.0, x)[0])  # noqa: E731
    with pytest.raises(tw.UnsupportedError, match="while_loop: has no gradient, since it keeps nothing of its turns"):
        tw.trace(tw.grad(f), np.ones(2))
    np.testing.assert_array_equal(tw.grad(f)(np.ones(2)), np.ones(2))  # at once, Python goes the turns
