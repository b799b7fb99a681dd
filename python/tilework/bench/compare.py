"""Two recorded runs, row by row. They were not interleaved: each row is taken relative to the peak loop beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.bench import measure, results, table

COLUMNS = ("op", "problem", "thr", "old", "new", "old / new", "verdict")


def relative(row: dict[str, Any]) -> list[float]:
    """Logarithms of the times of a row's rounds, in units of its bound where one was measured."""
    unit = row["bound"]["seconds"] if row["bound"] else 1.0
    return [math.log(s["seconds"] / unit) for s in measure.rounds(results.samples(row, "tilework"))]


def rows(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Both runs' rows, joined: the ratio old to new, its interval and a verdict on new."""
    before = {results.key(r): r for r in old["rows"]}
    joined = []
    for row in new["rows"]:
        past = before.pop(results.key(row), None)
        made: dict[str, Any] = {"row": row, "old": past, "verdict": "new row" if past is None else ""}
        if past is not None:
            made.update(_compared(past, row))
        joined.append(made)
    return joined + [{"row": past, "old": past, "verdict": "row is gone"} for past in before.values()]


def _compared(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if new["status"] != "ok":
        return {"verdict": new["status"]}
    if old["status"] != "ok":
        return {"verdict": f"was {old['status']}"}
    a, b = relative(old), relative(new)
    if not a or not b:
        return {"verdict": "not timed"}
    low, high = measure.interval(a, b)
    ratio = math.exp(float(np.median(a)) - float(np.median(b)))
    return {"ratio": ratio, "low": math.exp(low), "high": math.exp(high), "verdict": measure.verdict(low, high)}


def failing(joined: list[dict[str, Any]], fail_over: float | None) -> list[dict[str, Any]]:
    """Rows that went wrong, or are slower by more than allowed."""
    if fail_over is None:
        return []
    bad = [j for j in joined if j["verdict"] in ("wrong", "error")]
    return bad + [j for j in joined if j["verdict"] == "slower" and j["ratio"] < 1 / (1 + fail_over)]


def cells(joined: dict[str, Any]) -> list[str]:
    """One line of the table."""
    row, old = joined["row"], joined["old"]
    first = [row["op"], table.problem_name(row), str(row["threads"])]
    if "ratio" not in joined:
        return [*first, "", "", "", joined["verdict"]]
    times = [table.seconds_text(r["contestants"]["tilework"]["median"]) for r in (old, row)]
    return [*first, *times, table.ratio_text(joined), joined["verdict"]]


def show_means(joined: list[dict[str, Any]]) -> None:
    """Prints the geometric mean of old / new of each family, and of all rows."""
    families: dict[str, list[float]] = {}
    for j in joined:
        for family in ("all", j["row"]["family"]) if "ratio" in j else ():
            families.setdefault(family, []).append(j["ratio"])
    means = [(f, f"{measure.geometric_mean(v):.3f}", str(len(v))) for f, v in families.items()]
    table.show(("family", "old / new", "rows"), means, "geometric means, above 1 new is faster")


def show(old: dict[str, Any], new: dict[str, Any], fail_over: float | None) -> int:
    """Prints the comparison; 1 if a row is slower than allowed."""
    for key in ("cpu", "affinity", "virtual"):
        if old["machine"].get(key) != new["machine"].get(key):
            print(f"the machines differ in {key}: {old['machine'].get(key)} and {new['machine'].get(key)}")
    joined = rows(old, new)
    table.show(COLUMNS, map(cells, joined))
    show_means(joined)
    bad = failing(joined, fail_over)
    for j in bad:
        print(f"{j['verdict']}: {j['row']['problem']}")
    return 1 if bad else 0
