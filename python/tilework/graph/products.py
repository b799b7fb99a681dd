"""The pass, on request alone, that sums convolutions by fewer products."""

from __future__ import annotations

from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value
from tilework.graph.passes import Add, is_constant, rewritten

_FEWEST = 32  # channels and filters: transforms of fewer cost more than the products they save
_SMALL_IMAGE = 64  # pixels of results: too few tiles of 4x4 for as many more weights as those take


def winograd(graph: Graph) -> Graph:
    """Lets 3x3 convolutions of stride 1 by constant weights run Winograd's algorithms, see ``conv``."""

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        if not _fits(node):
            return None
        _, _, high, wide = node.results[0].shape
        algo = "winograd_2x2" if high * wide <= _SMALL_IMAGE else "winograd"
        return add(node.op, node.operands, node.attrs | {"algo": algo}, node.where)

    return rewritten(graph, rule)


def _fits(node: Node) -> bool:
    """Whether a node is a convolution that the algorithms know and that gains by them."""
    if node.op.name != "conv" or node.numbers or not is_constant(node.operands[1]):
        return False
    w, at = node.operands[1], node.resolved
    assert isinstance(w, Value)
    plain = at["stride"] == at["dilation"] == (1, 1) and at["groups"] == 1 and at["layout"] == "NCHW"
    return plain and at["algo"] is None and w.shape[2:] == (3, 3) and min(w.shape[:2]) >= _FEWEST
