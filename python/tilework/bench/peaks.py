"""The machine's peaks, and the least time a problem can take under them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tilework import _core
from tilework.bench.problems import Facts
from tilework.bench.remote import Remote

COMPUTE = ("fma_f32", "fma_f64", "dot_bf16", "dot_i8")
# The loops that can make a product of a type, and how many of theirs it takes; bf16 pieces: csrc/gemm/pieces.h.
_WAYS = {
    "float64": {"fma_f64": 1},
    "float32": {"fma_f32": 1, "dot_bf16": 6},
    "float16": {"fma_f32": 1, "dot_bf16": 3},
    "bfloat16": {"dot_bf16": 1, "fma_f32": 1},
    "int8": {"dot_i8": 1, "fma_f32": 1},
}
MEMORY = ("read", "copy", "copy_streamed")
_SECONDS = 0.01
_ROUNDS = 5


@dataclass(frozen=True)
class Level:
    """A level of memory: what fits in it, and how much a loop of one thread moves to measure it."""

    name: str
    capacity: float
    loop_bytes: int


def levels(caches: list[int], threads: int) -> list[Level]:
    """L1, L2, L3 and DRAM for this many threads; L3 is shared."""
    l1, l2, l3 = caches
    dram = min(max(2 * l3, 64 << 20), 512 << 20)
    return [
        Level("L1", l1 * threads, l1 // 2),
        Level("L2", l2 * threads, l2 // 2),
        Level("L3", l3, max(l3 // 4 // threads, l2 * 2)),
        Level("DRAM", float("inf"), max(dram // threads, 4096)),
    ]


def level_of(facts: Facts, found: list[Level]) -> Level:
    """Where the operands and results of a problem live between calls."""
    return next(level for level in found if facts.read + facts.written <= level.capacity)


def measure(worker: Remote, threads: int) -> list[dict[str, Any]]:
    """Every peak of every tier that runs here, interleaved: the second best of a few rounds, and all rounds."""
    jobs: list[dict[str, Any]] = [
        {"tier": tier, "kind": kind, "level": "", "bytes": 0} for tier in worker.facts["tiers"] for kind in COMPUTE
    ]
    for level in levels(worker.facts["caches"], threads):
        jobs += [
            {"tier": worker.facts["tier"], "kind": kind, "level": level.name, "bytes": level.loop_bytes}
            for kind in MEMORY
            if kind != "copy_streamed" or level.name == "DRAM"
        ]
    rates: list[list[float]] = [[] for _ in jobs]
    order, shuffle = list(range(len(jobs))), random.Random(0)
    for _ in range(_ROUNDS):
        shuffle.shuffle(order)
        for i in order:
            job = jobs[i]
            answer = worker.ask("peak", kind=job["kind"], seconds=_SECONDS, bytes=job["bytes"], tier=job["tier"])
            rates[i].append(answer["rate"])
    # The second best: one reading of a clock may be off.
    return [
        {**job, "threads": threads, "rate": sorted(r)[-2], "samples": r} for job, r in zip(jobs, rates, strict=True)
    ]


def add(found: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    """Joins peaks measured again to those found before."""
    place = {(p["tier"], p["kind"], p["level"], p["threads"]): p for p in found}
    for peak in more:
        known = place.get((peak["tier"], peak["kind"], peak["level"], peak["threads"]))
        if known is None:
            found.append(peak)
        else:
            known["samples"] += peak["samples"]
            known["rate"] = sorted(known["samples"])[-2]


def rate_of(found: list[dict[str, Any]], tier: str, kind: str, level: str = "") -> float:
    """One measured peak, per second."""
    return next(float(p["rate"]) for p in found if (p["tier"], p["kind"], p["level"]) == (tier, kind, level))


def compute_way(arithmetic: str, tier: str, found: list[dict[str, Any]]) -> tuple[str, int]:
    """The loop that bounds multiplications of a type, and how many of its own each takes."""
    if arithmetic == "float16" and _core.tiles_take_float16():
        arithmetic = "bfloat16"
    ways = _WAYS.get(arithmetic, _WAYS["float32"])
    return max(ways.items(), key=lambda way: rate_of(found, tier, way[0]) / way[1])


def loops_of(facts: Facts, tier: str, found: list[dict[str, Any]], level: Level) -> dict[str, Any]:
    """The loops that bound a problem: what it is bound by, and the kinds to measure beside it.

    Equal amounts read and written go at the rate of a copy, the rest at the rate of a read.
    """
    copy = "copy"
    if level.name == "DRAM" and rate_of(found, tier, "copy_streamed", "DRAM") > rate_of(found, tier, "copy", "DRAM"):
        copy = "copy_streamed"
    rates = {k: rate_of(found, tier, k, level.name) for k in (copy, "read")}
    compute, each = compute_way(facts.arithmetic, tier, found)
    arithmetic = (facts.flops or 0.0) * each / rate_of(found, tier, compute)
    if arithmetic >= memory_seconds(facts, rates[copy], rates["read"]):
        by = "FMA" if compute.startswith("fma") else "dot" if each == 1 else f"dot/{each}"
        return {"by": by, "kinds": [compute], "each": each}
    return {"by": level.name, "kinds": [copy, "read"] if facts.read > facts.written else [copy], "each": 1}


def device_bound(facts: Facts, found: dict[str, Any]) -> dict[str, Any] | None:
    """The least time on an OpenCL device: its multiply-adds, its memory or one launch, whichever takes longest."""
    if not found:
        return None
    least = {
        "FMA": (facts.flops or 0.0) / found["fma_f32"],
        "memory": (facts.read + facts.written) / found["copy"],
        "launch": found["launch_seconds"],
    }
    by = max(least, key=lambda k: least[k])
    return {"by": by, "seconds": least[by], "rates": {k: found[k] for k in ("fma_f32", "copy")}}


def memory_seconds(facts: Facts, copy: float, read: float) -> float:
    """The least time to move what a problem must read and write."""
    both = min(facts.read, facts.written)
    return 2 * both / copy + (facts.read - both) / read + (facts.written - both) / copy


def bound_seconds(facts: Facts, loops: dict[str, Any], rates: dict[str, float]) -> float:
    """The least time of a problem, from the rates of the loops that ran beside it."""
    kinds = loops["kinds"]
    if kinds[0] in MEMORY:
        return memory_seconds(facts, rates[kinds[0]], rates[kinds[-1]])
    return (facts.flops or 0.0) * int(loops["each"]) / rates[kinds[0]]
