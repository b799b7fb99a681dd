"""Writes and launches the kernel of a fused program; programs that differ in their numbers alone share a build."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.backends.opencl_programs import Written, dtype_name
from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, broadcast_strides, merged
from tilework.backends.opencl_reduce import group_for
from tilework.programs import FOLDS, Instruction, parsed

WALKED = 3  # axes

_BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "maximum": "nan_max({0}, {1})",
    "minimum": "nan_min({0}, {1})",
    "relu_dx": "{1} <= 0 ? (ACC)0 : {0}",
    "sigmoid_dx": "{0} * ({1} * (1 - {1}))",
    "tanh_dx": "{0} * ((1 - {1}) * (1 + {1}))",
    "gelu_dx": "{0} * gelu_slope({1})",
    "gelu_tanh_dx": "{0} * gelu_tanh_slope({1})",
    "equal": "{0} == {1} ? (ACC)1 : (ACC)0",
    "not_equal": "{0} != {1} ? (ACC)1 : (ACC)0",
    "less": "{0} < {1} ? (ACC)1 : (ACC)0",
    "less_equal": "{0} <= {1} ? (ACC)1 : (ACC)0",
    "greater": "{0} > {1} ? (ACC)1 : (ACC)0",
    "greater_equal": "{0} >= {1} ? (ACC)1 : (ACC)0",
    "where": "{0} != 0 ? {1} : {2}",
}
_UNARY = {
    "relu": "act_relu({0})",
    "sigmoid": "act_sigmoid({0})",
    "tanh": "TANH({0})",
    "gelu": "act_gelu({0})",
    "gelu_tanh": "act_gelu_tanh({0})",
    "exp": "EXP({0})",
    "log": "log({0})",
    "erf": "erf({0})",
}
_CASTS = {"float16": "as_f16({0})", "bfloat16": "as_bf16({0})", "bool": "{0} != 0 ? (ACC)1 : (ACC)0"}


@dataclass(frozen=True)
class _Kernel:
    """A written kernel and the numbers it is launched with."""

    source: Written
    numbers: tuple[float | int, ...]
    folds: bool


class _Writer:
    """Expressions of a program's values, and the numbers in them as arguments."""

    def __init__(self, program: str, dtypes: tuple[str, ...]) -> None:
        self.instructions, self.results = parsed(program, len(dtypes))
        self.n = len(dtypes)
        self.dtypes = dtypes
        self.numbers: list[float | int] = []
        self.stage: list[int] = [0] * self.n  # in which a value is computed
        self.ready: list[int] = [0] * self.n  # from which on it can be used
        self.per_row: list[bool] = [False] * self.n
        self.text: list[str] = [f"load_{d}(x{k}, AT({k}, i))" for k, d in enumerate(dtypes)]
        for i in self.instructions:
            fold = i.name in FOLDS
            stage = max(self.ready[v] for v in i.values)
            self.stage.append(stage)
            self.ready.append(stage + fold)
            self.per_row.append(fold or all(self.per_row[v] for v in i.values))
            self.text.append("" if fold else self._expression(i))

    def number(self, value: float | int) -> str:
        self.numbers.append(value)
        return f"n{len(self.numbers) - 1}"

    def _expression(self, i: Instruction) -> str:
        sources = [f"v{s}" if isinstance(s, int) else self.number(s) for s in i.sources]
        name = i.name
        if name == "cast":
            return _CASTS.get(i.numbers[0], "{0}").format(*sources)
        if name == "dropout":
            p = float(i.numbers[0])
            scale = self.number(1 / (1 - p) if p < 1 else 0.0)
            limit, seed, offset = map(self.number, (int(p * 2.0**32), int(i.numbers[1]), int(i.numbers[2])))
            return f"passes(i, {limit}, {seed}, {offset}) ? {sources[0]} * {scale} : (ACC)0"
        if name in _BINARY or name in _UNARY:
            return (_BINARY | _UNARY)[name].format(*sources)
        which = name.removesuffix("_dx").upper()
        alpha, beta = [self.number(float(n)) for n in i.numbers] + ["(ACC)0"] * (2 - len(i.numbers))
        if name.endswith("_dx"):
            return f"{sources[0]} * slope_of({which}, {sources[1]}, {alpha}, {beta})"
        return f"value_of({which}, {sources[0]}, {alpha}, {beta})"

    def needed(self, values: Sequence[int]) -> list[int]:
        """The whole values that these are computed from, themselves included, in order."""
        found: set[int] = set()
        open_ = list(values)
        while open_:
            v = open_.pop()
            if v in found or self.per_row[v]:
                continue
            found.add(v)
            if v >= self.n:
                open_ += self.instructions[v - self.n].values
        return sorted(found)

    def lines(self, values: Sequence[int]) -> list[str]:
        return [f"const ACC v{v} = {self.text[v]};" for v in self.needed(values)]


def _stores(w: _Writer, outs: tuple[str, ...], stage: int | None) -> list[str]:
    return [
        f"store_{d}(y{k}, AT({w.n + k}, i), v{r});"
        for k, (r, d) in enumerate(zip(w.results, outs, strict=True))
        if not w.per_row[r] and stage in (None, w.stage[r])
    ]


def _row_lines(w: _Writer, outs: tuple[str, ...]) -> list[str]:
    """A kernel's body where values are folded: stage after stage along the row."""
    lines = ["const INDEX row = ROW;", "if (row >= (INDEX)rows) return;", "GROUP_MEMORY"]
    for stage in range(max(w.stage) + 1):
        mine = [k for k in range(w.n, len(w.stage)) if w.stage[k] == stage]
        lines += [f"const ACC v{k} = {w.text[k]};" for k in mine if w.per_row[k] and w.text[k]]
        folds = [k for k in mine if not w.text[k]]
        stored = [r for r in w.results if w.stage[r] == stage and not w.per_row[r]]
        for k in folds:
            top = w.instructions[k - w.n].name == "max"
            lines.append(f"ACC f{k} = -INFINITY;" if top else f"Sum f{k} = {{0, 0}};")
        if folds or stored:
            sources = {k: w.instructions[k - w.n].values[0] for k in folds}
            lines += ["ALONG(j, 0, (INDEX)n) {", "const INDEX i = row * (INDEX)n + j;"]
            lines += w.lines([*sources.values(), *stored])
            for k, s in sources.items():
                top = w.instructions[k - w.n].name == "max"
                lines.append(f"f{k} = nan_max(f{k}, v{s});" if top else f"f{k} = plus(f{k}, v{s});")
            lines += [*_stores(w, outs, stage), "}"]
        for k in folds:
            name = w.instructions[k - w.n].name
            whole = f"GROUP_MAX(f{k})" if name == "max" else f"GROUP_SUM(f{k}.sum)"
            lines.append(f"const ACC v{k} = {whole}{' / (ACC)n' if name == 'mean' else ''};")
    ends = [
        f"store_{d}(y{k}, row, v{r});" for k, (r, d) in enumerate(zip(w.results, outs, strict=True)) if w.per_row[r]
    ]
    return lines + (["if (ITEM == 0) {", *ends, "}"] if ends else [])


@functools.lru_cache(maxsize=256)
def _written(program: str, dtypes: tuple[str, ...], outs: tuple[str, ...]) -> _Kernel:
    w = _Writer(program, dtypes)
    folds = any(not t for t in w.text)
    # boolean is loaded and stored as a byte: exactly 0 or 1.
    arrays = [f"ANY(storage_{d}, x{k})" for k, d in enumerate(dtypes)]
    arrays += [f"ANY(storage_{d}, y{k})" for k, d in enumerate(outs)]
    starts = [f"START(x{k});" for k in range(len(dtypes))] + [f"START(y{k});" for k in range(len(outs))]
    if folds:
        body = _row_lines(w, outs)
    else:
        whole = [r for r in w.results if not w.per_row[r]]
        body = ["EACH(k, i) {", *w.lines(whole), *_stores(w, outs, None), "}"]
    numbers = [f"const {'long' if isinstance(v, int) else 'ACC'} n{k}" for k, v in enumerate(w.numbers)]
    rows = ["const long rows", "const long n"] if folds else []
    head = ", ".join([*arrays, *rows, *numbers, "const Walk walk"])
    text = "\n    ".join([f"__kernel void fused({head}) {{", *starts, *body])
    return _Kernel(Written("fused.cl", text + "\n}\n"), tuple(w.numbers), folds)


def launch(queue: Queue, program: str, trailing: int, operands: Sequence[Any], results: Sequence[Any]) -> None:
    """Runs a fused program that the shape rule has accepted; results are contiguous."""
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    dtypes = tuple(dtype_name(x.dtype) for x in operands)
    made = _written(program, dtypes, tuple(dtype_name(y.dtype) for y in results))
    arrays = (*operands, *results)
    count = math.prod(shape)
    wide = np.dtype(np.float64 if any(x.dtype == np.float64 for x in operands) else np.float32)
    define: dict[str, Any] = {"DTYPE": wide, "GROUP": 1}
    if all(a.shape == shape and a.flags.c_contiguous for a in operands):
        walk = np.array([count], np.int64)
    else:
        dims, strides = merged(shape, [broadcast_strides(a, shape) for a in arrays])
        if queue.device.core == "P":  # builds are dear there, divisions are not: one rank for all
            missing = max(0, WALKED - len(dims))
            dims, strides = [1] * missing + dims, [[0] * missing + row for row in strides]
        walk = np.array([count, *dims, *(s for row in strides for s in row)], np.int64)
        define |= {"RANK": len(dims), "ARRAYS": len(arrays)}
    placed = tuple(map(Strided, arrays))
    if not made.folds:
        define["ITEMS"] = 4 if queue.device.core == "S" else 1
        items = -(-count // define["ITEMS"])
        queue.launch(made.source, "fused", items, GROUP_SIZE, (*placed, *made.numbers, walk), **define)
        return
    n = math.prod(shape[len(shape) - trailing :])
    rows = math.prod(shape[: len(shape) - trailing])
    group = define["GROUP"] = group_for(queue, n)
    define["ITEMS"] = 1
    args = (*placed, rows, n, *made.numbers, walk)
    queue.launch(made.source, "fused", rows * group, group if group > 1 else GROUP_SIZE, args, **define)
