"""Building a graph: ``tw.Graph`` by hand, ``tw.trace`` out of a function."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import linecache
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tilework import dispatch, nested, registry
from tilework.arrays import Array, Sizes
from tilework.dispatch import Number
from tilework.dtypes import KNOWN, named
from tilework.errors import AttrError, AttrTypeError, DTypeError, Error, ShapeError, UnsupportedError
from tilework.graph import ir
from tilework.graph.ir import Constant, Node, Operand, Placeholder, Value, Variable
from tilework.graph.symbol import Symbol

if TYPE_CHECKING:
    from tilework.graph.execute import Executable
    from tilework.graph.profile import Profile

_current: contextvars.ContextVar[Graph | None] = contextvars.ContextVar("tilework.tracing", default=None)


def tracing() -> Graph | None:
    """The graph that a function is being traced into on this thread."""
    return _current.get()


class Spec(NamedTuple):
    """The shape and dtype of an array that is not there yet."""

    shape: Sizes
    dtype: Any = np.dtype(np.float32)


def spec(shape: Sequence[int], dtype: Any = "float32") -> Spec:
    """Stands for an array of this shape and dtype in the arguments of :func:`trace`."""
    return _spec("spec", "shape", shape, dtype)


def _spec(op: str, name: str, shape: Sequence[int], dtype: Any) -> Spec:
    try:
        sizes = tuple(map(operator.index, shape))
        kind = named(dtype) if isinstance(dtype, str) and dtype in KNOWN else np.dtype(dtype)
        if dtype is None or any(isinstance(n, bool) for n in shape):
            raise TypeError("a bool or None is among them")
    except TypeError as e:
        what = f"{op}: shape={shape!r:.80}, dtype={dtype!r:.40} ({e}); want ints, a dtype"
        raise AttrTypeError(what, op=op, argument=name) from None
    if any(n < 0 for n in sizes):
        raise ShapeError(f"{op}: {name}={sizes}; want sizes >= 0", op=op, argument=name)
    ir.check_array(op, name, sizes, kind)
    return Spec(sizes, kind)


def number(value: float) -> Number:
    """Stands for a number in the arguments of :func:`trace`: attributes of ops take it, and each run is given it."""
    return Number(value)


class Graph:
    """Nodes in an order in which they can run, what is fed to them, and what they give.

    Build one by hand with ``placeholder``, ``constant``, ``variable``, any op on what they return, and ``output``; or
    by :func:`trace`. ``print(g)`` lists it.
    """

    def __init__(self, name: str = "graph") -> None:
        if not isinstance(name, str):
            raise AttrTypeError(f"graph: name={name!r:.80}; want a str", argument="name")
        self.name = name
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.updates: dict[Variable, Value] = {}  # the last state of each variable that changes
        self.arguments: nested.Structure | None = None  # of a traced function, None: arrays in order
        self.statics: dict[int, Any] = {}  # arguments of a traced function that are not arrays, by place
        self.numbers: dict[int, Number] = {}  # those that are numbers given to each run
        self.result: nested.Structure | None = None  # of what a traced function returns, None: arrays in order
        self.outer: Graph | None = None  # of a body or a branch: the graph it is part of
        self.level = 0  # above those of the tapes and graphs around it
        self.captured: list[Array] = []  # what it takes from around it, fed behind its own inputs
        self.is_closed = False  # that of a traced function, which has returned
        self._labels: set[str] = set()
        self._constants: dict[int, Symbol] = {}
        self._variables: dict[Variable, Symbol] = {}

    # ---------------------------------------------------------------------------------------------- building

    def placeholder(self, label: str, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """An array that is fed to every run."""
        if not isinstance(label, str) or not label:
            raise AttrTypeError(f"placeholder: label={label!r:.80}; want a name", op="placeholder", argument="label")
        like = _spec("placeholder", label, shape, dtype)
        return Symbol(self, self._input(label, like.shape, like.dtype))

    def constant(self, value: Array, label: str = "") -> Array:
        """An array that is the same in every run; it is borrowed, and must not be written to afterwards."""
        known = self._constants.get(id(value))
        if known is not None:
            return known
        if dispatch.backend_of("constant", label or "value", value) == "":
            raise DTypeError(f"constant: value is {value!r:.80}; want an array", op="constant", argument="value")
        array = dispatch.borrow("constant", label or "value", value)
        made = Symbol(self, self._source(Constant(array, self._named(label) if label else ""), array))
        self._constants[id(value)] = made  # the node keeps the array, and so its id
        made.value.node.op.origin = value
        return made

    def variable(self, value: Array | Variable, label: str = "") -> Array:
        """State that the graph may update: an array, or a Variable that other graphs share."""
        held = value if isinstance(value, Variable) else Variable(value, label)
        if held not in self._variables:
            if held.label:
                self._named(held.label)
            self._variables[held] = Symbol(self, self._source(held, held))
        return self._variables[held]

    def number(self, label: str, value: float) -> Number:
        """A number that attributes of ops take, and that a run may be given by this name; else it is ``value``."""
        made = Number(value, self._named(label))
        self.numbers[len(self.numbers)] = made
        return made

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds a node that calls ``op``, one of tilework's or its name, and returns what it makes."""
        target = op if not isinstance(op, str) else _named_op(op)
        if not hasattr(target, "is_view"):
            raise AttrTypeError(f"graph: op={op!r:.80}; want one of tilework's or its name", argument="op")
        self._check_open(target.name)
        if kwargs.pop("out", None) is not None:
            raise AttrTypeError(f"{target.name}: out has no meaning in a graph; want the result", op=target.name)
        operands, attrs = _bound(target, args, kwargs)
        self._check_numbers(target, attrs)
        where = _users_line()
        try:
            values = [self._operand(target, i, o) for i, o in enumerate(operands)]
            if target.name == "reshape" and isinstance(values[0], Value) and not _is_seen(target, values[0], attrs):
                values[0] = self._add(registry.find("expand"), values, {"shape": values[0].shape}, where)[0]
            results = self._add(target, values, attrs, where)
        except Error as e:
            if where and not hasattr(e, "where"):
                e.where = where  # type: ignore[attr-defined]
                e.args = (f"{e}\n  at {where}",)
            raise
        node = self.nodes[-1]
        fresh = len(results) - len(node.updates)
        for i, state in zip(node.updates, results[fresh:], strict=True):
            held = operands[i]
            (self.variable(held) if isinstance(held, Variable) else held).value = state
        made = tuple(Symbol(self, v) for v in results[:fresh])
        return made[0] if len(made) == 1 else made or None

    def assign(self, variable: Array | Variable, value: Array) -> None:
        """Makes ``value`` the state of a variable from here on."""
        self._check_open("assign")
        target = self.variable(variable) if isinstance(variable, Variable) else variable
        state = self._operand(None, 0, value)
        if not isinstance(target, Symbol) or target not in self._variables.values():
            raise DTypeError("assign: variable is none of this graph; want what Graph.variable returned")
        if not isinstance(state, Value) or (state.shape, state.dtype) != (target.shape, target.dtype):
            raise ShapeError(
                f"assign: value is {state!r}; want {target.dtype} {target.shape}", op="assign", argument="value"
            )
        target.value = state

    def output(self, *values: Array) -> None:
        """Adds what the graph gives."""
        self._check_open("output")
        for value in values:
            made = self._operand(None, 0, value)
            if not isinstance(made, Value):
                raise DTypeError(f"output: {value!r:.80} is a {type(value).__name__}; want an array of the graph")
            self.outputs.append(made)

    # ----------------------------------------------------------------------------------------------- reading

    @property
    def variables(self) -> list[Variable]:
        """The variables that the graph reads or updates."""
        return [n.op for n in self.nodes if isinstance(n.op, Variable)]

    def states(self) -> dict[Variable, Value]:
        """The last state of every variable that changes."""
        moved = {v: s.value for v, s in self._variables.items() if s.value.node.op is not v}
        return self.updates | moved

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that take each value."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.values():
                found.setdefault(value, []).append(node)
        return found

    def changed(self, nodes: list[Node], replaced: dict[Value, Value] | None = None) -> Graph:
        """A graph of these nodes with the same inputs, and with outputs and states that stand for the old ones."""
        swap = replaced or {}
        made = Graph(self.name)
        made.nodes = nodes
        made.inputs = self.inputs
        made.outputs = [swap.get(v, v) for v in self.outputs]
        made.updates = {v: swap.get(s, s) for v, s in self.states().items()}
        made.arguments, made.statics, made.result = self.arguments, self.statics, self.result
        made.numbers = self.numbers
        return made

    def compile(self, **options: Any) -> Executable:
        """Runs the passes and plans the execution: see :class:`Executable`."""
        from tilework.graph.execute import Executable

        return Executable(self, **options)

    def draw(self, path: str | os.PathLike[str], profile: Profile | None = None) -> None:
        """Writes a picture of the graph: SVG, or Graphviz's text where the name ends in ``.dot``.

        Nodes are coloured by their share of the time where ``exe.profile(...)`` of this graph is given.
        """
        from tilework.graph.draw import draw

        draw(self, path, profile)

    def __str__(self) -> str:
        from tilework.graph.listing import listing

        return listing(self)

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.nodes)} nodes>"

    # --------------------------------------------------------------------------------------------- internals

    def _check_open(self, op: str) -> None:
        if self.is_closed:
            raise UnsupportedError(
                f"{op}: takes an array of {self.name!r}, whose trace is over; want it used inside, or returned",
                op=op,
            )

    def _named(self, label: str) -> str:
        if not isinstance(label, str):
            raise AttrTypeError(f"graph: label={label!r:.80}; want a str", argument="label")
        if label in self._labels:
            raise AttrError(f"graph: there are two arrays called {label!r}; want another name", argument=label)
        self._labels.add(label)
        return label

    def _input(self, label: str, shape: Sizes, dtype: Any) -> Value:
        value = self._source(Placeholder(self._named(label)), Spec(shape, np.dtype(dtype)))
        self.inputs.append(value)
        return value

    def _source(self, op: Placeholder | Constant | Variable, like: Any) -> Value:
        node = ir.source_node(op, like.shape, like.dtype)
        self.nodes.append(node)
        return node.results[0]

    def _add(self, op: Any, values: Sequence[Operand], attrs: dict[str, Any], where: str) -> tuple[Value, ...]:
        for i in registry.updated_operands(op, attrs):
            _check_updatable(op, i, values[i])
        node = ir.make_node(op, values, attrs, where=where)
        self.nodes.append(node)
        return node.results

    def _capture(self, op: Any, i: int, given: Any) -> Value:
        """The input by which a body or a branch takes an array of what is around it."""
        assert self.outer is not None
        if isinstance(given, Symbol) or self.outer.level > given.level:
            value = self.outer._operand(op, i, given)
            assert isinstance(value, Value)
            given = Symbol(self.outer, value)
        for known, inside in zip(self.captured, self.inputs[-len(self.captured) :], strict=False):
            if known is given or (isinstance(known, Symbol) and known.value is getattr(given, "value", None)):
                return inside
        self.captured.append(given)
        return self._input(f"outer{len(self.captured) - 1}", tuple(given.shape), given.dtype)

    def _check_numbers(self, op: Any, attrs: dict[str, Any]) -> None:
        for name, value in attrs.items():
            if isinstance(value, Number) and not (isinstance(op, registry.Op) and value in self.numbers.values()):
                raise AttrError(
                    f"{op.name}: {name} is the number {value!r}, which is given to another graph or to a kernel or a "
                    "view; want one of this graph, in an op",
                    op=op.name,
                    argument=name,
                )

    def _operand(self, op: Any, i: int, given: Any) -> Operand:
        """What a node holds for an operand of a call."""
        if given is None or isinstance(given, (bool, int, float)):
            return given
        if isinstance(given, Variable):
            return self.variable(given).value  # type: ignore[no-any-return]
        if isinstance(given, Symbol) and given.graph is self:
            return given.value
        if isinstance(given, dispatch.Traced) and self.outer is not None and given.level < self.level:
            return self._capture(op, i, given)
        if isinstance(given, Symbol):
            name = op.operands[i] if op else "value"
            raise DTypeError(f"{op.name if op else 'graph'}: {name} belongs to another graph; want one of this one")
        if isinstance(given, (list, tuple)) and op is not None and op.is_variadic:
            return tuple(v for g in given if isinstance(v := self._operand(op, i, g), Value))
        if isinstance(given, dispatch.Traced):
            raise DTypeError(f"{op.name if op else 'graph'}: {given!r} does not belong to a graph")
        dispatch.backend_of(op.name if op else "graph", op.operands[i] if op else "value", given)
        return self.constant(given).value  # type: ignore[no-any-return]


def _check_updatable(op: Any, i: int, value: Operand) -> None:
    if not isinstance(value, Value):
        return
    is_a = (
        "an input of the graph"
        if isinstance(value.node.op, Placeholder)
        else "a constant"
        if isinstance(value.node.op, Constant)
        else "a view"
        if value.is_view
        else ""
    )
    if is_a:
        name = op.operands[i]
        raise DTypeError(
            f"{op.name}: {name} would be updated in place but is {is_a}; want a tw.Variable or a result of its own",
            op=op.name,
            argument=name,
        )


def _is_seen(view: Any, value: Value, attrs: dict[str, Any]) -> bool:
    """Whether a value lies such that it can be looked at so without a copy."""
    if value.ghost.flags.c_contiguous:
        return True
    try:
        view(value.ghost, **attrs)
    except ShapeError:
        return False
    return True


def _named_op(name: str) -> Any:
    try:
        return registry.find(name)
    except KeyError:
        raise AttrError(f"graph: there is no op called {name!r:.80}") from None


def _bound(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Operands by position and attributes by name."""
    if op.is_view:
        bound = inspect.signature(op.__wrapped__).bind(*args, **kwargs)
        attrs = dict(bound.arguments)
        return [attrs.pop(op.operands[0])], attrs
    attrs = dict(kwargs)
    return list(dispatch.bind_operands(op, args, attrs)), attrs


_PACKAGE = str(Path(__file__).parents[1])


def _users_line() -> str:
    """The innermost line outside this package, as ``file:line: code``."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return ""
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(name).name}:{line}: {linecache.getline(name, line).strip()}".removesuffix(": ")


@contextlib.contextmanager
def _into(graph: Graph) -> Iterator[None]:
    token = _current.set(graph)
    try:
        yield
    finally:
        _current.reset(token)


def trace(function: Callable[..., Any], *examples: Any) -> Graph:
    """Records what ``function`` does to arrays like ``examples`` as a graph; nothing is computed.

    Examples are arrays, ``tw.spec(shape, dtype)`` or nested tuples, lists and dicts of them. ``tw.number(0.1)`` is a
    number that attributes of ops take, ``lr`` for one, and that every run is given anew. Anything else is handed to the
    function as it is and must be given again, the same, when the graph runs. Arrays that the function takes from
    elsewhere become constants, a ``tw.Variable`` stays one.
    """
    if not callable(function):
        raise AttrTypeError(f"trace: function is a {type(function).__name__}; want a function", argument="function")
    graph = Graph(getattr(function, "__name__", "graph").strip("<>"))
    graph.outer = tracing()
    graph.level = next(dispatch.levels) if graph.outer is not None else 0
    leaves, structure = nested.flatten(_specs_as_leaves(examples))
    names = _argument_names(function, structure)
    graph.arguments = structure
    given: list[Any] = []
    for i, (leaf, name) in enumerate(zip(leaves, names, strict=True)):
        if isinstance(leaf, _Boxed):
            given.append(Symbol(graph, graph._input(name, leaf.spec.shape, leaf.spec.dtype)))
        elif hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, np.generic):
            given.append(Symbol(graph, graph._input(name, tuple(leaf.shape), leaf.dtype)))
        elif isinstance(leaf, Number):
            graph.numbers[i] = Number(leaf.value, name)
            given.append(graph.numbers[i])
        else:
            graph.statics[i] = leaf
            given.append(leaf)
    try:
        with _into(graph):
            returned = function(*nested.unflatten(structure, given))
        leaves, graph.result = nested.flatten(returned)
        graph.output(*leaves)
    finally:
        graph.is_closed = True
    return graph


class _Boxed:
    """Keeps a Spec, which is a tuple, whole where containers are taken apart."""

    def __init__(self, of: Spec) -> None:
        self.spec = of


def _specs_as_leaves(tree: Any) -> Any:
    if isinstance(tree, Spec):
        return _Boxed(tree)
    if isinstance(tree, dict):
        return type(tree)((k, _specs_as_leaves(v)) for k, v in tree.items())
    if isinstance(tree, (tuple, list)):
        items = [_specs_as_leaves(v) for v in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def _argument_names(function: Callable[..., Any], arguments: nested.Structure) -> Iterator[str]:
    assert isinstance(arguments, nested.Branch)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for i, item in enumerate(arguments.items):
        yield from nested.paths(item, plain[i] if i < len(plain) else f"argument{i}")
