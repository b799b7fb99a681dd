"""Local correlation, the cost volume of optical flow and stereo matching."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tilework.arrays import Array, Ints, Sizes, Wanted
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
    flops,
    op,
    opencl,
    reference,
    sample,
    samples,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

Side: TypeAlias = Literal["a", "b"]


@op
def local_correlation(
    a: Array,
    b: Array,
    *,
    max_displacement: Ints,
    stride: Ints = 1,
    normalize: bool = False,
    out: Array | None = None,
) -> Array:
    """Correlates a with displaced b, both (N, C, *spatial), giving a cost volume (N, displacements, *spatial).

    Displacements run over multiples of ``stride`` up to ``max_displacement`` to both sides of each axis, the last axis
    fastest: 2 (max_displacement // stride) + 1 per axis. Result e at place p is the dot over the channels of a at p and
    b at p + e, zero where that is outside; ``normalize`` divides it by C. Fischer et al., "FlowNet", 2015.
    """
    ...


@op
def local_correlation_dx(
    dy: Array,
    other: Array,
    *,
    max_displacement: Ints,
    stride: Ints = 1,
    normalize: bool = False,
    side: Side,
    out: Array | None = None,
) -> Array:
    """Computes the gradient of local_correlation in a or b, (N, C, *spatial), from dy (N, displacements, *spatial).

    ``side`` names the operand whose gradient it is; ``other`` (N, C, *spatial) is the other one.
    """
    ...


# ------------------------------------------------------------------------------------------------- references


def _displacements(max_displacement: Sizes, stride: Sizes) -> Iterator[Sizes]:
    reach = [m // s * s for m, s in zip(max_displacement, stride, strict=True)]
    return itertools.product(*(range(-r, r + 1, s) for r, s in zip(reach, stride, strict=True)))


def _pairs(shape: Sizes, max_displacement: Sizes, stride: Sizes) -> Iterator[tuple[int, Any, Any]]:
    """Per displacement: its number, and the places of a and of b that meet."""
    for number, by in enumerate(_displacements(max_displacement, stride)):
        sizes = [max(n - abs(e), 0) for n, e in zip(shape, by, strict=True)]
        at_a = tuple(slice(max(-e, 0), max(-e, 0) + m) for m, e in zip(sizes, by, strict=True))
        at_b = tuple(slice(max(e, 0), max(e, 0) + m) for m, e in zip(sizes, by, strict=True))
        yield number, (slice(None), slice(None), *at_a), (slice(None), slice(None), *at_b)


def _count(max_displacement: Sizes, stride: Sizes) -> int:
    return math.prod(2 * (m // s) + 1 for m, s in zip(max_displacement, stride, strict=True))


@reference(local_correlation)
def _(a: Any, b: Any, *, max_displacement: Sizes, stride: Sizes, normalize: bool) -> Any:
    y = np.zeros((a.shape[0], _count(max_displacement, stride), *a.shape[2:]))
    for e, at_a, at_b in _pairs(a.shape[2:], max_displacement, stride):
        y[(slice(None), e, *at_a[2:])] = np.sum(a[at_a] * b[at_b], axis=1)
    return np.divide(y, a.shape[1]) if normalize else y


@reference(local_correlation_dx)
def _(dy: Any, other: Any, *, max_displacement: Sizes, stride: Sizes, normalize: bool, side: Side) -> Any:
    dx = np.zeros(other.shape)
    for e, at_a, at_b in _pairs(other.shape[2:], max_displacement, stride):
        mine, theirs = (at_a, at_b) if side == "a" else (at_b, at_a)
        dx[mine] += dy[(slice(None), slice(e, e + 1), *at_a[2:])] * other[theirs]
    return np.divide(dx, other.shape[1]) if normalize else dx


for _op in (local_correlation, local_correlation_dx):
    dtypes(_op, *FLOATING)

# A NaN in a, or in its dy, meets the zeros around b.
local_correlation.rules["spreading"] = ("a",)
local_correlation_dx.rules["spreading"] = ("dy",)


@depth(local_correlation)
def _(a: Any, b: Any, **attrs: Any) -> int:
    return int(a.shape[1])


@depth(local_correlation_dx)
def _(dy: Any, other: Any, **attrs: Any) -> int:
    return int(dy.shape[1])


@backward(local_correlation, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
    da = local_correlation_dx(dy, b, side="a", **attrs) if "a" in wanted else None
    db = local_correlation_dx(dy, a, side="b", **attrs) if "b" in wanted else None
    return da, db


@backward(local_correlation_dx, of=("dy", "other"))
def _(g: Array, dy: Array, other: Array, *, saved: None, wanted: Wanted, side: Side, **attrs: Any) -> Any:
    a, b = (g, other) if side == "a" else (other, g)
    d_dy = local_correlation(a, b, **attrs) if "dy" in wanted else None
    d_other = local_correlation_dx(dy, g, side="b" if side == "a" else "a", **attrs) if "other" in wanted else None
    return d_dy, d_other


# ---------------------------------------------------------------------------------------------------- samples


_PROBLEMS: tuple[tuple[Sizes, dict[str, Any]], ...] = (
    ((1, 1, 1), {"max_displacement": (0,)}),
    ((2, 3, 17), {"max_displacement": (5,), "stride": (2,)}),
    ((1, 9, 5, 11), {"max_displacement": (2, 4)}),
    ((2, 4, 6, 9), {"max_displacement": (4, 3), "stride": (2, 3), "normalize": True}),
    ((1, 2, 3, 4), {"max_displacement": (0, 6)}),
    ((1, 2, 2, 3, 5), {"max_displacement": (1, 1, 2)}),
    ((0, 2, 4, 4), {"max_displacement": (1, 1)}),
)


@samples(local_correlation)
def _(fill: Fill) -> Iterator[Sample]:
    for shape, attrs in _PROBLEMS:
        yield Sample((fill(*shape), fill(*shape)), attrs)
    yield sample(fill(9, 5, 2, 1).T, fill(1, 2, 5, 9), max_displacement=1, normalize=True)


@samples(local_correlation_dx)
def _(fill: Fill) -> Iterator[Sample]:
    sides: tuple[Side, Side] = ("a", "b")
    for shape, attrs in _PROBLEMS:
        count = _count(attrs["max_displacement"], attrs.get("stride", (1,) * (len(shape) - 2)))
        for side in sides:
            yield Sample((fill(shape[0], count, *shape[2:]), fill(*shape)), {"side": side, **attrs})


def _bad_grids(*args: Any, **attrs: Any) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(*args, **attrs), AttrTypeError, "max_displacement")
    yield ErrorCase(sample(*args, max_displacement=-1, **attrs), AttrError, "max_displacement=-1; want 0 or more")
    yield ErrorCase(sample(*args, max_displacement=(1, 1, 1), **attrs), AttrError, "max_displacement=(1, 1, 1) has 3")
    yield ErrorCase(sample(*args, max_displacement=1 << 39, **attrs), AttrError, "too many displacements")
    yield ErrorCase(sample(*args, max_displacement=1, stride=0, **attrs), AttrError, "stride=0")
    yield ErrorCase(sample(*args, max_displacement=1, normalize=1, **attrs), AttrTypeError, "normalize=1 is a int")


@errors(local_correlation)
def _(fill: Fill) -> Iterator[ErrorCase]:
    a = fill(1, 3, 5, 6)
    yield from _bad_grids(a, a)
    yield ErrorCase(sample(a, fill(1, 2, 5, 6), max_displacement=1), ShapeError, "b has shape (1, 2, 5, 6) but a has")
    yield ErrorCase(sample(fill(3, 5), fill(3, 5), max_displacement=1), ShapeError, "a has 2 dimensions; want 3 to 5")
    yield ErrorCase(sample(a, np.ones(a.shape, np.int32), max_displacement=1), DTypeError, "b has dtype int32")


@errors(local_correlation_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    dy, b = fill(1, 9, 5, 6), fill(1, 3, 5, 6)
    yield from _bad_grids(dy, b, side="a")
    yield ErrorCase(sample(dy, b, max_displacement=1), AttrTypeError, "side")
    yield ErrorCase(sample(dy, b, max_displacement=1, side="c"), AttrError, "side='c'")
    yield ErrorCase(
        sample(dy, b, max_displacement=2, side="b"), ShapeError, "dy has shape (1, 9, 5, 6); want (1, 25, 5, 6)"
    )


@workloads(local_correlation)
def _() -> Iterator[Workload]:
    yield Workload("64ch 48x64 d4", ((1, 64, 48, 64),) * 2, {"max_displacement": 4}, ("flow",))
    yield Workload("256ch 48x64 d20 s2", ((1, 256, 48, 64),) * 2, {"max_displacement": 20, "stride": 2}, ("flow",))


@workloads(local_correlation_dx)
def _() -> Iterator[Workload]:
    for side in ("a", "b"):
        shapes = ((1, 81, 48, 64), (1, 64, 48, 64))
        yield Workload(f"d{side} 64ch 48x64 d4", shapes, {"max_displacement": 4, "side": side}, ("flow",))


@flops(local_correlation)
def _(a: Sizes, b: Sizes, *, max_displacement: Sizes, stride: Sizes, **attrs: Any) -> float:
    return 2.0 * math.prod(a) * _count(max_displacement, stride)


@flops(local_correlation_dx)
def _(dy: Sizes, other: Sizes, **attrs: Any) -> float:
    return 2.0 * math.prod(other) * dy[1]


# ---------------------------------------------------------------------------------------------------- OpenCL


def _launch(
    queue: Queue, kernel: str, arrays: tuple[Any, Any, Any], max_displacement: Sizes, stride: Sizes, **attrs: Any
) -> None:
    from tilework.backends.opencl_queue import GROUP_SIZE

    image, y = arrays[1], arrays[2]
    more = 5 - image.ndim
    steps = [m // s for m, s in zip(max_displacement, stride, strict=True)]
    struct = [
        *image.shape[:2],
        *(1,) * more,
        *image.shape[2:],
        *(1,) * more,
        *(2 * n + 1 for n in steps),
        *(1,) * more,
        *(min(s, n) for s, n in zip(stride, image.shape[2:], strict=True)),  # a step as wide as the image leaves it
        int(image.shape[1]) if attrs["normalize"] else 1,
    ]
    args = (*arrays, np.array(struct, np.int64))
    define = {"SIDE_B": 1} if attrs.get("side") == "b" else {}
    queue.launch("local_correlation.cl", kernel, y.size, GROUP_SIZE, args, DTYPE=y.dtype, **define)


@opencl(local_correlation)
def _(queue: Queue, a: Any, b: Any, y: Any, **attrs: Any) -> None:
    _launch(queue, "local_correlation", (a, b, y), **attrs)


@opencl(local_correlation_dx)
def _(queue: Queue, dy: Any, other: Any, dx: Any, **attrs: Any) -> None:
    _launch(queue, "local_correlation_dx", (dy, other, dx), **attrs)
