"""The pass that gathers chains of elementwise ops, broadcasts and folds of trailing axes into one ``fused`` node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tilework import ops
from tilework.arrays import Sizes
from tilework.dtypes import is_floating
from tilework.graph import ir
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value

# Limits of one fused node: its block buffers should stay in L1, and its program within what `fused` reads.
MOST_INSTRUCTIONS, MOST_OPERANDS, MOST_RESULTS, MOST_FOLDS = 48, 16, 8, 8

# A row that is folded and then used again is kept; up to this many bytes it stays in L2.
LONGEST_ROW_BYTES = 1 << 17

# ------------------------------------------------------------------------------------------- ops as instructions


@dataclass(frozen=True)
class Step:
    """What an op is in a program: a name, how many of its operands are sources, and numbers behind them."""

    name: str
    numbers: tuple[str, ...] = ()
    folds: int = 0  # trailing axes


def _plain(name: str) -> Callable[[Node], Step | None]:
    return lambda node: Step(name)


def _gelu(name: str) -> Callable[[Node], Step | None]:
    suffix = "_dx" if name.endswith("_dx") else ""
    return lambda node: Step(("gelu_tanh" if node.resolved["approximate"] == "tanh" else "gelu") + suffix)


def _with_numbers(*attributes: str) -> Callable[[Node], Step | None]:
    return lambda node: Step(node.op.name, tuple(repr(float(node.resolved[a])) for a in attributes))


def _slope(node: Node) -> Step | None:
    function = node.resolved["function"]
    count = {"elu": 1, "leaky_relu": 1, "hard_sigmoid": 2, "clip": 2}.get(function, 0)
    numbers = [repr(float(node.resolved[a])) for a in ("alpha", "beta")]
    return Step(f"{function}_dx", tuple(numbers[:count]))


def _dropout(node: Node) -> Step | None:
    at = node.resolved
    if at["shared"]:
        return None
    return Step("dropout", (repr(float(at["p"])), str(at["seed"]), str(at["offset"])))


def _cast(node: Node) -> Step | None:
    (source,), to = tuple(node.values()), node.results[0].dtype
    floating = is_floating(source.dtype) and is_floating(to)
    if not floating or (to == np.float64) != (source.dtype == np.float64):
        return None
    return Step("cast", (to.name,))


def _fold(name: str) -> Callable[[Node], Step | None]:
    def rule(node: Node) -> Step | None:
        (x,) = tuple(node.values())
        axes = tuple(node.resolved["axes"])
        if not axes or axes != tuple(range(len(x.shape) - len(axes), len(x.shape))) or x.size == 0:
            return None
        return Step(name, (), len(axes))

    return rule


STEPS: dict[str, Callable[[Node], Step | None]] = {
    name: _plain(name)
    for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "exp", "log", "erf", "silu", "softplus", "mish")
}
STEPS |= {name: _plain(name) for name in ("hard_swish", "sqrt", "rsqrt", "abs", "neg")}
STEPS |= {name: _plain(name) for name in ("relu_dx", "sigmoid_dx", "tanh_dx")}
STEPS |= {"gelu": _gelu("gelu"), "gelu_dx": _gelu("gelu_dx"), "activation_dx": _slope}
STEPS |= {"elu": _with_numbers("alpha"), "leaky_relu": _with_numbers("alpha")}
STEPS |= {"hard_sigmoid": _with_numbers("alpha", "beta"), "clip": _with_numbers("low", "high")}
STEPS |= {"dropout": _dropout, "cast": _cast}
STEPS |= {"reduce_sum": _fold("sum"), "reduce_mean": _fold("mean"), "reduce_max": _fold("max")}


def step_of(node: Node) -> Step | None:
    """The instruction that a node is, None where it has to stay a node."""
    rule = STEPS.get(node.op.name)
    if rule is None or node.numbers or node.op is not getattr(ops, node.op.name):
        return None
    if any(not is_floating(v.dtype) for v in node.values()) or not is_floating(node.results[0].dtype):
        return None
    step = rule(node)
    if step is None or step.folds:
        return step
    shape = node.results[0].shape
    # A draw belongs to a place of the whole array, so what is dropped must be whole.
    whole = all(v.shape == shape for v in node.values())
    return step if whole or step.name not in ("dropout", "cast") else None


# ------------------------------------------------------------------------------------------------------- groups


class Group:
    """Nodes that will be one: the shape of their whole values, and how many trailing axes they fold (0: none)."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.shape: Sizes | None = None
        self.folds = 0
        self.first = self.last = 0  # places in the graph


def _merged(groups: Iterable[Group], node: Node, step: Step, places: dict[Node, int]) -> Group | None:
    """The union of groups and a node; None where their shapes do not go together."""
    made = Group()
    made.first = made.last = places[node]
    for g in groups:
        made.nodes += g.nodes
        if made.folds and g.folds and made.folds != g.folds:
            return None
        made.folds = made.folds or g.folds
        made.first, made.last = min(made.first, g.first), max(made.last, g.last)
        if made.shape is not None and g.shape is not None and made.shape != g.shape:
            return None
        made.shape = made.shape or g.shape
    made.nodes = sorted([*made.nodes, node], key=places.__getitem__)
    if step.folds:
        if made.folds and made.folds != step.folds:
            return None
        made.folds = step.folds
    if made.shape is None:
        made.shape = (next(iter(node.values())) if step.folds else node.results[0]).shape
    return made if _shapes_fit(made) else None


def _shapes_fit(group: Group) -> bool:
    """Whether every value is whole or has one number for each row, and uses values made here as these are."""
    shape, k = group.shape, group.folds
    assert shape is not None
    row = (*shape[: len(shape) - k], *(1,) * k) if k else None
    made = {node.results[0]: node for node in group.nodes}
    rows: set[Value] = set()
    folds = 0
    for node in group.nodes:
        step = step_of(node)
        assert step is not None
        value = node.results[0]
        inside = [v for v in node.values() if v in made]
        if step.folds:
            source = next(iter(node.values()))
            if source.shape != shape or source in rows:
                return False
            rows.add(value)
            folds += 1
        elif inside and all(v in rows for v in inside) and all(v in rows for v in node.values()):
            if value.shape != row:
                return False
            rows.add(value)
        elif value.shape != shape:
            return False
        elif any(v in rows and v.shape != row for v in inside):
            return False  # it lost its folded axes, and would broadcast elsewhere
    if folds > MOST_FOLDS:
        return False
    n = math.prod(shape[len(shape) - k :]) if k else 0
    used_again = any(v in rows and w.results[0] not in rows for w in group.nodes for v in w.values())
    return not used_again or n * 4 <= LONGEST_ROW_BYTES


class _Grouping:
    """Finds the groups of a graph, never making a circle of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.group: dict[Node, Group] = {}
        for node in graph.nodes:
            step = None if node.updates or node.is_source else step_of(node)
            if step is not None:
                self._take(node, step)

    def _take(self, node: Node, step: Step) -> None:
        chosen: list[Group] = []
        best = _merged((), node, step, self.place)
        if best is None:
            return
        for value in node.values():
            group = self.group.get(value.node)
            if group is None or group in chosen:
                continue
            union = _merged([*chosen, group], node, step, self.place)
            if union is not None and self._is_small(union) and not self._has_circle(union):
                chosen.append(group)
                best = union
        for member in best.nodes:
            self.group[member] = best

    def _is_small(self, group: Group) -> bool:
        inside = set(group.nodes)
        outside = {v for n in group.nodes for v in n.values() if v.node not in inside}
        return len(group.nodes) <= MOST_INSTRUCTIONS and len(outside) <= MOST_OPERANDS

    def _has_circle(self, union: Group) -> bool:
        """Whether a value from outside, that the union takes, depends on the union."""
        inside = set(union.nodes)
        seen: set[Node] = set()
        open_ = [v.node for n in union.nodes for v in n.values() if v.node not in inside]
        while open_:
            node = open_.pop()
            if node in inside:
                return True
            if node in seen:
                continue
            seen.add(node)
            group = self.group.get(node)
            members = group.nodes if group is not None else [node]
            if (group.last if group is not None else self.place[node]) < union.first:
                continue
            seen.update(members)
            for member in members:
                open_ += [v.node for v in member.values()]
        return False

    def groups(self) -> list[Group]:
        found: dict[int, Group] = {id(g): g for g in self.group.values()}
        return list(found.values())


# -------------------------------------------------------------------------------------------------------- the pass


def fusion(graph: Graph) -> Graph:
    """Gathers elementwise ops, broadcasts and folds of trailing axes that feed each other into single passes."""
    needed = set(graph.outputs) | set(graph.states().values())
    users = graph.users()
    swap: dict[Value, Value] = {}
    made: list[Node] = []
    gone: set[Node] = set()
    for group in _Grouping(graph).groups():
        for part in _parts(group.nodes, needed, users):
            if len(part) < 2 and not _spread(part, group):
                continue
            gone.update(part)
            made += _fused_nodes(part, group, needed, users, swap)
    if not made:
        return graph
    return graph.changed(_ordered([n for n in graph.nodes if n not in gone], made, swap), swap)


def _spread(part: Sequence[Node], group: Group) -> dict[Value, Value]:
    """The operands of a program that are copies of smaller values, which it broadcasts itself; it needs a whole one."""
    inside = set(part)
    given = {v for n in part for v in n.values() if v.node not in inside}
    found = {v: s for v in given if v.node.op is ops.expand for s in v.node.values() if s.size < v.size}
    whole = any(v.shape == group.shape and v not in found for v in given)
    return found if whole and not group.folds else {}


def _results(part: Sequence[Node], needed: set[Value], users: dict[Value, list[Node]]) -> list[Value]:
    inside = set(part)
    return [v for n in part for v in n.results if v in needed or any(user not in inside for user in users.get(v, ()))]


def _parts(nodes: list[Node], needed: set[Value], users: dict[Value, list[Node]]) -> list[list[Node]]:
    """The nodes in as few pieces as have few enough results each."""
    if len(_results(nodes, needed, users)) <= MOST_RESULTS:
        return [nodes]
    half = len(nodes) // 2
    return [*_parts(nodes[:half], needed, users), *_parts(nodes[half:], needed, users)]


def _fused_nodes(
    part: Sequence[Node], group: Group, needed: set[Value], users: dict[Value, list[Node]], swap: dict[Value, Value]
) -> list[Node]:
    """One fused node, and a view for each result that lost its folded axes."""
    inside = set(part)
    given = list(dict.fromkeys(v for n in part for v in n.values() if v.node not in inside))
    number = {v: k for k, v in enumerate(given)}
    spread = _spread(part, group)
    operands = [spread.get(v, v) for v in given]
    lines = []
    for node in part:
        step = step_of(node)
        assert step is not None
        sources = [f"${number[o]}" if isinstance(o, Value) else repr(float(o)) for o in _given(node)]
        lines.append(" ".join([step.name, *sources, *step.numbers]))
        number[node.results[0]] = len(operands) + len(lines) - 1
    results = _results(part, needed, users)
    lines.append(" ".join(["return", *(f"${number[v]}" for v in results)]))
    attrs = {"program": "; ".join(lines)} | ({"trailing": group.folds} if group.folds else {})
    where = next((n.where for n in part if n.where), "")
    fused = ir.make_node(ops.fused, [tuple(operands)], attrs, where=where)
    nodes = [fused]
    for old, now in zip(results, fused.results, strict=True):
        if old.shape != now.shape:
            view = ir.make_node(ops.reshape, [now], {"shape": old.shape}, where=where)
            nodes.append(view)
            now = view.results[0]
        swap[old] = now
    return nodes


def _given(node: Node) -> list[Value | float]:
    return [o for o in node.operands if isinstance(o, (Value, int, float))]


def _ordered(kept: list[Node], made: list[Node], swap: dict[Value, Value]) -> list[Node]:
    """All nodes with their operands replaced, each behind those it depends on, and else in the old order."""
    from tilework.graph.passes import with_operands

    order: list[Node] = []
    done: set[Node] = set()

    def last(value: Value) -> Value:
        """What stands for a value in the end, as far as is known."""
        while value in swap:
            value = swap[value]
        return value

    for first in (*kept, *made):
        stack = [first]
        while stack:
            node = stack[-1]
            waiting = [last(v).node for v in node.values() if last(v).node not in done]
            if node not in done and waiting:
                stack += waiting
                continue
            stack.pop()
            if node in done:
                continue
            moved = with_operands(node, {v: last(v) for v in node.values() if v in swap})
            done |= {node, moved}
            order.append(moved)
            if moved is not node:
                swap.update(zip(node.results, moved.results, strict=True))
    swap.update({v: last(v) for v in swap})
    return order
