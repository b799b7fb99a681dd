"""Passes that put constants together: norms into the weights before them, products with a matrix into dense layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilework import registry
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Value
from tilework.graph.passes import Add, constant_value, new_constant, replaced, rewritten, used_once

_WIDE = (np.dtype(np.float32), np.dtype(np.float64))  # rounding a folded 16-bit weight once more would show


def batch_norm_folding(graph: Graph) -> Graph:
    """Puts a batch_norm of constants into the constant weights of the conv or linear before it."""
    once = used_once(graph)

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if node.op.name != "batch_norm" or node.updates or len(node.results) != 1 or old.operands[0] not in once:
            return None
        x, *affine = node.operands
        assert isinstance(x, Value)
        layer, found = x.node, [constant_value(a) for a in affine]
        given = all(a is None or c is not None for a, c in zip(affine, found, strict=True))
        if not given or not _foldable(layer, x):
            return None
        w, b = constant_value(layer.operands[1]), constant_value(layer.operands[2])
        weight, bias, mean, var = (None if c is None else np.asarray(c, np.float64) for c in found)
        if mean is None or var is None:
            return None
        scale = (1.0 if weight is None else weight) / np.sqrt(var + node.resolved["eps"])
        start = (0.0 if b is None else np.asarray(b, np.float64)) - mean
        folded_b = start * scale + (0.0 if bias is None else bias)
        folded_w = w * scale.astype(w.dtype).reshape(-1, *(1 for _ in w.shape[1:]))
        constants = [new_constant(a, add) for a in (folded_w, folded_b.astype(w.dtype))]
        return add(layer.op, (layer.operands[0], *constants), layer.attrs, node.where)

    return replaced(graph, rule)


def _foldable(layer: Node, x: Value) -> bool:
    """Whether a layer's result is channels of constant weights, nothing added and nothing applied."""
    if layer.op.name not in ("conv", "linear") or x.dtype not in _WIDE:
        return False
    _, w, b, *rest = layer.operands
    channels = 1 if layer.op.name == "linear" or layer.resolved["layout"] == "NCHW" else len(x.shape) - 1
    plain = all(r is None for r in rest) and layer.resolved["activation"] is None
    constant = constant_value(w) is not None and (b is None or constant_value(b) is not None)
    return plain and constant and channels == 1 and (layer.op.name == "conv" or len(x.shape) == 2)


def matmul_to_linear(graph: Graph) -> Graph:
    """Makes a product with a constant matrix a dense layer, which packs its weights once and fuses what follows."""
    known: dict[Any, Value] = {}

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        if node.op.name != "matmul" or node.operands[2] is not None or node.resolved["alpha"] != 1:
            return None
        a, b, _ = node.operands
        data = constant_value(b)
        if data is None or data.ndim != 2 or not isinstance(a, Value) or len(a.shape) < 2 or a.dtype != data.dtype:
            return None
        if b not in known:
            known[b] = new_constant(np.ascontiguousarray(data.T), add)
        return add(registry.find("linear"), (a, known[b], None, None), {}, node.where)

    return rewritten(graph, rule)
