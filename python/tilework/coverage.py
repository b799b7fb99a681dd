"""``tilework coverage``: every op with its element types and gradients, where it runs and from where it is called.

The table is made of what ops themselves say: their shape rules are asked about arrays of each element type, and the
routes are read from the adapters' sources, so that no other package is needed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core, dispatch
from tilework.dtypes import FLOATING, named
from tilework.ops import FAMILIES
from tilework.registry import ops
from tilework.testing import Fill

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u"}
_ANY_SMALL = "float8_e4m3fn"  # stands for all of them
_TRIED = 4  # samples of an op that are asked about an element type

_HEADER = """\
# Coverage

What every op computes and from where it is called, written by `tilework coverage --markdown`; a test compares it.
Types are those of the operand that the op is about: floats are float32, float64, float16 and bfloat16; integers those
of 8 to 64 bits, signed or not; small those of float8, float4 and integers of 4 and 2 bits. A gradient is listed by the
operands that have one; it holds for every type of float, and on OpenCL where the op runs there. numpy's arrays,
DLPack's and the [graph](graph.md) call every op. Marks are for OpenCL; for [C](c-api.md) and `torch.ops.tilework`
([torch](torch.md)); for what `torch.compile(backend="tilework")` takes over; for [JAX](jax.md); and for what operators
of [ONNX](onnx.md) become.

"""


@dataclass(frozen=True)
class Row:
    """An op, and what is known of it."""

    family: str
    name: str
    types: str
    gradient: str
    routes: tuple[bool, ...]  # in the order of ROUTES


ROUTES = ("OpenCL", "C, torch", "compile", "JAX", "ONNX")


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from _arrays(v)
    elif isinstance(value, np.ndarray):
        yield value


def _mapped(value: Any, of: Any, to: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_mapped(v, of, to) for v in value]
    return value.astype(to) if isinstance(value, np.ndarray) and value.dtype == of else value


def _accepts(op: Any, sample: Any, dtype: Any, *, convert: bool) -> bool:
    operands = [_mapped(v, np.float32, dtype) if convert else v for v in dispatch.bind_operands(op, sample.args, {})]
    if all(a.dtype != dtype for a in _arrays(operands)):
        return False
    try:
        (op(*operands, **sample.attrs) if op.is_view else _core.infer(op.name, operands, dict(sample.attrs)))
    except Exception:
        return False
    return True


def _samples(op: Any, dtype: Any) -> Iterator[Any]:
    try:
        with np.errstate(all="ignore"):
            for sample, _ in zip(op.rules["samples"](Fill(dtype)), range(_TRIED), strict=False):
                yield sample
    except Exception:
        return  # values of this type cannot even be made


def _types(op: Any) -> str:
    found = {
        d
        for d in (*FLOATING, *INTEGERS, "bool")
        if any(_accepts(op, s, named(d), convert=False) for s in _samples(op, d))
    }
    for sample in _samples(op, "float32"):  # what an op says that takes one type alone
        first = next(_arrays(sample.args), None)
        if first is not None and first.dtype.name not in found and _accepts(op, sample, first.dtype, convert=False):
            found.add(first.dtype.name)
    small = any(_accepts(op, s, named(_ANY_SMALL), convert=True) for s in _samples(op, "float32"))
    texts = [_group(found, FLOATING, "floats"), _group(found, INTEGERS, "integers")]
    texts += ["bool"] if "bool" in found else []
    return ", ".join(t for t in (*texts, *(["small"] if small else [])) if t)


def _group(found: set[str], names: Sequence[str], word: str) -> str:
    inside = [n for n in names if n in found]
    if len(inside) == len(names):
        return word
    return " ".join(_SHORT[re.sub(r"\d", "", n)] + re.sub(r"\D", "", n) for n in inside)


def _mentioned(file: str, pattern: str) -> set[str]:
    folder = Path(__file__).parent / "interop"
    paths = sorted((folder / file).glob("*.py")) if (folder / file).is_dir() else [folder / file]
    return {name for path in paths for name in re.findall(pattern, path.read_text())}


def rows() -> list[Row]:
    """A row per op, by family."""
    compiled = _mentioned("aten.py", r"\bops\.(\w+)")
    imported = _mentioned("onnx", r"\btw\.(\w+)")
    made = []
    for name, op in ops().items():
        plain = not op.is_view
        updates = plain and any(role == "inout" for _, role in _core.op_spec(name)["operands"])
        routes = ("opencl" in op.rules or not plain, plain, name in compiled, plain and not updates, name in imported)
        family = FAMILIES.get(name, "operators").rpartition(".")[2]
        gradient = ", ".join(op.differentiable) if "backward" in op.rules else ""
        made.append(Row(family, name, _types(op), gradient, routes))
    return sorted(made, key=lambda r: (r.family, r.name))


def markdown(table: Sequence[Row]) -> str:
    """The page of the documentation."""
    lines = [
        _HEADER,
        f"{len(table)} ops.\n\n",
        f"| op | types | gradient | {' | '.join(ROUTES)} |\n",
        "|---" * (3 + len(ROUTES)) + "|\n",
    ]
    family = ""
    for row in table:
        if row.family != family:
            family = row.family
            lines.append(f"| **{family}** |" + " |" * (2 + len(ROUTES)) + "\n")
        marks = " | ".join("x" if r else "" for r in row.routes)
        lines.append(f"| {row.name} | {row.types} | {row.gradient} | {marks} |\n")
    return "".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="tilework coverage", description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="as the page of the documentation")
    parser.add_argument("ops", nargs="*", help="names of ops; all of them by default")
    chosen = parser.parse_args(argv)
    table = [r for r in rows() if not chosen.ops or r.name in chosen.ops]
    if chosen.markdown:
        print(markdown(table), end="")
        return 0
    from rich.console import Console
    from rich.table import Table

    shown = Table("op", "types", "gradient", *ROUTES)
    for row in table:
        shown.add_row(row.name, row.types, row.gradient, *("x" if r else "" for r in row.routes))
    Console().print(shown)
    return 0
