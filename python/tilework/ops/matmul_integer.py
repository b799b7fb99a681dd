"""Products of 8-bit matrices: exact in int32, or requantised to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    flops,
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
def matmul_integer(
    a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None, *, out: Array | None = None
) -> Array:
    """Multiplies 8-bit matrices exactly: a - a_zero (..., M, K) by b - b_zero (..., K, N) to int32 (..., M, N).

    a and b are int8 or uint8, each of its own; shapes follow matmul. a_zero is one number, one per row (M,), or the
    shape of a with 1 for K; b_zero one number, one per column (N,), or the shape of b with 1 for K. A K whose sum could
    leave int32 is an error: the largest is 131071 for int8 by int8, 33025 for uint8 by uint8. ONNX MatMulInteger.
    """
    ...


@op
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    y_scale: Array,
    y_zero: Array,
    *,
    out: Array | None = None,
) -> Array:
    """Multiplies 8-bit matrices and requantises: matmul_integer's sums to clamp(rint(sum * scale) + y_zero).

    scale = a_scale * b_scale / y_scale in float32; scales have the shapes of the zero points of matmul_integer, y_scale
    and y_zero are one number. The result has the dtype of y_zero, int8 or uint8. ONNX QLinearMatMul.
    """
    ...


def _along(v: Any, matrix: Any, *, rows: bool) -> Any:
    """A zero point or scale in shape to broadcast against a matrix."""
    if v.ndim > 1 or matrix.ndim == 1:
        return v
    return v.reshape(-1, 1) if rows else v.reshape(1, -1)


def _exact(a: Any, b: Any, a_zero: Any, b_zero: Any) -> Any:
    left, right = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if a_zero is not None:
        left = left - _along(np.asarray(a_zero, np.int64), a, rows=True)
    if b_zero is not None:
        right = right - _along(np.asarray(b_zero, np.int64), b, rows=False)
    # Below 2**53 a float64 holds every sum exactly.
    return np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)


@reference(matmul_integer)
def _(a: Any, b: Any, a_zero: Any, b_zero: Any) -> Any:
    return _exact(a, b, a_zero, b_zero).astype(np.int32)


@reference(qlinear_matmul)
def _(a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, y_scale: Any, y_zero: Any) -> Any:
    sums = _exact(a, b, a_zero, b_zero).astype(np.float32)
    single = [np.asarray(s, np.float32) for s in (a_scale, b_scale, y_scale)]
    row, column = _along(single[0], a, rows=True), _along(single[1], b, rows=False)
    if a.ndim == 1 and row.ndim:
        row = row.reshape(())
    if b.ndim == 1 and column.ndim:
        column = column.reshape(())
    if a.ndim > 1 and b.ndim == 1 and row.ndim > 1:
        row = row[..., 0]
    if a.ndim == 1 and b.ndim > 1 and column.ndim > 1:
        column = column[..., 0, :]
    scaled = sums * (row * column / single[2].reshape(()))
    limits = np.iinfo(y_zero.dtype)
    whole = np.rint(np.where(np.isnan(scaled), np.float32(0), scaled)).astype(np.float64) + y_zero.reshape(())
    return np.clip(whole, limits.min, limits.max).astype(y_zero.dtype)


for _op in (matmul_integer, qlinear_matmul):
    dtypes(_op, "int8", "uint8")
    tolerance(_op, ulp=0.5)


@samples(matmul_integer)
def _(fill: Fill) -> Iterator[Sample]:
    mixed = np.uint8 if fill.dtype == np.int8 else np.int8
    for m, k, n in ((1, 1, 1), (3, 5, 7), (6, 64, 16), (13, 33, 47), (1, 70, 31), (70, 3, 1)):
        yield sample(fill(m, k), fill(k, n))
    yield sample(fill(13, 40), fill(9, 40).T.astype(mixed, order="K"), fill(13), fill(9).astype(mixed))
    yield sample(fill(7, 37), fill(17, 37).T, fill(), fill())
    yield sample(fill(9, 6).T, fill(11, 9).T, None, fill(1))
    yield sample(fill(1600, 5).T, fill(1600, 19), fill(5), fill(19))
    yield sample(fill(7), fill(7), fill())
    yield sample(fill(7), fill(2, 3, 7, 4))
    yield sample(fill(5, 7), fill(7), fill(5))
    yield sample(fill(2, 1, 5, 4), fill(3, 4, 6), fill(2, 1, 5, 1), fill(3, 1, 6))
    yield sample(fill(2, 0), fill(0, 3))
    yield sample(fill(0, 3), fill(3, 4))


@samples(qlinear_matmul)
def _(fill: Fill) -> Iterator[Sample]:
    def scale(*shape: int) -> Any:
        return np.asarray(fill.integers(*shape, low=1, high=200) / 10000, np.float32)

    one = np.full((), 0.37, np.float32)
    yield sample(fill(5, 9), scale(), fill(), fill(9, 18), scale(), fill(), one, fill())
    yield sample(fill(13, 33), scale(13), fill(13), fill(33, 7), scale(7), fill(7), one, fill())
    yield sample(
        fill(2, 3, 4), scale(2, 3, 1), fill(2, 3, 1), fill(2, 4, 5), scale(2, 1, 5), fill(2, 1, 5), one, fill(1)
    )
    yield sample(fill(9), scale(), fill(), fill(6, 9).T, scale(6), fill(6), one, fill())
    yield sample(fill(0, 3), scale(), fill(), fill(3, 4), scale(), fill(), one, fill())


@errors(matmul_integer)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(4, 5)), ShapeError, "K=3, but b has shape (4, 5), K=4")
    yield ErrorCase(sample(fill(2, 2, 3), fill(3, 3, 4)), ShapeError, "want leading axes that broadcast")
    yield ErrorCase(
        sample(np.ones((2, 2), np.float32), fill(2, 2)), DTypeError, "a has dtype float32; want int8 or uint8"
    )
    yield ErrorCase(sample(fill(2, 2), np.ones((2, 2), np.int32)), DTypeError, "b has dtype int32; want int8 or uint8")
    yield ErrorCase(
        sample(fill(2, 3), fill(3, 4), np.zeros((), np.int32)), DTypeError, "a_zero has dtype int32 but a has"
    )
    yield ErrorCase(sample(fill(2, 3), fill(3, 4), fill(3)), ShapeError, "a_zero has shape (3,) but a has shape (2, 3)")
    yield ErrorCase(sample(fill(2, 3), fill(3, 4), None, fill(3)), ShapeError, "b_zero has shape (3,) but b has shape")
    most = 131071 if fill.dtype == np.int8 else 33025
    long = np.lib.stride_tricks.as_strided(fill(1), (1, most + 1), (0, 0))
    yield ErrorCase(sample(long, long.T), ShapeError, f"K={most + 1} terms could leave int32; want {most} or fewer")


@errors(qlinear_matmul)
def _(fill: Fill) -> Iterator[ErrorCase]:
    one, zero = np.ones((), np.float32), fill()

    def case(**changed: Any) -> Sample:
        given = {
            "a": fill(2, 3), "a_scale": one, "a_zero": zero, "b": fill(3, 4), "b_scale": one, "b_zero": zero,
            "y_scale": one, "y_zero": zero,
        }  # fmt: skip
        return sample(*(given | changed).values())

    yield ErrorCase(case(a_scale=np.ones(3, np.float32)), ShapeError, "a_scale has shape (3,) but a has shape (2, 3)")
    yield ErrorCase(case(b_scale=np.ones(())), DTypeError, "b_scale has dtype float64; want float32")
    yield ErrorCase(case(y_scale=np.ones(2, np.float32)), ShapeError, "y_scale has shape (2,); want one number")
    yield ErrorCase(case(y_zero=np.zeros((), np.int32)), DTypeError, "y_zero has dtype int32; want int8 or uint8")


@workloads(matmul_integer)
def _() -> Iterator[Workload]:
    for n in (64, 128, 256, 512, 1024, 2048):
        yield Workload(f"n={n}", ((n, n), (n, n), None, None), sets=("square",))


@flops(matmul_integer)
def _(a: Sizes, b: Sizes, a_zero: Sizes | None, b_zero: Sizes | None) -> float:
    columns = b[-1] if len(b) > 1 else 1
    rows = a[-2] if len(a) > 1 else 1
    return 2.0 * math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * rows * a[-1] * columns


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(matmul_integer)
def _(queue: Queue, a: Any, b: Any, a_zero: Any, b_zero: Any, y: Any) -> None:
    from tilework.backends.opencl_gemm import multiply

    multiply(queue, a, b, y, zeros=(a_zero, b_zero))


@opencl(qlinear_matmul)
def _(
    queue: Queue,
    a: Any,
    a_scale: Any,
    a_zero: Any,
    b: Any,
    b_scale: Any,
    b_zero: Any,
    y_scale: Any,
    y_zero: Any,
    y: Any,
) -> None:
    from tilework.backends.opencl_gemm import multiply

    sums = queue.empty(y.shape, np.int32)
    multiply(queue, a, b, sums, zeros=(a_zero, b_zero))
    batch = y.shape[: y.ndim - (a.ndim > 1) - (b.ndim > 1)]
    m, n = a.shape[-2] if a.ndim > 1 else 1, b.shape[-1] if b.ndim > 1 else 1
    scales = _spread(queue, a_scale, (*batch, m), -1), _spread(queue, b_scale, (*batch, n), -2)
    args = (sums, *scales, y_scale, y_zero, y, y.size, m, n)
    queue.launch("quantize.cl", "requantize", y.size, GROUP_SIZE, args, DTYPE=y.dtype, SUMS=1)


def _spread(queue: Queue, scale: Any, shape: Sizes, summed: int) -> Any:
    """A scale with one number for each index of ``shape``; axis ``summed`` of its matrix is K."""
    full = queue.empty(shape, scale.dtype)
    if scale.ndim > 1:
        scale = queue.contiguous(scale).reshape([n for d, n in enumerate(scale.shape) if d != scale.ndim + summed])
    queue.copy(scale, full)
    return full
