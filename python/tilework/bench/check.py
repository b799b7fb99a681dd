"""Correct before fast: results against the float64 reference, gradients against a directional difference of it."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core, registry, testing
from tilework.backends import reference
from tilework.bench.problems import Problem
from tilework.dtypes import finfo, is_floating, named

_PEER_TOLERANCE = 1e-3  # relative to element plus root mean square: peers may sum in another order, or less exactly
_QUANTISED = 0.2  # peers of a layer that quantises its operand may quantise it in other groups
_PEER_ROUNDINGS = 4  # of a 16-bit type, which a peer may round to between its steps
_GRADIENT_TOLERANCE = 2e-4  # of the norm of the terms of the directional derivative
_STEP = 2.0**-27
_MOST_SCORES = 1 << 24  # of the float64 reference of attention; of more, a few heads stand for all
_STAIRCASES = ("cast", "conv_int8", "linear_int8")  # whose gradient passes through their rounding, which has no slope


def sampled(problem: Problem, operands: tuple[Any, ...]) -> Callable[[str, Any], Any] | None:
    """Takes the sampled heads out of an operand or ``"y"``, for attention whose reference would fill gigabytes.

    Heads never meet, and a few of them, the first and the last among them, show what all do. None: all are checked.
    """
    if problem.op != "attention" or any(o is not None for o in operands[3:]):
        return None
    q, k = operands[:2]
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= _MOST_SCORES:
        return None
    kept = sorted({0, k.shape[1] // 2, k.shape[1] - 1})
    group = q.shape[1] // k.shape[1]
    queries = [head * group + i for head in kept for i in range(group)]
    return lambda name, x: np.ascontiguousarray(x[:, kept if name in "kv" else queries])


def expected(problem: Problem, operands: tuple[Any, ...]) -> tuple[list[Any], list[Any], list[Any]]:
    """Reference results in float64, the bound of each element's error, and the dtypes of the results."""
    wide, dtypes = testing.expected(problem.target, operands, problem.attrs)
    if problem.target.is_view:
        return list(wide), [np.zeros(w.shape) for w in wide], dtypes
    return list(wide), testing.bounds(problem.target, operands, problem.attrs, wide, dtypes), dtypes


def mismatch(got: list[Any], want: tuple[list[Any], list[Any], list[Any]]) -> str:
    """``""`` if every result is within its bound of what :func:`expected` said, else one line on the worst element."""
    if len(got) != len(want[0]):
        return f"{len(got)} results; want {len(want[0])}"
    try:
        for g, wide, bound, dtype in zip(got, *want, strict=True):
            testing.assert_close(np.asarray(g), wide, bound, dtype)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return ""


def _eps(dtype: str) -> float:
    kind = named(dtype)
    return float(finfo(kind).eps) if is_floating(kind) else 0.0


def peer_mismatch(got: list[Any], want: list[Any], problem: Problem) -> str:
    """Whether a peer computed the same thing at all; ``want`` is what :func:`load` returned."""
    tolerance = max(_PEER_TOLERANCE, _PEER_ROUNDINGS * _eps(problem.dtype))
    if problem.op in ("linear_int8", "conv_int8"):
        tolerance = _QUANTISED
    roles = () if problem.target.is_view else dict(_core.op_spec(problem.op)["operands"]).values()
    # What an op updates in place, a peer updates where it keeps it.
    if len(got) < len(want) and not any("inout" in r for r in roles):
        return f"{len(got)} results; want {len(want)}"
    for g, w in zip(got, want, strict=False):
        if g.shape != w.shape and g.squeeze().shape != w.squeeze().shape:
            return f"result has shape {g.shape}; want {w.shape}"
        error = np.abs(g.astype(np.float64).reshape(w.shape) - w)
        finite = np.where(np.isfinite(w), w, 0.0)
        scale = math.sqrt(float(np.mean(np.square(finite)))) if w.size else 0.0
        # A tie may round to either side in a peer's integers.
        slack = 1.0 if g.dtype.kind in "iu" and g.dtype.itemsize == 1 else 0.0
        wrong = np.isfinite(w) & ~(error <= tolerance * (np.abs(finite) + scale) + slack)
        # One in a million may be the tail of what rounding 16 bits does.
        if np.count_nonzero(wrong) > w.size // 1_000_000:
            return f"{np.count_nonzero(wrong)} of {w.size} elements differ by more than {tolerance:.2g}"
    return ""


def gradient_mismatch(problem: Problem, operands: tuple[Any, ...], dy: Any, gradients: dict[str, Any]) -> str:
    """``""`` if the gradients' inner product with a random direction is the reference's central difference along it."""
    fill = np.random.default_rng(7)
    named = dict(zip(problem.target.operands, operands, strict=True))
    wide: dict[str, Any] = {n: reference.widen(o) for n, o in named.items()}
    ahead, behind = dict(wide), dict(wide)
    analytic, square = 0.0, 0.0
    for name, gradient in gradients.items():
        shapes = [np.shape(g) for g in gradient] if isinstance(gradient, list) else np.shape(gradient)
        if shapes != ([w.shape for w in wide[name]] if isinstance(gradient, list) else wide[name].shape):
            return f"gradient of {name} has shape {shapes}"
        many = isinstance(gradient, list)
        if not all(np.isfinite(np.asarray(g, np.float64)).all() for g in (gradient if many else [gradient])):
            return f"gradient of {name} is not finite"
        directions = [fill.standard_normal(np.shape(g)) for g in (gradient if many else [gradient])]
        for g, d in zip(gradient if many else [gradient], directions, strict=True):
            terms = np.asarray(g, np.float64) * d
            analytic += float(terms.sum())
            square += float(np.square(terms).sum())
        steps = [_STEP * d for d in directions]
        ahead[name], behind[name] = _moved(wide[name], steps), _moved(wide[name], [-s for s in steps])
    if problem.op in _STAIRCASES:
        return ""
    attrs = registry.resolve(problem.target, operands, dict(problem.attrs))
    rule = problem.target.rules["reference"]
    with np.errstate(all="ignore"):
        results = [rule(*(side[n] for n in problem.target.operands), **attrs) for side in (ahead, behind)]
    sloped = registry.sloped_result(problem.target)
    there, back = (r[sloped] if isinstance(r, tuple) else r for r in results)
    numeric = float(np.sum(np.asarray(dy, np.float64) * (there - back))) / (2 * _STEP)
    tolerance = max(_GRADIENT_TOLERANCE, _eps(problem.dtype))
    # Terms of a gradient that cancel exactly leave what rounding left of dy.
    rounding = _eps(problem.dtype) * float(np.linalg.norm(np.asarray(dy, np.float64)))
    if abs(numeric - analytic) <= tolerance * math.sqrt(square) + rounding + 1e-12:
        return ""
    return f"gradient along a random direction is {analytic:.9g}; want {numeric:.9g}"


def _moved(value: Any, steps: list[Any]) -> Any:
    return [v + s for v, s in zip(value, steps, strict=True)] if isinstance(value, list) else value + steps[0]


def shared_operands(problem: Problem, path: str) -> tuple[Any, ...]:
    """The operands of a problem, from the file where another worker left them, or made and left there."""
    if not path or problem.sample is not None:  # a sample may be a view, which a file would not keep
        return problem.operands()
    if Path(path).exists():
        with Path(path).open("rb") as kept:
            if pickle.load(kept) == problem.text:
                return tuple(pickle.load(kept))
    made = problem.operands()
    with Path(path).open("wb") as left:
        pickle.dump(problem.text, left)
        pickle.dump(made, left, protocol=5)
    return made


def save(path: str, results: list[Any]) -> None:
    """Writes what peers are compared with."""
    arrays = [np.asarray(r) for r in results]
    np.savez(path, *[a.astype(np.float32) if is_floating(a.dtype) else a for a in arrays])


def load(path: str) -> list[Any]:
    """Reads what :func:`save` wrote."""
    if not Path(path).exists():
        return []
    with np.load(path) as stored:
        return [stored[k].astype(np.float64) for k in stored.files]
