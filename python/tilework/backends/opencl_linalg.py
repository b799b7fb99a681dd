"""Factorisations and triangular solves on a device: panels by factor.cl and solve.cl, everything else by matmul.cl."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.backends.opencl_gemm import multiply
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, bits_of, strides_of
from tilework.backends.opencl_reduce import group_for
from tilework.errors import SingularError

PANEL = 32

_SINGULAR = ("no pivot other than 0 in column", "an invertible matrix")
_INDEFINITE = ("no positive pivot in column", "a positive definite matrix")
_ZERO = "a zero on the diagonal, in column"


# ----------------------------------------------------------------------------------------------- pieces


def _stack(queue: Queue, a: Any, lead: tuple[int, ...], *, copy: bool = True) -> Any:
    """The matrices of ``a``, broadcast to ``lead``, as a contiguous (batch, rows, columns)."""
    shape = (*lead, *a.shape[-2:])
    if copy or a.shape != shape or not a.flags.c_contiguous:
        target = queue.empty(shape, a.dtype)
        queue.copy(a, target)
        a = target
    return a.reshape(math.prod(lead), *shape[-2:])


def _lead(b: Any, x: Any) -> tuple[int, ...]:
    """The shape of the batch of a system with right sides b and results x."""
    return tuple(x.shape[:-1] if b.ndim == 1 else x.shape[:-2])


def _placed(queue: Queue, b: Any, x: Any) -> Any:
    """x, holding b, as (batch, rows, columns): one right side is a column."""
    whole = x.reshape(*x.shape, 1) if b.ndim == 1 else x
    queue.copy(b[:, None] if b.ndim == 1 else b, whole)
    return whole.reshape(math.prod(whole.shape[:-2]), *whole.shape[-2:])


def _turned(x: Any) -> Any:
    return x.transpose((0, 2, 1))


def _flags(queue: Queue, count: int) -> Any:
    flags = queue.empty((count,), np.int32)
    queue.fill(flags, 0)
    return flags


def _refuse(queue: Queue, bad: Any, lead: tuple[int, ...], name: str, what: str, want: str) -> None:
    """Raises a SingularError for the first matrix that is marked. Waits for the device."""
    marks = queue.read(bad)
    marked = np.flatnonzero(marks)
    if not marked.size:
        return
    index = tuple(int(i) for i in np.unravel_index(marked[0], lead)) if lead else ()
    of_matrix = f" of matrix {index}" if lead else ""
    raise SingularError(f"{name} has {what} {marks[marked[0]] - 1}{of_matrix}; want {want}", argument=name)


def _subtract_product(queue: Queue, a: Any, b: Any, c: Any) -> None:
    """c -= a b, for views of (batch, rows, columns)."""
    product = queue.empty(c.shape, c.dtype)
    multiply(queue, a, b, product)
    queue.each("elementwise.cl", "sub", (c, product, c), chunks=True, DTYPE=c.dtype)


def _forget_unknown(queue: Queue, a: Any, part: int) -> None:
    """NaN throughout the matrices of (batch, n, n) that have a number that is not finite in ``part``."""
    unknown = _flags(queue, a.shape[0])
    define = {"DTYPE": a.dtype, "GROUP": 1, "PART": part}
    queue.launch("factor.cl", "find_unknown", a.size, GROUP_SIZE, (a, unknown, a.size, a.shape[-1]), **define)
    queue.launch("factor.cl", "forget_unknown", a.size, GROUP_SIZE, (a, unknown, a.size, a.shape[-1]), **define)


def _solve_triangle(queue: Queue, t: Any, x: Any, *, upper: bool, unit: bool) -> None:
    """x <- t⁻¹ x for views of (batch, n, n) and (batch, n, columns): blocks of the diagonal, then what they reach."""
    n = t.shape[-1]
    starts = range(0, n, PANEL)
    for first in reversed(starts) if upper else starts:
        last = min(first + PANEL, n)
        problem = [x.shape[0], x.shape[2], first, last, upper, unit, *strides_of(t), *strides_of(x)]
        args = (Strided(t), Strided(x), np.array(problem, np.int64))
        queue.launch("solve.cl", "substitute", x.shape[0] * x.shape[2], GROUP_SIZE, args, DTYPE=x.dtype)
        rest = slice(0, first) if upper else slice(last, n)
        if rest.start < rest.stop and x.size:
            _subtract_product(queue, t[:, rest, first:last], x[:, first:last], x[:, rest])


def _check_diagonal(queue: Queue, a: Any, name: str, want: str) -> None:
    lead = a.shape[:-2]
    t = _stack(queue, a, lead, copy=False)
    bad = queue.empty((t.shape[0],), np.int32)
    args = (t, bad, t.shape[0], t.shape[-1])
    queue.launch("solve.cl", "find_zero", t.shape[0], GROUP_SIZE, args, DTYPE=t.dtype)
    _refuse(queue, bad, lead, name, _ZERO, want)


def _swap_rows(queue: Queue, x: Any, pivots: Any, *, back: bool = False) -> None:
    args = (x, pivots, *x.shape, back + 0)
    queue.launch("solve.cl", "swap_rows", x.shape[0] * x.shape[2], GROUP_SIZE, args, DTYPE=x.dtype)


def _keep_triangle(queue: Queue, x: Any, y: Any, *, lower: bool) -> None:
    args = (x, y, y.size, *x.shape[-2:], 0)
    queue.launch("triangle.cl", "triangle", y.size, GROUP_SIZE, args, BITS=bits_of(x), LOWER=int(lower))


def _factor(queue: Queue, a: Any) -> tuple[Any, Any]:
    """a (batch, n, n) <- its LU factors; pivots (batch, n) and marks (batch,) of singular matrices."""
    batch, n, _ = a.shape
    pivots, bad = queue.empty((batch, n), np.int32), _flags(queue, batch)
    _forget_unknown(queue, a, 0)
    group = group_for(queue, n)
    for first in range(0, n, PANEL):
        last = min(first + PANEL, n)
        args = (a, pivots, bad, batch, n, first, last)
        define = {"DTYPE": a.dtype, "GROUP": group, "PANEL_lu": 1}
        queue.launch("factor.cl", "panel", batch * group, group, args, **define)
        if last < n:
            right = a[:, first:last, last:]
            _solve_triangle(queue, a[:, first:last, first:last], right, upper=False, unit=True)
            _subtract_product(queue, a[:, last:, first:last], right, a[:, last:, last:])
    return pivots, bad


# -------------------------------------------------------------------------------------------------- ops


def factor_lu(queue: Queue, a: Any, y: Any, pivots: Any) -> None:
    """Fills y and pivots, which are contiguous."""
    lead = a.shape[:-2]
    if not a.size:
        return
    work = _stack(queue, a, lead)
    swaps, bad = _factor(queue, work)
    _refuse(queue, bad, lead, "a", *_SINGULAR)
    queue.copy(work.reshape(y.shape), y)
    queue.copy(swaps.reshape(pivots.shape), pivots)


def factor_cholesky(queue: Queue, a: Any, y: Any, upper: bool) -> None:
    """Fills y, which is contiguous."""
    if not a.size:
        return
    lead = a.shape[:-2]
    work = _stack(queue, a, lead)
    batch, n, _ = work.shape
    _forget_unknown(queue, work, 2 if upper else 1)
    bad, lower, group = _flags(queue, batch), _turned(work) if upper else work, group_for(queue, n)
    for first in range(0, n, PANEL):
        last = min(first + PANEL, n)
        args = (work, bad, batch, n, first, last, *strides_of(lower)[1:])
        define = {"DTYPE": a.dtype, "GROUP": group, "PANEL_cholesky": 1}
        queue.launch("factor.cl", "panel", batch * group, group, args, **define)
        if last < n:
            below = lower[:, last:, first:last]
            _subtract_product(queue, below, _turned(below), lower[:, last:, last:])
    _refuse(queue, bad, lead, "a", *_INDEFINITE)
    _keep_triangle(queue, work, y, lower=not upper)


def solve_triangular(
    queue: Queue, a: Any, b: Any, x: Any, *, upper: bool, transpose: bool, unit: bool, left: bool
) -> None:
    """Fills x, which is contiguous."""
    if not x.size:
        return
    if not unit:
        _check_diagonal(queue, a, "a", "a triangle that can be inverted")
    triangles = _stack(queue, a, _lead(b, x), copy=False)
    work = _placed(queue, b, x)
    if not left:  # x t = b is tᵀ xᵀ = bᵀ, and a vector is its own transpose
        work = work if b.ndim == 1 else _turned(work)
        transpose = not transpose
    triangles = _turned(triangles) if transpose else triangles
    _solve_triangle(queue, triangles, work, upper=upper != transpose, unit=unit)


def solve_factored(queue: Queue, lu: Any, pivots: Any, b: Any, x: Any, transpose: bool) -> None:
    """Fills x, which is contiguous; pivots are in range."""
    if not x.size:
        return
    _check_diagonal(queue, lu, "lu", "factors of lu")
    lead = _lead(b, x)
    factors = _stack(queue, lu, lead, copy=False)
    rows = queue.contiguous(pivots).reshape(*lu.shape[:-2], 1, lu.shape[-1])
    swaps = _stack(queue, rows, lead, copy=False)[:, 0]
    work = _placed(queue, b, x)
    if transpose:
        _solve_triangle(queue, _turned(factors), work, upper=False, unit=False)
        _solve_triangle(queue, _turned(factors), work, upper=True, unit=True)
        _swap_rows(queue, work, swaps, back=True)
    else:
        _apply(queue, factors, swaps, work)


def _apply(queue: Queue, factors: Any, swaps: Any, work: Any) -> None:
    _swap_rows(queue, work, swaps)
    _solve_triangle(queue, factors, work, upper=False, unit=True)
    _solve_triangle(queue, factors, work, upper=True, unit=False)


def solve_definite(queue: Queue, b: Any, factor: Any, x: Any, upper: bool) -> None:
    """Fills x, which is contiguous."""
    if not x.size:
        return
    _check_diagonal(queue, factor, "factor", "a factor of cholesky")
    triangles = _stack(queue, factor, _lead(b, x), copy=False)
    lower = _turned(triangles) if upper else triangles
    work = _placed(queue, b, x)
    _solve_triangle(queue, lower, work, upper=False, unit=False)
    _solve_triangle(queue, _turned(lower), work, upper=True, unit=False)


def solve_square(queue: Queue, a: Any, b: Any, x: Any) -> None:
    """Fills x, which is contiguous."""
    if not x.size:
        return
    lead = _lead(b, x)
    factors = _stack(queue, a, a.shape[:-2])
    swaps, bad = _factor(queue, factors)
    _refuse(queue, bad, a.shape[:-2], "a", *_SINGULAR)
    swaps = _stack(queue, swaps.reshape(*a.shape[:-2], 1, a.shape[-1]), lead, copy=False)[:, 0]
    factors = _stack(queue, factors.reshape(a.shape), lead, copy=False)
    _apply(queue, factors, swaps, _placed(queue, b, x))


def invert(queue: Queue, a: Any, y: Any) -> None:
    """Fills y, which is contiguous."""
    if not a.size:
        return
    factors = _stack(queue, a, a.shape[:-2])
    swaps, bad = _factor(queue, factors)
    _refuse(queue, bad, a.shape[:-2], "a", *_SINGULAR)
    identity = queue.empty(a.shape[-2:], a.dtype)
    queue.write(np.eye(a.shape[-1], dtype=a.dtype), identity)
    queue.copy(identity, y)
    _apply(queue, factors, swaps, y.reshape(factors.shape))


def determinant(queue: Queue, a: Any, sign: Any, y: Any) -> None:
    """Fills y with the determinants, or with their logarithms if there is a ``sign`` to fill."""
    if not y.size:
        return
    factors = _stack(queue, a, a.shape[:-2])
    if not a.size:
        for result, value in ((sign, 1.0), (y, 1.0 if sign is None else 0.0)):
            if result is not None:
                queue.fill(result, value)
        return
    swaps, bad = _factor(queue, factors)
    args = (factors, swaps, bad, *(() if sign is None else (sign,)), y, *factors.shape[:2])
    define = {"DTYPE": a.dtype} | ({} if sign is None else {"SIGN": 1})
    queue.launch("inverse.cl", "determinant", factors.shape[0], GROUP_SIZE, args, **define)
