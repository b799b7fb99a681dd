"""What aten's ops are in tilework: a table of functions of symbols, and which nodes of a graph they compute."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch._decomp import get_decompositions
from torch.fx.passes.operator_support import OperatorSupportBase

from tilework import ops

aten = torch.ops.aten

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.bool: "bool"}
_NONE, _MEAN = 0, 1  # of a loss's reduction


def _reduced(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
        axes = tuple(range(len(x.shape))) if dim is None or dim == [] else dim
        return op(x, axes=axes, keepdims=keepdim)

    return run


def _swapped(x: Any, a: int, b: int) -> Any:
    axes = list(range(len(x.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return ops.transpose(x, axes)


def _moved_in(x: Any, dim: int) -> Any:
    shape = list(x.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return ops.reshape(x, tuple(shape))


def _squeezed(x: Any, dim: Any) -> Any:
    gone = {d % len(x.shape) for d in ([dim] if isinstance(dim, int) else dim)}
    return ops.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in gone or n != 1))


def _sliced(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return x[(*(slice(None),) * (dim % len(x.shape)), slice(start, end, step))]


def _selected(x: Any, dim: int, index: int) -> Any:
    return x[(*(slice(None),) * (dim % len(x.shape)), index)]


def _back(dy: Any, sizes: Sequence[int], dim: int, start: int, end: int) -> Any:
    """dy among zeros, where a part of an array was taken along an axis."""
    dim %= len(sizes)
    return ops.pad(dy, pads=tuple((start, n - end) if d == dim else (0, 0) for d, n in enumerate(sizes)))


def _select_back(dy: Any, sizes: Sequence[int], dim: int, index: int) -> Any:
    dim, index = dim % len(sizes), index % sizes[dim]
    return _back(_moved_in(dy, dim), sizes, dim, index, index + 1)


def _slice_back(dy: Any, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Any:
    n = sizes[dim]
    start, end, _ = slice(start, end).indices(n)
    return _back(dy, sizes, dim, start, end)


def _pieces(x: Any, size: Any, dim: int = 0) -> Any:
    n = x.shape[dim]
    sizes = [min(size, n - at) for at in range(0, n, size)] if isinstance(size, int) else size
    ends = list(itertools.accumulate(sizes))
    return tuple(_sliced(x, dim, end - s, end) for s, end in zip(sizes, ends, strict=True))


def _widened(x: Any, size: Sequence[int], **_: Any) -> Any:
    lead = len(size) - len(x.shape)
    return ops.expand(x, shape=tuple(x.shape[i - lead] if n == -1 else n for i, n in enumerate(size)))


def _conv(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, _t: bool, _o: Any, groups: int) -> Any:
    return ops.conv(x, w, b, stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation), groups=groups)


def _conv_back(dy: Any, x: Any, w: Any, _b: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> Any:
    _, _, groups, mask = rest  # transposed, its output padding
    wanted = tuple(n for n, given in zip("xw", mask, strict=False) if given)
    attrs: dict[str, Any] = {"padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    dx, dw, *_ = ops.conv.backward(dy, x, w, wanted=wanted, stride=tuple(stride), **attrs)
    axes = (0, *range(2, len(dy.shape)))
    return dx, dw, ops.reduce_sum(dy, axes=axes) if mask[2] else None


def _norm(x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    return ops.layer_norm(x, weight, bias, axes=tuple(range(-len(shape), 0)), eps=eps, return_stats=True)


def _norm_back(dy: Any, x: Any, shape: Sequence[int], mean: Any, rstd: Any, weight: Any, _b: Any, _mask: Any) -> Any:
    return ops.layer_norm_dx(dy, x, mean, rstd, weight, axes=tuple(range(-len(shape), 0)), return_dw=True)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """The result, the statistics used, and the running ones as they become, with n - 1 in the variance."""
    if not training:
        y, used, rstd = ops.batch_norm(x, weight, bias, mean, var, eps=eps, return_stats=True)
        return y, used, rstd, mean, var
    y, used, rstd = ops.batch_norm(x, weight, bias, training=True, eps=eps, return_stats=True)
    n = x.shape[0] * math.prod(x.shape[2:])
    variance = ops.sub(ops.div(1.0, ops.mul(rstd, rstd)), eps)
    kept, taken = 1 - momentum, momentum * n / max(n - 1, 1)
    moved = ops.add(ops.mul(mean, kept), ops.mul(used, momentum))
    return y, used, rstd, moved, ops.add(ops.mul(var, kept), ops.mul(variance, taken))


def _batch_norm_back(
    dy: Any, x: Any, weight: Any, _mean: Any, _var: Any, mean: Any, rstd: Any, training: bool, _eps: float, _mask: Any
) -> Any:
    return ops.batch_norm_dx(dy, x, mean, rstd, weight, training=training, return_dw=True)


def _max_pool(
    x: Any, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil_mode: bool = False
) -> Any:
    attrs: dict[str, Any] = {"padding": _ints(padding), "dilation": _ints(dilation), "ceil_mode": ceil_mode}
    return ops.max_pool(x, kernel=_ints(kernel), stride=_ints(stride) if stride else None, return_indices=True, **attrs)


def _ints(value: Sequence[int]) -> Any:
    return value[0] if len(value) == 1 else tuple(value)


def _attention(
    q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None, scale: Any = None
) -> Any:
    return ops.attention(q, k, v, attn_mask, causal=causal, scale=scale, return_lse=True)


def _attention_back(
    dy: Any, q: Any, k: Any, v: Any, y: Any, lse: Any, dropout: float, causal: bool, *, attn_mask: Any = None,
    scale: Any = None,
) -> Any:  # fmt: skip
    return ops.attention_dx(dy, q, k, v, y, lse, attn_mask, causal=causal, scale=scale)


def _added(x: Any, y: Any, *, alpha: float = 1) -> Any:
    return ops.add(x, y if alpha == 1 else ops.mul(y, float(alpha)))


def _power(x: Any, exponent: float) -> Any:
    if exponent in (1, 2, 3):
        return x if exponent == 1 else ops.mul(x, x) if exponent == 2 else ops.mul(ops.mul(x, x), x)
    return ops.sqrt(x) if exponent == 0.5 else ops.pow(x, float(exponent))


def _joined(arrays: Sequence[Any], dim: int = 0) -> Any:
    return ops.concat(list(arrays), axis=dim)


def _clamped(x: Any, low: Any = None, high: Any = None) -> Any:
    return ops.clip(x, **{n: float(v) for n, v in (("low", low), ("high", high)) if v is not None})


def _like(x: Any, value: Any, **attrs: Any) -> Any:
    return _filled(x.shape, value, like=x, **attrs)


def _scattered(x: Any, dim: int, index: Any, value: float) -> Any:
    return ops.scatter_elements(x, index, _filled(index.shape, value, like=x), axis=dim)


def _filled(size: Sequence[int], value: Any, *, dtype: Any = None, like: Any = None, **_: Any) -> Any:
    if dtype is None and like is None:
        dtype = torch.tensor(value).dtype
    kind = like.dtype if dtype is None else DTYPES[dtype]
    return ops.expand(np.asarray(value, kind), shape=tuple(size))


def _converted(x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return x if dtype is None else ops.cast(x, dtype=DTYPES[dtype])


def _with_logits(x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = _MEAN) -> Any:
    """(1 - t) x + w softplus(-x), where w is 1 + (p - 1) t: torch's way not to lose small losses of large x."""
    below = ops.softplus(ops.neg(x))
    if pos_weight is not None:
        below = ops.mul(below, ops.add(ops.mul(ops.sub(pos_weight, 1.0), target), 1.0))
    each = ops.add(ops.mul(ops.sub(1.0, target), x), below)
    each = each if weight is None else ops.mul(each, weight)
    return each if reduction == _NONE else (ops.reduce_mean if reduction == _MEAN else ops.reduce_sum)(each)


VIEWS: dict[Any, Callable[..., Any]] = {
    aten.view.default: lambda x, size: ops.reshape(x, tuple(size)),
    aten._unsafe_view.default: lambda x, size: ops.reshape(x, tuple(size)),
    aten.reshape.default: lambda x, size: ops.reshape(x, tuple(size)),
    aten.t.default: lambda x: ops.transpose(x),
    aten.transpose.int: _swapped,
    aten.permute.default: lambda x, dims: ops.transpose(x, tuple(dims)),
    aten.unsqueeze.default: _moved_in,
    aten.squeeze.dim: _squeezed,
    aten.squeeze.dims: _squeezed,
    aten.expand.default: _widened,
    aten.slice.Tensor: _sliced,
    aten.select.int: _selected,
    aten.split.Tensor: _pieces,
    aten.split_with_sizes.default: _pieces,
    aten.detach.default: lambda x: x,
    aten.alias.default: lambda x: x,
    operator.getitem: lambda x, i: x[i],
}
OPS: dict[Any, Callable[..., Any]] = {
    aten.clone.default: lambda x, **_: x,
    aten.cat.default: _joined,
    aten.select_backward.default: _select_back,
    aten.slice_backward.default: _slice_back,
    aten.convolution.default: _conv,
    aten.convolution_backward.default: _conv_back,
    aten.mm.default: lambda a, b: ops.matmul(a, b),
    aten.bmm.default: lambda a, b: ops.matmul(a, b),
    aten.addmm.default: lambda c, a, b: ops.matmul(a, b, c),
    aten.native_layer_norm.default: _norm,
    aten.native_layer_norm_backward.default: _norm_back,
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_back,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: lambda dy, x, _k, _s, _p, _d, _c, indices: ops.max_pool_dx(
        dy, indices, shape=tuple(x.shape[2:])
    ),
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_back,
    aten._softmax.default: lambda x, dim, _: ops.softmax(x, axis=dim),
    aten._softmax_backward_data.default: lambda dy, y, dim, _: ops.softmax_dx(dy, y, axis=dim),
    aten._log_softmax.default: lambda x, dim, _: ops.log_softmax(x, axis=dim),
    aten._log_softmax_backward_data.default: lambda dy, y, dim, _: ops.log_softmax_dx(dy, y, axis=dim),
    aten.binary_cross_entropy_with_logits.default: _with_logits,
    aten.relu.default: lambda x: ops.relu(x),
    aten.threshold_backward.default: lambda dy, x, _: ops.relu_dx(dy, x),
    aten.gelu.default: lambda x, approximate="none": ops.gelu(x, approximate=approximate),
    aten.gelu_backward.default: lambda dy, x, approximate="none": ops.gelu_dx(dy, x, approximate=approximate),
    aten.tanh.default: lambda x: ops.tanh(x),
    aten.tanh_backward.default: lambda dy, y: ops.tanh_dx(dy, y),
    aten.sigmoid.default: lambda x: ops.sigmoid(x),
    aten.sigmoid_backward.default: lambda dy, y: ops.sigmoid_dx(dy, y),
    aten.silu.default: lambda x: ops.silu(x),
    aten.exp.default: lambda x: ops.exp(x),
    aten.log.default: lambda x: ops.log(x),
    aten.sqrt.default: lambda x: ops.sqrt(x),
    aten.rsqrt.default: lambda x: ops.rsqrt(x),
    aten.neg.default: lambda x: ops.neg(x),
    aten.abs.default: lambda x: ops.abs(x),
    aten.add.Tensor: _added,
    aten.add.Scalar: _added,
    aten.sub.Tensor: lambda x, y: ops.sub(x, y),
    aten.mul.Tensor: lambda x, y: ops.mul(x, y),
    aten.mul.Scalar: lambda x, y: ops.mul(x, y),
    aten.div.Tensor: lambda x, y: ops.div(x, y),
    aten.div.Scalar: lambda x, y: ops.div(x, y),
    aten.sub.Scalar: lambda x, y: ops.sub(x, y),
    aten.rsub.Scalar: lambda x, y: ops.sub(y, x),
    aten.pow.Tensor_Scalar: _power,
    aten.reciprocal.default: lambda x: ops.div(1.0, x),
    aten.sign.default: lambda x: ops.sign(x),
    aten.sgn.default: lambda x: ops.sign(x),
    aten.maximum.default: lambda x, y: ops.maximum(x, y),
    aten.minimum.default: lambda x, y: ops.minimum(x, y),
    aten.clamp.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_max.default: lambda x, high: ops.clip(x, high=float(high)),
    aten.sum.default: _reduced(ops.reduce_sum),
    aten.sum.dim_IntList: _reduced(ops.reduce_sum),
    aten.mean.default: _reduced(ops.reduce_mean),
    aten.mean.dim: _reduced(ops.reduce_mean),
}
# Ops of several types of numbers at once.
_MIXED: dict[Any, Callable[..., Any]] = {
    aten.where.self: lambda c, x, y: ops.where(c, x, y),
    aten.gather.default: lambda x, dim, index, **_: ops.gather_elements(x, index, axis=dim),
    aten._to_copy.default: _converted,
    aten.full.default: _filled,
    aten.full_like.default: _like,
    aten.new_full.default: lambda x, size, value, **attrs: _filled(size, value, like=x, **attrs),
    aten.new_zeros.default: lambda x, size, **attrs: _filled(size, 0, like=x, **attrs),
    aten.fill.Scalar: _like,
    aten.empty_like.default: lambda x, **attrs: _like(x, 0, **attrs),
    aten.masked_fill.Scalar: lambda x, mask, value: ops.where(mask, _like(x, value), x),
    aten.bitwise_not.default: lambda x: ops.logical_not(x) if x.dtype == np.bool_ else ops.bitwise_not(x),
    aten.scatter.value: _scattered,
    aten.zeros_like.default: lambda x, **attrs: _like(x, 0, **attrs),
    aten.ones_like.default: lambda x, **attrs: _like(x, 1, **attrs),
    aten.scalar_tensor.default: lambda value, **attrs: _filled((), value, **attrs),
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": ops.equal,
    "ne": ops.not_equal,
    "lt": ops.less,
    "le": ops.less_equal,
    "gt": ops.greater,
    "ge": ops.greater_equal,
}
for _name, _compare in _COMPARISONS.items():
    _MIXED[getattr(aten, _name).Tensor] = _MIXED[getattr(aten, _name).Scalar] = _compare
OPS |= _MIXED
ALL = VIEWS | OPS

# What torch writes in other ops before it hands a graph over.
DECOMPOSITIONS = get_decompositions(
    [
        aten.nll_loss_forward,
        aten.nll_loss_backward,
        aten.nll_loss2d_forward,
        aten.nll_loss2d_backward,
        aten.mse_loss,
        aten.mse_loss_backward,
        aten.smooth_l1_loss,
        aten.smooth_l1_loss_backward,
        aten.huber_loss,
        aten.huber_loss_backward,
        aten.binary_cross_entropy,
        aten.binary_cross_entropy_backward,
    ]
)
_WITH_INDICES = {aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default}
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 3,  # where dropout stands among the arguments
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 6,
}


def _values(item: Any) -> list[Any]:
    """The tensors of a node's meta value or arguments."""
    if isinstance(item, (tuple, list)):
        return [v for i in item for v in _values(i)]
    if isinstance(item, torch.fx.Node):
        return _values(item.meta.get("val"))
    return [item] if isinstance(item, torch.Tensor) else []


def _is_plain_attention(node: torch.fx.Node) -> bool:
    """Without dropout, with as many heads of keys as of queries, and causal only where first and last places agree."""
    at = _ATTENTION[node.target]
    dropout, causal = (*node.args[at : at + 2], 0.0, False)[:2] if len(node.args) > at else (0.0, False)
    first = 0 if at == 3 else 1  # behind dy
    q, k = (_values(n)[0] for n in node.args[first : first + 2])
    return dropout == 0 and q.dim() == 4 and q.shape[1] == k.shape[1] and (not causal or q.shape[2] == k.shape[2])


def _is_plain(tensor: Any) -> bool:
    sizes = all(isinstance(n, int) for n in tensor.shape)
    plain = tensor.dtype in DTYPES and tensor.device.type == "cpu" and not tensor.is_neg()
    return bool(sizes and plain and tensor.numel() > 0)


class Supported(OperatorSupportBase):  # type: ignore[misc]
    """Whether tilework computes a node."""

    def is_node_supported(self, submodules: Any, node: torch.fx.Node) -> bool:
        if node.op != "call_function" or node.target not in ALL:
            return False
        made, given = _values(node.meta.get("val")), _values(list(node.args))
        if not made or not all(map(_is_plain, [*made, *given])):
            return False
        floats = {t.dtype for t in [*made, *given] if t.dtype.is_floating_point}
        others = any(not t.dtype.is_floating_point for t in [*made, *given])
        if others and (floats or node.target in OPS) and node.target not in _WITH_INDICES and node.target not in _MIXED:
            return False
        if len(floats) > 1 or (node.target in _ATTENTION and not _is_plain_attention(node)):
            return False
        if node.target in (aten.convolution.default, aten.convolution_backward.default):
            at = 6 if node.target is aten.convolution.default else 7
            return node.args[at] is False
        if node.target is aten.slice_backward.default:
            return bool(node.args[5] == 1)
        return True


# ----------------------------------------------------------------------------------------------------------- compiling
