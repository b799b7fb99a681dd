"""Check of backward rules: finite differences of the reference, and float32 against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.dtypes import is_floating
from tilework.registry import Sample, sloped_result
from tilework.testing.cases import (
    AnyOp,
    Array,
    Attrs,
    Case,
    all_float,
    arrays_in,
    copied,
    expected,
    in_place,
    mapped,
    results_of,
)
from tilework.testing.compare import assert_matches_reference, assert_near_gradient, assert_same_bits
from tilework.testing.fill import Fill
from tilework.testing.run import per_sample


def gradients_of(op: AnyOp, dy: Any, args: Sequence[Any], attrs: Attrs, **options: Any) -> tuple[Any, ...]:
    """The gradients of a call, one per operand."""
    grads = op.backward(dy, *args, **attrs, **options)
    return (grads,) if len(op.operands) == 1 else tuple(grads)


def differentiable_operands(op: AnyOp, args: Sequence[Any]) -> list[int]:
    """Positions of the given operands that have a gradient."""
    return [k for k, n in enumerate(op.operands) if n in op.differentiable and all_float(args[k])]


def _never(**attrs: Any) -> bool:
    return False


@per_sample
def check_gradient(case: Case) -> None:
    """In float64 the backward rule is the slope of the reference; in other types it is near its float64 self.

    Also: ``saved`` changes no bit, and ``wanted`` computes the same gradients and no others.
    """
    op, made = case.op, case.build()
    y = results_of(op, copied(made.args), made.attrs)[sloped_result(op)]
    targets = differentiable_operands(op, made.args)
    if not is_floating(y.dtype) or not targets:
        return
    dy = Fill(y.dtype, 1)(*y.shape)
    grads = gradients_of(op, dy, made.args, made.attrs)
    for k, g in enumerate(grads):
        if k in targets:
            shapes = [[(a.shape, a.dtype) for a in arrays_in(v)] for v in (g, made.args[k])]
            assert shapes[0] == shapes[1], f"the gradient of {op.operands[k]} is {shapes[0]}; want {shapes[1]}"
        else:
            assert g is None, f"{op.operands[k]} has no gradient, but one was returned"
    _check_saved_and_wanted(op, made, dy, grads, targets)
    if op.rules.get("staircase", _never)(**made.attrs):  # gradients pass straight through its steps
        return
    if case.dtype == "float64":
        for k in targets:
            if all(a.dtype == np.float64 for a in (y, *arrays_in(made.args[k]))):  # else a staircase
                _check_slope(op, made, dy, k, grads[k])
        return
    wide = mapped(lambda a: a.astype(np.float64) if is_floating(a.dtype) else a, made.args)
    wide_dy = dy.astype(results_of(op, wide, made.attrs)[sloped_result(op)].dtype)
    ideal = gradients_of(op, wide_dy, wide, made.attrs)
    terms = max([dy.size, *(a.size for a in arrays_in(made.args))])
    for k in targets:
        for g, w in zip(arrays_in(grads[k]), arrays_in(ideal[k]), strict=True):
            assert_near_gradient(g, w, terms, f"the {case.dtype} gradient of {op.operands[k]}")


def _check_saved_and_wanted(op: AnyOp, made: Sample, dy: Array, grads: Sequence[Any], targets: Sequence[int]) -> None:
    args = copied(made.args)
    result, saved = op.forward(*args, **made.attrs)
    updated = (args[i] for i in in_place(op, args))
    got = (*(result if isinstance(result, tuple) else (result,)), *updated)
    assert_matches_reference(op, made.args, made.attrs, got)
    from_saved = gradients_of(op, dy, made.args, made.attrs, saved=saved)
    assert_same_bits(from_saved, grads, "gradients from what forward saved")
    for k in targets:
        alone = gradients_of(op, dy, made.args, made.attrs, wanted=(op.operands[k],))
        assert_same_bits(alone[k], grads[k], f"the gradient of {op.operands[k]} alone")
        others = [op.operands[i] for i, g in enumerate(alone) if i != k and g is not None]
        assert not others, f"wanted=({op.operands[k]!r},) also gave {others}"


def _check_slope(op: AnyOp, made: Sample, dy: Array, k: int, grad: Any) -> None:
    """Compares sum(grad u) with the slope of sum(dy reference) along a random direction u of operand k."""
    fill = Fill(np.float64, 2)
    direction = mapped(lambda a: fill(*a.shape), made.args[k])
    step = 1e-6

    def loss(by: float) -> float:
        along = iter(arrays_in(direction))
        args = list(made.args)
        args[k] = mapped(lambda a: a + by * next(along), args[k])
        return float(np.sum(dy * expected(op, args, made.attrs)[0][sloped_result(op)]))

    behind, middle, ahead = loss(-step), loss(0.0), loss(step)
    products = [g * u for g, u in zip(arrays_in(grad), arrays_in(direction), strict=True)]
    slope = float(sum(np.sum(p) for p in products))
    size = float(sum(np.sum(np.abs(p)) for p in products))
    kink = abs(ahead - 2 * middle + behind) > 1e-3 * step * (size + 1e-3)
    if kink or not np.isfinite(middle):
        return
    found, allowed = (ahead - behind) / (2 * step), 1e-6 * size + 1e-8 * (1 + abs(middle))
    assert abs(found - slope) <= allowed, (
        f"the slope in {op.operands[k]} is {found:.12g} by finite differences but {slope:.12g} by backward; "
        f"{abs(found - slope):.3g} apart, allowed {allowed:.3g}"
    )
