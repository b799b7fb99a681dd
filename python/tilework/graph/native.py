"""The CPU's runner: a plan turned into a ``_core.Program``, which runs it without entering Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework import _core
from tilework.arrays import Array
from tilework.dispatch import settled
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Value
from tilework.graph.plan import Kind, Plan, planned


class Native:
    """A compiled graph, ready to run on the tier that is active; for another tier ``again`` compiles it anew.

    Constants that are packed, and that nothing else reads, are let go of, but for those in ``borrowed``.
    """

    def __init__(self, graph: Graph, again: Callable[[], Graph], borrowed: set[Constant]) -> None:
        self._again, self._borrowed = again, borrowed
        self._make(graph)

    def _make(self, graph: Graph) -> None:
        self.plan = planned(graph)
        self._program = self._made(self.plan)
        released = [self.plan.constants[i] for i in self._program.released]
        self.held_bytes = sum(v.nbytes for v in self.plan.homes if isinstance(v.node.op, Constant))
        self.held_bytes -= sum(v.nbytes for v in self.plan.homes if v.node.op in released)
        for constant in released:
            if constant not in self._borrowed:
                constant.let_go()

    @staticmethod
    def _made(plan: Plan) -> _core.Program:
        numbers: dict[Value, int] = {}
        rows: list[Any] = []

        def number(value: Value) -> int:
            if value not in numbers:
                numbers[value] = len(rows)
                home, at = plan.home(value).whole()
                size = value.dtype.itemsize
                offset = value.offset + at + (home.offset if home.kind == Kind.ARENA else 0)
                strides = [s // size for s in value.strides]
                rows.append((value.shape, value.dtype, strides, int(home.kind), home.index, offset))
            return numbers[value]

        def operands(node: Node) -> list[Any]:
            given: list[Any] = []
            for operand in node.operands:
                if isinstance(operand, tuple):
                    given += map(number, operand)
                elif isinstance(operand, Value):
                    given.append(number(operand))
                else:
                    given.append(None if operand is None else float(operand))
            return given

        places = {n: k for k, n in enumerate(plan.numbers)}
        steps = []
        for node in plan.steps:
            fresh = node.results[: len(node.results) - len(node.updates)]
            step = node.op.name if isinstance(node.op, _core.Op) else node.op.step(node)
            settings = {name: places[n] for name, n in node.numbers.items()}
            alone = [i for i, name in enumerate(node.op.operands) if name in node.op.rules.get("reads_packed", ())]
            results = [number(v) if v in plan.homes else -1 for v in fresh]
            steps.append((step, operands(node), settled(node.attrs), results, settings, alone))
        inputs, outputs = list(map(number, plan.inputs)), list(map(number, plan.outputs))
        constants = [functools.partial(_laid_out, c) for c in plan.constants]
        return _core.Program(rows, constants, inputs, outputs, steps, plan.arena_bytes)

    @property
    def program(self) -> _core.Program:
        if self._program.tier != _core.isa():
            self._make(self._again())
        return self._program

    def run(
        self,
        feeds: tuple[Array, ...],
        outs: tuple[Array, ...] | None,
        numbers: Sequence[float] = (),
        tensors: type | None = None,
    ) -> tuple[Array, ...] | None:
        """The results, or None where an array is not contiguous or does not fit; ``tensors`` if a type is given."""
        states = tuple(v.value for v in self.plan.variables)
        return self.program.run((*feeds, *states), outs, numbers, tensors)

    def timed(self, feeds: tuple[Array, ...], numbers: Sequence[float] = ()) -> list[tuple[Node, float, str, int]]:
        """(node, seconds, kernel, threads) of every step of one run."""
        states = tuple(v.value for v in self.plan.variables)
        rows = self.program.timed((*feeds, *states), numbers)
        return [(n, *row) for n, row in zip(self.plan.steps, rows, strict=True)]


def _laid_out(constant: Constant) -> Array:
    return np.require(constant.data, requirements=["C", "A"])
