"""Graphs: traced and built, their passes, their errors, and that they give what the plain calls give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import nested
from tilework.graph import PASSES
from tilework.graph.ir import Constant

RANDOM = np.random.default_rng(1)


def normal(*shape: int, dtype: str = "float32") -> Any:
    return RANDOM.standard_normal(shape).astype(dtype)


def net(params: dict[str, Any], x: Any) -> Any:
    y = tw.conv(x, params["w1"], params["b1"], padding=1, activation="relu")
    y = tw.max_pool(y, kernel=2)
    y = tw.reshape(y, (x.shape[0], -1)) * 0.5 + 1.0
    return tw.linear(y[:, ::2], params["w2"])


PARAMS = {"w1": normal(6, 3, 3, 3), "b1": normal(6), "w2": normal(5, 48)}
IMAGES = normal(2, 3, 8, 8)


def same(a: Any, b: Any) -> None:
    left, right = nested.flatten(a)[0], nested.flatten(b)[0]
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_traced_function_gives_the_bits_of_its_calls() -> None:
    g = tw.trace(net, PARAMS, tw.spec((2, 3, 8, 8)))
    same(g.compile()(PARAMS, IMAGES), net(PARAMS, IMAGES))


@pytest.mark.parametrize("left_out", [*sorted({p.__name__ for p in PASSES}), None])
def test_a_pass_left_out_changes_no_bit(left_out: str | None) -> None:
    def f(x: Any) -> Any:
        a, b = x * scale, x * scale
        return tw.tanh(a) + tw.tanh(b), (a - tw.mul(scale, 2.0)).T

    scale, x = normal(4), normal(3, 4)
    exe = tw.trace(f, x).compile(without=[left_out] if left_out else [])
    same(exe(x), f(x))


def test_passes_fold_share_and_drop() -> None:
    scale = normal(4)

    def f(x: Any) -> Any:
        tw.exp(x)  # not needed
        return tw.tanh(x * tw.exp(scale)) + tw.tanh(x * tw.exp(scale)), tw.mul(x.reshape(4, 3).T, 1.0)

    g = tw.trace(f, normal(3, 4)).compile().graph
    assert [n.op.name for n in g.nodes] == [
        "placeholder",
        "constant",
        "mul",
        "tanh",
        "add",
        "reshape",
        "transpose",
        "mul",
    ]


def test_arrays_from_elsewhere_become_constants_and_numbers_stay() -> None:
    w = normal(3)
    g = tw.trace(lambda x: (w - x) / 2 + 3 * (-x) + abs(x), normal(3))
    assert [n.op.data for n in g.nodes if isinstance(n.op, Constant)] == [w]
    x = normal(3)
    np.testing.assert_allclose(g.compile()(x), (w - x) / 2 - 3 * x + abs(x), rtol=1e-6)


def test_views_are_numpys() -> None:
    def f(x: Any) -> Any:
        parts = list(x[0])
        return x[..., None, 1:], x.transpose(1, 0, 2).reshape(3, -1), x[:, 1, ::-2].T, parts[1], x.sum(axis=0)

    x = normal(2, 3, 4)
    want = (x[..., None, 1:], x.transpose(1, 0, 2).reshape(3, -1), x[:, 1, ::-2].T, x[0, 1], x.sum(axis=0))
    for a, b in zip(tw.trace(f, x).compile()(x), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_nested_arguments_come_back_nested() -> None:
    g = tw.trace(
        lambda p, n: {"twice": [tw.mul(p["a"], float(n))], "both": (p["a"], p["b"][0])},
        {"a": normal(2), "b": [normal(1)]},
        2,
    )
    p = {"a": np.ones(2, "f"), "b": [np.zeros(1, "f")]}
    got = g.compile()(p, 2)
    same(got, {"twice": [2 * p["a"]], "both": (p["a"], p["b"][0])})
    assert got["both"][0] is not p["a"]


def test_a_graph_built_by_hand() -> None:
    g = tw.Graph("affine")
    x = g.placeholder("x", (2, 3))
    w = g.constant(PARAMS["w1"].reshape(6, 27)[:4, :3].copy(), "w")
    g.output(g.call("relu", g.call("linear", x, w)))
    a = normal(2, 3)
    same(g.compile()(x=a), tw.relu(tw.linear(a, w.value.node.op.data)))
    assert "affine(x: float32 (2, 3))" in str(g)
    assert "linear(x, w)" in str(g)


def test_variables_live_on_between_runs_and_are_updated_in_place() -> None:
    w, count = tw.Variable(np.zeros(3, "f"), "w"), tw.Variable(np.zeros((), "f"), "count")
    kept = w.value

    def step(g: Any) -> Any:
        before = w * 1.0
        tw.sgd_step(w, g, lr=0.5)
        return before, w * 2.0, count + 1.0

    exe = tw.trace(step, np.ones(3, "f")).compile()
    for k in range(3):
        before, after, _ = exe(np.ones(3, "f"))
        np.testing.assert_array_equal(before, np.full(3, -0.5 * k))
        np.testing.assert_array_equal(after, np.full(3, -1.0 * (k + 1)))
    assert w.value is kept
    assert kept[0] == -1.5
    tw.sgd_step(w, np.ones(3, "f"), lr=0.5)  # outside a graph too
    assert kept[0] == -2.0


def test_assigned_variables_may_swap() -> None:
    a, b = tw.Variable(np.zeros(2, "f"), "a"), tw.Variable(np.ones(2, "f"), "b")
    g = tw.Graph()
    x, y = g.variable(a), g.variable(b)
    old = x.value
    g.assign(x, y)
    y.value = old
    g.output(x + 1.0)
    exe = g.compile()
    same(exe(), np.full(2, 2, "f"))
    assert (a.value[0], b.value[0]) == (1, 0)
    same(exe(), np.full(2, 1, "f"))


def test_out_receives_the_results() -> None:
    x, out = normal(2, 3), np.empty((2, 3), "f")
    assert tw.trace(tw.relu, x).compile()(x, out=out) is out
    same(out, tw.relu(x))


def test_strided_feeds_are_taken() -> None:
    x = normal(3, 4).T
    same(tw.trace(lambda x: tw.reshape(x, (12,)), tw.spec((4, 3))).compile()(x), x.reshape(12))


def test_a_fault_while_tracing_names_the_line() -> None:
    def f(x: Any) -> Any:
        return tw.conv(x, PARAMS["w1"])  # the culprit

    with pytest.raises(tw.ShapeError, match=r"(?s)conv: x has C=4.*at test_graph.py:\d+: return .*# the culprit"):
        tw.trace(f, tw.spec((2, 4, 8, 8)))


def faults() -> Any:
    x = normal(2, 3)
    exe = tw.trace(lambda x, y: x + y, x, x).compile()
    other = tw.Graph().placeholder("x", (2, 3))
    yield lambda: exe(x), tw.AttrTypeError, r"arguments are \(\*,\); want \(\*, \*\)"
    yield lambda: exe(x, x, x), tw.AttrTypeError, "arguments are"
    yield lambda: exe(x, z=x), tw.AttrTypeError, "'z' is surplus; want the arrays x, y"
    yield lambda: exe(x=x), tw.AttrTypeError, "'y' is missing"
    yield lambda: exe(x, x[:1]), tw.ShapeError, r"y has shape \(1, 3\); want \(2, 3\)"
    yield lambda: exe(x, x.astype("d")), tw.DTypeError, "y has dtype float64; want float32"
    yield lambda: exe(x, 1.0), tw.DTypeError, "y is a float; want an array"
    yield lambda: exe(x, [x]), tw.AttrTypeError, r"want \(\*, \*\)"
    yield lambda: exe(x, x, out=np.empty((2, 2), "f")), tw.ShapeError, "out is float32"
    yield lambda: exe.source.compile(without=["magic"]), tw.AttrError, "there is no pass 'magic'"
    yield lambda: tw.trace(lambda x, n: x, x, 3).compile()(x, 4), tw.AttrError, "argument 1 is 4; want 3"
    yield (
        lambda: tw.trace(lambda x: tw.sgd_step(x, x, lr=0.1), x),
        tw.DTypeError,
        "w would be updated in place but is an input",
    )
    yield (
        lambda: tw.trace(lambda x: tw.sgd_step(np.zeros((2, 3), "f"), x, lr=0.1), x),
        tw.DTypeError,
        "but is a constant",
    )
    yield lambda: tw.trace(lambda x: x if x else None, x), tw.DTypeError, "is not known while tracing"
    yield lambda: tw.trace(lambda x: np.exp(x), x), TypeError, "__array_ufunc__"
    yield lambda: tw.trace(lambda x: tw.relu(x, out=x), x), tw.AttrTypeError, "out has no meaning"
    yield lambda: tw.trace(lambda x: x + other, x), tw.DTypeError, "b belongs to another graph"
    yield lambda: tw.trace(lambda x: 3, x), tw.DTypeError, "output: 3 is a int"
    yield lambda: tw.Graph().call("magic"), tw.AttrError, "there is no op called 'magic'"
    yield lambda: tw.Graph().placeholder("x", (-1,)), tw.ShapeError, "want sizes >= 0"
    yield lambda: tw.Variable(np.zeros((2, 3)).T), tw.ShapeError, "not a contiguous writeable array"

    def twice() -> None:
        g = tw.Graph()
        g.placeholder("x", (2,))
        g.placeholder("x", (2,))

    yield twice, tw.AttrError, "two arrays called 'x'"


@pytest.mark.parametrize(("call", "error", "text"), list(faults()))
def test_faults_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
