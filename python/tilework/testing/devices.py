"""Check of the OpenCL backend against the reference, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilework import _core
from tilework.dtypes import is_floating
from tilework.registry import Sample
from tilework.testing.cases import Case, arrays_in, in_place, mapped
from tilework.testing.compare import assert_matches_reference, assert_near_gradient, assert_same_bits
from tilework.testing.fill import Fill
from tilework.testing.gradients import differentiable_operands, gradients_of
from tilework.testing.run import per_sample


def _called(case: Case, made: Sample) -> tuple[Any, list[Any]]:
    """Operands on the device, and what a call gave and updated there, as numpy arrays."""
    from tilework.backends.opencl import to_device, to_host

    there = mapped(to_device, made.args)
    returned: Any = case.op(*there, **made.attrs)
    updated = tuple(there[i] for i in in_place(case.op, made.args))
    got = (*(() if returned is None else returned if isinstance(returned, tuple) else (returned,)), *updated)
    return there, [to_host(g) for g in got]


@per_sample
def check_opencl(case: Case) -> None:
    """On an OpenCL device, results are within the bound of the reference and repeat, and gradients near the CPU's."""
    from tilework.backends.opencl import DTYPES, to_device, to_host
    from tilework.backends.opencl_device import default_device

    op, made = case.op, case.build()
    results, _ = _core.infer(op.name, list(made.args), made.attrs) if not op.is_view else ((), None)
    if not {d.name for d in (*(a.dtype for a in arrays_in(made.args)), *(d for _, d in results))} <= {*DTYPES}:
        return  # of a dtype that is the CPU's alone
    there, host = _called(case, made)
    _, again = _called(case, made)  # in other buffers, by the plan of the first call
    assert_same_bits(again, host, "a repeated call")
    narrow = "narrow_factors" in op.rules and default_device().multiplies_fragments
    assert_matches_reference(op, made.args, made.attrs, host, narrow_factors=narrow)
    targets = differentiable_operands(op, made.args)
    if "backward" not in op.rules or not is_floating(host[0].dtype) or not targets:
        return
    dy = Fill(host[0].dtype, 1)(*host[0].shape)
    ideal = gradients_of(op, dy, made.args, made.attrs)
    grads = gradients_of(op, to_device(dy), there, made.attrs)
    terms = max([dy.size, *(a.size for a in arrays_in(made.args))])
    for k in targets:
        mine = grads[k] if isinstance(grads[k], (list, tuple)) else [grads[k]]
        for g, w in zip(mine, arrays_in(ideal[k]), strict=True):
            assert_near_gradient(np.asarray(to_host(g)), w, terms, f"the gradient of {op.operands[k]}")
