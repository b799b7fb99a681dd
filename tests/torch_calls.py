"""What call of ``torch.ops.tilework`` each of torch's functions is, as its samples (OpInfo) call it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
pytest.importorskip("tilework.interop.torch")

Call: TypeAlias = Callable[..., Any]

CALLS: dict[str, Call] = {}
op = torch.ops.tilework


class UndocumentedError(Exception):
    """A call that tilework's op does not say it takes."""


def covers(*names: str) -> Callable[[Call], Call]:
    def enter(call: Call) -> Call:
        CALLS.update(dict.fromkeys(names, call))
        return call

    return enter


def documented(good: bool) -> None:
    if not good:
        raise UndocumentedError


def ints(value: Any, n: int) -> list[int]:
    listed = list(value) if isinstance(value, (tuple, list, torch.Size)) else [value]
    return listed * n if len(listed) == 1 else listed


def batched(call: Call) -> Call:
    """torch's leading axis may be missing; ``rank`` is how many it has with it."""

    @functools.wraps(call)
    def run(x: Any, *args: Any, rank: int, **attrs: Any) -> Any:
        if x.dim() != rank - 1:
            return call(x, *args, **attrs)
        made = call(x.unsqueeze(0), *args, **attrs)
        return tuple(m.squeeze(0) for m in made) if isinstance(made, (tuple, list)) else made.squeeze(0)

    return run


# ------------------------------------------------------------------------------------------------- convolutions


def _conv(rank: int) -> Call:
    @batched
    def conv(
        x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        n = x.dim() - 2
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(ints(dilation, n), w.shape[2:], strict=True)]
            same = padding == "same"
            assert padding in ("same", "valid")
            assert not same or set(ints(stride, n)) == {1}
            padding = [side for r in reach for side in (r // 2, r - r // 2)] if same else 0
        return op.conv(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)

    return functools.partial(conv, rank=rank)


def _conv_transpose(rank: int) -> Call:
    @batched
    def conv(
        x: Any,
        w: Any,
        b: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        attrs = {"output_padding": output_padding, "groups": groups, "dilation": dilation}
        return op.conv_transpose(x, w, b, stride=stride, padding=padding, **attrs)

    return functools.partial(conv, rank=rank)


def _stride(value: Any) -> Any:
    """An empty list stands for the kernel's size."""
    return None if value in ([], ()) else value


def _max_pool(rank: int) -> Call:
    @batched
    def pool(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        attrs = {"dilation": dilation, "ceil_mode": ceil_mode, "return_indices": return_indices}
        made = op.max_pool(x, kernel=kernel_size, stride=_stride(stride), padding=padding, **attrs)
        return tuple(made) if return_indices else made[0]

    return functools.partial(pool, rank=rank)


def _avg_pool(rank: int) -> Call:
    @batched
    def pool(
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:
        documented(divisor_override is None or divisor_override > 0)
        attrs = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, "divisor": divisor_override}
        return op.avg_pool(x, kernel=kernel_size, stride=_stride(stride), padding=padding, **attrs)

    return functools.partial(pool, rank=rank)


def _adaptive(rank: int, kind: str) -> Call:
    @batched
    def pool(x: Any, output_size: Any, return_indices: bool = False) -> Any:
        size = [x.shape[2 + i] if s is None else s for i, s in enumerate(ints(output_size, x.dim() - 2))]
        if kind == "avg":
            return op.adaptive_avg_pool(x, size=size)
        made = op.adaptive_max_pool(x, size=size, return_indices=return_indices)
        return tuple(made) if return_indices else made[0]

    return functools.partial(pool, rank=rank)


for _n in (1, 2, 3):
    covers(f"nn.functional.conv{_n}d")(_conv(_n + 2))
    covers(f"nn.functional.conv_transpose{_n}d")(_conv_transpose(_n + 2))
    covers(f"nn.functional.max_pool{_n}d")(_max_pool(_n + 2))
    covers(f"nn.functional.avg_pool{_n}d")(_avg_pool(_n + 2))
    for _kind in ("avg", "max"):
        covers(f"nn.functional.adaptive_{_kind}_pool{_n}d")(_adaptive(_n + 2, _kind))


@covers("nn.functional.unfold")
def _(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    run = batched(op.unfold)
    return run(x, kernel=kernel_size, dilation=dilation, padding=padding, stride=stride, rank=4)


# ----------------------------------------------------------------------------------------------------- products


@covers("matmul", "mm", "bmm", "mv")
def _(a: Any, b: Any) -> Any:
    return op.matmul(a, b)


@covers("__rmatmul__")
def _(a: Any, b: Any) -> Any:
    return op.matmul(b, a)


@covers("addmm", "addmv", "baddbmm")
def _(c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return op.matmul(a, b, c, alpha=alpha, beta=beta)


@covers("addr", "addbmm")
def _(c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1, name: str) -> Any:
    documented(c.dim() > 0)
    made = op.einsum([a, b], subscripts="i,j->ij" if name == "addr" else "bij,bjk->ik", alpha=float(alpha))
    return made if beta == 0 else op.add(op.mul(c, _number(c, beta)), made)


@covers("dot", "inner", "outer", "linalg.vecdot")
def _(a: Any, b: Any, dim: int = -1, *, name: str) -> Any:
    if name == "linalg.vecdot":
        a, b = torch.broadcast_tensors(a.movedim(dim, -1), b.movedim(dim, -1))
        return op.einsum([a, b], subscripts="...i,...i->...")
    documented(name != "inner" or (a.dim() > 0 and b.dim() in (1, 2)))
    inner = "...i,i->..." if b.dim() == 1 else "...i,ji->...j"
    return op.einsum([a, b], subscripts={"dot": "i,i->", "inner": inner, "outer": "i,j->ij"}[name])


@covers("einsum")
def _(operands: Sequence[Any], equation: str) -> Any:
    left, arrow, right = equation.partition("->")
    documented("..." not in left or not arrow or "..." in right)  # axes of an ellipsis are never summed
    return op.einsum(list(operands), subscripts=equation)


@covers("linalg.multi_dot")
def _(arrays: Sequence[Any]) -> Any:
    return functools.reduce(op.matmul, arrays)


@covers("nn.functional.linear")
def _(x: Any, w: Any, b: Any = None) -> Any:
    documented(w.dim() == 2)
    return op.linear(x.unsqueeze(0), w, b).squeeze(0) if x.dim() == 1 else op.linear(x, w, b)


@covers("nn.functional.bilinear")
def _(x: Any, y: Any, w: Any, b: Any = None) -> Any:
    made = op.einsum([x, w, y], subscripts="...i,kij,...j->...k")
    return made if b is None else op.add(made, b)


@covers("nn.functional.scaled_dot_product_attention")
def _(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    documented(dropout_p == 0 and q.dim() == k.dim() == 4)
    if is_causal:  # torch lines up the first query and key, tilework the last
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return op.attention(q, k, v, attn_mask, scale=scale)[0]


@covers("nn.functional.multi_head_attention_forward")
def _(
    q: Any, k: Any, v: Any, _size: int, heads: int, w: Any, b: Any, key_bias: Any, value_bias: Any, zero: bool,
    dropout: float, wo: Any, bo: Any, *, training: bool = True, attn_mask: Any = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Any = None, k_proj_weight: Any = None,
    v_proj_weight: Any = None,
) -> Any:  # fmt: skip
    documented(not training or dropout == 0)  # torch draws other numbers
    batch = [x.unsqueeze(1) if x.dim() == 2 else x for x in (q, k, v)]
    firsts = [x.transpose(0, 1) for x in batch]
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else w.chunk(3)
    if attn_mask is not None:  # torch's True hides a key
        mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
        attn_mask = mask.reshape(-1, heads, *mask.shape[-2:]) if mask.dim() == 3 else mask
    ends = [None if e is None else e.reshape(-1) for e in (key_bias, value_bias)]
    made = op.multi_head_attention(
        *firsts, *weights, wo, *b.chunk(3), bo, *ends, attn_mask, None, heads=heads, add_zero_attn=zero
    )
    made = made.transpose(0, 1)
    return made.squeeze(1) if q.dim() == 2 else made


# ------------------------------------------------------------------------------------------------------- norms


@covers("nn.functional.layer_norm")
def _(x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    assert tuple(x.shape[-len(shape) :]) == tuple(shape)
    documented(eps >= 0 and math.prod(shape) > 1)  # one element is its own mean: a gradient of it is rounding alone
    return op.layer_norm(x, weight, bias, axes=list(range(-len(shape), 0)), eps=eps)[0]


@covers("nn.functional.rms_norm")
def _(x: Any, shape: Sequence[int], weight: Any = None, eps: Any = None) -> Any:
    assert tuple(x.shape[-len(shape) :]) == tuple(shape)
    eps = torch.finfo(torch.float32 if x.dtype == torch.bfloat16 else x.dtype).eps if eps is None else eps
    documented(eps >= 0)
    return op.rms_norm(x, weight, axes=list(range(-len(shape), 0)), eps=eps)[0]


@covers("nn.functional.group_norm")
def _(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    documented(eps >= 0)
    return op.group_norm(x, weight, bias, groups=groups, eps=eps)[0]


@covers("nn.functional.instance_norm")
def _(
    x: Any, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None, use_input_stats: bool = True,
    *_: Any, eps: float = 1e-5, **__: Any,
) -> Any:  # fmt: skip
    documented(mean is None and use_input_stats)
    return op.instance_norm(x, weight, bias, eps=eps)


@covers("nn.functional.batch_norm")
def _(
    x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    documented(momentum is not None and 0 <= momentum <= 1 and x.dim() > 1)
    running = [r if r is None or x.dtype != torch.bfloat16 else r.float() for r in (mean, var)]
    running = [r if r is None else r.clone() for r in running]
    return op.batch_norm(x, weight, bias, *running, training=training, momentum=momentum, eps=eps)[0]


@covers("nn.functional.local_response_norm")
def _(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    assert x.dim() >= 3
    return op.local_response_norm(x, size=size, alpha=alpha, beta=beta, k=k)


@covers("nn.functional.normalize")
def _(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    documented(0 < p <= 16 and x.dim() > 0)
    return op.lp_norm(x, p=p, axes=dim, eps=eps)


# ------------------------------------------------------------------------------- softmax, activations and losses


@covers("softmax", "log_softmax", "nn.functional.softmin", "logsumexp")
def _(x: Any, dim: Any, keepdim: Any = False, *, dtype: Any = None, name: str, **_: Any) -> Any:
    x = x if dtype is None else op.cast(x, dtype=dtype)
    documented(x.dim() > 0 and x.is_floating_point())
    if name == "logsumexp":
        documented(dim is not None and dim != ())
        return op.logsumexp(x, axes=dim, keepdims=keepdim)
    if name == "log_softmax":
        return op.log_softmax(x, axis=dim)
    return op.softmax(x if name == "softmax" else op.neg(x), axis=dim)


def _number(x: Any, value: float) -> Any:
    return torch.tensor(value, dtype=x.dtype)


ACTIVATIONS: dict[str, Call] = {
    "nn.functional.relu": lambda x, inplace=False: op.relu(x),
    "nn.functional.relu6": lambda x, inplace=False: op.clip(x, low=0.0, high=6.0),
    "nn.functional.hardtanh": lambda x, min_val=-1.0, max_val=1.0, inplace=False: op.clip(x, low=min_val, high=max_val),
    "nn.functional.elu": lambda x, alpha=1.0, inplace=False: op.elu(x, alpha=alpha),
    "nn.functional.gelu": lambda x, approximate="none": op.gelu(x, approximate=approximate),
    "nn.functional.silu": lambda x, inplace=False: op.silu(x),
    "nn.functional.mish": lambda x, inplace=False: op.mish(x),
    "nn.functional.hardswish": lambda x, inplace=False: op.hard_swish(x),
    "nn.functional.hardsigmoid": lambda x, inplace=False: op.hard_sigmoid(x),
    "nn.functional.leaky_relu": lambda x, slope=0.01, inplace=False: op.leaky_relu(x, alpha=slope),
    "nn.functional.logsigmoid": lambda x: op.neg(op.softplus(op.neg(x))),
    "nn.functional.softsign": lambda x: op.div(x, op.add(op.abs(x), _number(x, 1.0))),
    "nn.functional.tanhshrink": lambda x: op.sub(x, op.tanh(x)),
    "sigmoid": lambda x: op.sigmoid(x),
    "tanh": lambda x: op.tanh(x),
}
for _name, _call in ACTIVATIONS.items():
    covers(_name)(_call)


@covers("nn.functional.hardshrink", "nn.functional.softshrink")
def _(x: Any, lambd: float = 0.5, *, name: str) -> Any:
    if name == "nn.functional.hardshrink":
        return op.where(op.greater(op.abs(x), _number(x, lambd)), x, _number(x, 0.0))
    assert lambd >= 0
    return op.sub(op.relu(op.sub(x, _number(x, lambd))), op.relu(op.sub(op.neg(x), _number(x, lambd))))


@covers("nn.functional.prelu")
def _(x: Any, weight: Any) -> Any:
    assert weight.dim() < 2
    assert weight.numel() == 1 or (x.dim() > 1 and x.shape[1] == weight.numel())
    slope = weight.reshape((-1, *(1,) * (x.dim() - 2)) if x.dim() > 1 else (1,) * x.dim())
    return op.sub(op.relu(x), op.mul(op.relu(op.neg(x)), slope))


@covers("nn.functional.softplus")
def _(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    documented(beta == 1 and threshold == 20)
    return op.softplus(x)


@covers("nn.functional.celu", "nn.functional.selu")
def _(x: Any, alpha: float = 1.0, inplace: bool = False, *, name: str) -> Any:
    if name == "nn.functional.selu":
        return op.mul(op.elu(x, alpha=1.6732632423543772), _number(x, 1.0507009873554805))
    return op.mul(op.elu(op.div(x, _number(x, alpha)), alpha=1.0), _number(x, alpha))


@covers("nn.functional.glu")
def _(x: Any, dim: int = -1) -> Any:
    a, b = x.chunk(2, dim)
    assert a.shape == b.shape
    return op.mul(a, op.sigmoid(b))


@covers("nn.functional.threshold")
def _(x: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return op.where(op.greater(x, _number(x, threshold)), x, _number(x, value))


@covers("nn.functional.cross_entropy")
def _(
    x: Any, labels: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    documented(not labels.is_floating_point() and x.dim() > 1 and x.dtype != torch.bfloat16)
    attrs = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": ignore_index}
    return op.softmax_cross_entropy(x, labels, weight, **attrs)


@covers("nn.functional.nll_loss")
def _(x: Any, labels: Any, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean", **_: Any) -> Any:
    documented(x.dim() > 0 and x.numel() > 0)
    alone = x.dim() == 1
    if alone:
        x, labels = x.unsqueeze(0), labels.unsqueeze(0)
    counted = op.not_equal(labels, torch.tensor(ignore_index))
    labels = op.where(counted, labels, torch.tensor(0))
    each = op.gather_elements(op.neg(x), labels.unsqueeze(1), axis=1).squeeze(1)
    shares = op.cast(counted, dtype=x.dtype)
    if weight is not None:
        shares = op.mul(shares, op.gather(weight, labels, axis=0))
    each = op.mul(each, shares)
    if reduction == "mean":
        return op.div(op.reduce_sum(each), op.reduce_sum(shares))
    return each.squeeze(0) if alone and reduction == "none" else _reduced(each, reduction)


@covers("nn.functional.mse_loss", "nn.functional.l1_loss")
def _(x: Any, y: Any, *_: Any, reduction: str = "mean", weight: Any = None, name: str, **__: Any) -> Any:
    documented(weight is None and x.dim() > 0 and y.dim() > 0)
    apart = op.sub(x, y)
    apart = op.mul(apart, apart) if name == "nn.functional.mse_loss" else op.abs(apart)
    assert reduction in ("mean", "sum", "none")
    return apart if reduction == "none" else getattr(op, f"reduce_{reduction}")(apart)


def _reduced(each: Any, reduction: str) -> Any:
    return each if reduction == "none" else getattr(op, f"reduce_{reduction}")(each)


@covers("nn.functional.smooth_l1_loss", "nn.functional.huber_loss")
def _(x: Any, y: Any, *, reduction: str = "mean", name: str, **attrs: Any) -> Any:
    bend = float(attrs.get("delta", attrs.get("beta", 1.0)))
    documented(x.dim() > 0 and bend > 0 and attrs.get("weight") is None)
    apart = op.abs(op.sub(x, y))
    near = op.clip(apart, low=0.0, high=bend)
    each = op.mul(near, op.sub(apart, op.mul(near, _number(x, 0.5))))
    return _reduced(op.div(each, _number(x, bend)) if "smooth" in name else each, reduction)


@covers("nn.functional.binary_cross_entropy_with_logits")
def _(x: Any, y: Any, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None, **_: Any) -> Any:
    documented(x.dim() > 0)
    below, one = op.softplus(op.neg(x)), _number(x, 1.0)
    if pos_weight is not None:
        below = op.mul(below, op.add(op.mul(op.sub(pos_weight, one), y), one))
    each = op.add(op.mul(op.sub(one, y), x), below)
    return _reduced(each if weight is None else op.mul(each, weight), reduction)


@covers("nn.functional.binary_cross_entropy")
def _(x: Any, y: Any, weight: Any = None, *, reduction: str = "mean", **_: Any) -> Any:
    documented(x.dim() > 0)
    one = _number(x, 1.0)
    right, wrong = (op.clip(op.log(p), low=-100.0) for p in (x, op.sub(one, x)))
    each = op.neg(op.add(op.mul(y, right), op.mul(op.sub(one, y), wrong)))
    return _reduced(each if weight is None else op.mul(each, weight), reduction)


@covers("nn.functional.soft_margin_loss")
def _(x: Any, y: Any, *, reduction: str = "mean", **_: Any) -> Any:
    documented(x.dim() > 0)
    assert reduction in ("mean", "sum", "none")
    assert x.shape == y.shape
    return _reduced(op.softplus(op.neg(op.mul(x, y))), reduction)


@covers("nn.functional.hinge_embedding_loss")
def _(x: Any, y: Any, margin: float = 1.0, *, reduction: str = "mean", **_: Any) -> Any:
    documented(x.dim() > 0)
    zero = op.mul(x, _number(x, 0.0))
    far = op.relu(op.sub(_number(x, margin), x))
    near, other = (op.where(op.not_equal(y, _number(y, s)), a, zero) for s, a in ((-1.0, x), (1.0, far)))
    return _reduced(op.add(near, other), reduction)


@covers("nn.functional.margin_ranking_loss")
def _(x: Any, y: Any, sign: Any, margin: float = 0.0, *, reduction: str = "mean", **_: Any) -> Any:
    documented(x.dim() > 0)
    return _reduced(op.relu(op.add(op.mul(op.neg(sign), op.sub(x, y)), _number(x, margin))), reduction)


@covers("nn.functional.poisson_nll_loss")
def _(
    x: Any, y: Any, *, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean", **_: Any
) -> Any:
    documented(x.dim() > 0 and not full)
    each = op.sub(op.exp(x), op.mul(y, x)) if log_input else op.sub(x, op.mul(y, op.log(op.add(x, _number(x, eps)))))
    return _reduced(each, reduction)


@covers("nn.functional.kl_div")
def _(x: Any, y: Any, *, reduction: str = "mean", log_target: bool = False, **_: Any) -> Any:
    documented(x.dim() > 0 and log_target)
    each = op.mul(op.exp(y), op.sub(y, x))
    if reduction == "batchmean":
        return op.div(op.reduce_sum(each), _number(x, float(x.shape[0])))
    return _reduced(each, reduction)
