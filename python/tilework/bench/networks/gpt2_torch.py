"""The same blocks in PyTorch, eager, by its fused attention, and a training step by autograd and torch.optim.SGD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tilework.bench.networks.gpt2 import BLOCKS, EPS, HEAD
from tilework.bench.networks.network import RATE, Weights


def _run(torch: Any, w: Weights, x: Any) -> Any:
    functional = torch.nn.functional
    batch, length, width = x.shape

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], EPS)

    def layer(name: str, x: Any) -> Any:
        return functional.linear(x, w[f"{name}.w"], w[f"{name}.b"])

    for i in range(BLOCKS):
        qkv = layer(f"{i}.qkv", norm(f"{i}.before", x)).view(batch, length, 3, width // HEAD, HEAD)
        q, k, v = (qkv[:, :, j].transpose(1, 2) for j in range(3))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + layer(f"{i}.out", y.transpose(1, 2).reshape(batch, length, width))
        x = x + layer(f"{i}.down", functional.gelu(layer(f"{i}.up", norm(f"{i}.between", x))))
    return x


def inference(weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
    """The network on a tensor x."""
    torch: Any = importlib.import_module("torch")
    given = {n: torch.from_numpy(w) for n, w in weights.items()}

    def run() -> Any:
        with torch.inference_mode():
            return _run(torch, given, x)

    return {"torch": run}


class Training:
    """Weights as leaves of autograd, and the descent."""

    def __init__(self, weights: Weights) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.weights = {n: self.torch.from_numpy(w.copy()).requires_grad_() for n, w in weights.items()}
        self.descent = self.torch.optim.SGD(self.weights.values(), lr=RATE)

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradients."""
        self.descent.zero_grad()
        loss = (_run(self.torch, self.weights, x) - goal).square().mean()
        loss.backward()
        return loss.detach(), {n: w.grad for n, w in self.weights.items()}

    def step(self, x: Any, goal: Any) -> Any:
        """One step; the loss before it."""
        loss, _ = self.gradients(x, goal)
        self.descent.step()
        return loss
