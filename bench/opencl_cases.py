"""A case of a layer on an OpenCL device: what ours and torch's ways compute, compared first, then timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tilework as tw
from opencl_timing import TURN_SECONDS, TURNS, Timed, one_turn, torch_beside
from tilework.backends.opencl_device import select

Call = Callable[[], Any]
COMPARED = 1 << 20  # elements at either end


@dataclass
class Case:
    """Ours, what it moves (GB) or computes (TFLOP), how far it is from what it should be, and torch's ways."""

    ours: Call
    work: float
    unit: str
    error: Callable[[], float]
    limit: float
    theirs: dict[str, Call] = field(default_factory=dict)


class Bench(Timed):
    """A device whose launches are recorded, torch beside it if there is one, and arrays for both."""

    def __init__(self, name: str, small: bool) -> None:
        device = select(name)
        super().__init__(device)
        self.small = small or device.is_cpu
        self.rng = np.random.default_rng(0)
        self.torch = torch_beside()
        if self.torch is not None:
            self.torch.backends.cudnn.benchmark = True

    def pair(self, *shape: int, dtype: str = "float16", low: bool = False) -> tuple[Any, Any]:
        """Random numbers here, and the same there (None without torch)."""
        if self.torch is None:
            host = self.rng.standard_normal(shape, dtype=np.float32).astype(dtype)
            return tw.to_device(host, self.queue.cl), None
        made = self.torch.randn(shape, device="cuda", dtype=self.torch.float32)
        made = (made * (0.1 if low else 1)).to(getattr(self.torch, dtype))
        return tw.to_device(made.cpu().numpy(), self.queue.cl), made

    def told(self, case: Case) -> str:
        """The line of one case."""
        case.ours()
        error = case.error()
        if not error <= case.limit:
            return f"WRONG by {error:.2g} (limit {case.limit:g})"
        alone = self.seconds(case.ours, 5)
        times: dict[str, list[float]] = {"ours": [], **{n: [] for n in case.theirs}}
        for call in case.theirs.values():
            call()
        for _ in range(1 if self.small else TURNS):
            times["ours"].append(one_turn(case.ours, self.queue.finish, TURN_SECONDS))
            self.events.clear()
            for name, call in case.theirs.items():
                times[name].append(one_turn(call, self.torch.cuda.synchronize, TURN_SECONDS))
        taken = {n: statistics.median(t) for n, t in times.items()}
        mine = taken.pop("ours")
        best = f"{case.work / alone:.0f} {case.unit} alone" if case.work else ""
        line = f"{alone * 1e3:.3f} ms {best}, {mine * 1e3:.3f} in a row, error {error:.1g}"
        for name, other in taken.items():
            line += f"; {name} {other * 1e3:.3f} ms, ratio {other / mine:.2f}"
        return line

    def error(self, got: Any, want: Any) -> float:
        """||got - want|| / ||want||, of a device array and a tensor or an array; of large ones the two ends."""
        flat, other = got.reshape(-1), want.reshape(-1)
        ends = [slice(None)] if flat.size <= COMPARED else [slice(COMPARED), slice(flat.size - COMPARED, None)]
        mine = np.concatenate([tw.to_host(flat[e]) for e in ends]).astype(np.float64)
        parts = [other[e] for e in ends]
        other = np.concatenate([p if isinstance(p, np.ndarray) else p.double().cpu().numpy() for p in parts])
        return float(np.linalg.norm(mine - other) / max(np.linalg.norm(other), 1e-30))


def same(
    bench: Bench, ours: Callable[[], Any], theirs: Call | None, gigabytes: float, limit: float, want: Any = None
) -> Case:
    """A case whose result is torch's, or numpy's without it."""

    def error() -> float:
        if bench.torch is None and want is None:
            return 0.0
        got, other = ours(), theirs() if theirs is not None else want
        pairs = zip(got, other, strict=True) if isinstance(got, tuple) else [(got, other)]
        return max(bench.error(g, w) for g, w in pairs)

    return Case(ours, gigabytes, "GB/s", error, limit, {} if theirs is None else {"torch": theirs})
