"""Passes that let a layer do on its way out what follows it: add a bias and a residual, apply an activation.

And on its way back in what comes before: a gradient takes another's as its own first step.
"""

from __future__ import annotations

from tilework import registry
from tilework.graph.build import Graph
from tilework.graph.ir import Node, Operand, Value
from tilework.graph.passes import Add, replaced, used_once

_LAYERS = ("conv", "conv_transpose", "linear")
_B, _RESIDUAL = 2, 3  # of all
_ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu", "hard_swish")


def _open_layer(value: Operand) -> Node | None:
    """The layer that makes a value and can still take something in, None if there is none."""
    if not isinstance(value, Value) or value.is_view or value.node.op.name not in _LAYERS:
        return None
    return value.node if value.node.resolved["activation"] is None else None


def bias_and_residual_fusion(graph: Graph) -> Graph:
    """Puts an addition behind a convolution or a linear into its bias, or its residual if shapes are the same."""
    once = used_once(graph)

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if node.op.name != "add":
            return None
        for k in (0, 1):
            layer, other = _open_layer(node.operands[k]), node.operands[1 - k]
            if layer is None or old.operands[k] not in once or not isinstance(other, Value):
                continue
            if layer.operands[_RESIDUAL] is not None or other.dtype != node.results[0].dtype:
                continue
            x, w, b, _ = layer.operands
            if layer.results[0].shape != node.results[0].shape:
                continue
            if other.shape == node.results[0].shape:
                return add(layer.op, (x, w, b, other), layer.attrs, node.where)
            if b is None and _is_bias(layer, other):
                if len(other.shape) != 1:
                    (other,) = add(registry.find("reshape"), (other,), {"shape": (other.size,)})
                return add(layer.op, (x, w, other, None), layer.attrs, node.where)
        return None

    return replaced(graph, rule)


def _is_bias(layer: Node, value: Value) -> bool:
    """Whether a value varies along the channels of a layer's result alone."""
    result = layer.results[0]
    first = layer.op.name != "linear" and layer.resolved["layout"] == "NCHW"
    behind = len(result.shape) - 2 if first else 0  # axes behind the channels
    channels = result.shape[-1 - behind]
    at = len(value.shape) - 1 - behind
    return at >= 0 and value.shape[at] == channels == value.size and bool(value.ghost.flags.c_contiguous)


def _activation_of(node: Node) -> str | None:
    """The choice of a layer's ``activation`` that a node is, None where it is none."""
    name, at = node.op.name, node.resolved
    if node.numbers:
        return None
    if name == "clip":
        return "relu6" if (at["low"], at["high"]) == (0.0, 6.0) else None
    if name == "gelu" and at["approximate"] != "none":
        return None
    return name if name in _ACTIVATIONS else None


def activation_fusion(graph: Graph) -> Graph:
    """Puts an activation behind a convolution or a linear into it; a clip from 0 to 6 is one."""
    once = used_once(graph)

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        name = _activation_of(node)
        layer = _open_layer(node.operands[0]) if name else None
        if layer is None or old.operands[0] not in once:
            return None
        return add(layer.op, layer.operands, layer.attrs | {"activation": name}, node.where)

    return replaced(graph, rule)


def norm_residual_fusion(graph: Graph) -> Graph:
    """Puts an addition in front of layer_norm or rms_norm into it; the sum, if others need it, is its second result."""
    users, made = graph.users(), {id(v): k for k, n in enumerate(graph.nodes) for v in n.results}
    kept = {*graph.outputs, *graph.states().values()}
    normed: dict[Node, Node] = {}  # by addition
    for k, node in enumerate(graph.nodes):
        if node.op.name != "add":
            continue
        a, b = node.operands
        first = next(iter(users.get(node.results[0], ())), None)
        same = isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape and a.dtype == b.dtype
        if not same or first is None or first.op.name not in ("layer_norm", "rms_norm") or first in normed.values():
            continue
        x, *affine = first.operands
        known = all(v is None or (isinstance(v, Value) and made[id(v)] < k) for v in affine)
        if x is node.results[0] and affine[-1] is None and known and not first.resolved["return_sum"]:
            normed[node] = first
    stand_ins: dict[Node, tuple[Value, ...]] = {}

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        if old in stand_ins:
            return stand_ins[old]
        norm = normed.get(old)
        if norm is None:
            return None
        affine = tuple(add.moved(v) for v in norm.operands[1:-1])
        alone = len(users[old.results[0]]) == 1 and old.results[0] not in kept
        a, b = node.operands
        y, *rest = add(norm.op, (a, *affine, b), norm.attrs | {"return_sum": not alone}, norm.where)
        stand_ins[norm] = (y, *(rest if alone else rest[1:]))
        return (y if alone else rest[0],)

    return replaced(graph, rule)


_Y = 5  # of batch_norm_dx


def norm_activation_fusion(graph: Graph) -> Graph:
    """Puts a relu behind a batch_norm into it, and the relu's gradient into the norm's."""
    once, users = used_once(graph), graph.users()
    kept = {*graph.outputs, *graph.states().values()}

    def only_its_sign_is_asked_for(y: Value) -> bool:
        takers = users.get(y, ())
        relus = sum(n.op.name == "relu" for n in takers)
        signs = sum(n.op.name == "relu_dx" and n.operands[0] is not y for n in takers)
        return relus > 0 and relus + signs == len(takers) and y not in kept

    def rule(old: Node, node: Node, add: Add) -> tuple[Value, ...] | None:
        name = node.op.name
        if name == "batch_norm" and node.resolved["activation"] is None and not node.numbers:
            if only_its_sign_is_asked_for(old.results[0]):
                return add(node.op, node.operands, node.attrs | {"activation": "relu"}, node.where)
        elif name == "relu" and isinstance(y := node.operands[0], Value) and not y.is_view and y.index == 0:
            if y.node.op.name == "batch_norm" and y.node.resolved["activation"] == "relu":
                return (y,)
        elif name == "batch_norm_dx" and node.operands[_Y] is None and old.operands[0] in once:
            dy, *rest = node.operands
            if isinstance(dy, Value) and dy.node.op.name == "relu_dx" and not dy.is_view:
                return add(node.op, (dy.node.operands[0], *rest[:-1], dy.node.operands[1]), node.attrs, node.where)
        return None

    return replaced(graph, rule)
