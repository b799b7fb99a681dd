"""Two installations beside each other: two processes, interleaved rounds, and again with other processes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tilework.bench import compare, machine, measure, results, table
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError, Problem
from tilework.bench.protocol import WorkerLostError
from tilework.bench.remote import Remote, installation
from tilework.bench.run import Options


def run(options: Options, old: str, new: str, pairs: int, told: Callable[[str, Any], None]) -> dict[str, Any]:
    """Rows whose contestant ``tilework`` is the new installation, and ``old`` the other."""
    document: dict[str, Any] = {
        "schema": results.SCHEMA,
        "started": machine.now(),
        "finished": "",
        "interrupted": False,
        "command": options.command,
        "machine": machine.facts(),
        "build": {},
        "peers": {"old": {"version": old}},
        "settings": {"pairs": pairs, "plan": asdict(options.plan)},
        "peaks": [],
        "device_peaks": {},
        "rows": [],
    }
    plan = replace(
        options.plan,
        budget=options.plan.budget / pairs,
        most=-(-options.plan.most // pairs),
        least=-(-options.plan.least // pairs),
    )
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        where = {"old": installation(old, scratch), "tilework": installation(new, scratch)}
        told("rows", len(options.threads) * pairs * len(options.problems))
        try:
            for threads in options.threads:
                for number in range(pairs):
                    _pair(options, where, threads, plan, number, rows, document, told, scratch)
        except KeyboardInterrupt:
            document["interrupted"] = True
    for row in rows.values():
        _summarise(row)
    document.update(rows=list(rows.values()), finished=machine.now())
    return document


def _pair(
    options: Options,
    where: dict[str, dict[str, str]],
    threads: int,
    plan: Plan,
    number: int,
    rows: dict[tuple[str, int], dict[str, Any]],
    document: dict[str, Any],
    told: Callable[[str, Any], None],
    scratch: str,
) -> None:
    workers: dict[str, Remote] = {}
    try:
        for side, place in where.items():
            workers[side] = Remote("tilework", python=place.get("python", sys.executable), path=place.get("path", ""))
            for module in options.load:
                _demand(workers[side], side, "load", module=module)
            _demand(workers[side], side, "threads", count=threads)
        document["build"] = machine.build(workers["tilework"].facts)
        for problem in options.problems:
            told("begin", (problem, threads, "cpu", number))
            row = rows.setdefault((problem.text, threads), _empty(problem, threads))
            if row["status"] == "ok":
                _measure(row, workers, problem, plan, number, str(Path(scratch) / "answers.npz"))
    except WorkerLostError as lost:
        raise BenchError(f"a worker was lost: {lost}") from None
    finally:
        for worker in workers.values():
            worker.close()


def _demand(worker: Remote, side: str, do: str, **arguments: Any) -> None:
    error = worker.ask(do, **arguments).get("error")
    if error:
        raise BenchError(f"{side}: {error}")


def _empty(problem: Problem, threads: int) -> dict[str, Any]:
    return {
        "problem": problem.text,
        "op": problem.op,
        "family": problem.family,
        "name": problem.name,
        "dtype": problem.dtype,
        "direction": problem.direction,
        "threads": threads,
        "device": "cpu",
        "status": "ok",
        "message": "",
        "sweeps": 1,
        "ratios": {},
        "bound": None,
        "flops": problem.facts.flops,
        "read": problem.facts.read,
        "written": problem.facts.written,
        "contestants": {side: {"status": "ok", "message": "", "samples": []} for side in ("tilework", "old")},
    }


def _measure(
    row: dict[str, Any],
    workers: dict[str, Remote],
    problem: Problem,
    plan: Plan,
    number: int,
    answers: str,
) -> None:
    for side, worker in workers.items():
        answer = worker.ask("build", problem=problem.text, answers=answers)
        wrong = answer.get("error") or answer["contestants"]["tilework"]["wrong"]
        if wrong:
            row.update(status="error" if "error" in answer else "wrong", message=f"{side}: {wrong}")
            return
    askers: dict[str, measure.Asker] = {side: partial(_block, worker) for side, worker in workers.items()}
    samples, lost = measure.interleave(askers, plan, row["threads"], seed=number)
    if lost:
        side, why = next(iter(lost.items()))
        row.update(status="error", message=f"{side}: {why}")
        return
    for side, taken in samples.items():
        row["contestants"][side]["samples"] += results.pairs(taken)


def _block(worker: Remote, cpu: int | None) -> dict[str, Any]:
    return worker.ask("block", name="tilework", cpu=cpu)


def _summarise(row: dict[str, Any]) -> None:
    taken = {side: results.samples(row, side) for side in ("tilework", "old")}
    if row["status"] == "ok" and all(taken.values()):
        for side, samples in taken.items():
            row["contestants"][side].update(measure.summary(samples))
        row["ratios"]["old"] = asdict(measure.paired(taken["tilework"], taken["old"]))


def show(document: dict[str, Any], fail_over: float | None) -> int:
    """Prints the rows; 1 if one is slower than allowed, or wrong."""
    joined = []
    for row in document["rows"]:
        ratio = row["ratios"].get("old", {"verdict": row["status"] if row["status"] != "ok" else "not timed"})
        joined.append({"row": row, "old": {"contestants": {"tilework": row["contestants"]["old"]}}, **ratio})
    table.show(compare.COLUMNS, map(compare.cells, joined))
    compare.show_means(joined)
    bad = compare.failing(joined, fail_over)
    for j in bad:
        print(f"{j['verdict']}: {j['row']['problem']} {j['row']['message']}")
    return 1 if bad else 0
