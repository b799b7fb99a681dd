"""Problems: an op, a dtype, a direction, operand shapes and attributes, written as one line that reproduces it.

``conv/float32/bwd x=1x64x56x56 w=64x64x3x3 b=64 padding=1`` is a problem: shapes are sizes joined by x, ``scalar`` for
none; attributes are Python literals; ``out=given`` hands the result array in. Dtype and direction may be left out.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core, registry
from tilework.errors import Error
from tilework.testing import Fill

DIRECTIONS = ("fwd", "bwd", "step")
DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "s8": "int8", "u8": "uint8"}
_MAX_BYTES = 1 << 34

Shape = tuple[int, ...]


class BenchError(Error, ValueError):
    """A request that the bench cannot serve: an unknown name, a malformed problem, a file it cannot use."""


@dataclass(frozen=True)
class Facts:
    """What a problem costs at least: arithmetic operations (None where the op does not count them) and bytes."""

    flops: float | None
    read: int
    written: int


@dataclass(frozen=True)
class Problem:
    """One thing to time. ``shapes`` has one entry per operand: a shape, a tuple of shapes for a list, or None."""

    op: str
    shapes: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    direction: str = "fwd"
    out_given: bool = False
    name: str = ""
    sets: tuple[str, ...] = ()

    @cached_property
    def target(self) -> Any:
        """The op itself."""
        return registry.ops()[self.op]

    @property
    def family(self) -> str:
        """The module the op lives in: conv, elementwise, ..."""
        return str(self.target.__module__).rsplit(".", 1)[-1]

    @cached_property
    def text(self) -> str:
        """The line that reproduces this problem."""
        direction = "" if self.direction == "fwd" else f"/{self.direction}"
        parts = [f"{self.op}/{self.dtype}{direction}"]
        for name, shape in zip(self.target.operands, self.shapes, strict=True):
            if shape is not None:
                parts.append(f"{name}={_shape_text(shape)}")
        parts += [f"{k}={_attr_text(v)}" for k, v in self.attrs.items()]
        return " ".join(parts + ["out=given"] * self.out_given)

    def operands(self, fill: Fill | None = None) -> tuple[Any, ...]:
        """The operands, the same values for the same problem in every process."""
        fill = fill or Fill(self.dtype)
        rule = self.target.rules.get("fills")
        if rule:
            return tuple(rule(fill, *self.shapes, **self.attrs))
        return tuple(None if s is None else _filled(fill, s) for s in self.shapes)

    def upstream(self, shape: Shape) -> Any:
        """The gradient that flows into the first result, the same in every process."""
        return np.random.default_rng(11).standard_normal(shape).astype(self.dtype)

    @cached_property
    def facts(self) -> Facts:
        """Counts for this problem, without computing it; raises what the op would raise."""
        operands = self.operands(_Zeros(self.dtype))
        given = [a for o in operands for a in (o if isinstance(o, list) else [o]) if a is not None]
        read = sum(a.size * a.itemsize for a in given)
        if self.target.is_view:
            self.target(*operands, **self.attrs)
            return Facts(None, 0, 0)
        specs, attrs = _core.infer(self.op, list(operands), dict(self.attrs))
        results = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in specs)
        inout = {n for n, role in _core.op_spec(self.op)["operands"] if role == "inout"}
        written = results + sum(
            o.size * o.itemsize
            for n, o in zip(self.target.operands, operands, strict=False)
            if n in inout and o is not None
        )
        rule = self.target.rules.get("flops")
        flops = float(rule(*self.shapes, **attrs)) if rule else None
        if self.direction == "fwd":
            return Facts(flops, read, written)
        # Two products of the size of the forward one; the gradients are as large as the operands.
        gradients = sum(
            o.size * o.itemsize
            for n, o in zip(self.target.operands, operands, strict=False)
            if n in self.target.differentiable and isinstance(o, np.ndarray)
        )
        if self.direction == "bwd":
            return Facts(flops and 2 * flops, read + results, gradients)
        return Facts(flops and 3 * flops, 2 * read + results, results + gradients)


class _Zeros(Fill):
    """Arrays of the right shape and dtype that take no memory."""

    def __call__(self, *shape: int) -> Any:
        return np.broadcast_to(np.zeros((), self.dtype), shape)

    positive = distinct = __call__

    def integers(self, *shape: int, low: int, high: int, dtype: Any = np.int64) -> Any:
        return np.broadcast_to(np.zeros((), dtype), shape)


def _filled(fill: Fill, shape: Any) -> Any:
    return [fill(*s) for s in shape] if shape and isinstance(shape[0], tuple) else fill(*shape)


def _shape_text(shape: Any) -> str:
    if shape and isinstance(shape[0], tuple):
        return ",".join(_shape_text(s) for s in shape)
    return "x".join(map(str, shape)) or "scalar"


def _attr_text(value: Any) -> str:
    if isinstance(value, str) and value.isidentifier() and _literal(value) == value:
        return value
    return repr(value).replace(" ", "")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# ---------------------------------------------------------------------------------------------------- from text


def known(what: str, name: str, names: Iterable[str]) -> str:
    """``name`` if it is one of ``names``, else an error that lists them, the nearest first."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"want one of {', '.join(names)}"
    raise BenchError(f"there is no {what} called '{name:.80}'; {hint}")


def dtype_named(text: str) -> str:
    """The numpy name of a dtype given as f32 or float32."""
    return DTYPES.get(text) or known("dtype", text, DTYPES.values())


def parse(line: str) -> Problem:
    """The problem that ``line`` states, checked as far as the op's shape rule can."""
    head, *fields = line.split()
    op, *rest = head.split("/")
    known("op", op, registry.ops())
    if len(rest) > 2 or "" in rest:
        raise BenchError(f"problem '{head:.80}' is malformed; want op/dtype/direction and then name=value")
    target = registry.ops()[op]
    direction = known("direction", rest.pop(), DIRECTIONS) if rest and rest[-1] in DIRECTIONS else "fwd"
    dtype = dtype_named(rest[0]) if rest else "float32"
    values: dict[str, str] = {}
    for text in fields:
        key, equals, value = text.partition("=")
        if not equals or not value or not key.isidentifier() or key in values:
            raise BenchError(
                f"'{text:.80}' in problem '{line:.120}' is malformed or repeated; want name=value once each"
            )
        values[key] = value
    shapes = tuple(
        _shape(values.pop(n), bool(getattr(target, "is_variadic", False)), line) if n in values else None
        for n in target.operands
    )
    if values.get("out", "given") != "given":
        raise BenchError(f"out={values['out']:.80} in problem '{line:.120}'; want out=given or nothing")
    out_given = values.pop("out", None) is not None
    attrs = {k: _literal(v) for k, v in values.items()}
    return checked(Problem(op, shapes, attrs, dtype, direction, out_given))


def _shape(text: str, is_list: bool, line: str) -> Any:
    if is_list:
        return tuple(_shape(part, False, line) for part in text.split(","))
    if text == "scalar":
        return ()
    sizes = text.split("x")
    if not all(s.isascii() and s.isdigit() and len(s) <= 12 for s in sizes):
        raise BenchError(f"shape '{text:.80}' in problem '{line:.120}' is malformed; want sizes joined by x, or scalar")
    return tuple(map(int, sizes))


def checked(problem: Problem) -> Problem:
    """``problem``, if its op accepts it and it fits in memory."""
    try:
        facts = problem.facts
    except (ArithmeticError, TypeError, ValueError, LookupError, NotImplementedError, MemoryError) as error:
        raise BenchError(f"problem '{problem.text:.200}': {error}") from None
    if facts.read + facts.written > _MAX_BYTES:
        raise BenchError(f"problem '{problem.text:.200}' takes {facts.read + facts.written} bytes; want at most 16 GiB")
    if problem.direction != "fwd" and not problem.target.differentiable:
        raise BenchError(f"problem '{problem.text:.200}': {problem.op} has no gradient; want direction fwd")
    return problem


def parse_lines(text: str, source: str) -> list[Problem]:
    """One problem per line; ``#`` starts a comment, which names the problem."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        body, _, comment = line.partition("#")
        if body.strip():
            try:
                found.append(replace(parse(body), name=comment.strip()))
            except BenchError as error:
                raise BenchError(f"{source}, line {number}: {error}") from None
    if not found:
        raise BenchError(f"{source} holds no problem; want one per line")
    return found


# ---------------------------------------------------------------------------------------------------- choosing


def every_workload() -> list[Problem]:
    """The workloads of every op of the registry; an op without any stands with the largest of its samples."""
    found: list[Problem] = []
    for name, target in registry.ops().items():
        variadic = bool(getattr(target, "is_variadic", False))
        rule = target.rules.get("workloads")
        if rule:
            for w in rule():
                shapes = (w.shapes,) if variadic else w.shapes + (None,) * (len(target.operands) - len(w.shapes))
                found.append(Problem(name, shapes, dict(w.attrs), name=w.name, sets=w.sets))
        elif "samples" in target.rules:
            found.extend(_largest_sample(name, target, variadic))
    return found


def _largest_sample(name: str, target: Any, variadic: bool) -> list[Problem]:
    candidates = []
    for s in target.rules["samples"](Fill("float32")):
        args = s.args + (None,) * (len(target.operands) - len(s.args))
        plain = [a for a in args if isinstance(a, np.ndarray)]
        if variadic or any(a is not None and not isinstance(a, np.ndarray) for a in args):
            continue
        if all(a.dtype == np.float32 for a in plain):
            shapes = tuple(None if a is None else a.shape for a in args)
            candidates.append((sum(a.size for a in plain), Problem(name, shapes, dict(s.attrs), name="largest sample")))
    return [max(candidates, key=lambda c: c[0])[1]] if candidates else []


def packaged_sets() -> dict[str, str]:
    """Text of the batch files beside this module, by name."""
    folder = resources.files("tilework.bench").joinpath("sets")
    return {f.name.removesuffix(".txt"): f.read_text() for f in folder.iterdir() if f.name.endswith(".txt")}


def set_names(workloads: Iterable[Problem]) -> list[str]:
    """Every set that ``--set`` knows."""
    workloads = list(workloads)
    return list(
        dict.fromkeys(
            [
                "default",
                "quick",
                *packaged_sets(),
                *(p.family for p in workloads),
                *(s for p in workloads for s in p.sets),
            ]
        )
    )


def select(
    sets: Iterable[str] = (), ops: Iterable[str] = (), dtypes: Iterable[str] = (), directions: Iterable[str] = ()
) -> list[Problem]:
    """Problems out of sets, files and problem lines, of the ops asked for, in the dtypes and directions asked for.

    Dtypes and directions apply to sets; a line or a file says its own.
    """
    workloads = every_workload()
    names = [known("op", o, registry.ops()) for o in ops]
    swept: list[Problem] = []
    stated: list[Problem] = []
    for one in list(sets) or ["default"]:
        if "=" in one or ("/" in one and not Path(one).exists()):
            stated.append(parse(one))
        elif one in packaged_sets():
            swept += parse_lines(packaged_sets()[one], f"set {one}") + [p for p in workloads if one in p.sets]
        elif Path(one).is_file():
            stated += parse_lines(_file_text(one), one)
        else:
            swept += _members(known("set or file", one, set_names(workloads)), workloads)
    found = []
    for p in swept:
        for dtype in [dtype_named(d) for d in dtypes] or [p.dtype]:
            for direction in [known("direction", d, DIRECTIONS) for d in directions] or [p.direction]:
                made = replace(p, dtype=dtype, direction=direction, out_given=p.out_given and direction == "fwd")
                if _is_possible(made):
                    found.append(made)
    chosen = [p for p in [*found, *stated] if not names or p.op in names]
    if not chosen:
        raise BenchError("no problem matches; `tilework bench list` shows what there is")
    return list({p.text: p for p in chosen}.values())


def _members(name: str, workloads: list[Problem]) -> list[Problem]:
    calls = parse_lines(packaged_sets()["calls"], "set calls")
    if name == "default":
        return workloads + calls
    if name == "quick":
        by_op: dict[str, Problem] = {}
        for p in sorted(workloads, key=lambda p: (p.facts.flops or 0) + p.facts.read + p.facts.written, reverse=True):
            by_op[p.op] = p
        return list(by_op.values()) + calls
    return [p for p in workloads if name in (*p.sets, p.family)]


def _is_possible(problem: Problem) -> bool:
    """Whether the op takes this dtype and has this direction: a sweep skips the rest."""
    try:
        checked(problem)
    except BenchError:
        return False
    return True


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from None
