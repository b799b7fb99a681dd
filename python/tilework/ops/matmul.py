"""Matrix products: matmul and linear, over the one GEMM.

Both compute in float32, float64, float16 and bfloat16. The 16-bit types are storage: products are summed in float32 and
rounded once. A float16 or bfloat16 right operand also goes with a float32 left one, and the result is float32 then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Sizes, Wanted
from tilework.dtypes import is_narrow, named
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.elementwise import activated, activation_dx, forward_activated, sum_to_shape
from tilework.ops.movement import as_rows
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    flops,
    forward,
    op,
    opencl,
    preparing,
    reference,
    sample,
    samples,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

# ----------------------------------------------------------------------------------------------------- matmul


@op
def matmul(
    a: Array, b: Array, c: Array | None = None, *, alpha: float = 1.0, beta: float = 1.0, out: Array | None = None
) -> Array:
    """Multiplies matrices as numpy.matmul does: a (..., M, K) by b (..., K, N) to alpha a b + beta c (..., M, N).

    The leading axes broadcast, and c broadcasts to the result. A 1-D a is a row and a 1-D b a column, whose axis is
    missing in the result. Any strides are read in place: pass transposed views freely. With beta = 0, c is not read.
    """
    ...


@reference(matmul)
def _(a: Any, b: Any, c: Any, *, alpha: float, beta: float) -> Any:
    y = alpha * np.matmul(a, b)
    return y if c is None or beta == 0 else y + beta * c


@depth(matmul)
def _(a: Any, b: Any, c: Any, *, alpha: float, beta: float) -> int:
    return int(a.shape[-1]) + 1


@backward(matmul, of=("a", "b", "c"), where_given=("c",))
def _(dy: Array, a: Array, b: Array, c: Array, *, saved: None, wanted: Wanted, alpha: float, beta: float) -> Any:
    dy = _wide(dy)
    rows = a if a.ndim > 1 else ops.reshape(a, shape=(1, a.shape[0]))
    columns = b if b.ndim > 1 else ops.reshape(b, shape=(b.shape[0], 1))
    lead = dy.shape[: dy.ndim - (a.ndim > 1) - (b.ndim > 1)]
    full = ops.reshape(dy, shape=(*lead, rows.shape[-2], columns.shape[-1]))
    da = db = dc = None
    if "a" in wanted:
        da = matmul(full, _swapped(columns), alpha=alpha)
        da = ops.reshape(sum_to_shape(da, rows.shape), shape=a.shape)
    if "b" in wanted:
        db = matmul(_swapped(_wide(rows)), full, alpha=alpha)
        db = ops.reshape(sum_to_shape(db, columns.shape), shape=b.shape)
    if "c" in wanted:
        dc = ops.mul(sum_to_shape(dy, c.shape), beta)
    return _as_type_of(da, a), _as_type_of(db, b), _as_type_of(dc, c)


def _wide(x: Array) -> Array:
    """x in the type that sums are kept in: gradients of 16-bit operands are rounded once, at their end."""
    return ops.cast(x, dtype=np.float32) if is_narrow(x.dtype) else x


def _as_type_of(x: Array | None, like: Array) -> Any:
    return x if x is None or x.dtype == like.dtype else ops.cast(x, dtype=like.dtype)


def _swapped(x: Array) -> Array:
    """x with its last two axes swapped, a view."""
    return ops.transpose(x, axes=(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


dtypes(matmul, "float32", "float64", "float16", "bfloat16")
matmul.rules["reads_packed"] = ("b",)


@samples(matmul)
def _(fill: Fill) -> Iterator[Sample]:
    for m, k, n in ((1, 1, 1), (3, 5, 7), (4, 8, 16), (5, 9, 17), (13, 33, 47), (1, 64, 31), (70, 3, 1)):
        yield sample(fill(m, k), fill(k, n))
    yield sample(fill(65, 300), fill(300, 70))
    yield sample(fill(9, 6).T, fill(11, 9).T)
    yield sample(fill(7), fill(7))
    yield sample(fill(7), fill(7, 5))
    yield sample(fill(5, 7), fill(7))
    yield sample(fill(7), fill(2, 3, 7, 4))
    yield sample(fill(2, 3, 4, 7), fill(7))
    yield sample(fill(2, 3, 5, 4), fill(4, 6))
    yield sample(fill(5, 4), fill(2, 3, 4, 6))
    yield sample(fill(2, 1, 5, 4), fill(3, 4, 6))
    yield sample(fill(2, 3, 0), fill(2, 0, 4))
    yield sample(fill(0, 3), fill(3, 4))
    yield sample(fill(3, 4), fill(4, 0))
    yield sample(fill(7, 9), fill(9, 17), fill(7, 17), alpha=0.5, beta=-2.0)
    yield sample(fill(2, 5, 3), fill(3, 9), fill(9), beta=0.5)
    yield sample(fill(2, 5, 3), fill(2, 3, 9), fill(5, 1), alpha=-1.0)
    yield sample(fill(3, 0), fill(0, 4), fill(3, 4), beta=2.0)
    yield sample(fill(6, 5), fill(5, 7).T.copy().T, fill(7, 6).T, alpha=2.0)
    if fill.dtype == np.float32:
        yield sample(fill(5, 41), fill(41, 19).astype(np.float16))
        yield sample(fill(2, 3, 33), fill(2, 33, 5).astype(named("bfloat16")))


@errors(matmul)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(4, 5)), ShapeError, "K=3, but b has shape (4, 5), K=4")
    yield ErrorCase(sample(fill(3), fill(4)), ShapeError, "K=3, but b has shape (4,), K=4")
    yield ErrorCase(sample(fill(2, 2, 3), fill(3, 3, 4)), ShapeError, "want leading axes that broadcast")
    yield ErrorCase(sample(fill(), fill(3)), ShapeError, "a has 0 dimensions; want 1 to 8")
    yield ErrorCase(
        sample(fill(2, 3), fill(3, 4), fill(3, 4)), ShapeError, "c has shape (3, 4) but the product has (2, 4)"
    )
    yield ErrorCase(sample(fill(2, 3), fill(3, 4), fill(1, 2, 4)), ShapeError, "want one that broadcasts to it")
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(fill(2, 3), fill(3, 4).astype(other)), DTypeError, f"b has dtype {np.dtype(other)}")
    yield ErrorCase(sample(np.ones((2, 2), np.int32), np.ones((2, 2), np.int32)), DTypeError, "a has dtype int32")


@workloads(matmul)
def _() -> Iterator[Workload]:
    for n in (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048):
        yield Workload(f"n={n}", ((n, n), (n, n), None), sets=("square",))
    yield Workload("1x768x3072", ((1, 768), (768, 3072), None), sets=("transformer",))
    yield Workload("128x768x768", ((128, 768), (768, 768), None), sets=("transformer",))
    yield Workload("12 heads 128x64x128", ((12, 128, 64), (12, 64, 128), None), sets=("transformer",))
    yield Workload("4096x16x16", ((4096, 16), (16, 16), None), sets=("thin",))


@flops(matmul)
def _(a: Sizes, b: Sizes, c: Sizes | None, *, alpha: float, beta: float) -> float:
    columns = b[-1] if len(b) > 1 else 1
    rows = a[-2] if len(a) > 1 else 1
    return 2.0 * math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * rows * a[-1] * columns


# ----------------------------------------------------------------------------------------------------- linear


@op
def linear(
    x: Array,
    w: Array,
    b: Array | None = None,
    residual: Array | None = None,
    *,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Applies a dense layer: x (..., I), w (O, I), b (O,) to activation(x wᵀ + b + residual) of shape (..., O).

    ``residual`` has the shape of the result and is added before the activation. ``prepare`` folds a batch_norm over O
    that follows into w and b: prepare(w=w, b=b, batch_norm=...).
    """
    ...


@reference(linear)
def _(x: Any, w: Any, b: Any, residual: Any, *, activation: Activation) -> Any:
    y = np.matmul(x, w.T)
    for addend in (b, residual):
        y = y if addend is None else y + addend
    return activated(y, activation)


@preparing(linear)
def _(given: dict[str, Any]) -> dict[str, Any]:
    from tilework.ops.batch_norm import with_batch_norm

    return with_batch_norm(linear, given)


@depth(linear)
def _(x: Any, w: Any, b: Any, residual: Any, *, activation: Activation) -> int:
    return int(x.shape[-1]) + 2


@forward(linear)
def _(x: Array, w: Array, b: Array, residual: Array, *, activation: Activation) -> tuple[Array, Array | None]:
    if activation is None:
        return linear(x, w, b, residual), None
    y, saved = _forward(x, w, b, residual, activation)
    return _as_type_of(y, x), saved


def _forward(
    x: Array, w: Array, b: Array, residual: Array | None, activation: Activation
) -> tuple[Array, Array | None]:
    """The result before its last rounding, and what activation_dx needs."""
    wide = _wide(x)
    added = None if residual is None else _wide(residual)
    return forward_activated(lambda last: linear(wide, w, b, added, activation=last), activation)


@backward(linear, of=("x", "w", "b", "residual"), where_given=("residual",))
def _(
    dy: Array,
    x: Array,
    w: Array,
    b: Array,
    residual: Array,
    *,
    saved: Array | None,
    wanted: Wanted,
    activation: Activation,
) -> Any:
    if activation and saved is None:
        saved = _forward(x, w, b, residual, activation)[1]
    dy = activation_dx(_wide(dy), saved, activation)
    dx = _as_type_of(matmul(dy, w), x) if "x" in wanted else None
    dw = _as_type_of(matmul(ops.transpose(as_rows(dy)), as_rows(x)), w) if "w" in wanted else None
    db = _as_type_of(ops.reduce_sum(dy, axes=tuple(range(dy.ndim - 1))), b) if "b" in wanted else None
    return dx, dw, db, _as_type_of(dy, residual) if "residual" in wanted else None


dtypes(linear, "float32", "float64", "float16", "bfloat16")
linear.rules["reads_packed"] = ("w",)


@samples(linear)
def _(fill: Fill) -> Iterator[Sample]:
    for m, i, o in ((1, 1, 1), (3, 5, 7), (4, 8, 16), (5, 9, 17), (37, 65, 33)):
        yield sample(fill(m, i), fill(o, i), fill(o))
    yield sample(fill(3, 5), fill(4, 5))
    yield sample(fill(5), fill(4, 5), fill(4))
    yield sample(fill(2, 3, 5), fill(9, 5), fill(9))
    yield sample(fill(3, 2, 5).transpose(1, 0, 2), fill(5, 9).T, fill(9))
    for activation in ("relu", "sigmoid", "tanh", "gelu", "silu", "hard_swish"):
        yield sample(fill(3, 9), fill(17, 9), fill(17), activation=activation)
    yield sample(fill(2, 3, 9), fill(5, 9), activation="gelu")
    yield sample(fill(0, 5), fill(4, 5), fill(4))
    yield sample(fill(3, 0), fill(4, 0), fill(4), activation="relu")
    yield sample(fill(3, 9), fill(17, 9), fill(17), fill(3, 17), activation="relu")
    yield sample(fill(2, 3, 9), fill(5, 9), None, fill(3, 2, 5).transpose(1, 0, 2), activation="gelu")
    if fill.dtype == np.float32:
        yield sample(fill(5, 37), fill(19, 37).astype(np.float16), fill(19), activation="relu")
        yield sample(fill(2, 37), fill(19, 37).astype(named("bfloat16")), fill(19).astype(named("bfloat16")))


@errors(linear)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), fill(4, 5)), ShapeError, "x has I=3 but w has shape (4, 5)")
    yield ErrorCase(sample(fill(2, 3), fill(4, 3), fill(3)), ShapeError, "b has shape (3,) but w has O=4; want (4,)")
    yield ErrorCase(
        sample(fill(2, 3), fill(4, 3), fill(4, 1)), ShapeError, "b has shape (4, 1) but w has O=4; want (4,)"
    )
    yield ErrorCase(sample(fill(2, 3), fill(3)), ShapeError, "w has 1 dimensions; want 2")
    yield ErrorCase(sample(fill(2, 3), fill(4, 3), None, fill(4)), ShapeError, "residual has shape (4,); want (2, 4)")
    yield ErrorCase(sample(fill(), fill(4, 3)), ShapeError, "x has 0 dimensions; want 1 to 8")
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(fill(2, 3), fill(4, 3), fill(4).astype(other)), DTypeError, f"b has dtype {np.dtype(other)}")
    yield ErrorCase(sample(fill(2, 3), fill(4, 3), activation="Relu"), AttrError, "activation='Relu'; want one of")


@workloads(linear)
def _() -> Iterator[Workload]:
    yield Workload("128x768x3072", ((128, 768), (3072, 768), (3072,), None), sets=("transformer",))
    yield Workload(
        "128x768x3072 gelu", ((128, 768), (3072, 768), (3072,), None), {"activation": "gelu"}, ("transformer",)
    )
    yield Workload("128x3072x768", ((128, 3072), (768, 3072), (768,), None), sets=("transformer",))
    yield Workload("1x768x3072", ((1, 768), (3072, 768), (3072,), None), sets=("transformer",))
    yield Workload("1x2048x1000", ((1, 2048), (1000, 2048), (1000,), None), sets=("resnet50",))


@flops(linear)
def _(x: Sizes, w: Sizes, b: Sizes | None, residual: Sizes | None, *, activation: Activation) -> float:
    return 2.0 * math.prod(x) * w[0]


# ------------------------------------------------------------------------------------------------- OpenCL
# A 16-bit operand beside float32 is widened on the device before the product.


@opencl(matmul)
def _(queue: Queue, a: Any, b: Any, c: Any, y: Any, *, alpha: float, beta: float) -> None:
    from tilework.backends.opencl_gemm import multiply

    addend = None if c is None or beta == 0 else ops.expand(c, shape=y.shape)
    multiply(queue, a, _as_type_of(b, y), y, addend=addend, scales=(alpha, beta))


@opencl(linear)
def _(queue: Queue, x: Any, w: Any, b: Any, residual: Any, y: Any, *, activation: Activation) -> None:
    from tilework.backends.opencl_gemm import multiply

    multiply(queue, x, _as_type_of(w, y).T, y, _as_type_of(b, y), activation, addend=residual)
