"""Inverses and determinants of square matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.ops.factor import (
    inverse,
    known,
    perturbation,
    singular_errors,
    square_errors,
    square_workloads,
    swapped,
    transposed,
)
from tilework.registry import (
    ErrorCase,
    Sample,
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
def inv(a: Array, *, out: Array | None = None) -> Array:
    """Inverts square matrices a (..., N, N).

    A singular matrix is a SingularError; one with a NaN or an infinity gives NaN throughout. To solve a x = b, solve is
    faster and nearer.
    """
    ...


@op
def det(a: Array, *, out: Array | None = None) -> Array:
    """Computes the determinants (...,) of square matrices a (..., N, N): 0 of a singular one.

    NaN for a matrix with a NaN or an infinity. The gradient of a singular matrix is a SingularError.
    """
    ...


@op
def slogdet(a: Array, *, out: tuple[Array, Array] | None = None) -> Array:
    """Computes (sign, logarithm of the size) of the determinants of square matrices a (..., N, N), each (...,).

    The sign is 1 or -1, or 0 of a singular matrix, whose logarithm is -inf. The gradient of the logarithm
    is inv(a)ᵀ, that of the sign 0.
    """
    ...


# ------------------------------------------------------------------------------------------ references


@reference(inv)
def _inv(a: Any) -> Any:
    finite = known(a)
    return np.where(finite, np.linalg.inv(np.where(finite, a, np.eye(a.shape[-1]))), np.nan)


def _finite(a: Any) -> Any:
    return np.where(known(a), a, np.nan)


@reference(det)
def _det(a: Any) -> Any:
    sign, log = _slogdet(a)
    return sign * np.exp(log)


@reference(slogdet)
def _slogdet(a: Any) -> Any:
    sign, log = np.linalg.slogdet(np.where(known(a), a, np.eye(a.shape[-1])))
    finite = known(a)[..., 0, 0]
    return np.where(finite, sign, np.nan), np.where(finite, log, np.nan)


@depth(inv)
@depth(det)
@depth(slogdet)
def _(a: Any) -> int:
    return int(a.shape[-1])


@terms(inv)
def _(a: Any) -> Any:
    size = inverse(a)
    return size @ perturbation(a) @ size


# The determinant moves by tr(a^-1 e) of itself.
def _relative(a: Any) -> Any:
    return (transposed(inverse(a)) * perturbation(a)).sum(axis=(-1, -2))


@terms(det)
def _(a: Any) -> Any:
    return np.abs(_det(a)) * _relative(a)


@terms(slogdet)
def _(a: Any) -> Any:
    relative = _relative(a)
    return relative, relative


# ------------------------------------------------------------------------------------------- gradients
# Giles, "Collected matrix derivative results for forward and reverse mode algorithmic differentiation", 2008.


@forward(inv)
def _(a: Array) -> tuple[Array, Array]:
    found = inv(a)
    return found, found


@backward(inv, of=("a",))
def _(dy: Array, a: Array, *, saved: Array | None, wanted: Wanted) -> Array:
    y = swapped(saved if saved is not None else inv(a))
    return ops.mul(ops.matmul(ops.matmul(y, dy), y), -1.0)


@backward(slogdet, of=("a",), result=1)
def _(dy: Array, a: Array, *, saved: None, wanted: Wanted) -> Array:
    return ops.mul(ops.reshape(dy, shape=(*dy.shape, 1, 1)), swapped(inv(a)))


@backward(det, of=("a",))
def _(dy: Array, a: Array, *, saved: None, wanted: Wanted) -> Array:
    change = ops.mul(dy, det(a))
    return ops.mul(ops.reshape(change, shape=(*change.shape, 1, 1)), swapped(inv(a)))


# ---------------------------------------------------------------------------------------------- samples


def _samples(fill: Fill) -> Iterator[Sample]:
    for n in (1, 2, 3, 5, 8, 17, 33):
        yield sample(fill.regular(n, n))
    yield sample(fill.regular(70, 70))
    yield sample(fill.regular(7, 7).T)
    yield sample(fill.regular(2, 3, 4, 4))
    yield sample(fill(0, 0))
    yield sample(fill(2, 0, 3, 3))


@errors(inv)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from square_errors(fill)
    yield from singular_errors(fill)


errors(det)(square_errors)
errors(slogdet)(square_errors)


def _fills(fill: Fill, a: Sizes) -> Any:
    return (fill.regular(*a),)


@flops(inv)
def _(a: Sizes) -> float:
    return 2.0 * math.prod(a) * a[-1]


@flops(det)
@flops(slogdet)
def _(a: Sizes) -> float:
    return 2 / 3 * math.prod(a) * a[-1]


for _op in (inv, det, slogdet):
    samples(_op)(_samples)
    fills(_op)(_fills)
    workloads(_op)(square_workloads)


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(inv)
def _(queue: Queue, a: Any, y: Any) -> None:
    from tilework.backends.opencl_linalg import invert

    invert(queue, a, y)


@opencl(det)
def _(queue: Queue, a: Any, y: Any) -> None:
    from tilework.backends.opencl_linalg import determinant

    determinant(queue, a, None, y)


@opencl(slogdet)
def _(queue: Queue, a: Any, sign: Any, y: Any) -> None:
    from tilework.backends.opencl_linalg import determinant

    determinant(queue, a, sign, y)
