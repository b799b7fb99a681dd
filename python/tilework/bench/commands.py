"""The command line of the bench."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tilework.bench import machine, measure, peers, problems, results, table
from tilework.bench.measure import Plan
from tilework.bench.problems import BenchError
from tilework.bench.run import Options, available_peers, load_modules, run
from tilework.errors import Error

_DEFAULT_PEERS = "numpy,scipy,torch,onnxruntime"
_BUSY = 0.5


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
    running.add_argument("--device", default="cpu", help="cpu, opencl, or an OpenCL device by name (default cpu)")
    running.add_argument(
        "--peers", default=_DEFAULT_PEERS, metavar="A,B", help=f"of {', '.join(peers.PEERS)}; all; none"
    )
    running.add_argument("--mode", choices=("performance", "correctness"), default="performance")
    running.add_argument(
        "--cold", choices=("none", "weights", "all"), default="none", help="operands that calls find in memory only"
    )
    running.add_argument("--quick", action="store_true", help="the smallest problem of each op, in less than a minute")
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
    report.add_argument("--markdown", metavar="FILE", help="Markdown file to write")
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
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds up to 600")
    return value


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
    return problems.select(sets, _split(options.op), _split(options.dtype), _split(options.dir))


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


def _plan(options: Any) -> Plan:
    quick = getattr(options, "quick", False)
    budget = options.min_time or (0.25 if quick else 2.5)
    return Plan(least=5 if quick else 7, clean=7 if quick else 15, budget=budget)


# ---------------------------------------------------------------------------------------------------- commands


def _list(options: Any) -> int:
    load_modules(options.load)
    if options.sets:
        print("\n".join(problems.set_names(problems.every_workload())))
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
    if options.output:
        results.check_writable(options.output, force=options.force)
    load_modules(options.load)
    wanted = _peers(options.peers)
    if options.mode == "performance":
        measure.statistics_library()
    made = Options(
        _selected(options),
        wanted,
        _threads(options.threads),
        _device(options.device),
        options.mode,
        options.cold,
        _plan(options),
        options.load,
        options.argv,
    )
    if not options.md:
        _announce(made)
    document = run(made, _Progress(len(made.problems) * len(made.threads)))
    return _finish(options, document)


def _announce(options: Options) -> None:
    print(f"{machine.cpu_name()}, {len(os.sched_getaffinity(0))} CPUs; {len(options.problems)} problems")
    for name in options.peers:
        reason = peers.why_absent(name)
        print(f"  {name} {peers.version(name)}" if not reason else f"  {name} absent: {reason}")
    if machine.load_per_cpu() > _BUSY:
        print(f"  the machine is busy: {machine.load_per_cpu():.1f} processes per CPU; intervals will be wide")


class _Progress:
    """What is being measured, on standard error."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._live = sys.stderr.isatty()

    def __call__(self, what: str, value: Any) -> None:
        if what == "begin":
            self._done += 1
            self._say(f"[{self._done}/{self._total}] {value.text}"[: 110 if self._live else 400])
        elif what == "peaks":
            self._say(f"peaks on {value} threads")
        elif what == "refused":
            print(f"  {value[0]} takes no part: {value[1]}", file=sys.stderr)
        if self._live and self._done == self._total and what == "row":
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


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
    document = ab.run(
        made, options.old, options.new, options.pairs, _Progress(len(made.problems) * options.pairs * len(made.threads))
    )
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
        plan = Plan(least=5, clean=7, budget=0.25)
        made = Options(problems.select(["quick"]), available_peers(["numpy", "torch"]), plan=plan, command=options.argv)
        document = run(made, _Progress(len(made.problems)))
    roofline.draw(document, options.output)
    return 0


def _report(options: Any) -> int:
    from tilework.bench import report

    if not options.output and not options.markdown:
        raise BenchError("report writes nothing; want -o FILE.html or --markdown FILE.md")
    document = results.load(options.run)
    old = results.load(options.old) if options.old else None
    if options.output:
        results.check_writable(options.output, force=options.force)
        report.write(options.output, report.html(document, old))
    if options.markdown:
        report.write(options.markdown, report.markdown(document, options.run))
    return 0
