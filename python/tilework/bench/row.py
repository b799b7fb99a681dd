"""A row: one problem on one device and number of threads, checked once and measured in every sweep."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from tilework.bench import measure, peaks, peers, results
from tilework.bench.crew import OURS, PREPARED, Crew, available_peers
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError, Problem
from tilework.bench.protocol import WorkerLostError
from tilework.bench.remote import PATIENCE, Remote

if TYPE_CHECKING:
    from tilework.bench.run import Options

_COLD_COPIES = 32
_TOO_LONG = 1.0  # seconds of a call that is left out, if it is
_TOO_SLOW = 5.0  # times slower than ours
_PEAK = "peak "
_ALONE = f"{OURS} on one thread"  # beside rows on several

Askers = dict[str, measure.Asker]


class Row:
    """Adds sweeps to the record of a row, and keeps what follows from them up to date."""

    def __init__(
        self, options: Options, workers: Crew, problem: Problem, record: dict[str, Any], document: dict[str, Any]
    ) -> None:
        self.options, self.workers, self.problem, self.record = options, workers, problem, record
        self.threads, self.device = record["threads"], record["device"]
        self._peaks = [p for p in document["peaks"] if p["threads"] == self.threads]
        self._device_peaks = document["device_peaks"].get(self.device)
        self._once: dict[str, float] = {}  # seconds of one call of each contestant, roughly

    @staticmethod
    def empty(problem: Problem, threads: int, device: str) -> dict[str, Any]:
        """The record of a row before its first sweep."""
        facts = problem.facts
        return {
            "problem": problem.text,
            "op": problem.op,
            "family": problem.family,
            "name": problem.name,
            "dtype": problem.dtype,
            "direction": problem.direction,
            "threads": threads,
            "device": device,
            "sets": list(problem.sets),
            "flops": facts.flops,
            "read": facts.read,
            "written": facts.written,
            "status": "ok",
            "message": "",
            "sweeps": 0,
            "contestants": {},
            "ratios": {},
            "bound": None,
        }

    def sweep(self, plan: Plan, seed: int) -> None:
        """Checks in the first sweep, then measures; a wrong or failing kernel has no time."""
        row = self.record
        try:
            askers = self._built(check=row["sweeps"] == 0)
        except WorkerLostError as lost:
            self.workers.drop(OURS)
            self._fail("error", str(lost))
        else:
            if self.options.mode == "performance" and row["status"] == "ok":
                self._measure(askers, plan, seed)
        if row["status"] == "ok":
            row["sweeps"] += 1
        else:
            row.update(sweeps=self.options.sweeps, ratios={}, bound=None)

    def _fail(self, status: str, message: str) -> None:
        self.record.update(status=status, message=message)
        for entry in self.record["contestants"].values():
            for measured in ("median", "p10", "p90", "kernel", "of_bound"):
                entry.pop(measured, None)

    # ------------------------------------------------------------------------------------------------- building

    def _built(self, *, check: bool) -> Askers:
        """Has every library make, and in the first sweep check, its contestants: those that may be timed."""
        askers: Askers = {}
        for library in [OURS, *self._rivals(check=check)]:
            try:
                worker = self.workers.worker(library, self.threads)
                answer = worker.ask(
                    "build",
                    patience=PATIENCE if library == OURS else peers.PEERS[library].patience,
                    problem=self.problem.text,
                    answers=self.workers.answers if check else "",
                    operands=self.workers.operands,
                    copies=self._copies(),
                    cold=self.options.cold,
                    device=self.device if library == OURS else "cpu",
                    timed=self.options.mode == "performance",
                )
            except (WorkerLostError, BenchError) as lost:
                if library == OURS:
                    raise
                self.workers.drop(library)
                answer = {"error": str(lost)}
            if "error" in answer:
                if library == OURS:
                    self._fail("n/a" if answer.get("unsupported") else "error", answer["error"])
                    return {}
                self._lose(library, answer["error"], "n/a" if answer.get("unsupported") else "error")
                continue
            for name, told in answer["contestants"].items():
                self._told(name, told, askers, worker)
            if self.record["status"] != "ok":
                return {}
        return askers

    def _rivals(self, *, check: bool) -> list[str]:
        found = available_peers(self.options.peers) if self.device == "cpu" else []
        found = [f for f in found if (f, self.threads) not in self.workers.refused]
        if check:
            return found
        entries = self.record["contestants"]
        return [f for f in found if any(n.split(" ")[0] == f and e["status"] == "ok" for n, e in entries.items())]

    def _lose(self, library: str, message: str, status: str = "error") -> None:
        entries = self.record["contestants"]
        for name in [n for n in entries if n.split(" ")[0] == library] or [library]:
            entries.setdefault(name, {}).update(status=status, message=message)

    def _told(self, name: str, told: dict[str, Any], askers: Askers, worker: Remote) -> None:
        entry = self.record["contestants"].setdefault(
            name, {"status": "ok", "message": "", "prepacked": told["prepacked"]}
        )
        if entry["status"] != "ok":
            return
        if told["wrong"]:
            entry.update(status="wrong", message=told["wrong"])
            if name.startswith(OURS):
                self._fail("wrong", f"{name}: {told['wrong']}")
            return
        self._once[name] = told.get("once", 0.0)
        if self._once[name] > max(_TOO_LONG, _TOO_SLOW * self._once.get(OURS, 0.0)):
            entry.update(status="n/a", message=f"takes {self._once[name]:.1f} s a call, too long to take turns")
            return
        askers[name] = lambda cpu: worker.ask("block", name=name, cpu=cpu)

    def _copies(self) -> int:
        """How many copies of the operands calls take turns with, so that none is in a cache."""
        if self.options.cold == "none":
            return 1
        size = max(1, self.problem.facts.read + self.problem.facts.written)
        level_three = int(self.workers.worker(OURS, self.threads).facts["caches"][2])
        return max(2, min(_COLD_COPIES, -(-2 * level_three // size)))

    # ------------------------------------------------------------------------------------------------ measuring

    def _measure(self, askers: Askers, plan: Plan, seed: int) -> None:
        loops = self._loops()
        for kind, ask in loops.pop("askers", {}).items():
            askers[_PEAK + kind] = ask
        if self.threads > 1 and OURS in askers:
            askers[_ALONE] = self._alone
        rivals = [n for n in askers if not n.startswith((OURS, _PEAK))]
        samples, lost = measure.interleave(askers, plan, self.threads, seed, rivals)
        for name, message in lost.items():
            if name.startswith((OURS, _PEAK)):
                self.workers.drop(OURS)
                self._fail("error", message)
                return
            self._lose(name, message)
            self.workers.drop(name.split(" ")[0])
        for name, taken in samples.items():
            if name not in lost:
                self._keep(name, taken)
        self._conclude(loops)

    def _alone(self, cpu: int | None) -> dict[str, Any]:
        """A block of ours on one thread."""
        answer = self.workers.worker(OURS, 1).ask("block", name=OURS, cpu=cpu)
        self.workers.worker(OURS, self.threads)
        return answer

    def _keep(self, name: str, taken: list[dict[str, float]]) -> None:
        if name == _ALONE:
            self.record.setdefault("alone", []).extend(results.pairs(taken))
            return
        if name.startswith(_PEAK):
            kept = self.record.setdefault("loops", {}).setdefault(name.removeprefix(_PEAK), [])
            kept += results.pairs(taken)
            return
        entry = self.record["contestants"][name]
        entry.setdefault("samples", []).extend(results.pairs(taken))
        if any("kernel" in s for s in taken):
            known = entry.setdefault("kernel_samples", [None] * (len(entry["samples"]) - len(taken)))
            known += [results.four_digits(s.get("kernel")) for s in taken]

    def _conclude(self, loops: dict[str, Any]) -> None:
        """Summaries, ratios and the bound, from all sweeps so far."""
        entries = self.record["contestants"]
        samples = {n: results.samples(self.record, n) for n, e in entries.items() if e["status"] == "ok"}
        for name, taken in samples.items():
            entries[name].update(measure.summary(taken))
        # Like with like: weights handed over in the call, and weights handed over before.
        for ours, prepacked in ((OURS, False), (PREPARED, True)):
            for name, taken in samples.items() if ours in samples else ():
                if not name.startswith(OURS) and entries[name].get("prepacked", False) == prepacked:
                    self.record["ratios"][name] = asdict(measure.paired(samples[ours], taken))
        self.record["ratios"] = {n: r for n, r in self.record["ratios"].items() if n in samples}
        if self.record.get("alone"):
            self.record["scaling"] = asdict(measure.paired(samples[OURS], results.seconds_of(self.record["alone"])))
        self._bound(loops)

    def _bound(self, loops: dict[str, Any]) -> None:
        if self.device != "cpu":
            self.record["bound"] = peaks.device_bound(self.problem.facts, self._device_peaks or {})
        elif loops:
            taken = {k: results.seconds_of(self.record.get("loops", {}).get(k, [])) for k in loops["kinds"]}
            if not all(taken.values()):
                return
            # A roof is what the machine can do: the fastest block, where others may have slowed the rest.
            rates = {k: 1 / min(b["seconds"] for b in s) for k, s in taken.items()}
            seconds = peaks.bound_seconds(self.problem.facts, loops, rates)
            self.record["bound"] = {"by": loops["by"], "seconds": seconds, "rates": rates}
        bound = self.record["bound"]
        for entry in self.record["contestants"].values() if bound else ():
            if "median" in entry:
                entry["of_bound"] = bound["seconds"] / entry["median"]

    def _loops(self) -> dict[str, Any]:
        facts = self.problem.facts
        if self.device != "cpu" or not (facts.flops or facts.read or facts.written):
            return {}
        worker = self.workers.worker(OURS, self.threads)
        tier = worker.facts["tier"]
        levels = peaks.levels(worker.facts["caches"], self.threads)
        level = peaks.level_of(facts, levels) if self.options.cold == "none" else levels[-1]
        loops = peaks.loops_of(facts, tier, self._peaks, level)

        def ask(cpu: int | None, kind: str) -> dict[str, Any]:
            size = level.loop_bytes if kind in peaks.MEMORY else 0
            answer = worker.ask("peak", kind=kind, seconds=1e-3, bytes=size, tier=tier, cpu=cpu)
            return answer if "error" in answer else {**answer, "seconds": 1 / answer["rate"]}

        return {**loops, "askers": {kind: partial(ask, kind=kind) for kind in loops["kinds"]}}
