"""Checks of where things are read from and written to: layouts, guard pages, ``out``, prepared operands."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.errors import Error
from tilework.registry import Sample
from tilework.testing.cases import (
    AnyOp,
    Array,
    Attrs,
    Case,
    arrays_in,
    copied,
    in_place,
    mapped,
    op_spec,
    plain,
    results_of,
)
from tilework.testing.compare import assert_same_bits, assert_same_results
from tilework.testing.layouts import dense_strides, gaps, guarded, layouts, placed
from tilework.testing.run import per_sample

# Layouts that an operand updated in place may refuse instead.
_NOT_FOR_UPDATE = ("read-only", "borrowed", "misaligned by a byte", "a field of packed records")


@per_sample
def check_strides(case: Case) -> None:
    """Strided, backward, shifted, misaligned, read-only and borrowed operands give the same bits; gaps stay as is."""
    op, made = case.op, case.build()
    args = plain(made.args)
    want = copied(results_of(op, copied(args), made.attrs))
    updated = in_place(op, args)
    for i, operand in enumerate(args):
        choices = [dict(layouts(a)) for a in arrays_in(operand)]
        for name in choices[0] if choices else ():
            if op.name == "reshape" and name == "transposed":
                continue  # not a view, hence an error
            chosen = iter([c[name] for c in choices])
            varied = list(copied(args))
            varied[i] = mapped(lambda _, chosen=chosen: next(chosen), operand)  # type: ignore[misc]
            before = [gaps(a) for a in arrays_in(varied[i])]
            try:
                got = results_of(op, varied, made.attrs)
                if updated:
                    own = (getattr(varied[k], "array", varied[k]) for k in updated)
                    got = (*got[: len(want) - len(updated)], *own)
            except Error:
                if i in updated and name in _NOT_FOR_UPDATE:
                    continue
                raise
            assert_same_results(op, args, made.attrs, got, want, f"{op.operands[i]} {name}")
            after = [gaps(a) for a in arrays_in(varied[i])]
            assert before == after, f"{op.operands[i]} {name}: bytes between its elements were written"


@per_sample
def check_guard_pages(case: Case) -> None:
    """No byte before or behind an operand or a result is touched: the neighbours are pages that cannot be."""
    op = case.op
    for at_end in (False, True):
        for step in (1, 2):
            made = case.build()
            args = [mapped(lambda a, e=at_end, s=step: guarded(a, at_end=e, step=s), v) for v in made.args]  # type: ignore[misc]
            got = results_of(op, args, made.attrs)
            if op.is_view or in_place(op, args):
                continue
            outs = tuple(guarded(np.zeros_like(g), at_end=at_end, step=step) for g in got)
            op(*args, **made.attrs, out=outs if len(outs) > 1 else outs[0])
            assert_same_results(op, args, made.attrs, outs, got, "out between guard pages")


@per_sample
def check_inputs_unchanged(case: Case) -> None:
    """A call writes to no operand but those it updates in place."""
    op, made = case.op, case.build()
    before = copied(made.args)
    results_of(op, made.args, made.attrs)
    updated = in_place(op, made.args)
    for i, (old, new) in enumerate(zip(before, made.args, strict=True)):
        if i not in updated:
            assert_same_bits(new, old, f"{op.operands[i]} after the call")


# ---------------------------------------------------------------------------------------------------------- out


@per_sample
def check_out(case: Case) -> None:
    """Results go to ``out`` in any layout and nowhere else; an ``out`` that does not fit is refused untouched."""
    op, made = case.op, case.build()
    if in_place(op, made.args):
        return
    want = results_of(op, made.args, made.attrs)
    for name, first in layouts(np.zeros_like(want[0])):
        if not isinstance(first, np.ndarray) or not (first.flags.writeable and first.flags.aligned):
            continue
        outs = tuple(dict(layouts(np.zeros_like(w)))[name] for w in want)
        if not all(o.flags.aligned for o in outs):
            continue
        before = [gaps(o) for o in outs]
        returned = results_of(op, made.args, made.attrs, out=outs if len(outs) > 1 else outs[0])
        assert [id(r) for r in returned] == [id(o) for o in outs], f"out {name}: something else is returned"
        assert_same_results(op, made.args, made.attrs, outs, want, f"out {name}")
        assert before == [gaps(o) for o in outs], f"out {name}: bytes between its elements were written"
    _check_misfits(op, made, want)
    if len(want) == 1 and want[0].size > 1:
        for i in range(len(made.args)):
            _check_aliases(op, made, want[0], i)


def _assert_refused(op: AnyOp, args: Sequence[Any], attrs: Attrs, out: Any, why: str) -> None:
    """Asserts that ``out`` is refused with an error that blames it, before anything is written."""
    touched = [a.base if isinstance(a.base, np.ndarray) else a for a in (*arrays_in(out), *arrays_in(args))]
    before = [a.tobytes() for a in touched]
    try:
        op(*args, **attrs, out=out)
    except Error as error:
        blamed = error.argument
    else:
        raise AssertionError(f"out is {why}, and was accepted")
    assert blamed.startswith("out"), f"out is {why}, but the error blames {blamed!r}"
    assert before == [a.tobytes() for a in touched], f"out is {why}, and was written before it was refused"


def _check_misfits(op: AnyOp, made: Sample, want: Sequence[Array]) -> None:
    first, rest = want[0], [np.zeros_like(w) for w in want[1:]]
    frozen = np.zeros_like(first)
    frozen.flags.writeable = False
    other = np.float64 if first.dtype == np.float32 else np.float32
    misfits: list[tuple[str, Any]] = [
        ("one axis too deep", np.zeros((1, *first.shape), first.dtype)),
        ("too long", np.zeros((*first.shape[:-1], first.shape[-1] + 1) if first.ndim else (2,), first.dtype)),
        ("of another dtype", np.zeros(first.shape, other)),
        ("read-only", frozen),
        ("a list", [0.0]),
    ]
    if first.size > 1:
        one = np.ndarray(first.shape, first.dtype, np.zeros(first.itemsize, np.uint8), 0, (0,) * first.ndim)
        misfits.append(("one address for all elements", one))
    if first.itemsize > 1 and first.size:
        misfits.append(("misaligned", placed(first, dense_strides(first), 1, first.nbytes + first.itemsize)))
    for why, out in misfits:
        _assert_refused(op, made.args, made.attrs, (out, *rest) if rest else out, why)
    _assert_refused(op, made.args, made.attrs, (first, *rest, np.zeros_like(first)), "one array too many")


def _check_aliases(op: AnyOp, made: Sample, want: Array, i: int) -> None:
    """``out`` may be an operand only if the op is elementwise, and may never overlap one in part."""
    operand = made.args[i]
    if not isinstance(operand, np.ndarray) or operand.dtype != want.dtype or operand.size < 2:
        return
    name = op.operands[i]
    if operand.shape == want.shape:
        args = list(plain(made.args))
        spec = op_spec(op.name)
        if spec["elementwise"] or (spec["out_is_last"] and name == op.operands[-1]):
            op(*args, **made.attrs, out=args[i])
            assert_same_bits(args[i], want, f"out={name}")
        else:
            _assert_refused(op, args, made.attrs, args[i], name)
    for shift in (0, 1):
        room = np.zeros(max(operand.size, want.size) + 1, operand.dtype)
        args = list(copied(made.args))
        args[i] = room[shift : shift + operand.size].reshape(operand.shape)
        args[i][...] = operand
        out = room[1 - shift : 1 - shift + want.size].reshape(want.shape)
        _assert_refused(op, args, made.attrs, out, f"one element {'before' if shift else 'behind'} {name}")


@per_sample
def check_prepared(case: Case) -> None:
    """Operands bound beforehand give the bits of the plain call, also after pickling."""
    op, made = case.op, case.build()
    if in_place(op, made.args):
        return
    want = results_of(op, made.args, made.attrs)
    given = {n: a for n, a in zip(op.operands, made.args, strict=True) if a is not None}
    later = [[n for n in given if n != fixed] for fixed in list(given)[1:]] + [[op.operands[0]], list(given)]
    for free in later:
        fixed = {n: a for n, a in given.items() if n not in free}
        layer = op.prepare(**fixed, **made.attrs)
        # By position up to the first that is not given.
        ahead = list(itertools.takewhile(lambda n: n in given, (n for n in op.operands if n not in fixed)))
        args, named = [given[n] for n in ahead], {n: given[n] for n in free if n not in ahead}
        for what, ready in (("prepared", layer), ("pickled", pickle.loads(pickle.dumps(layer)))):
            got = ready(*args, **named)
            assert_same_bits(got if isinstance(got, tuple) else (got,), want, f"{what} with {sorted(fixed)}")
