"""The same networks in PyTorch, eager: folded for inference, and a training step by autograd and torch.optim.SGD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tilework.bench.networks.network import RATE, Weights
from tilework.bench.networks.resnet import EPS, ResNet, Unit


def inference(form: ResNet, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
    """The network on a tensor of images, from folded weights, in both memory formats."""
    torch: Any = importlib.import_module("torch")
    plain, last = (_inference(torch, form, weights, channels_last=last) for last in (False, True))
    images = x.contiguous(memory_format=torch.channels_last)
    return {"torch": lambda: plain(x), "torch channels_last": lambda: last(images)}


def _inference(torch: Any, form: ResNet, weights: Weights, *, channels_last: bool) -> Callable[[Any], Any]:
    functional = torch.nn.functional
    lay = {"memory_format": torch.channels_last} if channels_last else {}
    given = {n: torch.from_numpy(w).contiguous(**(lay if w.ndim == 4 else {})) for n, w in weights.items()}
    blocks = list(form.blocks())

    def unit(u: Unit, x: Any) -> Any:
        y = functional.conv2d(x, given[f"{u.name}.w"], given[f"{u.name}.b"], u.stride, u.padding)
        return y.relu_() if u.relu else y

    def run(x: Any) -> Any:
        with torch.inference_mode():
            x = functional.max_pool2d(unit(form.stem, x), 3, 2, 1)
            for block in blocks:
                y = x
                for u in block.units:
                    y = unit(u, y)
                x = y.add_(unit(block.shortcut, x) if block.shortcut else x).relu_()
            return functional.linear(x.mean((2, 3)), given["classes.w"], given["classes.b"])

    return run


class Training:
    """Weights as leaves of autograd, and the descent."""

    def __init__(self, form: ResNet, weights: Weights) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.form = form
        self.weights = {n: self.torch.from_numpy(w.copy()) for n, w in weights.items()}
        self.learned = {n: w for n, w in self.weights.items() if not n.endswith((".mean", ".var"))}
        for w in self.learned.values():
            w.requires_grad_()
        self.descent = self.torch.optim.SGD(self.learned.values(), lr=RATE)

    def _unit(self, u: Unit, x: Any) -> Any:
        functional, w = self.torch.nn.functional, self.weights
        y = functional.conv2d(x, w[f"{u.name}.w"], None, u.stride, u.padding)
        mean, var, weight, bias = (w[f"{u.name}.{n}"] for n in ("mean", "var", "weight", "bias"))
        z = functional.batch_norm(y, mean, var, weight, bias, training=True, eps=EPS)
        return functional.relu(z, inplace=True) if u.relu else z

    def loss(self, x: Any, goal: Any) -> Any:
        """The mean cross entropy of a batch."""
        functional = self.torch.nn.functional
        x = functional.max_pool2d(self._unit(self.form.stem, x), 3, 2, 1)
        for block in self.form.blocks():
            y = x
            for u in block.units:
                y = self._unit(u, y)
            x = (y + (self._unit(block.shortcut, x) if block.shortcut else x)).relu_()
        logits = functional.linear(x.mean((2, 3)), self.weights["classes.w"], self.weights["classes.b"])
        return functional.cross_entropy(logits, goal)

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradients."""
        self.descent.zero_grad()
        loss = self.loss(x, goal)
        loss.backward()
        return loss.detach(), {n: w.grad for n, w in self.learned.items()}

    def step(self, x: Any, goal: Any) -> Any:
        """One step; the loss before it."""
        loss, _ = self.gradients(x, goal)
        self.descent.step()
        return loss
