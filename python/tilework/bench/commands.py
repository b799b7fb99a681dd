"""The commands of the bench."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilework.bench import choose, machine, measure, peers, problems, results, table
from tilework.bench.arguments import MINUTES, SWEEPS, parser
from tilework.bench.crew import available_peers
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError
from tilework.bench.progress import Progress
from tilework.bench.run import Options, load_modules, run, settings
from tilework.errors import Error

_QUICK_MINUTES = 1.5
_AUTOSAVE = 30.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0, or 1 where a comparison failed, 2 for a request that cannot be served, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser(_ACTIONS).parse_args(arguments)
        options.argv = ["tilework", "bench", *arguments]
        return int(options.act(options))
    except Error as error:
        print(f"tilework bench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _split(texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part]


def _sets(texts: list[str]) -> list[str]:
    return [part for text in texts for part in ([text] if "=" in text or Path(text).exists() else text.split(","))]


def _selected(options: Any) -> list[problems.Problem]:
    load_modules(options.load)
    sets = _sets(options.set) + list(options.problems)
    if getattr(options, "quick", False):
        sets.append("quick")
    return choose.select(sets, _split(options.op), _split(options.dtype), _split(options.dir))


def _threads(text: str) -> list[int]:
    most = len(os.sched_getaffinity(0))
    found = []
    for part in text.split(","):
        if part != "max" and (not part.isdigit() or not 1 <= int(part) <= 1024):
            raise BenchError(f"--threads {text:.60}; want numbers of 1 to 1024, or max, with commas")
        found.append(most if part == "max" else int(part))
    return list(dict.fromkeys(found))


def _peers(text: str) -> list[str]:
    if text in ("all", "none"):
        return list(peers.PEERS) if text == "all" else []
    return [problems.known("peer", p, peers.PEERS) for p in text.split(",") if p]


def _devices(text: str) -> list[str]:
    return list(dict.fromkeys(_device(part) for part in text.split(",")))


def _device(name: str) -> str:
    if name == "cpu":
        return name
    from tilework.backends import opencl

    reason = opencl.why_none()
    if reason:
        raise BenchError(f"--device {name:.60}: {reason}")
    wanted, _, rank = name.partition(":")
    names = [d.name for d in opencl.device_list()]
    matching = [n for n in names if wanted == "opencl" or wanted.lower() in n.lower()]
    if not matching or (rank and (not rank.isdigit() or int(rank) >= len(matching))):
        raise BenchError(f"there is no device '{name:.60}'; want cpu, opencl or one of {', '.join(names)}")
    return name


def _plan(options: Any, sweeps: int = 1) -> Plan:
    quick = getattr(options, "quick", False)
    plan = Plan(least=5, budget=0.25) if quick else Plan()
    budget = options.min_time or plan.budget
    return Plan(least=-(-plan.least // sweeps), most=-(-plan.most // sweeps), budget=budget / sweeps)


# ---------------------------------------------------------------------------------------------------- commands


def _list(options: Any) -> int:
    load_modules(options.load)
    if options.sets:
        print("\n".join(choose.set_names(choose.every_workload())))
        return 0
    rows = []
    for p in _selected(options):
        f = p.facts
        rows.append(
            (
                p.name,
                table.count_text(f.flops, "F") if f.flops else "",
                table.count_text(f.read + f.written, "B"),
                " ".join(p.sets),
                shlex.quote(p.text),
            )
        )
    table.show(("name", "operations", "bytes", "sets", "problem"), rows)
    return 0


def _run(options: Any) -> int:
    if options.resume and not options.output:
        raise BenchError("--resume goes on with the run in a file; want -o FILE")
    if options.output:
        results.check_writable(
            options.output, force=options.force or options.resume, instead="--force to replace it, --resume to go on"
        )
    load_modules(options.load)
    wanted = _peers(options.peers)
    if options.mode == "performance":
        measure.statistics_library()
    sweeps = options.sweeps or (1 if options.quick else SWEEPS)
    minutes = options.minutes
    if minutes is None and options.min_time is None:
        minutes = _QUICK_MINUTES if options.quick else MINUTES
    made = Options(
        _selected(options),
        wanted,
        _threads(options.threads),
        _devices(options.device),
        options.mode,
        options.cold,
        _plan(options, sweeps),
        sweeps,
        minutes,
        options.load,
        [Path(a).name if a == options.output else a for a in options.argv],
    )
    before = _resumed(options, made)
    if not options.md:
        _announce(made)
    progress = Progress()
    with _terminable():
        try:
            document = run(made, _Keeper(options.output, progress), before)
        finally:
            progress.close()
    return _finish(options, document)


def _resumed(options: Any, made: Options) -> dict[str, Any] | None:
    return _going_on(options.output, made) if options.resume and Path(options.output).exists() else None


def _going_on(path: str, made: Options) -> dict[str, Any]:
    """The run to go on with, if it is one of the same machine, build and settings."""
    document = results.load(path)
    if document["settings"] != settings(made):
        raise BenchError(f"{path} was made with {document['settings']}; want {settings(made)}")
    if document["machine"]["cpu"] != machine.cpu_name():
        raise BenchError(f"{path} is from another machine, {document['machine']['cpu']}")
    core = machine.core_digest()
    if document["build"] and document["build"]["core"] != core:
        raise BenchError(f"{path} is from another build, {document['build']['core']}; this one is {core}")
    return document


@contextmanager
def _terminable() -> Iterator[None]:
    """Being told to end is like Ctrl-C: what was measured is written."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Keeper:
    """Writes the run now and then, so that nothing ends it without a trace."""

    def __init__(self, path: str | None, told: Callable[[str, Any], None]) -> None:
        self._path, self._told, self._saved = path, told, time.monotonic()
        self._document: dict[str, Any] = {}

    def __call__(self, what: str, value: Any) -> None:
        self._told(what, value)
        if what == "document":
            self._document = value
        elif what == "row" and self._path and time.monotonic() - self._saved > _AUTOSAVE:
            results.save(self._path, {**self._document, "interrupted": True})
            self._saved = time.monotonic()


def _announce(options: Options) -> None:
    print(f"{machine.cpu_name()}, {len(os.sched_getaffinity(0))} CPUs; {len(options.problems)} problems")
    for name in options.peers:
        reason = peers.why_absent(name)
        print(f"  {name} {peers.version(name)}" if not reason else f"  {name} absent: {reason}")
    for warning in machine.warnings():
        print(f"  {warning}")
    sys.stdout.flush()


def _finish(options: Any, document: dict[str, Any]) -> int:
    rows = document["rows"]
    columns: tuple[str, ...] = table.COLUMNS
    lines = list(map(table.cells, rows))
    if options.contestants:
        columns, lines = table.CONTESTANT_COLUMNS, [line for row in rows for line in table.contestant_cells(row)]
    if options.md:
        print(table.markdown(columns, lines))
    else:
        table.show(columns, lines)
        for row in rows:
            if row["status"] != "ok":
                print(f"{row['status']}: {row['message']}\n  tilework bench run {shlex.quote(row['problem'])}")
        averages = [(f, p, f"{m:.2f}", str(n)) for f, p, m, n in table.means(rows)]
        if averages:
            table.show(
                ("family", "peer", "mean ratio", "rows"), averages, "geometric means, above 1 tilework is faster"
            )
        if any(c.get("busy") for r in rows for c in r["contestants"].values()):
            print("~ the machine was busy during this row")
    if options.output:
        results.save(options.output, document)
        print(f"wrote {options.output}", file=sys.stderr)
    if document["interrupted"]:
        return 130
    if document.get("left"):
        again = "; --resume goes on" if options.output else ""
        print(f"the time was up with {document['left']} rows left{again}", file=sys.stderr)
    return 1 if any(r["status"] in ("wrong", "error") for r in rows) else 0


def _record(options: Any) -> int:
    """One command from nothing, or from where it was interrupted, to the pages of the repository."""
    for path in (options.output, *([str(Path(options.docs) / "performance.md")] if options.docs else [])):
        results.check_writable(path, force=True)
    if options.force:
        Path(options.output).unlink(missing_ok=True)
    measure.statistics_library()
    load_modules(options.load)
    made = Options(
        _selected(options),
        _peers(options.peers),
        _threads(options.threads),
        sweeps=SWEEPS,
        minutes=options.minutes,
        load=options.load,
        command=[Path(a).name if a == options.output else a for a in options.argv],
    )
    document = _going_on(options.output, made) if Path(options.output).exists() else None
    if document is None or document["interrupted"] or not _is_whole(document, made):
        _announce(made)
        progress = Progress()
        with _terminable():
            try:
                document = run(made, _Keeper(options.output, progress), document)
            finally:
                progress.close()
        results.save(options.output, document)
        print(f"wrote {options.output}", file=sys.stderr)
        if document["interrupted"]:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 130
        if document.get("left"):
            print(f"the time was up with {document['left']} rows left; the same command goes on", file=sys.stderr)
    return _pages(options, document)


def _is_whole(document: dict[str, Any], made: Options) -> bool:
    measured = {results.key(r) for r in document["rows"]}
    return all((p.text, t, d) in measured for p, t, d in made.jobs())


def _pages(options: Any, document: dict[str, Any]) -> int:
    from tilework.bench import report

    if options.docs:
        report.write_folder(document, options.docs)
    if options.readme:
        place = f"bench:{Path(options.docs).resolve().name}" if options.docs else "bench"
        report.put_between_marks(options.readme, report.summary(document), place)
    wrong = [r for r in document["rows"] if r["status"] in ("wrong", "error")]
    for row in wrong:
        print(f"{row['status']}: {row['message']}\n  tilework bench run {shlex.quote(row['problem'])}")
    return 1 if wrong else 0


def _pictures(options: Any) -> int:
    from tilework.bench import pictures

    if options.seed is not None and options.seed < 0:
        raise BenchError(f"--seed {options.seed}; want a number of at least 0")
    return pictures.show(_threads(options.threads), options.min_time, options.scenes, options.seed, markdown=options.md)


def _compare(options: Any) -> int:
    from tilework.bench import compare

    return compare.show(results.load(options.old), results.load(options.new), options.fail_over)


def _ab(options: Any) -> int:
    from tilework.bench import ab

    if options.output:
        results.check_writable(options.output, force=options.force)
    measure.statistics_library()
    made = Options(
        _selected(options), [], _threads(options.threads), plan=_plan(options), load=options.load, command=options.argv
    )
    progress = Progress()
    with _terminable():
        try:
            document = ab.run(made, options.old, options.new, options.pairs, progress)
        finally:
            progress.close()
    code = ab.show(document, options.fail_over)
    if options.output:
        results.save(options.output, document)
    return 130 if document["interrupted"] else code


def _roofline(options: Any) -> int:
    from tilework.bench import roofline

    roofline.check_name(options.output)
    results.check_writable(options.output, force=options.force)
    if options.run:
        document = results.load(options.run)
    else:
        measure.statistics_library()
        made = Options(
            choose.select(["quick"]),
            available_peers(["numpy", "torch"]),
            plan=Plan(least=5, budget=0.25),
            command=options.argv,
        )
        progress = Progress()
        try:
            document = run(made, progress)
        finally:
            progress.close()
    roofline.draw(document, options.output)
    return 0


def _report(options: Any) -> int:
    from tilework.bench import report

    if not (options.output or options.markdown or options.readme or options.record):
        raise BenchError("report writes nothing; want -o FILE.html, --markdown, --readme or --record")
    if options.set and not options.readme:
        raise BenchError("--set names tables of a README; want --readme FILE")
    document = results.load(options.run)
    old = results.load(options.old) if options.old else None
    if options.output:
        results.check_writable(options.output, force=options.force)
        report.write(options.output, report.html(document, old))
    if options.record:
        results.save(options.record, results.thinned(document))
        print(f"wrote {options.record}")
    if options.markdown:
        report.write(options.markdown, report.markdown(document, options.record or options.run))
    names = _split(options.set)
    for name in names:
        report.put_between_marks(options.readme, report.case_tables(document, name), f"bench:{name}")
    if options.readme and not names:
        report.put_between_marks(options.readme, report.summary(document))
    return 0


_ACTIONS: dict[str, Callable[[Any], int]] = {
    "list": _list,
    "run": _run,
    "record": _record,
    "pictures": _pictures,
    "compare": _compare,
    "ab": _ab,
    "roofline": _roofline,
    "report": _report,
}
