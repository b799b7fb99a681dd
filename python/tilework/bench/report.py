"""One page about a run: HTML that stands alone, or Markdown for docs/performance.md. Losses come first."""

from __future__ import annotations

import html as markup
import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

from tilework.bench import compare, table
from tilework.bench.problems import BenchError

_WORST = 10


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know before believing a number."""
    machine, build = document["machine"], document["build"]
    peers = [f"{n} {p['version']}" if "version" in p else f"{n} absent" for n, p in document["peers"].items()]
    return [
        (
            "machine",
            f"{machine.get('cpu', '')}, {machine.get('affinity', '?')} of {machine.get('cpus', '?')} CPUs"
            f"{', virtual' if machine.get('virtual') else ''}",
        ),
        (
            "system",
            f"{machine.get('system', '')}, governor {machine.get('governor', '?')}, "
            f"load {machine.get('load', '?')} at start",
        ),
        (
            "tilework",
            f"{build.get('tilework', '')} {build.get('commit', '')}".strip() + f", tier {build.get('tier', '')}, "
            f"compiler {build.get('compiler', '')}",
        ),
        ("beside it", ", ".join(peers) or "nothing"),
        (
            "measured",
            f"{document['started']} to {document['finished']}{' (interrupted)' if document['interrupted'] else ''}",
        ),
        ("command", " ".join(document["command"])),
    ]


def peaks_table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The peaks of the active tier by thread count."""
    tier = document["build"].get("tier")
    counts = sorted({p["threads"] for p in document["peaks"]})
    names = list(dict.fromkeys((p["kind"], p["level"]) for p in document["peaks"] if p["tier"] == tier))
    lines = []
    for kind, level in names:
        line = [f"{kind} {level}".strip()]
        for threads in counts:
            rates = [
                p["rate"]
                for p in document["peaks"]
                if (p["tier"], p["kind"], p["level"], p["threads"]) == (tier, kind, level, threads)
            ]
            line.append(table.count_text(max(rates), "B/s" if level else "op/s") if rates else "")
        lines.append(line)
    return ["peak", *(f"{n} thread{'s' * (n > 1)}" for n in counts)], lines


def means_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Geometric means: families down, peers across."""
    found = {(f, p): (m, n) for f, p, m, n in table.means(rows)}
    families = list(dict.fromkeys(f for f, _ in found))
    across = sorted({p for _, p in found}, key=lambda p: (p != "best peer", p))
    lines = []
    for family in families:
        cells = [f"{found[family, p][0]:.2f} ({found[family, p][1]})" if (family, p) in found else "" for p in across]
        lines.append([family, *cells])
    return ["family", *across], lines


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failures, then losses from the worst, then the rest, then rows without a peer."""
    failed = [r for r in rows if r["status"] != "ok"]
    ranked = [r for _, r in table.losses([r for r in rows if r["status"] == "ok"])]
    seen = {id(r) for r in failed + ranked}
    return failed + ranked + [r for r in rows if id(r) not in seen]


def prepared_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Rows in which weights were handed over before, with the best peer that also had them."""
    lines = []
    for row in rows:
        ours, best = row["contestants"].get("tilework prepared", {}), table.best_ratio(row, prepacked=True)
        if "median" in ours and best:
            theirs = table.seconds_text(row["contestants"][best[0]]["median"])
            lines.append(
                [
                    row["op"],
                    table.problem_name(row),
                    str(row["threads"]),
                    table.seconds_text(ours["median"]),
                    f"{best[0]} {theirs}",
                    table.ratio_text(best[1]),
                    best[1]["verdict"],
                ]
            )
    return ["op", "problem", "thr", "prepared", "best peer", "ratio", "verdict"], lines


_EXPLAINED = (
    "Times are medians over interleaved rounds in random order, every library in its own process and on the thread "
    "count shown; each result was checked before it was timed. A ratio is the peer's time over tilework's in the same "
    "round, above 1 tilework is faster; brackets hold its median with 95 %. Verdicts ask for more than 2 %. "
    "“of bound” is the share of the least time that the named roof allows, its loop measured in the same rounds. "
    "“kernel” leaves out the Python call; ~ marks rows during which the machine was busy."
)


def _sections(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    rows = document["rows"]
    worst = [table.cells(r) for _, r in table.losses(rows)[:_WORST]]
    found: list[tuple[str, list[str], list[list[str]]]] = [
        ("Geometric means of ratios (rows)", *means_table(rows)),
        (f"The {_WORST} worst rows", list(table.COLUMNS), worst),
        ("Every row, losses first", list(table.COLUMNS), [table.cells(r) for r in ordered(rows)]),
        ("Weights handed over before", *prepared_table(rows)),
        ("Peaks", *peaks_table(document)),
    ]
    return [s for s in found if s[2]]


def markdown(document: dict[str, Any], source: str) -> str:
    """The page as Markdown."""
    parts = ["# Performance", "", f"Generated by `tilework bench report --markdown` from `{source}`. {_EXPLAINED}", ""]
    parts += [f"- **{k}**: {v}" for k, v in facts(document)]
    for title, columns, lines in _sections(document):
        parts += ["", f"## {title}", "", table.markdown(columns, lines)]
    wrong = [f"- `{r['problem']}`: {r['message']}" for r in document["rows"] if r["status"] != "ok"]
    if wrong:
        parts += ["", "## Rows without a time", "", *wrong]
    parts += [
        "",
        "Any row again: `tilework bench list` gives its problem line, `tilework bench run 'LINE'` measures it.",
    ]
    return "\n".join(parts) + "\n"


def html(document: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    """The page as HTML with its pictures inside."""
    escape = markup.escape
    body = ["<h1>tilework, measured</h1>", f"<p class=soft>{escape(_EXPLAINED)}</p>", "<dl>"]
    body += [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(document)] + ["</dl>"]
    for title, figure in _pictures(document):
        body += [f"<h2>{escape(title)}</h2>", figure]
    sections = _sections(document)
    if old is not None:
        joined = compare.rows(old, document)
        sections.insert(
            0,
            (
                "Against the earlier run",
                ["op", "problem", "thr", "old", "new", "old / new", "verdict"],
                [compare.cells(j) for j in joined],
            ),
        )
    for title, columns, lines in sections:
        head = "".join(f"<th>{escape(c)}</th>" for c in columns)
        rows = "".join(
            f"<tr class={escape(line[-1].split()[0]) if line[-1] in table.STYLES else 'plain'}>"
            + "".join(f"<td>{escape(c)}</td>" for c in line)
            + "</tr>\n"
            for line in lines
        )
        body.append(
            f"<h2>{escape(title)}</h2><div class=wide><table><thead><tr>{head}</tr></thead>\n"
            f"<tbody>{rows}</tbody></table></div>"
        )
    style = resources.files("tilework.bench").joinpath("report.css").read_text()
    failed = [r for r in document["rows"] if r["status"] != "ok"]
    if failed:
        body.append("<h2>Rows without a time</h2>")
        body += [f"<p><code>{escape(r['problem'])}</code>: {escape(r['message'])}</p>" for r in failed]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>tilework, measured</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _pictures(document: dict[str, Any]) -> list[tuple[str, str]]:
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from tilework.bench import roofline

    found = []
    if any(r["ratios"] for r in document["rows"]):
        found.append(("Ratio to the best peer, by family", roofline.svg(_ratio_figure(document))))
    if document["peaks"]:
        found.append(("Roofline: filled is tilework, hollow its peers", roofline.svg(roofline.figure(document))))
    return found


def _ratio_figure(document: dict[str, Any]) -> Any:
    """Every row's ratio to its best peer as a dot, its family's geometric mean as a bar."""
    from matplotlib.figure import Figure

    ratios: dict[str, list[float]] = {}
    for ratio, row in table.losses(document["rows"]):
        ratios.setdefault(row["family"], []).append(ratio)
    means = {f: m for f, p, m, _ in table.means(document["rows"]) if p == "best peer" and f in ratios}
    names = sorted(ratios, key=lambda f: means[f], reverse=True)
    made = Figure(figsize=(9, 0.9 + 0.42 * len(names)), layout="constrained")
    ax = made.subplots()
    for y, name in enumerate(names):
        colour = "#1f7a4d" if means[name] >= 1 else "#b3261e"
        ax.plot([1, means[name]], [y, y], color=colour, lw=7, alpha=0.35, solid_capstyle="butt")
        ax.scatter(ratios[name], [y] * len(ratios[name]), s=16, color=colour, alpha=0.8, zorder=3)
        ax.annotate(
            f"{means[name]:.2f}", (means[name], y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    ax.axvline(1, color="#444444", lw=1)
    ax.set(
        xscale="log",
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="best peer's time / tilework's, above 1 tilework is faster",
    )
    values = [v for vs in ratios.values() for v in vs]
    ticks = [
        t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(values) / 1.6 <= t <= max(values) * 1.6
    ]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.6, len(names) - 0.3)
    ax.grid(True, axis="x", color="#eeeeee")
    ax.spines[["top", "right"]].set_visible(False)
    return made


def write(path: str, text: str) -> None:
    """Writes a page."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}")
