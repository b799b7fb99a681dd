"""``torch.compile(model, backend="tilework")``: parts of the forward and backward graphs run as compiled graphs.

AOTAutograd gives both graphs in aten's ops. Runs of nodes that tilework computes become executables; all others stay
with torch, and :func:`last_report` counts them. Shapes must be known: ``dynamic=False``.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.utils.flop_counter import flop_registry

from tilework import graph, ops

aten = torch.ops.aten

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.bool: "bool"}


@dataclass
class Report:
    """What became of the nodes of the graphs that were compiled last: by their number, and by their operations."""

    tilework: Counter[str] = field(default_factory=Counter)
    torch: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0  # of products and convolutions, in tilework
    flops_of_all: float = 0.0
    parts: list[graph.Executable] = field(default_factory=list)

    def __str__(self) -> str:
        here, there = self.tilework.total(), self.torch.total()
        left = ", ".join(f"{name} {n}" for name, n in self.torch.most_common())
        share = f"{here} of {here + there} nodes and {100 * self.share:.1f} % of the operations"
        return f"{share} in {len(self.parts)} parts; left to torch: {left or 'nothing'}"

    @property
    def share(self) -> float:
        """The part of the operations that tilework does."""
        return self.flops / self.flops_of_all if self.flops_of_all else 0.0


_report = Report()


def last_report() -> Report:
    """The report of the model that was compiled last, its forward and backward graph together."""
    return _report


# ------------------------------------------------------------------------------------------- what aten's ops are here


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
    return ops.mul(x, x) if exponent == 2 else ops.mul(ops.mul(x, x), x)


_VIEWS: dict[Any, Callable[..., Any]] = {
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
    aten.detach.default: lambda x: x,
    aten.alias.default: lambda x: x,
    operator.getitem: lambda x, i: x[i],
}
_OPS: dict[Any, Callable[..., Any]] = {
    aten.clone.default: lambda x, **_: x,
    aten.convolution.default: _conv,
    aten.convolution_backward.default: _conv_back,
    aten.mm.default: lambda a, b: ops.matmul(a, b),
    aten.bmm.default: lambda a, b: ops.matmul(a, b),
    aten.addmm.default: lambda c, a, b: ops.add(ops.matmul(a, b), c),
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
    aten.pow.Tensor_Scalar: _power,
    aten.sum.default: _reduced(ops.reduce_sum),
    aten.sum.dim_IntList: _reduced(ops.reduce_sum),
    aten.mean.default: _reduced(ops.reduce_mean),
    aten.mean.dim: _reduced(ops.reduce_mean),
}
_ALL = _VIEWS | _OPS
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
    return bool(sizes and tensor.dtype in _DTYPES and tensor.device.type == "cpu" and tensor.numel() > 0)


class _Supported(OperatorSupportBase):  # type: ignore[misc]
    """Whether tilework computes a node."""

    def is_node_supported(self, submodules: Any, node: torch.fx.Node) -> bool:
        if node.op != "call_function" or node.target not in _ALL:
            return False
        made, given = _values(node.meta.get("val")), _values(list(node.args))
        if not made or not all(map(_is_plain, [*made, *given])):
            return False
        floats = {t.dtype for t in [*made, *given] if t.dtype.is_floating_point}
        others = any(not t.dtype.is_floating_point for t in [*made, *given])
        if others and (floats or node.target in _OPS) and node.target not in _WITH_INDICES:
            return False
        if len(floats) > 1 or (node.target in _ATTENTION and not _is_plain_attention(node)):
            return False
        if node.target in (aten.convolution.default, aten.convolution_backward.default):
            at = 6 if node.target is aten.convolution.default else 7
            return node.args[at] is False
        if node.target is aten.pow.Tensor_Scalar:
            return node.args[1] in (2, 3)
        return True


# ----------------------------------------------------------------------------------------------------------- compiling


class Part:
    """A run of nodes as an executable on borrowed tensors."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.__name__ = "tilework_part"
        nodes = list(module.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        (last,) = (n for n in nodes if n.op == "output")
        self._single = not isinstance(last.args[0], (tuple, list))
        outputs: Any = [last.args[0]] if self._single else list(last.args[0])
        self._strides = [n.meta["val"].stride() for n in outputs]

        def run(*arrays: Any) -> Any:
            held = dict(zip(inputs, arrays, strict=True))
            for node in nodes:
                if node.op == "call_function":
                    args = torch.fx.map_arg(node.args, held.__getitem__)
                    kwargs = torch.fx.map_arg(node.kwargs, held.__getitem__)
                    held[node] = _ALL[node.target](*args, **kwargs)
            return tuple(held[n] for n in outputs)

        specs = [graph.spec(tuple(n.meta["val"].shape), _DTYPES[n.meta["val"].dtype]) for n in inputs]
        self.executable = graph.trace(run, *specs).compile()

    def __call__(self, *tensors: Any) -> Any:
        made = self.executable(*(t.detach().numpy() for t in tensors))
        results = [self._laid(torch.from_numpy(a), s) for a, s in zip(made, self._strides, strict=True)]
        return results[0] if self._single else tuple(results)

    @staticmethod
    def _laid(tensor: Any, stride: Any) -> Any:
        """The tensor with the strides that torch expects of it."""
        if tensor.stride() == stride or tensor.numel() < 2:
            return tensor
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _flops(node: torch.fx.Node) -> float:
    rule = flop_registry.get(getattr(node.target, "_overloadpacket", None))
    if rule is None:
        return 0.0
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return float(rule(*args, **kwargs, out_val=node.meta["val"]))


def _compiled(module: torch.fx.GraphModule, examples: Any) -> Any:
    """A graph of aten's ops with parts of it replaced."""
    partitioner = CapabilityBasedPartitioner(module, _Supported(), allows_single_node_partition=True)
    chosen = [p for p in partitioner.propose_partitions() if any(n.target in _OPS for n in p.nodes)]
    inside = {n for p in chosen for n in p.nodes}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        here, flops = node in inside, _flops(node)
        if node.target not in _VIEWS:
            (_report.tilework if here else _report.torch)[str(node.target).removeprefix("aten.")] += 1
        _report.flops_of_all += flops
        _report.flops += flops if here else 0.0
    fused = partitioner.fuse_partitions(chosen)
    for node in fused.graph.nodes:
        if node.op == "call_module":
            part = Part(fused.get_submodule(str(node.target)))
            _report.parts.append(part.executable)
            node.op, node.target = "call_function", part
    fused.graph.lint()
    fused.recompile()
    return make_boxed_func(fused.forward)


_aot = aot_autograd(fw_compiler=_compiled, bw_compiler=_compiled, inference_compiler=_compiled)


def backend(module: torch.fx.GraphModule, examples: Any) -> Any:
    """The backend, found by its entry point: ``torch.compile(model, backend="tilework")``."""
    global _report
    _report = Report()
    return _aot(module, examples)
