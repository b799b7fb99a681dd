"""What is special about ``fused``: its instructions are the single ops, and the pass that makes its programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.arrays import Array
from tilework.graph.fusion import fusion
from tilework.programs import parsed


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


UNARY = ("relu", "sigmoid", "tanh", "gelu", "exp", "log", "erf", "silu", "softplus", "mish", "hard_swish", "abs", "neg")


@pytest.mark.parametrize("name", [*UNARY, "sqrt", "rsqrt", "elu", "leaky_relu", "hard_sigmoid", "clip"])
def test_an_instruction_has_the_bits_of_its_op(name: str) -> None:
    x = np.concatenate([_random(1500) * 4, np.float32([0, -0.0, np.inf, -np.inf, np.nan])])
    numbers = {"elu": {"alpha": 0.5}, "leaky_relu": {"alpha": 0.1}, "hard_sigmoid": {"alpha": 0.2, "beta": 0.5}}
    attrs: dict[str, float] = numbers.get(name, {"low": -1.0, "high": 2.0} if name == "clip" else {})
    text = " ".join([name, "$0", *map(repr, attrs.values())])
    np.testing.assert_array_equal(tw.fused(text, x), getattr(tw, name)(x, **attrs))
    if name in ("silu", "softplus", "mish", "hard_swish", "abs", "neg", "sqrt", "rsqrt", *numbers, "clip"):
        dy = _random(x.size, seed=1)
        alpha, beta = (*attrs.values(), 0.0, 0.0)[:2]
        text = " ".join([f"{name}_dx", "$0 $1", *map(repr, attrs.values())])
        want = tw.activation_dx(dy, x, function=name, alpha=alpha, beta=beta)
        np.testing.assert_array_equal(tw.fused(text, dy, x), want)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "relu_dx", "sigmoid_dx", "tanh_dx", "gelu_dx"])
def test_an_instruction_of_two_sources_has_the_bits_of_its_op(name: str) -> None:
    a, b = _random(3, 700), _random(3, 700, seed=1)
    assert tw.fused(f"{name} $0 $1", a, b).tobytes() == getattr(tw, name)(a, b).tobytes()


def test_dropout_draws_what_the_op_draws() -> None:
    x = _random(7, 333)
    assert tw.fused("dropout $0 0.3 5 9", x).tobytes() == tw.dropout(x, p=0.3, seed=5, offset=9).tobytes()
    y = tw.fused("dropout $0 0.3 5 9; sum $1; return $1 $2", x)[0]
    assert y.tobytes() == tw.dropout(x, p=0.3, seed=5, offset=9).tobytes()


@pytest.mark.parametrize("n", [3, 8, 100, 1000, 1024, 1025, 5000])
def test_folds_are_those_of_the_single_ops(n: int) -> None:
    x = _random(5, n)
    total, mean, top = tw.fused("sum $0; mean $0; max $0; return $1 $2 $3", x)
    assert total.tobytes() == tw.reduce_sum(x, axes=-1, keepdims=True).tobytes()
    assert mean.tobytes() == tw.reduce_mean(x, axes=-1, keepdims=True).tobytes()
    assert top.tobytes() == tw.reduce_max(x, axes=-1, keepdims=True).tobytes()


@pytest.mark.parametrize("shape", [(100_000,), (3, 50_000), (700, 33), (50, 5000)])
def test_threads_and_tiers_of_work_do_not_change_bits(shape: tuple[int, ...]) -> None:
    x = _random(*shape)
    program = "mul $0 $0; mean $1; add $2 1e-5; rsqrt $3; mul $0 $4; dropout $5 0.1 3 1; sum $6; return $6 $7 $4"
    results = []
    for count in (1, 2, 3):
        with tw.threads(count):
            results.append(tw.fused(program, x))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def test_a_fold_of_one_long_row_is_cut_into_pieces() -> None:
    x = _random(300_000)
    with tw.profile() as ran:
        total, doubled = tw.fused("mul $0 2.0; sum $1; mul $2 3.0; return $3 $1", x)
    assert [r.kernel for r in ran] == ["pieces of rows"]
    assert doubled.tobytes() == (2 * x).tobytes()
    assert total[0] == pytest.approx(6 * float(np.sum(x, dtype=np.float64)), rel=1e-5)


def test_a_program_is_read_in_python_as_in_cpp() -> None:
    instructions, results = parsed("mul $0 2; elu $1 0.5\n; return $2", 1)
    assert [i.name for i in instructions] == ["mul", "elu"]
    assert instructions[0].sources == (0, 2.0)
    assert instructions[1].numbers == ("0.5",)
    assert results == (2,)


# ------------------------------------------------------------------------------------------------------- the pass


def _nodes(function: Callable[..., Any], *args: Any) -> tuple[list[str], list[str]]:
    """The ops of a function's graph, before and after the pass."""
    g = tw.trace(function, *args)
    return [n.op.name for n in g.nodes if not n.is_source], [n.op.name for n in fusion(g).nodes if not n.is_source]


def _same(function: Callable[..., Any], *args: Any) -> None:
    """The pass on and off give the same, within a few roundings of float32."""
    g = tw.trace(function, *args)
    plain, fused = g.compile(passes=[]), g.compile(passes=[fusion])
    for one, two in zip(_flat(plain(*args)), _flat(fused(*args)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


def _flat(value: Any) -> list[Array]:
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in _flat(v)]
    return [value]


def _chain(x: Array, b: Array, r: Array) -> Array:
    y = tw.gelu(tw.add(x, b))
    return tw.add(tw.dropout(tw.mul(y, 0.5), p=0.1, seed=3), r)


def test_a_chain_becomes_one_node() -> None:
    args = (_random(20, 33), _random(33), _random(20, 33, seed=2))
    before, after = _nodes(_chain, *args)
    assert before == ["add", "gelu", "mul", "dropout", "add"]
    assert after == ["fused"]
    _same(_chain, *args)


def _softmax(x: Array) -> Array:
    e = tw.exp(tw.sub(x, tw.reduce_max(x, axes=-1, keepdims=True)))
    return tw.div(e, tw.reduce_sum(e, axes=-1, keepdims=True))


def test_folds_of_trailing_axes_join() -> None:
    assert _nodes(_softmax, _random(6, 40))[1] == ["fused"]
    _same(_softmax, _random(6, 40))

    def loss(x: Array, y: Array) -> Array:
        d = tw.sub(x, y)
        return tw.reduce_mean(tw.mul(d, d))

    assert _nodes(loss, _random(6, 40), _random(6, 40, seed=1))[1] == ["fused", "reshape"]
    _same(loss, _random(6, 40), _random(6, 40, seed=1))


def test_what_would_go_in_a_circle_stays_apart() -> None:
    def run(x: Array, w: Array) -> Array:
        y = tw.relu(x)
        z = tw.tanh(tw.matmul(y, w))
        return tw.add(tw.exp(y), z)

    args = (_random(8, 8), _random(8, 8, seed=1))
    assert _nodes(run, *args)[1] in (["relu", "matmul", "fused"], ["fused", "matmul", "fused"])
    _same(run, *args)


def test_gradients_of_a_chain_are_fused_too() -> None:
    def loss(x: Array, b: Array, r: Array) -> Array:
        y = _chain(x, b, r)
        return tw.reduce_sum(tw.mul(y, tw.tanh(y)))

    step = tw.value_and_grad(loss, argnums=(0, 1, 2))
    args = (_random(20, 33), _random(33), _random(20, 33, seed=2))
    before, after = _nodes(step, *args)
    assert after.count("fused") >= 1
    assert len(after) < len(before) / 2
    _same(step, *args)


def test_other_shapes_and_single_ops_are_left_alone() -> None:
    def run(x: Array, b: Array) -> Any:
        return tw.add(x, tw.mul(b, 2.0)), tw.reduce_sum(x, axes=0)

    args = (_random(6, 40), _random(40))
    assert _nodes(run, *args)[1] == ["mul", "add", "reduce_sum"]
    _same(run, *args)
