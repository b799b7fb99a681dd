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
from typing import Any

import numpy as np

from tilework import _core, registry
from tilework.dispatch import bind_operands
from tilework.dtypes import named
from tilework.errors import Error
from tilework.registry import Sample, Workload
from tilework.testing import Fill, Zeros, workload_operands

DIRECTIONS = ("fwd", "bwd", "step")
DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "s8": "int8",
    "u8": "uint8",
    "s16": "int16",
    "u16": "uint16",
    "s32": "int32",
    "s64": "int64",
    "bool": "bool",
}
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
    arithmetic: str  # the element type of its multiplications


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
    sample: int | None = None  # of an op without workloads: which of its samples this is

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
        if self.sample is not None:
            return f"{parts[0]} sample={self.sample}"
        for name, shape in zip(self.target.operands, self.shapes, strict=True):
            if shape is not None:
                parts.append(f"{name}={_shape_text(shape)}")
        parts += [f"{k}={_attr_text(v)}" for k, v in self.attrs.items()]
        return " ".join(parts + ["out=given"] * self.out_given)

    def operands(self, fill: Fill | None = None) -> tuple[Any, ...]:
        """The operands, the same values for the same problem in every process."""
        fill = fill or Fill(self.dtype)
        if self.sample is not None:
            return sample_of(self.target, self.dtype, self.sample).args
        shapes = self.shapes[0] if getattr(self.target, "is_variadic", False) else self.shapes
        return workload_operands(self.target, Workload(self.name, shapes, self.attrs), fill)

    def upstream(self, shape: Shape) -> Any:
        """The gradient that flows into the first result, the same in every process."""
        return np.random.default_rng(11).standard_normal(shape).astype(named(self.dtype))

    @cached_property
    def facts(self) -> Facts:
        """Counts for this problem, without computing it; raises what the op would raise."""
        with np.errstate(all="ignore"):
            operands = self.operands(Zeros(self.dtype))
        given = list(zip(self.target.operands, operands, strict=False))
        if self.target.is_view:
            self.target(*operands, **self.attrs)
            return Facts(None, 0, 0, "")
        specs, attrs = _core.infer(self.op, list(operands), dict(self.attrs))
        roles = dict(_core.op_spec(self.op)["operands"])
        results = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in specs)
        read = sum(_size(o) for _, o in given)
        written = results + sum(_size(o) for n, o in given if roles.get(n) == "inout")
        rules, shapes = self.target.rules, self.shapes
        if "bytes" in rules:
            read, written = rules["bytes"](*shapes, **attrs)
        flops = float(rules["flops"](*shapes, **attrs)) if "flops" in rules else None
        arithmetic = _arithmetic(
            [a.dtype.name for _, o in given for a in (o if isinstance(o, list) else [o]) if _size(a)]
        )
        if self.direction == "fwd":
            return Facts(flops, read, written, arithmetic)
        # Two products of the size of the forward one; the gradients are as large as the operands.
        gradients = sum(_size(o) for n, o in given if n in self.target.differentiable)
        if self.direction == "bwd":
            return Facts(flops and 2 * flops, read + results, gradients, arithmetic)
        return Facts(flops and 3 * flops, 2 * read + results, results + gradients, arithmetic)


def sample_of(target: Any, dtype: str, index: int) -> Sample:
    """A sample of an op with one operand per name, None where not given."""
    made = list(target.rules["samples"](Fill(dtype)))
    if index >= len(made):
        raise BenchError(f"{target.name} has {len(made)} samples; want sample=0 to sample={len(made) - 1}")
    args = bind_operands(target, made[index].args, {})
    return Sample(tuple(list(a) if isinstance(a, tuple) else a for a in args), dict(made[index].attrs))


def _size(operand: Any) -> int:
    arrays = operand if isinstance(operand, list) else [operand]
    return sum(a.size * a.itemsize for a in arrays if a is not None)


def _arithmetic(dtypes: list[str]) -> str:
    """The type that decides how fast multiplications can be: 8-bit integers, bfloat16, or the first operand's."""
    for narrow, kind in (("int8", "int8"), ("uint8", "int8"), ("bfloat16", "bfloat16")):
        if narrow in dtypes:
            return kind
    return dtypes[0] if dtypes else ""


def _shape_text(shape: Any) -> str:
    if shape and isinstance(shape[0], tuple):
        return ",".join(_shape_text(s) for s in shape)
    return "x".join(map(str, shape)) or "scalar"


def _attr_text(value: Any) -> str:
    if isinstance(value, str):
        bare = value and not set(value) & set(" \t\n\r\f\v'\"\\") and _literal(value) == value
        return value if bare else repr(value).replace(" ", "\\x20")
    return repr(value).replace(" ", "")


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, float):  # float: inf and nan
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
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
    from tilework.bench.networks import NETWORKS, NetworkProblem  # which are problems themselves

    head, *fields = line.split()
    op, *rest = head.split("/")
    known("op", op, [*registry.ops(), *NETWORKS])
    if len(rest) > 2 or "" in rest:
        raise BenchError(f"problem '{head:.80}' is malformed; want op/dtype/direction and then name=value")
    target: Any = NETWORKS[op] if op in NETWORKS else registry.ops()[op]
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
    if op in registry.ops() and "sample" in values and "sample" not in target.operands and "samples" in target.rules:
        number = values.pop("sample")
        if values or not (number.isascii() and number.isdigit() and len(number) < 6):
            raise BenchError(f"problem '{line:.120}' is malformed; want sample=N and nothing else")
        return checked(of_sample(op, dtype, int(number), direction))
    shapes = tuple(
        _shape(values.pop(n), i == 0 and bool(getattr(target, "is_variadic", False)), line) if n in values else None
        for i, n in enumerate(target.operands)
    )
    if values.get("out", "given") != "given":
        raise BenchError(f"out={values['out']:.80} in problem '{line:.120}'; want out=given or nothing")
    out_given = values.pop("out", None) is not None
    attrs = {k: _literal(v) for k, v in values.items()}
    kind = NetworkProblem if op in NETWORKS else Problem
    return checked(kind(op, shapes, attrs, dtype, direction, out_given))


def _shape(text: str, is_list: bool, line: str) -> Any:
    if is_list:
        return tuple(_shape(part, False, line) for part in text.split(","))
    if text == "scalar":
        return ()
    sizes = text.split("x")
    if not all(s.isascii() and s.isdigit() and len(s) <= 12 for s in sizes):
        raise BenchError(f"shape '{text:.80}' in problem '{line:.120}' is malformed; want sizes joined by x, or scalar")
    return tuple(map(int, sizes))


def of_sample(op: str, dtype: str, index: int, direction: str = "fwd") -> Problem:
    """One of the samples of an op, as a problem."""
    made = sample_of(registry.ops()[op], dtype, index)
    shapes = tuple(
        tuple(np.shape(a) for a in o) if isinstance(o, list) else None if o is None else np.shape(o) for o in made.args
    )
    return Problem(op, shapes, made.attrs, dtype, direction, name=f"sample {index}", sample=index)


def of_dtype(problem: Problem, dtype: str) -> Problem:
    """The same problem in another element type, on which the shapes of a sample may depend."""
    if problem.sample is None or dtype not in registry.dtypes_of(problem.target):
        return replace(problem, dtype=dtype)
    return of_sample(problem.op, dtype, problem.sample, problem.direction)


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
