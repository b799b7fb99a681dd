"""Where the time of a run goes: every step with its time, its kernel and its share of what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilework import _core, settings
from tilework.arrays import Array
from tilework.graph.ir import Node
from tilework.graph.listing import bytes_of, flops_of, quantity

if TYPE_CHECKING:
    from tilework.graph.native import Native

_SECONDS = 0.02  # of each of the machine's two peaks
_BYTES = 1 << 26


@dataclass(frozen=True)
class Row:
    """One step: how long it took, and how long its operations or its bytes must take here."""

    node: Node
    seconds: float
    bound: float
    kernel: str
    threads: int


@dataclass(frozen=True)
class Profile:
    """The rows of a run in order; ``print`` it, slowest first."""

    rows: list[Row]
    tier: str

    @property
    def seconds(self) -> float:
        """The time of all steps."""
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        total = self.seconds or 1.0
        lines = [f"{quantity(self.seconds, 's')} in {len(self.rows)} steps on {self.tier}", _HEAD]
        for row in sorted(self.rows, key=lambda r: -r.seconds):
            shapes = ", ".join(str(v.shape) for v in row.node.results)
            lines.append(
                f"{1e6 * row.seconds:10.1f} {100 * row.seconds / total:6.1f} "
                f"{100 * row.bound / row.seconds if row.seconds else 0:7.0f}  "
                f"{row.node.op.name:<16} {shapes:<32} {row.kernel}".rstrip()
            )
        return "\n".join(lines)


_HEAD = f"{'us':>10} {'%':>6} {'% bound':>7}  {'op':<16} {'results':<32} kernel"


def measured(
    native: Native, feeds: tuple[Array, ...], numbers: Sequence[float], runs: int, threads: int | None
) -> Profile:
    """The least time of every step over ``runs`` runs, beside the roofline of this machine."""
    count = threads or settings.num_threads()
    with settings.threads(count):
        native.timed(feeds, numbers)
        timed = [native.timed(feeds, numbers) for _ in range(runs)]
    operations, spent = _core.peak("fma_f32", _SECONDS, count)
    moved, took = _core.peak("read", _SECONDS, count, _BYTES)
    rows = []
    for same in zip(*timed, strict=True):
        node, seconds, kernel, used = min(same, key=lambda step: step[1])
        bound = max(flops_of(node) * spent / operations, bytes_of(node) * took / moved)
        rows.append(Row(node, seconds, bound, kernel, used))
    return Profile(rows, native.program.tier)
