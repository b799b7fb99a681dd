"""Chains of elementwise calls, which a graph makes one pass over memory: forward, and with the gradients behind it.

``chain`` is ten operations on a row of numbers; ``epilogue`` is what follows a layer of a transformer in training:
bias, gelu, dropout, residual and layer_norm. A step gives the results and the gradients for a given one of the results.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tilework as tw
from tilework.bench.networks.network import Network, Shape, Training, Weights

P, SEED, EPS = 0.1, 3, 1e-5


class _Elementwise(Network):
    """Elementwise calls on x; nothing is descended."""

    prepares = False
    operations: int  # on every element

    def made(self, weights: Weights, x: Any) -> Any:
        """The results for x."""
        raise NotImplementedError

    def torch_made(self, weights: Weights, x: Any, mask: Any = None) -> Any:
        """The same in PyTorch; with a mask, that of a dropout of tilework's instead of its own."""
        raise NotImplementedError

    def result(self, shape: Shape) -> Shape:
        return shape

    def products(self, shape: Shape) -> float:
        return self.operations * math.prod(shape) / 2

    def moved(self, shape: Shape, weights: int, direction: str) -> tuple[int, int]:
        x = 4 * math.prod(shape)
        return (x + weights, x) if direction == "fwd" else (2 * x + weights, 2 * x + weights)

    def weights(self, shape: Shape) -> Weights:
        return {}

    def goal(self, shape: Shape) -> Any:
        """The gradient of the results."""
        return np.random.default_rng(6).standard_normal(shape, np.float32)

    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        return lambda x: self.made(weights, x)

    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        y, back = tw.vjp(self.made, weights, x)
        of_weights, dx = back(goal)
        return y, {"x": dx, **of_weights}

    def step(self, weights: Weights, x: Any, goal: Any) -> Any:
        return self.loss_and_gradients(weights, x, goal)

    def _tensors(self, weights: Weights) -> tuple[Any, Weights]:
        torch: Any = importlib.import_module("torch")
        return torch, {n: torch.from_numpy(w) for n, w in weights.items()}

    def mask(self, shape: Shape) -> Any:
        """What the dropout multiplies by."""
        return tw.dropout(np.ones(shape, np.float32), p=P, seed=SEED)

    def torch_function(self, weights: Weights) -> Callable[..., Any]:
        _, given = self._tensors(weights)
        return lambda x, mask=None: self.torch_made(given, x, mask)

    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        torch, _ = self._tensors(weights)
        function = self.torch_function(weights)

        def run() -> Any:
            with torch.inference_mode():
                return function(x)

        return {"torch": run}

    def torch_training(self, weights: Weights) -> Training:
        return TorchGradients(self, weights)


class TorchGradients:
    """Results, and gradients by autograd."""

    def __init__(self, form: _Elementwise, weights: Weights) -> None:
        self.torch, self.weights = form._tensors(weights)
        self.form = form
        for w in self.weights.values():
            w.requires_grad_()

    def loss(self, x: Any, mask: Any = None) -> Any:
        """The results."""
        return self.form.torch_made(self.weights, x, mask)

    def _pulled(self, x: Any, goal: Any, mask: Any) -> tuple[Any, Weights]:
        leaf = x.detach().requires_grad_()
        y = self.loss(leaf, mask)
        found = self.torch.autograd.grad(y, [leaf, *self.weights.values()], goal)
        return y.detach(), dict(zip(("x", *self.weights), found, strict=True))

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The results and the gradients behind tilework's dropout."""
        return self._pulled(x, goal, self.torch.from_numpy(self.form.mask(tuple(x.shape))))

    def step(self, x: Any, goal: Any) -> Any:
        """The same behind a dropout of its own."""
        return self._pulled(x, goal, None)


class Chain(_Elementwise):
    """tanh(2 log(1 + exp(x tanh(x / 2 + 1 / 4))) - x), ten operations; what numexpr is given is ``expression``."""

    name = "chain"
    operations = 10
    expression = "tanh(two * log(one + exp(x * tanh(half * x + quarter))) - x)"
    numbers = {"half": 0.5, "quarter": 0.25, "one": 1.0, "two": 2.0}  # noqa: RUF012

    def fault(self, shape: Shape) -> str:
        return "" if len(shape) == 1 and shape[0] > 0 else f"x has shape {shape}; want (N,)"

    def made(self, weights: Weights, x: Any) -> Any:
        inner = tw.mul(x, tw.tanh(tw.add(tw.mul(x, 0.5), 0.25)))
        return tw.tanh(tw.sub(tw.mul(tw.log(tw.add(tw.exp(inner), 1.0)), 2.0), x))

    def torch_made(self, weights: Weights, x: Any, mask: Any = None) -> Any:
        torch: Any = importlib.import_module("torch")
        return torch.tanh(2.0 * torch.log(1.0 + torch.exp(x * torch.tanh(0.5 * x + 0.25))) - x)


class Epilogue(_Elementwise):
    """layer_norm(x + dropout(gelu(x + bias))) over the last axis of x (rows, width)."""

    name = "epilogue"
    operations = 20

    def fault(self, shape: Shape) -> str:
        return "" if len(shape) == 2 and min(shape) > 0 else f"x has shape {shape}; want (rows, width)"

    def weights(self, shape: Shape) -> Weights:
        random, n = np.random.default_rng(5), shape[1]
        made = {name: random.standard_normal(n, np.float32) for name in ("bias", "weight", "beta")}
        return made | {"weight": 1 + np.float32(0.1) * made["weight"]}

    def made(self, weights: Weights, x: Any) -> Any:
        y = tw.dropout(tw.gelu(tw.add(x, weights["bias"])), p=P, seed=SEED)
        return tw.layer_norm(tw.add(x, y), weights["weight"], weights["beta"], eps=EPS)

    def torch_made(self, weights: Weights, x: Any, mask: Any = None) -> Any:
        torch: Any = importlib.import_module("torch")
        functional = torch.nn.functional
        y = functional.gelu(x + weights["bias"])
        y = functional.dropout(y, P, training=True) if mask is None else y * mask
        return functional.layer_norm(x + y, (x.shape[1],), weights["weight"], weights["beta"], EPS)


NETWORKS = (Chain(), Epilogue())
