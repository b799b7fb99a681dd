"""A graph in words: what ``print(g)`` writes."""

from __future__ import annotations

import functools
from typing import Any

from tilework import _core
from tilework.graph.build import Graph
from tilework.graph.ir import Constant, Node, Operand, Placeholder, Value, Variable


def names(graph: Graph) -> dict[Value, str]:
    """A short name for every value: its label, or a number."""
    found: dict[Value, str] = {}
    count = 0
    for node in graph.nodes:
        label = getattr(node.op, "label", "") if node.is_source else ""
        for value in node.results:
            found[value] = label or f"%{count}"
            count += not label
    return found


def flops_of(node: Node) -> float:
    """Operations of a node: what its op counts, else one for each element it makes."""
    rule = getattr(node.op, "rules", {}).get("flops")
    if node.is_source or getattr(node.op, "is_view", False):
        return 0.0
    if rule is None:
        return float(sum(v.size for v in node.results))
    shapes = [[v.shape for v in o] if isinstance(o, tuple) else getattr(o, "shape", None) for o in node.operands]
    return float(rule(*shapes, **node.resolved))


def bytes_of(node: Node) -> int:
    """Bytes that a node reads and writes, each array once."""
    if node.is_source or getattr(node.op, "is_view", False):
        return 0
    return sum(v.nbytes for v in (*node.results, *node.values()))


def quantity(n: float, unit: str, step: int = 1000) -> str:
    """``2.36 GFLOP``, ``512 B``: a number with the prefix that keeps it short."""
    for prefix in ("", "K", "M", "G", "T"):
        if n < 999.5 or prefix == "T":
            break
        n /= step
    return f"{n:.3g} {prefix}{'i' if step == 1024 and prefix else ''}{unit}"


def listing(graph: Graph) -> str:
    """One line a node: its name, the call, the shapes, the operations and the bytes it moves."""
    name = names(graph)
    feeds = ", ".join(f"{name[v]}: {v.dtype} {v.shape}" for v in graph.inputs)
    flops = sum(map(flops_of, graph.nodes))
    held = sum(n.results[0].nbytes for n in graph.nodes if isinstance(n.op, (Constant, Variable)))
    lines = [
        f"{graph.name}({feeds})",
        f"  # {len(graph.nodes)} nodes, {quantity(flops, 'FLOP')}, {quantity(held, 'B', 1024)} held",
    ]
    rows = [_row(node, name) for node in graph.nodes if not isinstance(node.op, Placeholder)]
    widths = [max((len(r[i]) for r in rows), default=0) for i in range(3)]
    for left, call, shape, work in rows:
        lines.append(f"  {left:<{widths[0]}} = {call:<{min(widths[1], 90)}}  {shape:<{widths[2]}}  {work}".rstrip())
    for variable, state in graph.states().items():
        lines.append(f"  {variable.label or 'variable'} <- {name[state]}")
    lines.append(f"  return {', '.join(name[v] for v in graph.outputs)}")
    return "\n".join(lines)


def _row(node: Node, name: dict[Value, str]) -> tuple[str, str, str, str]:
    left = ", ".join(name[v] for v in node.results)
    shape = ", ".join(f"{v.dtype} {v.shape}" for v in node.results)
    if node.is_source:
        return left, node.op.name, shape, quantity(node.results[0].nbytes, "B", 1024)
    given = [_written(o, name) for o in node.operands]
    while given and given[-1] == "None":
        given.pop()
    attrs = [f"{k}={_attribute(v)}" for k, v in node.attrs.items() if v != _defaults(node.op).get(k, _UNSET)]
    work = "" if node.op.is_view else f"{quantity(flops_of(node), 'FLOP')}  {quantity(bytes_of(node), 'B', 1024)}"
    return left, f"{node.op.name}({', '.join([*given, *attrs])})", shape, work


_UNSET = object()


@functools.cache
def _defaults(op: Any) -> dict[str, Any]:
    """What the attributes of an op are when they are not given."""
    if op.is_view:
        return {}
    rows = _core.op_spec(op.name)["attrs"] if op.name in _core.op_names() else []
    return {row["name"]: row.get("default", _UNSET) for row in rows}


def _attribute(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_attribute, value))}{',' * (len(value) == 1)})"
    if isinstance(value, slice):
        parts = ["" if v is None else str(v) for v in (value.start, value.stop, value.step)]
        return ":".join(parts if value.step not in (None, 1) else parts[:2])
    return "..." if value is Ellipsis else repr(value)


def _written(operand: Operand, name: dict[Value, str]) -> Any:
    if isinstance(operand, tuple):
        return f"[{', '.join(name[v] for v in operand)}]"
    return name[operand] if isinstance(operand, Value) else repr(operand)
