"""Movement: joining, padding, stretching, and views of other shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import dispatch, ops
from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, bits_of, strides_of
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    view_op,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill

# ----------------------------------------------------------------------------------------------------- concat


@op
def concat(arrays: Sequence[Array], *, axis: int = 0, out: Array | None = None) -> Array:
    """Joins arrays along an axis, the sizes of all other axes being equal; one dtype, any of tilework's."""
    ...


@reference(concat)
def _(arrays: Any, *, axis: int) -> Any:
    return np.concatenate(arrays, axis=axis)


@backward(concat, of=("arrays",))
def _(dy: Array, arrays: Sequence[Array], *, saved: None, wanted: Wanted, axis: int) -> list[Array]:
    grads, start = [], 0
    for x in arrays:
        stop = start + x.shape[axis]
        pads = tuple((start, dy.shape[axis] - stop) if i == axis else (0, 0) for i in range(dy.ndim))
        grads.append(crop(dy, pads=pads))
        start = stop
    return grads


@samples(concat)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample([fill(1)])
    yield sample([fill(3), fill(17), fill(1)])
    yield sample([fill(2, 3), fill(4, 3)])
    yield sample([fill(2, 3), fill(2, 9), fill(2, 0), fill(2, 1)], axis=1)
    yield sample((fill(2, 3, 4), fill(2, 5, 4)), axis=-2)
    yield sample([fill(3, 2).T, fill(2, 3)[::-1]], axis=-1)
    yield sample([fill(0, 3), fill(0, 3)])
    yield sample([np.arange(6).reshape(2, 3), np.full((1, 3), 1 << 60)])
    yield sample([np.array([True, False]), np.array([True])])


@errors(concat)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample([]), ShapeError, "arrays")
    yield ErrorCase(sample([fill(2, 3), fill(2)]), ShapeError, "arrays[1] has shape (2,)")
    yield ErrorCase(sample([fill(2, 3), fill(2, 4)]), ShapeError, "arrays[1] has shape (2, 4)")
    yield ErrorCase(sample([fill(2), np.arange(2)]), DTypeError, "arrays[1] has dtype int64")
    yield ErrorCase(sample([fill(2)], axis=1), AttrError, "axis=1")
    yield ErrorCase(sample([fill()]), ShapeError, "arrays[0] has shape ()")
    yield ErrorCase(sample(fill(2)), DTypeError, "arrays is a numpy.ndarray")


# -------------------------------------------------------------------------------------------------------- pad


@op
def pad(x: Array, *, pads: Padding, value: float = 0.0, out: Array | None = None) -> Array:
    """Surrounds x, of any shape and dtype, by ``value``: a (before, after) pair of counts per axis, or one for all."""
    ...


@reference(pad)
def _(x: Any, *, pads: Pairs, value: float) -> Any:
    return np.pad(x, pads, constant_values=value) if x.ndim else x


@backward(pad, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, pads: Pairs, value: float) -> Array:
    return crop(dy, pads=pads)


@samples(pad)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1), pads=1)
    yield sample(fill(17), pads=((3, 0),))
    yield sample(fill(3, 5), pads=2, value=1.5)
    yield sample(fill(3, 5), pads=((0, 1), (2, 3)), value=-1.0)
    yield sample(fill(2, 3, 4, 5), pads=((0, 0), (1, 0), (2, 1), (0, 4)))
    yield sample(fill(3, 5).T, pads=((1, 1), (0, 2)))
    yield sample(fill(3, 5), pads=0)
    yield sample(fill(0, 3), pads=1, value=2.0)
    yield sample(np.arange(6).reshape(2, 3), pads=1, value=7.0)


@errors(pad)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(2, 3)
    yield ErrorCase(sample(x), AttrTypeError, "pads")
    yield ErrorCase(sample(x, pads=-1), AttrError, "pads=-1")
    yield ErrorCase(sample(x, pads=((1, 1),)), AttrError, "pads=((1, 1),)")
    yield ErrorCase(sample(x, pads=1 << 62), ShapeError, "pads")
    yield ErrorCase(sample(x, pads=1.5), AttrTypeError, "pads=1.5 is a float")


# ----------------------------------------------------------------------------------------------------- expand


@op
def expand(x: Array, *, shape: Ints, out: Array | None = None) -> Array:
    """Repeats x, of any dtype, along axes of size 1 and new leading ones, to ``shape``, as numpy.broadcast_to does."""
    ...


@reference(expand)
def _(x: Any, *, shape: Sizes) -> Any:
    return np.broadcast_to(x, shape)


@backward(expand, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, shape: Sizes) -> Array:
    return ops.elementwise.sum_to_shape(dy, x.shape)


@samples(expand)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(), shape=17)
    yield sample(fill(1), shape=(5,))
    yield sample(fill(17), shape=(3, 17))
    yield sample(fill(3, 1), shape=(3, 33))
    yield sample(fill(2, 1, 4, 1), shape=(5, 2, 3, 4, 9))
    yield sample(fill(3, 5).T, shape=(2, 5, 3))
    yield sample(fill(3, 1), shape=(3, 0))
    yield sample(fill(2, 0), shape=(4, 2, 0))
    yield sample(fill(2, 3), shape=(2, 3))
    yield sample(np.arange(3), shape=(2, 3))


@errors(expand)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(2, 3), shape=(2, 4)), ShapeError, "x has shape (2, 3)")
    yield ErrorCase(sample(fill(2, 3), shape=(3,)), ShapeError, "x has shape (2, 3)")
    yield ErrorCase(sample(fill(1), shape=(-1,)), AttrError, "shape=(-1,)")
    yield ErrorCase(sample(fill(1), shape=(1 << 40, 1 << 40)), ShapeError, "more than 2^40 elements")
    yield ErrorCase(sample(fill(1)), AttrTypeError, "shape")


# ------------------------------------------------------------------------------------------------------ views


def _viewable(name: str, x: Array) -> Array:
    if type(x) is np.ndarray:
        return x
    if not dispatch.backend_of(name, "x", x):
        raise DTypeError(f"{name}: x is a {type(x).__name__}; want an array", op=name, argument="x")
    return x if dispatch.is_device_array(x) else dispatch.borrow(name, "x", x)


def _ints(name: str, argument: str, value: Any) -> Sizes:
    items = value if isinstance(value, (tuple, list)) else (value,)
    if {*map(type, items)} <= {int}:
        return tuple(items)
    try:
        if not any(isinstance(i, (bool, np.bool_)) for i in items):
            return tuple(operator.index(i) for i in items)
    except TypeError:
        pass
    raise AttrTypeError(
        f"{name}: {argument}={value!r:.80} is a {type(value).__name__}; want an int or a tuple of ints",
        op=name,
        argument=argument,
    )


@view_op
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """Permutes the axes of x, of any dtype, without copying; reverses them by default."""
    if type(x) is np.ndarray and type(axes) is tuple:
        try:
            return x.transpose(axes)
        except (TypeError, ValueError):
            pass  # said in other words below
    x = _viewable("transpose", x)
    if axes is None:
        return x.transpose()
    order = _ints("transpose", "axes", axes)
    if order and min(order) < 0:
        order = tuple(a + x.ndim if -x.ndim <= a < 0 else a for a in order)
    if sorted(order) != [*range(x.ndim)]:
        raise AttrError(
            f"transpose: axes={axes!r:.80}; want each axis of x once, x has shape {x.shape}",
            op="transpose",
            argument="axes",
        )
    return x.transpose(order)


@view_op
def reshape(x: Array, shape: Ints) -> Array:
    """Gives x, of any dtype, another shape with as many elements, without copying; one size may be -1.

    A non-contiguous x whose elements do not lie evenly for the shape is a ShapeError.
    """
    sizes: Any = (shape,) if type(shape) is int else shape
    if type(x) is np.ndarray and type(sizes) is tuple:
        try:
            view = x.reshape(sizes)
            base = view.base
            if (view.shape == sizes or min(sizes) == -1) and (base is x or (base is not None and base is x.base)):
                return view  # no copy
        except (TypeError, ValueError):
            pass  # said in other words below
    x = _viewable("reshape", x)
    sizes = _ints("reshape", "shape", shape)
    if min(sizes, default=0) < -1 or sizes.count(-1) > 1:
        raise AttrError(
            f"reshape: shape={shape!r:.80}; want sizes >= 0 and at most one -1", op="reshape", argument="shape"
        )
    if -1 in sizes:
        rest = -math.prod(sizes)
        if rest and x.size % rest == 0:
            sizes = tuple(x.size // rest if n == -1 else n for n in sizes)
    if math.prod(sizes) != x.size or -1 in sizes:
        raise ShapeError(
            f"reshape: x has shape {x.shape}, {x.size} elements, but shape={shape!r:.80}; want as many elements",
            op="reshape",
            argument="shape",
        )
    if x.flags.c_contiguous:
        return x.reshape(sizes)
    try:
        y = x.reshape(sizes)
    except ValueError:
        y = None
    copied = isinstance(y, np.ndarray) and y.size > 0 and not np.may_share_memory(x, y)
    if y is None or copied:
        raise ShapeError(
            f"reshape: x has shape {x.shape} and strides {x.strides}, which no view of shape={shape!r:.80} has; "
            "want a contiguous array",
            op="reshape",
            argument="x",
        )
    return y


@view_op
def crop(x: Array, pads: Padding) -> Array:
    """Cuts off what pad would add to x, of any dtype, without copying: (before, after) per axis, or one for all."""
    x = _viewable("crop", x)
    items = pads if isinstance(pads, (tuple, list)) else _ints("crop", "pads", pads) * x.ndim
    pairs = [_ints("crop", "pads", (p, p) if isinstance(p, int) else p) for p in items]
    if len(pairs) != x.ndim or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise AttrError(
            f"crop: pads={pads!r:.80}; want one pair of counts >= 0 per axis, x has shape {x.shape}",
            op="crop",
            argument="pads",
        )
    if any(sum(p) > n for n, p in zip(x.shape, pairs, strict=True)):
        raise ShapeError(f"crop: pads={pads!r:.80} exceed x of shape {x.shape}; want fewer", op="crop", argument="pads")
    kept = (slice(before, n - after) for n, (before, after) in zip(x.shape, pairs, strict=True))
    return x[(*kept, ...)]


def as_rows(x: Array) -> Array:
    """x as a matrix whose rows are its last axis: a view where there is one, else a copy."""
    if x.ndim == 2:
        return x
    return as_shape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def as_shape(x: Array, shape: Ints) -> Array:
    """x in another shape: a view where x is contiguous, else a copy."""
    return reshape(x if x.flags.c_contiguous else expand(x, shape=x.shape), shape)


@reference(transpose)
def _(x: Any, *, axes: Any) -> Any:
    return np.transpose(x, axes)


@reference(reshape)
def _(x: Any, *, shape: Any) -> Any:
    return np.reshape(x, shape)


@reference(crop)
def _(x: Any, *, pads: Any) -> Any:
    pairs = [(p, p) if np.ndim(p) == 0 else p for p in (pads if np.ndim(pads) else [pads] * x.ndim)]
    for axis, (before, after) in enumerate(pairs):
        x = np.take(x, range(before, x.shape[axis] - after), axis=axis)
    return x


@backward(transpose, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, axes: Sequence[int] | None) -> Array:
    return transpose(dy) if axes is None else transpose(dy, tuple(np.argsort([a % x.ndim for a in axes]).tolist()))


@backward(reshape, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, shape: Ints) -> Array:
    return as_shape(dy, x.shape)


@backward(crop, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, pads: Padding) -> Array:
    return pad(dy, pads=pads)


@samples(transpose)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(3, 5))
    yield sample(fill(2, 3, 4), axes=(2, 0, 1))
    yield sample(fill(2, 3, 4), axes=(0, -1, -2))
    yield sample(fill())
    yield sample(fill(3, 0), axes=(1, 0))
    yield sample(np.arange(6).reshape(2, 3))


@samples(reshape)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(6), shape=(2, 3))
    yield sample(fill(2, 3, 4), shape=(-1, 4))
    yield sample(fill(2, 3, 4), shape=24)
    yield sample(fill(4, 6)[:, ::2], shape=(2, 2, 3))
    yield sample(fill(), shape=(1, 1))
    yield sample(fill(1), shape=())
    yield sample(fill(3, 0), shape=(0, 7))


@samples(crop)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(5), pads=1)
    yield sample(fill(4, 6), pads=((1, 0), (2, 3)))
    yield sample(fill(4, 6).T, pads=((0, 0), (4, 0)))
    yield sample(fill(0, 3), pads=((0, 0), (1, 1)))
    yield sample(fill(), pads=0)


@errors(transpose)
def _(fill: Fill) -> Iterator[ErrorCase]:
    for axes in ((0,), (0, 0), (0, 2), (0, -3)):
        yield ErrorCase(sample(fill(2, 3), axes=axes), AttrError, f"axes={axes}; want each axis of x once")
    yield ErrorCase(sample(fill(2, 3), axes=(1.0, 0)), AttrTypeError, "want an int or a tuple of ints")
    yield ErrorCase(sample([1, 2]), DTypeError, "x is a list")


@errors(reshape)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(6), shape=(4, 2)), ShapeError, "x has shape (6,), 6 elements, but shape=(4, 2)")
    yield ErrorCase(sample(fill(6), shape=(4, -1)), ShapeError, "shape=(4, -1)")
    yield ErrorCase(sample(fill(0), shape=(0, -1)), ShapeError, "shape=(0, -1)")
    yield ErrorCase(sample(fill(6), shape=(-1, -1)), AttrError, "at most one -1")
    yield ErrorCase(sample(fill(6), shape=(-2, -3)), AttrError, "want sizes >= 0")
    yield ErrorCase(sample(fill(6), shape="6"), AttrTypeError, "want an int or a tuple of ints")
    yield ErrorCase(sample(fill(4, 3).T, shape=12), ShapeError, "want a contiguous array")


@errors(crop)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(fill(4), pads=-1), AttrError, "pads=-1")
    yield ErrorCase(sample(fill(4), pads=((1, 1), (1, 1))), AttrError, "want one pair of counts >= 0 per axis")
    yield ErrorCase(sample(fill(4), pads=((3, 2),)), ShapeError, "exceed x of shape (4,)")


for _exact in (concat, pad, expand, transpose, reshape, crop):
    tolerance(_exact, ulp=0.5)
    dtypes(_exact, *FLOATING)


# -------------------------------------------------------------------------------------------------- workloads


@workloads(concat)
def _() -> Iterator[Workload]:
    yield Workload("2 x 64x56x56 on channels", ((1, 64, 56, 56), (1, 64, 56, 56)), {"axis": 1})


@workloads(pad)
def _() -> Iterator[Workload]:
    yield Workload("64x56x56 by 1", ((1, 64, 56, 56),), {"pads": ((0, 0), (0, 0), (1, 1), (1, 1))})


@workloads(expand)
def _() -> Iterator[Workload]:
    yield Workload("column to 4096x1024", ((4096, 1),), {"shape": (4096, 1024)})
    yield Workload("row to 4096x1024", ((1024,),), {"shape": (4096, 1024)})


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(concat)
def _(queue: Queue, arrays: Sequence[Any], y: Any, *, axis: int) -> None:
    start = 0
    for x in arrays:
        stop = start + x.shape[axis]
        if x.size:
            queue.copy(x, y[(slice(None),) * axis + (slice(start, stop),)])
        start = stop


@opencl(pad)
def _(queue: Queue, x: Any, y: Any, *, pads: Pairs, value: float) -> None:
    if x.ndim == 0:
        queue.copy(x, y)
    else:
        frame = np.array([y.size, *y.shape, *(before for before, _ in pads), *x.shape, *strides_of(x)], np.int64)
        args = (Strided(x), queue.number(value, x.dtype), y, frame)
        queue.launch("movement.cl", "pad", y.size, GROUP_SIZE, args, BITS=bits_of(x), PADDED=x.ndim, ITEMS=1)


@opencl(expand)
def _(queue: Queue, x: Any, y: Any, *, shape: Sizes) -> None:
    queue.copy(x, y)
