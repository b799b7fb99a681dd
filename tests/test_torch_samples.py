"""The calls that torch tests its own functions with, on tilework's ops: results, gradients, strides and refusals.

torch.testing keeps samples of its functions' arguments (OpInfo). A table says what call of ``torch.ops.tilework`` each
of those functions is; what an op does not document is counted: ``python tests/test_torch_samples.py`` prints it. A
result is right if it is as near to float64's as torch's own is, within a factor of two, or to a few roundings of what
goes in or comes out.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

torch = pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
pytest.importorskip("expecttest", reason="torch's samples want expecttest")
pytest.importorskip("tilework.interop.torch")
samples = pytest.importorskip("torch.testing._internal.common_methods_invocations")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

Call: TypeAlias = Callable[..., Any]

MOST_SAMPLES = 24  # of a function and a dtype, spread over all that torch has
DTYPES = ("float32", "bfloat16")
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


# ------------------------------------------------------------------------------------------------- the samples


def entries() -> list[Any]:
    return [e for e in samples.op_db if e.name in CALLS and not (e.name == "silu" and e.variant_test_name)]


ENTRIES = {f"{e.name}:{e.variant_test_name}".rstrip(":"): e for e in entries() if e.variant_test_name != "complex"}


def call_of(entry: Any) -> Call:
    call = CALLS[entry.name]
    return functools.partial(call, name=entry.name) if _takes_name(call) else call


def _takes_name(call: Call) -> bool:
    code = getattr(call, "__code__", None)
    return code is not None and "name" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def chosen(entry: Any, dtype: str) -> list[Any]:
    """Some of torch's samples, the first and the last among them."""
    made = entry.sample_inputs("cpu", getattr(torch, dtype), requires_grad=entry.supports_autograd)
    every = list(itertools.islice(made, 2000))
    step = max(1, -(-len(every) // MOST_SAMPLES))
    return every[::step] + ([every[-1]] if step > 1 else [])


def tensors(value: Any) -> Iterator[Any]:
    """The tensors in arguments, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def mapped(function: Call, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(function, v) for v in value)
    return {k: mapped(function, v) for k, v in value.items()} if isinstance(value, dict) else value


def wide(t: Any) -> Any:
    return t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t


def rounded(t: Any) -> Any:
    """float64 with every element one rounding of the dtype off."""
    if not t.is_floating_point():
        return t
    sign = torch.randint(0, 2, t.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (t.detach().double() * (1 + sign * torch.finfo(t.dtype).eps / 2)).requires_grad_(t.requires_grad)


def arguments(sample: Any) -> tuple[Any, Any, Any]:
    return sample.input, sample.args, sample.kwargs


def results(call: Call, given: tuple[Any, Any, Any]) -> list[Any]:
    first, args, kwargs = given
    return list(tensors(call(first, *args, **kwargs)))


def gradients(made: Sequence[Any], given: Any, dy: Any) -> list[Any]:
    targets = [t for t in tensors(given) if t.requires_grad]
    if not targets or not made[0].requires_grad:
        return []
    return list(torch.autograd.grad(made[0], targets, dy.to(made[0].dtype), allow_unused=True))


def assert_as_near(mine: Any, theirs: Any, true: Any, what: str, slack: float = 0.0) -> None:
    assert mine.shape == theirs.shape, f"{what}: {tuple(mine.shape)}; want {tuple(theirs.shape)}"
    assert mine.dtype == theirs.dtype, f"{what}: {mine.dtype}; want {theirs.dtype}"
    if not mine.is_floating_point():
        assert torch.equal(mine, theirs), f"{what}: other numbers"
        return
    mine, theirs = mine.detach().double(), theirs.detach().double()
    odd = ~torch.isfinite(true) | ~torch.isfinite(theirs)
    assert torch.equal(torch.nan_to_num(mine[odd], 7.0), torch.nan_to_num(theirs[odd], 7.0)), f"{what}: not finite"
    if odd.all():
        return
    size = true[~odd].abs().max()
    eps = torch.finfo(torch.bfloat16).eps if what.endswith("bfloat16") else torch.finfo(torch.float32).eps
    allowed = 2 * (theirs - true)[~odd].abs().max() + 8 * eps * size + slack + 1e-30
    error = (mine - true)[~odd].abs().max()
    assert error <= allowed, f"{what}: {float(error):.3g} from float64's, at most {float(allowed):.3g}"


def _largest(t: Any) -> float:
    return float(torch.nan_to_num(t, 0.0, 0.0, 0.0).abs().max()) if t.numel() else 0.0


def is_refused(entry: Any, sample: Any) -> bool:
    """Whether a call is an error; an empty result of empty operands, which torch refuses, is defined."""
    try:
        made = results(call_of(entry), arguments(sample))
    except Exception:
        return True
    return all(t.numel() == 0 for t in made)


class Checked(Counter[str]):
    """How many samples were run, have gradients, and are of no op's documentation."""


def check(entry: Any, sample: Any, dtype: str, told: Checked) -> None:
    """Result, gradients and strides of one sample."""
    call, given = call_of(entry), arguments(sample)
    try:
        mine = results(call, given)
    except UndocumentedError:
        told["undocumented"] += 1
        return
    told["forward"] += 1
    exact = mapped(wide, given)
    theirs, true = results(entry.op, given), results(entry.op, exact)
    what = f"{entry.name} in {dtype}"
    for m, t, w in zip(mine, theirs, true, strict=True):
        assert_as_near(m, t, w, what)
    apart = sample.noncontiguous()
    for m, t in zip(results(call, arguments(apart)), mine, strict=True):
        assert_as_near(m, t, t.detach().double() if t.is_floating_point() else t, f"strides of {what}")
    if not entry.supports_autograd or not theirs or not theirs[0].requires_grad:
        return
    dy = torch.randn(theirs[0].shape, generator=torch.Generator().manual_seed(0)).to(theirs[0].dtype)
    got, exactly = gradients(mine, given, dy), gradients(true, exact, dy)
    told["gradient"] += bool(got)
    largest = max((_largest(g) for g in exactly if g is not None), default=0.0)  # of the whole gradient
    off = mapped(rounded, given)
    beside = gradients(results(entry.op, off), off, dy)
    for m, t, w, o in zip(got, gradients(theirs, given, dy), exactly, beside, strict=False):
        if m is not None and t is not None:
            slack = 4 * _largest(o - w) + 8 * torch.finfo(m.dtype).eps * largest
            assert_as_near(m, t, w, f"a gradient of {what}", slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_torchs_own_samples(name: str, dtype: str) -> None:
    entry, told = ENTRIES[name], Checked()
    if getattr(torch, dtype) not in entry.supported_dtypes("cpu"):
        pytest.skip(f"torch has no {name} in {dtype}")
    torch.manual_seed(0)
    for sample in chosen(entry, dtype):
        check(entry, sample, dtype, told)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.error_inputs_func is not None])
def test_what_torch_refuses_is_refused(name: str) -> None:
    entry = ENTRIES[name]
    for wrong in entry.error_inputs("cpu"):
        assert is_refused(entry, wrong.sample_input), wrong.error_regex


def main() -> None:
    """Prints what is covered."""
    total = Checked()
    print(f"{'function':45} {'forward':>8} {'gradient':>9} {'undocumented':>13} {'wrong':>6}")
    for (name, entry), dtype in itertools.product(ENTRIES.items(), DTYPES):
        if getattr(torch, dtype) not in entry.supported_dtypes("cpu"):
            continue
        torch.manual_seed(0)
        told = Checked()
        for sample in chosen(entry, dtype):
            try:
                check(entry, sample, dtype, told)
            except Exception as error:
                told["wrong"] += 1
                print(f"  {name} {dtype}: {type(error).__name__}: {str(error)[:200]}")
        total += told
        row = (told[k] for k in ("forward", "gradient", "undocumented", "wrong"))
        print(f"{name + ' ' + dtype:45} {next(row):8} {next(row):9} {next(row):13} {next(row):6}")
    refused, wrong = 0, 0
    for name, entry in ENTRIES.items():
        for bad in entry.error_inputs("cpu") if entry.error_inputs_func else ():
            if is_refused(entry, bad.sample_input):
                refused += 1
            else:
                wrong += 1
                print(f"  {name}: accepted what torch refuses: {bad.error_regex[:100]}")
    print(f"{len(ENTRIES)} functions: {dict(total)}; refused {refused} of {refused + wrong} invalid calls")


if __name__ == "__main__":
    main()
