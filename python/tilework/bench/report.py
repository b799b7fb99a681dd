"""One page about a run: HTML that stands alone, or Markdown for docs/performance. Losses come first."""

from __future__ import annotations

import html as markup
import importlib.util
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from tilework.bench import cases, compare, results, table
from tilework.bench.problems import BenchError


def facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know before believing a number."""
    machine, build = document["machine"], document["build"]
    timed = [r["contestants"]["tilework"] for r in document["rows"] if "median" in r["contestants"].get("tilework", {})]
    busy = sum(bool(entry["busy"]) for entry in timed)
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
            f"load {machine.get('load', '?')} at start, busy in {busy} of {len(timed)} rows",
        ),
        (
            "tilework",
            f"{build.get('tilework', '')} {build.get('commit', '')}".strip() + f", tier {build.get('tier', '')}, "
            f"compiler {build.get('compiler', '')}",
        ),
        (
            "flags",
            build.get("flags", "not recorded"),
        ),
        ("beside it", ", ".join(peers) or "nothing"),
        (
            "measured",
            f"{document['started']} to {document['finished']}"
            f"{' (interrupted)' if document['interrupted'] else ''}{_left(document)}",
        ),
        ("command", " ".join(document["command"])),
    ]


def _left(document: dict[str, Any]) -> str:
    """What a run out of time left."""
    return f"; {document['left']} further rows were left when the time was up" if document.get("left") else ""


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
    return ["peak", *(table.threads_text(n) for n in counts)], lines


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
    "Every result was checked before it was timed. Libraries take turns, block by block and in random order, each in a "
    "process of its own that is stopped while another runs, on the thread count shown. Blocks go round copies of the "
    "operands at several places in memory. A round counts the fastest of a few blocks of each library, because "
    "neighbours on the machine only ever slow a block down; times are medians over rounds, p10-p90 their spread. A "
    "ratio is the best peer's time over tilework's, both in the fastest third of their rounds: above 1 tilework is "
    "faster; brackets hold it with 95 %, and a verdict asks for more than 2 %. “Of bound” is the share of the least "
    "time that the named roof allows, the roof's loop measured in the same rounds; dot/6 is that of bf16 products, six "
    "of which make one of float32. “Kernel” leaves out the Python call; ~ marks rows during which others had the CPUs."
)
_WORST = 10


Section = tuple[str, list[str], list[list[str]]]


def _counts(rows: list[dict[str, Any]]) -> list[int]:
    """The thread counts of rows on the CPU."""
    return sorted({r["threads"] for r in rows if r["device"] == "cpu"})


def standing_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """By family: the geometric means of ratios to the best peer by thread count, and how often each verdict fell."""
    counts = _counts(rows)
    means = [
        {f: f"{m:.2f}" for f, p, m, _ in table.means(r for r in rows if r["threads"] == n) if p == "best peer"}
        for n in counts
    ]
    lines = [
        [family, *(m.get(family, "") for m in means), *(str(tally[v]) for v in _VERDICTS)]
        for family, tally in table.tally(rows).items()
    ]
    return ["family", *(f"mean ratio, {table.threads_text(n)}" for n in counts), *_VERDICTS], lines


def overall_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Over all families: the geometric means of ratios to each peer, and to the best of each row, by thread count."""
    counts = _counts(rows)
    means = [
        {p: f"{m:.2f} ({k})" for f, p, m, k in table.means(r for r in rows if r["threads"] == n) if f == "all"}
        for n in counts
    ]
    peers = sorted({p for m in means for p in m}, key=lambda p: (p != "best peer", p))
    lines = [[peer, *(m.get(peer, "") for m in means)] for peer in peers]
    return ["beside", *(f"mean ratio (rows), {table.threads_text(n)}" for n in counts)], lines


_VERDICTS = ("faster", "same", "undecided", "slower")


def _sections(document: dict[str, Any]) -> list[Section]:
    rows, columns = document["rows"], list(table.COLUMNS)
    ranked = [r for _, r in table.losses(rows)]
    slower = [r for r in ranked if table.verdict_of(r) == "slower"]
    found: list[Section] = [(f"The {_WORST} worst rows", columns, [table.cells(r) for r in ranked[:_WORST]])]
    if len(slower) > _WORST:
        found.append((f"All {len(slower)} losses", columns, [table.cells(r) for r in slower]))
    found.append(("Standing against the best peer of each row", *standing_table(rows)))
    for count in _counts(rows):
        title = f"Geometric means of ratios to each peer (rows), {table.threads_text(count)}"
        found.append((title, *means_table([r for r in rows if r["threads"] == count])))
    found += [
        ("Every row, the lowest ratio first", columns, [table.cells(r) for r in ordered(rows)]),
        ("Weights handed over before", *prepared_table(rows)),
        ("Peaks", *peaks_table(document)),
    ]
    return [s for s in found if s[2]]


def markdown(document: dict[str, Any], source: str, pictures: Iterable[str] = ()) -> str:
    """The page as Markdown, with links to ``pictures`` that lie beside it."""
    parts = [
        "# Performance",
        "",
        f"Generated by `tilework bench report` from [{Path(source).name}]({Path(source).name}).",
        "",
        _EXPLAINED,
        "",
        *(f"- **{k}**: {v}" for k, v in facts(document)),
    ]
    for name in pictures:
        parts += ["", f"![{_PICTURES[name]}]({name})"]
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


def write_folder(document: dict[str, Any], folder: str) -> None:
    """Writes the record, the page about it and its pictures."""
    place = Path(folder)
    record = place / "performance.json.gz"
    place.mkdir(parents=True, exist_ok=True)
    thin = results.thinned(document)
    results.save(str(record), thin)
    print(f"wrote {record}")
    drawn = {name: made for name, made in _drawn(thin).items() if made is not None}
    for name, made in drawn.items():
        made.savefig(place / name, dpi=110)
        print(f"wrote {place / name}")
    write(str(place / "performance.md"), markdown(results.load(str(record)), str(record), drawn))


_PICTURES = {
    "performance-ratios.png": "Ratio to the best peer, by family",
    "performance-roofline.png": "Roofline: filled is tilework, hollow its peers",
}


def summary(document: dict[str, Any]) -> str:
    """The standing in a few lines of Markdown, for a README."""
    facts_of, rows = dict(facts(document)), document["rows"]
    counts = " and ".join(table.threads_text(n) for n in _counts(rows))
    ranked = table.losses(rows)
    slower = sum(table.verdict_of(r) == "slower" for _, r in ranked)
    columns, lines = overall_table(rows)
    parts = [
        f"{facts_of['machine']}, tier {document['build'].get('tier', '')}, {counts}, beside {facts_of['beside it']}. "
        "Each row is judged against its best peer: a ratio is theirs over ours, above 1 tilework is faster; a "
        f"verdict asks for more than 2 % with 95 % confidence. System: {facts_of['system']}.",
        "",
    ]
    if slower:
        worst = [f"{r['op']} {table.problem_name(r)}, {ratio:.2f}" for ratio, r in ranked[: min(slower, 3)]]
        parts += [f"It is slower in {slower} of {len(ranked)} rows, worst in: {'; '.join(worst)}.", ""]
    return "\n".join([*parts, table.markdown(columns, lines)])


def case_tables(document: dict[str, Any], name: str) -> str:
    """The table of the set ``name`` in Markdown, and what it was measured on."""
    columns, lines = cases.of_set(document, name)
    if not lines:
        raise BenchError(f"the run has no row of the set {name}")
    facts_of = dict(facts(document))
    scaling = "; N for 1 is its time on one thread over that on N" if columns[-1].endswith(" for 1") else ""
    return "\n".join(
        [
            f"`{facts_of['command']}` on {facts_of['machine']}, beside {facts_of['beside it']}. A ratio is the best "
            f"peer's time over tilework's{scaling}.",
            "",
            table.markdown(columns, lines),
        ]
    )


def put_between_marks(path: str, text: str, name: str = "bench") -> None:
    """Replaces what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` in a file."""
    try:
        before = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from None
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    begin, end = before.find(first), before.find(last)
    if begin < 0 or end < begin:
        raise BenchError(f"{path} lacks the lines {first} and {last}, in this order")
    write(path, f"{before[: begin + len(first)]}\n{text}\n{before[end:]}")


def html(document: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    """The page as HTML with its pictures inside."""
    escape = markup.escape
    body = ["<h1>tilework, measured</h1>", f"<p class=soft>{escape(_EXPLAINED)}</p>", "<dl>"]
    body += [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts(document)] + ["</dl>"]
    sections = _sections(document)
    if old is not None:
        columns = ["op", "problem", "thr", "old", "new", "old / new", "verdict"]
        sections.insert(
            0, ("Against the earlier run", columns, [compare.cells(j) for j in compare.rows(old, document)])
        )
    for number, (title, columns, lines) in enumerate(sections):
        if number == min(1, len(sections) - 1):  # the pictures come behind what is worst
            body += [f"<h2>{escape(t)}</h2><div class=wide>{figure}</div>" for t, figure in _pictures(document)]
        kind = " class=rows" if "problem" in columns else ""
        head = "".join(f"<th{_class(c)}>{escape(c)}</th>" for c in columns)
        rows = "".join(_table_row(columns, line) for line in lines)
        body.append(
            f"<h2>{escape(title)}</h2><div class=wide><table{kind}><thead><tr>{head}</tr></thead>\n"
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


def _class(column: str) -> str:
    """The class of a header or cell: what a phone leaves out, wraps, or names because it has no header there."""
    if column in ("op", "problem", "verdict"):
        return f" class={column}"
    return f" class='{'minor ' * (column in table.MINOR)}named' data-name='{markup.escape(column)}'"


def _table_row(columns: list[str], line: list[str]) -> str:
    cells = []
    for column, text in zip(columns, line, strict=True):
        value, bracket, interval = markup.escape(text).partition(" [")
        cells.append(f"<td{_class(column)}>{value}{f' <span class=soft>[{interval}</span>' if bracket else ''}</td>")
    verdict = line[-1] if line[-1] in table.STYLES else "plain"
    return f"<tr class={markup.escape(verdict)}>{''.join(cells)}</tr>\n"


def _drawn(document: dict[str, Any]) -> dict[str, Any]:
    """The figures by the names of _PICTURES, None for what the run has nothing for."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    from tilework.bench import ratios, roofline

    makers = (
        ratios.figure if table.losses(document["rows"]) else None,
        roofline.figure if document["peaks"] else None,
    )
    return {name: make(document) if make else None for name, make in zip(_PICTURES, makers, strict=True)}


def _pictures(document: dict[str, Any]) -> list[tuple[str, str]]:
    from tilework.bench import roofline

    return [(_PICTURES[name], roofline.svg(made)) for name, made in _drawn(document).items() if made is not None]


def write(path: str, text: str) -> None:
    """Writes a page."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}")
