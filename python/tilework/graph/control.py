"""Control flow inside a graph: a choice, a loop and a scan, whose branches and bodies are graphs of their own.

Called on arrays, each does at once what it would do in a graph. Gradients go through cond and scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import dispatch, nested, ops
from tilework.arrays import Array
from tilework.autodiff import stop_gradient
from tilework.errors import AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.graph.build import Graph, Spec, trace
from tilework.graph.regions import Region, flat, outputs_of
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


def _check_functions(name: str, **functions: Any) -> None:
    for argument, function in functions.items():
        if not callable(function):
            what = f"{name}: {argument} is a {type(function).__name__}; want a function"
            raise AttrTypeError(what, op=name, argument=argument)


def _arrays(name: str, argument: str, tree: Any) -> tuple[list[Any], nested.Structure]:
    """The arrays in nested containers, and their structure; numpy's scalars, which its sums give, are arrays too."""
    leaves, form = nested.flatten(tree)
    arrays = [np.asarray(leaf) if isinstance(leaf, np.generic) else leaf for leaf in leaves]
    for leaf, path in zip(arrays, nested.paths(form, argument), strict=True):
        if dispatch.backend_of(name, path, leaf) == "" and not isinstance(leaf, dispatch.Traced):
            raise DTypeError(f"{name}: {path} is a {type(leaf).__name__}; want an array", op=name, argument=argument)
    return arrays, form


def _holds(name: str, condition: Any) -> bool:
    """Whether a condition that is known holds."""
    if not isinstance(condition, bool):
        _check_scalar(name, condition)
    return bool(condition)


def cond(predicate: Array, true: Callable[..., Any], false: Callable[..., Any], *args: Any) -> Any:
    """``true(*args)`` if predicate, a boolean array of shape (), holds, else ``false(*args)``; of one structure."""
    _check_functions("cond", true=true, false=false)
    leaves, structure = _arrays("cond", "args", args)
    if not _is_symbol(predicate):
        return true(*args) if _holds("cond", predicate) else false(*args)
    _check_scalar("cond", predicate)
    given = nested.unflatten(structure, leaves)
    yes, form, first = _body(true, *given)
    no, other, second = _body(false, *given)
    _same("cond", "true and false return", outputs_of(yes), outputs_of(no), form, other)

    region = Region("cond", [yes, no], outputs_of(yes), (1, len(leaves), len(first), len(second)))
    return nested.unflatten(form, flat(region(predicate, *leaves, *first, *second)))


def while_loop(condition: Callable[..., Array], body: Callable[..., Any], *state: Any) -> Any:
    """Replaces ``state = body(*state)`` as long as ``condition(*state)`` holds; returns the last state, a tuple.

    Shapes and dtypes stay what they are. A body of one array may return it bare.
    """
    _check_functions("while_loop", condition=condition, body=body)
    leaves, structure = _arrays("while_loop", "state", state)
    specs = _specs(leaves)
    if not any(_is_symbol(a) for a in leaves):
        while _holds("while_loop", condition(*state)):
            made = body(*state)
            state = made if isinstance(made, tuple) else (made,)
            _check_state("while_loop", state, specs, structure)
        return state
    state = nested.unflatten(structure, leaves)
    again, alone, first = _body(condition, *state)
    step, form, second = _body(body, *state)
    if not isinstance(alone, nested.Leaf):
        raise AttrTypeError(f"while_loop: condition returns {nested.written(alone)}; want one array", op="while_loop")
    _check_scalar("while_loop", again.outputs[0])
    got = form if isinstance(form, nested.Branch) else nested.Branch(tuple, (), (form,))
    _same("while_loop", "body returns and is given", outputs_of(step), specs, got, structure)

    region = Region("while_loop", [again, step], specs, (len(leaves), len(first), len(second)))
    return nested.unflatten(structure, flat(region(*leaves, *first, *second)))


def scan(body: Callable[[Any, Any], tuple[Any, Any]], state: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """Runs ``state, y = body(state, x)`` over the first axis of xs; returns the last state and all y, stacked.

    state, xs and y are arrays or nested containers of them; ``reverse`` begins with the last x, and y stay in their
    places. A gradient computes each turn again, from the states before them, which are kept.
    """
    _check_functions("scan", body=body)
    rows, rows_form = _arrays("scan", "xs", xs)
    leaves, form = _arrays("scan", "state", state)
    if not isinstance(reverse, bool):
        raise AttrTypeError(f"scan: reverse={reverse!r:.80}; want a bool", op="scan", argument="reverse")
    specs = _specs(leaves)
    lengths = {a.shape[0] if a.shape else -1 for a in rows}
    if len(lengths) != 1 or lengths == {-1}:
        raise ShapeError(
            f"scan: xs have shapes {[tuple(a.shape) for a in rows]}; want one length along their first axis"
        )
    (length,) = lengths
    if not any(_is_symbol(a) for a in (*leaves, *rows)):
        found = []
        for i in reversed(range(length)) if reverse else range(length):
            made = body(state, nested.unflatten(rows_form, [a[i, ...] for a in rows]))
            if not isinstance(made, (tuple, list)) or len(made) != 2:
                raise AttrTypeError(_NO_PAIR, op="scan")
            state, y = made
            _check_state("scan", state, specs, form)
            arrays, its = _arrays("scan", "y", y)
            found.append(nested.unflatten(its, arrays))
        if not found:
            raise ShapeError("scan: xs have length 0; want at least 1 outside a graph")
        if reverse:
            found.reverse()
        stacked = nested.mapped(lambda *column: ops.concat([ops.reshape(a, (1, *a.shape)) for a in column]), *found)
        return state, stacked
    one = nested.unflatten(rows_form, [Spec(tuple(a.shape[1:]), np.dtype(a.dtype)) for a in rows])
    step, result, outside = _body(body, nested.unflatten(form, leaves), one)
    if not isinstance(result, nested.Branch) or len(result.items) != 2:
        raise AttrTypeError(_NO_PAIR, op="scan")
    outputs = outputs_of(step)
    _same("scan", "body returns and is given", outputs[: len(leaves)], specs, result.items[0], form)
    stacks = [Spec((length, *s.shape), s.dtype) for s in outputs[len(leaves) :]]

    region = Region("scan", [step], [*specs, *stacks], (len(leaves), len(rows), len(outside)))
    got = flat(region(*leaves, *rows, *outside, reverse=reverse))
    n = len(leaves)
    return nested.unflatten(form, got[:n]), nested.unflatten(result.items[1], got[n:])


_NO_PAIR = "scan: body returns something else than a pair; want (state, y)"


def _specs(arrays: list[Any]) -> list[Spec]:
    return [Spec(tuple(a.shape), np.dtype(a.dtype)) for a in arrays]


def _check_scalar(name: str, value: Any) -> None:
    if getattr(value, "shape", None) != () or value.dtype != np.bool_:
        what = f"{value.dtype} {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
        raise ShapeError(f"{name}: the condition is {what}; want bool ()", op=name)


def _check_state(name: str, state: Any, specs: list[Spec], wanted: nested.Structure) -> None:
    """Refuses a state that differs from the one before in structure, shapes or dtypes."""
    made, form = _arrays(name, "state", state)
    _same(name, "body returns and is given", _specs(made), specs, form, wanted)


def _same(name: str, what: str, a: list[Spec], b: list[Spec], form: nested.Structure, other: nested.Structure) -> None:
    if not nested.alike(form, other) or [tuple(x) for x in a] != [tuple(x) for x in b]:
        left, right = ([f"{s.dtype} {s.shape}" for s in specs] for specs in (a, b))
        raise ShapeError(f"{name}: {what} {left} and {right}; want the same structure, shapes and dtypes", op=name)
