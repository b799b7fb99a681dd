"""Rotary position embedding, which is its own gradient run backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dtypes import FLOATING, is_narrow
from tilework.errors import DTypeError, IndexContentError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    fills,
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
def rotary_embedding(
    x: Array,
    cos: Array,
    sin: Array,
    positions: Array | None = None,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    out: Array | None = None,
) -> Array:
    """Turns pairs of elements in the rows of x (B, H, T, D) by the angles of their places, for attention.

    cos and sin are (P, R/2), in the dtype of x or float32 for 16-bit x. Row t stands at place t, or at positions[t] or
    positions[b, t], integers of 0 to P - 1. Of its first R elements, i and i + R/2 are a pair, or 2i and 2i + 1 if
    ``interleaved``; the others are copied. ``inverse`` turns back, which is the gradient in x. Su et al., "RoFormer:
    enhanced transformer with rotary position embedding", 2021.
    """
    ...


def _turned(x: Any, c: Any, s: Any, interleaved: bool) -> Any:
    """x with its pairs turned; c and s broadcast to them."""
    half = c.shape[-1]
    first = x[..., 0 : 2 * half : 2] if interleaved else x[..., :half]
    second = x[..., 1 : 2 * half : 2] if interleaved else x[..., half : 2 * half]
    pair = np.stack([first * c - second * s, first * s + second * c], axis=-1 if interleaved else -2)
    return np.concatenate([pair.reshape(*x.shape[:-1], 2 * half), x[..., 2 * half :]], axis=-1)


def _at_places(table: Any, x: Any, positions: Any) -> Any:
    places = np.arange(x.shape[2]) if positions is None else np.asarray(positions, np.int64)
    rows = table[places]
    return rows[:, None] if rows.ndim == 3 else rows


@reference(rotary_embedding)
def _(x: Any, cos: Any, sin: Any, positions: Any, *, interleaved: bool, inverse: bool) -> Any:
    c, s = (_at_places(table, x, positions) for table in (cos, sin))
    return _turned(x, c, -s if inverse else s, interleaved)


@terms(rotary_embedding)
def _(x: Any, cos: Any, sin: Any, positions: Any, *, interleaved: bool, inverse: bool) -> Any:
    c, s = (np.abs(_at_places(table, x, positions)) for table in (cos, sin))
    ahead, behind = (_turned(np.abs(x), c, by, interleaved) for by in (s, -s))
    return np.fmax(ahead, behind)


@depth(rotary_embedding)
def _(x: Any, *others: Any, **attrs: Any) -> int:
    return 2


@backward(rotary_embedding, of=("x",))
def _(
    dy: Array,
    x: Array,
    cos: Array,
    sin: Array,
    positions: Array,
    *,
    saved: None,
    wanted: Wanted,
    interleaved: bool,
    inverse: bool,
) -> Any:
    if "x" not in wanted:
        return (None,)
    return (rotary_embedding(dy, cos, sin, positions, interleaved=interleaved, inverse=not inverse),)


dtypes(rotary_embedding, *FLOATING)


def _tables(fill: Fill, places: int, half: int) -> tuple[Any, Any]:
    wide = np.float32 if is_narrow(fill.dtype) else fill.dtype
    angles = np.arange(places)[:, None] / 10.0 ** np.linspace(0, 2, half)
    return np.cos(angles).astype(wide), np.sin(angles).astype(wide)


@samples(rotary_embedding)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample(fill(1, 1, 1, 2), *_tables(fill, 1, 1))
    yield sample(fill(2, 2, 3, 10), *_tables(fill, 5, 4), np.array([[4, 0, 2], [1, 1, 3]]), inverse=True)
    for interleaved in (False, True):
        yield sample(fill(1, 2, 3, 70), *_tables(fill, 4, 34), interleaved=interleaved)
        yield sample(fill(2, 1, 2, 9), *_tables(fill, 5, 3), np.array([4, 1], np.int32), interleaved=interleaved)
        yield sample(np.swapaxes(fill(1, 2, 3, 6), 1, 2), *_tables(fill, 2, 3), interleaved=interleaved)
    yield sample(fill(1, 1, 2, 3), *_tables(fill, 2, 0))
    yield sample(fill(0, 2, 3, 4), *_tables(fill, 3, 2))


@errors(rotary_embedding)
def _(fill: Fill) -> Iterator[ErrorCase]:
    cos, sin = _tables(fill, 3, 2)
    x = fill(1, 2, 3, 4)
    yield ErrorCase(sample(x[0], cos, sin), ShapeError, "x has 3 dimensions; want 4")
    yield ErrorCase(sample(x[..., :3], cos, sin), ShapeError, "cos has shape (3, 2) but x has D=3")
    yield ErrorCase(sample(x, cos, sin[:2]), ShapeError, "sin has shape (2, 2) but cos has (3, 2)")
    yield ErrorCase(sample(fill(1, 2, 4, 4), cos, sin), ShapeError, "cos has P=3 places but x has T=4")
    yield ErrorCase(sample(x, cos.astype(np.int32), sin), DTypeError, "cos has dtype int32; want float")
    for bad in (3, -1):
        places = np.array([0, 1, bad])
        yield ErrorCase(sample(x, cos, sin, places), IndexContentError, f"positions has {bad} at position 2; want 0 to")
    yield ErrorCase(sample(x, cos, sin, np.array([0, 1])), ShapeError, "positions has shape (2,); want (3,)")
    yield ErrorCase(sample(x, cos, sin, fill(3)), DTypeError, "want int32 or int64")


@workloads(rotary_embedding)
def _() -> Iterator[Workload]:
    for interleaved in (False, True):
        name = "H32 T512 D128" + (" interleaved" if interleaved else "")
        shapes = ((1, 32, 512, 128), (512, 64), (512, 64))
        yield Workload(name, shapes, {"interleaved": interleaved}, sets=("transformer",))


@fills(rotary_embedding)
def _(fill: Fill, x: Sizes, cos: Sizes, sin: Sizes, positions: Sizes | None, **attrs: Any) -> Any:
    return fill(*x), *_tables(fill, *cos), None


@opencl(rotary_embedding)
def _(queue: Queue, x: Any, cos: Any, sin: Any, positions: Any, y: Any, *, interleaved: bool, inverse: bool) -> None:
    half, (batch, heads, length, width) = cos.shape[1], x.shape
    if positions is not None:
        queue.check_indices("positions", positions, cos.shape[0])
    if half == 0:
        queue.copy(x, y)
        return
    per_sequence = positions is not None and positions.ndim == 2
    sizes = (heads, length, width, half, positions is not None, length if per_sequence else 0)
    items = batch * heads * length * (width - half)
    args = (x, cos, sin, queue.as_int64(positions), y, np.array([items, *sizes, interleaved, inverse], np.int64))
    queue.launch("rotary_embedding.cl", "turn_pairs", items, GROUP_SIZE, args, DTYPE=x.dtype)
