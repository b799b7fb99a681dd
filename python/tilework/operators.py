"""What an array that stands for another answers to: numpy's operators, views and sums, each an op's call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from tilework import ops
from tilework.arrays import Array, Axes, Ints
from tilework.dispatch import Traced
from tilework.errors import UnsupportedError
from tilework.ops.movement import as_shape


class Operators(Traced):
    """Mixed into an array that stands for another and has ``shape`` and ``dtype``."""

    __slots__ = ()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def T(self) -> Array:  # noqa: N802  (numpy's name)
        return ops.transpose(self)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array of shape () has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Array:
        return ops.getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise UnsupportedError(
            f"an array of shape {self.shape} that is traced, followed or a Variable is not written to in part; "
            "want another one, by tw.where or tw.concat for instance"
        )

    def reshape(self, *shape: Any) -> Array:
        return as_shape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Array:
        given = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return ops.transpose(self, tuple(given) if given else None)

    def astype(self, dtype: Any) -> Array:
        return self if np.dtype(dtype) == self.dtype else ops.cast(self, dtype=dtype)

    def sum(self, axis: Axes = None, *, keepdims: bool = False) -> Array:
        return ops.reduce_sum(self, axes=axis, keepdims=keepdims)

    def mean(self, axis: Axes = None, *, keepdims: bool = False) -> Array:
        return ops.reduce_mean(self, axes=axis, keepdims=keepdims)

    def max(self, axis: Axes = None, *, keepdims: bool = False) -> Array:
        return ops.reduce_max(self, axes=axis, keepdims=keepdims)

    def expand(self, shape: Ints) -> Array:
        return ops.expand(self, shape=shape)

    def __add__(self, other: Any) -> Array:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Array:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Array:
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Array:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Array:
        return ops.mul(self, other)

    def __rmul__(self, other: Any) -> Array:
        return ops.mul(other, self)

    def __truediv__(self, other: Any) -> Array:
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Array:
        return ops.div(other, self)

    def __matmul__(self, other: Any) -> Array:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Array:
        return ops.matmul(other, self)

    def __lt__(self, other: Any) -> Array:
        return ops.less(self, other)

    def __le__(self, other: Any) -> Array:
        return ops.less_equal(self, other)

    def __gt__(self, other: Any) -> Array:
        return ops.greater(self, other)

    def __ge__(self, other: Any) -> Array:
        return ops.greater_equal(self, other)

    def __neg__(self) -> Array:
        return ops.neg(self)

    def __abs__(self) -> Array:
        return ops.abs(self)
