"""Pictures of graphs: an SVG in layers, and Graphviz's text."""

from __future__ import annotations

import html
import math
import os
from typing import TYPE_CHECKING, TypeAlias

from tilework.errors import AttrError, AttrTypeError
from tilework.files import path_of
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Value

if TYPE_CHECKING:
    from tilework.graph.profile import Profile

_WIDTH, _HEIGHT = 180, 34  # of a box
_ACROSS, _DOWN = 24, 30  # between boxes
_WIDEST = 24  # letters in a box
_PULL = 0.85  # of lines that pass, towards the middle
_KINDS = {"placeholder": "#dbeafe", "variable": "#ede9fe", "view": "#f3f4f6", "op": "#fff7ed"}

Item: TypeAlias = tuple[Node, int]  # a node and a layer: the one it stands in, or one below that it passes through


def draw(graph: Graph, path: str | os.PathLike[str], profile: Profile | None = None) -> None:
    """Writes the picture: ``.dot`` is Graphviz's text, ``.svg`` or nothing SVG."""
    whole = path_of("draw", path)
    if whole.suffix not in (".svg", ".dot", ""):
        raise AttrError(f"draw: path is {str(whole)!r:.80}; want a name that ends in .svg or .dot", op="draw")
    if profile is not None and not hasattr(profile, "rows"):
        raise AttrTypeError(f"draw: profile is a {type(profile).__name__}; want what exe.profile returned", op="draw")
    text = dot(graph, profile) if whole.suffix == ".dot" else svg(graph, profile)
    whole.write_text(text, encoding="utf-8")


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
    layers, depth = _layers(shown)
    centre = _centres(layers, depth)
    left = min((x - _half(item, depth) for item, x in centre.items()), default=0.0) - _ACROSS
    width = round(max((x + _half(item, depth) for item, x in centre.items()), default=0.0) - left + _ACROSS)
    height = len(layers) * (_HEIGHT + _DOWN) + _DOWN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="monospace" font-size="11" text-anchor="middle">',
        f"<title>{html.escape(graph.name)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for item in centre:
        x1, y1 = centre[item] - left, _top(item)
        for above in _above(item, depth):
            x0, y0 = centre[above] - left, _top(above) + _HEIGHT
            parts.append(
                f'<path d="M{x0:.1f} {y0} C{x0:.1f} {y0 + _DOWN / 2:g} {x1:.1f} {y1 - _DOWN / 2:g} {x1:.1f} {y1}'
                f'{"" if item[1] == depth[item[0]] else f" V{y1 + _HEIGHT}"}" fill="none" stroke="#9ca3af"/>'
            )
    for node in shown:
        x, y = centre[node, depth[node]] - left, _top((node, depth[node]))
        first, second = (html.escape(line) for line in _label(node))
        parts.append(
            f'<rect x="{x - _WIDTH / 2:.1f}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" '
            f'fill="{colours[node]}" stroke="#374151" stroke-width="{2 if node.op.name == "fused" else 1}"/>'
            f'<text x="{x:.1f}" y="{y + 14}" font-weight="bold">{first}</text>'
            f'<text x="{x:.1f}" y="{y + 27}">{second}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _shown(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if not isinstance(n.op, Constant)]


def _edges(shown: list[Node]) -> list[tuple[Node, Node]]:
    return [(v.node, node) for node in shown for v in _sources(node)]


def _sources(node: Node) -> list[Value]:
    return [v for v in dict.fromkeys(node.values()) if not isinstance(v.node.op, Constant)]


def _layers(shown: list[Node]) -> tuple[list[list[Item]], dict[Node, int]]:
    """What stands in each layer, and each node's, which is the length of the longest way to it.

    A node passes through the layers below its own, down to the one above the last that takes it.
    """
    depth: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for node in shown:
        depth[node] = last[node] = 1 + max((depth[v.node] for v in _sources(node)), default=-1)
        for v in _sources(node):
            last[v.node] = max(last[v.node], depth[node] - 1)
    layers: list[list[Item]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in shown:
        for row in range(depth[node], last[node] + 1):
            layers[row].append((node, row))
    return layers, depth


def _above(item: Item, depth: dict[Node, int]) -> list[Item]:
    node, row = item
    return [(node, row - 1)] if row > depth[node] else [(v.node, row - 1) for v in _sources(node)]


def _centres(layers: list[list[Item]], depth: dict[Node, int]) -> dict[Item, float]:
    """The middle of everything: as near as there is room to below what it comes from."""
    at: dict[Item, float] = {}
    for layer in layers:
        wanted = {}
        for item in layer:
            above = _above(item, depth)
            pull = 1.0 if item[1] == depth[item[0]] else _PULL
            wanted[item] = pull * sum(at[a] for a in above) / len(above) if above else 0.0
        edge, moved = -math.inf, 0.0
        for item in sorted(layer, key=wanted.__getitem__):
            at[item] = max(wanted[item], edge + _half(item, depth))
            edge = at[item] + _half(item, depth)
            moved += (at[item] - wanted[item]) / len(layer)
        for item in layer:
            at[item] -= moved
    return at


def _half(item: Item, depth: dict[Node, int]) -> float:
    """Half the width of a box or of a line that passes, with what is kept free around."""
    return (_WIDTH + _ACROSS) / 2 if item[1] == depth[item[0]] else _ACROSS / 4


def _top(item: Item) -> int:
    return _DOWN + item[1] * (_HEIGHT + _DOWN)


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
