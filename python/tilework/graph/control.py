"""Control flow inside a graph: a choice, a loop and a scan, whose branches and bodies are graphs of their own.

Called on arrays, each does at once what it would do in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import dispatch, nested, ops
from tilework.arrays import Array
from tilework.errors import AttrTypeError, ShapeError, UnsupportedError
from tilework.graph.build import Graph, Spec, trace
from tilework.graph.ir import Node, Value
from tilework.graph.symbol import Symbol

if TYPE_CHECKING:
    from tilework.graph.execute import Executable


class Region:
    """The op of a node that runs graphs: ``counts`` says how its operands are shared out among them."""

    is_view = False
    is_variadic = False
    differentiable: tuple[str, ...] = ()

    def __init__(self, name: str, graphs: list[Graph], specs: list[Spec], counts: tuple[int, ...]) -> None:
        self.name, self.graphs, self.specs, self.counts = name, graphs, specs, counts
        self.operands = tuple(f"x{i}" for i in range(sum(counts)))
        self.rules: dict[str, Any] = {}
        self._compiled: list[Executable] = []

    def infer(self, operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return [(s.shape, s.dtype) for s in self.specs], attrs

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        traced = dispatch.recorder(args)
        if traced is not None:
            return traced.record(self, args, attrs)
        if not self._compiled:
            self._compiled = [g.compile() for g in self.graphs]
        made = tuple(RUNS[self.name](self, self._compiled, self._parts(args)))
        return made[0] if len(made) == 1 else made

    def _parts(self, arrays: Any) -> list[list[Any]]:
        left = iter(arrays)
        return [[next(left) for _ in range(n)] for n in self.counts]

    def step(self, node: Node) -> Callable[[list[Any], list[Any]], None]:
        """What a program calls: the graphs are compiled with it."""
        compiled = [g.compile() for g in self.graphs]

        def fill(operands: list[Any], results: list[Any]) -> None:
            for result, array in zip(results, RUNS[self.name](self, compiled, self._parts(operands)), strict=True):
                result[...] = array

        return fill


def _run_cond(region: Region, compiled: list[Executable], parts: list[list[Any]]) -> list[Any]:
    (chosen,), given, *outside = parts
    branch = 0 if bool(chosen) else 1
    return _flat(compiled[branch](*given, *outside[branch]))


def _run_while(region: Region, compiled: list[Executable], parts: list[list[Any]]) -> list[Any]:
    now, first, second = parts
    while bool(compiled[0](*now, *first)):
        now = _flat(compiled[1](*now, *second))
    return now


def _run_scan(region: Region, compiled: list[Executable], parts: list[list[Any]]) -> list[Any]:
    now, over, outside = parts
    n = len(now)
    stacked = [np.empty(s.shape, s.dtype) for s in region.specs[n:]]
    for i in range(len(over[0])):
        got = _flat(compiled[0](*now, *(a[i] for a in over), *outside))
        now = got[:n]
        for stack, y in zip(stacked, got[n:], strict=True):
            stack[i] = y
    return [*now, *stacked]


RUNS = {"cond": _run_cond, "while_loop": _run_while, "scan": _run_scan}


def _flat(made: Any) -> list[Any]:
    return list(made) if isinstance(made, tuple) else [made]


def _body(function: Callable[..., Any], *examples: Any) -> tuple[Graph, nested.Structure, list[Any]]:
    """A function as a graph of flat arrays: what it takes from outside comes behind its own arguments."""
    graph = trace(function, *examples)
    structure = graph.result
    assert structure is not None
    if graph.states():
        changed = next(iter(graph.states())).label
        raise UnsupportedError(f"graph: a branch or a body updates variable {changed!r}; want it carried as state")
    graph.arguments = graph.result = None
    return graph, structure, graph.captured


def cond(predicate: Array, true: Callable[..., Any], false: Callable[..., Any], *args: Any) -> Any:
    """``true(*args)`` if predicate, a boolean array of shape (), holds, else ``false(*args)``; of one structure."""
    if not isinstance(predicate, Symbol):
        return true(*args) if bool(predicate) else false(*args)
    _check_scalar("cond", predicate)
    leaves, _ = nested.flatten(args)
    yes, form, first = _body(true, *args)
    no, other, second = _body(false, *args)
    _same("cond", "true and false return", _outputs(yes), _outputs(no), form, other)

    region = Region("cond", [yes, no], _outputs(yes), (1, len(leaves), len(first), len(second)))
    made = predicate.graph.call(region, predicate, *leaves, *first, *second)
    return nested.unflatten(form, _flat(made))


def while_loop(condition: Callable[..., Array], body: Callable[..., Any], *state: Any) -> Any:
    """Replaces ``state = body(*state)`` as long as ``condition(*state)`` holds; returns the last state, a tuple.

    Shapes and dtypes stay what they are. A body of one array may return it bare.
    """
    leaves, structure = nested.flatten(state)
    if not any(isinstance(a, Symbol) for a in leaves):
        while bool(condition(*state)):
            made = body(*state)
            state = made if isinstance(made, tuple) else (made,)
        return state
    again, _, first = _body(condition, *state)
    step, form, second = _body(body, *state)
    specs = [Spec(tuple(a.shape), np.dtype(a.dtype)) for a in leaves]
    _check_scalar("while_loop", again.outputs[0])
    got = form if isinstance(form, nested.Branch) else nested.Branch(tuple, (), (form,))
    _same("while_loop", "body returns and is given", _outputs(step), specs, got, structure)

    region = Region("while_loop", [again, step], specs, (len(leaves), len(first), len(second)))
    graph = next(a for a in leaves if isinstance(a, Symbol)).graph
    return nested.unflatten(structure, _flat(graph.call(region, *leaves, *first, *second)))


def scan(body: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any) -> tuple[Any, Any]:
    """Runs ``state, y = body(state, x)`` over the first axis of xs; returns the last state and all y, stacked.

    state, xs and y are arrays or nested containers of them.
    """
    rows, rows_form = nested.flatten(xs)
    leaves, form = nested.flatten(state)
    lengths = {a.shape[0] if a.shape else -1 for a in rows}
    if len(lengths) != 1 or lengths == {-1}:
        raise ShapeError(
            f"scan: xs have shapes {[tuple(a.shape) for a in rows]}; want one length along their first axis"
        )
    (length,) = lengths
    if not any(isinstance(a, Symbol) for a in (*leaves, *rows)):
        found = []
        for i in range(length):
            state, y = body(state, nested.unflatten(rows_form, [a[i] for a in rows]))
            found.append(y)
        if not found:
            raise ShapeError("scan: xs have length 0; want at least 1 outside a graph")
        stacked = nested.mapped(lambda *column: ops.concat([ops.reshape(a, (1, *a.shape)) for a in column]), *found)
        return state, stacked
    one = nested.unflatten(rows_form, [Spec(tuple(a.shape[1:]), np.dtype(a.dtype)) for a in rows])
    step, result, outside = _body(body, state, one)
    if not isinstance(result, nested.Branch) or len(result.items) != 2:
        raise AttrTypeError("scan: body returns something else than a pair; want (state, y)")
    specs = [Spec(tuple(a.shape), np.dtype(a.dtype)) for a in leaves]
    made = _outputs(step)
    _same("scan", "body returns and is given", made[: len(leaves)], specs, result.items[0], form)
    stacks = [Spec((length, *s.shape), s.dtype) for s in made[len(leaves) :]]

    region = Region("scan", [step], [*specs, *stacks], (len(leaves), len(rows), len(outside)))
    graph = next(a for a in (*leaves, *rows) if isinstance(a, Symbol)).graph
    flat = _flat(graph.call(region, *leaves, *rows, *outside))
    n = len(leaves)
    return nested.unflatten(form, flat[:n]), nested.unflatten(result.items[1], flat[n:])


def _outputs(graph: Graph) -> list[Spec]:
    return [Spec(v.shape, v.dtype) for v in graph.outputs]


def _check_scalar(name: str, value: Symbol | Value) -> None:
    if value.shape != () or value.dtype != np.bool_:
        raise ShapeError(f"{name}: the condition is {value.dtype} {value.shape}; want bool ()", op=name)


def _same(name: str, what: str, a: list[Spec], b: list[Spec], form: nested.Structure, other: nested.Structure) -> None:
    if not nested.alike(form, other) or [tuple(x) for x in a] != [tuple(x) for x in b]:
        left, right = ([f"{s.dtype} {s.shape}" for s in specs] for specs in (a, b))
        raise ShapeError(f"{name}: {what} {left} and {right}; want the same structure, shapes and dtypes", op=name)
