"""What samples are filled with, and the checks that are derived from an op's rules.

A check takes a :class:`Case` (one sample of one op in one dtype), or an op and a dtype. It raises an AssertionError
that names the worst element, both values and their distance in ULP; :func:`run_check` adds the line that repeats it::

    python -m tilework.testing reference conv 5 float32     # one sample
    python -m tilework.testing strides conv                 # all of them, in every dtype of the op

A new op is checked by all of them unasked, and so is the op of a plug-in: ``run_check(name, op, dtype)`` for every
name in :data:`CHECKS` that :func:`applies`.
"""

from tilework.testing.cases import Case, cases, expected, results_of
from tilework.testing.compare import assert_close, assert_matches_reference, assert_same_bits, bounds
from tilework.testing.devices import check_opencl
from tilework.testing.fill import Fill, Zeros, workload_operands
from tilework.testing.gradients import check_gradient
from tilework.testing.memory import (
    check_guard_pages,
    check_inputs_unchanged,
    check_out,
    check_prepared,
    check_strides,
)
from tilework.testing.process import check_float_environment, check_fork, check_threads
from tilework.testing.refusals import check_errors, check_hostile, check_hostile_gradients
from tilework.testing.run import OP_CHECKS, SAMPLE_CHECKS, applies, dtypes_for, run_check
from tilework.testing.values import (
    check_empty,
    check_exact,
    check_nonfinite,
    check_reference,
    check_shape_rule,
    check_tiers,
    check_workloads,
)

CHECKS = (*SAMPLE_CHECKS, *OP_CHECKS)

# Checks under which a wrong op may end or hang the process: run them in one of their own.
RISKY = ("guard_pages", "hostile", "hostile_gradients", "opencl")

__all__ = [
    "CHECKS",
    "RISKY",
    "Case",
    "Fill",
    "Zeros",
    "applies",
    "assert_close",
    "assert_matches_reference",
    "assert_same_bits",
    "bounds",
    "cases",
    "check_empty",
    "check_errors",
    "check_exact",
    "check_float_environment",
    "check_fork",
    "check_gradient",
    "check_guard_pages",
    "check_hostile",
    "check_hostile_gradients",
    "check_inputs_unchanged",
    "check_nonfinite",
    "check_opencl",
    "check_out",
    "check_prepared",
    "check_reference",
    "check_shape_rule",
    "check_strides",
    "check_threads",
    "check_tiers",
    "check_workloads",
    "dtypes_for",
    "expected",
    "results_of",
    "run_check",
    "workload_operands",
]
