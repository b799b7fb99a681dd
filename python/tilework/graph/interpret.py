"""The runner for devices: calls the nodes of a graph one after the other; nothing waits, the queue keeps the order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilework import registry
from tilework.arrays import Array
from tilework.devices import queue_on, to_device
from tilework.dispatch import Number
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable
from tilework.graph.passes import needs_copy


class Interpreter:
    """A graph on a device: constants and variables are moved there, and stay."""

    def __init__(self, graph: Graph, device: Any) -> None:
        self.graph = graph
        self.queue = queue_on(device)
        self._constants: dict[Value, Array] = {}
        for node in graph.nodes:
            if isinstance(node.op, Constant):
                self._constants[node.results[0]] = to_device(node.op.data, device)
            elif isinstance(node.op, Variable):
                node.op.value = to_device(node.op.value, device)
        self._last_use = _last_uses(graph)
        self._free = _free_to_change(graph)

    def run(self, feeds: tuple[Array, ...], numbers: Sequence[float] = ()) -> list[Array]:
        """The results, which may still be computing."""
        settings = dict(zip(self.graph.numbers.values(), numbers, strict=True))
        arrays: dict[Value, Array] = dict(self._constants)
        arrays.update(zip(self.graph.inputs, feeds, strict=True))
        for i, node in enumerate(self.graph.nodes):
            if isinstance(node.op, Variable):
                arrays[node.results[0]] = node.op.value
            elif not isinstance(node.op, (Placeholder, Constant)):
                self._step(i, node, arrays, settings)
                for value in self._last_use.get(i, ()):
                    del arrays[value]
        outputs = [arrays[v].copy() if needs_copy(v) else arrays[v] for v in self.graph.outputs]
        states = [(variable, state, arrays[state]) for variable, state in self.graph.states().items()]
        foreign = [a.copy() if needs_copy(s) and s.base.node.op is not v else a for v, s, a in states]
        for (variable, _, _), array in zip(states, foreign, strict=True):
            if array is not variable.value:
                variable.value[...] = array
        return outputs

    def _step(self, i: int, node: Node, arrays: dict[Value, Array], settings: dict[Number, float]) -> None:
        operands: list[Any] = []
        for k, operand in enumerate(node.operands):
            if isinstance(operand, Value):
                array = arrays[operand]
                if k in node.updates and (i, k) not in self._free:
                    array = array.copy()
                operands.append(array)
            else:
                operands.append([arrays[v] for v in operand] if isinstance(operand, tuple) else operand)
        if node.op.name == "reshape" and not operands[0].flags.c_contiguous:  # device arrays have fewer views
            operands[0] = registry.find("expand")(operands[0], shape=tuple(operands[0].shape))
        attrs = node.attrs | {name: settings[n] for name, n in node.numbers.items()} if settings else node.attrs
        made = node.op(*operands, **attrs)
        results = () if made is None else made if isinstance(made, tuple) else (made,)
        arrays.update(zip(node.results, (*results, *(operands[k] for k in node.updates)), strict=True))


def _free_to_change(graph: Graph) -> set[tuple[int, int]]:
    """(node, operand) of the updates that may write where the operand lies: nobody reads it later, and it is ours."""
    kept = {v.base for v in (*graph.outputs, *graph.states().values())}
    last = {v.base: i for i, node in enumerate(graph.nodes) for v in node.values()}
    found = set()
    for i, node in enumerate(graph.nodes):
        for k in node.updates:
            operand = node.operands[k]
            assert isinstance(operand, Value)
            ours = not isinstance(operand.base.node.op, (Placeholder, Constant)) and operand.base not in kept
            if ours and last[operand.base] <= i:
                found.add((i, k))
    return found


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """The values to let go of after each node."""
    last: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        for value in (*node.results, *node.values()):
            last[value] = i
    kept = {*graph.outputs, *graph.states().values()}
    found: dict[int, list[Value]] = {}
    for value, i in last.items():
        if value not in kept and not needs_copy(value):
            found.setdefault(i, []).append(value)
    return found
