"""What the recurrent layers share: functions of gates, steps in order, sizes of sums, samples and workloads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Sizes, Wanted
from tilework.dtypes import rounded
from tilework.errors import AttrError, DTypeError, IndexContentError, ShapeError
from tilework.ops.linear_int8 import row_codes
from tilework.ops.quantize import row_scales
from tilework.registry import ErrorCase, Sample, Workload, fills, flops, sample, workloads

if TYPE_CHECKING:
    from tilework.testing import Fill


# ------------------------------------------------------------------------------------------------- references


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _softplus(x: Any) -> Any:
    return np.where(x < 0, 0.0, x) + np.log1p(np.exp(-np.abs(x)))


# The functions of gates and states, and their slopes from what they gave.
_GATES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sigmoid": (_sigmoid, lambda y: y * (1 - y)),
    "tanh": (np.tanh, lambda y: 1 - y * y),
    "relu": (lambda x: np.where(x <= 0, 0.0, x), lambda y: np.where(y > 0, 1.0, 0.0)),
    "hard_sigmoid": (lambda x: np.clip(0.2 * x + 0.5, 0, 1), lambda y: np.where((y > 0) & (y < 1), 0.2, 0.0)),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda y: np.where(y > 0, 1.0, 0.01)),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda y: np.where(y > 0, 1.0, y + 1)),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda y: (1 - np.abs(y)) ** 2),
    "softplus": (_softplus, lambda y: -np.expm1(-y)),
    "identity": (lambda x: x, np.ones_like),
}


def gate(activation: str, x: Any) -> Any:
    """The activation of x."""
    return _GATES[activation][0](x)


def slope(activation: str, y: Any) -> Any:
    """The derivative of an activation from its result y."""
    return _GATES[activation][1](y)


def state(given: Any, x: Any, r: Any, width: int | None = None) -> Any:
    """A copy of a state (D, N, H), zero where it is not given."""
    return np.zeros((r.shape[0], x.shape[1], r.shape[2] if width is None else width)) if given is None else given.copy()


def visits(x: Any, r: Any, lengths: Any, *, back: bool = False) -> Iterator[tuple[int, Any, Any, Any]]:
    """Steps of each direction in order, or back from the last: the direction, its sequences that have the step, where
    it lies in time, and where the step before lies, None for the first."""
    steps, count = x.shape[:2]
    length = np.full(count, steps) if lengths is None else np.asarray(lengths, np.int64)
    for d in range(r.shape[0]):
        for step in reversed(range(steps)) if back else range(steps):
            rows = np.flatnonzero(step < length)
            t = length[rows] - 1 - step if d else np.full(rows.size, step)
            yield d, rows, t, (t + 1 if d else t - 1) if step else None


class Size:
    """The largest sum of sizes that a sum of products has had; products with weights that are stored as ``dtype``."""

    def __init__(self, dtype: Any = None) -> None:
        self.top, self.dtype = 1.0, dtype
        self.coded = dtype is not None and np.dtype(dtype) == np.int8

    def stored(self, w: Any) -> Any:
        """Weights (D, rows, terms) rounded to ``dtype``; in 8 bits to multiples of the largest of a row / 127."""
        if self.dtype is None or not self.coded:
            return w if self.dtype is None else rounded(w, self.dtype).astype(np.float64)
        scale = row_scales(w.astype(np.float32))
        codes = np.clip(np.rint(np.nan_to_num(w.astype(np.float32) * (np.float32(1) / scale), nan=0.0)), -127, 127)
        return codes.astype(np.float64) * scale.astype(np.float64)

    def met(self, x: Any, w: Any, bias: Any = 0.0, beside: Any = 0.0) -> Any:
        """The product with stored weights; rows that meet 8 bits are what their codes stand for."""
        if self.coded:
            codes, zero, scale = row_codes(x.astype(np.float32))
            x = (codes - zero) * scale.astype(np.float64)
        return self.product(x, w, bias, beside)

    def product(self, x: Any, w: Any, bias: Any = 0.0, beside: Any = 0.0) -> Any:
        """X wᵀ + bias + beside, where the size of beside is already counted."""
        sums = np.abs(x) @ np.abs(w).T + np.abs(bias) + np.abs(beside)
        self.top = max(self.top, float(np.nan_to_num(sums).max(initial=0.0)))
        return x @ w.T + bias + beside

    def sum(self, a: Any, b: Any) -> Any:
        """A + b, where the size of a is already counted."""
        self.top = max(self.top, float(np.nan_to_num(np.abs(a) + np.abs(b)).max(initial=0.0)))
        return a + b


def per_step(x: Any, r: Any, width: int) -> Any:
    """Zeros (D, T, N, width)."""
    return np.zeros((r.shape[0], *x.shape[:2], width))


def gradients(x: Any, w: Any, r: Any) -> tuple[Any, ...]:
    """Zeros for dx, dw, dr and db."""
    return np.zeros(x.shape), np.zeros(w.shape), np.zeros(r.shape), np.zeros(w.shape[:2])


def largest(a: Any) -> float:
    """The largest size in an array, 1 or more."""
    return max(1.0, float(np.nan_to_num(np.abs(a)).max(initial=0.0)))


def slope_scale(run: Any, *operands: Any, **attrs: Any) -> Any:
    """The sizes of gradients: those of sizes."""
    sizes = run(*(None if a is None else a if a.dtype.kind in "iu" else np.abs(a) for a in operands), **attrs)
    return tuple(np.broadcast_to(np.abs(s).max(initial=0.0), s.shape) for s in sizes)


def wanted_of(target: Any, grads: Any, wanted: Wanted) -> Any:
    """The gradients that are wanted, None for the others."""
    return tuple(g if n in wanted else None for g, n in zip(grads, target.differentiable, strict=True))


# ------------------------------------------------------------------------------------------------- samples


def layer(fill: Fill, blocks: int, steps: int, count: int, inputs: int, hidden: int, directions: int = 1) -> list[Any]:
    """x, w, r and b."""
    shapes = ((steps, count, inputs), (directions, blocks * hidden, inputs), (directions, blocks * hidden, hidden))
    half = np.asarray(0.5, fill.dtype)
    return [*(fill(*s) * half for s in shapes), fill(directions, blocks * hidden) * half]


def is_staircase(*, dtype: Any = None, **attrs: Any) -> bool:
    """Whether results step with the weights."""
    return dtype is not None


def stored_samples(fill: Fill, blocks: int) -> Iterator[Sample]:
    """Calls with weights that are stored narrower than float32."""
    for n, dtype in enumerate(("int8", "float16", "bfloat16")) if fill.dtype != np.float64 else ():
        yield sample(*layer(fill, blocks, 3, (1, 4, 9)[n], (20, 5, 3)[n], 19, 1 + n % 2), dtype=dtype)


def refusals(fill: Fill, blocks: int, rows: str, h0: int, lengths: int) -> Iterator[ErrorCase]:
    """Calls of a layer that must fail; h0 and lengths are the places of these operands."""
    wide = 2 * blocks
    x, w, r, b = fill(4, 3, 5), fill(1, wide, 5), fill(1, wide, 2), fill(1, wide)

    def given(**at: Any) -> Sample:
        operands: list[Any] = [x, w, r, b, *[None] * (lengths - 3)]
        for place, value in ((h0, at.get("h0")), (lengths, at.get("lengths"))):
            operands[place] = value
        return sample(*operands)

    yield ErrorCase(sample(x[0], w, r), ShapeError, "x has 2 dimensions; want 3")
    yield ErrorCase(sample(x, w[..., :4], r), ShapeError, f"w has shape (1, {wide}, 4) but x has I=5")
    yield ErrorCase(sample(x, w, fill(1, wide, 3)), ShapeError, f"want r (D, {rows}, H) and w (D, {rows}, I)")
    yield ErrorCase(sample(x, fill(3, wide, 5), fill(3, wide, 2)), ShapeError, "w has D=3 directions; want 1 or 2")
    yield ErrorCase(sample(x, fill(2, wide, 5), r), ShapeError, f"r has shape (1, {wide}, 2) but w has (2, {wide}, 5)")
    yield ErrorCase(sample(x, w, r, fill(1, wide + 1)), ShapeError, f"b has shape (1, {wide + 1}); want (1, {wide})")
    yield ErrorCase(given(h0=fill(1, 2, 2)), ShapeError, "h0 has shape (1, 2, 2); want (1, 3, 2)")
    yield ErrorCase(sample(x, w, r, dtype="int32"), AttrError, "dtype=int32; want None, float16, bfloat16 or int8")
    wide_types = tuple(a.astype(np.float64) for a in (x, w, r))
    yield ErrorCase(sample(*wide_types, dtype="int8"), AttrError, "dtype=int8 but x has float64; want None")
    for bad in (5, -1):
        text = f"lengths has {bad} at position 2; want 0 to T=4"
        yield ErrorCase(given(lengths=np.array([4, 1, bad])), IndexContentError, text)
    yield ErrorCase(given(lengths=np.array([4, 1])), ShapeError, "lengths has shape (2,); want (3,)")
    yield ErrorCase(given(lengths=fill(3)), DTypeError, "want int32 or int64")


# ------------------------------------------------------------------------------------------------- workloads


_SIZES = ((100, 1, 256), (50, 32, 512))


def _shapes(blocks: int, steps: int, count: int, hidden: int) -> tuple[tuple[int, ...], ...]:
    return (steps, count, hidden), (1, blocks * hidden, hidden), (1, blocks * hidden, hidden)


def _forward_workloads(blocks: int, biases: int) -> Iterator[Workload]:
    for steps, count, hidden in _SIZES:
        shapes = (*_shapes(blocks, steps, count, hidden), *((1, blocks * hidden),) * biases)
        yield Workload(f"T{steps} B{count} H{hidden}", shapes, sets=("rnn",))


def _backward_workloads(blocks: int, kept: tuple[int, ...]) -> Iterator[Workload]:
    for steps, count, hidden in _SIZES:
        y, saved = (steps, count, hidden), tuple((1, steps, count, n * hidden) for n in kept)
        shapes = (y, *_shapes(blocks, steps, count, hidden), y, *saved)
        yield Workload(f"T{steps} B{count} H{hidden}", shapes, sets=("rnn",))


def _forward_operands(fill: Fill, x: Sizes, *others: Sizes | None, **attrs: Any) -> Any:
    """Normal x, smaller weights and biases."""
    small = np.asarray(1 / math.sqrt(others[1][2] if others[1] else 1), fill.dtype)
    return fill(*x), *(None if s is None else fill(*s) * small for s in others)


def _backward_operands(fill: Fill, dy: Sizes, x: Sizes, w: Sizes, r: Sizes, *others: Sizes | None, **attrs: Any) -> Any:
    """Normal dy and x, smaller weights, results between 0 and 1."""
    small = np.asarray(1 / math.sqrt(r[2]), fill.dtype)
    kept = (None if s is None else np.tanh(fill.positive(*s)) for s in others)
    return fill(*dy), fill(*x), fill(*w) * small, fill(*r) * small, *kept


def _forward_flops(x: Sizes, w: Sizes, r: Sizes, *others: Any, **attrs: Any) -> float:
    return 2.0 * x[0] * x[1] * w[0] * w[1] * (x[2] + r[2])


def _backward_flops(dy: Sizes, *layer: Sizes, **attrs: Any) -> float:
    return 2 * _forward_flops(*layer)


def measured(target: Any, slopes: Any, blocks: int, biases: int, kept: tuple[int, ...]) -> None:
    """Registers the workloads of a layer of ``blocks`` with its biases, and of its gradients from what is ``kept``."""
    workloads(target)(partial(_forward_workloads, blocks, biases))
    fills(target)(_forward_operands)
    flops(target)(_forward_flops)
    workloads(slopes)(partial(_backward_workloads, blocks, kept))
    fills(slopes)(_backward_operands)
    flops(slopes)(_backward_flops)
