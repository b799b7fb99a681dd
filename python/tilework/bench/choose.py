"""Which problems: those of every op of the registry, sets, files and lines, in the dtypes and directions asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench import networks
from tilework.bench.problems import (
    DIRECTIONS,
    BenchError,
    Problem,
    checked,
    dtype_named,
    known,
    of_dtype,
    of_sample,
    parse,
    parse_lines,
)
from tilework.testing import Fill
from tilework.testing.fill import workload_shapes


def every_workload() -> list[Problem]:
    """The workloads of every op of the registry; an op without any stands with the largest of its samples."""
    return [p for name in registry.ops() for p in workloads_of(name)]


def workloads_of(name: str) -> list[Problem]:
    """The workloads of an op in the first of its element types."""
    target = registry.ops()[name]
    dtype = registry.dtypes_of(target)[0]
    rule = target.rules.get("workloads")
    if not rule:
        return _largest_sample(name, target, dtype)
    found = []
    for w in rule():
        found.append(Problem(name, workload_shapes(target, w), dict(w.attrs), dtype, name=w.name, sets=w.sets))
    return found


def _largest_sample(name: str, target: Any, dtype: str) -> list[Problem]:
    if "samples" not in target.rules:
        return []
    count = sum(1 for _ in target.rules["samples"](Fill(dtype)))
    return sorted((of_sample(name, dtype, i) for i in range(count)), key=_elements)[-1:]


def _elements(problem: Problem) -> int:
    return sum(np.size(a) for o in problem.operands() for a in (o if isinstance(o, list) else [o]) if a is not None)


def _cost(problem: Problem) -> float:
    facts = problem.facts
    return (facts.flops or 0) + facts.read + facts.written


def one_of_each() -> list[Problem]:
    """The middle one, by its cost, of the workloads of every op."""
    return [_middle(found) for name in registry.ops() if (found := workloads_of(name))]


def _middle(problems: list[Problem]) -> Problem:
    return sorted(problems, key=_cost)[(len(problems) - 1) // 2]


def _other_dtypes() -> Iterator[Problem]:
    """Every op in each further element type it declares, on the middle one of its workloads."""
    for name, target in registry.ops().items():
        swept = workloads_of(name)
        for dtype in registry.dtypes_of(target)[1:] if swept else ():
            made = of_dtype(_middle(swept), dtype)
            if _is_possible(made):
                yield made


def _quick() -> Iterator[Problem]:
    """The smallest problem of the first op of each family."""
    families: dict[str, str] = {}
    for p in every_workload():
        families.setdefault(p.family, p.op)
    for op in families.values():
        yield min(workloads_of(op), key=_cost)


def packaged_sets() -> dict[str, str]:
    """Text of the batch files beside this module, by name."""
    folder = resources.files("tilework.bench").joinpath("sets")
    return {f.name.removesuffix(".txt"): f.read_text() for f in folder.iterdir() if f.name.endswith(".txt")}


def set_names(workloads: Iterable[Problem]) -> list[str]:
    """Every set that ``--set`` knows."""
    workloads = list(workloads)
    named = [*sorted(packaged_sets()), *(p.family for p in workloads), *(s for p in workloads for s in p.sets)]
    return list(dict.fromkeys(["default", "workloads", "full", "quick", *named]))


def select(
    sets: Iterable[str] = (), ops: Iterable[str] = (), dtypes: Iterable[str] = (), directions: Iterable[str] = ()
) -> list[Problem]:
    """Problems out of sets, files and problem lines, of the ops asked for, in the dtypes and directions asked for.

    Without any, those of the default set, or every workload of the ops asked for. Dtypes and directions apply to sets;
    a line or a file says its own.
    """
    names = [known("op", o, [*registry.ops(), *networks.NETWORKS]) for o in ops]
    wanted = [dtype_named(d) for d in dtypes]
    ways = [known("direction", d, DIRECTIONS) for d in directions]
    swept: list[Problem] = []
    stated: list[Problem] = []
    for one in list(sets) or ["workloads" if names else "default"]:
        if "=" in one or ("/" in one and not Path(one).exists()):
            stated.append(parse(one))
        elif one not in packaged_sets() and Path(one).is_file():
            stated += parse_lines(_file_text(one), one)
        else:
            swept += _members(one)
    found = []
    for p in swept:
        for dtype in wanted or [p.dtype]:
            for direction in ways or [p.direction]:
                made = replace(of_dtype(p, dtype), direction=direction, out_given=p.out_given and direction == "fwd")
                if _is_possible(made):
                    found.append(made)
    chosen = [p for p in [*found, *stated] if not names or p.op in names]
    if not chosen:
        raise BenchError("no problem matches; `tilework bench list` shows what there is")
    return list({p.text: p for p in chosen}.values())


def _members(name: str) -> list[Problem]:
    packaged, workloads = packaged_sets(), [*every_workload(), *networks.workloads()]
    known("set or file", name, set_names(workloads))
    calls = parse_lines(packaged["calls"], "set calls")
    if name == "default":
        return [*one_of_each(), *networks.workloads(), *calls]
    if name == "workloads":
        return workloads
    if name == "full":
        return [*workloads, *_other_dtypes(), *calls]
    if name == "quick":
        return [*_quick(), *calls]
    lines = parse_lines(packaged[name], f"set {name}") if name in packaged else []
    return [*lines, *(p for p in workloads if name in (*p.sets, p.family))]


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
