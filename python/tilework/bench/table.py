"""Rows as text: the cells that the terminal, the report and docs/performance share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tilework.bench import measure

COLUMNS = ("op", "problem", "thr", "time", "p10-p90", "kernel", "rate", "of bound", "best peer", "ratio", "verdict")
CONTESTANT_COLUMNS = ("op", "problem", "thr", "contestant", "time", "rate", "of bound", "ratio", "verdict")
MINOR = ("p10-p90", "kernel", "rate")  # what a narrow page leaves out
STYLES = {
    "faster": "green",
    "slower": "bold red",
    "same": "cyan",
    "undecided": "yellow",
    "wrong": "bold white on red",
    "error": "bold white on red",
    "n/a": "dim",
}


def seconds_text(value: float | None) -> str:
    """A time with three digits and its unit."""
    if value is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def spread_text(entry: dict[str, Any]) -> str:
    """The 10th and the 90th percentile, in the unit of the latter."""
    if "p90" not in entry:
        return ""
    high = seconds_text(entry["p90"])
    scale = entry["p90"] / float(high.split()[0])
    return f"{entry['p10'] / scale:.3g}-{high}"


def place_text(row: dict[str, Any]) -> str:
    """The number of threads, or the device."""
    return str(row["threads"]) if row["device"] == "cpu" else str(row["device"])


def threads_text(count: int) -> str:
    """A number of threads in words."""
    return f"{count} thread{'s' * (count > 1)}"


def count_text(value: float, unit: str) -> str:
    """A large number with three digits and a prefix."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def shortened(text: str, most: int) -> str:
    """``text``, its middle left out where it is longer than ``most``."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[-half:]}"


def problem_name(row: dict[str, Any]) -> str:
    """The name of a workload, or its operands and attributes."""
    name = row["name"] or row["problem"].partition(" ")[2]
    plain = row["dtype"] == "float32" and row["direction"] == "fwd"
    return name if plain else f"{name} ({row['dtype']}{'' if row['direction'] == 'fwd' else ' ' + row['direction']})"


def rate_text(row: dict[str, Any], contestant: str = "tilework") -> str:
    """Arithmetic or bytes per second, whichever bounds the row."""
    seconds = row["contestants"].get(contestant, {}).get("median")
    if not seconds:
        return ""
    by = (row["bound"] or {}).get("by", "")
    if row["flops"] and by in ("FMA", "dot", ""):
        return count_text(row["flops"] / seconds, "F/s" if by != "dot" else "op/s")
    moved = row["read"] + row["written"]
    return count_text(moved / seconds, "B/s") if moved else ""


def best_ratio(row: dict[str, Any], *, prepacked: bool = False) -> tuple[str, dict[str, Any]] | None:
    """The fastest peer of the same kind, and the ratio to it."""
    found = [
        (r["ratio"], n, r)
        for n, r in row["ratios"].items()
        if row["contestants"][n].get("prepacked", False) == prepacked and "median" in row["contestants"][n]
    ]
    return min(found, key=lambda f: f[0])[1:] if found else None


def ratio_text(ratio: dict[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def verdict_of(row: dict[str, Any]) -> str:
    """The verdict against the best peer, or what went wrong."""
    if row["status"] != "ok":
        return str(row["status"])
    best = best_ratio(row)
    return best[1]["verdict"] if best else ""


def cells(row: dict[str, Any]) -> list[str]:
    """One row in the order of COLUMNS."""
    ours = row["contestants"].get("tilework", {})
    first = [row["op"], problem_name(row), place_text(row)]
    if row["status"] != "ok":
        return [*first, "", "", "", "", "", "", "", row["status"]]
    best = best_ratio(row)
    bound = f"{100 * ours['of_bound']:.0f} % {row['bound']['by']}" if "of_bound" in ours else ""
    mark = "~" if ours.get("busy") else ""
    peer = f"{best[0]} {seconds_text(row['contestants'][best[0]]['median'])}" if best else ""
    return [
        *first,
        mark + seconds_text(ours.get("median")),
        spread_text(ours),
        seconds_text(ours.get("kernel")),
        rate_text(row),
        bound,
        peer,
        ratio_text(best[1]) if best else "",
        verdict_of(row),
    ]


def contestant_cells(row: dict[str, Any]) -> list[list[str]]:
    """A line of CONTESTANT_COLUMNS for everyone who was timed; a ratio is to ours of the same kind of weights."""
    first = [row["op"], problem_name(row), place_text(row)]
    if row["status"] != "ok":
        return [[*first, "", "", "", "", "", row["status"]]]
    lines = []
    for name, entry in row["contestants"].items():
        if "median" not in entry:
            continue
        bound = f"{100 * entry['of_bound']:.0f} % {row['bound']['by']}" if "of_bound" in entry else ""
        ratio = row["ratios"].get(name)
        found = [ratio_text(ratio), ratio["verdict"]] if ratio else ["", ""]
        lines.append([*first, name, seconds_text(entry["median"]), rate_text(row, name), bound, *found])
    return lines


def means(rows: Iterable[dict[str, Any]]) -> list[tuple[str, str, float, int]]:
    """(family, contestant, geometric mean of ratios, rows) for each peer of each family, and for all of them."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for name, ratio in row["ratios"].items():
            found.setdefault((row["family"], name), []).append(ratio["ratio"])
            found.setdefault(("all", name), []).append(ratio["ratio"])
        best = best_ratio(row)
        if best:
            found.setdefault((row["family"], "best peer"), []).append(best[1]["ratio"])
            found.setdefault(("all", "best peer"), []).append(best[1]["ratio"])
    ordered = sorted(found.items(), key=lambda kv: (kv[0][0] != "all", kv[0]))
    return [(family, peer, measure.geometric_mean(v), len(v)) for (family, peer), v in ordered]


def tally(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each verdict against the best peer was given, by family and over all."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["status"] == "ok" and best_ratio(row):
            for family in ("all", row["family"]):
                counts = found.setdefault(family, dict.fromkeys(("faster", "same", "undecided", "slower"), 0))
                counts[verdict_of(row)] += 1
    return found


def losses(rows: Iterable[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """Rows with a peer, the worst ratio first."""
    found = [(b[1]["ratio"], row) for row in rows if (b := best_ratio(row))]
    return sorted(found, key=lambda f: f[0])


def has_rich() -> bool:
    """Whether tables can be coloured: rich is there and somebody is looking."""
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def plain(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns of text, aligned."""
    rows = [list(columns), *(list(line) for line in lines)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def show(columns: Sequence[str], lines: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table: coloured by the last column on a terminal, plain when piped."""
    lines = list(lines)
    if not has_rich():
        print(*([title] if title else []), plain(columns, lines), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, title=title or None, title_justify="left", header_style="bold")
    for line in lines:
        made.add_row(*(Text(c) for c in line), style=STYLES.get(line[-1] if line else "", ""))
    Console().print(made)


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [list(columns), ["---"] * len(columns), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in rows)
