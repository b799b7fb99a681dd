"""The user's kernels and control flow inside graphs, and pictures and profiles of them."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw

RANDOM = np.random.default_rng(4)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


@tw.kernel(lambda x, *, power: x.shape)
def raised(x: Any, *, power: float) -> Any:
    return np.power(x, power)


@raised.backward
def _(dy: Any, x: Any, *, power: float) -> Any:
    return dy * raised(x, power=power - 1.0) * power


@tw.kernel(lambda x: tw.spec((), "bool"))
def large(x: Any) -> Any:
    return np.asarray(abs(x).max() > 1)


@tw.kernel(lambda a, b: [a.shape, tw.spec(b.shape, "int64")])
def ranked(a: Any, b: Any) -> Any:
    return np.sort(a), np.argsort(b)


def test_a_kernel_is_an_op() -> None:
    x = abs(normal(5)) + 0.5
    f = lambda x: tw.reduce_sum(tw.relu(raised(x * 2.0, power=3.0)) * x)  # noqa: E731
    np.testing.assert_allclose(raised(x, power=2.0), x**2)
    np.testing.assert_allclose(tw.trace(f, x).compile()(x), (8 * x**4).sum())
    np.testing.assert_allclose(tw.grad(f)(x), 32 * x**3)
    exe = tw.trace(tw.grad(f), x).compile()
    for _ in range(2):
        np.testing.assert_allclose(exe(x), 32 * x**3)
    low, order = tw.trace(ranked, x, x).compile()(x, x)
    np.testing.assert_array_equal(low, np.sort(x))
    np.testing.assert_array_equal(order, np.argsort(x))


def test_a_kernel_is_saved_by_its_name(tmp_path: Path) -> None:
    x = abs(normal(5))
    tw.trace(lambda x: raised(x, power=2.0), x).compile().save(tmp_path / "k.tw")
    np.testing.assert_allclose(tw.load(tmp_path / "k.tw")(x), x**2)


def test_a_kernel_that_fails_or_lies_is_named() -> None:
    x = normal(3)

    @tw.kernel(lambda x: x.shape)
    def torn(x: Any) -> Any:
        raise RuntimeError("torn apart")

    @tw.kernel(lambda x: x.shape)
    def lying(x: Any) -> Any:
        return x[:1]

    @tw.kernel(lambda x: x.shape)
    def narrow(x: Any) -> Any:
        return x.astype("f")

    @tw.kernel(lambda x: "three")
    def shapeless(x: Any) -> Any:
        return x

    exe = tw.trace(torn, x).compile()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="torn apart"):
            exe(x)
    with pytest.raises(tw.ShapeError, match=r"lying: returned shape \(1,\); want \(3,\)"):
        tw.trace(lying, x).compile()(x)
    with pytest.raises(tw.DTypeError, match="narrow: returned float32; want float64"):
        narrow(x)
    with pytest.raises(tw.ShapeError, match="shapeless: its shape rule gives 'three'"):
        tw.trace(shapeless, x)
    with pytest.raises(tw.UnsupportedError, match="torn: has no gradient"):
        tw.grad(lambda x: tw.reduce_sum(tw.stop_gradient(x) + narrow_gradient(x)))(x)
    with pytest.raises(tw.AttrTypeError, match="x is missing"):
        torn()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (lambda dy, x: tw.reduce_sum(dy), r"backward returned float64 \(\) for x; want float64 \(3,\)"),
        (lambda dy, x: tw.cast(dy, dtype="float32"), r"backward returned float32 \(3,\) for x"),
        (lambda dy, x: "text", "backward returned str for x"),
        (lambda dy, x: [dy], "backward returned list for x"),
        (lambda dy, x: 3.0, "backward returned float for x"),
        (lambda dy, x: (dy, dy), "want a tuple of 1 gradients"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_a_gradient_unlike_its_operand_is_refused(rule: Any, text: str, traced: bool) -> None:
    made = tw.Kernel("twice", ("x",), lambda x: x.shape, function=lambda x: 2.0 * x)
    made.backward(rule)
    gradient = tw.grad(lambda x: tw.reduce_sum(made(x)))
    with pytest.raises(tw.ShapeError, match=text):
        tw.trace(gradient, normal(3)) if traced else gradient(normal(3))


def test_a_kernel_that_is_none_is_refused() -> None:
    def rule(*x: Any) -> Any:
        return x[0].shape

    for arguments, text in (
        ((3, ("x",), rule), "name=3; want an identifier"),
        (("relu", ("x",), rule), "'relu' is that of an op"),
        (("reshape", ("x",), rule), "'reshape' is that of an op"),
        (("cond", ("x",), rule), "'cond' is that of an op"),
        (("k", 3, rule), "operands=3; want a tuple"),
        (("k", "xy", rule), "operands='xy'; want a tuple"),
        (("k", ("x", "x"), rule), "want names that differ"),
        (("k", ("x",), 3), "infer is a int; want a function"),
    ):
        with pytest.raises(tw.Error, match=text):
            tw.Kernel(*arguments)
    with pytest.raises(tw.Error, match="infer is a int; want a function"):
        tw.kernel(3)
    made = tw.Kernel("k", ("x",), rule, function=lambda x: x)
    for call, text in (
        (lambda: made.c("text"), "is not the address"),
        (lambda: made.c(-1), "is not the address"),
        (lambda: made.c(1 << 64), "is not the address"),
        (lambda: made.opencl(3), "source is a int"),
        (lambda: made.opencl("", items=3), "items is a int"),
        (lambda: made.backward(3), "backward is a int"),
        (lambda: tw.kernel(rule)(3), "function is a int"),
        (lambda: made(3), "x is a int; want an array"),
        (lambda: tw.Kernel("k", ("x",), rule, function=3), "function is a int"),
    ):
        with pytest.raises(tw.Error, match=text):
            call()
    for shape in ("ab", None, 3, (-1,), (1.5,), (True,), (2**62,), (2**40, 2**40), (1,) * 70, ((3,), "magic")):
        odd = tw.Kernel("odd", ("x",), lambda x, s=shape: s, function=lambda x: x)
        for call in (lambda k=odd: k(normal(3)), lambda k=odd: tw.trace(k, normal(3))):
            with pytest.raises(tw.ShapeError, match="odd: its shape rule gives"):
                call()


def test_a_kernel_with_effects_is_called_each_time_and_in_order() -> None:
    said: list[str] = []

    @tw.kernel(lambda x: [], effects=True)
    def noted(x: Any) -> None:
        said.append(f"noted {float(x.sum()):g}")

    @tw.kernel(lambda x: x.shape, effects=True)
    def passed(x: Any) -> Any:
        said.append("passed")
        return x

    one = np.ones(2)

    def f(x: Any) -> Any:
        passed(one)
        noted(x * 2.0)
        noted(x * 2.0)
        return tw.cond(large(x), lambda x: passed(x) * 3.0, lambda x: x, x) + passed(one)

    assert noted(one) is None
    said.clear()
    exe = tw.trace(f, one).compile()
    assert said == []
    np.testing.assert_array_equal(exe(one * 2), one * 7)
    assert said == ["passed", "noted 8", "noted 8", "passed", "passed"]
    with pytest.raises(ValueError, match="read-only"):
        tw.kernel(lambda x: x.shape, name="filled")(lambda x: x.fill(0.0))(one)


@tw.kernel(lambda x: x.shape)
def narrow_gradient(x: Any) -> Any:
    return x


narrow_gradient.name = "torn"


def test_cond_runs_one_branch() -> None:
    w = normal(3)

    def f(x: Any) -> Any:
        scale = tw.exp(x)
        return tw.cond(large(x), lambda x: {"y": x * scale}, lambda x: {"y": x + w}, x)["y"]

    exe = tw.trace(f, w).compile()
    for x in (np.full(3, 0.5), np.full(3, 2.0)):
        np.testing.assert_allclose(exe(x), x * np.exp(x) if x[0] > 1 else x + w)
        np.testing.assert_allclose(f(x), exe(x))


def test_while_loop_goes_on_while_it_holds() -> None:
    def f(x: Any) -> Any:
        half = x * 0.0 + 0.5
        return tw.while_loop(lambda x, n: large(x), lambda x, n: (x * half, n + 1.0), x, np.zeros(()))

    x = np.array([7.0, -1.0])
    y, n = tw.trace(f, x).compile()(x)
    np.testing.assert_array_equal(y, x / 8)
    assert n == 3
    np.testing.assert_array_equal(f(x)[0], y)


def test_scan_stacks_what_a_body_gives() -> None:
    w = normal(3, 3)

    def f(h: Any, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            h = tw.tanh(tw.matmul(w, h.reshape(3, 1)).reshape(3) + x)
            return h, {"h": h, "twice": h * 2.0}

        return tw.scan(body, h, xs)

    h, xs = normal(3), normal(4, 3)
    last, ys = tw.trace(f, h, xs).compile()(h, xs)
    want = []
    for x in xs:
        h = np.tanh(w @ h + x)
        want.append(h)
    np.testing.assert_allclose(ys["h"], want)
    np.testing.assert_allclose(ys["twice"], 2 * np.array(want))
    np.testing.assert_allclose(last, want[-1])


def test_regions_are_saved(tmp_path: Path) -> None:
    f = lambda x: tw.cond(large(x), lambda x: x * 2.0, lambda x: x, x)  # noqa: E731
    x = np.array([3.0, 1.0])
    tw.trace(f, x).compile().save(tmp_path / "cond.tw")
    np.testing.assert_array_equal(tw.load(tmp_path / "cond.tw")(x), 2 * x)


def test_control_flow_faults_are_named() -> None:
    x = normal(3)
    with pytest.raises(tw.ShapeError, match="cond: true and false return"):
        tw.trace(lambda x: tw.cond(large(x), lambda x: x, lambda x: x[:1], x), x)
    with pytest.raises(tw.ShapeError, match="the condition is float64"):
        tw.trace(lambda x: tw.cond(x, lambda x: x, lambda x: x, x), x)
    with pytest.raises(tw.ShapeError, match="while_loop: body returns"):
        tw.trace(lambda x: tw.while_loop(large, lambda x: tw.cast(x, dtype="float32"), x), x)
    with pytest.raises(tw.ShapeError, match="want one length"):
        tw.trace(lambda x: tw.scan(lambda s, r: (s, s), x, (x, x[1:])), x)


@pytest.mark.parametrize("traced", [False, True])
def test_control_flow_takes_arrays_and_keeps_them_what_they_are(traced: bool) -> None:
    x = normal(3, 2)

    def run(function: Any) -> Any:
        return tw.trace(function, x).compile()(x) if traced else function(x)

    def wide(a: Any) -> Any:
        return tw.cast(a, dtype="float32")

    def same(a: Any) -> Any:
        return a

    for call, error, text in (
        (lambda x: tw.cond(np.array(True), 3, same, x), tw.AttrTypeError, "cond: true is a int; want a function"),
        (lambda x: tw.cond(np.array(True), same, same, 3), tw.DTypeError, r"cond: args\[0\] is a int; want an array"),
        (lambda x: tw.cond(np.array(True), same, same, None), tw.DTypeError, r"args\[0\] is a NoneType"),
        (lambda x: tw.cond(x, same, same, x), tw.ShapeError, r"the condition is float64 \(3, 2\); want bool \(\)"),
        (lambda x: tw.cond("a", same, same, x), tw.ShapeError, "the condition is a str; want bool"),
        (lambda x: tw.cond(3, same, same, x), tw.ShapeError, "the condition is a int"),
        (lambda x: tw.while_loop(3, same, x), tw.AttrTypeError, "condition is a int; want a function"),
        (lambda x: tw.while_loop(same, same, x), tw.ShapeError, r"the condition is float64 \(3, 2\)"),
        (lambda x: tw.while_loop(lambda a: (a, a), same, x), tw.Error, "while_loop: "),
        (lambda x: tw.while_loop(lambda a, n: a, same, x, 0), tw.DTypeError, r"state\[1\] is a int"),
        (lambda x: tw.while_loop(always, wide, x), tw.ShapeError, "while_loop: body returns and is given"),
        (lambda x: tw.while_loop(always, lambda a: a[:1], x), tw.ShapeError, "while_loop: body returns"),
        (lambda x: tw.while_loop(always, lambda a: (a, a), x), tw.ShapeError, "while_loop: body returns"),
        (lambda x: tw.while_loop(always, lambda a: 3, x), tw.DTypeError, "int"),
        (lambda x: tw.scan(3, x[0], x), tw.AttrTypeError, "body is a int"),
        (lambda x: tw.scan(lambda s, r: (wide(s), r), x[0], x), tw.ShapeError, "scan: body returns and is given"),
        (lambda x: tw.scan(lambda s, r: (s[:1], r), x[0], x), tw.ShapeError, "scan: body returns and is given"),
        (lambda x: tw.scan(lambda s, r: s, x[0], x), tw.AttrTypeError, "something else than a pair"),
        (lambda x: tw.scan(lambda s, r: (s, r, r), x[0], x), tw.AttrTypeError, "something else than a pair"),
        (lambda x: tw.scan(lambda s, r: (s, 3), x[0], x), tw.DTypeError, "int"),
        (lambda x: tw.scan(lambda s, r: (3, r), x[0], x), tw.DTypeError, "int"),
        (lambda x: tw.scan(lambda s, r: (s, r), x[0], 3), tw.DTypeError, "xs is a int"),
        (lambda x: tw.scan(lambda s, r: (s, r), 0, x), tw.DTypeError, "state is a int"),
        (lambda x: tw.scan(lambda s, r: (s, r), x[0], x, reverse="a"), tw.AttrTypeError, "want a bool"),
    ):
        with pytest.raises(error, match=text):
            run(call)


def always(x: Any) -> Any:
    return tw.greater(tw.reduce_sum(x * x), np.array(-1, x.dtype))


def net(x: Any) -> Any:
    y = tw.relu(tw.conv(x, W, padding=1))
    return raised(tw.conv(y, V) + 1.0, power=2.0).sum(axis=(2, 3))


W, V = normal(4, 3, 3, 3), normal(2, 4, 1, 1)


def test_pictures(tmp_path: Path) -> None:
    x = normal(1, 3, 8, 8)
    exe = tw.trace(net, x).compile()
    profile = exe.profile(x)
    exe.graph.draw(tmp_path / "net.svg", profile)
    exe.graph.draw(tmp_path / "net.dot")
    root = xml.etree.ElementTree.parse(tmp_path / "net.svg").getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "conv relu" in texts
    assert "raised" in texts
    text = (tmp_path / "net.dot").read_text()
    assert text.startswith("digraph")
    assert "->" in text
    with pytest.raises(tw.AttrError, match=r"want a name that ends in \.svg or \.dot"):
        exe.graph.draw(tmp_path / "net.png")


def test_a_profile_has_a_row_a_step() -> None:
    x = normal(1, 3, 8, 8)
    profile = tw.trace(net, x).compile().profile(x)
    assert [r.node.op.name for r in profile.rows] == ["conv", "conv", "add", "raised", "reduce_sum"]
    assert 0 < profile.seconds < 1
    assert profile.rows[0].kernel
    assert all(r.bound > 0 for r in profile.rows)
    assert "conv" in str(profile)
    assert "% bound" in str(profile)
