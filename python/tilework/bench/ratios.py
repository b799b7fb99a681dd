"""A picture of where the library stands: every row's ratio to its best peer, by family."""

from __future__ import annotations

from typing import Any

from tilework.bench import table

_GOOD, _BAD = "#1f7a4d", "#b3261e"
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def figure(document: dict[str, Any]) -> Any:
    """A row's ratio is a dot, its family's geometric mean a bar; red is slower than the best peer."""
    from matplotlib.figure import Figure

    found: dict[str, list[float]] = {}
    for ratio, row in table.losses(document["rows"]):
        found.setdefault(row["family"], []).append(ratio)
    means = {f: m for f, p, m, _ in table.means(document["rows"]) if p == "best peer" and f in found}
    names = sorted(found, key=lambda f: means[f], reverse=True)
    made = Figure(figsize=(6.0, 1.0 + 0.34 * len(names)), layout="constrained")
    ax = made.subplots()
    for y, name in enumerate(names):
        ax.plot([1, means[name]], [y, y], color=_colour(means[name]), lw=8, alpha=0.3, solid_capstyle="butt")
        ax.scatter(found[name], [y] * len(found[name]), s=16, c=[_colour(r) for r in found[name]], alpha=0.75, zorder=3)
    ax.axvline(1, color="#444444", lw=1)
    ax.set(
        xscale="log",
        yticks=range(len(names)),
        yticklabels=[f"{n}  {means[n]:.2f}" for n in names],
        xlabel="best peer's time / tilework's: right of 1 tilework is faster",
    )
    values = [v for vs in found.values() for v in vs]
    ticks = [t for t in _TICKS if min(values) / 1.6 <= t <= max(values) * 1.6]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(True, axis="x", color="#eeeeee")
    ax.spines[["top", "right"]].set_visible(False)
    return made


def _colour(ratio: float) -> str:
    return _GOOD if ratio >= 1 else _BAD
