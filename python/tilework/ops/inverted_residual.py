"""The inverted residual of MobileNets: widen, filter every channel by itself, narrow, all in one call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Ints, Padding, Sizes, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import is_narrow
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.ops.conv import conv, out_sizes, wide_backward
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
    from tilework.testing import Fill


@op
def inverted_residual(
    x: Array,
    w: Array,
    narrow: Array,
    wide: Array | None = None,
    b: Array | None = None,
    narrow_b: Array | None = None,
    wide_b: Array | None = None,
    residual: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    activation: Activation = None,
    narrow_activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """Widens x (N, Cin, H, W) to C channels, filters each by itself, and narrows to K: returns (N, K, P, Q).

    Three convolutions: with wide (C, Cin, 1, 1) and wide_b (C,), left out where wide is not given and C = Cin; with
    w (C, 1, *kernel) and b (C,) by stride, padding and dilation, those of conv; and with narrow (K, C, 1, 1) and
    narrow_b (K,). The activation follows the first two, narrow_activation the last, after residual, of the shape of the
    result, is added. What is wide is never stored as a whole. Sandler et al., "MobileNetV2: inverted residuals and
    linear bottlenecks", 2018.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _composed(
    layer: Any,
    x: Any,
    w: Any,
    narrow: Any,
    wide: Any,
    b: Any,
    narrow_b: Any,
    wide_b: Any,
    residual: Any,
    *,
    activation: Activation,
    narrow_activation: Activation,
    **attrs: Any,
) -> Any:
    """The three convolutions, each by ``layer``."""
    e = x if wide is None else layer(x, wide, wide_b, activation=activation)
    d = layer(e, w, b, groups=w.shape[0], activation=activation, **attrs)
    return layer(d, narrow, narrow_b, residual, activation=narrow_activation)


_POINT = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1, "layout": "NCHW"}


def _reference(x: Any, w: Any, b: Any, residual: Any = None, **attrs: Any) -> Any:
    return conv.rules["reference"](x, w, b, residual, **(_POINT | attrs))


@reference(inverted_residual)
def _(*operands: Any, **attrs: Any) -> Any:
    return _composed(_reference, *operands, **attrs)


# Activations are no steeper than 1.13, and what they are given is no larger than the sums of sizes.
@terms(inverted_residual)
def _(*operands: Any, activation: Activation, narrow_activation: Activation, **attrs: Any) -> Any:
    sizes = (None if a is None else np.abs(a) for a in operands)
    return (1.4 * _composed(_reference, *sizes, activation=None, narrow_activation=None, **attrs),)


@depth(inverted_residual)
def _(x: Any, w: Any, narrow: Any, wide: Any, *others: Any, **attrs: Any) -> int:
    return int((0 if wide is None else x.shape[1] + 2) + w[0].size + w.shape[0] + 6)


dtypes(inverted_residual, "float32", "float64", "float16", "bfloat16")
inverted_residual.rules["reads_packed"] = ("w", "narrow", "wide")


# ------------------------------------------------------------------------------------------------- gradients


@backward(inverted_residual, of=inverted_residual.operands, where_given=("residual",))
@wide_backward
def _(
    dy: Array,
    x: Array,
    w: Array,
    narrow: Array,
    wide: Array,
    b: Array,
    narrow_b: Array,
    wide_b: Array,
    residual: Array,
    *,
    saved: None,
    wanted: Wanted,
    activation: Activation,
    narrow_activation: Activation,
    **attrs: Any,
) -> Any:
    each = {"groups": w.shape[0], "activation": activation, **attrs}
    e, e_saved = (x, None) if wide is None else conv.forward(x, wide, wide_b, activation=activation)
    d, d_saved = conv.forward(e, w, b, **each)
    last = {"activation": narrow_activation}
    y_saved = conv.forward(d, narrow, narrow_b, residual, **last)[1] if narrow_activation else None
    made: dict[str, Any] = {}

    def back(dy: Any, saved: Any, operands: Any, names: tuple[str, ...], inner: bool, **given: Any) -> Any:
        """The gradients of one convolution go by their names; returns that of its image, where it leads further."""
        asked = {n for n, name in zip(("w", "b", "residual"), names, strict=False) if name in wanted}
        grads = conv.backward(dy, *operands, saved=saved, wanted=asked | ({"x"} if inner else set()), **given)
        made.update(zip(names, grads[1:], strict=False))
        return grads[0]

    before = {"x", "wide", "wide_b"} & wanted
    dd = back(
        dy,
        y_saved,
        (d, narrow, narrow_b, residual),
        ("narrow", "narrow_b", "residual"),
        bool(before | {"w", "b"} & wanted),
        **last,
    )
    if dd is not None:
        made["x"] = back(dd, d_saved, (e, w, b), ("w", "b"), bool(before), **each)
    if wide is not None and before:
        made["x"] = back(
            made["x"], e_saved, (x, wide, wide_b), ("wide", "wide_b"), "x" in wanted, activation=activation
        )
    return tuple(made.get(n) for n in inverted_residual.operands)


# --------------------------------------------------------------------------------------------------- samples


def _operands(fill: Fill, x: Sizes, channels: int, kernel: Sizes, filters: int, *, wide: bool, biases: bool) -> Any:
    """x to wide_b."""
    half = np.asarray(0.5, fill.dtype)
    given = (
        (fill(channels, x[1], 1, 1) * half if wide else None),
        *(
            (fill(n) if biases and there else None)
            for n, there in ((channels, True), (filters, True), (channels, wide))
        ),
    )
    return fill(*x), fill(channels, 1, *kernel), fill(filters, channels, 1, 1) * half, *given


@samples(inverted_residual)
def _(fill: Fill) -> Iterator[Sample]:
    def block(x: Sizes, channels: int, kernel: Sizes, filters: int, **attrs: Any) -> Sample:
        wide, biases = attrs.pop("wide", True), attrs.pop("biases", True)
        return Sample(_operands(fill, x, channels, kernel, filters, wide=wide, biases=biases), attrs)

    yield block((1, 1, 1, 1), 1, (1, 1), 1)
    yield block((2, 3, 5, 6), 7, (3, 3), 5, padding=1, activation="tanh")
    yield block((1, 2, 9, 11), 17, (3, 3), 9, stride=2, padding=1, biases=False)
    yield block((1, 9, 4, 5), 9, (3, 3), 17, wide=False, padding="same", activation="relu6")
    yield block((1, 3, 7, 3), 5, (2, 3), 3, padding=((4, 0), (1, 3)), dilation=(1, 2), activation="sigmoid")
    yield block((1, 2, 8, 9), 3, (5, 5), 2, stride=(1, 2), padding=2, narrow_activation="gelu")
    x, *others = _operands(fill, (1, 4, 6, 5), 20, (3, 3), 4, wide=True, biases=True)
    yield sample(x, *others, x, padding=1, activation="relu6")
    yield sample(x, *others, fill(1, 4, 6, 5), padding=1, narrow_activation="relu")
    turned = fill(5, 6, 4, 1).T
    yield sample(turned, *others, fill(5, 6, 4, 1).T, padding=1, narrow_activation="tanh")
    yield block((0, 2, 3, 3), 4, (3, 3), 2, padding=1)
    yield block((1, 0, 3, 3), 4, (3, 3), 2, padding=1)
    yield block((1, 2, 3, 3), 4, (3, 3), 0, padding=1)


@errors(inverted_residual)
def _(fill: Fill) -> Iterator[ErrorCase]:
    given = [*_operands(fill, (1, 4, 6, 5), 8, (3, 3), 3, wide=True, biases=True), fill(1, 3, 6, 5)]

    def but(place: int, value: Any, **attrs: Any) -> Sample:
        return sample(*given[:place], value, *given[place + 1 :], **{"padding": 1, **attrs})

    yield ErrorCase(but(0, fill(4, 6, 5)), ShapeError, "x has 3 dimensions; want 4")
    yield ErrorCase(but(1, fill(7, 1, 3, 3)), ShapeError, "w has shape (7, 1, 3, 3); want (8, 1, 3, 3)")
    yield ErrorCase(but(1, fill(8, 1, 0, 3)), ShapeError, "kernel")
    yield ErrorCase(but(1, fill(8, 1, 9, 3)), ShapeError, "kernel")
    yield ErrorCase(but(2, fill(3, 7, 1, 1)), ShapeError, "narrow has shape (3, 7, 1, 1); want (3, 8, 1, 1)")
    yield ErrorCase(but(3, fill(8, 3, 1, 1)), ShapeError, "wide has shape (8, 3, 1, 1); want (8, 4, 1, 1)")
    yield ErrorCase(but(3, None), ShapeError, "w has shape (8, 1, 3, 3); want (4, 1, 3, 3)")
    yield ErrorCase(but(4, fill(7)), ShapeError, "b has shape (7,); want (8,)")
    yield ErrorCase(but(5, fill(8)), ShapeError, "narrow_b has shape (8,); want (3,)")
    yield ErrorCase(but(6, fill(3)), ShapeError, "wide_b has shape (3,); want (8,)")
    yield ErrorCase(but(7, fill(1, 4, 6, 5)), ShapeError, "residual has shape (1, 4, 6, 5); want (1, 3, 6, 5)")
    narrow = _operands(fill, (1, 4, 6, 5), 4, (3, 3), 3, wide=False, biases=True)
    yield ErrorCase(sample(*narrow[:6], fill(4), padding=1), ShapeError, "wide_b is given but wide is not")
    none = fill(1, 0, 6, 5), fill(0, 1, 3, 3), fill(3, 0, 1, 1)
    yield ErrorCase(sample(*none, padding=1), ShapeError, "w has shape (0, 1, 3, 3); want one channel or more")
    yield ErrorCase(but(0, given[0], stride=0), AttrError, "stride=0")
    yield ErrorCase(but(0, given[0], padding=-1), AttrError, "padding=-1")
    yield ErrorCase(but(0, given[0], dilation=1 << 62), AttrError, "dilation=4611686018427387904")
    yield ErrorCase(but(0, given[0], activation="swish"), AttrError, "activation='swish'; want one of")
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(but(3, given[3].astype(other)), DTypeError, f"wide has dtype {np.dtype(other)}")
    yield ErrorCase(but(4, given[4].astype(other)), DTypeError, f"b has dtype {np.dtype(other)}")


# ------------------------------------------------------------------------------------------------- workloads


@workloads(inverted_residual)
def _() -> Iterator[Workload]:
    for name, x, channels, filters, stride, added in (
        ("24 to 144 56x56", (1, 24, 56, 56), 144, 24, 1, True),
        ("16 to 96 s2 112x112", (1, 16, 112, 112), 96, 24, 2, False),
        ("96 to 576 14x14", (1, 96, 14, 14), 576, 96, 1, True),
    ):
        shapes = (
            x,
            (channels, 1, 3, 3),
            (filters, channels, 1, 1),
            (channels, x[1], 1, 1),
            *((n,) for n in (channels, filters, channels)),
        )
        attrs = {"stride": stride, "padding": 1, "activation": "relu6"}
        yield Workload(name, (*shapes, x if added else None), attrs, sets=("mobilenet",))


@flops(inverted_residual)
def _(x: Sizes, w: Sizes, narrow: Sizes, wide: Sizes | None, *others: Any, **attrs: Any) -> float:
    attrs = {n: attrs[n] for n in ("stride", "padding", "dilation")}
    made = x[0] * math.prod(out_sizes((x[0], w[0], *x[2:]), w, attrs)) * (math.prod(w) + math.prod(narrow))
    return 2.0 * (made + (0 if wide is None else x[0] * math.prod(x[2:]) * math.prod(wide)))


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(inverted_residual)
def _(queue: Queue, *arrays: Any, **attrs: Any) -> None:
    *operands, y = arrays
    if is_narrow(y.dtype):
        operands = [None if a is None else ops.cast(a, dtype=np.float32) for a in operands]
    queue.copy(ops.cast(_composed(ops.conv, *operands, **attrs), dtype=y.dtype), y)
