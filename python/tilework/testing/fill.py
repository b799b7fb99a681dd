"""Values for samples and workloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilework.dtypes import named
from tilework.registry import Op, Workload

Array = npt.NDArray[Any]


class Fill:
    """A reproducible source of sample values in one dtype.

    ``exact`` replaces every value by a small integer, so that sums and products of samples are exact in float32 and a
    linear op must hit its reference to the last bit.
    """

    def __init__(self, dtype: Any = np.float32, seed: int = 0, *, exact: bool = False) -> None:
        self.dtype = named(dtype) if isinstance(dtype, str) else np.dtype(dtype)
        self.exact = exact
        self._random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Array:
        """Normal values, of an integer type all of its values; integers of -4 to 4 (0 to 4) if exact."""
        if self.dtype.kind in "iu":
            low, high = (0 if self.dtype.kind == "u" else -4, 4) if self.exact else self._range()
            return np.asarray(self._random.integers(low, high, shape, self.dtype, endpoint=True))
        if self.exact:
            return np.asarray(self._random.integers(-4, 5, shape)).astype(self.dtype)
        return np.asarray(self._random.standard_normal(shape)).astype(self.dtype)

    def _range(self) -> tuple[int, int]:
        return int(np.iinfo(self.dtype).min), int(np.iinfo(self.dtype).max)

    def positive(self, *shape: int) -> Array:
        """Values of at least 0.1; integers of 1 to 4 if exact."""
        if self.exact:
            return np.asarray(self._random.integers(1, 5, shape)).astype(self.dtype)
        return np.asarray(0.1 + np.abs(self._random.standard_normal(shape))).astype(self.dtype)

    def distinct(self, *shape: int) -> Array:
        """Shuffled values at least 0.05 apart, so that a small step changes no maximum; integers if exact."""
        count = int(np.prod(shape, dtype=np.int64))
        order = np.asarray(self._random.permutation(count).reshape(shape) - count // 2)
        return np.asarray(order if self.exact else order * 0.07 + 0.013).astype(self.dtype)

    def regular(self, *shape: int) -> Array:
        """Square matrices (..., N, N) with singular values of 1 to 2, none of whose rows dominates."""
        return self._spectral(shape, symmetric=False)

    def definite(self, *shape: int) -> Array:
        """Symmetric matrices (..., N, N) with eigenvalues of 1 to 2."""
        return self._spectral(shape, symmetric=True)

    def _spectral(self, shape: tuple[int, ...], *, symmetric: bool) -> Array:
        left, right = (np.linalg.qr(self._random.standard_normal(shape))[0] for _ in range(2))
        values = self._random.uniform(1, 2, shape[:-1])
        made = (left * values[..., None, :]) @ np.swapaxes(left if symmetric else right, -1, -2)
        return np.asarray((made + np.swapaxes(made, -1, -2)) / 2 if symmetric else made).astype(self.dtype)

    def integers(self, *shape: int, low: int, high: int, dtype: npt.DTypeLike = np.int64) -> Array:
        """Integers of ``low`` to ``high - 1``."""
        return np.asarray(self._random.integers(low, high, shape)).astype(dtype)


class Zeros(Fill):
    """Arrays of the right shape and dtype that take no memory, where only these are asked for."""

    def __call__(self, *shape: int) -> Array:
        return self._zeros(shape, self.dtype)

    positive = distinct = regular = definite = __call__

    def integers(self, *shape: int, low: int, high: int, dtype: npt.DTypeLike = np.int64) -> Array:
        return self._zeros(shape, dtype)

    @staticmethod
    def _zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return np.broadcast_to(np.zeros((), dtype), shape)


def workload_operands(op: Op[..., Any], workload: Workload, fill: Fill) -> tuple[Any, ...]:
    """Operands of a workload: what the op's ``fills`` rule makes of the shapes, or normal values."""
    shapes = workload_shapes(op, workload)
    rule = op.rules.get("fills")
    if rule:
        return tuple(rule(fill, *shapes, **workload.attrs))
    return tuple(_filled(fill, s) for s in shapes)


def workload_shapes(op: Op[..., Any], workload: Workload) -> tuple[Any, ...]:
    """One shape per operand, a tuple of shapes for a list of arrays, None where not given."""
    shapes: tuple[Any, ...] = (workload.shapes,) if getattr(op, "is_variadic", False) else workload.shapes
    return shapes + (None,) * (len(op.operands) - len(shapes))


def _filled(fill: Fill, shape: Any) -> Any:
    if shape is None:
        return None
    return [fill(*s) for s in shape] if shape and isinstance(shape[0], tuple) else fill(*shape)
