"""Programs of the op ``fused``, taken apart: what the shape rule has accepted, for the reference and for OpenCL."""

from __future__ import annotations

import functools
from dataclasses import dataclass

FOLDS = ("sum", "mean", "max")
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a correct program: sources are numbers of values, or Python floats."""

    name: str
    sources: tuple[int | float, ...]
    numbers: tuple[str, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The sources that are values."""
        return tuple(s for s in self.sources if isinstance(s, int))


def _arity(name: str) -> int:
    if name == "where":
        return 3
    two = ("add", "sub", "mul", "div", "maximum", "minimum", *COMPARISONS)
    return 2 if name in two or name.endswith("_dx") else 1


@functools.lru_cache(maxsize=256)
def parsed(program: str, operands: int) -> tuple[tuple[Instruction, ...], tuple[int, ...]]:
    """The instructions of a program that the shape rule has accepted, and the values that it returns."""
    instructions: list[Instruction] = []
    results: tuple[int, ...] = ()
    for text in program.split(";"):
        name, *words = text.split()
        if name == "return":
            results = tuple(int(w[1:]) for w in words)
            break
        n = _arity(name)
        sources = tuple(int(w[1:]) if w[0] == "$" else float(w) for w in words[:n])
        instructions.append(Instruction(name, sources, tuple(words[n:])))
    return tuple(instructions), results or (operands + len(instructions) - 1,)
