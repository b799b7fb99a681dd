"""Every op passes every check that says anything about it, in every dtype. A new op is tested here unasked."""

from __future__ import annotations

from typing import Any

import pytest

from tilework.registry import ops
from tilework.testing import CHECKS, RISKY, applies, dtypes_for, run_check
from worker import Worker


def _combinations(*, risky: bool, opencl: bool = False) -> list[Any]:
    return [
        pytest.param(name, check, dtype, id=f"{name}-{check}-{dtype}")
        for name, op in ops().items()
        for check in CHECKS
        if (check in RISKY) == risky and (check == "opencl") == opencl and applies(check, op)
        for dtype in dtypes_for(check, op)
    ]


@pytest.mark.parametrize(("name", "check", "dtype"), _combinations(risky=False))
def test_op_passes(name: str, check: str, dtype: str) -> None:
    run_check(check, ops()[name], dtype)


@pytest.mark.parametrize(("name", "check", "dtype"), _combinations(risky=True))
def test_op_survives(name: str, check: str, dtype: str, cpu_worker: Worker) -> None:
    failure = cpu_worker.run(check, name, dtype, seconds=60)
    if failure:
        pytest.fail(failure, pytrace=False)


@pytest.mark.opencl
@pytest.mark.parametrize(("name", "check", "dtype"), _combinations(risky=True, opencl=True))
def test_op_on_a_device(name: str, check: str, dtype: str, opencl_worker: Worker) -> None:
    failure = opencl_worker.run(check, name, dtype, seconds=180)
    if failure:
        pytest.fail(failure, pytrace=False)
