"""PyTorch, eager, on tensors that exist beforehand; gradients by its own kernels or by autograd over a kept graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench import networks
from tilework.bench.networks import NetworkProblem
from tilework.bench.peers import (
    Contestant,
    torch_activations,
    torch_algebra,
    torch_bytes,
    torch_conv,
    torch_gradients,
    torch_norms,
    torch_pools,
    torch_sequence,
)
from tilework.bench.peers.torch_conv import activated
from tilework.bench.problems import Problem

Call = Callable[..., Any]


def set_threads(count: int) -> int:
    """torch's intra-op threads."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(count)
    return int(torch.get_num_threads())


def _along_one(function: Call, a: dict[str, Any]) -> Call | None:
    """``function(*tensors, axis)``, where there is one axis."""
    return (lambda *tensors: function(*tensors, a["axis"][0])) if len(a["axis"]) == 1 else None


def _matmul(torch: Any) -> Call:
    return lambda x, y, c=None: torch.matmul(x, y) if c is None else torch.matmul(x, y) + c


def _einsum(torch: Any, a: dict[str, Any]) -> Call | None:
    if (a["alpha"], a["beta"], a["largest"]) != (1.0, 1.0, None):
        return None
    return lambda *tensors: torch.einsum(a["subscripts"], *(t for t in tensors if t is not None))


def _axes(a: dict[str, Any]) -> dict[str, Any]:
    return {"dim": tuple(a["axes"]), "keepdim": a["keepdims"]}


def _forward(torch: Any, op: str, a: dict[str, Any]) -> Call | None:
    """The function of tensors that computes an op with resolved attributes."""
    functional, aten = torch.nn.functional, torch.ops.aten
    plain = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "exp": torch.exp,
        "log": torch.log,
        "erf": torch.erf,
        "sigmoid_dx": aten.sigmoid_backward,
        "tanh_dx": aten.tanh_backward,
    }
    if op in plain:
        return plain[op]  # type: ignore[no-any-return]
    made: dict[str, Callable[[], Call | None]] = {
        "gelu": lambda: lambda x: functional.gelu(x, approximate=a["approximate"]),
        "gelu_dx": lambda: lambda dy, x: aten.gelu_backward(dy, x, approximate=a["approximate"]),
        "relu_dx": lambda: lambda dy, x: aten.threshold_backward(dy, x, 0),
        "einsum": lambda: _einsum(torch, a),
        "matmul": lambda: None if (a["alpha"], a["beta"]) != (1.0, 1.0) else _matmul(torch),
        "linear": lambda: (
            lambda x, w, b=None, residual=None: activated(
                torch,
                functional.linear(x, w, b) if residual is None else functional.linear(x, w, b) + residual,
                a["activation"],
            )
        ),
        "reduce_sum": lambda: lambda x: torch.sum(x, **_axes(a)),
        "reduce_mean": lambda: lambda x: torch.mean(x, **_axes(a)),
        "reduce_max": lambda: lambda x: torch.amax(x, **_axes(a)),
        "softmax": lambda: _along_one(torch.softmax, a),
        "log_softmax": lambda: _along_one(torch.log_softmax, a),
        "softmax_dx": lambda: _along_one(lambda dy, y, axis: aten._softmax_backward_data(dy, y, axis, y.dtype), a),
        "log_softmax_dx": lambda: _along_one(
            lambda dy, y, axis: aten._log_softmax_backward_data(dy, y, axis, y.dtype), a
        ),
        "logsumexp": lambda: lambda x: torch.logsumexp(x, **_axes(a)),
        "softmax_cross_entropy": lambda: (
            lambda x, labels, weight=None: functional.cross_entropy(
                x,
                labels,
                weight,
                reduction=a["reduction"],
                label_smoothing=a["label_smoothing"],
                ignore_index=a["ignore_index"],
            )
        ),
        "concat": lambda: lambda *arrays: torch.cat(arrays, a["axis"]),
        "pad": lambda: lambda x: functional.pad(x, [n for p in reversed(a["pads"]) for n in p], value=a["value"]),
        "expand": lambda: lambda x: x.expand(a["shape"]).contiguous(),
        "cast": lambda: lambda x: x.to(getattr(torch, np.dtype(a["dtype"]).name)),
        "transpose": lambda: lambda x: x.permute(a["axes"] or tuple(range(x.ndim))[::-1]),
        "reshape": lambda: lambda x: x.view(a["shape"]),
    }
    for family in (torch_activations, torch_algebra, torch_bytes, torch_conv, torch_norms, torch_pools, torch_sequence):
        made |= family.functions(torch, a)
    return made[op]() if op in made else None


def _stepper(torch: Any, problem: Problem, tensors: list[Any]) -> Contestant | None:
    """torch.optim's fused step on the same tensors, started from the same state."""
    w, a = torch.nn.Parameter(tensors[0]), problem.attrs
    w.grad = tensors[1]
    if problem.op == "sgd_step":
        step = torch.optim.SGD([w], fused=True, **a)
        state = tensors[2:]
        if state:
            step.state[w]["momentum_buffer"] = state[0]
    elif problem.op == "adam_step":
        rest = {k: v for k, v in a.items() if k in ("lr", "eps", "weight_decay")}
        betas = (a.get("beta1", 0.9), a.get("beta2", 0.999))
        step, state = torch.optim.Adam([w], fused=True, betas=betas, **rest), tensors[2:4]
        step.state[w].update(step=torch.tensor(float(a["step"] - 1)), exp_avg=state[0], exp_avg_sq=state[1])
    else:
        return None

    def answer() -> list[Any]:
        step.step()
        return [a.copy() for a in _to_numpy(torch, (w, *state))]

    return Contestant(step.step, answer=answer, keep=w)


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """torch's function, its gradient, or both."""
    torch: Any = importlib.import_module("torch")
    torch.set_grad_enabled(True)
    if isinstance(problem, NetworkProblem):
        return networks.torch_contestants(problem, operands)
    flat = [a for o in operands for a in (o if isinstance(o, list) else [o])]
    tensors = [None if a is None else _tensor(torch, a) for a in flat]
    while tensors and tensors[-1] is None:  # operands that were not given
        tensors.pop()
    a = registry.resolve(problem.target, operands, dict(problem.attrs))
    names = zip(problem.target.operands, operands, strict=False)
    sloped = [n in problem.target.differentiable for n, o in names for _ in (o if isinstance(o, list) else [o])]
    made = _contestant(torch, problem, tensors, sloped, a)
    if made and not made.answer:
        made.answer = lambda: _to_numpy(torch, made.call())
    return {"torch": made} if made else {}


def _tensor(torch: Any, array: Any) -> Any:
    """A tensor of the same memory; numpy's bfloat16 is not torch's, but has its bits."""
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _contestant(
    torch: Any, problem: Problem, tensors: list[Any], sloped: list[bool], a: dict[str, Any]
) -> Contestant | None:
    if problem.direction == "fwd":
        if problem.op.endswith("_step"):
            return _stepper(torch, problem, tensors)
        if made := torch_gradients.contestant(torch, problem.op, tensors, a, lambda op: _forward(torch, op, a)):
            return made
    forward = _forward(torch, problem.op, a)
    if forward is None:
        return None
    if problem.direction == "fwd":
        with torch.no_grad():
            y = forward(*tensors)
        if problem.out_given:
            return _into(torch, problem, tensors, y)
        torch.set_grad_enabled(False)  # for this process, which nothing else lives in
        return Contestant(lambda: forward(*tensors))
    leaves = [
        t.clone().requires_grad_(s) if t is not None and t.is_floating_point() else t
        for t, s in zip(tensors, sloped, strict=False)
    ]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    y = _first(forward(*leaves))
    dy = _tensor(torch, np.ascontiguousarray(problem.upstream(tuple(y.shape))))

    def backward() -> Any:
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    def step() -> Any:
        return torch.autograd.grad(_first(forward(*leaves)), wanted, dy)

    return Contestant(backward if problem.direction == "bwd" else step, keep=y)


def _first(result: Any) -> Any:
    """The result that a gradient flows into: the first that has one."""
    return next(r for r in result if r.requires_grad) if isinstance(result, tuple) else result


def _into(torch: Any, problem: Problem, tensors: list[Any], out: Any) -> Contestant | None:
    functions = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "matmul": torch.matmul,
        "exp": torch.exp,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    function = functions.get(problem.op)
    if problem.op == "relu":
        return Contestant(lambda: torch.clamp_min(tensors[0], 0, out=out))
    given = [t for t in tensors if t is not None]
    return Contestant(lambda: function(*given, out=out)) if function else None


def _to_numpy(torch: Any, value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [array for v in value for array in _to_numpy(torch, v)]
    if value is None:
        return []
    return [(value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()]
