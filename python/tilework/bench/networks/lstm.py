"""Two layers of LSTM out of tilework's calls: inference, and a training step. x is (T, B, I), states have I too."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tilework as tw
from tilework.bench.networks.network import RATE, Network, Shape, Training, Weights

LAYERS = 2
_NAMES = ("w", "r", "b")


class LSTM(Network):
    """Layers of LSTM, one after the other; what they reach is compared with what they were to reach."""

    name = "lstms"

    def fault(self, shape: Shape) -> str:
        return "" if len(shape) == 3 and min(shape) > 0 else f"x has shape {shape}; want (T, B, I)"

    def result(self, shape: Shape) -> Shape:
        return shape

    def products(self, shape: Shape) -> float:
        length, batch, size = shape
        return float(LAYERS * length * batch * 8 * size * size)

    def weights(self, shape: Shape) -> Weights:
        random, n = np.random.default_rng(5), shape[2]
        made: Weights = {}
        for i in range(LAYERS):
            for name, sizes in zip(_NAMES, ((1, 4 * n, n), (1, 4 * n, n), (1, 4 * n)), strict=True):
                made[f"{i}.{name}"] = np.float32(math.sqrt(1 / n)) * random.standard_normal(sizes, np.float32)
        return made

    def goal(self, shape: Shape) -> Any:
        """The states to reach."""
        return np.random.default_rng(6).standard_normal(shape, np.float32)

    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        given = [{n: weights[f"{i}.{n}"] for n in _NAMES} for i in range(LAYERS)]
        ready = [tw.lstm.prepare(**g) if prepared else lambda x, g=g: tw.lstm(x, *g.values()) for g in given]

        def run(x: Any) -> Any:
            for layer in ready:
                x, *_ = layer(x)
            return x

        return run

    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        kept: list[Any] = []
        grads: Weights = {}
        for i in range(LAYERS):
            given = [weights[f"{i}.{n}"] for n in _NAMES]
            (y, *_), saved = tw.lstm.forward(x, *given)
            kept.append((x, given, saved))
            x = y
        off = tw.sub(x, goal)
        loss, dy = tw.reduce_mean(tw.mul(off, off)), tw.mul(off, 2 / math.prod(off.shape))
        for i in reversed(range(LAYERS)):
            x, given, saved = kept[i]
            wanted = ("x", *_NAMES) if i else _NAMES  # nobody asks for the gradient in the input
            dy, *rest = tw.lstm.backward(dy, x, *given, saved=saved, wanted=wanted)
            grads |= {f"{i}.{n}": g for n, g in zip(_NAMES, rest, strict=False)}
        return loss, grads

    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        torch: Any = importlib.import_module("torch")
        net = _torch_layers(torch, weights)

        def run() -> Any:
            with torch.inference_mode():
                return net(x)[0]

        return {"torch": run}

    def torch_training(self, weights: Weights) -> Training:
        return TorchTraining(weights)


def _torch_layers(torch: Any, weights: Weights) -> Any:
    size = weights["0.w"].shape[2]
    net = torch.nn.LSTM(size, size, LAYERS)
    with torch.no_grad():
        for i in range(LAYERS):
            for theirs, ours in (("weight_ih", "w"), ("weight_hh", "r"), ("bias_ih", "b")):
                getattr(net, f"{theirs}_l{i}").copy_(torch.from_numpy(weights[f"{i}.{ours}"][0]))
            getattr(net, f"bias_hh_l{i}").zero_()
    return net


class TorchTraining:
    """torch.nn.LSTM and the descent."""

    def __init__(self, weights: Weights) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.net = _torch_layers(self.torch, weights)
        self.learned = {
            f"{i}.{ours}": getattr(self.net, f"{theirs}_l{i}")
            for i in range(LAYERS)
            for theirs, ours in (("weight_ih", "w"), ("weight_hh", "r"), ("bias_ih", "b"))
        }
        self.descent = self.torch.optim.SGD(self.learned.values(), lr=RATE)

    def loss(self, x: Any, goal: Any) -> Any:
        """The mean square of what is missing."""
        return (self.net(x)[0] - goal).square().mean()

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradients."""
        self.net.zero_grad()
        loss = self.loss(x, goal)
        loss.backward()
        return loss.detach(), {n: w.grad[None] for n, w in self.learned.items()}

    def step(self, x: Any, goal: Any) -> Any:
        """One step; the loss before it."""
        loss, _ = self.gradients(x, goal)
        self.descent.step()
        return loss


NETWORK = LSTM()
