"""Pictures of graphs: an SVG in layers, and Graphviz's text."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Value

if TYPE_CHECKING:
    from tilework.graph.profile import Profile

_WIDTH, _HEIGHT = 150, 34  # of a box
_ACROSS, _DOWN = 24, 30  # between boxes
_WIDEST = 24  # letters in a box
_KINDS = {"placeholder": "#dbeafe", "variable": "#ede9fe", "view": "#f3f4f6", "op": "#fff7ed"}


def draw(graph: Graph, path: str | os.PathLike[str], profile: Profile | None = None) -> None:
    """Writes the picture: ``.dot`` is Graphviz's text, all else SVG."""
    text = dot(graph, profile) if Path(path).suffix == ".dot" else svg(graph, profile)
    Path(path).write_text(text, encoding="utf-8")


def dot(graph: Graph, profile: Profile | None = None) -> str:
    """The graph in Graphviz's language; constants are left out."""
    shown, colours = _shown(graph), _colours(graph, profile)
    lines = [f"digraph {_quoted(graph.name)} {{", "  node [shape=box, style=filled, fontname=monospace];"]
    for i, node in enumerate(shown):
        lines.append(f"  n{i} [label={_quoted(chr(10).join(_label(node)))}, fillcolor={_quoted(colours[node])}];")
    places = {node: i for i, node in enumerate(shown)}
    lines += [f"  n{places[a]} -> n{places[b]};" for a, b in _edges(shown)]
    return "\n".join([*lines, "}", ""])


def svg(graph: Graph, profile: Profile | None = None) -> str:
    """The graph from top to bottom: a node stands below all that it takes; constants are left out."""
    shown, colours = _shown(graph), _colours(graph, profile)
    layers = _layers(shown)
    widest = max((len(layer) for layer in layers), default=1)
    width = widest * (_WIDTH + _ACROSS) + _ACROSS
    height = len(layers) * (_HEIGHT + _DOWN) + _DOWN
    at: dict[Node, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        left = (width - len(layer) * (_WIDTH + _ACROSS) + _ACROSS) / 2
        for column, node in enumerate(layer):
            at[node] = (left + column * (_WIDTH + _ACROSS), _DOWN + row * (_HEIGHT + _DOWN))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="monospace" font-size="11" text-anchor="middle">',
        f"<title>{html.escape(graph.name)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for a, b in _edges(shown):
        (x0, y0), (x1, y1) = at[a], at[b]
        x0, y0, x1 = x0 + _WIDTH / 2, y0 + _HEIGHT, x1 + _WIDTH / 2
        bend = max((y1 - y0) / 2, _DOWN / 2)
        parts.append(
            f'<path d="M{x0:g} {y0:g} C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}" '
            'fill="none" stroke="#9ca3af"/>'
        )
    for node in shown:
        x, y = at[node]
        first, second = (html.escape(line) for line in _label(node))
        group = len(getattr(node.op, "group", ())) > 1
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="{colours[node]}" '
            f'stroke="#374151" stroke-width="{2 if group else 1}"/>'
            f'<text x="{x + _WIDTH / 2:g}" y="{y + 14:g}" font-weight="bold">{first}</text>'
            f'<text x="{x + _WIDTH / 2:g}" y="{y + 27:g}">{second}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _shown(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if not isinstance(n.op, Constant)]


def _edges(shown: list[Node]) -> list[tuple[Node, Node]]:
    return [(v.node, node) for node in shown for v in _sources(node)]


def _sources(node: Node) -> list[Value]:
    return [v for v in dict.fromkeys(node.values()) if not isinstance(v.node.op, Constant)]


def _layers(shown: list[Node]) -> list[list[Node]]:
    """Nodes by the length of the longest way to them, each layer in the order of what it takes."""
    depth: dict[Node, int] = {}
    for node in shown:
        depth[node] = 1 + max((depth[v.node] for v in _sources(node)), default=-1)
    layers: list[list[Node]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in shown:
        layers[depth[node]].append(node)
    place = {node: float(i) for i, node in enumerate(shown)}
    for layer in layers:
        middle = {n: sum(place[v.node] for v in s) / len(s) if (s := _sources(n)) else place[n] for n in layer}
        layer.sort(key=lambda n: middle[n])
        place.update((n, i - len(layer) / 2) for i, n in enumerate(layer))
    return layers


def _label(node: Node) -> tuple[str, str]:
    """What a box says: the op, of a fused one the first ops that are in it; and the shape of its result."""
    name = node.op.label or node.op.name if node.is_source else node.op.name
    activation = node.attrs.get("activation")
    if name == "fused":
        inside = [line.split()[0] for line in node.attrs["program"].split("; return")[0].split(";")]
        name = f"{len(inside)}: {' '.join(inside)}"
        name = name if len(name) <= _WIDEST else f"{name[: _WIDEST - 2]} …"
    shape = "x".join(map(str, node.results[0].shape)) if node.results else ""
    return f"{name} {activation}"[:_WIDEST] if activation else name[:_WIDEST], shape or "()"


def _colours(graph: Graph, profile: Profile | None) -> dict[Node, str]:
    """By kind; by the share of the time, white to red, where it was measured."""
    found: dict[Node, str] = {}
    shares: dict[str, float] = {}
    if profile is not None:
        slowest = max((row.seconds for row in profile.rows), default=0.0) or 1.0
        shares = {_key(row.node): row.seconds / slowest for row in profile.rows}
    for node in graph.nodes:
        kind = "view" if getattr(node.op, "is_view", False) else node.op.name if node.is_source else "op"
        found[node] = _KINDS.get(kind, _KINDS["op"])
        share = shares.get(_key(node)) if profile is not None and kind == "op" else None
        if share is not None:
            fade = round(255 - 170 * share)
            found[node] = f"#ff{fade:02x}{fade:02x}"
    return found


def _key(node: Node) -> str:
    """Nodes of a profile are those of the compiled graph, or copies with the same results."""
    return f"{id(node.results[0]) if node.results else id(node)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
