"""Passes: functions from a graph to a graph that gives the same results, sooner.

``pipeline.PASSES`` are run in order when a graph is compiled; each can be left out by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from tilework import dispatch
from tilework.errors import AttrError, AttrTypeError
from tilework.graph import ir
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Operand, Value, Variable


class Pass(Protocol):
    """A function from graph to graph; it makes new nodes for what it changes and shares the others."""

    __name__: str

    def __call__(self, graph: Graph) -> Graph: ...


class Adder:
    """Appends nodes to the graph that is being made."""

    def __init__(self, nodes: list[Node], swap: dict[Value, Value]) -> None:
        self._nodes, self._swap = nodes, swap

    def __call__(
        self, op: Any, operands: tuple[Operand, ...] = (), attrs: dict[str, Any] | None = None, where: str = ""
    ) -> tuple[Value, ...]:
        """Adds a node, or a call of an op, and returns its results."""
        node = op if isinstance(op, Node) else ir.make_node(op, operands, attrs or {}, where=where)
        self._nodes.append(node)
        return node.results

    def moved(self, operand: Operand) -> Operand:
        """What stands in the new graph for an operand of the old one."""
        return self._swap.get(operand, operand) if isinstance(operand, Value) else operand


Add = Adder

# A rule of `rewritten`: given a node with its operands already replaced, the values that stand for its results, or None
# to keep it. One of `replaced` also gets the node as it was in the old graph, first.
Rule = Callable[[Node, Add], tuple[Value, ...] | None]
RuleOfBoth = Callable[[Node, Node, Add], tuple[Value, ...] | None]


def rewritten(graph: Graph, rule: Rule) -> Graph:
    """The graph with every node replaced by what ``rule`` makes of it, in order."""
    return replaced(graph, lambda _, node, add: rule(node, add))


def replaced(graph: Graph, rule: RuleOfBoth) -> Graph:
    """:func:`rewritten` by a rule that asks questions about the old graph."""
    nodes: list[Node] = []
    swap: dict[Value, Value] = {}

    add = Adder(nodes, swap)

    for node in graph.nodes:
        moved = with_operands(node, swap)
        stand_ins = rule(node, moved, add)
        if stand_ins is None:
            nodes.append(moved)
            stand_ins = moved.results
        for old, now in zip(node.results, stand_ins, strict=True):
            if old is not now:
                swap[old] = now
    return graph.changed(nodes, swap)


def with_operands(node: Node, swap: dict[Value, Value]) -> Node:
    """The node with operands replaced; itself when none is."""
    if not swap or not any(v in swap for v in node.values()):
        return node
    operands = tuple(
        tuple(swap.get(v, v) for v in o) if isinstance(o, tuple) else swap.get(o, o) if isinstance(o, Value) else o
        for o in node.operands
    )
    if node.op.is_view:  # its place in memory follows its operand's
        return ir.make_node(node.op, operands, node.attrs, where=node.where)
    moved = Node(node.op, operands, node.attrs, where=node.where, updates=node.updates)
    moved.resolved = node.resolved
    moved.results = tuple(Value(moved, v.index, v.shape, v.dtype, v.strides) for v in node.results)
    return moved


def checked(made: Any, name: str) -> Graph:
    """What the pass ``name`` made: a graph whose nodes take what earlier ones make."""
    if not isinstance(made, Graph):
        raise AttrTypeError(
            f"compile: the pass {name} returned a {type(made).__name__}; want a Graph", argument="passes"
        )
    known: set[Value] = set()

    def look(taker: str, values: Iterable[Value]) -> None:
        for value in values:
            if value not in known:
                raise AttrError(
                    f"compile: after the pass {name} {taker} takes {value!r}, which no earlier node makes; "
                    "want nodes behind what they take: a graph has no cycle",
                    argument="passes",
                )

    for node in made.nodes:
        look(node.op.name, node.values())
        known.update(node.results)
    look("the graph", (*made.inputs, *made.outputs, *made.states().values()))
    return made


def used_once(graph: Graph) -> set[Value]:
    """The values that exactly one node takes, once, and that are neither given back nor stored."""
    counts: dict[Value, int] = {}
    for value in (*(v for n in graph.nodes for v in n.values()), *graph.outputs, *graph.states().values()):
        counts[value] = counts.get(value, 0) + 1
    kept = {*graph.outputs, *graph.states().values()}
    return {v for v, n in counts.items() if n == 1 and v not in kept}


def is_constant(value: Operand) -> bool:
    """Whether an operand is a constant."""
    return isinstance(value, Value) and isinstance(value.node.op, Constant)


def constant_value(value: Operand) -> Any:
    """The array of a constant, None of anything else."""
    return value.node.op.data if isinstance(value, Value) and is_constant(value) else None


def new_constant(data: Any, add: Add) -> Value:
    """A constant in the new graph."""
    return later_constant(data, data, add)


def later_constant(data: Any, like: Any, add: Add, label: str = "") -> Value:
    """A constant of the shape and dtype of ``like``, whose data a function makes when it is packed."""
    (value,) = add(ir.source_node(Constant(data, label), like.shape, like.dtype))
    return value


def with_own_constants(graph: Graph) -> Graph:
    """The graph with constants that it shares with no other."""

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        if not isinstance(node.op, Constant):
            return None
        return (later_constant(node.op.again(), node.results[0], add, node.op.label),)

    return rewritten(graph, rule)


def dead_nodes(graph: Graph) -> Graph:
    """Drops what no output and no variable needs, and puts what comes from outside first; placeholders stay."""
    needed = {v.node for v in (*graph.outputs, *graph.states().values(), *graph.inputs)}
    states = graph.states()
    needed |= {n for n in graph.nodes if n.has_effects or (isinstance(n.op, Variable) and n.op in states)}
    kept = []
    for node in reversed(graph.nodes):
        if node in needed:
            kept.append(node)
            needed.update(v.node for v in node.values())
    kept.reverse()
    return graph.changed(sorted(kept, key=lambda node: not node.is_source))


# A constant is computed beforehand unless it is this much larger than what it comes from.
_GROWTH, _SMALL = 4, 1 << 16


def constant_folding(graph: Graph) -> Graph:
    """Computes what follows from constants alone, unless the result would take far more memory."""

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        values = list(node.values())
        if node.updates or node.has_effects or node.numbers or not values or not all(map(is_constant, values)):
            return None
        given = sum(v.nbytes for v in values)
        if sum(v.nbytes for v in node.results) > _GROWTH * given + _SMALL:
            return None
        found = node.op(*(_constants(o) for o in node.operands), **node.attrs)
        arrays = found if isinstance(found, tuple) else (found,)
        return tuple(new_constant(_contiguous(a), add) for a in arrays)

    return rewritten(graph, rule)


def _constants(operand: Operand) -> Any:
    if isinstance(operand, tuple):
        return [constant_value(v) for v in operand]
    return constant_value(operand) if isinstance(operand, Value) else operand


def _contiguous(array: Any) -> Any:
    return np.ascontiguousarray(array).reshape(array.shape) if isinstance(array, np.ndarray) else array.copy()


def common_subexpressions(graph: Graph) -> Graph:
    """Computes once what several nodes compute from the same operands, and keeps one of equal small constants."""
    known: dict[Any, tuple[Value, ...]] = {}

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        if isinstance(node.op, Constant):
            if node.results[0].nbytes > 64 or dispatch.is_device_array(data := node.op.data):
                return None
            key: Any = ("constant", data.dtype, data.shape, data.tobytes())
        elif node.is_source or node.updates or node.has_effects:
            return None
        else:
            key = (node.op, _identities(node.operands), repr(sorted(node.resolved.items())))
        if key in known:
            return known[key]
        known[key] = node.results
        return None

    return rewritten(graph, rule)


def _identities(operands: tuple[Operand, ...]) -> tuple[Any, ...]:
    return tuple(
        tuple(map(id, o)) if isinstance(o, tuple) else id(o) if isinstance(o, Value) else (type(o), o) for o in operands
    )


def needs_copy(value: Value) -> bool:
    """Whether the memory of a value is not the run's own: a feed's, a constant's or a variable's."""
    return isinstance(value.base.node.op, (ir.Placeholder, Constant, Variable))
