"""Shapes, slices, and where elements go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

import tilework as tw
from tilework.dtypes import is_floating, is_integer
from tilework.interop.onnx.reading import array
from tilework.interop.onnx.rules import ModelError, NodeView, axis_of, node


@node("Constant")
def constant(n: NodeView) -> Any:
    for name, value in n.attributes.items():
        n.read.add(name)
        if name == "value":
            return array(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    return n.refuse("a constant of text or a sparse one")


@node("ConstantOfShape")
def constant_of_shape(n: NodeView, shape: Any) -> Any:
    value = n.attributes.get("value")
    n.read.add("value")
    fill = np.zeros(1, np.float32) if value is None else array(value)
    return np.full(n.ints(shape, "shape"), fill.reshape(()), fill.dtype)


@node("Shape")
def shape_of(n: NodeView, x: Any) -> Any:
    return np.asarray(tuple(x.shape)[slice(n.get("start", 0), n.get("end"))], np.int64)


@node("Size")
def size_of(n: NodeView, x: Any) -> Any:
    return np.asarray(math.prod(x.shape), np.int64)


@node("Reshape")
def reshape(n: NodeView, x: Any, shape: Any = None) -> Any:
    sizes = list(n.ints(shape, "shape") if shape is not None else n.get("shape"))
    if not n.get("allowzero", 0):
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return tw.reshape(x, tuple(sizes))


@node("Flatten")
def flatten(n: NodeView, x: Any) -> Any:
    axis = n.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return tw.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@node("Squeeze")
def squeeze(n: NodeView, x: Any, axes: Any = None) -> Any:
    chosen = n.ints(axes, "axes") if axes is not None else n.get("axes")
    ndim = len(x.shape)
    drop = {a for a, s in enumerate(x.shape) if s == 1} if chosen is None else {axis_of(a, ndim) for a in chosen}
    if any(x.shape[a] != 1 for a in drop):
        raise ModelError(f"Squeeze: axes {sorted(drop)} of shape {tuple(x.shape)} are not all of size 1")
    return tw.reshape(x, tuple(s for a, s in enumerate(x.shape) if a not in drop))


@node("Unsqueeze")
def unsqueeze(n: NodeView, x: Any, axes: Any = None) -> Any:
    chosen = n.ints(axes, "axes") if axes is not None else n.get("axes")
    ndim = len(x.shape) + len(chosen)
    added = {axis_of(a, ndim) for a in chosen}
    sizes = iter(x.shape)
    return tw.reshape(x, tuple(1 if a in added else next(sizes) for a in range(ndim)))


@node("Transpose")
def transpose(n: NodeView, x: Any) -> Any:
    return tw.transpose(x, n.get("perm") or tuple(reversed(range(len(x.shape)))))


@node("Concat")
def concat(n: NodeView, *arrays: Any) -> Any:
    return tw.concat(list(arrays), axis=n.get("axis", 1))


@node("Split")
def split(n: NodeView, x: Any, sizes: Any = None) -> Any:
    axis = axis_of(n.get("axis", 0), len(x.shape))
    parts = n.ints(sizes, "split") if sizes is not None else n.get("split")
    if parts is None:
        count = n.get("num_outputs", len(n.outputs))
        n.want(count == len(n.outputs), f"num_outputs={count} of {len(n.outputs)} outputs")
        each = -(-x.shape[axis] // count)
        parts = tuple(max(0, min(each, x.shape[axis] - i * each)) for i in range(count))
    if min(parts, default=0) < 0 or sum(parts) != x.shape[axis]:
        raise ModelError(f"Split: parts {parts!s:.80}; want sizes >= 0 that add up to {x.shape[axis]}")
    ends = np.cumsum(parts).tolist()
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(e - p, e))] for p, e in zip(parts, ends, strict=True))


@node("Slice")
def slice_of(n: NodeView, x: Any, *limits: Any) -> Any:
    if limits:
        starts, ends = n.ints(limits[0], "starts"), n.ints(limits[1], "ends")
        axes = n.ints(limits[2], "axes") if len(limits) > 2 and limits[2] is not None else tuple(range(len(starts)))
        steps = n.ints(limits[3], "steps") if len(limits) > 3 and limits[3] is not None else (1,) * len(starts)
    else:
        starts, ends = n.get("starts"), n.get("ends")
        axes, steps = n.get("axes") or tuple(range(len(starts))), (1,) * len(starts)
    key = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        a = axis_of(axis, len(x.shape))
        first, last, by = slice(start, end, step).indices(x.shape[a])
        key[a] = slice(first, None if by < 0 and last < 0 else last, by)
    return x[tuple(key)]


def _along(x: Any, axis: int, places: Any) -> Any:
    """x at places along one axis, which are known."""
    return tw.gather(x, np.asarray(places, np.int64), axis=axis)


def _border(size: int, before: int, after: int, mode: str) -> Any:
    """The places that padding repeats."""
    at = np.arange(-before, size + after)
    if mode == "edge":
        return np.clip(at, 0, size - 1)
    if mode == "wrap":
        return at % size
    turn = max(2 * (size - 1), 1)
    return np.minimum(at % turn, turn - at % turn)


@node("Pad")
def pad(n: NodeView, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    mode = n.get("mode", "constant")
    listed = n.ints(pads, "pads") if pads is not None else n.get("pads") or n.get("paddings")
    ndim = len(x.shape)
    chosen = range(ndim) if axes is None else [axis_of(a, ndim) for a in n.ints(axes, "axes")]
    pairs = [(0, 0)] * ndim
    for i, a in enumerate(chosen):
        pairs[a] = (listed[i], listed[i + len(listed) // 2])
    fill = n.scalar(value, "constant_value") if value is not None else float(n.get("value", 0.0))
    if any(p < 0 for pair in pairs for p in pair):
        sizes = tuple(x.shape)
        if any(s + b + e < 0 for s, (b, e) in zip(sizes, pairs, strict=True)):
            raise ModelError(f"Pad: pads {pairs} of shape {sizes} leave less than nothing")
        x = x[tuple(slice(max(0, -b), s - max(0, -e)) for (b, e), s in zip(pairs, sizes, strict=True))]
        pairs = [(max(b, 0), max(e, 0)) for b, e in pairs]
    if mode == "constant":
        return tw.pad(x, pads=tuple(pairs), value=fill)
    for axis, (before, after) in enumerate(pairs):
        if before or after:
            x = _along(x, axis, _border(x.shape[axis], before, after, mode))
    return x


@node("Expand")
def expand(n: NodeView, x: Any, shape: Any) -> Any:
    return tw.expand(x, shape=np.broadcast_shapes(tuple(x.shape), n.ints(shape, "shape")))


@node("Tile")
def tile(n: NodeView, x: Any, repeats: Any) -> Any:
    counts = n.ints(repeats, "repeats")
    wide = tuple(v for c, s in zip(counts, x.shape, strict=True) for v in (c, s))
    thin = tuple(v for s in x.shape for v in (1, s))
    return tw.reshape(
        tw.expand(tw.reshape(x, thin), shape=wide), tuple(c * s for c, s in zip(counts, x.shape, strict=True))
    )


@node("DepthToSpace")
def depth_to_space(n: NodeView, x: Any) -> Any:
    b, c, h, w = x.shape
    k = n.get("blocksize")
    if n.get("mode", "DCR") == "DCR":
        y = tw.transpose(tw.reshape(x, (b, k, k, c // (k * k), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = tw.transpose(tw.reshape(x, (b, c // (k * k), k, k, h, w)), (0, 1, 4, 2, 5, 3))
    return tw.reshape(y, (b, c // (k * k), h * k, w * k))


@node("SpaceToDepth")
def space_to_depth(n: NodeView, x: Any) -> Any:
    b, c, h, w = x.shape
    k = n.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if n.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = tw.transpose(tw.reshape(x, (b, c, h // k, k, w // k, k)), order)
    return tw.reshape(y, (b, c * k * k, h // k, w // k))


@node("Gather")
def gather(n: NodeView, x: Any, indices: Any) -> Any:
    return tw.gather(x, indices, axis=n.get("axis", 0))


@node("GatherElements")
def gather_elements(n: NodeView, x: Any, indices: Any) -> Any:
    return tw.gather_elements(x, indices, axis=n.get("axis", 0))


@node("GatherND")
def gather_nd(n: NodeView, x: Any, indices: Any) -> Any:
    shared = n.get("batch_dims", 0)
    if shared:  # the places of the shared axes are named too
        lead = tuple(indices.shape[:-1])
        grid = np.stack(np.meshgrid(*(np.arange(s) for s in lead[:shared]), indexing="ij"), -1)
        grid = grid.reshape(*lead[:shared], *(1,) * (len(lead) - shared), shared)
        named = np.ascontiguousarray(np.broadcast_to(grid, (*lead, shared)).astype(indices.dtype))
        indices = tw.concat([named, indices], axis=len(lead))
    return tw.gather_nd(x, indices)


@node("Scatter", "ScatterElements")
def scatter_elements(n: NodeView, x: Any, indices: Any, updates: Any) -> Any:
    how = {"axis": n.get("axis", 0), "reduction": n.get("reduction", "none")}
    return tw.scatter_elements(x, indices, updates, **how)


@node("ScatterND")
def scatter_nd(n: NodeView, x: Any, indices: Any, updates: Any) -> Any:
    return tw.scatter_nd(x, indices, updates, reduction=n.get("reduction", "none"))


@node("TensorScatter")
def tensor_scatter(n: NodeView, cache: Any, update: Any, start: Any = None) -> Any:
    axis, ndim = axis_of(n.get("axis", -2), len(cache.shape)), len(cache.shape)
    size, count = cache.shape[axis], update.shape[axis]
    at = np.arange(count).reshape(-1, *(1,) * (ndim - 1 - axis))
    if start is not None:
        at = tw.add(tw.reshape(start, (-1, *(1,) * (ndim - 1))), at)
    at = tw.mod(at, size) if n.get("mode", "linear") == "circular" else at
    return tw.scatter_elements(cache, tw.expand(at, shape=tuple(update.shape)), update, axis=axis)


@node("Compress")
def compress(n: NodeView, x: Any, condition: Any) -> Any:
    axis = n.get("axis")
    if axis is None:
        x, axis = tw.reshape(x, (math.prod(x.shape),)), 0
    return _along(x, axis_of(axis, len(x.shape)), np.flatnonzero(n.known(condition, "condition")))


@node("NonZero")
def non_zero(n: NodeView, x: Any) -> Any:
    return np.stack(np.nonzero(n.known(x, "x"))).astype(np.int64)


@node("Unique")
def unique(n: NodeView, x: Any) -> Any:
    axis, ordered = n.get("axis"), n.get("sorted", 1)
    values = n.known(x, "x")
    values = values.reshape(-1) if axis is None else np.moveaxis(values, axis, 0)
    rows = values if is_integer(values.dtype) or values.dtype == bool else values.astype(np.float64)
    _, first, inverse, counts = np.unique(rows, return_index=True, return_inverse=True, return_counts=True, axis=0)
    order = np.arange(len(first)) if ordered else np.argsort(first)
    flat = tw.reshape(x, (math.prod(x.shape),)) if axis is None else x
    place = np.argsort(order)[inverse.reshape(-1)]
    return _along(flat, axis or 0, first[order]), first[order], place.astype(np.int64), counts[order]


@node("ReverseSequence")
def reverse_sequence(n: NodeView, x: Any, lengths: Any) -> Any:
    batch, time = n.get("batch_axis", 1), n.get("time_axis", 0)
    lead = tuple(x.shape[:2])
    place = np.stack(np.meshgrid(*(np.arange(s) for s in lead), indexing="ij"), -1)
    counts, at = np.asarray(n.ints(lengths, "sequence_lens"))[place[..., batch]], place[..., time]
    place[..., time] = np.where(at < counts, counts - 1 - at, at)
    return tw.gather_nd(x, place)


@node("OneHot")
def one_hot(n: NodeView, indices: Any, depth: Any, values: Any) -> Any:
    count, ndim = int(n.scalar(depth, "depth")), len(indices.shape)
    axis = axis_of(n.get("axis", -1), ndim + 1)
    at = indices if indices.dtype == np.int64 else tw.cast(indices, dtype=np.int64)
    at = tw.where(tw.less(at, 0), tw.add(at, count), at)
    shape = tuple(at.shape)
    here = tw.equal(
        tw.reshape(at, (*shape[:axis], 1, *shape[axis:])), np.arange(count).reshape(-1, *(1,) * (ndim - axis))
    )
    return tw.where(here, values[1], values[0])


@node("Range")
def range_of(n: NodeView, start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (n.known(v, name) for v, name in ((start, "start"), (limit, "limit"), (delta, "delta")))
    count = max(0, math.ceil((last.item() - first.item()) / step.item()))
    return (first.reshape(()) + np.arange(count) * step.reshape(())).astype(first.dtype)


@node("EyeLike")
def eye_like(n: NodeView, x: Any) -> Any:
    code = n.get("dtype")
    dtype = x.dtype if code is None else onnx.helper.tensor_dtype_to_np_dtype(code)
    rows, columns = x.shape
    return np.eye(rows, columns, k=n.get("k", 0)).astype(dtype)


@node("Trilu")
def trilu(n: NodeView, x: Any, k: Any = None) -> Any:
    diagonal, upper = 0 if k is None else int(n.scalar(k, "k")), n.get("upper", 1)
    if is_floating(x.dtype):
        return (tw.triu if upper else tw.tril)(x, diagonal=diagonal)
    rows, columns = x.shape[-2:]
    inside = np.tri(rows, columns, k=diagonal - bool(upper), dtype=bool)
    return tw.where(~inside if upper else inside, x, np.zeros((), x.dtype))


@node("CenterCropPad")
def center_crop_pad(n: NodeView, x: Any, shape: Any) -> Any:
    ndim = len(x.shape)
    axes = [axis_of(a, ndim) for a in n.get("axes") or range(ndim)]
    for axis, want in zip(axes, n.ints(shape, "shape"), strict=True):
        less = x.shape[axis] - want
        if less > 0:
            first = less // 2
            x = x[(*(slice(None),) * axis, slice(first, first + want))]
        elif less < 0:
            pairs = [(0, 0)] * ndim
            pairs[axis] = (-less // 2, -less - -less // 2)
            x = tw.pad(x, pads=tuple(pairs))
    return x
