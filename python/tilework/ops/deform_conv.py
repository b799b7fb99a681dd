"""Deformable convolution, and the sampled columns that it and its gradients are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Array, Ints, Padding, Pairs, Sizes, Wanted
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.conv import wide_backward
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
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
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    offset_groups: int = 1,
    groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Convolves x (N, C, H, W) with w (K, C/groups, R, S), each tap reading x where an offset leads, and adds b (K,).

    offset (N, 2 offset_groups R S, P, Q) holds, per offset group and tap, how far down and how far right; the channels
    of an offset group share it. mask (N, offset_groups R S, P, Q) multiplies the samples (version 2). Between pixels x
    is bilinear, outside it is zero; an offset of NaN gives NaN. As DeformConv of ONNX and deform_conv2d of torchvision.
    Zhu et al., "Deformable ConvNets v2", 2019.
    """
    ...


@op
def deform_unfold(
    x: Array,
    offset: Array,
    mask: Array | None = None,
    *,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    offset_groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Samples x (N, C, H, W) as deform_conv does, giving columns (N, C taps, windows) laid out as unfold lays them."""
    ...


@op
def deform_fold(
    y: Array,
    offset: Array,
    mask: Array | None = None,
    *,
    shape: Ints,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    offset_groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of deform_unfold in x, (N, C, *shape), from columns y (N, C taps, windows)."""
    ...


@op
def deform_unfold_doffset(
    dy: Array,
    x: Array,
    offset: Array,
    mask: Array | None = None,
    *,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    offset_groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of deform_unfold in offset, of its shape, from dy (N, C taps, windows) and x (N, C, H, W).

    Where an offset leads exactly to a pixel, it is the slope behind that pixel.
    """
    ...


@op
def deform_unfold_dmask(
    dy: Array,
    x: Array,
    offset: Array,
    *,
    kernel: Ints,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    offset_groups: int = 1,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of deform_unfold in mask, (N, offset_groups taps, P, Q), from dy and x; it has no mask."""
    ...


# ------------------------------------------------------------------------------------------------- references


@dataclass(frozen=True)
class _Places:
    """Where all samples are, (N, groups, 1, samples): the first of four pixels of a plane, and the shares of two."""

    shape: Sizes  # N, offset groups, taps, P, Q
    image: Sizes
    at: Any
    h: tuple[Any, Any]
    w: tuple[Any, Any]
    mask: Any

    def corners(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """The four pixels of each sample, and the factors that make its value or its slope of them."""
        for i, j in np.ndindex(2, 2):
            sign = 1 if (j if kind == "slope_w" else i) else -1
            value, slope_h, slope_w = self.h[i] * self.w[j], sign * self.w[j], sign * self.h[i]
            factor = {"value": value, "slope_h": slope_h, "slope_w": slope_w}[kind]
            yield self.at + i * (self.image[1] + 3) + j, factor * self.mask


def _places(
    image: Sizes,
    offset: Any,
    mask: Any,
    *,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    offset_groups: int,
) -> _Places:
    n, _, *sizes = offset.shape
    shape = (n, offset_groups, math.prod(kernel), *sizes)
    by = offset.reshape(n, offset_groups, math.prod(kernel), 2, *sizes)
    first, shares, missed = [], [], False
    for axis in (0, 1):
        tap = np.indices(kernel)[axis].reshape(-1, 1, 1)
        window = np.indices(sizes)[axis] * stride[axis] - padding[axis][0] + tap * dilation[axis]
        off = by[:, :, :, axis]
        whole = np.floor(off)
        pixel = window + np.where(np.abs(whole) < 1e9, whole, -1e12)
        missed = missed | ~((pixel >= -1) & (pixel < image[axis]))
        shares.append([np.where(whole == off, 1 - k, (1 - 2 * k) * (whole + 1 - k - off)) for k in (0, 1)])
        first.append(pixel)
    at_h, at_w = (np.where(missed, -2, f).astype(np.int64) + 2 for f in first)
    nan = np.where(np.isnan(by[:, :, :, 0]) | np.isnan(by[:, :, :, 1]), np.nan, 0.0)

    def flat(a: Any) -> Any:
        return a.reshape(n, offset_groups, 1, math.prod(shape[2:]))

    h, w = ((flat(s[0] + nan), flat(s[1] + nan)) for s in shares)
    return _Places(
        shape, image, flat(at_h * (image[1] + 3) + at_w), h, w, flat(np.ones(shape) if mask is None else mask)
    )


def _sampled(x: Any, places: _Places, kind: str = "value", size: Callable[[Any], Any] = np.asarray) -> Any:
    """Values, or slopes, (N, groups, C/groups, samples)."""
    n, groups = places.shape[:2]
    plane = math.prod(s + 3 for s in places.image)
    planes = np.pad(x, ((0, 0), (0, 0), (2, 1), (2, 1))).reshape(n, groups, x.shape[1] // groups, plane)
    return sum(size(np.take_along_axis(planes, at, 3)) * size(factor) for at, factor in places.corners(kind))


def _columns(x: Any, offset: Any, mask: Any, size: Callable[[Any], Any] = np.asarray, **attrs: Any) -> Any:
    places = _places(x.shape[2:], offset, mask, **attrs)
    n, _, taps, *sizes = places.shape
    return _sampled(x, places, size=size).reshape(n, x.shape[1] * taps, math.prod(sizes))


def _added(y: Any, offset: Any, mask: Any, shape: Sizes, size: Callable[[Any], Any] = np.asarray, **attrs: Any) -> Any:
    places = _places(shape, offset, mask, **attrs)
    n, groups, taps, *_ = places.shape
    channels = y.shape[1] // taps
    by_group = y.reshape(n, groups, channels // groups, math.prod(places.shape[2:]))
    planes = np.zeros((*by_group.shape[:3], (shape[0] + 3) * (shape[1] + 3)))
    for at, factor in places.corners("value"):
        for index in np.ndindex(*by_group.shape[:3]):
            group = (index[0], index[1], 0)
            np.add.at(planes[index], at[group], size(factor[group]) * size(by_group[index]))
    return planes.reshape(n, channels, shape[0] + 3, shape[1] + 3)[:, :, 2:-1, 2:-1]


def _slopes(dy: Any, x: Any, offset: Any, mask: Any, size: Callable[[Any], Any] = np.asarray, **attrs: Any) -> Any:
    places = _places(x.shape[2:], offset, mask, **attrs)
    n, groups, taps, *sizes = places.shape
    by_group = size(dy.reshape(n, groups, x.shape[1] // groups, math.prod(places.shape[2:])))
    both = [np.sum(by_group * _sampled(x, places, kind, size), axis=2) for kind in ("slope_h", "slope_w")]
    return np.stack([d.reshape(n, groups, taps, *sizes) for d in both], axis=3).reshape(offset.shape)


def _values(dy: Any, x: Any, offset: Any, size: Callable[[Any], Any] = np.asarray, **attrs: Any) -> Any:
    places = _places(x.shape[2:], offset, None, **attrs)
    n, groups, taps, *sizes = places.shape
    by_group = size(dy.reshape(n, groups, x.shape[1] // groups, math.prod(places.shape[2:])))
    return np.sum(by_group * _sampled(x, places, size=size), axis=2).reshape(n, groups * taps, *sizes)


def _convolved(
    x: Any, w: Any, offset: Any, b: Any, mask: Any, groups: int, size: Callable[[Any], Any] = np.asarray, **attrs: Any
) -> Any:
    columns = _columns(x, offset, mask, size, kernel=w.shape[2:], **attrs)
    n, k = x.shape[0], w.shape[0]
    y = np.einsum(
        "gkc,ngcp->ngkp",
        size(w).reshape(groups, k // groups, math.prod(w.shape[1:])),
        columns.reshape(n, groups, columns.shape[1] // groups, columns.shape[2]),
    ).reshape(n, k, *offset.shape[2:])
    return y if b is None else y + size(b)[:, None, None]


# The sizes of what is summed: offsets keep their signs.
for _op, _rule in (
    (deform_conv, _convolved),
    (deform_unfold, _columns),
    (deform_fold, _added),
    (deform_unfold_doffset, _slopes),
    (deform_unfold_dmask, _values),
):
    dtypes(_op, *FLOATING)
    reference(_op)(_rule)
    terms(_op)(lambda *operands, rule=_rule, **attrs: rule(*operands, size=np.abs, **attrs))


@depth(deform_conv)
def _(x: Any, w: Any, offset: Any, b: Any, mask: Any, **attrs: Any) -> int:
    return int(np.prod(w.shape[1:])) + 4


@depth(deform_unfold)
def _(x: Any, offset: Any, mask: Any, **attrs: Any) -> int:
    return 4


@depth(deform_fold)
def _(y: Any, offset: Any, mask: Any, *, kernel: Sizes, **attrs: Any) -> int:
    return math.prod(kernel) * int(y.shape[2])


@depth(deform_unfold_doffset)
def _(dy: Any, x: Any, offset: Any, mask: Any, *, offset_groups: int, **attrs: Any) -> int:
    return 4 * int(x.shape[1]) // offset_groups


@depth(deform_unfold_dmask)
def _(dy: Any, x: Any, offset: Any, *, offset_groups: int, **attrs: Any) -> int:
    return 4 * int(x.shape[1]) // offset_groups


# -------------------------------------------------------------------------------------------------- gradients


# A product of w, as a kernel of one tap, with the columns: its gradients are those of conv.
@backward(deform_conv, of=("x", "w", "offset", "b", "mask"))
@wide_backward
def _(
    dy: Array,
    x: Array,
    w: Array,
    offset: Array,
    b: Array,
    mask: Array,
    *,
    saved: None,
    wanted: Wanted,
    groups: int,
    **attrs: Any,
) -> Any:
    n, k, *sizes = dy.shape
    attrs["kernel"] = tuple(w.shape[2:])
    rows, windows = x.shape[1] * math.prod(w.shape[2:]), math.prod(sizes)
    dx = dw = d_offset = db = d_mask = None
    if not wanted.isdisjoint(("x", "offset", "mask")):
        one_tap = ops.reshape(_contiguous(w), shape=(k, rows // groups, 1, 1))
        d_columns = ops.conv_dx(dy, one_tap, shape=sizes, groups=groups)
        d_columns = ops.reshape(d_columns, shape=(n, rows, windows))
        dx = deform_fold(d_columns, offset, mask, shape=x.shape[2:], **attrs) if "x" in wanted else None
        d_offset = deform_unfold_doffset(d_columns, x, offset, mask, **attrs) if "offset" in wanted else None
        d_mask = deform_unfold_dmask(d_columns, x, offset, **attrs) if "mask" in wanted else None
    if "w" in wanted:
        columns = ops.reshape(deform_unfold(x, offset, mask, **attrs), shape=(n, rows, *sizes))
        dw = ops.reshape(ops.conv_dw(dy, columns, kernel=1, groups=groups), shape=w.shape)
    if "b" in wanted:
        db = ops.reduce_sum(dy, axes=(0, 2, 3))
    return dx, dw, d_offset, db, d_mask


def _contiguous(w: Array) -> Array:
    return w if w.flags.c_contiguous else ops.pad(w, pads=0)


@backward(deform_unfold, of=("x", "offset", "mask"))
def _(dy: Array, x: Array, offset: Array, mask: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
    dx = deform_fold(dy, offset, mask, shape=x.shape[2:], **attrs) if "x" in wanted else None
    d_offset = deform_unfold_doffset(dy, x, offset, mask, **attrs) if "offset" in wanted else None
    d_mask = deform_unfold_dmask(dy, x, offset, **attrs) if "mask" in wanted else None
    return dx, d_offset, d_mask


@backward(deform_fold, of=("y", "offset", "mask"))
def _(
    g: Array, y: Array, offset: Array, mask: Array, *, saved: None, wanted: Wanted, shape: Sizes, **attrs: Any
) -> Any:
    dy = deform_unfold(g, offset, mask, **attrs) if "y" in wanted else None
    d_offset = deform_unfold_doffset(y, g, offset, mask, **attrs) if "offset" in wanted else None
    d_mask = deform_unfold_dmask(y, g, offset, **attrs) if "mask" in wanted else None
    return dy, d_offset, d_mask


# The mask of the samples whose gradient it is.
@backward(deform_unfold_dmask, of=("dy", "x", "offset"))
def _(g: Array, dy: Array, x: Array, offset: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
    d_dy = deform_unfold(x, offset, g, **attrs) if "dy" in wanted else None
    dx = deform_fold(dy, offset, g, shape=x.shape[2:], **attrs) if "x" in wanted else None
    d_offset = deform_unfold_doffset(dy, x, offset, g, **attrs) if "offset" in wanted else None
    return d_dy, dx, d_offset


# ---------------------------------------------------------------------------------------------------- samples


# x, w, whether there is a mask, and the attributes.
_PROBLEMS: tuple[tuple[Sizes, Sizes, bool, dict[str, Any]], ...] = (
    ((1, 1, 1, 1), (1, 1, 1, 1), False, {}),
    ((2, 3, 6, 7), (4, 3, 3, 3), True, {"padding": 1}),
    ((1, 4, 7, 9), (6, 2, 3, 2), True, {"stride": (2, 1), "dilation": (1, 2), "groups": 2, "offset_groups": 4}),
    ((1, 6, 5, 5), (4, 6, 2, 3), False, {"padding": ((0, 1), (2, 1)), "stride": 2, "offset_groups": 2}),
    ((0, 2, 4, 4), (3, 2, 2, 2), True, {}),
)


def _sizes(x: Sizes, w: Sizes, attrs: dict[str, Any]) -> Sizes:
    stride, dilation, padding = (attrs.get(name, d) for name, d in (("stride", 1), ("dilation", 1), ("padding", 0)))
    stride, dilation = (a if isinstance(a, tuple) else (a, a) for a in (stride, dilation))
    both = [sum(p) for p in padding] if isinstance(padding, tuple) else [2 * padding] * 2
    return tuple(
        (n + p - d * (k - 1) - 1) // s + 1 for n, k, p, d, s in zip(x[2:], w[2:], both, dilation, stride, strict=True)
    )


def _operands(fill: Fill) -> Iterator[tuple[Any, Any, Any, Any, dict[str, Any]]]:
    """x, w, offset, mask or None, and the attributes."""
    for x, w, masked, attrs in _PROBLEMS:
        samples = (attrs.get("offset_groups", 1) * math.prod(w[2:]), *_sizes(x, w, attrs))
        offset = fill(x[0], 2 * samples[0], *samples[1:])
        if offset.size > 9:
            offset.flat[:3] *= 100  # beside x
        yield fill(*x), fill(*w), offset, fill(x[0], *samples) if masked else None, attrs


def _only(attrs: dict[str, Any], w: Any) -> dict[str, Any]:
    return {"kernel": w.shape[2:], **{k: v for k, v in attrs.items() if k != "groups"}}


@samples(deform_conv)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, offset, mask, attrs in _operands(fill):
        yield Sample((x, w, offset, fill(w.shape[0]), mask), attrs)
    yield sample(fill(1, 3, 5, 20), fill(9, 3, 3, 3), fill(1, 18, 3, 18))


@samples(deform_unfold)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, offset, mask, attrs in _operands(fill):
        yield Sample((x, offset, mask), _only(attrs, w))


@samples(deform_fold)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, offset, mask, attrs in _operands(fill):
        y = fill(x.shape[0], x.shape[1] * math.prod(w.shape[2:]), math.prod(offset.shape[2:]))
        yield Sample((y, offset, mask), {"shape": x.shape[2:], **_only(attrs, w)})


@samples(deform_unfold_doffset)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, offset, mask, attrs in _operands(fill):
        dy = fill(x.shape[0], x.shape[1] * math.prod(w.shape[2:]), math.prod(offset.shape[2:]))
        yield Sample((dy, x, offset, mask), _only(attrs, w))


@samples(deform_unfold_dmask)
def _(fill: Fill) -> Iterator[Sample]:
    for x, w, offset, _, attrs in _operands(fill):
        dy = fill(x.shape[0], x.shape[1] * math.prod(w.shape[2:]), math.prod(offset.shape[2:]))
        yield Sample((dy, x, offset), _only(attrs, w))


# ----------------------------------------------------------------------------------------------------- errors


@errors(deform_conv)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, w, offset, b, mask = fill(1, 4, 6, 6), fill(6, 4, 3, 3), fill(1, 18, 4, 4), fill(6), fill(1, 9, 4, 4)
    yield ErrorCase(sample(x, w, fill(1, 9, 4, 4)), ShapeError, "offset has shape (1, 9, 4, 4); want (1, 18, 4, 4)")
    yield ErrorCase(sample(x, w, offset, b, offset), ShapeError, "mask has shape (1, 18, 4, 4); want (1, 9, 4, 4)")
    yield ErrorCase(sample(x, w, offset, fill(5), mask), ShapeError, "b has shape (5,) but w has K=6; want (6,)")
    yield ErrorCase(sample(x, fill(6, 3, 3, 3), offset), ShapeError, "x has C=4 but w has C/groups=3")
    yield ErrorCase(sample(x, w, offset, groups=4), AttrError, "groups=4 does not divide C=4 and K=6")
    yield ErrorCase(sample(x, w, offset, offset_groups=3), AttrError, "offset_groups=3 does not divide C=4")
    yield ErrorCase(sample(x, w, offset, offset_groups=0), AttrError, "offset_groups=0")
    yield ErrorCase(sample(fill(1, 4, 6), fill(6, 4, 3), offset), ShapeError, "x has 3 dimensions; want 4")
    yield ErrorCase(sample(x, w, np.ones((1, 18, 4, 4), np.int32)), DTypeError, "offset has dtype int32")


def _bad_columns(*args: Any, **attrs: Any) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(*args, kernel=(3, 3, 3), **attrs), AttrError, "kernel=(3, 3, 3) has 3 numbers")
    yield ErrorCase(sample(*args, kernel=3, stride=0, **attrs), AttrError, "stride=0")
    yield ErrorCase(sample(*args, kernel=3, offset_groups=3, **attrs), AttrError, "offset_groups=3 does not divide C=4")
    yield ErrorCase(sample(*args, kernel=3, padding=1, **attrs), ShapeError, "want (1, 18, 6, 6)")


@errors(deform_unfold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x, offset = fill(1, 4, 6, 6), fill(1, 18, 4, 4)
    yield from _bad_columns(x, offset)
    yield ErrorCase(sample(x, offset, fill(1, 8, 4, 4), kernel=3), ShapeError, "mask has shape (1, 8, 4, 4)")


@errors(deform_fold)
def _(fill: Fill) -> Iterator[ErrorCase]:
    y, offset = fill(1, 36, 16), fill(1, 18, 4, 4)
    yield from _bad_columns(y, offset, shape=(6, 6))
    yield ErrorCase(sample(fill(1, 35, 16), offset, shape=(6, 6), kernel=3), ShapeError, "y has 35 rows")
    yield ErrorCase(sample(fill(1, 36, 15), offset, shape=(6, 6), kernel=3), ShapeError, "y has shape (1, 36, 15)")
    yield ErrorCase(sample(y, offset, shape=(6, 6, 6), kernel=3), AttrError, "shape=(6, 6, 6)")


@errors(deform_unfold_doffset)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, x, offset = fill(1, 36, 16), fill(1, 4, 6, 6), fill(1, 18, 4, 4)
    yield from _bad_columns(dy, x, offset)
    yield ErrorCase(sample(fill(1, 36, 15), x, offset, kernel=3), ShapeError, "dy has shape (1, 36, 15)")


@errors(deform_unfold_dmask)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, x, offset = fill(1, 36, 16), fill(1, 4, 6, 6), fill(1, 18, 4, 4)
    yield from _bad_columns(dy, x, offset)
    yield ErrorCase(sample(fill(1, 35, 16), x, offset, kernel=3), ShapeError, "dy has shape (1, 35, 16)")


@workloads(deform_conv)
def _() -> Iterator[Workload]:
    shapes = ((1, 64, 56, 56), (64, 64, 3, 3), (1, 18, 56, 56), (64,), (1, 9, 56, 56))
    yield Workload("3x3 64ch 56x56", shapes, {"padding": 1})


@flops(deform_conv)
def _(x: Sizes, w: Sizes, offset: Sizes, b: Sizes | None, mask: Sizes | None, **attrs: Any) -> float:
    return 2.0 * x[0] * math.prod(w) * math.prod(offset[2:])


# ---------------------------------------------------------------------------------------------------- OpenCL


def _launch(queue: Queue, name: str, items: int, arrays: tuple[Any, ...], image: Any, y: Any, **attrs: Any) -> None:
    """A kernel of deform_conv.cl on arrays, None left out; ``y`` is an array over the windows."""
    from tilework.backends.opencl_queue import GROUP_SIZE

    members = (
        (*image.shape[:2], attrs["offset_groups"]),
        image.shape[2:],
        y.shape[2:],
        attrs["kernel"],
        attrs["stride"],
        attrs["dilation"],
        tuple(before for before, _ in attrs["padding"]),
    )
    struct = np.array([n for member in members for n in member], np.int64)
    define = {"DTYPE": image.dtype} | ({} if attrs.get("mask") is None else {"MASK": 1})
    given = tuple(a for a in arrays if a is not None)
    queue.launch("deform_conv.cl", name, items, GROUP_SIZE, (*given, struct), **define)


@opencl(deform_conv)
def _(queue: Queue, x: Any, w: Any, offset: Any, b: Any, mask: Any, y: Any, *, groups: int, **attrs: Any) -> None:
    from tilework.backends import opencl_conv

    with opencl_conv.in_float(queue, (x, w, offset, b, mask), y) as ((x, w, offset, b, mask), y):
        rows, windows = x.shape[1] * math.prod(w.shape[2:]), math.prod(y.shape[2:])
        columns = queue.empty((x.shape[0], rows, windows), x.dtype)
        attrs |= {"kernel": w.shape[2:], "mask": mask}
        _launch(queue, "deform_unfold", columns.size, (x, offset, mask, columns), x, offset, **attrs)
        one_tap = queue.contiguous(w).reshape(w.shape[0], rows // groups, 1)
        product = opencl_conv.Conv(columns, y.reshape(*y.shape[:2], windows), (1,), (1,), ((0, 0),), (1,), groups)
        opencl_conv.forward(queue, product, one_tap, b, None, None)


@opencl(deform_unfold)
def _(queue: Queue, x: Any, offset: Any, mask: Any, y: Any, **attrs: Any) -> None:
    _launch(queue, "deform_unfold", y.size, (x, offset, mask, y), x, offset, mask=mask, **attrs)


@opencl(deform_fold)
def _(queue: Queue, y: Any, offset: Any, mask: Any, x: Any, *, shape: Sizes, **attrs: Any) -> None:
    from tilework.backends import opencl_conv

    with opencl_conv.in_float(queue, (y, offset, mask), x) as ((y, offset, mask), x):
        queue.fill(x, 0)
        planes = x.shape[0] * x.shape[1] if x.size else 0
        _launch(queue, "deform_fold", planes, (y, offset, mask, x), x, offset, mask=mask, **attrs)


@opencl(deform_unfold_doffset)
def _(queue: Queue, dy: Any, x: Any, offset: Any, mask: Any, to: Any, **attrs: Any) -> None:
    _launch(queue, "deform_unfold_doffset", to.size, (dy, x, offset, mask, to), x, offset, mask=mask, **attrs)


@opencl(deform_unfold_dmask)
def _(queue: Queue, dy: Any, x: Any, offset: Any, to: Any, **attrs: Any) -> None:
    _launch(queue, "deform_unfold_dmask", to.size, (dy, x, offset, to), x, offset, **attrs)
