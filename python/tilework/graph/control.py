"""Control flow inside a graph: a choice, a loop and a scan, whose branches and bodies are graphs of their own.

Called on arrays, each does at once what it would do in a graph. Gradients go through cond and scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import nested, ops
from tilework.arrays import Array
from tilework.autodiff import stop_gradient
from tilework.errors import AttrTypeError, ShapeError, UnsupportedError
from tilework.graph.build import Graph, Spec, trace
from tilework.graph.ir import Value
from tilework.graph.regions import Region, flat
from tilework.graph.symbol import Symbol


def _is_symbol(a: Any) -> bool:
    return isinstance(stop_gradient(a), Symbol)


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
    if not _is_symbol(predicate):
        return true(*args) if bool(predicate) else false(*args)
    _check_scalar("cond", predicate)
    leaves, _ = nested.flatten(args)
    yes, form, first = _body(true, *args)
    no, other, second = _body(false, *args)
    _same("cond", "true and false return", _outputs(yes), _outputs(no), form, other)

    region = Region("cond", [yes, no], _outputs(yes), (1, len(leaves), len(first), len(second)))
    return nested.unflatten(form, flat(region(predicate, *leaves, *first, *second)))


def while_loop(condition: Callable[..., Array], body: Callable[..., Any], *state: Any) -> Any:
    """Replaces ``state = body(*state)`` as long as ``condition(*state)`` holds; returns the last state, a tuple.

    Shapes and dtypes stay what they are. A body of one array may return it bare.
    """
    leaves, structure = nested.flatten(state)
    if not any(_is_symbol(a) for a in leaves):
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
    return nested.unflatten(structure, flat(region(*leaves, *first, *second)))


def scan(body: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """Runs ``state, y = body(state, x)`` over the first axis of xs; returns the last state and all y, stacked.

    state, xs and y are arrays or nested containers of them; ``reverse`` begins with the last x, and y stay in their
    places. A gradient computes each turn again, from the states before them, which are kept.
    """
    rows, rows_form = nested.flatten(xs)
    leaves, form = nested.flatten(state)
    lengths = {a.shape[0] if a.shape else -1 for a in rows}
    if len(lengths) != 1 or lengths == {-1}:
        raise ShapeError(
            f"scan: xs have shapes {[tuple(a.shape) for a in rows]}; want one length along their first axis"
        )
    (length,) = lengths
    if not any(_is_symbol(a) for a in (*leaves, *rows)):
        found = []
        for i in reversed(range(length)) if reverse else range(length):
            state, y = body(state, nested.unflatten(rows_form, [a[i, ...] for a in rows]))
            found.append(y)
        if not found:
            raise ShapeError("scan: xs have length 0; want at least 1 outside a graph")
        if reverse:
            found.reverse()
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
    got = flat(region(*leaves, *rows, *outside, reverse=reverse))
    n = len(leaves)
    return nested.unflatten(form, got[:n]), nested.unflatten(result.items[1], got[n:])


def _outputs(graph: Graph) -> list[Spec]:
    return [Spec(v.shape, v.dtype) for v in graph.outputs]


def _check_scalar(name: str, value: Symbol | Value) -> None:
    if value.shape != () or value.dtype != np.bool_:
        raise ShapeError(f"{name}: the condition is {value.dtype} {value.shape}; want bool ()", op=name)


def _same(name: str, what: str, a: list[Spec], b: list[Spec], form: nested.Structure, other: nested.Structure) -> None:
    if not nested.alike(form, other) or [tuple(x) for x in a] != [tuple(x) for x in b]:
        left, right = ([f"{s.dtype} {s.shape}" for s in specs] for specs in (a, b))
        raise ShapeError(f"{name}: {what} {left} and {right}; want the same structure, shapes and dtypes", op=name)
