"""Dense layers whose weights are indices of 1 to 8 bits into tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Activation, Array
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, ShapeError
from tilework.ops.linear_int4 import dense, random_bytes
from tilework.registry import (
    ErrorCase,
    Sample,
    depth,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    terms,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def linear_lut(
    x: Array,
    w: Array,
    table: Array,
    b: Array | None = None,
    *,
    bits: int,
    group: int = 0,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Applies a dense layer of looked-up weights: x (..., I), w uint8 (O, ceil(I bits / 8)), a table, to y (..., O).

    y = activation(x Wᵀ + b) with W(o, i) = table[index(o, i)]. Index i of a row of w is its bits i * bits to
    (i + 1) * bits - 1, the lowest first, bits from 1 to 8. The table has shape (2 ** bits,), or (O, 2 ** bits) for one
    per output, or with ``group`` (O or 1, ceil(I / group), 2 ** bits) for one per ``group`` inputs. Sums are float32.
    """
    ...


def _lut_weights(w: Any, table: Any, bits: int, group: int, n: int) -> Any:
    """W of linear_lut."""
    ones = np.unpackbits(np.asarray(w), axis=1, bitorder="little")[:, : n * bits].reshape(len(w), n, bits)
    index = (ones.astype(np.int64) << np.arange(bits)).sum(axis=-1)
    if table.ndim == 1:
        return table[index]
    rows = np.arange(len(w))[:, None] if len(table) > 1 else 0
    return table[rows, index] if table.ndim == 2 else table[rows, np.arange(n) // group, index]


@reference(linear_lut)
def _(x: Any, w: Any, table: Any, b: Any, *, bits: int, group: int, activation: Activation) -> Any:
    return dense(x, _lut_weights(w, table, bits, group, x.shape[-1]), b, activation)


@terms(linear_lut)
def _(x: Any, w: Any, table: Any, b: Any, *, bits: int, group: int, activation: Activation) -> Any:
    weights = _lut_weights(w, np.abs(table), bits, group, x.shape[-1])
    return dense(np.abs(x), weights, None if b is None else np.abs(b), None)


@depth(linear_lut)
def _(x: Any, w: Any, table: Any, b: Any, *, bits: int, group: int, activation: Activation) -> int:
    return int(x.shape[-1]) + 1


dtypes(linear_lut, "float32", "float16", "bfloat16")


@samples(linear_lut)
def _(fill: Fill) -> Iterator[Sample]:
    for bits in (1, 3, 4, 8):
        yield sample(fill(3, 21), random_bytes(fill, 5, -(-21 * bits // 8)), fill(1 << bits), fill(5), bits=bits)
    yield sample(fill(2, 2, 19), random_bytes(fill, 18, 5), fill(18, 4), bits=2, activation="tanh")
    yield sample(fill(9, 3).T, random_bytes(fill, 4, 7), fill(4, 3, 64).astype(np.float32), fill(4), bits=6, group=4)
    yield sample(fill(9), random_bytes(fill, 4, 7), fill(1, 2, 64), bits=6, group=8)
    yield sample(fill(0, 5), random_bytes(fill, 4, 3), fill(16), bits=4)


@errors(linear_lut)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w = random_bytes(fill, 4, 3)
    yield ErrorCase(sample(fill(3, 5), w, fill(16), bits=9), AttrError, "bits=9; want 1 to 8")
    yield ErrorCase(sample(fill(3, 7), w, fill(16), bits=4), ShapeError, "w has shape (4, 3); want (4, 4)")
    yield ErrorCase(sample(fill(3, 5), w, fill(8), bits=4), ShapeError, "table has shape (8,); want (16,)")
    yield ErrorCase(sample(fill(3, 5), w, fill(3, 16), bits=4), ShapeError, "table has shape (3, 16); want (4, 16)")
    yield ErrorCase(
        sample(fill(3, 5), w, fill(16), bits=4, group=2), ShapeError, "table has shape (16,); want (4, 3, 16)"
    )


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(linear_lut)
def _(
    queue: Queue, x: Any, w: Any, table: Any, b: Any, y: Any, *, bits: int, group: int, activation: Activation
) -> None:
    from tilework.backends.opencl_gemm import multiply

    weights = queue.empty((w.shape[0], x.shape[-1]), np.float32)
    if weights.size:
        own = 0 if table.ndim == 1 or (table.ndim == 3 and table.shape[0] == 1) else table.size // table.shape[0]
        args = (w, table, weights, weights.size, x.shape[-1], w.shape[1], bits, group, own)
        queue.launch("linear_lut.cl", "unpack_lut", weights.size, GROUP_SIZE, args, DTYPE=table.dtype)
    multiply(queue, x, weights.T, y, b, activation)
