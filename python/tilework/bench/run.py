"""A run: workers are started, each problem is checked and then measured beside its peers and the peak loops."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilework.bench import machine, measure, peaks, peers, results
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError, Problem
from tilework.bench.protocol import WorkerLostError
from tilework.bench.remote import Remote
from tilework.bench.results import SCHEMA

OURS, PREPARED = "tilework", "tilework prepared"
_LIBRARY_COLD_COPIES = 32


@dataclass
class Options:
    """What to measure, beside what, and how long."""

    problems: list[Problem]
    peers: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=lambda: [1])
    device: str = "cpu"
    mode: str = "performance"  # or "correctness"
    cold: str = "none"  # or "weights" or "all": operands that calls find in memory, not in a cache
    plan: Plan = field(default_factory=Plan)
    load: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def available_peers(wanted: list[str]) -> list[str]:
    """The peers of ``wanted`` that are installed."""
    return [p for p in wanted if not peers.why_absent(p)]


class Crew:
    """The workers of a run; one that was lost is started again for the next row."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._workers: dict[str, Remote] = {}
        self._threads: dict[str, int] = {}
        self.refused: dict[str, str] = {}  # peers that cannot run with the threads asked for, and why
        self.scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.answers = str(Path(self.scratch.name) / "answers.npz")

    def worker(self, library: str, threads: int) -> Remote:
        """A worker of this library on this many threads."""
        environment = {}
        if library != OURS and hasattr(peers.load(library), "environment"):
            environment = peers.load(library).environment(threads)
            if self._threads.get(library) not in (None, threads):
                self.drop(library)
        if library not in self._workers:
            self._workers[library] = Remote(library, environment=environment)
            for module in self._options.load:
                self._demand(library, "load", module=module)
        if self._threads.get(library) != threads:
            self._demand(library, "threads", count=threads)
            self._threads[library] = threads
        return self._workers[library]

    def _demand(self, library: str, do: str, **arguments: Any) -> None:
        error = self._workers[library].ask(do, **arguments).get("error")
        if error:
            raise BenchError(f"{library}: {error}")

    def drop(self, library: str) -> None:
        """Forgets a worker that was lost."""
        self._threads.pop(library, None)
        lost = self._workers.pop(library, None)
        if lost:
            lost.close()

    def close(self) -> None:
        """Ends every worker."""
        for library in list(self._workers):
            self.drop(library)
        self.scratch.cleanup()


@contextmanager
def crew(options: Options) -> Iterator[Crew]:
    """The workers of a run, ended afterwards."""
    made = Crew(options)
    try:
        yield made
    finally:
        made.close()


def run(options: Options, told: Callable[[str, Any], None] = lambda what, value: None) -> dict[str, Any]:
    """Measures everything; ``told`` hears of every row. Ctrl-C ends the run and keeps what was measured."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "started": machine.now(),
        "finished": "",
        "interrupted": False,
        "command": options.command,
        "machine": machine.facts(),
        "build": {},
        "peers": machine.peer_versions(options.peers),
        "settings": {
            "plan": asdict(options.plan),
            "device": options.device,
            "cold": options.cold,
            "mode": options.mode,
        },
        "peaks": [],
        "rows": [],
    }
    try:
        with crew(options) as workers:
            for threads in options.threads:
                _run_threads(options, workers, threads, document, told)
    except KeyboardInterrupt:
        document["interrupted"] = True
    document["finished"] = machine.now()
    return document


def _run_threads(
    options: Options, workers: Crew, threads: int, document: dict[str, Any], told: Callable[[str, Any], None]
) -> None:
    ours = workers.worker(OURS, threads)
    document["build"] = machine.build(ours.facts)
    if options.mode == "performance":
        told("peaks", threads)
        document["peaks"] += peaks.measure(ours, threads)
        if options.device != "cpu" and not document.get("device_peaks"):
            document["device_peaks"] = ours.ask("device_peaks", device=options.device)
            if "error" in document["device_peaks"]:
                raise BenchError(f"{options.device}: {document['device_peaks']['error']}")
    workers.refused = {}
    for name in available_peers(options.peers):
        try:
            workers.worker(name, threads)
        except (BenchError, WorkerLostError) as error:
            workers.refused[name] = str(error)
            document["peers"][name].setdefault("refused", {})[str(threads)] = str(error)
            told("refused", (name, str(error)))
    for problem in options.problems:
        told("begin", problem)
        row = Row(options, workers, problem, threads, document["peaks"]).measured()
        document["rows"].append(row)
        told("row", row)


class Row:
    """One problem on one number of threads."""

    def __init__(
        self, options: Options, workers: Crew, problem: Problem, threads: int, found: list[dict[str, Any]]
    ) -> None:
        self.options, self.workers, self.problem, self.threads = options, workers, problem, threads
        self.peaks = [p for p in found if p["threads"] == threads]
        facts = problem.facts
        self.row: dict[str, Any] = {
            "problem": problem.text,
            "op": problem.op,
            "family": problem.family,
            "name": problem.name,
            "dtype": problem.dtype,
            "direction": problem.direction,
            "threads": threads,
            "device": options.device,
            "sets": list(problem.sets),
            "flops": facts.flops,
            "read": facts.read,
            "written": facts.written,
            "status": "ok",
            "message": "",
            "contestants": {},
            "ratios": {},
            "bound": None,
        }

    def measured(self) -> dict[str, Any]:
        """The row; a wrong or failing kernel has no time."""
        try:
            askers = self._built()
        except WorkerLostError as lost:
            self.workers.drop(OURS)
            return self._failed("error", str(lost))
        if self.options.mode == "performance" and self.row["status"] == "ok":
            self._measure(askers)
        return self.row

    def _failed(self, status: str, message: str) -> dict[str, Any]:
        self.row.update(status=status, message=message)
        return self.row

    def _built(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Has every library make and check its contestants: those that may be timed."""
        askers: dict[str, Callable[[], dict[str, Any]]] = {}
        rivals = available_peers(self.options.peers) if self.options.device == "cpu" else []
        for library in [OURS, *rivals]:
            if library in self.workers.refused:
                continue
            try:
                worker = self.workers.worker(library, self.threads)
                answer = worker.ask(
                    "build",
                    problem=self.problem.text,
                    answers=self.workers.answers,
                    copies=self._copies(),
                    cold=self.options.cold,
                    device=self.options.device if library == OURS else "cpu",
                    timed=self.options.mode == "performance",
                )
            except (WorkerLostError, BenchError) as lost:
                if library == OURS:
                    raise
                self.workers.drop(library)
                answer = {"error": str(lost)}
            if "error" in answer:
                if library == OURS:
                    self._failed("n/a" if answer.get("unsupported") else "error", answer["error"])
                    return {}
                self.row["contestants"][library] = {"status": "error", "message": answer["error"]}
                continue
            for name, told in answer["contestants"].items():
                self._told(name, told, askers, worker)
            if self.row["status"] != "ok":
                return {}
        return askers

    def _told(
        self, name: str, told: dict[str, Any], askers: dict[str, Callable[[], dict[str, Any]]], worker: Remote
    ) -> None:
        entry: dict[str, Any] = {"status": "ok", "message": "", "prepacked": told["prepacked"]}
        self.row["contestants"][name] = entry
        if told["wrong"]:
            entry.update(status="wrong", message=told["wrong"])
            if name.startswith(OURS):
                self._failed("wrong", f"{name}: {told['wrong']}")
            return
        askers[name] = lambda: worker.ask("block", name=name)

    def _copies(self) -> int:
        """How many copies of the operands calls take turns with, so that none is in a cache."""
        if self.options.cold == "none":
            return 1
        size = max(1, self.problem.facts.read + self.problem.facts.written)
        level_three = int(self.workers.worker(OURS, self.threads).facts["caches"][2])
        return max(2, min(_LIBRARY_COLD_COPIES, -(-2 * level_three // size)))

    def _measure(self, askers: dict[str, Callable[[], dict[str, Any]]]) -> None:
        loops = self._loops()
        for kind, ask in loops.pop("askers", {}).items():
            askers[f"peak {kind}"] = ask
        pause = 0.001 if self.threads == 1 else 0.012
        samples, lost = measure.interleave(askers, self.options.plan, pause)
        for name, message in lost.items():
            if name.startswith(OURS):
                self.workers.drop(OURS)
                self._failed("error", message)
                return
            self.row["contestants"].setdefault(name, {}).update(status="error", message=message)
            self.workers.drop(name.split()[0])
        for name, taken in samples.items():
            if name in lost or name.startswith("peak "):
                continue
            entry = self.row["contestants"][name]
            entry.update(measure.summary(taken), samples=results.pairs(taken))
            if any("kernel" in s for s in taken):
                entry["kernel_samples"] = [s.get("kernel") for s in taken]
        self._compare({n: s for n, s in samples.items() if n not in lost})
        if loops:
            self._bound(loops, samples)

    def _loops(self) -> dict[str, Any]:
        facts = self.problem.facts
        if self.options.device != "cpu" or not (facts.flops or facts.read or facts.written):
            return {}
        worker = self.workers.worker(OURS, self.threads)
        tier = worker.facts["tier"]
        level = peaks.levels(worker.facts["caches"], self.threads)[-1]
        if self.options.cold == "none":
            level = peaks.level_of(facts, peaks.levels(worker.facts["caches"], self.threads))
        loops = peaks.loops_of(facts, self.problem.dtype, tier, self.peaks, level)

        def ask(kind: str) -> dict[str, Any]:
            size = level.loop_bytes if kind in peaks.MEMORY else 0
            answer = worker.ask("peak", kind=kind, seconds=1.5e-3, bytes=size, tier=tier)
            return answer if "error" in answer else {**answer, "seconds": 1 / answer["rate"]}

        return {**loops, "askers": {kind: lambda kind=kind: ask(kind) for kind in loops["kinds"]}}

    def _bound(self, loops: dict[str, Any], samples: dict[str, list[Any]]) -> None:
        loop_samples = {k: samples.get(f"peak {k}", []) for k in loops["kinds"]}
        if not all(loop_samples.values()):
            return
        rates = {k: 1 / measure.summary(s)["median"] for k, s in loop_samples.items()}
        seconds = peaks.bound_seconds(self.problem.facts, loops["kinds"], rates)
        self.row["bound"] = {"by": loops["by"], "seconds": seconds, "rates": rates}
        for entry in self.row["contestants"].values():
            if "median" in entry:
                entry["of_bound"] = seconds / entry["median"]

    def _compare(self, samples: dict[str, list[Any]]) -> None:
        """Ratios of like with like: weights handed over in the call, and weights handed over before."""
        entries = self.row["contestants"]
        for ours, prepacked in ((OURS, False), (PREPARED, True)):
            if ours not in samples:
                continue
            for name, taken in samples.items():
                rival = not name.startswith((OURS, "peak ")) and entries[name].get("prepacked", False) == prepacked
                if rival and taken:
                    self.row["ratios"][name] = asdict(measure.paired(samples[ours], taken))


def load_modules(names: list[str]) -> None:
    """Imports modules whose ops take part, here as in every worker."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BenchError(f"--import {name}: {error}") from None
