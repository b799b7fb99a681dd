"""``torch.compile(model, backend="tilework")``: parts of the forward and backward graphs run as compiled graphs.

AOTAutograd gives both graphs in aten's ops. Runs of nodes that tilework computes become executables; all others stay
with torch, and :func:`last_report` counts them. Shapes must be known: ``dynamic=False``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.utils.flop_counter import flop_registry

from tilework import graph, ops
from tilework.graph.build import tracing
from tilework.interop.aten import ALL, DECOMPOSITIONS, DTYPES, OPS, VIEWS, Supported, aten


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
                    held[node] = ALL[node.target](*args, **kwargs)
            bases = list(arrays)
            self._results = [_laid(held[n], n.meta["val"], bases) for n in outputs]
            return tuple(bases[len(arrays) :])

        specs = [
            graph.spec(_taken(n.meta["val"].shape, o), DTYPES[n.meta["val"].dtype])
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
    if isinstance(made, np.ndarray):  # made of nothing that is fed
        traced = tracing()
        assert traced is not None
        made = traced.constant(np.ascontiguousarray(made))
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
    partitioner = CapabilityBasedPartitioner(module, Supported(), allows_single_node_partition=True)
    chosen = [p for p in partitioner.propose_partitions() if any(n.target in OPS for n in p.nodes)]
    inside = {n for p in chosen for n in p.nodes}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        here, flops = node in inside, _flops(node)
        if node.target not in VIEWS:
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


_aot = aot_autograd(
    fw_compiler=_compiled, bw_compiler=_compiled, inference_compiler=_compiled, decompositions=DECOMPOSITIONS
)


def backend(module: torch.fx.GraphModule, examples: Any) -> Any:
    """The backend, found by its entry point: ``torch.compile(model, backend="tilework")``."""
    global _report
    _report = Report()
    return _aot(module, examples)
