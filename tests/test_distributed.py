"""Layers and calls on several processes: the examples, pickles, read-only operands, forks, thread counts."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw

EXAMPLES = Path(__file__).parent.parent / "examples"


def _example(name: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_torch_trains_on_two_processes_as_on_one() -> None:
    pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
    assert "2 processes and one differ by" in _example("torch_ddp.py")


def test_dask_runs_a_layer_on_two_workers() -> None:
    pytest.importorskip("dask.distributed", reason="dask is nothing that the tests bring")
    assert _example("dask_blocks.py").endswith("same bits\n")


W = np.linspace(-1, 1, 12 * 8, dtype=np.float32).reshape(12, 8)
X = np.linspace(-2, 2, 5 * 8, dtype=np.float32).reshape(5, 8)
LAYERS = {
    "linear": (tw.linear, {"w": W, "activation": "gelu"}, X),
    "conv": (tw.conv, {"w": W.reshape(6, 4, 2, 2), "padding": ((0, 1), (1, 0))}, X.reshape(1, 4, 2, 5)),
    "matmul": (tw.matmul, {"b": W.T}, X),
}


def _in_child(layer: Any, x: Any) -> tuple[Any, int, bytes]:
    """On another process: what it was given, and what it makes of it."""
    x.setflags(write=False)
    return x.shape, tw.num_threads(), layer(x).tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:os.fork:RuntimeWarning")  # JAX's, where it ran before
def test_prepared_layers_travel_to_other_processes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWORK_NUM_THREADS", "1")
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        for op, bound, x in LAYERS.values():
            layer = op.prepare(**bound)
            want = layer(x).tobytes()
            shape, threads, got = pool.submit(_in_child, layer, x.copy()).result(timeout=60)
            assert (shape, got) == (x.shape, want)
            assert threads == 1 or method == "fork", "a forked child keeps its parent's count"


@pytest.mark.parametrize("name", LAYERS)
def test_a_pickled_layer_gives_the_same_bits(name: str) -> None:
    op, bound, x = LAYERS[name]
    layer = op.prepare(**bound)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(layer, protocol))(x).tobytes() == layer(x).tobytes()


def test_read_only_operands_are_read() -> None:
    """As shared memory and object stores hand them out."""
    for op, bound, x in LAYERS.values():
        frozen = {k: _frozen(v) if isinstance(v, np.ndarray) else v for k, v in bound.items()}
        assert op.prepare(**frozen)(_frozen(x)).tobytes() == op.prepare(**bound)(x).tobytes()
    with pytest.raises(tw.ShapeError, match="out is read-only"):
        tw.relu(X, out=_frozen(np.empty_like(X)))


def _frozen(x: Any) -> Any:
    x = x.copy()
    x.setflags(write=False)
    return x


@pytest.mark.parametrize("variable", ["TILEWORK_NUM_THREADS", "OMP_NUM_THREADS"])
def test_workers_are_told_their_threads_by_the_environment(variable: str) -> None:
    """As dask, ray and torchrun set them."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | {variable: "1"}
    code = "import tilework; print(tilework.num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "1\n", done.stderr
