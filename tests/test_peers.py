"""What an op computes is what other libraries compute by that name: its samples, beside PyTorch and ONNX Runtime."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tilework import registry
from tilework.bench import check
from tilework.bench.problems import of_sample
from tilework.testing import Fill

OPS = (
    *("conv", "conv_dx", "conv_dw", "max_pool", "avg_pool"),
    *("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "softmax", "log_softmax"),
    *("reduce_sum", "reduce_mean", "reduce_max", "logsumexp", "concat", "pad", "linear", "matmul"),
    *("conv_transpose", "conv_integer", "qlinear_conv", "deform_conv", "unfold", "fold", "lp_pool", "roi_align"),
    *("elu", "silu", "clip", "hard_sigmoid", "softplus", "lp_norm", "local_response_norm", "mean_variance_norm"),
    *("attention", "lstm", "embedding", "embedding_dw", "rotary_embedding", "swiglu", "linear_int4"),
    *("layer_norm_dx", "group_norm_dx", "batch_norm_dx", "adaptive_avg_pool_dx", "max_unpool", "tril"),
)


@pytest.fixture(autouse=True)
def _gradients_as_before() -> Iterator[None]:
    """The bench switches torch's gradients off for its own process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


@pytest.mark.parametrize("peer", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", OPS)
def test_samples_mean_what_they_mean_in_a_peer(name: str, peer: str) -> None:
    pytest.importorskip(peer)
    if peer == "onnxruntime":
        pytest.importorskip("onnx")
    calls = importlib.import_module(f"tilework.bench.peers.{peer}_calls").calls
    dtype = registry.dtypes_of(registry.ops()[name])[0]
    compared = 0
    for index, _ in enumerate(registry.ops()[name].rules["samples"](Fill(dtype))):
        problem = of_sample(name, dtype, index)
        operands = problem.operands()
        arrays = [a for o in operands for a in (o if isinstance(o, list) else [o]) if a is not None]
        if not all(a.size for a in arrays):
            continue  # libraries differ in what they make of nothing
        try:
            results = {n: c.results() for n, c in calls(problem, operands, 1).items()}
        except Exception as error:  # a peer refuses some: each in its own way
            if isinstance(error, TypeError) or "unpack" in str(error):  # but our own call of it is wrong
                raise
            continue
        want = [np.asarray(w, np.float64) for w in check.expected(problem, operands)[0]]
        for contestant, got in results.items():
            assert check.peer_mismatch(got, want, problem) == "", f"{contestant}: {problem.text}"
            compared += 1
    if not compared:
        pytest.skip(f"{peer} has no {name}")
