"""A run: workers are started, each problem is checked and then measured beside its peers and the peak loops.

A run goes over all its rows once, and then, while there is time, again, those with the widest intervals first. What a
row then holds comes from different minutes, processes and addresses, so that neither a busy minute nor a lucky
placement decides it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tilework.bench import machine, peaks, results, table
from tilework.bench.crew import OURS, Crew, available_peers, crew
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError, Problem
from tilework.bench.protocol import WorkerLostError
from tilework.bench.row import Row

Told = Callable[[str, Any], None]
Job = tuple[Problem, int, str]  # a problem, threads, a device

_FIRST_SHARE = 0.6  # of the time, for the first sweep if there are more
_LEAST_SHARE = 0.05  # of the budget of a row, however late
_LEAST_SECONDS = 5.0


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

    def jobs(self) -> list[Job]:
        """Every row: all thread counts of a problem in turn, so that one reference serves them."""
        places = [(t, d) for d in self.devices for t in (self.threads if d == "cpu" else [1])]
        return [(p, t, d) for p in self.problems for t, d in places]


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

    def __init__(self, budget: float, end: float | None, rows: int) -> None:
        self._budget, self._end, self._left = budget, end, rows
        self._begin = time.monotonic()
        self._around = 0.3  # seconds that a row takes beside its measurement, a guess until some are known

    def begin(self) -> float:
        """The seconds of the row that begins."""
        self._begin = time.monotonic()
        if self._end is None:
            return self._budget
        share = (self._end - self._begin) / max(1, self._left) - self._around
        return max(_LEAST_SHARE * self._budget, min(self._budget, share))

    def end(self, budget: float) -> None:
        """Learns from a row that has ended."""
        self._left -= 1
        self._around += 0.05 * (max(0.0, time.monotonic() - self._begin - budget) - self._around)


def _sweep_all(options: Options, document: dict[str, Any], told: Told) -> None:
    """Every row, then rows again, until the time is up; rows that were left are counted in ``left``."""
    rows = {results.key(r): r for r in document["rows"]}
    jobs = options.jobs()
    begin = time.monotonic()
    # A run that was interrupted goes on with the time it had left; one whose time was up has all of it again.
    spent = 0.0 if document.pop("left", 0) else float(document.get("spent", 0.0))
    whole = None if options.minutes is None else max(_LEAST_SECONDS, 60 * options.minutes - spent)
    sweeps = options.sweeps if options.mode == "performance" else 1
    measured = 0  # at least one, or a run whose time the peaks take would never come to its end
    for sweep in range(sweeps):
        due = _due(jobs, rows, sweep)
        share = _FIRST_SHARE if sweep + 1 < sweeps else 1.0
        clock = _Clock(options.plan.budget, None if whole is None else begin + share * whole, len(due))
        told("rows", len(due))
        with crew(options.load) as workers:
            if due:
                _prepare(options, workers, due, document, told)
            for problem, threads, device in due:
                if whole is not None and measured and time.monotonic() > begin + whole:
                    break
                measured += 1
                budget = clock.begin()
                told("begin", (problem, threads, device, sweep))
                key = (problem.text, threads, device)
                record = rows.setdefault(key, Row.empty(problem, threads, device))
                plan = replace(options.plan, budget=budget)
                Row(options, workers, problem, record, document).sweep(plan, seed=sweep)
                if not any(r is record for r in document["rows"]):
                    document["rows"].append(record)
                clock.end(budget)
                document["spent"] = spent + time.monotonic() - begin
                told("row", record)
    left = sum(_key(job) not in rows for job in jobs)
    if left:
        document["left"] = left


def _due(jobs: list[Job], rows: dict[tuple[str, int, str], dict[str, Any]], sweep: int) -> list[Job]:
    if sweep == 0:
        return [job for job in jobs if _key(job) not in rows or rows[_key(job)]["sweeps"] == 0]
    measured = [(rows[_key(job)], job) for job in jobs if _key(job) in rows]
    found = [(_width(row), job) for row, job in measured if row["sweeps"] <= sweep and _width(row) > 0]
    return [job for _, job in sorted(found, key=lambda f: -f[0])]


def _key(job: Job) -> tuple[str, int, str]:
    return job[0].text, job[1], job[2]


def _width(row: dict[str, Any]) -> float:
    """Of the interval of the ratio to the best peer, as a logarithm; 0 if there is none to be surer of."""
    if row["status"] != "ok":
        return 0.0
    best = table.best_ratio(row) or table.best_ratio(row, prepacked=True)
    if best is None:
        return 0.0
    return math.log(best[1]["high"] / best[1]["low"]) if 0 < best[1]["low"] < best[1]["high"] < math.inf else math.inf


def _prepare(options: Options, workers: Crew, jobs: list[Job], document: dict[str, Any], told: Told) -> None:
    """Peaks of the moment, and every peer on its threads."""
    places = list(dict.fromkeys((device, threads) for _, threads, device in jobs))
    for device, threads in places:
        ours = workers.worker(OURS, threads)
        document["build"] = machine.build(ours.facts)
        if options.mode != "performance":
            continue
        told("peaks", threads if device == "cpu" else device)
        if device == "cpu":
            peaks.add(document["peaks"], peaks.measure(ours, threads))
        elif device not in document["device_peaks"]:
            found = ours.ask("device_peaks", device=device)
            if "error" in found:
                raise BenchError(f"{device}: {found['error']}")
            document["device_peaks"][device] = found
    for name in available_peers(options.peers):
        for threads in {t for d, t in places if d == "cpu"}:
            try:
                workers.worker(name, threads)
            except (BenchError, WorkerLostError) as error:
                workers.refused.add((name, threads))
                workers.drop(name)
                document["peers"][name].setdefault("refused", {})[str(threads)] = str(error)
                told("refused", (name, str(error)))


def load_modules(names: list[str]) -> None:
    """Imports modules whose ops take part, here as in every worker."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BenchError(f"--import {name}: {error}") from None
