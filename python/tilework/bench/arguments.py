"""The command line of the bench: its commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tilework.bench import peers

DEFAULT_PEERS = "numpy,scipy,torch,onnxruntime"
MINUTES = 13.0  # of a run without --min-time
SWEEPS = 3


def parser(actions: dict[str, Callable[[Any], int]]) -> argparse.ArgumentParser:
    """The parser of all commands; ``actions`` are by their names."""
    made = argparse.ArgumentParser(
        prog="tilework bench", description="Measures ops beside other libraries and the machine's peaks."
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(act=actions[name])
        return one

    listing = command("list", "Lists problems with their operations and bytes, as lines that reproduce them.")
    _choice(listing)
    listing.add_argument("--sets", action="store_true", help="list the names of sets instead")

    running = command("run", "Checks, then measures problems beside peers and peaks.")
    _choice(running)
    _timing(running)
    running.add_argument(
        "--device", default="cpu", metavar="A,B", help="cpu, opencl, opencl:1, or OpenCL devices by name (default cpu)"
    )
    running.add_argument(
        "--peers", default=DEFAULT_PEERS, metavar="A,B", help=f"of {', '.join(peers.PEERS)}; all; none"
    )
    running.add_argument("--mode", choices=("performance", "correctness"), default="performance")
    running.add_argument(
        "--cold", choices=("none", "weights", "all"), default="none", help="operands that calls find in memory only"
    )
    running.add_argument(
        "--sweeps", type=_positive, default=None, metavar="N", help=f"times to go over all rows (default {SWEEPS})"
    )
    running.add_argument(
        "--minutes",
        type=_minutes,
        default=None,
        metavar="M",
        help=f"minutes for the whole run, about, which its rows share (default {MINUTES:g}, without --min-time)",
    )
    running.add_argument("--quick", action="store_true", help="a small problem of each family, in about 90 s")
    running.add_argument("--resume", action="store_true", help="go on with the run in FILE; rows it holds are kept")
    running.add_argument("--md", action="store_true", help="print the table as Markdown")
    running.add_argument("--contestants", action="store_true", help="a line for every library, and prepared weights")
    _output(running)

    recording = command(
        "record",
        "Measures what the pages about the library say and writes them; goes on where it was.",
    )
    recording.add_argument("output", metavar="FILE", help="JSON of the run with raw samples; a finished one is kept")
    recording.add_argument("--docs", metavar="FOLDER", help="write performance.md, .json.gz and pictures into it")
    recording.add_argument(
        "--readme", metavar="FILE", help="replace what stands between its marks bench:begin, or bench:FOLDER:begin"
    )
    recording.add_argument("--threads", default="1,max", metavar="N,M", help="thread counts (default 1,max)")
    recording.add_argument("--peers", default=DEFAULT_PEERS + ",opencv", metavar="A,B", help="as of run")
    recording.add_argument("--minutes", type=_minutes, default=2 * MINUTES, metavar="M", help="for all of it, about")
    recording.add_argument("--force", action="store_true", help="begin anew if FILE exists")
    _choice(recording)

    seen = command(
        "pictures", "Times edges, lines and filters beside OpenCV in one process, and judges lines and flow."
    )
    seen.add_argument("--threads", default="1,2", metavar="N,M", help="thread counts of both (default 1,2)")
    seen.add_argument("--min-time", type=_seconds, default=1.0, metavar="S", help="seconds per time, about (default 1)")
    seen.add_argument("--scenes", type=_positive, default=12, metavar="N", help="scenes to judge lines by (default 12)")
    seen.add_argument("--seed", type=int, default=None, metavar="N", help="of the scenes (default: any)")
    seen.add_argument("--md", action="store_true", help="print the tables as Markdown")

    comparing = command("compare", "Compares the rows of two recorded runs.")
    comparing.add_argument("old")
    comparing.add_argument("new")
    _failing(comparing)

    versus = command("ab", "Measures two installations beside each other.")
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

    roof = command("roofline", "Draws roofs and points of a recorded run, or of the quick set.")
    roof.add_argument("run", nargs="?")
    roof.add_argument("-o", "--output", required=True, metavar="FILE", help="picture to write: .svg, .png or .pdf")
    roof.add_argument("--force", action="store_true", help="replace the file if it exists")

    report = command("report", "Writes one page about a recorded run.")
    report.add_argument("run")
    report.add_argument("old", nargs="?", help="an earlier run to compare with")
    report.add_argument("-o", "--output", metavar="FILE", help="HTML file to write")
    report.add_argument("--markdown", metavar="FILE", help="Markdown file to write, or to write again")
    report.add_argument(
        "--readme", metavar="FILE", help="file whose lines between the bench:begin and bench:end marks are replaced"
    )
    report.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A,B",
        help="with --readme: the tables of these sets instead, each between its marks (bench:NAME:begin)",
    )
    report.add_argument(
        "--record", metavar="FILE", help="JSON to write, or to write again, with each round's fastest pass alone"
    )
    report.add_argument("--force", action="store_true", help="replace the HTML file if it exists")
    return made


def _choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "problems",
        nargs="*",
        metavar="PROBLEM",
        help="a problem line, a file of them, or the name of a set: default (one problem of each op), "
        "workloads (all), full (all, in every type), quick or those of list --sets",
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
