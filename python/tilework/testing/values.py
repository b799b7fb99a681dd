"""Checks of what is computed: against the reference, on every tier, on integers, on nothing, on NaN and infinities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from tilework import _core
from tilework.dtypes import is_floating, rounded
from tilework.testing.cases import (
    AnyOp,
    Array,
    Case,
    arrays_in,
    cases,
    copied,
    expected,
    in_place,
    mapped,
    results_of,
)
from tilework.testing.compare import assert_close, assert_matches_reference, assert_same_bits
from tilework.testing.fill import Zeros, workload_operands, workload_shapes
from tilework.testing.gradients import check_gradient
from tilework.testing.run import applies, per_op, per_sample


@per_sample
def check_reference(case: Case) -> None:
    """Results are those of the float64 reference, within the op's bound."""
    op, made = case.op, case.build()
    operands = copied(made.args)
    assert_matches_reference(op, operands, made.attrs, results_of(op, made.args, made.attrs))
    if op.is_view or in_place(op, operands):
        return
    public = op.reference(*operands, **made.attrs)
    wide, dtypes = expected(op, operands, made.attrs)
    with np.errstate(all="ignore"):
        narrowed = [rounded(w, d) for w, d in zip(wide, dtypes, strict=True)]
    assert_same_bits(public if isinstance(public, tuple) else (public,), narrowed, "op.reference")


@per_sample
def check_exact(case: Case) -> None:
    """On small integers a linear op hits its reference to the last bit, unless it divides them into thirds."""
    made = case.build(exact=True)
    if made.attrs.get("activation") not in (None, "relu", "relu6"):
        return
    operands = copied(made.args)
    wide, dtypes = expected(case.op, operands, made.attrs)
    if any(np.any(w * 1024 != np.rint(w * 1024)) for w in wide):
        return
    for got, w, d in zip(results_of(case.op, made.args, made.attrs), wide, dtypes, strict=True):
        assert_close(got, w, 0.0, d, "the result on integers")


@contextlib.contextmanager
def _tier(name: str) -> Iterator[None]:
    former = _core.isa()
    _core.set_isa(name)
    try:
        yield
    finally:
        _core.set_isa(former)


@per_sample
def check_tiers(case: Case) -> None:
    """Every tier that this CPU runs is within the bound of the reference, and exact on integers."""
    for tier in (name for name, runs in _core.tiers() if runs):
        with _tier(tier):
            try:
                made = case.build()
                operands = copied(made.args)
                assert_matches_reference(case.op, operands, made.attrs, results_of(case.op, made.args, made.attrs))
                if applies("exact", case.op):
                    check_exact(case)
            except AssertionError as failure:
                raise AssertionError(f"tier {tier}: {failure}") from failure


@per_sample
def check_shape_rule(case: Case) -> None:
    """The shape rule needs no data, tells what results are, and leaves resolved attributes as they are."""
    op, made = case.op, case.build()
    specs, resolved = _core.infer(op.name, list(made.args), made.attrs)
    blind = mapped(lambda a: (a.shape, a.dtype), list(made.args))
    assert _core.infer(op.name, blind, made.attrs) == (specs, resolved), "infer without data differs"
    again = _core.infer(op.name, list(made.args), resolved)
    assert again == (specs, resolved), f"resolved attributes change when resolved again: {resolved}, {again[1]}"
    result = op(*made.args, **made.attrs)
    results = () if result is None else result if isinstance(result, tuple) else (result,)
    found = [(r.shape, r.dtype) for r in results]
    assert found == specs, f"the results are {found}; the shape rule says {specs}"
    assert all(r.flags.c_contiguous and r.flags.writeable for r in results), "a result is not contiguous and writeable"


@per_op
def check_empty(op: AnyOp, dtype: str) -> None:
    """The op has a sample without elements, and computes it and its gradients without complaint."""
    empty = [c for c in cases(op, dtype) if any(a.size == 0 for a in arrays_in(c.build().args))]
    assert empty, "no sample has an operand without elements"
    for case in empty:
        check_reference(case)
        if applies("gradient", op):
            check_gradient(case)


_MOST_PLACES = 40


@per_sample
def check_nonfinite(case: Case) -> None:
    """A NaN or an infinity anywhere makes NaN and infinities exactly where the reference has them."""
    op, made = case.op, case.build()
    places = [
        (i, j, at)
        for i, operand in enumerate(made.args)
        for j, a in enumerate(arrays_in(operand))
        if is_floating(a.dtype)
        for at in range(a.size)
    ]
    if len(places) > 8 * _MOST_PLACES:
        return
    for value in (np.nan, np.inf, -np.inf):
        for i, j, at in places[:: max(1, -(-len(places) // _MOST_PLACES))]:
            args = copied(made.args)
            arrays_in(args[i])[j].flat[at] = value
            wide, dtypes = expected(op, copied(args), made.attrs)
            for got, w, dtype in zip(results_of(op, args, made.attrs), wide, dtypes, strict=True):
                with np.errstate(all="ignore"):
                    want = rounded(w, dtype)
                # Where terms cancel, infinite ones may or may not meet: inf - inf is as right as inf.
                loosely = bool(np.isinf(value)) and not {"scale", "terms", "reorders"}.isdisjoint(op.rules)
                if op.operands[i] in op.rules.get("spreading", ()):
                    want = np.where(np.isfinite(got), want, got)
                _assert_same_kinds(got, want, loosely, f"with {value} at {at} of {op.operands[i]}")


def _assert_same_kinds(got: Array, want: Array, loosely: bool, what: str) -> None:
    """Asserts that NaN, +inf and -inf are at the same places, or any of them if ``loosely``; integers are equal."""
    if not is_floating(got.dtype):
        assert_close(got, want, 0.0, want.dtype, what)
        return
    mine, ideal = got.astype(np.float64), want.astype(np.float64)
    wrong = np.isfinite(mine) != np.isfinite(ideal)
    if not loosely:
        wrong |= (np.isnan(mine) != np.isnan(ideal)) | (np.isinf(ideal) & (mine != ideal))
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{what}: got {got[at]!r}, want {want[at]!r} at {at}, and {int(wrong.sum()) - 1} more")


@per_op
def check_workloads(op: AnyOp, dtype: str) -> None:
    """Every workload has a name of its own and fits the shape rule, and its operations can be counted."""
    workloads = list(op.rules["workloads"]())
    names = [w.name for w in workloads]
    assert len(set(names)) == len(names), f"two workloads share a name: {names}"
    for w in workloads:
        with np.errstate(all="ignore"):
            operands = workload_operands(op, w, Zeros(dtype))
        resolved = _core.infer(op.name, list(operands), w.attrs)[1]
        if "flops" in op.rules:
            assert op.rules["flops"](*workload_shapes(op, w), **resolved) > 0, f"{w.name}: no operations"
