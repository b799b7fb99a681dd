"""Whole networks of the bench: right in float32 by their own float64, by PyTorch and by ONNX Runtime."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest

from tilework.bench import networks
from tilework.bench.networks import NetworkProblem, resnet
from tilework.bench.problems import BenchError, parse

PROBLEMS = ("resnet50 x=1x3x64x64", "resnet18/step x=2x3x64x64")


def problem(line: str) -> NetworkProblem:
    made = parse(line)
    assert isinstance(made, NetworkProblem)
    return made


@functools.cache
def expected(line: str) -> list[Any]:
    return networks.expected(problem(line))


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
        if line.startswith("resnet18/step"):
            pytest.skip("ONNX Runtime does not train")
    calls = importlib.import_module(f"tilework.bench.peers.{peer}_calls").calls
    made = calls(problem(line), problem(line).operands(), 1)
    assert made
    for contestant in made.values():
        assert networks.mismatch(contestant.results(), expected(line)) == ""


def test_steps_descend() -> None:
    form, random = resnet.FORMS["resnet18"], np.random.default_rng(0)
    x, labels, weights = random.random((4, 3, 64, 64), np.float32), random.integers(0, 1000, 4), form.weights()
    losses = [float(resnet.step(form, weights, x, labels)) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_a_wrong_network_is_caught() -> None:
    want = expected(PROBLEMS[0])
    assert "differs" in networks.mismatch([want[0] * (1 + 2e-4)], want)
    assert "differs" in networks.mismatch([np.full_like(want[0], np.nan)], want)
    assert "shapes" in networks.mismatch([want[0][:, :-1]], want)


def test_products_are_those_of_the_papers_table() -> None:
    # He et al. count 3.8e9 for ResNet-50 with the stride in the first 1x1; in the 3x3 it is 4.1e9.
    assert resnet.FORMS["resnet50"].products(1, 224, 224) == pytest.approx(4.09e9, rel=0.01)
    assert resnet.FORMS["resnet18"].products(1, 224, 224) == pytest.approx(1.81e9, rel=0.01)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("resnet50 x=1x3x16x16", "at least 32"),
        ("resnet50 x=0x3x64x64", "want (N, 3, H, W)"),
        ("resnet50", "want (N, 3, H, W)"),
        ("resnet50/f64 x=1x3x64x64", "float32"),
        ("resnet50/bwd x=1x3x64x64", "step only"),
        ("resnet50 x=1x3x64x64 groups=2", "no attributes"),
        ("resnet5 x=1x3x64x64", "did you mean resnet50"),
    ],
)
def test_what_a_network_refuses(line: str, text: str) -> None:
    with pytest.raises(BenchError) as told:
        parse(line)
    assert text in str(told.value)
