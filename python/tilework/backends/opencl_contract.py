"""Contractions on a device, two operands at a time: by the tables of einsum.cl, or as plain products and sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import Queue, Strided, strides_of
from tilework.backends.opencl_reduce import reduce
from tilework.backends.opencl_tiles import tiles_for
from tilework.dtypes import is_narrow
from tilework.errors import AttrError

_EXACT = 5  # operands up to which the order of least work is searched for, beyond it is greedy


@dataclass(frozen=True)
class Tensor:
    """A device array by its labels: those of more than one element, each with its stride in elements."""

    array: Any
    strides: dict[str, int]


def contract(
    queue: Queue,
    terms: Sequence[tuple[int, str]],
    result: str,
    operands: Sequence[Any],
    y: Any,
    alpha: float = 1.0,
    c: Any = None,
    beta: float = 1.0,
    largest: int | None = None,
) -> None:
    """y = alpha times the contraction of ``terms`` (operand, axes) to ``result``, plus beta c."""
    if y.size == 0:
        return
    if is_narrow(y.dtype):
        wide = [_cast(queue, x, queue.empty(x.shape, np.float32)) for x in (*operands, *(() if c is None else (c,)))]
        sums = queue.empty(y.shape, np.float32)
        contract(queue, terms, result, wide[: len(operands)], sums, alpha, wide[-1] if c is not None else None, beta)
        _cast(queue, sums, y)
        return
    tensors, sizes = _labelled(terms, operands)
    names = _names(result, y.ndim)
    kept = {name for name, n in zip(names, y.shape, strict=True) if n != 1}
    if any(n == 0 for n in sizes.values()):
        queue.fill(y, 0.0)
    else:
        _write(queue, _product(queue, tensors, sizes, kept, largest), names, y, alpha)
    if c is not None:
        part = c if beta == 1.0 else _each(queue, "mul", c, queue.number(beta, y.dtype), queue.empty(y.shape, y.dtype))
        _each(queue, "add", y, part, y)


def _each(queue: Queue, kernel: str, a: Any, b: Any, y: Any) -> Any:
    queue.each("elementwise.cl", kernel, (a, b, y), chunks=True, DTYPE=y.dtype)
    return y


def _cast(queue: Queue, x: Any, y: Any) -> Any:
    queue.each("cast.cl", "cast", (x, y), SRC=x.dtype, DST=y.dtype)
    return y


def _names(text: str, ndim: int) -> list[str]:
    """One name per axis; those of an ellipsis are numbered from its end."""
    before, dots, behind = text.partition("...")
    hidden = ndim - len(before) - len(behind)
    return [*before, *(f"...{i}" for i in range(hidden, 0, -1) if dots), *behind]


def _labelled(terms: Sequence[tuple[int, str]], operands: Sequence[Any]) -> tuple[list[Tensor], dict[str, int]]:
    tensors = []
    sizes: dict[str, int] = {}
    for k, text in terms:
        x = operands[k]
        strides: dict[str, int] = {}
        for name, n, stride in zip(_names(text, x.ndim), x.shape, strides_of(x), strict=True):
            if n != 1:
                sizes[name] = n
                strides[name] = strides.get(name, 0) + stride
        tensors.append(Tensor(x, strides))
    return tensors, sizes


def _view(x: Tensor, names: Sequence[str], sizes: dict[str, int]) -> Any:
    """The tensor as an array with these axes, of stride 0 where it lacks one."""
    size = x.array.dtype.itemsize
    shape = tuple(sizes[n] for n in names)
    strides = tuple(x.strides.get(n, 0) * size for n in names)
    return type(x.array)(
        x.array.queue, shape, x.array.dtype, strides=strides, data=x.array.base_data, offset=x.array.offset
    )


def _dense(array: Any, names: Sequence[str]) -> Tensor:
    return Tensor(array, dict(zip(names, strides_of(array), strict=True)))


def _product(queue: Queue, tensors: list[Tensor], sizes: dict[str, int], kept: set[str], largest: int | None) -> Tensor:
    remaining = list(tensors)
    for pair in _order(tuple(tuple(t.strides) for t in tensors), tuple(sizes.items()), frozenset(kept), largest):
        a, b = (remaining.pop(i) for i in sorted(pair, reverse=True))
        needed = kept.union(*(t.strides for t in remaining))
        a, b = _shrunk(queue, a, needed | set(b.strides), sizes), _shrunk(queue, b, needed | set(a.strides), sizes)
        remaining.append(_pair(queue, a, b, sizes, needed))
    return _shrunk(queue, remaining[0], kept, sizes)


@functools.lru_cache(maxsize=256)
def _order(
    terms: tuple[tuple[str, ...], ...], sizes: tuple[tuple[str, int], ...], kept: frozenset[str], largest: int | None
) -> list[tuple[int, ...]]:
    if len(terms) <= 2 or all(kept.issuperset(t) for t in terms):  # nothing to gain
        return [(0, 1)] * (len(terms) - 1)
    numbers = {name: i for i, (name, _) in enumerate(sizes)}
    extents = dict(sizes)
    arguments: list[Any] = []
    for names in terms:
        arguments += [np.broadcast_to(np.float32(0), [extents[n] for n in names]), [numbers[n] for n in names]]
    how: Any = "optimal" if len(terms) <= _EXACT else "greedy"
    path = np.einsum_path(
        *arguments, [numbers[n] for n in kept if n in numbers], optimize=(how, largest) if largest else how
    )[0][1:]
    if any(len(step) != 2 for step in path):
        raise AttrError(
            f"no order keeps every intermediate within largest={largest} elements; want more", argument="largest"
        )
    return [tuple(step) for step in path]


def _shrunk(queue: Queue, x: Tensor, needed: set[str], sizes: dict[str, int]) -> Tensor:
    """x with what nobody else has summed away."""
    names = list(x.strides)
    alone = tuple(i for i, n in enumerate(names) if n not in needed)
    if not alone:
        return x
    rest = [n for n in names if n in needed]
    y = queue.empty([sizes[n] for n in rest], x.array.dtype)
    reduce(queue, "sum", _view(x, names, sizes), y, alone)
    return _dense(y, rest)


def _pair(queue: Queue, a: Tensor, b: Tensor, sizes: dict[str, int], needed: set[str]) -> Tensor:
    batch = [n for n in a.strides if n in b.strides and n in needed]
    m = [n for n in a.strides if n not in b.strides]
    n = [n for n in b.strides if n not in a.strides]
    k = [n for n in a.strides if n in b.strides and n not in needed]
    names = [*batch, *m, *n]
    y = queue.empty([sizes[x] for x in names], a.array.dtype)
    made = _dense(y, names)
    if not k:
        _each(queue, "mul", _view(a, names, sizes), _view(b, names, sizes), y)
        return made
    groups = (m, n, k, batch)
    counts = [math.prod(sizes[x] for x in g) for g in groups]
    strides = [
        tuple((sizes[x], t.strides[x]) for x in g)
        for t, wanted in ((a, (m, k, batch)), (b, (n, k, batch)), (made, (m, n, batch)))
        for g in wanted
    ]
    offsets = _offsets(queue, tuple(strides))
    tiles = tiles_for(queue.device, counts[0], counts[1], counts[3], y.dtype)
    items = tiles.count(counts[0], counts[1]) * counts[3] * tiles.group
    args = (Strided(a.array), Strided(b.array), y, offsets, 1.0, np.array(counts, np.int64))
    queue.launch("einsum.cl", "contract", items, tiles.group, args, DTYPE=y.dtype, **tiles.define())
    return made


@functools.lru_cache(maxsize=64)
def _offsets(queue: Queue, groups: tuple[tuple[tuple[int, int], ...], ...]) -> Any:
    """For every index of every group, what it adds to an address; on the device, kept for the next call."""
    tables = []
    for axes in groups:
        table = np.zeros(1, np.int64)
        for size, stride in axes:
            table = (table[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
        tables.append(table)
    host = np.concatenate(tables)
    array = queue.empty(host.shape, np.int64)
    queue.write(host, array)
    return array


def _write(queue: Queue, x: Tensor, names: Sequence[str], y: Any, alpha: float) -> None:
    """alpha x into y, along its diagonal where a name comes twice, in copies along names that x lacks."""
    target: dict[str, int] = {}
    extents: dict[str, int] = {}
    for name, n, stride in zip(names, y.shape, strides_of(y), strict=True):
        if n != 1:
            if name in target:
                queue.fill(y, 0.0)
            target[name] = target.get(name, 0) + stride
            extents[name] = n
    axes = list(target)
    source = _view(x, axes, extents)
    into = _view(Tensor(y, target), axes, extents)
    if alpha == 1.0:
        queue.copy(source, into)
    else:
        _each(queue, "mul", source, queue.number(alpha, y.dtype), into)
