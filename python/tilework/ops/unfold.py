"""Windows of an image as columns (im2col), and columns added up to an image (col2im)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def unfold(
    x: Array,
    *,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    out: Array | None = None,
) -> Array:
    """Lays the windows of x (N, C, *spatial) side by side as columns, giving (N, C taps, windows).

    Row c taps + t holds what tap t of the kernel sees of channel c; taps and windows are numbered in row-major order.
    The rank, 1 to 3, follows x; padding is zeros and written as for conv. As in PyTorch.
    """
    ...


@op
def fold(
    y: Array,
    *,
    shape: Ints,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    out: Array | None = None,
) -> Array:
    """Adds the columns y (N, C taps, windows), laid out as unfold gives them, to images (N, C, *shape).

    It is the gradient of unfold, and Col2Im of ONNX. Places that several windows cover receive the sum, added tap after
    tap. ``shape`` has one number per spatial axis, 1 to 3; the rank follows it.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _out_sizes(shape: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Sizes:
    return tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    )


def _met(tap: Sizes, sizes: Sizes, stride: Sizes, dilation: Sizes) -> tuple[slice, ...]:
    """The places of the padded image that one tap of all windows sees."""
    first = [t * d for t, d in zip(tap, dilation, strict=True)]
    return tuple(slice(f, f + s * (m - 1) + 1, s) for f, s, m in zip(first, stride, sizes, strict=True))


@reference(unfold)
def _(x: Any, *, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Any:
    sizes = _out_sizes(x.shape[2:], kernel, stride, padding, dilation)
    padded: Any = np.pad(x, ((0, 0), (0, 0), *padding))
    seen = [padded[(..., *_met(tap, sizes, stride, dilation))] for tap in np.ndindex(*kernel)]
    return np.stack(seen, axis=2).reshape(x.shape[0], x.shape[1] * len(seen), math.prod(sizes))


@reference(fold)
def _(y: Any, *, shape: Sizes, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Any:
    sizes, taps = _out_sizes(shape, kernel, stride, padding, dilation), math.prod(kernel)
    columns = y.reshape(y.shape[0], y.shape[1] // taps, taps, *sizes)
    padded: Any = np.zeros((*columns.shape[:2], *(n + sum(p) for n, p in zip(shape, padding, strict=True))))
    for t, tap in enumerate(np.ndindex(*kernel)):
        padded[(..., *_met(tap, sizes, stride, dilation))] += columns[:, :, t]
    return padded[(..., *(slice(before, before + n) for n, (before, _) in zip(shape, padding, strict=True)))]


for _op in (unfold, fold):
    dtypes(_op, *FLOATING)

tolerance(unfold, ulp=0.5)


@depth(fold)
def _(y: Any, *, kernel: Sizes, **attrs: Any) -> int:
    return math.prod(kernel)


@backward(unfold, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Array:
    return fold(dy, shape=x.shape[2:], **attrs)


@backward(fold, of=("y",))
def _(g: Array, y: Array, *, saved: None, wanted: Wanted, shape: Sizes, **attrs: Any) -> Array:
    return unfold(g, **attrs)


# ---------------------------------------------------------------------------------------------------- samples


# The shape of x and the attributes, all resolved.
_PROBLEMS: tuple[tuple[Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), {"kernel": (1,)}),
    ((2, 3, 17), {"kernel": (3,), "padding": ((1, 1),)}),
    ((1, 2, 21), {"kernel": (4,), "stride": (3,), "dilation": (2,), "padding": ((2, 0),)}),
    ((2, 2, 9, 19), {"kernel": (3, 3), "padding": ((1, 1), (1, 1))}),
    ((1, 3, 8, 37), {"kernel": (3, 2), "stride": (1, 2), "padding": ((0, 1), (2, 1))}),
    ((1, 2, 7, 6), {"kernel": (2, 3), "stride": (2, 5), "dilation": (3, 1)}),
    ((1, 2, 4, 5, 6), {"kernel": (2, 3, 2), "stride": (2, 1, 2), "padding": ((1, 0), (1, 1), (0, 1))}),
    ((0, 2, 4, 4), {"kernel": (2, 2)}),
)


@samples(unfold)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape),), attrs)
    yield sample(fill(5, 9, 3, 2).transpose(3, 2, 1, 0), kernel=3, padding="same")


@samples(fold)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        rank, kernel = len(shape) - 2, attrs["kernel"]
        stride, dilation = (attrs.get(name, (1,) * rank) for name in ("stride", "dilation"))
        sizes = _out_sizes(shape[2:], kernel, stride, attrs.get("padding", ((0, 0),) * rank), dilation)
        y = fill(shape[0], shape[1] * math.prod(kernel), math.prod(sizes))
        yield Sample((y,), {"shape": shape[2:], **attrs})
    yield sample(fill(12, 18, 1).transpose(2, 1, 0), shape=(4, 3), kernel=3, padding="same")


def _bad_windows(x: Any, **attrs: Any) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(x, **attrs), AttrTypeError, "kernel")
    for kernel in (0, -1, (3, 0)):
        yield ErrorCase(sample(x, kernel=kernel, **attrs), AttrError, f"kernel={kernel}")
    yield ErrorCase(sample(x, kernel=(2, 2, 2), **attrs), AttrError, "kernel=(2, 2, 2) has 3 numbers; want one or 2")
    yield ErrorCase(sample(x, kernel=2, stride=0, **attrs), AttrError, "stride=0")
    yield ErrorCase(sample(x, kernel=2, dilation=1 << 39, **attrs), ShapeError, "kernel=2 covers 549755813889")
    yield ErrorCase(sample(x, kernel=2, padding=-1, **attrs), AttrError, "padding=-1")
    yield ErrorCase(sample(x, kernel=9, **attrs), ShapeError, "kernel=9 covers 9")


@errors(unfold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _bad_windows(fill(1, 2, 6, 6))
    yield ErrorCase(sample(fill(4, 6), kernel=2), ShapeError, "x has 2 dimensions; want 3 to 5")
    yield ErrorCase(sample(np.ones((1, 1, 4, 4), np.int32), kernel=2), DTypeError, "x has dtype int32")


@errors(fold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    y = fill(1, 8, 25)
    yield from _bad_windows(y, shape=(6, 6))
    yield ErrorCase(sample(y, shape=(6, 6), kernel=3), ShapeError, "y has 8 rows and kernel=(3, 3) has 9 taps")
    yield ErrorCase(sample(y, shape=(6, 5), kernel=2), ShapeError, "y has 25 columns but shape=(6, 5) has 20 windows")
    yield ErrorCase(sample(y, shape=(6,) * 4, kernel=2), AttrError, "shape=(6, 6, 6, 6) has 4 numbers; want 1 to 3")
    yield ErrorCase(sample(y, shape=(-6, 6), kernel=2), AttrError, "shape=(-6, 6)")
    yield ErrorCase(sample(y, kernel=2), AttrTypeError, "shape")
    yield ErrorCase(sample(fill(8, 25), shape=(6, 6), kernel=2), ShapeError, "y has 2 dimensions; want 3")


@workloads(unfold)
def _() -> Iterator[Workload]:
    yield Workload("3x3 64ch 56x56", ((1, 64, 56, 56),), {"kernel": 3, "padding": 1})
    yield Workload("4x4 s4 3ch 224x224", ((1, 3, 224, 224),), {"kernel": 4, "stride": 4})


@workloads(fold)
def _() -> Iterator[Workload]:
    yield Workload("3x3 64ch 56x56", ((1, 576, 3136),), {"shape": (56, 56), "kernel": 3, "padding": 1})
    yield Workload("4x4 s2 64ch 56x56", ((1, 1024, 729),), {"shape": (56, 56), "kernel": 4, "stride": 2})


# ---------------------------------------------------------------------------------------------------- OpenCL


def _struct(x: Any, kernel: Sizes, stride: Sizes, padding: Pairs, dilation: Sizes) -> Any:
    """unfold.cl's struct Windows: every member filled up to three spatial axes."""
    rank = len(kernel)
    sizes = _out_sizes(x.shape[2:], kernel, stride, padding, dilation)
    members = (x.shape[2:], sizes, kernel, stride, dilation, tuple(before for before, _ in padding))
    filled = [(*(fill,) * (3 - rank), *m) for fill, m in zip((1, 1, 1, 1, 1, 0), members, strict=True)]
    return np.array([x.shape[0] * x.shape[1], *(n for m in filled for n in m)], np.int64)


@opencl(unfold)
def _(queue: Queue, x: Any, y: Any, **attrs: Any) -> None:
    _launch(queue, "unfold", x, y, _struct(x, **attrs))


@opencl(fold)
def _(queue: Queue, y: Any, x: Any, *, shape: Sizes, **attrs: Any) -> None:
    _launch(queue, "fold", y, x, _struct(x, **attrs))


def _launch(queue: Queue, kernel: str, operand: Any, result: Any, struct: Any) -> None:
    from tilework.backends.opencl_queue import GROUP_SIZE

    queue.launch("unfold.cl", kernel, result.size, GROUP_SIZE, (operand, result, struct), DTYPE=operand.dtype)
