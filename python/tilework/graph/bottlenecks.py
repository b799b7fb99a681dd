"""The pass that keeps what is wide between convolutions out of memory."""

from __future__ import annotations

from tilework import registry
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Operand, Value
from tilework.graph.passes import Add, is_constant, replaced, used_once

_WIDTHS = (3, 5)  # of kernels that filter several pixels at a time


def inverted_residual_fusion(graph: Graph) -> Graph:
    """Makes one call of convolutions that widen by 1x1 (or not), filter channel by channel, and narrow by 1x1."""
    once = used_once(graph)

    def before(value: Operand) -> Node | None:
        """The convolution of constant weights whose result nobody else takes."""
        if not isinstance(value, Value) or value not in once or value.is_view:
            return None
        return value.node if _is_plain(value.node) and value.node.operands[3] is None else None

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if not _is_plain(node) or not _is_point(node):
            return None
        each = before(old.operands[0])
        if each is None or not _is_filter(each):
            return None
        activation = each.resolved["activation"]
        wide = before(each.operands[0])
        if wide is None or not _is_point(wide) or wide.resolved["activation"] != activation:
            wide = None
        x, wide_w, wide_b = (each.operands[0], None, None) if wide is None else wide.operands[:3]
        _, w, b, _ = each.operands
        _, narrow, narrow_b, residual = node.operands
        operands = (
            *map(add.moved, (x, w)),
            narrow,
            *map(add.moved, (wide_w, b)),
            narrow_b,
            add.moved(wide_b),
            residual,
        )
        attrs = {n: each.resolved[n] for n in ("stride", "padding", "dilation")}
        attrs |= {"activation": activation, "narrow_activation": node.resolved["activation"]}
        return add(registry.find("inverted_residual"), operands, attrs, node.where)

    return replaced(graph, rule)


def _is_plain(node: Node) -> bool:
    """Whether a node convolves images by constant weights, directly, its channels in front."""
    if node.op.name != "conv" or node.numbers:
        return False
    x, w, b, _ = node.operands
    plain = node.resolved["layout"] == "NCHW" and node.resolved["algo"] is None
    return plain and isinstance(x, Value) and len(x.shape) == 4 and is_constant(w) and (b is None or is_constant(b))


def _is_point(node: Node) -> bool:
    w, at = node.operands[1], node.resolved
    assert isinstance(w, Value)
    alone = w.shape[2:] == (1, 1) and at["stride"] == (1, 1) and at["groups"] == 1
    return alone and not any(n for pair in at["padding"] for n in pair)


def _is_filter(node: Node) -> bool:
    """Whether a node has a filter of its own for every channel."""
    w, at = node.operands[1], node.resolved
    assert isinstance(w, Value)
    alone = w.shape[0] == at["groups"] > 1 and w.shape[1] == 1
    return alone and w.shape[3] in _WIDTHS and at["dilation"] == (1, 1)
