"""Dense layers of weights in 4-bit codes, with a scale and a zero point per group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Activation, Array, Sizes
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.elementwise import activated
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    depth,
    dtypes,
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
    from tilework.testing import Fill


@op
def linear_int4(
    x: Array,
    w: Array,
    scales: Array,
    zeros: Array | None = None,
    b: Array | None = None,
    *,
    group: int = 32,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Applies a dense layer of 4-bit weights: x (..., I), w uint8 (O, G, group / 2), scales (O, G) to y (..., O).

    y = activation(x Wᵀ + b) with W(o, i) = scales(o, g) (code(o, i) - zeros(o, g)) and g = i // group. The layout is
    that of ONNX Runtime's MatMulNBits: code 2 i lies in the low half of byte i, G = ceil(I / group), zeros are packed
    alike to (O, ceil(G / 2)) and are 8 if not given; w may be (O, G * group / 2). Sums are float32. group is 32, 64 or
    128.
    """
    ...


def _codes(packed: Any, count: int) -> Any:
    """The first ``count`` 4-bit codes of each row."""
    flat = np.asarray(packed).reshape(len(packed), -1)
    return np.stack([flat & 15, flat >> 4], axis=-1).reshape(len(packed), -1)[:, :count].astype(np.float64)


def _int4_parts(w: Any, scales: Any, zeros: Any, group: int, n: int) -> tuple[Any, Any, Any]:
    """Codes, zero points and scales of every weight."""
    index = np.arange(n) // group
    zero = np.full(scales.shape, 8.0) if zeros is None else _codes(zeros, scales.shape[1])
    return _codes(w, n), zero[:, index], scales[:, index]


def dense(x: Any, weights: Any, b: Any, activation: Activation) -> Any:
    """activation(x weightsᵀ + b), the weights already numbers."""
    y = np.matmul(x, weights.T)
    return activated(y if b is None else y + b, activation)


@reference(linear_int4)
def _(x: Any, w: Any, scales: Any, zeros: Any, b: Any, *, group: int, activation: Activation) -> Any:
    codes, zero, scale = _int4_parts(w, scales, zeros, group, x.shape[-1])
    return dense(x, (codes - zero) * scale, b, activation)


# Products with codes and with zero points are summed apart.
@terms(linear_int4)
def _(x: Any, w: Any, scales: Any, zeros: Any, b: Any, *, group: int, activation: Activation) -> Any:
    codes, zero, scale = _int4_parts(w, scales, zeros, group, x.shape[-1])
    return dense(np.abs(x), (codes + zero) * np.abs(scale), None if b is None else np.abs(b), None)


@depth(linear_int4)
def _(x: Any, w: Any, scales: Any, zeros: Any, b: Any, *, group: int, activation: Activation) -> int:
    return int(x.shape[-1]) + 2


dtypes(linear_int4, "float32", "float16", "bfloat16")


def random_bytes(fill: Fill, *shape: int) -> Any:
    """Bytes of drawn bits."""
    return fill.integers(*shape, low=0, high=256, dtype=np.uint8)


@samples(linear_int4)
def _(fill: Fill) -> Iterator[Sample]:
    for m, i, o, group in ((1, 1, 1, 32), (3, 70, 5, 32), (1, 200, 9, 64), (5, 130, 6, 128), (17, 40, 18, 32)):
        groups = -(-i // group)
        yield sample(fill(m, i), random_bytes(fill, o, groups, group // 2), fill(o, groups), None, fill(o), group=group)
    yield sample(fill(2, 2, 70), random_bytes(fill, 5, 48), fill(5, 3).astype(np.float32), random_bytes(fill, 5, 2))
    yield sample(
        fill(40, 18).T, random_bytes(fill, 5, 2, 16), fill(5, 2), random_bytes(fill, 5, 1), fill(5), activation="gelu"
    )
    for activation in ("relu", "relu6", "hard_swish"):
        yield sample(fill(33), random_bytes(fill, 4, 2, 16), fill(4, 2), activation=activation)
    yield sample(fill(0, 5), random_bytes(fill, 4, 1, 16), fill(4, 1))
    yield sample(fill(3, 0), random_bytes(fill, 4, 0, 16), fill(4, 0), None, fill(4))


@errors(linear_int4)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, scales = random_bytes(fill, 4, 2, 16), fill(4, 2)
    yield ErrorCase(sample(fill(3, 65), w, scales), ShapeError, "w has shape (4, 2, 16); want (4, 3, 16)")
    yield ErrorCase(sample(fill(3, 64), w.astype(np.int8), scales), DTypeError, "w has dtype int8; want uint8")
    yield ErrorCase(sample(fill(3, 64), w, fill(4, 3)), ShapeError, "scales has shape (4, 3); want (4, 2)")
    yield ErrorCase(
        sample(fill(3, 64), w, scales, random_bytes(fill, 4, 2)), ShapeError, "zeros has shape (4, 2); want (4, 1)"
    )
    yield ErrorCase(sample(fill(3, 64), w, scales, group=48), AttrError, "group=48; want 32, 64 or 128")
    yield ErrorCase(sample(fill(3, 64), w, scales, None, fill(3)), ShapeError, "b has shape (3,); want (4,)")


@workloads(linear_int4)
def _() -> Iterator[Workload]:
    for m in (1, 8, 128):
        yield Workload(f"{m}x4096x4096", ((m, 4096), (4096, 128, 16), (4096, 128), None, None), sets=("llm-decode",))


@fills(linear_int4)
def _(fill: Fill, x: Sizes, w: Sizes, scales: Sizes, zeros: Sizes | None, b: Sizes | None, **attrs: Any) -> Any:
    return fill(*x), random_bytes(fill, *w), fill.positive(*scales), None, None


@flops(linear_int4)
def _(
    x: Sizes, w: Sizes, scales: Sizes, zeros: Sizes | None, b: Sizes | None, *, group: int, activation: Activation
) -> float:
    return 2.0 * math.prod(x) * w[0]


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(linear_int4)
def _(
    queue: Queue,
    x: Any,
    w: Any,
    scales: Any,
    zeros: Any,
    b: Any,
    y: Any,
    *,
    group: int,
    activation: Activation,
) -> None:
    from tilework.backends.opencl_gemm import multiply

    weights = queue.empty((w.shape[0], x.shape[-1]), np.float32)
    if weights.size:
        args = (w, scales, *([] if zeros is None else [zeros]), weights, weights.size, x.shape[-1], group)
        define = {"DTYPE": scales.dtype} | ({} if zeros is None else {"ZEROS": 1})
        queue.launch("linear_int4.cl", "unpack_int4", weights.size, GROUP_SIZE, args, **define)
    multiply(queue, x, weights.T, y, b, activation)
