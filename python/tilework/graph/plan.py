"""Where the values of a graph lie while it runs on the CPU: liveness, writing in place, one arena for the rest."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from enum import IntEnum

from tilework import _core, registry
from tilework.dispatch import Number
from tilework.graph import ir
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable

ALIGNMENT = 64


class Kind(IntEnum):
    """What a home is part of; the numbers are those of ``_core.Program``."""

    ARENA = 0
    INPUT = 1
    OUTPUT = 2
    CONSTANT = 3


@dataclass(eq=False)
class Home:
    """Memory that values share, from the step that first writes it to the one that last reads it."""

    kind: Kind
    index: int  # which input, output or constant
    nbytes: int
    first: int = 0
    last: int = 0
    offset: int = 0  # in the arena, or in the home that this one is part of
    within: Home | None = None

    def whole(self) -> tuple[Home, int]:
        """The home that this one is part of in the end, and where in it this one begins."""
        home, at = self, 0
        while home.within is not None:
            home, at = home.within, at + home.offset
        return home, at


@dataclass
class Plan:
    """The steps of a graph, with the copies that its results need, and a home for each base."""

    steps: list[Node] = field(default_factory=list)
    homes: dict[Value, Home] = field(default_factory=dict)  # by base
    inputs: list[Value] = field(default_factory=list)  # what is fed, then the variables
    outputs: list[Value] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)  # that each run is given
    constants: list[Constant] = field(default_factory=list)
    arena_bytes: int = 0

    def home(self, value: Value) -> Home:
        return self.homes[value.base]


def planned(graph: Graph) -> Plan:
    """The plan of a graph whose passes are done."""
    plan = Plan(steps=_steps(graph), numbers=list(graph.numbers.values()))
    _fixed_homes(plan, graph)
    last = {value.base: i for i, node in enumerate(plan.steps) for value in node.values()}
    end = len(plan.steps)
    last.update((v.base, end) for v in (*graph.outputs, *graph.states().values()))
    for i, node in enumerate(plan.steps):
        for k, value in enumerate(node.results):
            if value not in last and k in getattr(node.op, "rules", {}).get("spare_results", ()):
                continue
            home = _shared_home(plan, node, k, i) or Home(Kind.ARENA, 0, value.nbytes, i, i)
            home.last = max(home.last, last.get(value, i))
            plan.homes[value] = home
    _give_out(plan, graph)
    _store_states(plan, graph)
    _join(plan)
    _lay_out(plan)
    return plan


def _fixed_homes(plan: Plan, graph: Graph) -> None:
    """Feeds, variables and constants are where they are."""
    held = [n.results[0] for n in graph.nodes if isinstance(n.op, Variable)]
    plan.variables = [v.node.op for v in held]
    plan.inputs = [*graph.inputs, *held]
    for i, value in enumerate(plan.inputs):
        plan.homes[value] = Home(Kind.INPUT, i, value.nbytes)
    for node in graph.nodes:
        if isinstance(node.op, Constant):
            plan.homes[node.results[0]] = Home(Kind.CONSTANT, len(plan.constants), node.results[0].nbytes)
            plan.constants.append(node.op)


def _copy(value: Value) -> Node:
    return ir.make_node(registry.find("expand"), (value,), {"shape": value.shape})


def _steps(graph: Graph) -> list[Node]:
    """The nodes that do something; an operand is copied before an update where it is still needed, or not ours."""
    reads = {v.base: i for i, node in enumerate(graph.nodes) for v in node.values() if not node.op.is_view}
    kept = {v.base for v in (*graph.outputs, *graph.states().values())}
    steps: list[Node] = []
    for i, node in enumerate(graph.nodes):
        if node.is_source or node.op.is_view:
            continue
        operands = list(node.operands)
        for k in node.updates:
            value = operands[k]
            assert isinstance(value, Value)
            foreign = isinstance(value.base.node.op, (Placeholder, Constant))
            if foreign or reads[value.base] > i or value.base in kept:
                steps.append(_copy(value))
                operands[k] = steps[-1].results[0]
        if tuple(operands) != node.operands:
            copied = Node(node.op, tuple(operands), node.attrs, where=node.where, updates=node.updates)
            copied.resolved, copied.results = node.resolved, node.results
            node = copied
        steps.append(node)
    return steps


def _shared_home(plan: Plan, node: Node, k: int, i: int) -> Home | None:
    """The home of an operand that result ``k`` of step ``i`` overwrites, None if it needs its own."""
    fresh = len(node.results) - len(node.updates)
    if k >= fresh:  # a later state of an operand
        operand = node.operands[node.updates[k - fresh]]
        assert isinstance(operand, Value)
        return plan.home(operand)
    if fresh != 1 or node.updates:
        return None
    any_operand, last_operand = _may_overwrite(node.op.name)
    candidates = node.operands if any_operand else node.operands[-1:] if last_operand else ()
    result = node.results[0]
    for operand in candidates:
        if not isinstance(operand, Value) or (operand.shape, operand.dtype) != (result.shape, result.dtype):
            continue
        home = plan.home(operand)
        ours = home.kind == Kind.ARENA and home.last <= i and home.nbytes == result.nbytes
        layouts = {(v.offset, v.strides) for v in node.values() if plan.home(v) is home}
        if ours and layouts == {(0, result.strides)}:
            return home
    return None


@functools.cache
def _may_overwrite(name: str) -> tuple[bool, bool]:
    """Whether the result of an op may be written over any operand, or over the last one."""
    if name not in _core.op_names():
        return False, False
    spec = _core.op_spec(name)
    return spec["elementwise"], spec["out_is_last"]


def _give_out(plan: Plan, graph: Graph) -> None:
    """Results are computed in the arrays that are given back, or copied there at the end."""
    for k, value in enumerate(graph.outputs):
        home = plan.home(value)
        whole = value.offset == 0 and value.nbytes == home.nbytes and bool(value.ghost.flags.c_contiguous)
        if whole and home.kind == Kind.ARENA:
            home.kind, home.index = Kind.OUTPUT, k
        else:
            value = _append_copy(plan, value)
            plan.homes[value] = Home(Kind.OUTPUT, k, value.nbytes)
        plan.outputs.append(value)


def _append_copy(plan: Plan, value: Value) -> Value:
    home = plan.home(value)
    home.last = max(home.last, len(plan.steps))
    plan.steps.append(_copy(value))
    return plan.steps[-1].results[0]


def _store_states(plan: Plan, graph: Graph) -> None:
    """Copies the last states that are not at home with their variables."""
    own = {v.node.op: plan.homes[v] for v in plan.inputs}
    moves = []
    for variable, state in graph.states().items():
        if plan.home(state) is own[variable]:
            continue
        if plan.home(state).kind == Kind.INPUT:  # another variable's, which may be written before it is read
            state = _append_copy(plan, state)
            at = len(plan.steps)
            plan.homes[state] = Home(Kind.ARENA, 0, state.nbytes, at - 1, at)
        moves.append((state, own[variable]))
    for state, home in moves:
        plan.homes[_append_copy(plan, state)] = home


def _join(plan: Plan) -> None:
    """Lets arrays be made where a concat wants them, each one piece of its result; the others are copied there."""
    steps: list[Node] = []
    for i, node in enumerate(plan.steps):
        steps += _pieces(plan, node, i) if node.op.name == "concat" else [node]
    plan.steps = steps


def _pieces(plan: Plan, node: Node, i: int) -> list[Node]:
    """The copies that are left of a concat; itself if all are, or if its operands lie scattered in the result."""
    (result,) = node.results
    whole = plan.home(result)
    operands = list(node.values())
    in_one_piece = math.prod(result.shape[: node.resolved["axis"]]) == 1 and bool(result.ghost.flags.c_contiguous)
    if not in_one_piece or whole.nbytes != result.nbytes:
        return [node]
    at = 0
    copies: list[tuple[Value, int]] = []
    taken: list[tuple[Home, int]] = []
    for operand in operands:
        home = plan.home(operand)
        ours = home.kind == Kind.ARENA and home.within is None and home.last == i and home.nbytes == operand.nbytes
        dense = not operand.is_view and bool(operand.ghost.flags.c_contiguous)
        if ours and dense and not any(home is h for h, _ in taken):
            taken.append((home, at))
        else:
            copies.append((operand, at))
        at += operand.nbytes
    if not taken:
        return [node]
    for home, place in taken:
        home.within, home.offset = whole, place
        whole.first = min(whole.first, home.first)
    made = []
    for operand, place in copies:
        made.append(_copy(operand))
        plan.homes[made[-1].results[0]] = Home(Kind.ARENA, 0, operand.nbytes, i, i, place, whole)
    return made


def _lay_out(plan: Plan) -> None:
    """Places in the arena, the largest first, each as low as those that live at the same time leave room."""
    wholes = {id(h): h for h in plan.homes.values() if h.kind == Kind.ARENA and h.within is None}
    homes = sorted(wholes.values(), key=lambda h: -h.nbytes)
    placed: list[Home] = []
    for home in homes:
        at = 0
        size = -(-home.nbytes // ALIGNMENT) * ALIGNMENT
        for other in placed:  # by offset
            if other.first > home.last or home.first > other.last:
                continue
            if at + size <= other.offset:
                break
            at = max(at, other.offset + -(-other.nbytes // ALIGNMENT) * ALIGNMENT)
        home.offset = at
        plan.arena_bytes = max(plan.arena_bytes, at + size)
        placed.append(home)
        placed.sort(key=lambda h: h.offset)
