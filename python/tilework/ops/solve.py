"""Linear systems: of triangular matrices, of factored ones, and of square ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.errors import AttrTypeError, DTypeError, IndexContentError, ShapeError, SingularError
from tilework.ops.elementwise import sum_to_shape
from tilework.ops.factor import (
    BATCHES,
    SQUARES,
    inverse,
    known,
    lu_reference,
    perturbation,
    places,
    swapped,
    transposed,
    triangles,
)
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    errors,
    fills,
    flops,
    op,
    opencl,
    reference,
    sample,
    samples,
    terms,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def triangular_solve(
    a: Array,
    b: Array,
    *,
    upper: bool,
    transpose: bool = False,
    unit_diagonal: bool = False,
    left: bool = True,
    out: Array | None = None,
) -> Array:
    """Solves t x = b, or x t = b if not ``left``: t a triangle of a (..., N, N), b (N,) or (..., N, K).

    t is the upper or lower triangle of a, the rest of which is not read, or its transpose; ``unit_diagonal`` takes
    1 for the diagonal, unread. Leading axes broadcast. A zero on the diagonal is a SingularError.
    """
    ...


@op
def lu_solve(lu: Array, pivots: Array, b: Array, *, transpose: bool = False, out: Array | None = None) -> Array:
    """Solves a x = b, or aᵀ x = b, with (lu, pivots) = tilework.lu(a): lu (..., N, N), pivots (..., N), b (..., N, K).

    A 1-D b is one right side. Leading axes broadcast.
    """
    ...


@op
def cholesky_solve(b: Array, factor: Array, *, upper: bool = False, out: Array | None = None) -> Array:
    """Solves a x = b with factor = cholesky(a, upper=upper) (..., N, N) and b (..., N, K) or (N,), in PyTorch's order.

    Only that triangle of the factor is read. Leading axes broadcast.
    """
    ...


@op
def solve(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Solves a x = b for square matrices a (..., N, N) and b (..., N, K), or one right side b (N,), as numpy 2 does.

    Leading axes broadcast. A singular a is a SingularError; one with a NaN or an infinity gives NaN throughout.
    """
    ...


# ------------------------------------------------------------------------------------------ references


def _columns(b: Any) -> Any:
    return b[:, None] if b.ndim == 1 else b


def _like(x: Any, b: Any) -> Any:
    return x[..., 0] if b.ndim == 1 else x


def _substituted(t: Any, b: Any, upper: bool, unit: bool) -> Any:
    """Row by row; t and b are matrices."""
    n = t.shape[-1]
    x = np.empty(np.broadcast_shapes(t.shape[:-2], b.shape[:-2]) + b.shape[-2:])
    for step in range(n):
        i = n - 1 - step if upper else step
        before = slice(i + 1, None) if upper else slice(0, i)
        x[..., i, :] = b[..., i, :] - (t[..., i, None, before] @ x[..., before, :])[..., 0, :]
        if not unit:
            x[..., i, :] /= t[..., i, i, None]
    return x


def _triangle(a: Any, upper: bool, transpose: bool, unit_diagonal: bool, left: bool) -> tuple[Any, bool]:
    """The matrix of t x = b that a call amounts to, zeros included, and whether it is an upper one."""
    t = np.triu(a, 1) if upper else np.tril(a, -1)
    diagonal = 1.0 if unit_diagonal else np.diagonal(a, axis1=-2, axis2=-1)[..., None]
    t = np.where(np.eye(a.shape[-1]) == 1, diagonal, t)
    return (transposed(t), not upper) if transpose == left else (t, upper)


def _triangular_solve(a: Any, b: Any, *, upper: bool, transpose: bool, unit_diagonal: bool, left: bool) -> Any:
    t, is_upper = _triangle(a, upper, transpose, unit_diagonal, left)
    if left or b.ndim == 1:
        return _like(_substituted(t, _columns(b), is_upper, unit_diagonal), b)
    return transposed(_substituted(t, transposed(b), is_upper, unit_diagonal))


reference(triangular_solve)(_triangular_solve)


def _order(pivots: Any, b: Any, *, back: bool) -> Any:
    order = places(pivots)
    order = order.argsort(axis=-1) if back else order
    lead = np.broadcast_shapes(order.shape[:-1], b.shape[:-2])
    return np.take_along_axis(
        np.broadcast_to(b, lead + b.shape[-2:]), np.broadcast_to(order, (*lead, order.shape[-1]))[..., None], axis=-2
    )


@reference(lu_solve)
def _lu_solve(lu: Any, pivots: Any, b: Any, *, transpose: bool) -> Any:
    lower, upper = triangles(lu)
    if transpose:
        x = _substituted(transposed(upper), _columns(b), False, False)
        return _like(_order(pivots, _substituted(transposed(lower), x, True, True), back=True), b)
    x = _substituted(lower, _order(pivots, _columns(b), back=False), False, True)
    return _like(_substituted(upper, x, True, False), b)


@reference(cholesky_solve)
def _cholesky_solve(b: Any, factor: Any, *, upper: bool) -> Any:
    lower = transposed(np.triu(factor)) if upper else np.tril(factor)
    x = _substituted(lower, _columns(b), False, False)
    return _like(_substituted(transposed(lower), x, True, False), b)


@reference(solve)
def _solve(a: Any, b: Any) -> Any:
    finite = known(a)
    x = np.linalg.solve(np.where(finite, a, np.eye(a.shape[-1])), _columns(b))
    return _like(np.where(finite, x, np.nan), b)


# ------------------------------------------------------------------------------------------- how near
#
# Substitution solves (t + e) x = b with |e| <= c eps sqrt(N) |t|, so x moves by |t⁻¹| |t| |x|; with factors, by
# |a⁻¹| |l| |u| |x|. (Higham 2002, theorems 8.5 and 9.4.)


def _moved(inverse_size: Any, size: Any, x: Any, b: Any) -> Any:
    return _like(inverse_size @ (size @ np.abs(x[..., None] if b.ndim == 1 else x)), b)


@depth(triangular_solve)
def _(a: Any, b: Any, **attrs: Any) -> int:
    return int(a.shape[-1])


@terms(triangular_solve)
def _(a: Any, b: Any, **attrs: Any) -> Any:
    t, _ = _triangle(a, **attrs)
    x = _triangular_solve(a, b, **attrs)
    if attrs["left"] or b.ndim == 1:
        return _moved(inverse(t), np.abs(t), x, b)
    return transposed(_moved(inverse(t), np.abs(t), transposed(x), b))


@depth(lu_solve)
def _(lu: Any, pivots: Any, b: Any, **attrs: Any) -> int:
    return int(lu.shape[-1])


@terms(lu_solve)
def _(lu: Any, pivots: Any, b: Any, *, transpose: bool) -> Any:
    lower, upper = triangles(lu)
    x = np.abs(_lu_solve(lu, pivots, b, transpose=transpose))
    x = x[..., None] if b.ndim == 1 else x
    if transpose:
        x = _order(pivots, x, back=False)
        lower, upper = transposed(upper), transposed(lower)
    moved = inverse(upper) @ (inverse(lower) @ (np.abs(lower) @ (np.abs(upper) @ x)))
    return _like(_order(pivots, moved, back=True) if transpose else moved, b)


@depth(cholesky_solve)
def _(b: Any, factor: Any, **attrs: Any) -> int:
    return int(factor.shape[-1])


@terms(cholesky_solve)
def _(b: Any, factor: Any, *, upper: bool) -> Any:
    lower = transposed(np.triu(factor)) if upper else np.tril(factor)
    size = inverse(lower)
    x = _cholesky_solve(b, factor, upper=upper)
    return _moved(transposed(size) @ size, np.abs(lower) @ np.abs(transposed(lower)), x, b)


@depth(solve)
def _(a: Any, b: Any) -> int:
    return int(a.shape[-1])


@terms(solve)
def _(a: Any, b: Any) -> Any:
    return _moved(inverse(a), perturbation(a), _solve(a, b), b)


# ------------------------------------------------------------------------------------------- gradients
# Giles, "Collected matrix derivative results for forward and reverse mode algorithmic differentiation", 2008.


def _matrix(x: Array) -> Array:
    """A right side as a matrix."""
    return x if x.ndim > 1 else ops.reshape(x, shape=(x.shape[0], 1))


def _right_side(x: Array, b: Array) -> Array:
    """The dy or result of a call as matrices, where b is one right side for all a."""
    return x if b.ndim > 1 else ops.reshape(x, shape=(*x.shape, 1))


def _gradient_of_b(db: Array, b: Array) -> Array:
    return ops.reshape(sum_to_shape(db, _matrix(b).shape), shape=b.shape)


def _outer(a: Array, b: Array) -> Array:
    """-a bᵀ."""
    return ops.mul(ops.matmul(a, swapped(b)), -1.0)


@backward(solve, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    db = solve(swapped(a), _right_side(dy, b))
    da = _outer(db, _right_side(solve(a, b), b)) if "a" in wanted else None
    return (
        None if da is None else sum_to_shape(da, a.shape),
        _gradient_of_b(db, b) if "b" in wanted else None,
    )


@backward(triangular_solve, of=("a", "b"))
def _(
    dy: Array,
    a: Array,
    b: Array,
    *,
    saved: None,
    wanted: Wanted,
    upper: bool,
    transpose: bool,
    unit_diagonal: bool,
    left: bool,
) -> Any:
    # x t = b is tᵀ xᵀ = bᵀ, and b (N,) is a column either way.
    def columns(x: Array) -> Array:
        return _right_side(x, b) if b.ndim == 1 else x if left else swapped(x)

    turned = transpose == left
    db = triangular_solve(a, columns(dy), upper=upper, transpose=not turned, unit_diagonal=unit_diagonal)
    da = None
    if "a" in wanted:
        x = columns(triangular_solve(a, b, upper=upper, transpose=transpose, unit_diagonal=unit_diagonal, left=left))
        dt = _outer(x, db) if turned else _outer(db, x)
        part, off = (ops.triu, 1) if upper else (ops.tril, -1)
        da = sum_to_shape(part(dt, diagonal=off if unit_diagonal else 0), a.shape)
    if "b" not in wanted:
        return da, None
    return da, _gradient_of_b(db if left or b.ndim == 1 else swapped(db), b)


@backward(cholesky_solve, of=("b", "factor"))
def _(dy: Array, b: Array, factor: Array, *, saved: None, wanted: Wanted, upper: bool) -> Any:
    db = cholesky_solve(_right_side(dy, b), factor, upper=upper)
    slope = None
    if "factor" in wanted:
        da = _outer(db, _right_side(cholesky_solve(b, factor, upper=upper), b))
        both = ops.add(da, swapped(da))
        part = ops.triu if upper else ops.tril
        product = ops.matmul(part(factor), both) if upper else ops.matmul(both, part(factor))
        slope = sum_to_shape(part(product), factor.shape)
    return _gradient_of_b(db, b) if "b" in wanted else None, slope


# Forward: y = u x, z = l y = p b; transposed: w = uᵀ⁻¹ b, z = lᵀ⁻¹ w = p x. g is the gradient between the two.
@backward(lu_solve, of=("lu", "b"))
def _(dy: Array, lu: Array, pivots: Array, b: Array, *, saved: None, wanted: Wanted, transpose: bool) -> Any:
    dx = _right_side(dy, b)
    db = lu_solve(lu, pivots, dx, transpose=not transpose)
    dlu = None
    if "lu" in wanted:
        upper = ops.triu(lu)
        if transpose:
            w = triangular_solve(lu, _matrix(b), upper=True, transpose=True)
            z = triangular_solve(lu, w, upper=False, transpose=True, unit_diagonal=True)
            below, above = _outer(z, ops.matmul(upper, db)), _outer(w, db)
        else:
            x = _right_side(lu_solve(lu, pivots, b), b)
            g = triangular_solve(lu, dx, upper=True, transpose=True)
            dz = triangular_solve(lu, g, upper=False, transpose=True, unit_diagonal=True)
            below, above = _outer(dz, ops.matmul(upper, x)), _outer(g, x)
        dlu = sum_to_shape(ops.add(ops.tril(below, diagonal=-1), ops.triu(above)), lu.shape)
    return dlu, _gradient_of_b(db, b) if "b" in wanted else None


for _op in (triangular_solve, lu_solve, cholesky_solve, solve):
    _op.rules["spreading"] = ("b",)  # through factors in blocks, an infinity may become NaN sooner


# ---------------------------------------------------------------------------------------------- samples


@samples(triangular_solve)
def _(fill: Fill) -> Iterator[Sample]:
    def lower(*shape: int) -> Any:
        return np.tril(fill.definite(*shape)) + np.triu(fill(*shape), 1)  # the rest is not read

    yield sample(lower(1, 1), fill(1, 1), upper=False)
    yield sample(lower(5, 5), fill(5), upper=False)
    yield sample(lower(5, 5).T, fill(5, 3), upper=True)
    yield sample(lower(8, 8), fill(8, 17), upper=False, transpose=True)
    yield sample(fill.definite(9, 9), fill(9, 2), upper=True, transpose=True)
    yield sample(fill.definite(7, 7), fill(3, 7), upper=False, left=False)
    yield sample(fill.definite(7, 7), fill(3, 7), upper=True, transpose=True, left=False)
    yield sample(fill.definite(5, 5), fill(5), upper=True, left=False)
    yield sample(fill.definite(6, 6), fill(6, 4), upper=False, unit_diagonal=True)
    yield sample(fill.definite(6, 6), fill(4, 6), upper=True, unit_diagonal=True, left=False)
    yield sample(fill.definite(70, 70), fill(70, 9), upper=False)
    yield sample(fill.definite(70, 70), fill(70, 40), upper=True)
    yield sample(fill.definite(2, 1, 4, 4), fill(3, 4, 5), upper=False)
    yield sample(fill.definite(3, 4, 4), fill(4), upper=True)
    yield sample(fill(0, 0), fill(0, 3), upper=True)
    yield sample(fill.definite(3, 3), fill(3, 0), upper=True)


@samples(solve)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 2, 3, 8, 17, 33):
        yield sample(fill.regular(n, n), fill(n, 3))
    yield sample(fill.regular(5, 5), fill(5))
    yield sample(fill.regular(70, 70).T, fill(40, 70).T)
    yield sample(fill.regular(2, 1, 4, 4), fill(3, 4, 2))
    yield sample(fill.regular(2, 4, 4), fill(4))
    yield sample(fill.regular(4, 4), fill(2, 4, 1))
    yield sample(fill(0, 0), fill(0, 3))
    yield sample(fill.regular(3, 3), fill(3, 0))


@samples(lu_solve)
def _(fill: Fill) -> Iterator[Sample]:
    def factors(*shape: int) -> tuple[Any, Any]:
        packed, pivots = lu_reference(fill.regular(*shape).astype(np.float64))
        return packed.astype(fill.dtype), pivots

    for transpose in (False, True):
        yield sample(*factors(1, 1), fill(1, 1), transpose=transpose)
        yield sample(*factors(5, 5), fill(5), transpose=transpose)
        yield sample(*factors(40, 40), fill(40, 7), transpose=transpose)
        yield sample(*factors(2, 1, 4, 4), fill(3, 4, 2), transpose=transpose)
        yield sample(*factors(2, 4, 4), fill(4), transpose=transpose)
    yield sample(fill(0, 0), np.zeros(0, np.int32), fill(0, 3))


@samples(cholesky_solve)
def _(fill: Fill) -> Iterator[Sample]:
    def factor(*shape: int) -> Any:
        lower = np.linalg.cholesky(fill.definite(*shape).astype(np.float64)).astype(fill.dtype)
        return lower + np.triu(fill(*shape), 1)  # the rest is not read

    yield sample(fill(1, 1), factor(1, 1))
    yield sample(fill(5), factor(5, 5))
    yield sample(fill(40, 7), factor(40, 40))
    yield sample(fill(9, 4), factor(9, 9).T, upper=True)
    yield sample(fill(3, 4, 2), factor(2, 1, 4, 4))
    yield sample(fill(4), factor(2, 4, 4))
    yield sample(fill(0, 3), fill(0, 0))


def _system_errors(fill: Fill, **attrs: Any) -> Iterator[ErrorCase]:
    eye = np.eye(3, dtype=fill.dtype)
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(fill(2, 3), fill(3), **attrs), ShapeError, "a has shape (2, 3); want square matrices")
    yield ErrorCase(sample(fill(3), fill(3), **attrs), ShapeError, "a has 1 dimensions; want 2 to 8")
    text = "a has N=3 but b has shape (4, 3); want b of shape (N,) or (..., N, K)"
    yield ErrorCase(sample(eye, fill(4, 3), **attrs), ShapeError, text)
    yield ErrorCase(sample(eye, fill(), **attrs), ShapeError, "b has 0 dimensions; want 1 to 8")
    stack = np.stack([eye, eye])
    yield ErrorCase(sample(stack, fill(3, 3, 1), **attrs), ShapeError, "want leading axes that broadcast")
    yield ErrorCase(sample(eye, fill(3).astype(other), **attrs), DTypeError, f"b has dtype {np.dtype(other)}")
    yield ErrorCase(sample(eye.astype(int), fill(3), **attrs), DTypeError, "a has dtype int64; want float32 or float64")


@errors(triangular_solve)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _system_errors(fill, upper=True)
    singular = np.diag(np.array([1, 2, 0], fill.dtype))
    text = "a has a zero on the diagonal, in column 2"
    yield ErrorCase(sample(singular, fill(3), upper=True), SingularError, f"{text}; want")
    batch = np.stack([np.eye(3, dtype=fill.dtype), singular])
    yield ErrorCase(sample(batch, fill(3, 2), upper=False), SingularError, f"{text} of matrix (1,); want")
    yield ErrorCase(sample(fill(3, 3), fill(3)), AttrTypeError, "upper")
    text = "a has N=3 but b has shape (3, 4); want b of shape (N,) or (..., K, N)"
    yield ErrorCase(sample(fill(3, 3), fill(3, 4), upper=True, left=False), ShapeError, text)


@errors(solve)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _system_errors(fill)
    singular = np.ones((3, 3), fill.dtype)
    text = "a has no pivot other than 0 in column 1"
    yield ErrorCase(sample(singular, fill(3)), SingularError, f"{text}; want an invertible matrix")
    batch = np.stack([np.eye(3, dtype=fill.dtype), singular])
    yield ErrorCase(sample(batch, fill(3, 2)), SingularError, f"{text} of matrix (1,); want an invertible matrix")


@errors(lu_solve)
def _(fill: Fill) -> Iterator[ErrorCase]:
    eye, pivots, b = np.eye(3, dtype=fill.dtype), np.arange(3, dtype=np.int32), fill(3)
    yield ErrorCase(sample(eye[:2], pivots, b), ShapeError, "lu has shape (2, 3); want square matrices")
    yield ErrorCase(sample(eye, pivots[:2], b), ShapeError, "pivots has shape (2,); want (3,)")
    yield ErrorCase(sample(eye, pivots.astype(np.int64), b), DTypeError, "pivots has dtype int64; want int32")
    yield ErrorCase(sample(eye, pivots + np.int32(1), b), IndexContentError, "pivots has 3 at position 2; want 0 to 2")
    yield ErrorCase(sample(eye, -pivots, b), IndexContentError, "pivots has -1 at position 1; want 0 to 2")
    yield ErrorCase(sample(eye, pivots, fill(4)), ShapeError, "lu has N=3 but b has shape (4,)")
    yield ErrorCase(sample(eye * 0, pivots, b), SingularError, "lu has a zero on the diagonal, in column 0; want")


@errors(cholesky_solve)
def _(fill: Fill) -> Iterator[ErrorCase]:
    eye, b = np.eye(3, dtype=fill.dtype), fill(3)
    yield ErrorCase(sample(b, eye[:2]), ShapeError, "factor has shape (2, 3); want square matrices")
    yield ErrorCase(sample(fill(4, 3), eye), ShapeError, "factor has N=3 but b has shape (4, 3)")
    yield ErrorCase(sample(b, eye * 0), SingularError, "factor has a zero on the diagonal, in column 0; want")


# -------------------------------------------------------------------------------------------- workloads


def _pairs() -> Iterator[tuple[str, tuple[Sizes, Sizes], tuple[str, ...]]]:
    for n in SQUARES:
        yield f"n={n}", ((n, n), (n, n)), ("square",)
    yield "n=1024 for one b", ((1024, 1024), (1024,)), ("square",)
    for count, n in BATCHES:
        yield f"{count} of {n}x{n} for one b", ((count, n, n), (count, n, 1)), ("batched",)


@workloads(solve)
def _() -> Iterator[Workload]:
    for name, shapes, sets in _pairs():
        yield Workload(name, shapes, sets=sets)


@workloads(triangular_solve)
def _() -> Iterator[Workload]:
    for name, shapes, sets in _pairs():
        yield Workload(name, shapes, {"upper": False}, sets)


@workloads(cholesky_solve)
def _() -> Iterator[Workload]:
    for name, (a, b), sets in _pairs():
        yield Workload(name, (b, a), sets=sets)


@fills(solve)
def _(fill: Fill, a: Sizes, b: Sizes) -> Any:
    return fill.regular(*a), fill(*b)


@fills(triangular_solve)
def _(fill: Fill, a: Sizes, b: Sizes, **attrs: Any) -> Any:
    return fill.definite(*a), fill(*b)


@fills(cholesky_solve)
def _(fill: Fill, b: Sizes, factor: Sizes, **attrs: Any) -> Any:
    return fill(*b), fill.definite(*factor)


@flops(solve)
def _(a: Sizes, b: Sizes) -> float:
    return 2 / 3 * math.prod(a) * a[-1] + 2 * _sides(a, b)


@flops(triangular_solve)
def _(a: Sizes, b: Sizes, **attrs: Any) -> float:
    return float(_sides(a, b))


@flops(cholesky_solve)
def _(b: Sizes, factor: Sizes, **attrs: Any) -> float:
    return 2.0 * _sides(factor, b)


def _sides(a: Sizes, b: Sizes) -> int:
    """Elements of the right sides times N."""
    lead = math.prod(np.broadcast_shapes(a[:-2], b[:-2]))
    return lead * math.prod(b[-2:]) * a[-1]


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(triangular_solve)
def _(queue: Queue, a: Any, b: Any, x: Any, *, upper: bool, transpose: bool, unit_diagonal: bool, left: bool) -> None:
    from tilework.backends.opencl_linalg import solve_triangular

    solve_triangular(queue, a, b, x, upper=upper, transpose=transpose, unit=unit_diagonal, left=left)


@opencl(lu_solve)
def _(queue: Queue, lu: Any, pivots: Any, b: Any, x: Any, *, transpose: bool) -> None:
    from tilework.backends.opencl_linalg import solve_factored

    queue.check_indices("pivots", pivots, lu.shape[-1])
    solve_factored(queue, lu, pivots, b, x, transpose)


@opencl(cholesky_solve)
def _(queue: Queue, b: Any, factor: Any, x: Any, *, upper: bool) -> None:
    from tilework.backends.opencl_linalg import solve_definite

    solve_definite(queue, b, factor, x, upper)


@opencl(solve)
def _(queue: Queue, a: Any, b: Any, x: Any) -> None:
    from tilework.backends.opencl_linalg import solve_square

    solve_square(queue, a, b, x)
