"""PyTorch's gradients, by tilework's ops that are one: its own kernels, or autograd over a graph made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilework.bench.peers import Contestant
from tilework.bench.peers.torch_activations import activation
from tilework.bench.peers.torch_conv import even

Call = Callable[..., Any]
_RMS_EPS = 1e-6  # of tilework's rms_norm

# The op that an op is the gradient of, and how many of its operands behind dy are differentiated.
_FORWARD = {
    "softmax_cross_entropy_dx": ("softmax_cross_entropy", 1),
    "reduce_max_dx": ("reduce_max", 1),
    "local_response_norm_dx": ("local_response_norm", 1),
    "lp_norm_dx": ("lp_norm", 1),
    "lp_pool_dx": ("lp_pool", 1),
    "swiglu_dx": ("swiglu", 2),
    "geglu_dx": ("geglu", 2),
}


def contestant(
    torch: Any, op: str, tensors: list[Any], a: dict[str, Any], forward: Callable[[str], Call | None]
) -> Contestant | None:
    """torch's gradient for an op whose first operand is dy, or None; ``forward`` gives the function of an op."""
    if op in _KERNELS:
        call = _KERNELS[op](torch, tensors, a)
        return Contestant(call) if call else None
    if op == "activation_dx":
        return _autograd(torch, activation(torch, a["function"], a["alpha"], a["beta"]), tensors, 1)
    if op == "rms_norm_dx":
        return _rms_norm(torch, tensors, a)
    if op not in _FORWARD:
        return None
    name, count = _FORWARD[op]
    # What some are also given, the result of the forward op, autograd has kept for itself.
    return _autograd(torch, forward(name), tensors[:2] if op in ("reduce_max_dx", "lp_pool_dx") else tensors, count)


def _autograd(torch: Any, function: Call | None, tensors: list[Any], count: int) -> Contestant | None:
    if function is None:
        return None
    dy, leaves = tensors[0], [t.clone().requires_grad_(True) for t in tensors[1 : 1 + count]]
    y = function(*leaves, *tensors[1 + count :])
    return Contestant(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), keep=y)


def _attention(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, q, k, v, y, lse, *rest = tensors
    if a["window"] is not None or a["softcap"] or any(r is not None for r in rest) or q.shape[1] != k.shape[1]:
        return None
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return lambda: back(dy, q, k, v, y, lse, 0.0, a["causal"], attn_mask=None, scale=a["scale"])


def _batch_norm(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, x, mean, rstd = tensors[:4]
    weight, y = (*tensors[4:], None, None)[:2]
    if not a["training"] or y is not None:
        return None
    mask = [True, a["return_dw"], a["return_dw"]]
    back = torch.ops.aten.native_batch_norm_backward
    return lambda: back(dy, x, weight, None, None, mean, rstd, True, 0.0, mask)


def _layer_norm(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, x, mean, rstd = tensors[:4]
    weight = tensors[4] if len(tensors) > 4 else None
    shape = _last(x, a)
    if shape is None or (weight is None and a["return_dw"]):
        return None
    back, mask = torch.ops.aten.native_layer_norm_backward, [True, a["return_dw"], a["return_dw"]]
    return lambda: back(dy, x, shape, mean, rstd, weight, weight, mask)


def _rms_norm(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Contestant | None:
    """By autograd, as torch has no kernel of its own on the CPU; it computes rstd again in the graph."""
    dy, x = tensors[:2]
    weight = tensors[3] if len(tensors) > 3 else None
    shape = _last(x, a)
    if shape is None or (weight is not None and not a["return_dw"]):
        return None
    given = [t for t in (x, weight) if t is not None]
    return _autograd(
        torch, lambda x, w=None: torch.nn.functional.rms_norm(x, shape, w, _RMS_EPS), [dy, *given], len(given)
    )


def _last(x: Any, a: dict[str, Any]) -> list[int] | None:
    """The sizes of the axes normalised over, where these are the last ones."""
    axes = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]]
    found = sorted(axis % x.ndim for axis in axes)
    return list(x.shape[found[0] :]) if found == list(range(found[0], x.ndim)) else None


def _group_norm(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, x, mean, rstd = tensors[:4]
    weight = tensors[4] if len(tensors) > 4 else None
    if not (x.is_contiguous() and dy.is_contiguous()):  # which torch's kernel takes for granted
        return None
    n, c = x.shape[:2]
    sizes, mask = (n, c, x[0, 0].numel(), a["groups"]), [True, a["return_dw"], a["return_dw"]]
    back = torch.ops.aten.native_group_norm_backward
    return lambda: back(dy, x, mean, rstd, weight, *sizes, mask)


def _embedding(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, indices = tensors
    padding = -1 if a["padding_idx"] is None else a["padding_idx"]
    back = torch.ops.aten.embedding_dense_backward
    return lambda: back(dy, indices, a["rows"], padding, a["scale_by_frequency"])


def _adaptive_avg_pool(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    if len(a["shape"]) != 2:
        return None
    x = torch.empty(*tensors[0].shape[:2], *a["shape"], dtype=tensors[0].dtype)
    return lambda: torch.ops.aten._adaptive_avg_pool2d_backward(tensors[0], x)


def _avg_pool(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    dy, padding = tensors[0], even(a["padding"])
    if padding is None or len(a["shape"]) != 2:
        return None
    x = torch.empty(*dy.shape[:2], *a["shape"], dtype=dy.dtype)
    rest = (a["kernel"], a["stride"], padding, a["ceil_mode"], a["count_include_pad"], a["divisor"])
    return lambda: torch.ops.aten.avg_pool2d_backward(dy, x, *rest)


def _max_pool(torch: Any, tensors: list[Any], a: dict[str, Any]) -> Call | None:
    """torch's wants the pool's geometry, which follows from the shapes where windows do not overlap."""
    dy, indices, shape = tensors[0], tensors[1], a["shape"]
    kernel = [n // o for n, o in zip(shape, dy.shape[2:], strict=True)]
    if len(shape) != 2 or any(k * o != n for k, o, n in zip(kernel, dy.shape[2:], shape, strict=True)):
        return None
    x = torch.empty(*dy.shape[:2], *shape, dtype=dy.dtype)
    back = torch.ops.aten.max_pool2d_with_indices_backward
    return lambda: back(dy, x, kernel, kernel, [0, 0], [1, 1], False, indices)


_KERNELS: dict[str, Callable[[Any, list[Any], dict[str, Any]], Call | None]] = {
    "attention_dx": _attention,
    "batch_norm_dx": _batch_norm,
    "layer_norm_dx": _layer_norm,
    "group_norm_dx": _group_norm,
    "embedding_dw": _embedding,
    "adaptive_avg_pool_dx": _adaptive_avg_pool,
    "avg_pool_dx": _avg_pool,
    "max_pool_dx": _max_pool,
}
