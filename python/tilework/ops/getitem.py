"""Subscripts: what ``x[...]`` is as an op."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import dispatch, ops
from tilework.arrays import Array, Sizes, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, IndexContentError
from tilework.ops.movement import as_shape
from tilework.registry import (
    ErrorCase,
    Sample,
    backward,
    dtypes,
    errors,
    reference,
    sample,
    samples,
    tolerance,
    view_op,
)

if TYPE_CHECKING:
    from tilework.testing import Fill


@view_op
def getitem(x: Array, key: Any) -> Array:
    """Takes ``x[key]`` of x, of any shape and dtype, without copying; a key is of ints, slices, None and ... .

    The rules are numpy's for basic subscripts: an int drops its axis, a slice may step and may run backwards, None adds
    an axis of size 1 and ... stands for the axes that are not named.
    """
    if not dispatch.backend_of("getitem", "x", x):
        raise DTypeError(f"getitem: x is a {type(x).__name__}; want an array", op="getitem", argument="x")
    x = dispatch.borrow("getitem", "x", x)
    return x[(*spelled_out(tuple(x.shape), key), ...)]


def spelled_out(shape: Sizes, key: Any) -> tuple[Any, ...]:
    """The key with one entry per axis of ``shape``, besides its Nones: an int >= 0, or a slice that ends inside."""
    items = key if isinstance(key, tuple) else (key,)
    named = sum(k is not None and k is not Ellipsis for k in items)
    if sum(k is Ellipsis for k in items) > 1 or named > len(shape):
        raise AttrError(
            f"getitem: key={key!r:.80} for x of shape {shape}; want at most one entry per axis and one ...",
            op="getitem",
            argument="key",
        )
    if not any(k is Ellipsis for k in items):
        items = (*items, Ellipsis)
    found: list[Any] = []
    axis = 0
    for k in items:
        if k is None:
            found.append(None)
        elif k is Ellipsis:
            rest = len(shape) - named
            found += [slice(0, n, 1) for n in shape[axis : axis + rest]]
            axis += rest
        else:
            found.append(_entry(k, shape[axis], axis, key))
            axis += 1
    return tuple(found)


def _entry(k: Any, size: int, axis: int, key: Any) -> Any:
    try:
        if isinstance(k, slice):
            start, stop, step = k.indices(size)
            count = len(range(start, stop, step))
            if count == 0:
                return slice(0, 0, 1)
            last = start + (count - 1) * step
            return slice(start, last + 1, step) if step > 0 else slice(start, last - 1 if last else None, step)
        if not isinstance(k, (bool, np.bool_)):
            at = operator.index(k)
            if not -size <= at < size:
                raise IndexContentError(
                    f"getitem: key={key!r:.80} reads place {at} of axis {axis}, which has {size}; "
                    f"want {-size} to {size - 1}",
                    op="getitem",
                    argument="key",
                )
            return at + size if at < 0 else at
    except ValueError:
        raise AttrError(
            f"getitem: key={key!r:.80} has a step of 0; want another", op="getitem", argument="key"
        ) from None
    except TypeError:
        pass
    raise AttrTypeError(
        f"getitem: key={key!r:.80} holds a {type(k).__name__}; want ints, slices, None and ...",
        op="getitem",
        argument="key",
    )


@reference(getitem)
def _(x: Any, *, key: Any) -> Any:
    return x[key]


@backward(getitem, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, key: Any) -> Array:
    taken = list(_taken(tuple(x.shape), key))
    counts = tuple(len(places) for places in taken)
    dx = as_shape(dy, counts)
    if any(places.step < 0 for places in taken):
        dx = getitem(dx, tuple(slice(None, None, -1 if places.step < 0 else 1) for places in taken))
    gaps = tuple(abs(places.step) for places in taken)
    if any(g > 1 for g in gaps) and dy.size:  # zeros between the elements: each begins a row of its own
        pairs = as_shape(dx, tuple(m for n in counts for m in (n, 1)))
        rows = ops.pad(pairs, pads=tuple(p for g in gaps for p in ((0, 0), (0, g - 1))))
        joined = ops.reshape(rows, tuple(n * g for n, g in zip(counts, gaps, strict=True)))
        dx = ops.crop(joined, tuple((0, g - 1) for g in gaps))
    firsts = (min(places, default=0) for places in taken)
    around = tuple((f, n - f - m) for f, n, m in zip(firsts, x.shape, dx.shape, strict=True))
    return ops.pad(dx, pads=around) if x.ndim else dx


def _taken(shape: Sizes, key: Any) -> Iterator[range]:
    """The places that each axis gives."""
    entries = (k for k in spelled_out(shape, key) if k is not None)
    for n, k in zip(shape, entries, strict=True):
        yield range(n)[k] if isinstance(k, slice) else range(k, k + 1)


@samples(getitem)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), key=2)
    yield sample(fill(4, 6), key=(slice(1, None), slice(None, None, 2)))
    yield sample(fill(4, 6).T, key=(..., -1))
    yield sample(fill(3, 7), key=(slice(None, None, -1), slice(5, 0, -2)))
    yield sample(fill(2, 3, 4), key=(None, 1, ..., slice(1, 3)))
    yield sample(fill(0, 3), key=(slice(2, 1), slice(1, 2)))
    yield sample(fill(), key=...)


@errors(getitem)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(4), key=4), IndexContentError, "reads place 4 of axis 0, which has 4; want -4 to 3")
    yield ErrorCase(sample(fill(4), key=(0, 0)), AttrError, "want at most one entry per axis")
    yield ErrorCase(sample(fill(4), key=(..., ...)), AttrError, "and one ...")
    yield ErrorCase(sample(fill(4), key=slice(None, None, 0)), AttrError, "has a step of 0")
    yield ErrorCase(sample(fill(4), key=[0, 1]), AttrTypeError, "holds a list")
    yield ErrorCase(sample(fill(4), key=True), AttrTypeError, "holds a bool")
    yield ErrorCase(sample([1, 2], key=0), DTypeError, "x is a list")


tolerance(getitem, ulp=0.5)
dtypes(getitem, *FLOATING)
