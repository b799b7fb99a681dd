"""Truth, element by element: comparisons, logic, what is NaN or infinite, and a choice between two arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.backends.opencl_queue import Queue, bits_of
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
    from tilework.testing import Fill


@op
def equal(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are equal, floats, integers or bools of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN differs from everything.
    """
    ...


@op
def not_equal(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are not equal, floats, integers or bools of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN differs from everything.
    """
    ...


@op
def less(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are in order, a < b, floats or integers of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN is in order with nothing.
    """
    ...


@op
def less_equal(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are in order, a <= b, floats or integers of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN is in order with nothing.
    """
    ...


@op
def greater(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are in order, a > b, floats or integers of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN is in order with nothing.
    """
    ...


@op
def greater_equal(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Says where a and b are in order, a >= b, floats or integers of shapes that broadcast as numpy's do; bool.

    Either operand may be a Python number. NaN is in order with nothing.
    """
    ...


@op
def logical_and(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Says where both a and b hold, bools of shapes that broadcast as numpy's do."""
    ...


@op
def logical_or(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Says where a or b holds, bools of shapes that broadcast as numpy's do."""
    ...


@op
def logical_xor(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Says where one of a and b holds, not both, bools of shapes that broadcast as numpy's do."""
    ...


@op
def logical_not(x: Array, *, out: Array | None = None) -> Array:
    """Says where x, bools of any shape, does not hold."""
    ...


@op
def isnan(x: Array, *, out: Array | None = None) -> Array:
    """Says where x, floats of any shape, is no number; bool."""
    ...


@op
def isinf(x: Array, *, positive: bool = True, negative: bool = True, out: Array | None = None) -> Array:
    """Says where x, floats of any shape, is infinite, above or below; bool."""
    ...


@op
def where(condition: Array, a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Takes a where condition, bool, holds and b elsewhere: one dtype, any of tilework's, shapes that broadcast."""
    ...


for _target, _function in (
    (equal, np.equal),
    (not_equal, np.not_equal),
    (less, np.less),
    (less_equal, np.less_equal),
    (greater, np.greater),
    (greater_equal, np.greater_equal),
    (logical_and, np.logical_and),
    (logical_or, np.logical_or),
    (logical_xor, np.logical_xor),
    (logical_not, np.logical_not),
    (isnan, np.isnan),
    (where, np.where),
):
    reference(_target)(_function)


@reference(isinf)
def _(x: Any, *, positive: bool, negative: bool) -> Any:
    return (np.isposinf(x) & positive) | (np.isneginf(x) & negative)


@backward(where, of=("a", "b"))
def _(dy: Array, condition: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    takes_a = ops.cast(condition, dtype=dy.dtype)
    da = sum_to_shape(ops.mul(dy, takes_a), a.shape) if "a" in wanted else None
    db = sum_to_shape(ops.mul(dy, ops.sub(1.0, takes_a)), b.shape) if "b" in wanted else None
    return da, db


# ------------------------------------------------------------------------------------- what all of them share

_ORDERS = (equal, not_equal, less, less_equal, greater, greater_equal)
_LOGIC = (logical_and, logical_or, logical_xor)


def _flags(fill: Fill, *shape: int) -> Array:
    return fill.integers(*shape, low=0, high=2, dtype=np.bool_)


def _near(fill: Fill, *shape: int) -> Array:
    """Few values, so that many are equal."""
    return fill.integers(*shape, low=0, high=3, dtype=fill.dtype)


def _pairs(make: Callable[..., Array]) -> Callable[[Fill], Iterator[Sample]]:
    def run(fill: Fill) -> Iterator[Sample]:
        for n in (1, 17, 33):
            yield sample(make(fill, n), make(fill, n))
        yield sample(make(fill), make(fill))
        yield sample(make(fill, 4, 1, 5), make(fill, 3, 1))
        yield sample(make(fill, 5, 4).T, make(fill, 4, 5)[:, ::-1])
        yield sample(make(fill, 3, 0), make(fill, 1, 1))
        if make is _near:
            yield sample(make(fill, 3, 5), 1)
            if fill.dtype.kind == "f":
                odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], fill.dtype)
                yield sample(odd, odd[:, None])

    return run


def _pair_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(2, 4)), ShapeError, "a has shape (2, 3) and b has (2, 4)")
    other = np.int16 if fill.dtype != np.int16 else np.int8
    yield ErrorCase(sample(fill(3), np.ones(3, other)), DTypeError, f"b has dtype {np.dtype(other)}")


def _logic_errors(fill: Fill) -> Iterator[ErrorCase]:
    flags = np.array([True, False])
    yield ErrorCase(sample(flags, np.array([True] * 3)), ShapeError, "a has shape (2,) and b has (3,)")
    yield ErrorCase(sample(flags, np.ones(2)), DTypeError, "b has dtype float64 but a has bool; want the same")
    yield ErrorCase(sample(np.ones(2), flags), DTypeError, "a has dtype float64; want bool")


def _workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,), (1 << 22,)))


_NAMES = [f.name for f in (*_ORDERS, *_LOGIC)]


def _on_a_device(target: Any) -> Callable[..., None]:
    def run(queue: Queue, a: Any, b: Any, y: Any) -> None:
        dtype = next(v.dtype for v in (a, b) if hasattr(v, "shape"))
        placed = (v if hasattr(v, "shape") else queue.number(v, dtype) for v in (a, b))
        queue.each("comparison.cl", "compare", (*placed, y), _NAMES.index(target.name), DTYPE=dtype)

    return run


for _target in (*_ORDERS, *_LOGIC):
    samples(_target)(_pairs(_near if _target in _ORDERS else _flags))
    errors(_target)(_pair_errors if _target in _ORDERS else _logic_errors)
    tolerance(_target, ulp=0.5)
    opencl(_target)(_on_a_device(_target))
    if _target in _ORDERS:
        workloads(_target)(_workloads)
        dtypes(_target, "float32", "float16", "int32")
    else:
        dtypes(_target, "bool")


def _ones(fill: Fill, *, flags: bool) -> Iterator[Sample]:
    odd = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf])
    for n in (1, 17, 33):
        yield sample(_flags(fill, n) if flags else np.resize(odd, n).astype(fill.dtype))
    yield sample(_flags(fill, 4, 3).T if flags else fill(4, 3).T)
    yield sample(_flags(fill, 0, 3) if flags else fill(0, 3))


@samples(logical_not)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _ones(fill, flags=True)


@samples(isnan)
def _(fill: Fill) -> Iterator[Sample]:
    yield from _ones(fill, flags=False)


@samples(isinf)
def _(fill: Fill) -> Iterator[Sample]:
    for positive, negative in ((True, True), (True, False), (False, True), (False, False)):
        for s in _ones(fill, flags=False):
            yield sample(*s.args, positive=positive, negative=negative)


@errors(logical_not)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.ones(2)), DTypeError, "x has dtype float64; want bool")


def _float_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64; want float32, float64")


errors(isnan)(_float_errors)
errors(isinf)(_float_errors)
for _target in (logical_not, isnan, isinf, where):
    tolerance(_target, ulp=0.5)
dtypes(logical_not, "bool")
dtypes(isnan, "float32", "float64", "float16", "bfloat16")
dtypes(isinf, "float32", "float64", "float16", "bfloat16")
dtypes(where, "float32", "float64", "float16", "uint8")


@samples(where)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 17, 33):
        yield sample(_flags(fill, n), fill(n), fill(n))
    yield sample(_flags(fill, 3, 1), fill(4, 1, 5), fill())
    yield sample(_flags(fill, 4, 5).T, fill(5, 4), fill(4, 5).T)
    yield sample(_flags(fill, 1), fill(2, 0), fill(2, 1))


@errors(where)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, flags = fill(2), np.array([True, False])
    yield ErrorCase(sample(x, x, x), DTypeError, f"condition has dtype {x.dtype}; want bool")
    yield ErrorCase(sample(flags, x, np.ones(2, np.int16)), DTypeError, "b has dtype int16")
    yield ErrorCase(sample(flags, x, fill(3)), ShapeError, "a has shape (2,) and b has (3,)")
    yield ErrorCase(sample(np.array([True] * 3), x, x), ShapeError, "a has shape (2,) and condition has (3,)")


@opencl(logical_not)
def _(queue: Queue, x: Any, y: Any) -> None:
    queue.each("comparison.cl", "state", (x, y), 0, DTYPE=x.dtype)


@opencl(isnan)
def _(queue: Queue, x: Any, y: Any) -> None:
    queue.each("comparison.cl", "state", (x, y), 1, DTYPE=x.dtype)


@opencl(isinf)
def _(queue: Queue, x: Any, y: Any, *, positive: bool, negative: bool) -> None:
    queue.each("comparison.cl", "state", (x, y), 2 + positive + 2 * negative, DTYPE=x.dtype)


@opencl(where)
def _(queue: Queue, condition: Any, a: Any, b: Any, y: Any) -> None:
    queue.each("comparison.cl", "choose", (condition, a, b, y), BITS=bits_of(y))
