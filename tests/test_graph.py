"""Graphs: traced and built, their passes, their errors, and that they give what the plain calls give."""

from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core, nested
from tilework.graph import CPU_PASSES, PASSES
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
RIGHT = normal(5)


def same(a: Any, b: Any) -> None:
    left, right = nested.flatten(a)[0], nested.flatten(b)[0]
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_traced_function_gives_the_bits_of_its_calls() -> None:
    g = tw.trace(net, PARAMS, tw.spec((2, 3, 8, 8)))
    same(g.compile()(PARAMS, IMAGES), net(PARAMS, IMAGES))


@pytest.mark.parametrize("left_out", [*sorted({p.__name__ for p in PASSES + CPU_PASSES}), None])
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

    g = tw.trace(f, normal(3, 4)).compile(without=["fusion"]).graph
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


def test_a_relu_goes_into_the_norm_before_it_and_its_gradient_too() -> None:
    mean, var = tw.Variable(np.zeros(6, "f"), "mean"), tw.Variable(np.ones(6, "f"), "var")

    def loss(x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
        y = tw.relu(tw.batch_norm(x, w, b, mean, var, training=True))
        return tw.reduce_sum(tw.batch_norm(y, w, training=True) * y)

    def step(x: Any) -> Any:
        return tw.value_and_grad(lambda *p: loss(*p, mean, var), argnums=(0, 1, 2))(x, NORM[0], NORM[1])

    x = normal(4, 6, 9)
    exe = tw.trace(step, x).compile(deterministic=True)
    names = [n.op.name for n in exe.graph.nodes]
    assert names.count("batch_norm") == names.count("batch_norm_dx") == 2
    assert not {"relu", "relu_dx"} & set(names)
    got, moved = exe(x), mean.value.copy()
    mean.value[...], var.value[...] = 0, 1
    same(got, step(x))
    same(moved, mean.value)


def test_a_program_takes_what_was_broadcast_for_it() -> None:
    def f(x: Any) -> Any:
        row = tw.expand(tw.reduce_mean(x, axes=1, keepdims=True), shape=x.shape)
        return tw.gelu_dx(row, x), tw.exp(row) * row + x

    x = normal(6, 40)
    exe = tw.trace(f, x).compile()
    assert [n.op.name for n in exe.graph.nodes if not n.is_source] == ["reduce_mean", "fused", "fused"]
    same(exe(x), f(x))


def test_a_spec_knows_dtypes_by_name() -> None:
    for name in ("float32", "bfloat16", "int8", "float8_e5m2"):
        if name not in ("float32", "int8"):
            pytest.importorskip("ml_dtypes", reason="numpy alone has no such dtype")
        assert tw.spec((2,), name).dtype.name == name


def test_comparisons_are_numpys() -> None:
    def f(x: Any) -> Any:
        return x > 0.5, x < 0.5, x >= x, x <= RIGHT, x > RIGHT

    for got, want in zip(tw.trace(f, RIGHT).compile()(RIGHT), f(RIGHT), strict=True):
        np.testing.assert_array_equal(got, want)


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


@pytest.mark.parametrize("is_given_back", [False, True])
def test_a_variable_may_be_assigned_unread(is_given_back: bool) -> None:
    held, g = tw.Variable(np.zeros(3, np.float32), "held"), tw.Graph()
    doubled = g.placeholder("x", (3,)) * 2.0
    g.assign(g.variable(held), doubled)
    if is_given_back:
        g.output(doubled)
    g.compile()(np.ones(3, np.float32))
    same(held.value, np.full(3, 2, np.float32))


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
    g = tw.trace(lambda x, y: x + y, x, x)
    exe = g.compile()
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
    yield lambda: g.compile(without=["magic"]), tw.AttrError, "there is no pass 'magic'"
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

    def backwards(g: tw.Graph) -> tw.Graph:
        return g.changed(list(reversed(g.nodes)))

    def cut(g: tw.Graph) -> tw.Graph:
        return g.changed(g.nodes[:-1])

    def nothing(g: tw.Graph) -> Any:
        return None

    def written(x: Any) -> Any:
        x[0] = 1.0
        return x

    yield (
        lambda: g.compile(passes=[backwards]),
        tw.AttrError,
        "after the pass backwards add takes .*; want nodes",
    )
    yield lambda: g.compile(passes=[cut]), tw.AttrError, "after the pass cut the graph takes .* made by add>, which no"
    yield lambda: g.compile(passes=[nothing]), tw.AttrTypeError, "the pass nothing returned a NoneType; want a Graph"
    yield lambda: g.compile(passes=["fusion"]), tw.AttrTypeError, "'fusion' is among passes; want functions"
    yield lambda: tw.trace(written, x), tw.UnsupportedError, "is not written to in part; want another one"
    yield lambda: tw.trace(3, x), tw.AttrTypeError, "function is a int"
    yield lambda: tw.spec((2, -1)), tw.ShapeError, r"spec: shape=\(2, -1\); want sizes >= 0"
    yield lambda: tw.spec((1.5,)), tw.AttrTypeError, "want ints, a dtype"
    yield lambda: tw.spec((1,), "magic"), tw.AttrTypeError, "want ints, a dtype"
    yield lambda: pickle.dumps(exe), tw.UnsupportedError, "is not pickled; want exe.save"
    for odd in (0, -1, 1025, 2**70):
        yield lambda n=odd: g.compile(threads=n), tw.AttrError, "want 1 to 1024"
    for odd in (1.5, "a", True):
        yield lambda n=odd: g.compile(threads=n), tw.AttrTypeError, "want an int"
    for name in ("deterministic", "savable", "winograd"):
        yield lambda n=name: g.compile(**{n: "yes"}), tw.AttrTypeError, f"{name}='yes'; want a bool"
    for name in ("passes", "without"):
        yield lambda n=name: g.compile(**{n: 3}), tw.AttrTypeError, f"{name}=3; want a list"
    yield lambda: g.compile(without=[3]), tw.AttrError, "there is no pass 3"
    yield lambda: exe.profile(x, x, runs=0), tw.AttrError, "runs=0; want an int of 1 or more"
    yield lambda: g.draw(3), tw.AttrTypeError, "draw: path=3; want a str"
    yield lambda: g.draw("g.svg", 3), tw.AttrTypeError, "profile is a int"
    yield lambda: exe.save(3), tw.AttrTypeError, "save: path=3; want a str"
    yield lambda: tw.load(3), tw.AttrTypeError, "load: path=3; want a str"


def arrays_that_are_none() -> Any:
    """What a graph takes for no array."""
    x = normal(2, 3)
    for label in (3, "", None):
        yield lambda n=label: tw.Graph().placeholder(n, (2,)), tw.AttrTypeError, "want a name"
    for shape in (3, None, "ab", (1.5,), (True,)):
        yield lambda s=shape: tw.Graph().placeholder("x", s), tw.AttrTypeError, "want ints, a dtype"
    for shape in ((2**62, 2**62), (2**63,), (1,) * 9, (0, 2**62)):
        yield lambda s=shape: tw.Graph().placeholder("x", s), tw.ShapeError, "at most 8 dimensions"
        yield lambda s=shape: tw.spec(s), tw.ShapeError, "at most 8 dimensions"
    for dtype in ("O", "U4", ">f4", "complex64", "datetime64[s]", [("x", "f4")]):
        yield lambda d=dtype: tw.Graph().placeholder("x", (2,), d), tw.DTypeError, "want one of tilework's"
        yield lambda d=dtype: tw.trace(lambda x: x, np.zeros(3, d)), tw.DTypeError, "x has dtype"
    for dtype in ("magic", 3, None):
        yield lambda d=dtype: tw.Graph().placeholder("x", (2,), d), tw.AttrTypeError, "want ints, a dtype"
    for odd in (3, None, "text", tw.Graph().placeholder("x", (2,))):
        yield lambda v=odd: tw.Graph().constant(v), tw.DTypeError, "constant: value is"
    yield lambda: tw.Graph().constant(x, 3), tw.AttrTypeError, "label=3; want a str"
    yield lambda: tw.Variable(x.copy(), 3), tw.AttrTypeError, "label=3; want a str"
    yield lambda: tw.Variable(np.array([None])), tw.DTypeError, "has dtype object"
    yield lambda: tw.Graph(3), tw.AttrTypeError, "name=3; want a str"
    yield lambda: tw.Graph().call(3, x), tw.AttrTypeError, "op=3; want one of tilework's"
    yield lambda: tw.Graph().call("reshape", 3, shape=(1,)), tw.DTypeError, "reshape: x is 3; want an array"
    yield lambda: tw.number(2**70), tw.AttrError, "want one of 64"

    def nothing() -> None:
        g = tw.Graph()
        tw.relu(g.placeholder("x", (2,)))
        g.compile()

    yield nothing, tw.AttrError, "graph gives nothing; want Graph.output"


@pytest.mark.parametrize(("call", "error", "text"), [*faults(), *arrays_that_are_none()])
def test_faults_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_an_array_is_not_used_after_its_trace() -> None:
    kept: list[Any] = []

    def keeping(x: Any) -> Any:
        kept.append(x)
        return x + 1.0

    x = normal(2, 3)
    g = tw.trace(keeping, x)
    length = len(g.nodes)
    for call in (lambda: tw.relu(kept[0]), lambda: kept[0] + 1.0, lambda: kept[0].T, lambda: g.output(kept[0])):
        with pytest.raises(tw.UnsupportedError, match="of 'keeping', whose trace is over; want it used inside"):
            call()
    assert len(g.nodes) == length
    same(g.compile()(x), x + 1.0)

    def failing(x: Any) -> Any:
        kept.append(x)
        raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        tw.trace(failing, x)
    with pytest.raises(tw.UnsupportedError, match="whose trace is over"):
        tw.relu(kept[-1])


DOCS = Path(__file__).parents[1] / "docs" / "graph.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_of_the_docs_run(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    program = PROGRAMS[number]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    exec(compile(program, f"{DOCS.name}:{number}", "exec"), {})


def test_several_threads_run_one_executable() -> None:
    exe = tw.trace(net, PARAMS, IMAGES).compile()
    feeds = [normal(2, 3, 8, 8) for _ in range(8)]
    want = [exe(PARAMS, x) for x in feeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, right in zip(pool.map(lambda x: exe(PARAMS, x), feeds), want, strict=True):
                np.testing.assert_array_equal(got, right)


def test_nothing_is_allocated_in_steady_state() -> None:
    x, out = normal(64, 1024), np.empty((64, 1024), "f")
    exe = tw.trace(lambda x: tw.tanh(tw.exp(x).T.reshape(64, 1024) + x), x).compile()
    exe(x, out=out)
    before = _core.pool_stats()
    for _ in range(5):
        exe(x, out=out)
    assert _core.pool_stats() == before


def test_memory_that_is_free_is_used_again() -> None:
    def chain(x: Any) -> Any:
        for _ in range(20):
            x = tw.softmax(tw.exp(x) + 1.0)  # softmax needs another place, the others do not
        return x

    exe = tw.trace(chain, tw.spec((32, 1024))).compile()
    assert exe.arena_bytes <= 2 * 32 * 1024 * 4
    assert exe.peak_bytes == exe.arena_bytes + 32 * 1024 * 4
    x = normal(32, 1024)
    same(exe(x), chain(x))


def test_results_that_are_views_feeds_or_the_same_are_arrays_of_their_own() -> None:
    w = normal(3, 4)

    def f(x: Any) -> Any:
        y = tw.exp(x)
        return y, y, y.T, y[1:], x, tw.reshape(y, (12,)), w

    x = normal(3, 4)
    y, got = tw.exp(x), tw.trace(f, x).compile()(x)
    for a, b in zip(got, (y, y, y.T, y[1:], x, y.reshape(12), w), strict=True):
        np.testing.assert_array_equal(a, b)
    for i, a in enumerate(got):
        assert not any(np.shares_memory(a, b) for b in (*got[:i], x, w))


def test_an_update_leaves_what_is_read_later() -> None:
    v = tw.Variable(np.ones(2, "f"))

    def f(g: Any) -> Any:
        before = v * 1.0
        old = v.reshape(1, 2)
        tw.sgd_step(v, g, lr=1.0)
        return before, old + 0.0, v + 0.0

    exe = tw.trace(f, np.ones(2, "f")).compile()
    for k in range(2):
        before, old, after = exe(np.ones(2, "f"))
        np.testing.assert_array_equal(before, np.full(2, 1 - k))
        np.testing.assert_array_equal(old, np.full((1, 2), 1 - k))
        np.testing.assert_array_equal(after, np.full(2, -k))


def test_another_tier_makes_another_program() -> None:
    x = normal(2, 3, 8, 8)
    exe, before = tw.trace(net, PARAMS, x).compile(), tw.isa()
    try:
        for name in tw.tiers():
            tw.set_isa(name)
            same(exe(PARAMS, x), net(PARAMS, x))
    finally:
        tw.set_isa(before)


def folded(x: Any) -> Any:
    y = tw.relu(tw.batch_norm(tw.conv(x, W1, padding=1), *NORM))
    return tw.relu(tw.batch_norm(tw.conv(y, W2, padding=1), *NORM) + y), tw.conv(y, W2) + NORM[0].reshape(6, 1, 1)


def spread(x: Any) -> Any:
    y = tw.relu(tw.batch_norm(tw.conv_transpose(x, W3, stride=2, groups=2), *NORM))
    return tw.tanh(tw.conv_transpose(y, W2, padding=1) + BIAS[:6].reshape(6, 1, 1) + y)


def normed(x: Any) -> Any:
    y = tw.tanh(tw.matmul(x, M) + BIAS)
    s = y + x
    t = s + tw.layer_norm(s, BIAS, BIAS)
    return tw.rms_norm(t + y, BIAS), t


def attended(x: Any) -> Any:
    b, t, d = x.shape
    q, k, v = (tw.linear(x, w).reshape(b, t, 2, d // 2).transpose(0, 2, 1, 3) for w in (M, M2, M3))
    return tw.linear(tw.attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(b, t, d), M)


W1, W2, W3, BIAS = normal(6, 3, 3, 3), normal(6, 6, 3, 3), normal(4, 3, 3, 3), normal(8)
M, M2, M3 = normal(8, 8), normal(8, 8), normal(8, 8)
NORM = (normal(6), normal(6), normal(6), abs(normal(6)) + 0.5)


def activated(x: Any) -> Any:
    """Activations behind layers, of which a clip is one only from 0 to 6."""
    y = tw.clip(tw.conv(x, W1, padding=1), low=0.0, high=6.0)
    y = tw.silu(tw.conv(tw.hard_swish(tw.conv(y, W2, padding=1)), W2, padding=1))
    return tw.clip(tw.conv(y, W2), low=-1.0, high=6.0)


def narrowed(x: Any) -> Any:
    """Inverted residuals: with and without what widens, and one whose middle others need."""

    def block(x: Any, wide: bool, residual: Any = None) -> tuple[Any, Any]:
        y = tw.conv(x, W4, activation="relu6") if wide else x
        d = tw.conv(y, W5, BIAS, padding=1, groups=8, activation="relu6")
        return tw.conv(d, W6, None, residual), d

    y, d = block(block(x, True, x)[0], True)
    return y, block(d, False)[0]


W4, W5, W6 = normal(8, 6, 1, 1), normal(8, 1, 3, 3), normal(6, 8, 1, 1)
FUSED = {
    "narrowed": (narrowed, normal(2, 6, 7, 9), ["inverted_residual", "conv", "conv", "conv", "inverted_residual"]),
    "activated": (activated, normal(2, 3, 8, 8), ["conv", "conv", "conv", "conv", "clip"]),
    "folded": (folded, normal(2, 3, 8, 8), ["conv", "conv", "conv"]),
    "spread": (spread, normal(2, 4, 5, 6), ["conv_transpose", "conv_transpose"]),
    "normed": (normed, normal(5, 8), ["linear", "layer_norm", "add", "rms_norm"]),
    "attended": (attended, normal(2, 5, 8), ["linear", "linear", "linear", "attention", "linear"]),
}


@pytest.mark.parametrize("name", FUSED)
def test_fusions_leave_few_nodes_and_the_results_within_bounds(name: str) -> None:
    function, x, left = FUSED[name]
    exe = tw.trace(function, x).compile()
    steps = [n.op.name for n in exe.graph.nodes if not n.is_source and not n.op.is_view]
    assert steps == left
    for without in ((), *((p.__name__,) for p in exe.passes)):
        got = tw.trace(function, x).compile(without=without)(x)
        for a, b in zip(nested.flatten(got)[0], nested.flatten(function(x))[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(abs(b).max()))
