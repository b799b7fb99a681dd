"""The same blocks in PyTorch, eager, by its fused attention, and a training step by autograd and torch.optim.SGD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tilework.bench.networks.gpt2 import EPS, HEAD
from tilework.bench.networks.network import RATE, Weights


def _run(torch: Any, w: Weights, x: Any, *, encoder: bool = False) -> Any:
    functional = torch.nn.functional
    batch, length, width = x.shape

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], EPS)

    def layer(name: str, x: Any) -> Any:
        return functional.linear(x, w[f"{name}.w"], w[f"{name}.b"])

    def attend(i: int, x: Any) -> Any:
        qkv = layer(f"{i}.qkv", x).view(batch, length, 3, width // HEAD, HEAD)
        q, k, v = (qkv[:, :, j].transpose(1, 2) for j in range(3))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=not encoder)
        return layer(f"{i}.out", y.transpose(1, 2).reshape(batch, length, width))

    def widen(i: int, x: Any) -> Any:
        return layer(f"{i}.down", functional.gelu(layer(f"{i}.up", x)))

    for i in range(1 + max(int(name.partition(".")[0]) for name in w)):
        if encoder:
            x = norm(f"{i}.before", x + attend(i, x))
            x = norm(f"{i}.between", x + widen(i, x))
        else:
            x = x + attend(i, norm(f"{i}.before", x))
            x = x + widen(i, norm(f"{i}.between", x))
    return x


def inference(weights: Weights, x: Any, *, encoder: bool) -> dict[str, Callable[[], Any]]:
    """The network on a tensor x."""
    torch: Any = importlib.import_module("torch")
    given = {n: torch.from_numpy(w) for n, w in weights.items()}

    def run() -> Any:
        with torch.inference_mode():
            return _run(torch, given, x, encoder=encoder)

    return {"torch": run}


class Training:
    """Weights as leaves of autograd, and the descent."""

    def __init__(self, weights: Weights) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.weights = {n: self.torch.from_numpy(w.copy()).requires_grad_() for n, w in weights.items()}
        self.descent = self.torch.optim.SGD(self.weights.values(), lr=RATE)

    def loss(self, x: Any, goal: Any) -> Any:
        """The mean square of what is missing."""
        return (_run(self.torch, self.weights, x) - goal).square().mean()

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradients."""
        self.descent.zero_grad()
        loss = self.loss(x, goal)
        loss.backward()
        return loss.detach(), {n: w.grad for n, w in self.weights.items()}

    def step(self, x: Any, goal: Any) -> Any:
        """One step; the loss before it."""
        loss, _ = self.gradients(x, goal)
        self.descent.step()
        return loss
