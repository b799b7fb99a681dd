"""Checks of the process around a call: threads, forks, the floating-point environment."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from tilework import _core
from tilework.registry import Workload, dtypes_of
from tilework.testing.cases import AnyOp, Array, Case, cases, copied, in_place, results_of
from tilework.testing.compare import assert_same_bits
from tilework.testing.fill import Fill, Zeros, workload_operands, workload_shapes
from tilework.testing.run import per_op, per_sample


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    former = _core.num_threads()
    _core.set_num_threads(count)
    try:
        yield
    finally:
        _core.set_num_threads(former)


def _work(op: AnyOp, workload: Workload) -> float:
    """About how many operations a workload takes."""
    if "flops" in op.rules:
        operands = list(workload_operands(op, workload, Zeros(dtypes_of(op)[0])))
        attrs = _core.infer(op.name, operands, workload.attrs)[1]
        return float(op.rules["flops"](*workload_shapes(op, workload), **attrs))
    return 10.0 * sum(math.prod(s) for s in workload.shapes if s is not None)


def _busy_call(op: AnyOp, dtype: str, most: float) -> Callable[[], tuple[Array, ...]]:
    """A call of the op's largest workload of at most ``most`` operations; of its last sample if there is none."""
    fitting = [w for w in op.rules.get("workloads", list)() if _work(op, w) <= most]
    if fitting:
        workload = max(fitting, key=lambda w: _work(op, w))
        args, attrs = workload_operands(op, workload, Fill(dtype)), workload.attrs
    else:
        made = cases(op, dtype)[-1].build()
        args, attrs = made.args, made.attrs
    return lambda: results_of(op, copied(args) if in_place(op, args) else args, attrs)


@per_op
def check_threads(op: AnyOp, dtype: str) -> None:
    """Results have the same bits on 1 to 8 threads, and every time."""
    call = _busy_call(op, dtype, 1e8)
    with _threads(1):
        want = copied(call())
    for count in (2, 3, 5, 8, 8):
        with _threads(count):
            assert_same_bits(call(), want, f"{count} threads")
    for case in cases(op, dtype):
        made = case.build()
        with _threads(1):
            want = copied(results_of(op, copied(made.args), made.attrs))
        with _threads(8):
            assert_same_bits(results_of(op, made.args, made.attrs), want, f"8 threads, sample {case.sample}")


@per_op
def check_fork(op: AnyOp, dtype: str) -> None:
    """A process forked after the op ran on several threads gets the same bits from it, and does not hang."""
    call = _busy_call(op, dtype, 3e7)
    with _threads(2):
        want = copied(call())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            good = False
            try:
                assert_same_bits(call(), want, "in the child")
                good = True
            finally:
                os._exit(0 if good else 1)
        status = _wait(child, 20)
        assert status is not None, "the child hung for 20 s"
        assert status == 0, f"the child ended with status {status}"
        assert_same_bits(call(), want, "in the parent, after the fork")


def _wait(child: int, seconds: float) -> int | None:
    """The exit status of a child, or None if it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def _float_environment() -> tuple[int, ...]:
    """The rounding direction and, on x86-64, the control bits of MXCSR: rounding, traps, flush to zero."""
    libm = ctypes.CDLL("libm.so.6")
    if platform.machine() != "x86_64":
        return (libm.fegetround(),)
    environment = (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    return libm.fegetround(), environment[7] & ~0x3F


@per_sample
def check_float_environment(case: Case) -> None:
    """A call leaves rounding, traps and the treatment of denormals as they were."""
    made = case.build()
    before = _float_environment()
    results_of(case.op, made.args, made.attrs)
    after = _float_environment()
    assert before == after, f"rounding and MXCSR were {before} and are {after}"
    assert np.float32(1e-40) * np.float32(1) != 0, "denormals are flushed after the call"
