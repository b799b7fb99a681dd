"""One sample of one op in one dtype, how to call it, and what the reference says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tilework import _core
from tilework.backends.reference import run_wide, widen
from tilework.dispatch import bind_operands
from tilework.dtypes import is_floating
from tilework.registry import Op, Sample, ops, resolve
from tilework.testing.fill import Fill

Array = npt.NDArray[Any]
AnyOp: TypeAlias = Op[..., Any]
Attrs: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One sample of one op in one dtype; every ``build`` gives new arrays."""

    op: AnyOp
    sample: int
    dtype: str

    def build(self, *, exact: bool = False) -> Sample:
        """The sample with one argument per operand, None where not given."""
        made = _samples(self.op.name, self.dtype, exact)[self.sample]
        return Sample(copied(bind_operands(self.op, made.args, {})), dict(made.attrs))


@functools.lru_cache(maxsize=256)
def _samples(name: str, dtype: str, exact: bool) -> list[Sample]:
    return list(ops()[name].rules["samples"](Fill(dtype, exact=exact)))


def cases(op: AnyOp, dtype: str) -> list[Case]:
    """Every sample of ``op`` in ``dtype``."""
    return [Case(op, i, dtype) for i in range(len(_samples(op.name, dtype, False)))]


# ------------------------------------------------------------------------------------------ structures of arrays


def mapped(function: Callable[[Array], Any], value: Any) -> Any:
    """``function`` applied to the arrays in a structure of operands."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, v) for v in value)
    return function(value) if isinstance(value, np.ndarray) else value


def copied(value: Any) -> Any:
    """Copies of the arrays in a structure, transposed ones transposed."""
    return mapped(lambda a: a.copy(order="K"), value)


def plain(value: Any) -> Any:
    """Contiguous copies of the arrays in a structure."""
    return mapped(lambda a: a.copy(order="C"), value)


def arrays_in(value: Any) -> list[Array]:
    """The arrays in a structure of operands, in order."""
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in arrays_in(v)]
    return [value] if isinstance(value, np.ndarray) else []


def all_float(value: Any) -> bool:
    """Whether a structure holds arrays, all of them floating."""
    return bool(arrays_in(value)) and all(is_floating(a.dtype) for a in arrays_in(value))


# ------------------------------------------------------------------------------------------------------ calling


def is_variadic(op: AnyOp) -> bool:
    """Whether the operand of ``op`` is a list of arrays."""
    return bool(getattr(op, "is_variadic", False))


@functools.lru_cache(maxsize=256)
def op_spec(name: str) -> dict[str, Any]:
    """The C++ table of an op."""
    return dict(_core.op_spec(name))


def attribute_names(op: AnyOp) -> list[str]:
    """The names of the attributes in an op's signature."""
    return [n for n in inspect.signature(op).parameters if n not in op.operands and n != "out"]


def in_place(op: AnyOp, args: Sequence[Any]) -> list[int]:
    """Positions of the given operands that a call updates."""
    if op.is_view:
        return []
    roles = [role for _, role in op_spec(op.name)["operands"]]
    return [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and roles[i].endswith("inout")]


def results_of(op: AnyOp, args: Sequence[Any], attrs: Attrs, **out: Any) -> tuple[Array, ...]:
    """The results of a call, then the operands that it updated."""
    result: Any = op(*args, **attrs, **out)
    return (*_as_tuple(result), *(args[i] for i in in_place(op, args)))


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return () if result is None else result if isinstance(result, tuple) else (result,)


def expected(op: AnyOp, args: Sequence[Any], attrs: Attrs) -> tuple[tuple[Array, ...], list[Any]]:
    """The float64 results of the reference before rounding, and the dtypes of the results."""
    if op.is_view:
        wide = op.rules["reference"](*(widen(a) for a in args), **resolve(op, tuple(args), attrs))
        return (np.asarray(wide),), [args[0].dtype]
    results, dtypes = run_wide(op, tuple(args), attrs)
    return tuple(np.asarray(r) for r in results), [*dtypes, *(args[i].dtype for i in in_place(op, args))]
