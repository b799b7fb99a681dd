"""``torch.compile(model, backend="tilework")``: parts of the forward and backward graphs run as compiled graphs.

AOTAutograd gives both graphs in aten's ops. Runs of nodes that tilework computes become executables; all others stay
with torch, and :func:`last_report` counts them. Shapes must be known: ``dynamic=False``.
"""

from __future__ import annotations

import itertools
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
    aten.split.Tensor: _pieces,
    aten.split_with_sizes.default: _pieces,
    aten.detach.default: lambda x: x,
    aten.alias.default: lambda x: x,
    operator.getitem: lambda x, i: x[i],
}
_OPS: dict[Any, Callable[..., Any]] = {
    aten.clone.default: lambda x, **_: x,
    aten.cat.default: lambda arrays, dim=0: ops.concat(list(arrays), axis=dim),
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
    plain = tensor.dtype in _DTYPES and tensor.device.type == "cpu" and not tensor.is_neg()
    return bool(sizes and plain and tensor.numel() > 0)


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
        if node.target is aten.slice_backward.default:
            return bool(node.args[5] == 1)
        return True


# ----------------------------------------------------------------------------------------------------------- compiling


_MOST_KEPT = 4  # times its own memory that a view may keep


@dataclass(frozen=True)
class Result:
    """Where a tensor lies: its shape, strides and offset in elements, of one array that is fed or made."""

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    whole: bool  # the array as it is

    def of(self, arrays: Sequence[Any]) -> Any:
        array = arrays[self.number]
        if self.whole:
            return array
        return array.as_strided(self.shape, self.strides, array.storage_offset() + self.offset)


class Part:
    """A run of nodes as an executable on borrowed tensors."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.__name__ = "tilework_part"
        nodes = list(module.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        (last,) = (n for n in nodes if n.op == "output")
        self._single = not isinstance(last.args[0], (tuple, list))
        outputs: Any = [last.args[0]] if self._single else list(last.args[0])
        orders = [_order(n.meta["val"]) for n in inputs]
        self._turned = [(i, o) for i, o in enumerate(orders) if o is not None]
        self._results: list[Result] = []

        def run(*arrays: Any) -> Any:
            given = [a if o is None else ops.transpose(a, _inverse(o)) for a, o in zip(arrays, orders, strict=True)]
            held = dict(zip(inputs, given, strict=True))
            for node in nodes:
                if node.op == "call_function":
                    args = torch.fx.map_arg(node.args, held.__getitem__)
                    kwargs = torch.fx.map_arg(node.kwargs, held.__getitem__)
                    held[node] = _ALL[node.target](*args, **kwargs)
            bases = list(arrays)
            self._results = [_laid(held[n], n.meta["val"], bases) for n in outputs]
            return tuple(bases[len(arrays) :])

        specs = [
            graph.spec(_taken(n.meta["val"].shape, o), _DTYPES[n.meta["val"].dtype])
            for n, o in zip(inputs, orders, strict=True)
        ]
        self.executable = graph.trace(run, *specs).compile()

    def __call__(self, *tensors: Any) -> Any:
        if self._turned:
            fed = list(tensors)
            for i, order in self._turned:
                fed[i] = fed[i].permute(order)
            tensors = tuple(fed)
        made = self.executable.run_on(torch.Tensor, tensors)
        if made is None:  # a tensor that is not contiguous, or a torch older than 2.10
            tensors = tuple(t.detach().contiguous() for t in tensors)
            made = tuple(map(torch.from_numpy, self.executable(*(t.numpy() for t in tensors))))
        arrays = (*tensors, *made)
        if self._single:
            return self._results[0].of(arrays)
        return tuple(r.of(arrays) for r in self._results)


def _order(tensor: Any) -> tuple[int, ...] | None:
    """The axes in the order in which a dense tensor lies, None if that is C's or it is not dense."""
    if tensor.is_contiguous():
        return None
    order = tuple(sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d)))
    return order if tensor.permute(order).is_contiguous() else None


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _taken(shape: Sequence[int], order: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(shape if order is None else (shape[d] for d in order))


def _laid(made: Any, want: Any, bases: list[Any]) -> Result:
    """Where a result lies as torch wants it: in memory that others share, if need be in a copy of another order."""
    order = _order(want)
    moved = made if order is None else ops.transpose(made, order)
    value = moved.value
    alone = value.base.nbytes > _MOST_KEPT * value.nbytes  # little of memory that would be kept for it
    if alone or not value.ghost.flags.c_contiguous:
        moved = ops.expand(moved, shape=moved.shape)
        value = moved.value
    number = next((i for i, b in enumerate(bases) if b.value is value.base), len(bases))
    if number == len(bases):
        bases.append(moved if moved.value is value.base else type(moved)(moved.graph, value.base))
    size = value.dtype.itemsize
    back = range(want.dim()) if order is None else _inverse(order)
    shape, strides = ([row[d] for d in back] for row in (value.shape, value.strides))
    whole = value is value.base and order is None
    return Result(number, tuple(shape), tuple(s // size for s in strides), value.offset // size, whole)


def _join_selects(module: torch.fx.GraphModule) -> None:
    """Writes sums of the gradients of all the parts that were selected along an axis as one array of those."""
    for node in reversed(module.graph.nodes):
        leaves = _leaves(node)
        if len(leaves) < 2 or any(n.target is not aten.select_backward.default for n in leaves):
            continue
        places = {(tuple(n.args[1]), n.args[2]) for n in leaves}
        by_index = {n.args[3] % n.args[1][n.args[2]]: n.args[0] for n in leaves}
        (sizes, dim), *others = places
        if others or len(by_index) != len(leaves) or len(leaves) != sizes[dim]:
            continue
        with module.graph.inserting_before(node):
            parts = []
            for index in range(sizes[dim]):
                parts.append(module.graph.call_function(aten.unsqueeze.default, (by_index[index], dim % len(sizes))))
                parts[-1].meta["val"] = aten.unsqueeze.default(by_index[index].meta["val"], dim % len(sizes))
            joined = module.graph.call_function(aten.cat.default, (parts, dim % len(sizes)))
        joined.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(joined)
    module.graph.eliminate_dead_code()


def _leaves(node: Any) -> list[torch.fx.Node]:
    """What a tree of additions adds up; none of what is no addition."""
    if not isinstance(node, torch.fx.Node) or node.target is not aten.add.Tensor or node.kwargs:
        return []
    found = []
    for term in node.args:
        if not isinstance(term, torch.fx.Node):
            return []
        within = _leaves(term) if len(term.users) == 1 else []
        found += within or [term]
    return found


def _flops(node: torch.fx.Node) -> float:
    rule = flop_registry.get(getattr(node.target, "_overloadpacket", None))
    if rule is None:
        return 0.0
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return float(rule(*args, **kwargs, out_val=node.meta["val"]))


def _compiled(module: torch.fx.GraphModule, examples: Any) -> Any:
    """A graph of aten's ops with parts of it replaced."""
    _join_selects(module)
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
