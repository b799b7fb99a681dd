"""How compiled graphs run: bits, the order of updates, and runs on a device that nobody waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import nested, registry
from tilework.graph.pipeline import EXACT
from tilework.testing import Fill

RANDOM = np.random.default_rng(8)
W, V, SCALE = (RANDOM.standard_normal(s).astype(np.float32) for s in ((4, 3, 3, 3), (5, 64), (4,)))


def net(x: Any) -> Any:
    y = tw.relu(tw.batch_norm(tw.conv(x, W, padding=1), SCALE, SCALE + 1, SCALE - 1, SCALE * SCALE + 1))
    y = tw.tanh(y * 0.5 + 1.0)
    return tw.softmax(tw.matmul(y.reshape(len(x), -1)[:, :64], V.T) + 1.0)


def test_a_deterministic_graph_has_the_bits_of_its_calls() -> None:
    x = RANDOM.standard_normal((2, 3, 6, 6)).astype(np.float32)
    exe = tw.trace(net, x).compile(deterministic=True)
    assert {p.__name__ for p in exe.passes} == {p.__name__ for p in EXACT}
    for threads in (1, 2):
        with tw.threads(threads):
            np.testing.assert_array_equal(exe(x), net(x))


PACKING = [name for name, op in registry.ops().items() if "reads_packed" in op.rules]


@pytest.mark.parametrize("name", PACKING)
def test_a_graph_needs_no_more_of_constants_than_what_is_packed(name: str) -> None:
    op = registry.ops()[name]
    released = 0
    for dtype in registry.dtypes_of(op):
        for made in op.rules["samples"](Fill(dtype)):
            x, *rest = made.args
            exe = tw.trace(lambda x, op=op, made=made, rest=rest: op(x, *rest, **made.attrs), x).compile(passes=[])
            assert exe._native is not None
            released += len(exe._native.program.released)
            got, want = nested.flatten(exe(x))[0], nested.flatten(op(*made.args, **made.attrs))[0]
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
    assert released > 0


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_gradients_of_inputs_that_nobody_takes_are_not_computed(name: str) -> None:
    layer, count = registry.ops()[name], {"lstm": 4, "gru": 3, "rnn": 1}[name]
    x, w, r = (
        RANDOM.standard_normal(s).astype(np.float32) for s in ((9, 4, 300), (1, count * 8, 300), (1, count * 8, 8))
    )

    def f(x: Any, w: Any, r: Any) -> Any:
        return tw.reduce_sum(layer(x, w, r)[0])

    every, some = (tw.trace(tw.grad(f, argnums=n), x, w, r).compile() for n in ((0, 1, 2), (1, 2)))
    for a, b in zip(some(x, w, r), every(x, w, r)[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    kept = [n for n in some.graph.nodes if n.op.name == f"{name}_dx"]
    assert some._native is not None
    assert kept[0].results[0] not in some._native.plan.homes


def test_a_run_that_has_no_memory_says_what_for() -> None:
    x = np.zeros(4, np.float32)

    def wide(x: Any) -> Any:
        return tw.reduce_sum(tw.cumsum(tw.expand(tw.reshape(x, (4, 1)), shape=(4, 1 << 36)), axis=1))

    exe = tw.trace(wide, x).compile()
    for _ in range(2):
        with pytest.raises(tw.AllocationError, match=r"graph: no memory for the \d+ bytes of what a run keeps"):
            exe(x)


def test_updates_come_as_soon_as_they_can() -> None:
    layers = [tw.Variable(np.ones((64, 64), np.float32), n) for n in "abcdef"]

    def loss(layers: Any, x: Any) -> Any:
        for w in layers:
            x = tw.tanh(tw.matmul(x, w))
        return tw.reduce_sum(x)

    def step(x: Any) -> Any:
        value, grads = tw.value_and_grad(loss)(layers, x)
        for w, g in zip(layers, grads, strict=True):
            tw.sgd_step(w, g, lr=0.125)
        return value

    x = 0.01 * RANDOM.standard_normal((4, 64)).astype(np.float32)
    graph = tw.trace(step, x)
    late, early = graph.compile(without=["early_updates"]), graph.compile()
    names = [n.op.name for n in early.graph.nodes]
    assert names.index("sgd_step") < len(names) - 1 - names[::-1].index("matmul")
    assert 2 * early.arena_bytes < late.arena_bytes
    kept = []
    for exe in (late, early):
        for w in layers:
            w.value[...] = 0.1
        kept.append((exe(x), exe(x), *(w.value.copy() for w in layers)))
    for one, two in zip(*kept, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.opencl
def test_a_run_that_was_started_ends_with_its_event() -> None:
    if not tw.devices():
        pytest.skip("no OpenCL device")
    x = tw.to_device(RANDOM.standard_normal(1000).astype(np.float32), "opencl")
    exe = tw.trace(lambda x: tw.tanh(x) * 2.0, x).compile(device="opencl")
    first = exe.start(x)
    second = exe.start(first.results, after=[first.event])
    want = 2 * np.tanh(2 * np.tanh(tw.to_host(x)))
    np.testing.assert_allclose(tw.to_host(second.wait()), want, rtol=1e-5, atol=1e-6)
    assert second.done
    with pytest.raises(tw.DTypeError, match="after has a int"):
        exe.start(x, after=[3])
    with pytest.raises(tw.UnsupportedError, match="start: the graph is on the CPU"):
        tw.trace(lambda x: tw.tanh(x), np.ones(3)).compile().start(np.ones(3))


def test_what_a_concat_joins_is_made_where_it_is_joined() -> None:
    def dense(x: Any) -> Any:
        first, second = tw.tanh(x * 2.0), tw.conv(x, W, padding=1)
        all_of_it = tw.concat([first, second, x, second], axis=1)
        more = tw.concat([all_of_it, tw.exp(all_of_it)], axis=1)
        return tw.neg(more), second

    x = RANDOM.standard_normal((1, 3, 6, 7)).astype(np.float32)
    exe = tw.trace(dense, x).compile(without=["fusion"])
    assert exe._native is not None
    steps = [node.op.name for node in exe._native.plan.steps]
    assert "concat" not in steps
    assert steps.count("expand") == 3  # of second, twice, and of x; all_of_it is made within the last
    for got, want in zip(exe(x), dense(x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_result_is_written_in_the_order_in_which_it_is_copied() -> None:
    def heads(x: Any, w: Any) -> Any:
        y = tw.reshape(tw.matmul(x, w), (2, 4, 6, 8))
        return tw.neg(tw.reshape(tw.transpose(y, (2, 0, 1, 3)), (6, 64)))

    x, w = (RANDOM.standard_normal(s).astype(np.float32) for s in ((8, 6, 5), (5, 8)))
    exe = tw.trace(heads, x, w).compile(deterministic=True)
    assert exe._native is not None
    assert [node.op.name for node in exe._native.plan.steps] == ["matmul", "neg"]
    want = np.matmul(x.astype(np.float64), w).reshape(2, 4, 6, 8).transpose(2, 0, 1, 3).reshape(6, 64)
    np.testing.assert_allclose(exe(x, w), -want, rtol=1e-5, atol=1e-5)


def test_axes_of_a_strided_array_are_split_without_a_copy() -> None:
    def f(x: Any) -> Any:
        return tw.reshape(tw.transpose(x), (5, 2, 3)) + 1.0

    x = RANDOM.standard_normal((6, 5)).astype(np.float32)
    assert [n.op.name for n in tw.trace(f, x).nodes] == ["placeholder", "transpose", "reshape", "add"]
    np.testing.assert_array_equal(tw.trace(f, x).compile()(x), x.T.reshape(5, 2, 3) + 1)
