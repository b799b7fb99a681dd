"""Checks of errors: the declared ones, and what hostile callers pass."""

from __future__ import annotations

import functools
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core
from tilework.dtypes import is_floating
from tilework.errors import AllocationError, Error
from tilework.registry import Sample
from tilework.testing.cases import (
    AnyOp,
    Array,
    Attrs,
    arrays_in,
    attribute_names,
    cases,
    copied,
    in_place,
    op_spec,
    results_of,
)
from tilework.testing.compare import assert_matches_reference
from tilework.testing.fill import Fill
from tilework.testing.layouts import Borrowed
from tilework.testing.run import per_op


@per_op
def check_errors(op: AnyOp, dtype: str) -> None:
    """Every declared error is raised, with its class and text, naming the op and an argument."""
    declared = list(op.rules["errors"](Fill(dtype)))
    assert declared, "no error is declared"
    wrong = []
    for i, case in enumerate(declared):
        raised = _raised(op, case.sample)
        if raised is None:
            wrong.append(f"error {i}: {case.text!r} was not raised")
        elif not isinstance(raised, case.error) or case.text not in str(raised):
            wrong.append(
                f"error {i}: {type(raised).__name__}({str(raised)!r}); want {case.error.__name__}, {case.text!r}"
            )
        else:
            wrong += _faults(op, raised, f"error {i}")
    assert not wrong, "\n".join(wrong)


# Errors about the call or its result rather than about one argument.
_BLAMES_NOTHING = re.compile(r"\w+: (unknown argument|\d+ positional|the result )")


def _raised(op: AnyOp, made: Sample) -> Exception | None:
    try:
        op(*made.args, **made.attrs)
    except Exception as error:
        return error
    return None


def _faults(op: AnyOp, error: BaseException, what: str) -> list[str]:
    """What an error lacks of ``<op>: <what is wrong>; <what would be right>``, blaming an argument of the op."""
    text = str(error)
    if not isinstance(error, Error):
        return [f"{what}: {type(error).__name__}({text!r}) is not a tilework.Error"]
    faults = []
    if error.op != op.name or not text.startswith(f"{op.name}: "):
        faults.append(f"{what}: .op is {error.op!r}, the text is {text!r}; want both to name {op.name}")
    if "; " not in text:
        faults.append(f"{what}: the text {text!r} does not say what would be right")
    blamed = error.argument.partition("[")[0]
    about_none = isinstance(error, AllocationError) or _BLAMES_NOTHING.match(text)
    if blamed not in (*op.operands, *attribute_names(op), "out") and not (blamed == "" and about_none):
        faults.append(f"{what}: .argument is {error.argument!r}, no argument of {op.name}: {text!r}")
    return faults


# ------------------------------------------------------------------------------------------------ what is passed


class _RaisingProducer(Borrowed):
    def __dlpack__(self, **options: Any) -> Any:
        raise ValueError("this producer fails")


class _LyingProducer(Borrowed):
    def __dlpack__(self, **options: Any) -> Any:
        return "not a capsule"


class _ReenteringProducer(Borrowed):
    def __dlpack__(self, **options: Any) -> Any:
        from tilework import ops

        ops.add(np.ones(3), np.ones(3))
        return super().__dlpack__(**options)


class _Subclass(np.ndarray):  # type: ignore[type-arg]
    pass


def _not_arrays(a: Array) -> Iterator[tuple[str, Any]]:
    yield "None", None
    yield "a list", a.tolist() if a.ndim else [1.0]
    yield "a ragged list", [[1.0], [1.0, 2.0]]
    yield "text", "x"
    yield "bytes", b"x"
    yield "an object", object()
    yield "a numpy scalar", np.int32(1)
    yield "an array of objects", a.astype(object)
    yield "records", np.zeros(a.shape, [("r", a.dtype)])
    yield "dates", np.zeros(a.shape, "datetime64[s]")
    yield "strings", np.zeros(a.shape, "U4")
    for name, dtype in (("complex", np.complex128), ("long double", np.longdouble)):
        yield name, np.ones(a.shape, dtype)
    if a.itemsize > 1:
        yield "byte-swapped", a.astype(a.dtype.newbyteorder())
    yield "of 32 axes", np.ones((1,) * 32, a.dtype)
    yield "of 2^59 elements", np.broadcast_to(np.ones((), a.dtype), (1 << 29, 1 << 30))
    yield "a DLPack producer that raises", _RaisingProducer(a)
    yield "a DLPack producer that lies", _LyingProducer(a)


def _odd_arrays(a: Array) -> Iterator[tuple[str, Any]]:
    yield "a number", 1.5
    yield "without axes", np.ones((), a.dtype)
    for other in (bool, np.int8, np.uint8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64):
        yield f"of {np.dtype(other)}", np.ones(a.shape, other)
    yield "one axis deeper", a[None]
    yield "one axis deeper behind", a[..., None]
    yield "one axis flatter", a[0] if a.ndim > 1 else a.reshape(-1)[:1].reshape(())
    yield "empty along all axes", np.zeros((0,) * max(a.ndim, 1), a.dtype)
    for axis, n in enumerate(a.shape):
        yield f"empty along axis {axis}", a.take([], axis)
        yield f"longer along axis {axis}", np.concatenate([a, a], axis)
        yield f"2^31 long along axis {axis}", _stretched(a, axis, 1 << 31)
        yield f"repeated along axis {axis}", _stretched(a, axis, n)
    yield "rows that overlap", np.lib.stride_tricks.as_strided(a, a.shape, [min(s, a.itemsize) for s in a.strides])
    yield "a subclass", a.view(_Subclass)
    yield "a masked array", np.ma.masked_array(a, mask=np.zeros(a.shape, bool))  # type: ignore[no-untyped-call]
    yield "a DLPack producer that calls back", _ReenteringProducer(a)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        path.write_bytes(a.tobytes() or b"\0")
        yield "a read-only file", np.memmap(path, a.dtype, "r", shape=a.shape or (1,)).reshape(a.shape)


def _stretched(a: Array, axis: int, size: int) -> Array:
    one = a.take([0], axis)
    return np.broadcast_to(one, tuple(size if i == axis else n for i, n in enumerate(a.shape)))


def _odd_values() -> Iterator[Any]:
    """List P of the reliability notes: what may be passed for an attribute of any kind."""
    yield from (None, object(), "", "Relu", "nan", b"same", 1j, [], {}, (), True, False, 1.5, -0.5, 0, 1, -1, 2, 3, 99)
    yield from (np.int64(1), np.int8(-1), np.array(1), np.array([1, 1]), np.float32(1), np.float64(0.5), np.bool_(True))
    yield from (1 << 31, -(1 << 31), 1 << 62, -(1 << 63), 1 << 63, 1 << 64, 10**30)
    yield from ((1,), (1, 1), (1,) * 9, (1,) * 17, ((1, 1),), ((1, 1), (1, 1)), ((1,),), (1, (2,)), ((1, 2, 3),))
    yield from ((1.5, 1), (-1, 1), ((0, -1), (0, 0)), (1 << 62,) * 2, ((1 << 62,) * 2,) * 2, ("a", "b"))
    yield from (float("nan"), float("inf"), -float("inf"), 1e308, "same", "valid", "SAME", "none", "mean", "float32")


# ------------------------------------------------------------------------------------------------ how it is passed

_MOST_ELEMENTS = 1 << 22  # a legal call larger than this is not run


@functools.lru_cache(maxsize=4)
def _base(op: AnyOp, dtype: str) -> Sample:
    """The sample with the most operands and attributes among the small ones that have elements and axes."""

    def rank(made: Sample) -> tuple[int, ...]:
        arrays = arrays_in(made.args)
        whole = all(a.size > 1 and a.ndim for a in arrays) and sum(a.size for a in arrays) < 1 << 12
        dense = all(a.flags.c_contiguous for a in arrays)
        return int(whole), len(arrays), int(dense), len(made.attrs), sum(a.ndim for a in arrays)

    return max((c.build() for c in cases(op, dtype)), key=rank)


@per_op
def check_hostile(op: AnyOp, dtype: str) -> None:
    """Hostile arguments give a typed error before any write, or what the reference gives; within a second."""
    base = _base(op, dtype)
    faults = []
    for i, operand in enumerate(base.args):
        name = op.operands[i]
        optional = not op.is_view and op_spec(op.name)["operands"][i][1].startswith("optional")
        for j, a in enumerate(arrays_in(operand)):
            for must, passed in ((not op.is_view, _not_arrays(a)), (False, _odd_arrays(a))):
                for what, value in passed:
                    args = list(copied(base.args))
                    args[i] = value if isinstance(operand, np.ndarray) else [*operand[:j], value, *operand[j + 1 :]]
                    refused = must and not (value is None and optional)
                    faults += _attempt(op, dtype, args, base.attrs, f"{name} is {what}", refused)
    for name in attribute_names(op):
        for value in _odd_values():
            attrs = {**base.attrs, name: value}
            faults += _attempt(op, dtype, copied(base.args), attrs, f"{name}={value!r:.60}", False)
    faults += _malformed_calls(op, base)
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults[:25])


@per_op
def check_hostile_gradients(op: AnyOp, dtype: str) -> None:
    """A dy that is not the gradient of a result, and a ``wanted`` that names no operand, give a typed error."""
    base = _base(op, dtype)
    y = results_of(op, copied(base.args), base.attrs)[0]
    dy = np.ones_like(y)
    passed = [
        *_not_arrays(dy),
        *((what, value) for what, value in _odd_arrays(dy) if isinstance(value, np.ndarray) and not _fits(value, dy)),
        ("a number", 1.0),
        ("too long", np.ones((*y.shape[:-1], y.shape[-1] + 1), y.dtype)),
    ]
    faults = []
    for what, value in passed:
        faults += _gradient_faults(op, value, base, f"dy is {what}")
    for wanted in (("nonsense",), op.operands[0], 3, (None,)):
        faults += _gradient_faults(op, dy, base, f"wanted={wanted!r}", wanted=wanted)
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults[:25])


def _fits(value: Array, dy: Array) -> bool:
    return value.shape == dy.shape and value.dtype == dy.dtype


def _gradient_faults(op: AnyOp, dy: Any, base: Sample, what: str, **options: Any) -> list[str]:
    try:
        op.backward(dy, *copied(base.args), **base.attrs, **options)
    except Error as error:
        return [] if error.op == op.name else [f"{what}: the error names {error.op!r}: {error}"]
    except Exception as error:
        return [f"{what}: {type(error).__name__}({str(error)!r}) is not a tilework.Error"]
    return [f"{what}: was accepted"]


def _malformed_calls(op: AnyOp, base: Sample) -> list[str]:
    faults = []
    calls: list[tuple[str, Sequence[Any], Attrs]] = [
        ("an unknown keyword", base.args, {**base.attrs, "nonsense": 1}),
        ("surplus operands", (*base.args, *base.args, *base.args), base.attrs),
        ("no operand", (), base.attrs),
        ("an operand given twice", base.args, {**base.attrs, op.operands[0]: base.args[0]}),
    ]
    for what, args, attrs in calls:
        try:
            op(*copied(args), **attrs)
        except TypeError as error:
            if not op.is_view and not (isinstance(error, Error) and str(error).startswith(f"{op.name}: ")):
                faults.append(f"{what}: {error!r} is not a tilework.Error that names the op")
        except Exception as error:
            faults.append(f"{what}: {error!r} is not a TypeError")
        else:
            faults.append(f"{what} was accepted")
    return faults


def _attempt(op: AnyOp, dtype: str, args: Sequence[Any], attrs: Attrs, what: str, must: bool) -> list[str]:
    """The faults of one hostile call, without and with ``out``."""
    if _too_large(op, args, attrs):
        return []
    faults = []
    for outs in ((), _sentinels(op, dtype)):
        watched = [a for a in (*arrays_in(list(args)), *outs) if a.dtype != object and a.size < 1 << 20]
        before = [a.tobytes() for a in watched]
        given = {"out": outs if len(outs) > 1 else outs[0]} if outs else {}
        begin = time.perf_counter()
        got: Any = None
        raised: Exception | None = None
        try:
            got = op(*args, **attrs, **given)
        except Exception as error:
            raised = error
        elapsed = time.perf_counter() - begin
        if elapsed > 1:
            faults.append(f"{what}: took {elapsed:.1f} s")
        if raised is not None:
            faults += _faults(op, raised, what)
            if before != [a.tobytes() for a in watched]:
                faults.append(f"{what}: something was written before the error {raised}")
        elif must:
            faults.append(f"{what}: was accepted")
        elif got is not None and not outs and not in_place(op, args) and all(_is_plain(a) for a in _flat(args)):
            faults += _undefined(op, args, attrs, got, what)
    return faults


def _flat(args: Sequence[Any]) -> list[Any]:
    return [v for a in args for v in (a if isinstance(a, (list, tuple)) else [a])]


def _is_plain(value: Any) -> bool:
    """Whether the reference can read an operand."""
    if isinstance(value, Borrowed):
        return False
    dtype = np.asarray(value).dtype
    return dtype.kind in "iub" or is_floating(dtype)


def _undefined(op: AnyOp, args: Sequence[Any], attrs: Attrs, got: Any, what: str) -> list[str]:
    """What was accepted must be what the reference makes of it."""
    try:
        assert_matches_reference(op, args, attrs, got if isinstance(got, tuple) else (got,))
    except np.linalg.LinAlgError:
        return []  # whether a pivot of a singular matrix comes out as 0 is a matter of rounding
    except Exception as failure:
        return [f"{what}: was accepted, but {type(failure).__name__}: {failure}"]
    return []


def _too_large(op: AnyOp, args: Sequence[Any], attrs: Attrs) -> bool:
    if op.is_view:
        return any(a.size > _MOST_ELEMENTS for a in arrays_in(list(args)))
    try:
        specs = _core.infer(op.name, list(args), attrs)[0]
    except Exception:
        return False  # a refusal, which the call must repeat
    shapes = [shape for shape, _ in specs] + [a.shape for a in arrays_in(list(args))]
    return any(math.prod(s) > _MOST_ELEMENTS for s in shapes)


def _sentinels(op: AnyOp, dtype: str) -> tuple[Array, ...]:
    """Result arrays of the base sample, filled so that a write shows."""
    if op.is_view:
        return ()
    base = _base(op, dtype)
    return tuple(np.full(shape, 77, d) for shape, d in _core.infer(op.name, list(base.args), base.attrs)[0])
