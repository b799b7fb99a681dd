"""What the C++ call path checks on numpy memory, for device arrays: where results go, and which memory is shared."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tilework import _core
from tilework.dispatch import is_device_array
from tilework.errors import AttrTypeError, DTypeError, ShapeError

if TYPE_CHECKING:
    from tilework.registry import Op


@functools.cache
def _table(op: str) -> tuple[dict[str, str], bool, bool]:
    """Roles of the operands, whether the op is elementwise, and whether it updates operands in place."""
    spec = _core.op_spec(op)
    roles = dict(spec["operands"])
    return roles, bool(spec["elementwise"]), any(role.endswith("inout") for role in roles.values())


def check_written(
    op: Op[..., Any], operands: Sequence[Any], outs: Sequence[Any], specs: Sequence[tuple[Any, Any]]
) -> None:
    """Raises unless every array that a call writes has the right form and memory of its own."""
    roles, elementwise, in_place = _table(op.name)
    if not (outs or in_place):
        return
    if outs and len(outs) != len(specs):
        raise AttrTypeError(f"{op.name}: out has {len(outs)} arrays; want {len(specs)}", op=op.name, argument="out")
    given = list(_named(op, operands))
    for i, (out, (shape, dtype)) in enumerate(zip(outs, specs, strict=bool(outs))):
        _check_form(op.name, out, tuple(shape), dtype)
        for name, operand in given:
            if _overlap(out, operand) and not (elementwise and _same_elements(out, operand)):
                exact = ", or exactly the same one" if elementwise else ""
                raise ShapeError(
                    f"{op.name}: out shares memory with {name}; want separate arrays{exact}", op=op.name, argument="out"
                )
        if any(_overlap(out, other) for other in outs[:i]):
            raise ShapeError(
                f"{op.name}: two arrays of out share memory; want separate arrays", op=op.name, argument="out"
            )
    for name, operand in given:
        if not roles.get(name, "").endswith("inout"):
            continue
        if _overlaps_itself(operand):
            raise ShapeError(
                f"{op.name}: elements of {name} share memory; want one address per element", op=op.name, argument=name
            )
        for other, array in given:
            if other != name and _overlap(operand, array):
                raise ShapeError(
                    f"{op.name}: {name} shares memory with {other}; want separate arrays", op=op.name, argument=name
                )


def _check_form(op: str, out: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if tuple(out.shape) != shape:
        raise ShapeError(f"{op}: out has shape {tuple(out.shape)}; want {shape}", op=op, argument="out")
    if out.dtype != dtype:
        raise DTypeError(f"{op}: out has dtype {out.dtype}; want {dtype}", op=op, argument="out")
    if _overlaps_itself(out):
        raise ShapeError(
            f"{op}: elements of out share memory (strides overlap); want one address per element",
            op=op,
            argument="out",
        )


def _named(op: Op[..., Any], operands: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for name, operand in zip(op.operands, operands, strict=True):
        items = operand if isinstance(operand, (list, tuple)) else (operand,)
        yield from ((name, item) for item in items if is_device_array(item))


def _extent(array: Any) -> tuple[int, int]:
    """First byte and end of what an array touches in its buffer."""
    low = high = array.offset
    for stride, n in zip(array.strides, array.shape, strict=True):
        reach = stride * (n - 1)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.dtype.itemsize


def _overlap(a: Any, b: Any) -> bool:
    if not (a.size and b.size) or a.base_data.int_ptr != b.base_data.int_ptr:
        return False
    low_a, high_a = _extent(a)
    low_b, high_b = _extent(b)
    return low_a < high_b and low_b < high_a


def _overlaps_itself(array: Any) -> bool:
    """Whether two elements may share memory: some stride is 0 or walks into another axis."""
    reach = 0
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride <= reach:
            return bool(array.size)
        reach += (n - 1) * stride
    return False


def _same_elements(a: Any, b: Any) -> bool:
    return bool(
        a.offset == b.offset
        and a.dtype == b.dtype
        and a.shape == b.shape
        and all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))
    )
