"""Running a graph: the compiled form of it that arrays are fed to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework import dispatch, nested
from tilework.arrays import Array
from tilework.devices import to_device
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable
from tilework.graph.passes import PASSES, Pass, needs_copy
from tilework.settings import threads as limited_threads


class Executable:
    """A graph that is ready to run: call it with arrays like those that it was traced with.

    ``device`` is None for the CPU or what :func:`tilework.to_device` takes; constants and variables then live there and
    device arrays are fed. ``threads`` limits a run's threads. ``passes`` replaces the list of passes and ``without``
    names some to leave out. Bits never depend on the number of threads.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: Any = None,
        threads: int | None = None,
        passes: Sequence[Pass] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        chosen = list(PASSES if passes is None else passes)
        unknown = set(without) - {p.__name__ for p in chosen}
        if unknown:
            raise AttrError(
                f"compile: there is no pass {sorted(unknown)[0]!r}; want some of {[p.__name__ for p in chosen]}",
                argument="without",
            )
        self.source = graph
        self.passes = [p for p in chosen if p.__name__ not in without]
        self.graph = graph.changed(list(graph.nodes))
        for each in self.passes:
            self.graph = each(self.graph)
        self.device = device
        self._threads = threads
        self._constants = self._placed_constants()
        self._last_use = _last_uses(self.graph)

    def _placed_constants(self) -> dict[Value, Array]:
        """Constants by value, moved to the device; so are variables, which stay there."""
        placed = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Constant):
                placed[node.results[0]] = node.op.data if self.device is None else to_device(node.op.data, self.device)
            elif isinstance(node.op, Variable) and self.device is not None:
                node.op.value = to_device(node.op.value, self.device)
        return placed

    # -------------------------------------------------------------------------------------------------- calls

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """What the traced function returns for these arguments; in ``out``, arrays in the same structure, if given."""
        feeds = self._feeds(args, named)
        limit = limited_threads(self._threads) if self._threads is not None else contextlib.nullcontext()
        with limit:
            results = self._run(feeds)
        if out is not None:
            results = self._into(out, results)
        if self.graph.result is not None:
            return nested.unflatten(self.graph.result, results)
        return results[0] if len(results) == 1 else tuple(results)

    def _feeds(self, args: tuple[Any, ...], named: dict[str, Any]) -> list[Array]:
        inputs, structure = self.graph.inputs, self.graph.arguments
        labels = [v.node.op.label for v in inputs]
        if structure is not None and not named:
            leaves, given = nested.flatten(args)
            if not nested.alike(given, structure):
                raise AttrTypeError(
                    f"{self.graph.name}: arguments are {nested.written(given)}; want {nested.written(structure)}, "
                    f"the arrays {', '.join(labels)}"
                )
            for i, want in self.graph.statics.items():
                if leaves[i] is not want and leaves[i] != want:
                    raise AttrError(
                        f"{self.graph.name}: argument {i} is {leaves[i]!r:.80}; want {want!r:.80} as traced"
                    )
            leaves = [leaf for i, leaf in enumerate(leaves) if i not in self.graph.statics]
        else:
            if len(args) > len(labels):
                raise AttrTypeError(f"{self.graph.name}: {len(args)} arrays; want {len(labels)}: {', '.join(labels)}")
            by_name = dict(zip(labels, args, strict=False))
            surplus = [n for n in named if n in by_name or n not in labels]
            missing = [n for n in labels if n not in by_name and n not in named]
            if surplus or missing:
                what = f"{surplus[0]!r} is surplus" if surplus else f"{missing[0]!r} is missing"
                raise AttrTypeError(f"{self.graph.name}: {what}; want the arrays {', '.join(labels)}")
            leaves = [(by_name | named)[n] for n in labels]
        return [self._checked(v, leaf) for v, leaf in zip(inputs, leaves, strict=True)]

    def _checked(self, value: Value, given: Any) -> Array:
        label, name = value.node.op.label, self.graph.name
        where = dispatch.backend_of(name, label, given.value if isinstance(given, Variable) else given)
        if where == "":
            raise DTypeError(f"{name}: {label} is a {type(given).__name__}; want an array", argument=label)
        if (where == "opencl") != (self.device is not None):
            want = "numpy" if self.device is None else "device"
            raise DTypeError(f"{name}: {label} is on {where}; want a {want} array as compiled", argument=label)
        array = dispatch.borrow(name, label, given)
        if array.dtype != value.dtype:
            raise DTypeError(f"{name}: {label} has dtype {array.dtype}; want {value.dtype}", argument=label)
        if tuple(array.shape) != value.shape:
            raise ShapeError(f"{name}: {label} has shape {tuple(array.shape)}; want {value.shape}", argument=label)
        if not array.flags.c_contiguous:
            return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.copy()
        return array

    def _into(self, out: Any, results: list[Array]) -> list[Array]:
        leaves, _ = nested.flatten(out)
        if len(leaves) != len(results):
            raise AttrTypeError(
                f"{self.graph.name}: out holds {len(leaves)} arrays; want {len(results)}", argument="out"
            )
        for given, made in zip(leaves, results, strict=True):
            if tuple(given.shape) != tuple(made.shape) or given.dtype != made.dtype:
                raise ShapeError(
                    f"{self.graph.name}: out is {given.dtype} {tuple(given.shape)}; "
                    f"want {made.dtype} {tuple(made.shape)}",
                    argument="out",
                )
            given[...] = made
        return leaves

    def _run(self, feeds: list[Array]) -> list[Array]:
        arrays: dict[Value, Array] = dict(self._constants)
        arrays.update(zip(self.graph.inputs, feeds, strict=True))
        for i, node in enumerate(self.graph.nodes):
            if isinstance(node.op, Variable):
                arrays[node.results[0]] = node.op.value
            elif not isinstance(node.op, (Placeholder, Constant)):
                self._step(i, node, arrays)
                for value in self._last_use.get(i, ()):
                    del arrays[value]
        outputs = [_copy(arrays[v]) if needs_copy(v) else arrays[v] for v in self.graph.outputs]
        states = [(variable, state, arrays[state]) for variable, state in self.graph.states().items()]
        foreign = [a.copy() if needs_copy(s) and s.base.node.op is not v else a for v, s, a in states]
        for (variable, _, _), array in zip(states, foreign, strict=True):
            if array is not variable.value:
                variable.value[...] = array
        return outputs

    def _step(self, i: int, node: Node, arrays: dict[Value, Array]) -> None:
        operands: list[Any] = []
        for k, operand in enumerate(node.operands):
            if isinstance(operand, Value):
                array = arrays[operand]
                dies = operand.base in self._last_use.get(i, ()) or isinstance(operand.node.op, Variable)
                if k in node.updates and not (dies and self._only_use(operand, i)):
                    array = _copy(array)
                operands.append(array)
            else:
                operands.append([arrays[v] for v in operand] if isinstance(operand, tuple) else operand)
        made = node.op(*operands, **node.attrs)
        results = () if made is None else made if isinstance(made, tuple) else (made,)
        arrays.update(zip(node.results, (*results, *(operands[k] for k in node.updates)), strict=True))

    def _only_use(self, value: Value, i: int) -> bool:
        """Whether nothing after node ``i`` reads the memory of a value."""
        if any(v.base is value.base for v in (*self.graph.outputs, *self.graph.states().values())):
            return False
        return not any(v.base is value.base for node in self.graph.nodes[i + 1 :] for v in node.values())


def _copy(array: Array) -> Array:
    return array.copy()


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
