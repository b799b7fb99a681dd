"""Nodes that run graphs: what a choice, a loop and a scan are inside a graph, and the gradients of these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import dispatch
from tilework.arrays import Array
from tilework.devices import queue_on, to_host
from tilework.dtypes import is_floating
from tilework.errors import DTypeError, ShapeError
from tilework.graph.build import Graph, Spec
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable

if TYPE_CHECKING:
    from tilework.graph.execute import Executable


class Region:
    """The op of a node that runs graphs: ``counts`` says how its operands are shared out among them."""

    is_view = False
    is_variadic = False

    def __init__(self, name: str, graphs: list[Graph], specs: list[Spec], counts: tuple[int, ...]) -> None:
        self.name, self.graphs, self.specs, self.counts = name, graphs, specs, counts
        self.operands = tuple(f"x{i}" for i in range(sum(counts)))
        self.rules: dict[str, Any] = {n: functools.partial(r, self) for n, r in RULES.get(name, {}).items()}
        self.differentiable = self.operands if self.rules else ()
        if name == "while_loop":
            self.rules["no_gradient"] = (
                "since it keeps nothing of its turns; want tilework.scan, which has a length, or stop_gradient"
            )
        self._compiled: dict[Any, list[Executable]] = {}  # by the queue that arrays are on, None for the CPU

    @property
    def effects(self) -> bool:
        """Whether a node of its graphs has effects."""
        return any(node.has_effects for g in self.graphs for node in g.nodes)

    def infer(self, operands: list[Any], attrs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Results as its graphs give them, for operands that its graphs take."""
        wanted, given, made = _SIGNATURES[self.name](self, [_kind(o) for o in operands], **attrs)
        if given != wanted:
            raise ShapeError(f"{self.name}: is given {_shown(given)}; want {_shown(wanted)}", op=self.name)
        if made != self.specs:
            raise ShapeError(f"{self.name}: gives {_shown(made)}; want {_shown(self.specs)}", op=self.name)
        return [(s.shape, s.dtype) for s in self.specs], attrs

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        traced = dispatch.recorder(args)
        if traced is not None:
            return traced.record(self, args, attrs)
        queue = next((a.queue for a in args if dispatch.is_device_array(a)), None)
        if queue not in self._compiled:
            self._compiled[queue] = [g.compile(device=queue) for g in self.graphs]
        made = tuple(RUNS[self.name](self, self._compiled[queue], self.parts(args), **attrs))
        return made[0] if len(made) == 1 else made

    def parts(self, arrays: Sequence[Any]) -> list[list[Any]]:
        """The operands as they are shared out."""
        left = iter(arrays)
        return [[next(left) for _ in range(n)] for n in self.counts]

    def step(self, node: Node) -> Callable[[list[Any], list[Any]], None]:
        """What a program calls: the graphs are compiled with it."""
        compiled = [g.compile() for g in self.graphs]

        def fill(operands: list[Any], results: list[Any]) -> None:
            made = RUNS[self.name](self, compiled, self.parts(operands), **node.attrs)
            for result, array in zip(results, made, strict=True):
                result[...] = array

        return fill


# A choice, and every turn of a loop, waits for the device that computes what it depends on; a scan waits for nothing.
def _run_cond(region: Region, compiled: list[Executable], parts: list[list[Any]]) -> list[Any]:
    (chosen,), given, *outside = parts
    branch = 0 if bool(to_host(chosen)) else 1
    return flat(compiled[branch](*given, *outside[branch]))


def _run_while(region: Region, compiled: list[Executable], parts: list[list[Any]]) -> list[Any]:
    now, first, second = parts
    while bool(to_host(compiled[0](*now, *first))):
        now = flat(compiled[1](*now, *second))
    return now


def _run_scan(region: Region, compiled: list[Executable], parts: list[list[Any]], reverse: bool = False) -> list[Any]:
    now, over, outside = parts
    n = len(now)
    device = compiled[0].device
    empty = np.empty if device is None else queue_on(device).empty
    stacked = [empty(s.shape, s.dtype) for s in region.specs[n:]]
    turns = range(len(over[0]))
    for i in reversed(turns) if reverse else turns:
        got = flat(compiled[0](*now, *(a[i, ...] for a in over), *outside))
        now = got[:n]
        for stack, y in zip(stacked, got[n:], strict=True):
            stack[i, ...] = y
    return [*now, *stacked]


# What a region of each kind takes, is given and makes, each as specs; a list that cannot be is an empty one.
Signature = tuple[list[Spec], list[Spec], list[Spec]]


def _kind(operand: Any) -> Spec:
    if not isinstance(operand, Value):
        raise DTypeError(f"a region: {operand!r:.80} is among its operands; want arrays of the graph")
    return Spec(operand.shape, operand.dtype)


def inputs_of(graph: Graph) -> list[Spec]:
    """Shapes and dtypes of what is fed to a graph."""
    return [Spec(v.shape, v.dtype) for v in graph.inputs]


def outputs_of(graph: Graph) -> list[Spec]:
    """Shapes and dtypes of what a graph gives."""
    return [Spec(v.shape, v.dtype) for v in graph.outputs]


def _shown(specs: list[Spec]) -> str:
    return ", ".join(f"{s.dtype} {s.shape}" for s in specs) or "nothing"


_HOLDS = Spec((), np.dtype(np.bool_))


def _cond_signature(region: Region, given: list[Spec]) -> Signature:
    yes, no = region.graphs
    one, n, first, second = region.counts
    ours, theirs = inputs_of(yes), inputs_of(no)
    agree = one == 1 and len(ours) == n + first and len(theirs) == n + second and ours[:n] == theirs[:n]
    made = outputs_of(yes) if outputs_of(yes) == outputs_of(no) else []
    return [_HOLDS, *ours, *theirs[n:]] if agree else [], given, made


def _while_signature(region: Region, given: list[Spec]) -> Signature:
    again, step = region.graphs
    n, first, second = region.counts
    ours, theirs, made = inputs_of(again), inputs_of(step), outputs_of(step)
    agree = len(ours) == n + first and len(theirs) == n + second and outputs_of(again) == [_HOLDS]
    agree = agree and ours[:n] == theirs[:n] == made
    return [*ours, *theirs[n:]] if agree else [], given, made


def _scan_signature(region: Region, given: list[Spec], reverse: bool = False) -> Signature:
    (step,) = region.graphs
    n, m, outside = region.counts
    ours, made, rows = inputs_of(step), outputs_of(step), given[n : n + m]
    lengths = {s.shape[0] if s.shape else -1 for s in rows}
    agree = len(ours) == n + m + outside and ours[:n] == made[:n] and len(lengths) == 1 and isinstance(reverse, bool)
    given = [*given[:n], *(Spec(s.shape[1:], s.dtype) for s in rows), *given[n + m :]]
    return ours if agree else [], given, [*made[:n], *(Spec((*lengths, *s.shape), s.dtype) for s in made[n:])]


_SIGNATURES = {"cond": _cond_signature, "while_loop": _while_signature, "scan": _scan_signature}
RUNS = {"cond": _run_cond, "while_loop": _run_while, "scan": _run_scan}


def flat(made: Any) -> list[Any]:
    """What a graph returns, as a list."""
    return list(made) if isinstance(made, tuple) else [made]


def replayed(graph: Graph, arrays: Sequence[Array]) -> list[Any]:
    """What a graph gives for arrays, symbols or followed ones: its ops are called again, one by one."""
    held: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Placeholder):
            continue
        if isinstance(op, Constant):
            made: Any = op.data
        elif isinstance(op, Variable):
            made = op
        else:
            operands = [
                [held[v] for v in o] if isinstance(o, tuple) else held[o] if isinstance(o, Value) else o
                for o in node.operands
            ]
            made = op(*operands, **node.attrs)
        held.update(zip(node.results, made if isinstance(made, tuple) else (made,), strict=True))
    return [held[v] for v in graph.outputs]


# ------------------------------------------------------------------------------------------------------ gradients


def _cond_pullback(
    region: Region, dys: list[Any], operands: list[Any], *, saved: None, wanted: frozenset[str]
) -> dict[str, Any]:
    """Takes the same branch again, and back."""
    from tilework.graph.control import cond

    (_, n, *outside) = region.counts
    first = [*range(1, 1 + n), *range(1 + n, 1 + n + outside[0])]
    second = [*range(1, 1 + n), *range(1 + n + outside[0], len(operands))]
    chosen = [i for i, name in enumerate(region.operands) if name in wanted]

    def back(graph: Graph, own: list[int]) -> Callable[..., list[Any]]:
        def run(given: list[Any], dys: list[Any]) -> list[Any]:
            mine = [i for i in own if i in chosen]
            found = dict(zip(mine, _pulled(graph, own, mine, [None, *given], dys), strict=True))
            return [found[i] if i in found else _zeros(operands[i]) for i in chosen]

        return run

    yes, no = (back(g, own) for g, own in zip(region.graphs, (first, second), strict=True))
    whole = [_or_zeros(dy, s) for dy, s in zip(dys, region.specs, strict=True)]
    grads = cond(operands[0], yes, no, operands[1:], whole)
    return {region.operands[i]: g for i, g in zip(chosen, grads, strict=True)}


def _scan_forward(region: Region, *operands: Any, reverse: bool = False) -> tuple[Any, Any]:
    """Keeps the state before each turn."""
    from tilework.graph.control import scan

    state, over, outside = region.parts(operands)

    def turn(state: list[Any], row: list[Any]) -> tuple[Any, Any]:
        made = replayed(region.graphs[0], [*state, *row, *outside])
        return made[: len(state)], (made[len(state) :], state)

    last, (ys, states) = scan(turn, state, over, reverse=reverse)
    made = (*last, *ys)
    return made[0] if len(made) == 1 else made, states


def _scan_pullback(
    region: Region, dys: list[Any], operands: list[Any], *, saved: Any, wanted: frozenset[str], reverse: bool = False
) -> dict[str, Any]:
    """Goes the turns back, each computed again from the state before it."""
    from tilework.graph.control import scan

    n, m, _ = region.counts
    carried = [i for i in range(n) if is_floating(operands[i].dtype)]
    chosen = [i for i in range(n, len(operands)) if region.operands[i] in wanted]
    rows, outside = [i for i in chosen if i < n + m], [i for i in chosen if i >= n + m]
    given = [k for k in range(n, len(dys)) if dys[k] is not None]

    def turn(later: tuple[list[Any], list[Any]], at: tuple[list[Any], list[Any], list[Any]]) -> tuple[Any, Any]:
        (behind, sums), (row, state, of_ys) = later, at
        own = [*state, *row, *operands[n + m :]]
        dy: list[Any] = [None] * len(dys)
        for k, d in (*zip(carried, behind, strict=True), *zip(given, of_ys, strict=True)):
            dy[k] = d
        mine = [*carried, *rows, *outside]
        found = dict(zip(mine, _pulled(region.graphs[0], range(len(own)), mine, own, dy), strict=True))
        total = [s + found[i] for s, i in zip(sums, outside, strict=True)]
        return ([found[i] for i in carried], total), [found[i] for i in rows]

    begin = [_or_zeros(dys[i], region.specs[i]) for i in carried], [_zeros(operands[i]) for i in outside]
    over = operands[n : n + m], saved, [dys[k] for k in given]
    (behind, sums), of_rows = scan(turn, begin, over, reverse=not reverse)
    places, grads = [*carried, *rows, *outside], [*behind, *of_rows, *sums]
    return {region.operands[i]: g for i, g in zip(places, grads, strict=True)}


def _pulled(graph: Graph, own: Sequence[int], mine: Sequence[int], given: Sequence[Any], dys: list[Any]) -> list[Any]:
    """Gradients of a graph, whose inputs are ``own`` of what is given, in those of them numbered by ``mine``."""
    from tilework.autodiff import vjp

    def forward(followed: list[Any]) -> list[Any]:
        held = dict(zip(mine, followed, strict=True))
        return replayed(graph, [held.get(i, given[i]) for i in own])

    made, pullback = vjp(forward, [given[i] for i in mine])
    whole = [dy if is_floating(y.dtype) else None for dy, y in zip(dys, made, strict=True)]
    (found,) = pullback(whole)
    return list(found)


def _zeros(like: Any) -> Array:
    return np.zeros(tuple(like.shape), like.dtype)


def _or_zeros(dy: Any, like: Spec) -> Any:
    return _zeros(like) if dy is None else dy


RULES: dict[str, dict[str, Callable[..., Any]]] = {
    "cond": {"pullback": _cond_pullback},
    "scan": {"pullback": _scan_pullback, "forward": _scan_forward},
}
