"""The command line of the bench."""

from __future__ import annotations

import argparse
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
from tilework.bench.crew import available_peers
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError
from tilework.bench.progress import Progress
from tilework.bench.run import Options, load_modules, run, settings
from tilework.errors import Error

_DEFAULT_PEERS = "numpy,scipy,torch,onnxruntime"
_MINUTES, _QUICK_MINUTES = 13.0, 0.7
_SWEEPS = 2
_AUTOSAVE = 30.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command: 0, or 1 where a comparison failed, 2 for a request that cannot be served, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tilework bench", description="Measures ops beside other libraries and the machine's peaks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        return made

    listing = command("list", _list, "Lists problems with their operations and bytes, as lines that reproduce them.")
    _choice(listing)
    listing.add_argument("--sets", action="store_true", help="list the names of sets instead")

    running = command("run", _run, "Checks, then measures problems beside peers and peaks.")
    _choice(running)
    _timing(running)
    running.add_argument(
        "--device", default="cpu", metavar="A,B", help="cpu, opencl, opencl:1, or OpenCL devices by name (default cpu)"
    )
    running.add_argument(
        "--peers", default=_DEFAULT_PEERS, metavar="A,B", help=f"of {', '.join(peers.PEERS)}; all; none"
    )
    running.add_argument("--mode", choices=("performance", "correctness"), default="performance")
    running.add_argument(
        "--cold", choices=("none", "weights", "all"), default="none", help="operands that calls find in memory only"
    )
    running.add_argument(
        "--sweeps", type=_positive, default=None, metavar="N", help=f"times to go over all rows (default {_SWEEPS})"
    )
    running.add_argument(
        "--minutes",
        type=_minutes,
        default=None,
        metavar="M",
        help=f"minutes for the whole run, about, which its rows share (default {_MINUTES:g}, without --min-time)",
    )
    running.add_argument("--quick", action="store_true", help="a few small problems of each family")
    running.add_argument("--resume", action="store_true", help="go on with the run in FILE; rows it holds are kept")
    running.add_argument("--md", action="store_true", help="print the table as Markdown")
    _output(running)

    comparing = command("compare", _compare, "Compares the rows of two recorded runs.")
    comparing.add_argument("old")
    comparing.add_argument("new")
    _failing(comparing)

    versus = command("ab", _ab, "Measures two installations beside each other.")
    versus.add_argument(
        "--old", required=True, metavar="PATH", help="folder with tilework in it, environment, Python or wheel"
    )
    versus.add_argument("--new", required=True, metavar="PATH")
    versus.add_argument(
        "--pairs", type=_positive, default=3, metavar="N", help="pairs of processes, one after the other (default 3)"
    )
    _choice(versus)
    _timing(versus)
    _output(versus)
    _failing(versus)

    roof = command("roofline", _roofline, "Draws roofs and points of a recorded run, or of the quick set.")
    roof.add_argument("run", nargs="?")
    roof.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write: .svg, .png or .pdf")
    roof.add_argument("--force", action="store_true", help="replace the file if it exists")

    report = command("report", _report, "Writes one page about a recorded run.")
    report.add_argument("run")
    report.add_argument("old", nargs="?", help="an earlier run to compare with")
    report.add_argument("-o", "--output", metavar="FILE", help="HTML file to write")
    report.add_argument("--markdown", metavar="FILE", help="Markdown file to write, or to write again")
    report.add_argument(
        "--readme", metavar="FILE", help="file whose lines between the bench:begin and bench:end marks are replaced"
    )
    report.add_argument(
        "--record", metavar="FILE", help="JSON to write, or to write again, with each round's fastest pass alone"
    )
    report.add_argument("--force", action="store_true", help="replace the HTML file if it exists")
    return parser


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "problems", nargs="*", metavar="PROBLEM", help="a problem line, a file of them, or the name of a set"
    )
    parser.add_argument(
        "--set", "--shapes", action="append", default=[], metavar="NAME", help="a set, a file or a problem line"
    )
    parser.add_argument("--op", action="append", default=[], metavar="A,B", help="only these ops")
    parser.add_argument(
        "--dtype", action="append", default=[], metavar="A,B", help="f32, f64 (default: as the set says)"
    )
    parser.add_argument("--dir", action="append", default=[], metavar="A,B", help="fwd, bwd, step (default fwd)")
    parser.add_argument(
        "--import",
        dest="load",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first; the ops it registers take part",
    )


def _timing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", default="1", metavar="N,M", help="thread counts; max for all (default 1)")
    parser.add_argument(
        "--min-time", type=_seconds, default=None, metavar="S", help="seconds per row, about (default 2.5)"
    )


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write, with raw samples; compressed if .gz")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def _failing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fail-over", type=_percent, default=None, metavar="P%", help="exit 1 if a row is slower by more"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0, up to 600")
    return value


def _minutes(text: str) -> float:
    return _seconds(text)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise argparse.ArgumentTypeError(f"'{text}' is not a percentage")
    return value


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
    sweeps = options.sweeps or (1 if options.quick else _SWEEPS)
    minutes = options.minutes
    if minutes is None and options.min_time is None:
        minutes = _QUICK_MINUTES if options.quick else _MINUTES
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
    """The run to go on with, if it is one of the same machine, build and settings."""
    if not options.resume or not Path(options.output).exists():
        return None
    document = results.load(options.output)
    if document["settings"] != settings(made):
        raise BenchError(f"{options.output} was made with {document['settings']}; want {settings(made)}")
    if document["machine"]["cpu"] != machine.cpu_name():
        raise BenchError(f"{options.output} is from another machine, {document['machine']['cpu']}")
    core = machine.core_digest()
    if document["build"] and document["build"]["core"] != core:
        raise BenchError(f"{options.output} is from another build, {document['build']['core']}; this one is {core}")
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
    if getattr(options, "md", False):
        print(table.markdown(table.COLUMNS, map(table.cells, rows)))
    else:
        table.show(table.COLUMNS, map(table.cells, rows))
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
    return 1 if any(r["status"] in ("wrong", "error") for r in rows) else 0


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
    if options.readme:
        report.put_between_marks(options.readme, report.summary(document))
    return 0
