"""Factorisations of square matrices: LU with partial pivoting, and Cholesky."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.errors import DTypeError, ShapeError, SingularError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    errors,
    fills,
    flops,
    forward,
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
def lu(a: Array, *, out: tuple[Array, Array] | None = None) -> Array:
    """Factors square matrices a (..., N, N) into P a = L U by partial pivoting: (lu, pivots) of (..., N, N), (..., N).

    lu holds U, and L without its diagonal of ones, below U; step k swapped row k with row pivots[k] >= k, int32 and
    counted from 0, as in scipy.linalg.lu_factor. A column without a pivot other than 0 is a SingularError. A matrix
    with a NaN or an infinity gives NaN throughout.
    """
    ...


@op
def cholesky(a: Array, *, upper: bool = False, out: Array | None = None) -> Array:
    """Factors symmetric positive definite matrices a (..., N, N) into l lᵀ, l lower, or uᵀ u if ``upper``.

    Only that triangle of a is read, and its gradient is in that triangle. A matrix that is not positive definite is a
    SingularError; one with a NaN or an infinity in the triangle gives NaN there.
    """
    ...


def swapped(x: Any) -> Any:
    """x with its last two axes swapped, a view of any array."""
    return ops.transpose(x, axes=(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def transposed(x: Any) -> Any:
    """The same of numpy arrays, for references."""
    return np.swapaxes(x, -1, -2)


# ------------------------------------------------------------------------------------------ references


def known(a: Any) -> Any:
    """Which matrices are finite, (..., 1, 1)."""
    return np.isfinite(a).all(axis=(-1, -2), keepdims=True)


@reference(lu)
def lu_reference(a: Any) -> Any:
    """Row by row elimination, all matrices of the batch together."""
    n = a.shape[-1]
    packed = np.where(known(a), a, np.eye(n)).reshape(math.prod(a.shape[:-2]), n, n)
    pivots = np.zeros((len(packed), n), np.int32)
    batch = np.arange(len(packed))
    for k in range(n):
        pivots[:, k] = row = k + np.abs(packed[:, k:, k]).argmax(axis=-1)
        packed[batch, row], packed[batch, k] = packed[batch, k], packed[batch, row]
        if np.any(packed[:, k, k] == 0):
            raise SingularError(f"a has no pivot other than 0 in column {k}; want an invertible matrix", argument="a")
        packed[:, k + 1 :, k] /= packed[:, k, k, None]
        packed[:, k + 1 :, k + 1 :] -= packed[:, k + 1 :, k, None] * packed[:, k, None, k + 1 :]
    return np.where(known(a), packed.reshape(a.shape), np.nan), pivots.reshape(a.shape[:-1])


def triangles(packed: Any) -> tuple[Any, Any]:
    """L and U of what lu gives."""
    return np.tril(packed, -1) + np.eye(packed.shape[-1]), np.triu(packed)


def places(pivots: Any) -> Any:
    """Row i of P a is row places[i] of a."""
    order = np.broadcast_to(np.arange(pivots.shape[-1]), pivots.shape).copy()
    for index in np.ndindex(pivots.shape[:-1]):
        for k, p in enumerate(pivots[index]):
            order[(*index, [k, p])] = order[(*index, [p, k])]
    return order


def inverse(a: Any) -> Any:
    """|a⁻¹|, NaN where a is not finite; a SingularError if it is lost in rounding, as then nothing bounds an error."""
    finite = known(a)
    whole = np.where(finite, a, np.eye(a.shape[-1]))
    size = np.abs(np.linalg.inv(whole))
    lost = size.sum(axis=(-1, -2)) * np.abs(whole).sum(axis=(-1, -2)) * np.finfo(np.float64).eps
    if np.any(lost >= 1):
        raise SingularError("a is singular to working precision; want an invertible matrix", argument="a")
    return np.where(finite, size, np.nan)


@reference(cholesky)
def _cholesky(a: Any, *, upper: bool) -> Any:
    lower = transposed(np.triu(a)) if upper else np.tril(a)
    finite = known(lower)
    whole = np.where(finite, lower + transposed(np.tril(lower, -1)), np.eye(a.shape[-1]))
    factor = np.where(finite, np.linalg.cholesky(whole), np.tril(np.full_like(lower, np.nan)))
    return transposed(factor) if upper else factor


# ------------------------------------------------------------------------------------------- how near
#
# Both compute the factors of a + e with |e| <= c eps sqrt(N) |l| |u|; to first order they move by
# l tril(l⁻¹ e u⁻¹, -1) and triu(l⁻¹ e u⁻¹) u. (Higham 2002, theorems 9.3, 9.15, 10.3, 10.8.)


def _moves(lower: Any, upper: Any) -> Any:
    size = np.abs(lower) @ np.abs(upper)
    return inverse(lower) @ size @ inverse(upper)


@depth(lu)
def _(a: Any) -> int:
    return int(a.shape[-1])


@terms(lu)
def _(a: Any) -> Any:
    packed, pivots = lu_reference(a)
    lower, upper = triangles(packed)
    moves = _moves(lower, upper)
    return np.tril(np.abs(lower) @ np.tril(moves, -1), -1) + np.triu(np.triu(moves) @ np.abs(upper)), pivots


@depth(cholesky)
def _(a: Any, *, upper: bool) -> int:
    return int(a.shape[-1])


@terms(cholesky)
def _(a: Any, *, upper: bool) -> Any:
    factor = _cholesky(a, upper=True) if upper else transposed(_cholesky(a, upper=False))
    moved = np.triu(np.triu(_moves(transposed(factor), factor)) @ np.abs(factor))
    return moved if upper else transposed(moved)


def perturbation(a: Any) -> Any:
    """pᵀ |l| |u|: by a multiple of it, a differs from the matrix that an lu of a is the lu of."""
    packed, pivots = lu_reference(a)
    lower, upper = triangles(packed)
    size = np.empty_like(a)
    np.put_along_axis(size, places(pivots)[..., None], np.abs(lower) @ np.abs(upper), axis=-2)
    return size


# ------------------------------------------------------------------------------------------- gradients


@forward(lu)
def _(a: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    found = lu(a)
    return found, found


# With m = tril(lᵀ dl, -1) + triu(du uᵀ) the gradient is pᵀ l⁻ᵀ m u⁻ᵀ, and pᵀ l⁻ᵀ = a⁻ᵀ uᵀ.
@backward(lu, of=("a",))
def _(dy: Array, a: Array, *, saved: tuple[Array, Array] | None, wanted: Wanted) -> Array:
    packed, pivots = saved if saved is not None else lu(a)
    upper = ops.triu(packed)
    by_lower = ops.tril(dy, diagonal=-1)
    # lᵀ dl for l = 1 + its strict triangle.
    lower = ops.add(by_lower, ops.matmul(swapped(ops.tril(packed, diagonal=-1)), by_lower))
    middle = ops.add(ops.tril(lower, diagonal=-1), ops.triu(ops.matmul(ops.triu(dy), swapped(upper))))
    inner = ops.triangular_solve(packed, middle, upper=True, transpose=True, left=False)
    return ops.lu_solve(packed, pivots, ops.matmul(swapped(upper), inner), transpose=True)


@forward(cholesky)
def _(a: Array, *, upper: bool) -> tuple[Array, Array]:
    found = cholesky(a, upper=upper)
    return found, found


# Murray, "Differentiation of the Cholesky decomposition", 2016: p = l⁻ᵀ phi(lᵀ dl) l⁻¹, where phi halves the diagonal
# of the lower triangle. Each element that is read stands for two of a, save on the diagonal.
@backward(cholesky, of=("a",))
def _(dy: Array, a: Array, *, saved: Array | None, wanted: Wanted, upper: bool) -> Array:
    factor = saved if saved is not None else cholesky(a, upper=upper)
    slope, lower = (swapped(dy), swapped(factor)) if upper else (dy, factor)
    product = ops.matmul(swapped(lower), ops.tril(slope))
    phi = ops.mul(ops.add(ops.tril(product), ops.tril(product, diagonal=-1)), 0.5)
    half = ops.triangular_solve(lower, phi, upper=False, transpose=True)
    p = ops.triangular_solve(lower, half, upper=False, left=False)
    both = ops.add(p, swapped(p))
    part = ops.triu if upper else ops.tril
    return ops.mul(ops.add(part(both), part(both, diagonal=1 if upper else -1)), 0.5)


# ---------------------------------------------------------------------------------------------- samples


@samples(lu)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 2, 3, 5, 8, 17, 33):
        yield sample(fill.regular(n, n))
    yield sample(fill.regular(70, 70))
    yield sample(fill.regular(7, 7).T)
    yield sample(fill.regular(2, 3, 4, 4))
    yield sample(fill.regular(9, 9, 9)[::2])
    yield sample(fill(0, 0))
    yield sample(fill(2, 0, 3, 3))


@samples(cholesky)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 2, 3, 5, 8, 17, 33):
        yield sample(fill.definite(n, n), upper=n % 2 == 0)
    yield sample(fill.definite(70, 70))
    yield sample(fill.definite(70, 70), upper=True)
    yield sample(fill.definite(2, 3, 4, 4))
    yield sample(np.triu(fill.definite(5, 5)) - np.tril(fill(5, 5), -1), upper=True)
    yield sample(fill(0, 0))
    yield sample(fill(2, 0, 3, 3), upper=True)


def square_errors(fill: Fill) -> Iterator[ErrorCase]:
    """What every op over one square matrix refuses."""
    yield ErrorCase(sample(fill(3)), ShapeError, "a has 1 dimensions; want 2 to 8")
    yield ErrorCase(sample(fill(2, 3)), ShapeError, "a has shape (2, 3); want square matrices (..., N, N)")
    yield ErrorCase(sample(np.eye(2, dtype=np.int64)), DTypeError, "a has dtype int64; want float32 or float64")
    yield ErrorCase(sample([[1.0]]), DTypeError, "a is a list")


def singular_errors(fill: Fill) -> Iterator[ErrorCase]:
    """Singular matrices, alone and in a batch."""
    alone = np.diag(np.array([1, 2, 0, 3], fill.dtype))
    batch = np.tile(np.eye(3, dtype=fill.dtype), (2, 2, 1, 1))
    batch[1, 0, 1, 1] = 0
    text = "a has no pivot other than 0 in column"
    yield ErrorCase(sample(alone), SingularError, f"{text} 2; want an invertible matrix")
    yield ErrorCase(sample(batch), SingularError, f"{text} 1 of matrix (1, 0); want an invertible matrix")


@errors(lu)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from square_errors(fill)
    yield from singular_errors(fill)
    large = np.eye(80, dtype=fill.dtype)
    large[:, 71] = large[:, 3]
    yield ErrorCase(sample(large), SingularError, "a has no pivot other than 0 in column 71; want")


@errors(cholesky)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from square_errors(fill)
    indefinite = np.diag(np.array([1, -2, 3], fill.dtype))
    text = "a has no positive pivot in column"
    yield ErrorCase(sample(indefinite), SingularError, f"{text} 1; want a positive definite matrix")
    batch = np.stack([np.eye(3, dtype=fill.dtype), indefinite])
    yield ErrorCase(sample(batch, upper=True), SingularError, f"{text} 1 of matrix (1,); want")
    large = np.eye(80, dtype=fill.dtype)
    large[71, 71] = 0
    yield ErrorCase(sample(large), SingularError, f"{text} 71; want a positive definite matrix")


# -------------------------------------------------------------------------------------------- workloads

SQUARES = (64, 128, 256, 512, 1024, 2048)
BATCHES = ((1000, 8), (1000, 32))


@workloads(lu)
@workloads(cholesky)
def square_workloads() -> Iterator[Workload]:
    """One square matrix, and batches of small ones."""
    for n in SQUARES:
        yield Workload(f"n={n}", ((n, n),), sets=("square",))
    for count, n in BATCHES:
        yield Workload(f"{count} of {n}x{n}", ((count, n, n),), sets=("batched",))


@fills(lu)
def _(fill: Fill, a: Sizes) -> Any:
    return (fill.regular(*a),)


@fills(cholesky)
def _(fill: Fill, a: Sizes, **attrs: Any) -> Any:
    return (fill.definite(*a),)


@flops(lu)
def _(a: Sizes) -> float:
    return 2 / 3 * math.prod(a) * a[-1]


@flops(cholesky)
def _(a: Sizes, *, upper: bool) -> float:
    return 1 / 3 * math.prod(a) * a[-1]


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(lu)
def _(queue: Queue, a: Any, y: Any, pivots: Any) -> None:
    from tilework.backends.opencl_linalg import factor_lu

    factor_lu(queue, a, y, pivots)


@opencl(cholesky)
def _(queue: Queue, a: Any, y: Any, *, upper: bool) -> None:
    from tilework.backends.opencl_linalg import factor_cholesky

    factor_cholesky(queue, a, y, upper)
