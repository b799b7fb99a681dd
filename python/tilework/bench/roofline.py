"""The roofline: what the machine allows, by operations per byte and by size, and where each problem stands."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from tilework.bench import peaks, table
from tilework.bench.problems import BenchError
from tilework.bench.results import key

_LEVELS = ("L1", "L2", "L3", "DRAM")
_WIDTH, _HEIGHT = 5.2, 4.2  # inches of a panel, small so that a phone shows its words large enough
_LEGEND_ROW = 0.19  # inches
_LEGEND_COLUMNS = 3
_SHAPES = ("o", "s", "^", "D", "v")
_ENDINGS = (".svg", ".png", ".pdf")
_ROOFS = {"fma_f32": "f32 FMA", "fma_f64": "f64 FMA", "dot_bf16": "bf16 dot", "dot_i8": "int8 dot"}
_COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2e7d4f",
    "#8e5ea2",
    "#e08e0b",
    "#0f9d9d",
    "#7a5c3e",
    "#c2185b",
    "#5a6b7b",
    "#9aa021",
)


def check_name(path: str) -> None:
    """Whether a picture can be written under this name."""
    if not path.endswith(_ENDINGS):
        raise BenchError(f"{path}: want a name that ends in {', '.join(_ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("matplotlib is not installed; want pip install 'tilework[bench]'")


Looks = dict[str, tuple[str, str]]  # colour and shape of each family


class Point(NamedTuple):
    """One contestant of one row in a panel."""

    family: str
    ours: bool
    x: float
    y: float


def _timed(document: dict[str, Any], threads: int) -> Iterator[tuple[dict[str, Any], bool, float]]:
    """(row, whether ours, seconds) of every contestant that got its weights in the call."""
    for row in document["rows"]:
        if row["status"] != "ok" or row["threads"] != threads or row["device"] != "cpu":
            continue
        for name, entry in row["contestants"].items():
            if "median" in entry and not entry.get("prepacked"):
                yield row, name == "tilework", entry["median"]


def points(document: dict[str, Any], threads: int) -> list[Point]:
    """Operations per byte and per second, of rows that count operations."""
    return [
        Point(row["family"], ours, row["flops"] / (row["read"] + row["written"]), row["flops"] / seconds)
        for row, ours, seconds in _timed(document, threads)
        if row["flops"] and row["read"] + row["written"]
    ]


def rates(document: dict[str, Any], threads: int) -> list[Point]:
    """Bytes, and bytes per second, of rows that memory bounds; single elements, which the call bounds, left out."""
    return [
        Point(row["family"], ours, row["read"] + row["written"], (row["read"] + row["written"]) / seconds)
        for row, ours, seconds in _timed(document, threads)
        if row["bound"] and row["bound"]["by"] in _LEVELS and row["read"] + row["written"] >= 4096
    ]


def figure(document: dict[str, Any]) -> Any:
    """A matplotlib figure: for each thread count the roofline, and the rates of rows that memory bounds."""
    from matplotlib.figure import Figure

    counts = sorted({p["threads"] for p in document["peaks"]})
    if not counts:
        raise BenchError("the run holds no peaks; want one of `tilework bench run` in performance mode")
    families = list(dict.fromkeys(r["family"] for r in document["rows"]))
    legend = _LEGEND_ROW * (len(families) // _LEGEND_COLUMNS + 2)
    made = Figure(figsize=(_WIDTH, 2 * (_HEIGHT + legend) * len(counts)), layout="constrained")
    axes = made.subplots(2 * len(counts), 1)
    # Ten colours in as many shapes as it takes.
    kinds = [(colour, shape) for shape in _SHAPES for colour in _COLOURS]
    looks = {f: kinds[i % len(kinds)] for i, f in enumerate(families)}
    for i, threads in enumerate(counts):
        tier = document["build"].get("tier", "")
        found = [p for p in document["peaks"] if p["threads"] == threads and p["tier"] == tier]
        where = f"{document['machine'].get('cpu', '')}, {tier}, {table.threads_text(threads)}"
        _arithmetic_panel(axes[2 * i], found, tier, points(document, threads), looks)
        axes[2 * i].set_title(where)
        _memory_panel(axes[2 * i + 1], found, levels_of(document, threads), rates(document, threads), looks)
    return made


def levels_of(document: dict[str, Any], threads: int) -> list[peaks.Level]:
    """The memory levels of the machine that a run was made on."""
    return peaks.levels(document["build"]["caches"], threads)


def _best(found: list[dict[str, Any]], level: str) -> float:
    return max(float(p["rate"]) for p in found if p["level"] == level)


def _scatter(ax: Any, dots: list[Point], looks: Looks) -> None:
    for family in dict.fromkeys(p.family for p in dots):
        colour, shape = looks[family]
        for ours in (False, True):
            some = [p for p in dots if p.family == family and p.ours == ours]
            if some:
                ax.scatter(
                    [p.x for p in some],
                    [p.y for p in some],
                    s=26 if ours else 18,
                    marker=shape,
                    zorder=3 if ours else 2,
                    linewidths=1.0,
                    facecolors=colour if ours else "none",
                    edgecolors=colour,
                    alpha=0.9 if ours else 0.55,
                    label=family if ours else None,
                )
    ax.scatter([], [], s=24, facecolors="none", edgecolors="#555555", label="peers")
    ax.grid(True, which="major", color="#eeeeee", zorder=0)
    ax.set_axisbelow(True)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": _LEGEND_COLUMNS}
    ax.legend(fontsize=8, frameon=False, handletextpad=0.2, labelspacing=0.3, **below)


def _note(ax: Any, text: str, at: tuple[float, float], **how: Any) -> None:
    ax.annotate(text, at, fontsize=8, color="#444444", xytext=(0, 2), textcoords="offset points", va="bottom", **how)


def _roofs(found: list[dict[str, Any]], tier: str) -> list[tuple[str, float]]:
    """Name and rate of each roof; where the tier has no product of a 16- or 8-bit type, float32 serves it."""
    rates = {kind: peaks.rate_of(found, tier, kind) for kind in _ROOFS}
    names = {kind: [label] for kind, label in _ROOFS.items()}
    for kind in ("dot_bf16", "dot_i8"):
        if rates[kind] <= 1.05 * rates["fma_f32"]:
            names["fma_f32"].append(names.pop(kind)[0].split()[0])
    return sorted(((", ".join(n), rates[k]) for k, n in names.items()), key=lambda roof: roof[1])


def _arithmetic_panel(ax: Any, found: list[dict[str, Any]], tier: str, dots: list[Point], looks: Looks) -> None:
    low = min([0.05, *(p.x for p in dots)]) / 1.5
    high = max([200.0, *(p.x for p in dots)]) * 1.5
    top = max(rate for _, rate in _roofs(found, tier))
    slopes = {level: _best(found, level) for level in _LEVELS}
    floor = min([p.y for p in dots] + [low * slopes["DRAM"]]) / 2
    for i, (level, rate) in enumerate(slopes.items()):
        edge = top / rate
        ax.plot([low, edge], [low * rate, edge * rate], color="#888888", lw=1.8 if level == "DRAM" else 1.0, zorder=1)
        start = low * 1.15 * 2.1**i
        text = f"{level} {table.count_text(rate, 'B/s')}"
        _note(ax, text, (start, start * rate), rotation=45, rotation_mode="anchor", transform_rotates_text=True)
    for rank, (label, rate) in enumerate(_roofs(found, tier)):
        width = 1.8 if label.startswith("f32") else 1.0
        ax.plot([rate / slopes["L1"], high], [rate, rate], color="#444444", lw=width, zorder=1)
        # Roofs may lie so close that their names need a place each.
        _note(ax, f"{label} {table.count_text(rate, 'op/s')}", (high * 0.97 / 12 ** (rank % 2), rate), ha="right")
    _scatter(ax, dots, looks)
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(floor, top * 2),
        xlabel="operations per byte, operands read and results written once",
        ylabel="operations per second",
    )


def _memory_panel(
    ax: Any,
    found: list[dict[str, Any]],
    levels: list[peaks.Level],
    dots: list[Point],
    looks: Looks,
) -> None:
    low = min([4096.0, *(p.x for p in dots)]) / 1.5
    high = max([levels[-2].capacity * 4, *(p.x for p in dots)]) * 1.5
    begin = low
    for level in levels:
        end, rate = min(level.capacity, high), _best(found, level.name)
        ax.plot([begin, end], [rate, rate], color="#444444", lw=1.4, zorder=1)
        _note(ax, f"{level.name} {table.count_text(rate, 'B/s')}", (math.sqrt(begin * end), rate), ha="center")
        begin = end
    _scatter(ax, dots, looks)
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="bytes of operands and results, of problems bound by memory",
        ylabel="bytes read and written per second",
    )
    ax.set_ylim(min([p.y for p in dots] + [1e9]) / 2, _best(found, "L1") * 2)


def draw(document: dict[str, Any], path: str) -> None:
    """Writes the picture."""
    check_name(path)
    made = figure(document)
    try:
        made.savefig(path, dpi=160)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}: {len({key(r) for r in document['rows']})} rows")


def svg(made: Any) -> str:
    """A figure as an SVG element for a page."""
    text = io.StringIO()
    made.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
