"""Convolution, products, normalisation, softmax, attention and losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilework as tw
from tilework.interop.onnx.pooling import windows_of
from tilework.interop.onnx.rules import NodeView, axis_of, node, spatial_pads

# ----------------------------------------------------------------------------------------------------- convolution


@node("Conv")
def conv(n: NodeView, x: Any, w: Any, b: Any = None) -> Any:
    return tw.conv(x, w, b, groups=n.get("group", 1), **windows_of(n, x, tuple(w.shape[2:])))


@node("ConvTranspose")
def conv_transpose(n: NodeView, x: Any, w: Any, b: Any = None) -> Any:
    kernel = tuple(w.shape[2:])
    n.want(n.get("kernel_shape", kernel) == kernel, f"kernel_shape={n.get('kernel_shape')} of a kernel {kernel}")
    rank = len(kernel)
    stride = n.get("strides") or (1,) * rank
    dilation = n.get("dilations") or (1,) * rank
    longer = n.get("output_padding") or (0,) * rank
    whole = [
        (size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(x.shape[2:], stride, dilation, kernel, strict=True)
    ]
    auto, shape = n.get("auto_pad", "NOTSET"), n.get("output_shape")
    if shape is None and auto.startswith("SAME"):
        shape = tuple(size * s for size, s in zip(x.shape[2:], stride, strict=True))
    if shape is not None:
        crop = [w + e - s for w, e, s in zip(whole, longer, shape, strict=True)]
        longer = tuple(e - min(c, 0) for e, c in zip(longer, crop, strict=True))
        halves = [(max(c, 0) // 2, max(c, 0) - max(c, 0) // 2) for c in crop]
        padding = tuple(h if auto == "SAME_UPPER" else h[::-1] for h in halves)
        if auto in ("NOTSET", ""):
            padding = tuple(h[::-1] for h in halves)
    else:
        padding = spatial_pads(n.get("pads") or (0,) * (2 * rank)) if auto != "VALID" else ((0, 0),) * rank
    # What lengthens the result beyond tilework's limit is rows that only the bias reaches.
    inside = tuple(min(e, max(s, d) - 1) for e, s, d in zip(longer, stride, dilation, strict=True))
    n.want(inside == tuple(longer), f"output_padding={longer} is not below the stride or dilation")
    return tw.conv_transpose(
        x, w, b, stride=stride, dilation=dilation, padding=padding, output_padding=longer, groups=n.get("group", 1)
    )


@node("DeformConv")
def deform_conv(n: NodeView, x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None) -> Any:
    groups = {"groups": n.get("group", 1), "offset_groups": n.get("offset_group", 1)}
    return tw.deform_conv(x, w, offset, b, mask, **groups, **windows_of(n, x, tuple(w.shape[2:])))


@node("Col2Im")
def col2im(n: NodeView, x: Any, shape: Any, block: Any) -> Any:
    sizes, kernel = n.ints(shape, "image_shape"), n.ints(block, "block_shape")
    windows = windows_of(n, x, kernel)
    return tw.fold(x, shape=sizes, kernel=kernel, **windows)


@node("ConvInteger")
def conv_integer(n: NodeView, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> Any:
    return tw.conv_integer(x, w, x_zero, w_zero, groups=n.get("group", 1), **windows_of(n, x, tuple(w.shape[2:])))


@node("QLinearConv")
def qlinear_conv(n: NodeView, x: Any, *rest: Any) -> Any:
    return tw.qlinear_conv(x, *rest, groups=n.get("group", 1), **windows_of(n, x, tuple(rest[2].shape[2:])))


# -------------------------------------------------------------------------------------------------------- products


@node("MatMul")
def matmul(n: NodeView, a: Any, b: Any) -> Any:
    return tw.matmul(a, b)


@node("Gemm")
def gemm(n: NodeView, a: Any, b: Any, c: Any = None) -> Any:
    n.get("broadcast")  # before version 7; it always does
    a = tw.transpose(a) if n.get("transA", 0) else a
    b = tw.transpose(b) if n.get("transB", 0) else b
    return tw.matmul(a, b, c, alpha=n.get("alpha", 1.0), beta=n.get("beta", 1.0))


@node("Einsum")
def einsum(n: NodeView, *operands: Any) -> Any:
    return tw.einsum(n.get("equation"), *operands)


@node("MatMulInteger")
def matmul_integer(n: NodeView, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    return tw.matmul_integer(a, b, a_zero, b_zero)


@node("QLinearMatMul")
def qlinear_matmul(n: NodeView, *operands: Any) -> Any:
    return tw.qlinear_matmul(*(tw.cast(v, dtype="float32") if v.dtype == np.float16 else v for v in operands))


@node("Det")
def det(n: NodeView, x: Any) -> Any:
    return tw.det(x)


# -------------------------------------------------------------------------------------------------- normalisation


def _per_channel(v: Any, x: Any) -> Any:
    return tw.reshape(v, (v.shape[0],) + (1,) * (len(x.shape) - 2))


@node("BatchNormalization")
def batch_norm(n: NodeView, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    eps = n.get("epsilon", 1e-5)
    n.read.add("momentum")  # of training
    n.want(n.get("spatial", 1) == 1, "spatial=0")
    if not n.get("training_mode", 0) and (n.opset >= 7 or n.get("is_test", 0)):
        n.want(n.opset >= 14 or not n.wants(1), "training as before version 14")
        return tw.batch_norm(x, scale, bias, mean, var, eps=eps)
    y = tw.batch_norm(x, scale, bias, training=True, eps=eps)
    axes = (0, *range(2, len(x.shape)))
    now = tw.reduce_mean(x, axes=axes)
    apart = tw.sub(x, _per_channel(now, x))
    spread = tw.reduce_mean(tw.mul(apart, apart), axes=axes)
    keep = n.get("momentum", 0.9)
    return y, *(tw.add(tw.mul(old, keep), tw.mul(to, 1 - keep)) for old, to in ((mean, now), (var, spread)))


@node("InstanceNormalization")
def instance_norm(n: NodeView, x: Any, scale: Any, bias: Any) -> Any:
    return tw.instance_norm(x, scale, bias, eps=n.get("epsilon", 1e-5))


@node("GroupNormalization")
def group_norm(n: NodeView, x: Any, scale: Any, bias: Any) -> Any:
    groups = n.get("num_groups")
    if n.opset < 21:  # one number per group
        y = tw.group_norm(x, groups=groups, eps=n.get("epsilon", 1e-5))
        each = x.shape[1] // groups
        spread = [tw.reshape(tw.expand(tw.reshape(v, (groups, 1)), shape=(groups, each)), (-1,)) for v in (scale, bias)]
        return tw.add(tw.mul(y, _per_channel(spread[0], x)), _per_channel(spread[1], x))
    return tw.group_norm(x, scale, bias, groups=groups, eps=n.get("epsilon", 1e-5))


@node("LayerNormalization")
def layer_norm(n: NodeView, x: Any, scale: Any, bias: Any = None) -> Any:
    axes = tuple(range(axis_of(n.get("axis", -1), len(x.shape)), len(x.shape)))
    eps, shape = n.get("epsilon", 1e-5), tuple(x.shape[a] for a in axes)
    whole = tuple(scale.shape) == shape and (bias is None or tuple(bias.shape) == shape)
    stats = n.wants(1) or n.wants(2)
    made = tw.layer_norm(x, *((scale, bias) if whole else ()), axes=axes, eps=eps, return_stats=stats)
    y, *rest = made if stats else (made,)
    if not whole:
        y = tw.mul(y, scale)
        y = y if bias is None else tw.add(y, bias)
    return y, *rest


@node("RMSNormalization")
def rms_norm(n: NodeView, x: Any, scale: Any) -> Any:
    axes = tuple(range(axis_of(n.get("axis", -1), len(x.shape)), len(x.shape)))
    whole = tuple(scale.shape) == tuple(x.shape[a] for a in axes)
    y = tw.rms_norm(x, scale if whole else None, axes=axes, eps=n.get("epsilon", 1e-5))
    return y if whole else tw.mul(y, scale)


@node("LpNormalization")
def lp_norm(n: NodeView, x: Any) -> Any:
    return tw.lp_norm(x, p=float(n.get("p", 2)), axes=n.get("axis", -1))


@node("MeanVarianceNormalization")
def mean_variance(n: NodeView, x: Any) -> Any:
    return tw.mean_variance_norm(x, axes=n.get("axes") or (0, 2, 3))


@node("LRN")
def local_response(n: NodeView, x: Any) -> Any:
    size = n.get("size")
    n.want(size % 2 == 1, f"size={size} is even, and its window lies elsewhere than tilework's")
    return tw.local_response_norm(
        x, size=size, alpha=n.get("alpha", 1e-4), beta=n.get("beta", 0.75), k=n.get("bias", 1.0)
    )


# --------------------------------------------------------------------------------------------- softmax and losses


@node("Softmax", "LogSoftmax")
def softmax(n: NodeView, x: Any) -> Any:
    op = tw.softmax if n.kind == "Softmax" else tw.log_softmax
    if n.opset >= 13:
        return op(x, axis=n.get("axis", -1))
    axis = n.get("axis", 1)
    rows = math.prod(x.shape[: axis_of(axis, len(x.shape))]) if axis != len(x.shape) else math.prod(x.shape)
    flat = tw.reshape(x, (rows, math.prod(x.shape) // max(rows, 1)))
    return tw.reshape(op(flat, axis=-1), tuple(x.shape))


@node("SoftmaxCrossEntropyLoss")
def cross_entropy(n: NodeView, x: Any, labels: Any, weight: Any = None) -> Any:
    ignored = n.get("ignore_index", -(2**31))
    loss = tw.softmax_cross_entropy(x, labels, weight, reduction=n.get("reduction", "mean"), ignore_index=ignored)
    return (loss, tw.log_softmax(x, axis=1)) if n.wants(1) else loss


# -------------------------------------------------------------------------------------------- attention


@node("RotaryEmbedding")
def rotary(n: NodeView, x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
    heads, flat = n.get("num_heads", 0), len(x.shape) == 3
    if flat:
        n.want(heads > 0, "x has 3 dimensions without num_heads")
        b, t, width = x.shape
        x = tw.transpose(tw.reshape(x, (b, t, heads, width // heads)), (0, 2, 1, 3))
    n.want(positions is not None, "angles per sequence (no position_ids)")
    n.want(n.get("rotary_embedding_dim", 0) in (0, 2 * cos.shape[-1]), "rotary_embedding_dim other than cos's")
    y = tw.rotary_embedding(x, cos, sin, positions, interleaved=bool(n.get("interleaved", 0)))
    return tw.reshape(tw.transpose(y, (0, 2, 1, 3)), (b, t, width)) if flat else y


def _heads(n: NodeView, x: Any, count: int) -> Any:
    if len(x.shape) == 4:
        return x
    n.want(count > 0, "3 dimensions without q_num_heads and kv_num_heads")
    b, t, width = x.shape
    return tw.transpose(tw.reshape(x, (b, t, count, width // count)), (0, 2, 1, 3))


@node("Attention")
def attention(
    n: NodeView, q: Any, k: Any, v: Any, mask: Any = None, past_k: Any = None, past_v: Any = None, lengths: Any = None
) -> Any:
    flat = len(q.shape) == 3
    q = _heads(n, q, n.get("q_num_heads", 0))
    k, v = (_heads(n, x, n.get("kv_num_heads", 0)) for x in (k, v))
    n.want(lengths is None, "nonpad_kv_seqlen")
    n.want(not n.wants(3), "the product of q and k as a result")
    n.want(n.get("softmax_precision", 1) in (1, 10, 16), "softmax in float64")
    if past_k is not None:
        k, v = tw.concat([past_k, k], axis=2), tw.concat([past_v, v], axis=2)
    t, s = q.shape[2], k.shape[2]
    if mask is not None and mask.shape[-1] < s:
        n.refuse("a mask shorter than the keys")
    left, right = n.get("left_window_size", -1), n.get("right_window_size", -1)
    if n.get("is_causal", 0):
        right = 0 if right < 0 else min(right, 0)
    if left >= 0 or right >= 0:
        ahead = np.arange(s) - np.arange(t)[:, None] - (0 if past_k is None else past_k.shape[2])
        seen = (ahead >= (-left if left >= 0 else -s - t)) & (ahead <= (right if right >= 0 else s + t))
        if mask is None:
            mask = seen
        else:
            n.want(mask.dtype != np.bool_, "a boolean mask beside another")
            mask = tw.add(mask, np.where(seen, 0, -np.inf).astype(mask.dtype))
    y = tw.attention(q, k, v, mask, scale=n.get("scale"), softcap=n.get("softcap", 0.0))
    if flat:
        y = tw.reshape(tw.transpose(y, (0, 2, 1, 3)), (y.shape[0], t, y.shape[1] * y.shape[3]))
    return y, k, v
