"""The table of checks, and how one is run, failed and repeated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

from tilework.registry import dtypes_of
from tilework.testing.cases import AnyOp, Case, cases

SampleCheck: TypeAlias = Callable[[Case], None]
OpCheck: TypeAlias = Callable[[AnyOp, str], None]

SAMPLE_CHECKS: dict[str, SampleCheck] = {}
OP_CHECKS: dict[str, OpCheck] = {}


def per_sample(check: SampleCheck) -> SampleCheck:
    """Enters ``check_x(case)`` into the table as "x"."""
    SAMPLE_CHECKS[check.__name__.removeprefix("check_")] = check
    return check


def per_op(check: OpCheck) -> OpCheck:
    """Enters ``check_x(op, dtype)`` into the table as "x"."""
    OP_CHECKS[check.__name__.removeprefix("check_")] = check
    return check


def applies(check: str, op: AnyOp) -> bool:
    """Whether a check says anything about ``op``."""
    if check in ("gradient", "hostile_gradients"):
        return "backward" in op.rules
    if check == "exact":
        return "depth" in op.rules and "terms" not in op.rules
    if check == "workloads":
        return "workloads" in op.rules
    if check == "opencl":
        return "opencl" in op.rules or op.is_view
    return not (op.is_view and check in ("shape_rule", "out", "prepared"))


# What can go wrong in 16 bits alone: loads, stores and rounding. Everything else is the code of float32.
NARROW_CHECKS = (
    "reference",
    "exact",
    "tiers",
    "strides",
    "guard_pages",
    "out",
    "gradient",
    "nonfinite",
    "threads",
    "opencl",
)


def dtypes_for(check: str, op: AnyOp) -> tuple[str, ...]:
    """The element types that a check of ``op`` runs in: a workload has none, and 16 bits change some things only."""
    declared = dtypes_of(op)
    if check == "workloads":
        return declared[:1]
    wide = tuple(d for d in declared if d not in ("float16", "bfloat16"))
    return declared if check in NARROW_CHECKS or not wide else wide


def run_check(check: str, op: AnyOp, dtype: str, sample: int | None = None) -> None:
    """Runs one check by name, on one sample or on all; a failure says how to repeat it."""
    if check in OP_CHECKS:
        _repeatable(f"{check} {op.name} - {dtype}", functools.partial(OP_CHECKS[check], op, dtype))
        return
    chosen = [c for c in cases(op, dtype) if sample is None or c.sample == sample]
    failures = []
    for case in chosen:
        try:
            _repeatable(f"{check} {op.name} {case.sample} {dtype}", functools.partial(SAMPLE_CHECKS[check], case))
        except AssertionError as failure:
            failures.append(str(failure))
    shown = "\n".join(failures[:4])
    assert not failures, f"{check} of {op.name} failed on {len(failures)} of {len(chosen)} samples\n{shown}"


def _repeatable(line: str, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as failure:
        text = str(failure) if isinstance(failure, AssertionError) else f"{type(failure).__name__}: {failure}"
        raise AssertionError(f"{text}\n    python -m tilework.testing {line}") from failure
