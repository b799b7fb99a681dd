"""A run: workers are started, each problem is checked and then measured beside its peers and the peak loops.

A run goes over all its rows more than once. What a row then holds comes from different minutes, processes and
addresses, so that neither a busy minute nor a lucky placement decides it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tilework.bench import machine, peaks, results
from tilework.bench.crew import OURS, Crew, available_peers, crew
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError, Problem
from tilework.bench.protocol import WorkerLostError
from tilework.bench.row import Row

Told = Callable[[str, Any], None]


@dataclass
class Options:
    """What to measure, beside what, and how long."""

    problems: list[Problem]
    peers: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=lambda: [1])
    devices: list[str] = field(default_factory=lambda: ["cpu"])
    mode: str = "performance"  # or "correctness"
    cold: str = "none"  # or "weights" or "all": operands that calls find in memory, not in a cache
    plan: Plan = field(default_factory=Plan)
    sweeps: int = 1
    minutes: float | None = None  # that the run may take, about: rows then share them
    load: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def _nobody(what: str, value: Any) -> None:
    """Hears nothing."""


def run(options: Options, told: Told = _nobody, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures everything; ``told`` hears of every row. Ctrl-C ends the run and keeps what was measured.

    ``document`` is a run that was interrupted: what it holds is not measured again.
    """
    document = _begun(options) if document is None else document
    document.update(interrupted=False)
    told("document", document)
    try:
        _sweep_all(options, document, told)
    except KeyboardInterrupt:
        document["interrupted"] = True
    document["finished"] = machine.now()
    return document


def _begun(options: Options) -> dict[str, Any]:
    return {
        "schema": results.SCHEMA,
        "started": machine.now(),
        "finished": "",
        "interrupted": False,
        "command": options.command,
        "machine": machine.facts(),
        "build": {},
        "peers": machine.peer_versions(options.peers),
        "settings": settings(options),
        "peaks": [],
        "device_peaks": {},
        "rows": [],
    }


def settings(options: Options) -> dict[str, Any]:
    """What must not change when a run goes on."""
    return {"cold": options.cold, "mode": options.mode, "sweeps": options.sweeps, "peers": options.peers}


class _Clock:
    """How long a row may take: the time left, shared among the rows left; the checks before have their part in it."""

    def __init__(self, options: Options, rows: int) -> None:
        self._budget = options.plan.budget
        self._end = time.monotonic() + 60 * options.minutes if options.minutes else None
        self._left = rows
        self._around = 0.3  # seconds that a row takes beside its measurement, a guess until some are known
        self._begin = time.monotonic()

    def begin(self) -> float:
        """The seconds of the row that begins."""
        self._begin = time.monotonic()
        if self._end is None:
            return self._budget
        share = (self._end - self._begin) / max(1, self._left) - self._around
        return max(0.05 * self._budget, min(self._budget, share))

    def end(self, budget: float) -> None:
        """Learns from a row that has ended."""
        self._left -= 1
        self._around += 0.2 * (max(0.0, time.monotonic() - self._begin - budget) - self._around)


def _sweep_all(options: Options, document: dict[str, Any], told: Told) -> None:
    rows = {results.key(r): r for r in document["rows"]}
    sweeps = options.sweeps if options.mode == "performance" else 1
    places = [(d, t) for d in options.devices for t in (options.threads if d == "cpu" else [1])]
    jobs = [(d, t, p) for d, t in places for p in options.problems]

    def swept(problem: Problem, threads: int, device: str) -> int:
        return int(rows.get((problem.text, threads, device), {"sweeps": 0})["sweeps"])

    done = sum(min(sweeps, swept(p, t, d)) for d, t, p in jobs)
    clock = _Clock(options, len(jobs) * sweeps - done)
    told("rows", len(jobs) * sweeps - done)
    for sweep in range(sweeps):
        with crew(options.load) as workers:
            for device, threads in places:
                due = [p for d, t, p in jobs if (d, t) == (device, threads) and swept(p, t, d) <= sweep]
                if due:
                    _prepare(options, workers, device, threads, document, told)
                for problem in due:
                    budget = clock.begin()
                    told("begin", (problem, threads, device, sweep))
                    key = (problem.text, threads, device)
                    if key not in rows:
                        rows[key] = Row.empty(problem, threads, device)
                    plan = replace(options.plan, budget=budget)
                    Row(options, workers, problem, rows[key], document).sweep(plan, seed=sweep)
                    if rows[key] not in document["rows"]:
                        document["rows"].append(rows[key])
                    clock.end(budget)
                    told("row", rows[key])


def _prepare(options: Options, workers: Crew, device: str, threads: int, document: dict[str, Any], told: Told) -> None:
    """Peaks of the moment, and every peer on its threads."""
    ours = workers.worker(OURS, threads)
    document["build"] = machine.build(ours.facts)
    if options.mode == "performance":
        told("peaks", threads if device == "cpu" else device)
        if device == "cpu":
            peaks.add(document["peaks"], peaks.measure(ours, threads))
        elif device not in document["device_peaks"]:
            found = ours.ask("device_peaks", device=device)
            if "error" in found:
                raise BenchError(f"{device}: {found['error']}")
            document["device_peaks"][device] = found
    workers.refused = {}
    for name in available_peers(options.peers) if device == "cpu" else []:
        try:
            workers.worker(name, threads)
        except (BenchError, WorkerLostError) as error:
            workers.refused[name] = str(error)
            document["peers"][name].setdefault("refused", {})[str(threads)] = str(error)
            told("refused", (name, str(error)))


def load_modules(names: list[str]) -> None:
    """Imports modules whose ops take part, here as in every worker."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BenchError(f"--import {name}: {error}") from None
