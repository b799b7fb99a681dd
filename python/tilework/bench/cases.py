"""The table of a set: a line for every case, its thread counts side by side, weights handed over before beneath.

Of networks: what is compiled, which is how a user gets the most, beside each library at its best.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tilework.bench import choose, measure, results, table
from tilework.bench.networks import PEERS

_GRAPH, _PREPARED = "tilework graph", "tilework prepared"


def of_set(document: dict[str, Any], name: str) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the rows of a run that are in the set ``name``, in its order."""
    names = {p.text: p.name for p in choose.select([name])}
    cases: dict[str, dict[int, dict[str, Any]]] = {text: {} for text in names}
    for row in document["rows"]:
        if row["problem"] in cases:
            cases[row["problem"]][row["threads"]] = {**row, "name": names[row["problem"]]}
    if name == "networks":
        return _of_networks([row for case in cases.values() for _, row in sorted(case.items())])
    counts = sorted({n for case in cases.values() for n in case})
    columns = ["case"]
    for count in counts:
        columns += [table.threads_text(count), "of bound", "best peer", "ratio"]
    columns += [f"{count} for 1" for count in counts if count > 1]
    return columns, [line for case in cases.values() if case for line in _lines(case, counts)]


def _lines(case: dict[int, dict[str, Any]], counts: Iterable[int]) -> list[list[str]]:
    """One line, and one more where somebody else had the weights before too."""
    any_row = next(iter(case.values()))
    title = f"{any_row['op']} {table.problem_name(any_row)}"
    scaling = [f"{case[n]['scaling']['ratio']:.2f}" if "scaling" in case.get(n, ()) else "" for n in counts if n > 1]
    lines = [[title, *(c for n in counts for c in _cells(case.get(n), prepacked=False)), *scaling]]
    if any(table.best_ratio(row, prepacked=True) for row in case.values()):
        cells = [c for n in counts for c in _cells(case.get(n), prepacked=True)]
        lines.append([f"{title}, prepared", *cells, *[""] * len(scaling)])
    return lines


def _cells(row: dict[str, Any] | None, *, prepacked: bool) -> list[str]:
    if row is None:
        return [""] * 4
    ours = row["contestants"].get(_PREPARED if prepacked else "tilework", {})
    if "median" not in ours:
        return [row["status"] if row["status"] != "ok" else "", "", "", ""]
    best = table.best_ratio(row, prepacked=prepacked)
    bound = f"{100 * ours['of_bound']:.0f} % {row['bound']['by']}" if "of_bound" in ours else ""
    time = f"{'~' if ours.get('busy') else ''}{table.seconds_text(ours['median'])}"
    return [time, bound, best[0] if best else "", f"{best[1]['ratio']:.2f}" if best else ""]


def _of_networks(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A line for every network and thread count; behind each time of a peer is its ratio to the compiled graph's."""
    met = {library for row in rows for library, _ in _timed(row)}
    libraries = [library for library in PEERS if library in met]
    lines = []
    for row in rows:
        ours = row["contestants"].get(_GRAPH, {})
        line = [f"{row['op']} {table.problem_name(row)}", str(row["threads"])]
        if "median" not in ours:
            lines.append([*line, row["status"] if row["status"] != "ok" else "", *[""] * (len(libraries) + 1)])
            continue
        taken = results.samples(row, _GRAPH)
        best: dict[str, tuple[float, float]] = {}  # by library: the least ratio, and the time that gave it
        for library, name in _timed(row):
            ratio = measure.paired(taken, results.samples(row, name)).ratio
            seconds = row["contestants"][name]["median"]
            best[library] = min(best.get(library, (ratio, seconds)), (ratio, seconds))
        line.append(f"{'~' if ours.get('busy') else ''}{table.seconds_text(ours['median'])}")
        for library in libraries:
            found = best.get(library)
            line.append(f"{table.seconds_text(found[1])} ({found[0]:.2f})" if found else "")
        lines.append([*line, f"{min(ratio for ratio, _ in best.values()):.2f}" if best else ""])
    return ["network", "threads", "compiled graph", *libraries, "ratio"], lines


def _timed(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The library and the name of every peer that was timed."""
    names = [n for n, entry in row["contestants"].items() if not n.startswith("tilework") and "median" in entry]
    return [(name.split()[0], name) for name in names]
