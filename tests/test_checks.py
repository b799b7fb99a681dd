"""The derived checks find faults: a check that cannot fail proves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tilework.errors import ShapeError
from tilework.registry import ops
from tilework.testing import applies, run_check
from tilework.testing.cases import mapped, results_of
from worker import Worker

WITH_BOUND = [name for name, op in ops().items() if not op.is_view]
WITH_GRADIENT = [name for name, op in ops().items() if applies("gradient", op)]


def _off(value: Any, by: float) -> Any:
    """A structure of arrays with one wrong element in each."""

    def spoil(a: Any) -> Any:
        a = np.array(a)
        if a.size:
            a.flat[-1] = not a.flat[-1] if a.dtype.kind == "b" else a.flat[-1] + (1 if a.dtype.kind in "iu" else by)
        return a

    return mapped(spoil, value) if isinstance(value, (list, tuple)) else spoil(value)


@pytest.mark.parametrize("name", WITH_BOUND)
def test_a_wrong_element_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = ops()[name]
    right = op.rules["reference"]
    monkeypatch.setitem(op.rules, "reference", lambda *args, **attrs: _off(right(*args, **attrs), 1e-4))
    for check in ("reference", "tiers"):
        with pytest.raises(AssertionError, match=rf"python -m tilework.testing {check} {name}"):
            run_check(check, op, "float32")


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_a_wrong_gradient_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = ops()[name]
    right = op.backward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return mapped(lambda a: (a + 1e-3).astype(a.dtype), right(*args, **kwargs))

    monkeypatch.setattr(op, "backward", wrong)
    with pytest.raises(AssertionError, match="by finite differences"):
        run_check("gradient", op, "float64")


@pytest.mark.parametrize("name", ["conv", "reduce_sum", "matmul"])
def test_a_kernel_that_depends_on_strides_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(op: Any, args: Any, attrs: Any, **out: Any) -> Any:
        strided = isinstance(args[0], np.ndarray) and args[0].strides[-1:] != (args[0].itemsize,)
        return mapped(lambda a: a + strided, results_of(op, args, attrs, **out))

    monkeypatch.setattr("tilework.testing.memory.results_of", wrong)
    with pytest.raises(AssertionError, match=r"transposed: |every third element: "):
        run_check("strides", ops()[name], "float32")


def test_an_error_without_advice_is_found() -> None:
    from tilework.testing import refusals

    error = ShapeError("add: b is bad", op="add", argument="c")
    faults = refusals._faults(ops()["add"], error, "here")
    assert len(faults) == 2
    assert "what would be right" in faults[0]
    assert "'c'" in faults[1]


@pytest.mark.parametrize("at_end", [False, True])
def test_a_read_beyond_an_operand_ends_the_process(at_end: bool) -> None:
    code = (
        "import ctypes, numpy as np\n"
        "from tilework.testing.layouts import guarded\n"
        f"a = guarded(np.ones(3, np.float32), at_end={at_end})\n"
        f"ctypes.string_at(a.ctypes.data + ({at_end} and a.nbytes or -1), 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGSEGV


def test_a_process_that_hangs_or_dies_is_reported() -> None:
    worker = Worker()
    try:
        assert "did not end within 0 s" in worker.run("hostile", "conv", "float32", seconds=0)
        assert worker.run("guard_pages", "add", "float32", seconds=60) == ""
        assert worker._process is not None
        worker._process.kill()
        assert "ended with status -9" in worker.run("guard_pages", "add", "float32", seconds=60)
        assert worker.run("guard_pages", "add", "float32", seconds=60) == ""
    finally:
        worker.stop()
