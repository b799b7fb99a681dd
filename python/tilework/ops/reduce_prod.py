"""Products and minima over any axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Axes, Sizes, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError
from tilework.ops.movement import as_shape
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    op,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@op
def reduce_min(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Takes the minimum of x, floats or integers, over ``axes``, all by default. NaN wins.

    The minimum of no elements is infinity, or the largest integer there is.
    """
    ...


@op
def reduce_prod(x: Array, *, axes: Axes = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Multiplies the elements of x, floats or integers, over ``axes``, all by default. The product of none is 1."""
    ...


@reference(reduce_min)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    most = np.iinfo(x.dtype).max if x.dtype.kind in "iu" else np.inf
    return np.min(np.asarray(x), axis=axes, keepdims=keepdims, initial=most)


@reference(reduce_prod)
def _(x: Any, *, axes: Sizes, keepdims: bool) -> Any:
    return np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _kept(shape: Sizes, axes: Sizes) -> Sizes:
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


@backward(reduce_min, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    least = as_shape(reduce_min(x, axes=axes, keepdims=keepdims), _kept(x.shape, axes))
    chosen = ops.cast(ops.equal(x, least), dtype=x.dtype)
    share = ops.div(as_shape(dy, least.shape), ops.reduce_sum(chosen, axes=axes, keepdims=True))
    return ops.mul(chosen, share)


@backward(reduce_prod, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sizes, keepdims: bool) -> Array:
    # The product of all others: what comes before times what comes behind, over the axes as one.
    order = (*(a for a in range(x.ndim) if a not in axes), *axes)
    turned = ops.transpose(x, order)
    rows = as_shape(turned, (*turned.shape[: x.ndim - len(axes)], math.prod(x.shape[a] for a in axes)))
    others = ops.mul(ops.cumprod(rows, exclusive=True), ops.cumprod(rows, exclusive=True, reverse=True))
    whole = ops.transpose(as_shape(others, turned.shape), tuple(order.index(a) for a in range(x.ndim)))
    return ops.mul(whole, as_shape(dy, _kept(x.shape, axes)))


def _samples(fill: Fill) -> Iterator[Sample]:
    for n in (1, 17, 33):
        yield sample(fill.distinct(n), axes=0)
    yield sample(fill())
    yield sample(fill.distinct(3, 5))
    yield sample(fill.distinct(2, 3, 4), axes=(0, 2), keepdims=True)
    yield sample(fill.distinct(5, 4).T, axes=1)
    yield sample(fill.distinct(5, 4), axes=())
    yield sample(fill(3, 0), axes=0)


@samples(reduce_prod)
def _(fill: Fill) -> Iterator[Sample]:
    for s in _samples(fill):
        yield Sample((fill.positive(*s.args[0].shape),), s.attrs)


def _errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(3), axes=1), AttrError, "axes=1 is out of range")
    yield ErrorCase(sample(fill(3, 4), axes=(0, 0)), AttrError, "names axis 0 twice")
    yield ErrorCase(sample(np.array([True])), DTypeError, "x has dtype bool; want a float or an integer")


def _workloads() -> Iterator[Workload]:
    yield Workload("1024x1024 rows", ((1024, 1024),), {"axes": 1})


samples(reduce_min)(_samples)
for _target, _ulp in ((reduce_min, 0.5), (reduce_prod, 16)):
    errors(_target)(_errors)
    workloads(_target)(_workloads)
    tolerance(_target, ulp=_ulp)
    dtypes(_target, *FLOATING, "int32")
