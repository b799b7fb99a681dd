"""What a graph is made of: values, the nodes that make them, and the graph that lists the nodes in order.

Nodes and values never change once made, so graphs share them. A pass is a function from a graph to a graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from tilework import dispatch, registry
from tilework.arrays import Array, Sizes
from tilework.dispatch import Number
from tilework.dtypes import is_known
from tilework.errors import AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.operators import Operators

# ----------------------------------------------------------------------------------------------------- values


class Value:
    """An array that a node makes: its shape and dtype, and where it lies.

    A view lies in the memory of ``base``, from its byte ``offset`` on, with ``strides`` in bytes. Every other value is
    its own base, and fills its memory; it is contiguous until a pass lays it out otherwise.
    """

    __slots__ = ("base", "dtype", "index", "node", "offset", "shape", "strides")
    base: Value

    def __init__(self, node: Node, index: int, shape: Sizes, dtype: Any, strides: Sizes | None = None) -> None:
        self.node, self.index, self.shape, self.dtype = node, index, shape, dtype
        self.base, self.offset = self, 0
        self.strides = contiguous_strides(shape, dtype.itemsize) if strides is None else strides

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * int(self.dtype.itemsize)

    @property
    def is_view(self) -> bool:
        return self.base is not self

    @property
    def ghost(self) -> Any:
        """A numpy array laid out like this value, without its memory: for questions about views, never to be read."""
        seed = _GHOSTS[self.dtype.itemsize]
        return np.lib.stride_tricks.as_strided(seed, self.shape, self.strides)

    def __repr__(self) -> str:
        return f"<{self.dtype} {self.shape} made by {self.node.op.name}>"


_GHOSTS = {n: np.zeros(1, f"u{n}") for n in (1, 2, 4, 8)}


def contiguous_strides(shape: Sizes, itemsize: int) -> Sizes:
    """Strides in bytes of a C-ordered array."""
    steps, step = [], itemsize
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


MOST_DIMENSIONS, MOST_ELEMENTS = 8, 1 << 40  # of an array of tilework


def check_array(op: str, name: str, shape: Sizes, dtype: Any) -> None:
    """Refuses shapes and dtypes that no array of tilework has."""
    if not is_known(dtype):
        raise DTypeError(f"{op}: {name} has dtype {dtype}; want one of tilework's", op=op, argument=name)
    if len(shape) > MOST_DIMENSIONS or math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
        raise ShapeError(
            f"{op}: {name} has shape {shape!s:.80}; want at most {MOST_DIMENSIONS} dimensions and 2^40 elements",
            op=op,
            argument=name,
        )


# ------------------------------------------------------------------------------------------------------ nodes


class Placeholder:
    """Makes what is fed to the graph under ``label``."""

    name = "placeholder"

    def __init__(self, label: str) -> None:
        self.label = label


class Constant:
    """Makes ``data``: an array, which is borrowed and must not change, or what a function returns whenever it is asked.

    An executable lets go of arrays of its own once layers have packed them.
    """

    name = "constant"

    def __init__(self, data: Array | Callable[[], Array], label: str = "") -> None:
        self._data: Any = data
        self.label = label

    @property
    def data(self) -> Any:
        """The array."""
        if self._data is None:
            what = repr(self.label) if self.label else "a constant"
            raise UnsupportedError(
                f"graph: {what} was packed by a layer and let go of; want the graph as it was traced"
            )
        return self._data() if callable(self._data) else self._data

    def again(self) -> Any:
        """What makes another constant of the same data."""
        return self._data

    def let_go(self) -> None:
        """Forgets the data."""
        self._data = None


# What a node is given: values, numbers, None where nothing was, and several values for a variadic operand.
Operand: TypeAlias = "Value | float | tuple[Value, ...] | None"


class Node:
    """One call: an op, its operands and attributes, and the values it makes.

    An op that updates operands in place makes their later states, behind its results, of the operands numbered in
    ``updates``. ``where`` is the line of the user's code, "" if unknown.
    """

    __slots__ = ("attrs", "op", "operands", "resolved", "results", "updates", "where")
    results: tuple[Value, ...]

    def __init__(
        self,
        op: Any,
        operands: tuple[Operand, ...] = (),
        attrs: dict[str, Any] | None = None,
        *,
        where: str = "",
        updates: tuple[int, ...] = (),
    ) -> None:
        self.op, self.operands, self.attrs, self.where, self.updates = op, operands, attrs or {}, where, updates
        self.resolved: dict[str, Any] = self.attrs
        self.results = ()

    @property
    def is_source(self) -> bool:
        """Whether it makes something out of nothing: a placeholder, a constant or a variable."""
        return not self.operands and isinstance(self.op, (Placeholder, Constant, Variable))

    @property
    def has_effects(self) -> bool:
        """Whether its call matters beside its results, so that each is made, once and in order."""
        return bool(getattr(self.op, "effects", False))

    @property
    def numbers(self) -> dict[str, Number]:
        """The attributes that every run is given."""
        return {k: v for k, v in self.attrs.items() if isinstance(v, Number)}

    def values(self) -> Iterator[Value]:
        """The operands that are values, one by one."""
        for operand in self.operands:
            if isinstance(operand, Value):
                yield operand
            elif isinstance(operand, tuple):
                yield from operand

    def __repr__(self) -> str:
        return f"<node {self.op.name} -> {', '.join(str(v.shape) for v in self.results)}>"


def make_node(op: Any, operands: Sequence[Operand], attrs: dict[str, Any], *, where: str = "") -> Node:
    """A node of a compiled op or a view op, its results found and everything checked by the op's own shape rule."""
    if op.is_view:
        return _view_node(op, operands, attrs, where)
    operands = (*operands, *[None] * (len(op.operands) - len(operands)))
    rule = getattr(op, "infer", None)  # of a kernel of the user's
    specs, resolved = (rule or functools.partial(registry.infer, op))(list(map(_spec, operands)), attrs)
    updates = tuple(i for i in registry.updated_operands(op, attrs) if operands[i] is not None)
    node = Node(op, operands, attrs, where=where, updates=updates)
    node.resolved = resolved
    kept = [(o.shape, o.dtype) for i in updates if isinstance(o := operands[i], Value)]
    node.results = tuple(Value(node, i, tuple(s), np.dtype(d)) for i, (s, d) in enumerate([*specs, *kept]))
    return node


def _view_node(op: Any, operands: Sequence[Operand], attrs: dict[str, Any], where: str) -> Node:
    (source,) = operands
    if not isinstance(source, Value):
        raise DTypeError(f"{op.name}: {op.operands[0]} is {source!r:.80}; want an array of the graph", op=op.name)
    ghost = source.ghost
    seen = op(ghost, **attrs)
    node = Node(op, (source,), attrs, where=where)
    value = Value(node, 0, tuple(seen.shape), source.dtype)
    value.base, value.strides = source.base, seen.strides
    value.offset = source.offset + (_address(seen) - _address(ghost) if seen.size else 0)
    node.results = (value,)
    return node


def _spec(operand: Operand) -> Any:
    return list(operand) if isinstance(operand, tuple) else operand


# -------------------------------------------------------------------------------------------------- variables


class Variable(Operators):
    """State that outlives a run of a graph: ``value`` is its array, which runs and in-place ops write to."""

    __slots__ = ("label", "value")
    name = "variable"
    level = -1

    def __init__(self, value: Array, label: str = "") -> None:
        if dispatch.backend_of("variable", "value", value) == "":
            raise DTypeError(f"variable: value is a {type(value).__name__}; want an array", op="variable")
        if not isinstance(label, str):
            raise AttrTypeError(f"variable: label={label!r:.80}; want a str", op="variable", argument="label")
        check_array("variable", label or "value", tuple(value.shape), value.dtype)
        if isinstance(value, np.ndarray) and not (value.flags.c_contiguous and value.flags.writeable):
            raise ShapeError(
                f"variable: {label or 'value'} of shape {value.shape} is not a contiguous writeable array; want a copy",
                op="variable",
                argument="value",
            )
        self.value, self.label = value, label

    @property
    def shape(self) -> Sizes:  # type: ignore[override]
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.value.dtype

    @property
    def strides(self) -> Sizes:
        return tuple(self.value.strides)

    @property
    def flags(self) -> Any:
        return self.value.flags

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the op on the variable's own array, unless a function is being traced."""
        from tilework.graph.build import tracing

        graph = tracing()
        if graph is not None:
            return graph.call(op, *args, **kwargs)
        return op(*map(_held, args), **{k: _held(v) for k, v in kwargs.items()})

    def __repr__(self) -> str:
        return f"Variable({self.label!r}, {self.dtype}, {self.shape})"


def _held(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_held, value))
    return value.value if isinstance(value, Variable) else value


def source_node(op: Placeholder | Constant | Variable, shape: Sizes, dtype: Any) -> Node:
    """A node without operands, of one result."""
    check_array(op.name, op.label or "value", tuple(shape), np.dtype(dtype))
    node = Node(op)
    node.results = (Value(node, 0, tuple(shape), np.dtype(dtype)),)
    return node
