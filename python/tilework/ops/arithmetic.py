"""Arithmetic on two arrays beyond + - * /: powers, remainders, the larger and the smaller, bits and shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import DTypeError, ShapeError
from tilework.ops.elementwise import sum_to_shape
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def pow(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Raises a to the power of b, floats or integers of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number. Integer powers wrap; a negative one is truncated to 0, 1 or -1.
    """
    ...


@op
def mod(a: Array | float, b: Array | float, *, truncated: bool = False, out: Array | None = None) -> Array:
    """Computes the remainder of a by b, floats or integers of shapes that broadcast as numpy's do, with the sign of b.

    With ``truncated`` it has the sign of a, as C's. Either operand may be a Python number. The remainder of an integer
    by 0 is 0.
    """
    ...


@op
def maximum(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Takes the larger of a and b, floats or integers of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number. NaN wins.
    """
    ...


@op
def minimum(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Takes the smaller of a and b, floats or integers of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number. NaN wins.
    """
    ...


@op
def bitwise_and(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Keeps the bits set in both a and b, integers of shapes that broadcast as numpy's do, element by element."""
    ...


@op
def bitwise_or(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Keeps the bits set in a or b, integers of shapes that broadcast as numpy's do, element by element."""
    ...


@op
def bitwise_xor(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Keeps the bits that differ in a and b, integers of shapes that broadcast as numpy's do, element by element."""
    ...


@op
def bitwise_not(x: Array, *, out: Array | None = None) -> Array:
    """Turns over every bit of the integers x, of any shape."""
    ...


@op
def shift_left(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Shifts the bits of a to the left by b places, integers of shapes that broadcast as numpy's do.

    A negative count, or one of all bits, gives 0.
    """
    ...


@op
def shift_right(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Shifts the bits of a to the right by b places, integers of shapes that broadcast as numpy's do.

    Signed numbers keep their sign. A negative count, or one of all bits, leaves nothing but it.
    """
    ...


def _power(a: Any, b: Any) -> Any:
    if a.dtype.kind not in "iu":
        return np.power(a, b)
    one = np.ones((), a.dtype)
    rest = np.where(b < 0, 0, b)
    y, power = np.broadcast_arrays(one, np.broadcast_arrays(a, b)[0])
    while rest.any():
        y, power, rest = np.where(rest & 1, y * power, y), power * power, rest >> 1
    small = np.where(a == 1, 1, np.where(a == one - 2 * one, np.where(b & 1, -1, 1), 0)) if a.dtype.kind == "i" else 0
    return np.where(b < 0, small, y).astype(a.dtype)


def _remainder(a: Any, b: Any, *, truncated: bool) -> Any:
    whole = a.dtype.kind in "iu"
    by = np.where(b == 0, 1, b) if whole else b
    y = np.fmod(a, by) if truncated else np.mod(a, by) if whole else _signed(np.fmod(a, b), b)
    return np.where(b == 0, 0, y).astype(a.dtype) if whole else y


def _signed(r: Any, b: Any) -> Any:
    return np.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


def _bits(dtype: np.dtype[Any]) -> int:
    return 8 * dtype.itemsize


def _left(a: Any, b: Any) -> Any:
    good = (b >= 0) & (b < _bits(a.dtype))
    return np.where(good, a << np.where(good, b, 0), 0).astype(a.dtype)


def _right(a: Any, b: Any) -> Any:
    good = (b >= 0) & (b < _bits(a.dtype))
    return np.where(good, a >> np.where(good, b, 0), np.where(a < 0, -1, 0)).astype(a.dtype)


reference(pow)(_power)
reference(mod)(_remainder)
reference(maximum)(np.maximum)
reference(minimum)(np.minimum)
reference(bitwise_and)(np.bitwise_and)
reference(bitwise_or)(np.bitwise_or)
reference(bitwise_xor)(np.bitwise_xor)
reference(bitwise_not)(np.invert)
reference(shift_left)(_left)
reference(shift_right)(_right)


def _sum_to(dy: Array, operand: Array | float) -> Array | None:
    return None if isinstance(operand, (int, float)) else sum_to_shape(dy, operand.shape)


@backward(pow, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    less = b - 1.0 if isinstance(b, (int, float)) else ops.sub(b, 1.0)
    da = _sum_to(ops.mul(dy, ops.mul(pow(a, less), b)), a) if "a" in wanted else None
    db = _sum_to(ops.mul(dy, ops.mul(pow(a, b), ops.log(a))), b) if "b" in wanted else None
    return da, db


@backward(mod, of=("a",))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted, truncated: bool) -> Any:
    return (_sum_to(dy, a),)


def _of_the_winner(better: Any) -> Callable[..., Any]:
    """The gradient goes to whom ``better`` says, to a where both are equal."""

    def run(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
        takes_a = ops.cast(better(a, b), dtype=dy.dtype)
        da = _sum_to(ops.mul(dy, takes_a), a) if "a" in wanted else None
        db = _sum_to(ops.mul(dy, ops.sub(1.0, takes_a)), b) if "b" in wanted else None
        return da, db

    return run


backward(maximum, of=("a", "b"))(_of_the_winner(ops.greater_equal))
backward(minimum, of=("a", "b"))(_of_the_winner(ops.less_equal))


# ------------------------------------------------------------------------------------- what all of them share

_NUMBERS = (pow, mod, maximum, minimum)
_BITS = (bitwise_and, bitwise_or, bitwise_xor)
_SHIFTS = (shift_left, shift_right)


def _samples(target: Any) -> Callable[[Fill], Iterator[Sample]]:
    def second(fill: Fill, *shape: int) -> Array:
        if target in _SHIFTS:
            top = _bits(fill.dtype) + 2
            return fill.integers(*shape, low=0 if fill.dtype.kind == "u" else -2, high=top, dtype=fill.dtype)
        if fill.dtype.kind in "iu":
            if target is pow:
                return fill.integers(*shape, low=0, high=9, dtype=fill.dtype)
            return fill(*shape)
        return fill(*shape) if target is pow else fill.distinct(*shape)

    def first(fill: Fill, *shape: int) -> Array:
        return fill.positive(*shape) if target is pow and fill.dtype.kind not in "iu" else fill(*shape)

    def run(fill: Fill) -> Iterator[Sample]:
        for n in (1, 5, 17, 33):
            yield sample(first(fill, n), second(fill, n))
        yield sample(first(fill), second(fill))
        yield sample(first(fill, 3, 5), 2)
        yield sample(first(fill, 4, 1, 5), second(fill, 3, 1))
        yield sample(first(fill, 5, 4).T, second(fill, 4, 5)[:, ::-1])
        yield sample(first(fill, 3, 0), second(fill, 1, 1))
        if target is mod:
            yield sample(fill(19), second(fill, 19), truncated=True)
        if fill.dtype.kind == "i" and target not in _SHIFTS:
            low = np.iinfo(fill.dtype).min
            edges = np.array([low, low, low + 1, 0, -1, 7, -7], fill.dtype)
            yield sample(edges, np.array([-1, 2, -1, 0, 3, -3, 3], fill.dtype))

    return run


def _errors(target: Any) -> Callable[[Fill], Iterator[ErrorCase]]:
    def run(fill: Fill) -> Iterator[ErrorCase]:
        yield ErrorCase(sample(fill(2, 3), fill(2, 4)), ShapeError, "a has shape (2, 3) and b has (2, 4)")
        flags = np.array([True, False])
        yield ErrorCase(sample(flags, flags), DTypeError, "a has dtype bool; want a")
        other = np.int16 if fill.dtype.kind in "iu" else np.float32 if fill.dtype != np.float32 else np.float64
        yield ErrorCase(sample(fill(3), np.ones(3, other)), DTypeError, f"b has dtype {np.dtype(other)}")
        if fill.dtype.kind in "iu":
            yield ErrorCase(sample(fill(3), 1.5), DTypeError, "b is a float and the other operand is")

    return run


def _workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,), (1 << 22,)))


_ORDER = ("pow", "mod", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right")


def _on_a_device(target: Any) -> Callable[..., None]:
    def run(queue: Queue, a: Any, b: Any, y: Any, *, truncated: bool = False) -> None:
        placed = (v if hasattr(v, "shape") else queue.number(v, y.dtype) for v in (a, b))
        which = len(_ORDER) if truncated else _ORDER.index(target.name)
        queue.each("arithmetic.cl", "arithmetic", (*placed, y), which, DTYPE=y.dtype)

    return run


for _target in (*_NUMBERS, *_BITS, *_SHIFTS):
    samples(_target)(_samples(_target))
    errors(_target)(_errors(_target))
    workloads(_target)(_workloads)
    tolerance(_target, ulp=2 if _target is pow else 0.5)
    dtypes(_target, *(FLOATING if _target in _NUMBERS else ("uint8",)), "int32")
    opencl(_target)(_on_a_device(_target))

tolerance(bitwise_not, ulp=0.5)
dtypes(bitwise_not, "int32", "uint8")


@samples(bitwise_not)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 5, 17, 33):
        yield sample(fill(n))
    yield sample(fill(5, 3).T)
    yield sample(fill(3, 0))


@errors(bitwise_not)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.ones(3)), DTypeError, "x has dtype float64; want an integer")


@opencl(bitwise_not)
def _(queue: Queue, x: Any, y: Any) -> None:
    queue.each("arithmetic.cl", "turned", (x, y), 0, DTYPE=y.dtype)
