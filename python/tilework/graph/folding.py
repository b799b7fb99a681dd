"""Passes that put constants together: norms into the weights before them, products with a matrix into dense layers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tilework import registry
from tilework.graph.build import Graph, Spec
from tilework.graph.ir import Constant, Node, Value
from tilework.graph.passes import (
    Add,
    constant_value,
    is_constant,
    later_constant,
    new_constant,
    replaced,
    rewritten,
    used_once,
)
from tilework.ops.batch_norm import scale_and_shift, scaled_filters

_WIDE = (np.dtype(np.float32), np.dtype(np.float64))  # rounding a folded 16-bit weight once more would show


def batch_norm_folding(graph: Graph) -> Graph:
    """Puts a batch_norm of constants into the constant weights of the conv, conv_transpose or linear before it."""
    once = used_once(graph)

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if node.op.name != "batch_norm" or node.updates or len(node.results) != 1 or old.operands[0] not in once:
            return None
        if node.resolved["activation"]:
            return None
        x, *affine = node.operands
        assert isinstance(x, Value)
        layer = x.node
        if not all(a is None or is_constant(a) for a in affine) or not _foldable(layer, x):
            return None
        w, b = layer.operands[1], constant_value(layer.operands[2])
        assert isinstance(w, Value)
        weight, bias, mean, var = (None if a is None else constant_value(a) for a in affine)
        if mean is None or var is None:
            return None
        scale, shift = scale_and_shift(b, weight, bias, mean, var, eps=node.resolved["eps"])
        transposed = layer.op.name == "conv_transpose"
        groups = layer.resolved["groups"] if transposed else 1
        folded_w = functools.partial(_scaled, w.node.op, scale, transposed, groups)
        constants = later_constant(folded_w, w, add), new_constant(shift.astype(w.dtype), add)
        return add(layer.op, (layer.operands[0], *constants), layer.attrs, node.where)

    return replaced(graph, rule)


def _scaled(weights: Constant, scale: Any, transposed: bool, groups: int) -> Any:
    return scaled_filters(weights.data, scale, transposed=transposed, groups=groups)


def _foldable(layer: Node, x: Value) -> bool:
    """Whether a layer's result is channels of constant weights, nothing added and nothing applied."""
    if layer.op.name not in ("conv", "conv_transpose", "linear") or x.dtype not in _WIDE:
        return False
    _, w, b, *rest = layer.operands
    channels = 1 if layer.op.name == "linear" or layer.resolved["layout"] == "NCHW" else len(x.shape) - 1
    plain = all(r is None for r in rest) and layer.resolved["activation"] is None
    constant = is_constant(w) and (b is None or is_constant(b))
    return plain and constant and channels == 1 and (layer.op.name != "linear" or len(x.shape) == 2)


def matmul_to_linear(graph: Graph) -> Graph:
    """Makes a product with a constant matrix a dense layer, which packs its weights once and fuses what follows."""
    known: dict[Any, Value] = {}

    def rule(node: Node, add: Add) -> tuple[Value, ...] | None:
        if node.op.name != "matmul" or node.operands[2] is not None or node.resolved["alpha"] != 1:
            return None
        a, b, _ = node.operands
        if not is_constant(b) or not isinstance(a, Value) or not isinstance(b, Value):
            return None
        if len(b.shape) != 2 or len(a.shape) < 2 or a.dtype != b.dtype:
            return None
        if b not in known:
            known[b] = later_constant(functools.partial(_turned, b.node.op), Spec(b.shape[::-1], b.dtype), add)
        return add(registry.find("linear"), (a, known[b], None, None), {}, node.where)

    return rewritten(graph, rule)


def _turned(matrix: Constant) -> Any:
    return np.ascontiguousarray(matrix.data.T)
