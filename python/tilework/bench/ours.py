"""tilework's own contestants: the call as users write it, on the CPU or an OpenCL device, and with prepared weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilework import _core, testing
from tilework.bench import check
from tilework.bench.peers import Contestant
from tilework.bench.problems import Problem
from tilework.devices import synchronize, to_device, to_host
from tilework.registry import sloped_result


def calls(problem: Problem, operands: tuple[Any, ...], device: str = "cpu") -> dict[str, Contestant]:
    """``tilework``, and ``tilework prepared`` where the op has weights that can be handed over beforehand."""
    op, attrs = problem.target, dict(problem.attrs)
    finish = None
    if device != "cpu":
        operands = tuple(_to_device(o, device) for o in operands)
        finish = synchronize
    if problem.direction != "fwd":
        return {"tilework": _gradient(problem, operands, finish)}
    if problem.out_given:
        out = op(*operands, **attrs)
        return {"tilework": _called(problem, operands, {**attrs, "out": out}, finish)}
    found = {"tilework": _called(problem, operands, attrs, finish)}
    names = op.operands
    if "w" in names and "x" in names and "flops" in op.rules and device == "cpu":
        weights = {n: o for n, o in zip(names, operands, strict=True) if n != "x" and o is not None}
        prepared, x = op.prepare(**weights, **attrs), operands[names.index("x")]
        found["tilework prepared"] = Contestant(lambda: prepared(x), prepacked=True)
    return found


def _called(problem: Problem, operands: tuple[Any, ...], attrs: dict[str, Any], finish: Any) -> Contestant:
    op, given = problem.target, operands
    while given and given[-1] is None:
        given = given[:-1]

    def answer() -> list[Any]:
        results = testing.results_of(op, list(given), attrs)
        return [np.asarray(to_host(r)) for r in results]

    return Contestant(lambda: op(*given, **attrs), finish=finish, answer=answer)


def _gradient(problem: Problem, operands: tuple[Any, ...], finish: Any) -> Contestant:
    op, attrs = problem.target, dict(problem.attrs)
    results, saved = op.forward(*operands, **attrs)
    y = results[sloped_result(op)] if isinstance(results, tuple) else results
    dy = problem.upstream(tuple(y.shape))
    if finish:
        dy = to_device(dy, like=y)

    def backward() -> Any:
        return op.backward(dy, *operands, saved=saved, **attrs)

    def step() -> Any:
        return op.backward(dy, *operands, saved=op.forward(*operands, **attrs)[1], **attrs)

    return Contestant(backward if problem.direction == "bwd" else step, finish=finish)


def _to_device(value: Any, device: str) -> Any:
    if isinstance(value, list):
        return [_to_device(v, device) for v in value]
    return value if value is None else to_device(value, device)


def expected(problem: Problem, operands: tuple[Any, ...]) -> Any:
    """What :func:`check_answer` wants of a forward pass: the reference, of sampled heads where it is too large."""
    if problem.direction != "fwd":
        return None
    part = check.sampled(problem, operands)
    return check.expected(problem, operands if part is None else _cut(part, problem, operands))


def _cut(part: Any, problem: Problem, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if o is None else part(n, o) for n, o in zip(problem.target.operands, operands, strict=True))


def check_answer(
    problem: Problem, operands: tuple[Any, ...], contestant: Contestant, want: Any
) -> tuple[str, list[Any]]:
    """(what is wrong, ``""`` if nothing; the results peers are compared with).

    Those are the reference's, and where it is taken of a sample ours, which the sample has shown to be right.
    """
    part = check.sampled(problem, operands)
    if problem.direction == "fwd":
        got = contestant.results()
        if part is None:
            return check.mismatch(got, want), list(want[0])
        return check.mismatch([part("y", g) for g in got], want), got
    gradients = contestant.call()
    last = problem.target.rules["where_given"]
    names = [n for n, o in zip(problem.target.operands, operands, strict=True) if o is not None or n not in last]
    named = dict(zip(names, gradients if len(operands) > 1 else (gradients,), strict=True))
    host = {n: [_host(g) for g in v] if isinstance(v, list) else _host(v) for n, v in named.items() if v is not None}
    results = [g for v in host.values() for g in (v if isinstance(v, list) else [v])]
    dy = problem.upstream(_first_shape(problem, operands))
    if part is not None:
        host = {n: part(n, g) for n, g in host.items()}
        operands, dy = _cut(part, problem, operands), part("y", dy)
    return check.gradient_mismatch(problem, operands, dy, host), results


def _first_shape(problem: Problem, operands: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of the first result."""
    if problem.target.is_view:
        return tuple(problem.target(*operands, **problem.attrs).shape)
    specs, _ = _core.infer(problem.op, list(operands), dict(problem.attrs))
    return tuple(specs[0][0])


def _host(gradient: Any) -> Any:
    return np.asarray(to_host(gradient))
