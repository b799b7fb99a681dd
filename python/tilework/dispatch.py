"""Picks the backend from the arrays: numpy -> C++, pyopencl -> OpenCL, other CPU arrays are borrowed through DLPack.

Arrays that stand for others, those of a graph and those whose gradient is followed, record the call instead.

Compiled ops handle calls on numpy arrays alone without entering Python; every other call lands in :func:`call`.
Nothing is moved between devices here, ever.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import _core
from tilework.errors import AttrError, AttrTypeError, DTypeError

if TYPE_CHECKING:
    from tilework.registry import Op


# Of tapes and of bodies within graphs: what begins later has the higher level, and records first.
levels = itertools.count(1)


class Traced:
    """Stands for an array: a call that it is an operand of is handed to its ``record``.

    Of several in one call the one of the highest ``level`` records it, and sees the others as plain operands.
    """

    __slots__ = ()
    __array_ufunc__ = None  # numpy arrays on the left of an operator leave it to ours
    level: int
    shape: tuple[int, ...]
    dtype: Any

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the call ``op(*args, **kwargs)`` gives."""
        raise NotImplementedError


class Number:
    """Stands for a number that every run of a graph is given anew: the value of an attribute, 3 or 0.5."""

    __slots__ = ("label", "value")

    def __init__(self, value: float, label: str = "") -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DTypeError(f"number: value is a {type(value).__name__}; want an int or a float", op="number")
        self.value, self.label = _of_64_bits("number", value), label

    def checked(self, given: Any) -> float:
        """What a run gives for it: an int where the traced one is an int."""
        if isinstance(given, Number):
            given = given.value
        wanted = int if isinstance(self.value, int) else (int, float)
        if isinstance(given, bool) or not isinstance(given, wanted):
            kind = "an int" if isinstance(self.value, int) else "a number"
            raise DTypeError(f"{self.label}: is {given!r:.80}; want {kind} as traced", argument=self.label)
        return _of_64_bits(self.label, given)

    def __repr__(self) -> str:
        return self.label or f"number({self.value!r})"


def _of_64_bits(name: str, value: float) -> float:
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise AttrError(f"{name}: is an int of {value.bit_length()} bits; want one of 64", argument=name)
    return value


def settled(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes with the traced value of each :class:`Number`."""
    return {k: v.value if isinstance(v, Number) else v for k, v in attrs.items()}


def recorder(values: Iterable[Any]) -> Traced | None:
    """The array that records a call with these arguments, None if it is to be run."""
    found: Traced | None = None
    for value in values:
        if isinstance(value, Traced):
            if found is None or value.level > found.level:
                found = value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Traced) and (found is None or item.level > found.level):
                    found = item
    return found


def is_device_array(value: Any) -> bool:
    """Whether ``value`` is a pyopencl array; pyopencl is never imported to find out."""
    module = sys.modules.get("pyopencl.array")
    return module is not None and isinstance(value, module.Array)


def backend_of(op: str, name: str, value: Any) -> str:
    """``"cpu"`` or ``"opencl"``; ``""`` for what lives nowhere (None, Python numbers, arrays that stand for others)."""
    if value is None or isinstance(value, (bool, int, float, Traced)):
        return ""
    if isinstance(value, np.ndarray):
        return "cpu"
    if is_device_array(value):
        return "opencl"
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        return "cpu"
    raise DTypeError(
        f"{op}: {name} is a {type(value).__name__}; want a numpy.ndarray, a pyopencl array or an array with __dlpack__",
        op=op,
        argument=name,
    )


def borrow(op: str, name: str, value: Any) -> Any:
    """A numpy view of a foreign CPU array, without a copy; all that dispatch knows by itself passes through."""
    if value is None or isinstance(value, (np.ndarray, bool, int, float, Traced)) or is_device_array(value):
        return value
    return _core.from_dlpack(value, op, name)


def spelt(target: Op[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``(operands, attributes)`` of a call that is written in the op's own way, None of one that is not."""
    rule = target.rules.get("spelling")
    return rule(args, kwargs) if rule else None


def bind_operands(target: Op[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Operands by position, with those given by keyword moved out of ``kwargs`` and None where not given."""
    names = target.operands
    own_way = spelt(target, args, kwargs)
    if own_way is not None:
        args, attrs = own_way
        kwargs.update(attrs)
    if len(args) > len(names):
        raise AttrTypeError(
            f"{target.name}: {len(args)} positional arguments; want at most {len(names)} ({', '.join(names)})",
            op=target.name,
        )
    filled = list(args) + [None] * (len(names) - len(args))
    for i, name in enumerate(names):
        if name in kwargs:
            if i < len(args):
                raise AttrTypeError(f"{target.name}: {name} is given twice", op=target.name, argument=name)
            filled[i] = kwargs.pop(name)
    return tuple(filled)


def call(op: Op[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs ``op`` on whatever the C++ call path did not recognise."""
    known = None
    module = sys.modules.get("pyopencl.array")
    if module is not None:
        from tilework.backends import opencl_plans

        known = opencl_plans.described(op, args, kwargs, module.Array)
        if known is not None:
            repeated = known.repeat(op.name)
            if repeated is not opencl_plans.MISSING:
                return repeated
    traced = recorder((*args, *kwargs.values()))
    if traced is not None:
        return traced.record(op, args, kwargs)
    attrs = dict(kwargs)
    out = attrs.pop("out", None)
    operands = bind_operands(op, args, attrs)
    flat = list(_flatten(op, operands))
    outs = [("out", o) for o in (out if isinstance(out, tuple) else (out,)) if o is not None]
    where = {n: backend_of(op.name, n, v) for n, v in [*flat, *outs]}
    on_device = [n for n, b in where.items() if b == "opencl"]
    on_host = [n for n, b in where.items() if b == "cpu"]
    if on_device and on_host:
        device = next(v for n, v in [*flat, *outs] if n == on_device[0])
        raise DTypeError(
            f"{op.name}: {on_host[0]} is on the CPU but {on_device[0]} is on {_device_name(device)}; "
            f"move it with tilework.to_device({on_host[0]}, like={on_device[0]})",
            op=op.name,
            argument=on_host[0],
        )
    if on_device:
        from tilework.backends import opencl

        return opencl.run(op, operands, attrs, out, known)
    borrowed = [borrow_operand(op.name, n, v) for n, v in zip(op.operands, operands, strict=True)]
    if out is not None:
        attrs["out"] = (
            tuple(borrow(op.name, "out", o) for o in out) if isinstance(out, tuple) else borrow(op.name, "out", out)
        )
    return _core.call(op.name, borrowed, attrs)


def borrow_operand(op: str, name: str, value: Any) -> Any:
    """:func:`borrow`, also for the list operand of a variadic op."""
    if isinstance(value, (list, tuple)):
        return [borrow(op, f"{name}[{i}]", v) for i, v in enumerate(value)]
    return borrow(op, name, value)


def _flatten(op: Op[..., Any], operands: tuple[Any, ...]) -> Any:
    for name, value in zip(op.operands, operands, strict=True):
        if isinstance(value, (list, tuple)) and op.is_variadic:
            yield from ((f"{name}[{i}]", v) for i, v in enumerate(value))
        else:
            yield name, value


def _device_name(array: Any) -> str:
    return repr(array.context.devices[0].name.strip())
