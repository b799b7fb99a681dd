"""Whole networks of the bench: right in float32 by their own float64, by PyTorch and by ONNX Runtime."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest

from tilework.bench import networks
from tilework.bench.networks import NETWORKS, NetworkProblem
from tilework.bench.problems import BenchError, parse
from tilework.registry import ops

PROBLEMS = (
    "resnet50 x=1x3x64x64",
    "resnet18/step x=2x3x64x64",
    "gpt2 x=2x33x128",
    "gpt2/step x=2x17x128",
    "mobilenet x=1x3x64x64",
    "bert x=2x17x128",
    "lstms/step x=5x3x32",
    "chain x=1000",
    "chain/step x=1000",
    "epilogue x=7x33",
    "epilogue/step x=7x33",
)


def problem(line: str) -> NetworkProblem:
    made = parse(line)
    assert isinstance(made, NetworkProblem)
    return made


@functools.cache
def expected(line: str) -> list[Any]:
    return networks.expected(problem(line))


def test_no_network_hides_an_op() -> None:
    assert not set(NETWORKS) & set(ops())


@pytest.mark.parametrize("line", PROBLEMS)
def test_network_agrees_with_its_float64(line: str) -> None:
    want = expected(line)
    for contestant in problem(line).contestants(problem(line).operands()).values():
        assert networks.mismatch(contestant.results(), want) == ""


@pytest.mark.parametrize("line", PROBLEMS)
@pytest.mark.parametrize("peer", ["torch", "onnxruntime"])
def test_network_agrees_with_a_peer(line: str, peer: str) -> None:
    pytest.importorskip(peer)
    if peer == "onnxruntime":
        pytest.importorskip("onnx")
        if "/step" in line or line.startswith(("chain", "epilogue")):
            pytest.skip("no ONNX model is made of it")
    calls = importlib.import_module(f"tilework.bench.peers.{peer}_calls").calls
    made = calls(problem(line), problem(line).operands(), 1)
    assert made
    for contestant in made.values():
        assert networks.mismatch(contestant.results(), expected(line)) == ""


@pytest.mark.parametrize(("peer", "line"), [("numexpr", "chain x=1000"), ("torch_compile", "epilogue/step x=7x33")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler's own
def test_a_chain_agrees_with_what_others_make_of_it(peer: str, line: str) -> None:
    pytest.importorskip(peer.partition("_")[0])
    made = importlib.import_module(f"tilework.bench.peers.{peer}_calls").calls(
        problem(line), problem(line).operands(), 1
    )
    if not made:
        pytest.skip("it has no such form, or no compiler")
    for contestant in made.values():
        assert networks.mismatch(contestant.results(), expected(line)) == ""


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (4, 3, 64, 64)), ("gpt2", (2, 9, 64))])
def test_steps_descend(name: str, shape: tuple[int, ...]) -> None:
    net = NETWORKS[name]
    x, goal, weights = net.x(shape), net.goal(shape), net.weights(shape)
    losses = [float(net.step(weights, x, goal)) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_a_wrong_network_is_caught() -> None:
    want = expected(PROBLEMS[0])
    assert "differs" in networks.mismatch([want[0] * (1 + 2e-4)], want)
    assert "differs" in networks.mismatch([np.full_like(want[0], np.nan)], want)
    assert "shapes" in networks.mismatch([want[0][:, :-1]], want)


def test_products_are_those_of_the_papers_tables() -> None:
    # He et al. count 3.8e9 for ResNet-50 with the stride in the first 1x1; in the 3x3 it is 4.1e9.
    assert NETWORKS["resnet50"].products((1, 3, 224, 224)) == pytest.approx(4.09e9, rel=0.01)
    assert NETWORKS["resnet18"].products((1, 3, 224, 224)) == pytest.approx(1.81e9, rel=0.01)
    assert NETWORKS["mobilenet"].products((1, 3, 224, 224)) == pytest.approx(3.0e8, rel=0.02)
    # 85 million weights of GPT-2 small's blocks, once for each word, and the attention.
    assert NETWORKS["gpt2"].products((1, 512, 768)) == pytest.approx(512 * 85e6, rel=0.06)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("resnet50 x=1x3x16x16", "at least 32"),
        ("resnet50 x=0x3x64x64", "want (N, 3, H, W)"),
        ("resnet50", "want (N, 3, H, W)"),
        ("resnet50/f64 x=1x3x64x64", "float32"),
        ("resnet50/bwd x=1x3x64x64", "step only"),
        ("resnet50 x=1x3x64x64 groups=2", "no attributes"),
        ("gpt2 x=1x8x100", "multiple of 64"),
        ("gpt2 x=8x128", "(B, T, D)"),
        ("resnet5 x=1x3x64x64", "did you mean resnet50"),
        ("mobilenet/step x=1x3x64x64", "mobilenet/float32 only"),
        ("lstms x=3x4", "want (T, B, I)"),
    ],
)
def test_what_a_network_refuses(line: str, text: str) -> None:
    with pytest.raises(BenchError) as told:
        parse(line)
    assert text in str(told.value)
