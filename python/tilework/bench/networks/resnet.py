"""ResNet-18 and ResNet-50 out of tilework's calls: inference with folded norms, and a whole training step.

He et al., "Deep residual learning for image recognition", 2016; a bottleneck's stride is in its 3x3, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tilework as tw
from tilework.bench.networks.network import Network, Shape, Training, Weights

CLASSES = 1000
EPS = 1e-5
_SMALLEST = 32  # pixels that five halvings leave one of


@dataclass(frozen=True)
class Unit:
    """A convolution without bias and the norm of its result."""

    name: str
    channels: int  # of its input
    filters: int
    kernel: int
    stride: int = 1
    relu: bool = True  # False where a residual comes before it, or the result is one

    @property
    def padding(self) -> int:
        return self.kernel // 2


@dataclass(frozen=True)
class Block:
    """Units, one after the other, whose result is added to the input or to what ``shortcut`` makes of it."""

    units: tuple[Unit, ...]
    shortcut: Unit | None


@dataclass(frozen=True)
class ResNet(Network):
    """A stem, blocks of one of two kinds, and classes read from what is left of a picture (N, 3, H, W)."""

    kinked = True
    name: str
    counts: tuple[int, ...]
    bottleneck: bool

    @property
    def stem(self) -> Unit:
        return Unit("stem", 3, 64, 7, 2)

    @property
    def features(self) -> int:
        return 2048 if self.bottleneck else 512

    def blocks(self) -> Iterator[Block]:
        """The blocks in order; the first of each later stage halves the picture."""
        channels = 64
        for stage, count in enumerate(self.counts):
            width = 64 << stage
            for i in range(count):
                name, stride = f"{stage}.{i}", 2 if stage and not i else 1
                units: tuple[Unit, ...]
                if self.bottleneck:
                    out = 4 * width
                    units = (
                        Unit(f"{name}.narrow", channels, width, 1),
                        Unit(f"{name}.middle", width, width, 3, stride),
                        Unit(f"{name}.widen", width, out, 1, relu=False),
                    )
                else:
                    out = width
                    units = (
                        Unit(f"{name}.first", channels, width, 3, stride),
                        Unit(f"{name}.second", width, width, 3, relu=False),
                    )
                plain = stride == 1 and channels == out
                yield Block(units, None if plain else Unit(f"{name}.shortcut", channels, out, 1, stride, relu=False))
                channels = out

    def units(self) -> Iterator[Unit]:
        """Every unit."""
        yield self.stem
        for block in self.blocks():
            yield from block.units
            if block.shortcut:
                yield block.shortcut

    def weights(self, shape: Shape) -> Weights:
        """Random weights and running statistics that keep activations of the order of 1; always the same."""
        random = np.random.default_rng(5)

        def normal(scale: float, *shape: int) -> Any:
            return (scale * random.standard_normal(shape)).astype(np.float32)

        made: Weights = {}
        for u in self.units():
            made[f"{u.name}.w"] = normal(
                math.sqrt(2 / (u.channels * u.kernel**2)), u.filters, u.channels, u.kernel, u.kernel
            )
            made[f"{u.name}.weight"] = 0.5 + 0.25 * random.random(u.filters, np.float32)
            made[f"{u.name}.bias"], made[f"{u.name}.mean"] = normal(0.1, u.filters), normal(0.1, u.filters)
            made[f"{u.name}.var"] = 0.75 + 0.5 * random.random(u.filters, np.float32)
        made["classes.w"] = normal(math.sqrt(1 / self.features), CLASSES, self.features)
        made["classes.b"] = normal(0.1, CLASSES)
        return made

    def fault(self, shape: Shape) -> str:
        if len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and min(shape[2:]) >= _SMALLEST:
            return ""
        return f"images have shape {shape}; want (N, 3, H, W) with H and W of at least {_SMALLEST}"

    def result(self, shape: Shape) -> Shape:
        return (shape[0], CLASSES)

    def goal(self, shape: Shape) -> Any:
        """A class for each image."""
        return np.random.default_rng(6).integers(0, CLASSES, shape[0])

    def products(self, shape: Shape) -> float:
        batch, _, height, width = shape

        def of(u: Unit, size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
            out = (-(-size[0] // u.stride), -(-size[1] // u.stride))
            return float(batch * u.filters * u.channels * u.kernel**2 * out[0] * out[1]), out

        total, size = of(self.stem, (height, width))
        size = (-(-size[0] // 2), -(-size[1] // 2))
        for block in self.blocks():
            at = size
            for u in block.units:
                count, at = of(u, at)
                total += count
            total += of(block.shortcut, size)[0] if block.shortcut else 0.0
            size = at
        return total + float(batch * CLASSES * self.features)

    def deployed(self, weights: Weights) -> Weights:
        """The weights with every norm folded into the convolution before it, which gets a bias by it."""
        made = {name: weights[name] for name in ("classes.w", "classes.b")}
        for u in self.units():
            scale = weights[f"{u.name}.weight"] / np.sqrt(weights[f"{u.name}.var"] + EPS)
            made[f"{u.name}.w"] = weights[f"{u.name}.w"] * scale[:, None, None, None]
            made[f"{u.name}.b"] = weights[f"{u.name}.bias"] - weights[f"{u.name}.mean"] * scale
        return made

    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        """A function of images (N, 3, H, W) that gives logits (N, 1000), from folded weights."""
        layers: dict[str, Callable[..., Any]] = {}
        last = {b.units[-1].name for b in self.blocks()}
        for u in self.units():
            attrs: dict[str, Any] = {"stride": u.stride, "padding": u.padding}
            attrs["activation"] = "relu" if u.relu or u.name in last else None
            w, b = weights[f"{u.name}.w"], weights[f"{u.name}.b"]
            layers[u.name] = tw.conv.prepare(w=w, b=b, **attrs) if prepared else _plain(w, b, attrs)
        w, b = weights["classes.w"], weights["classes.b"]
        classes = tw.linear.prepare(w=w, b=b) if prepared else lambda x: tw.linear(x, w, b)
        blocks = list(self.blocks())

        def run(x: Any) -> Any:
            x = tw.max_pool(layers["stem"](x), kernel=3, stride=2, padding=1)
            for block in blocks:
                y = x
                for u in block.units[:-1]:
                    y = layers[u.name](y)
                shortcut = layers[block.shortcut.name](x) if block.shortcut else x
                x = layers[block.units[-1].name](y, shortcut)
            return classes(tw.reduce_mean(x, axes=(2, 3)))

        return run

    def opted(self, weights: Weights, x: Any) -> dict[str, Callable[[Any], Any]]:
        """As a graph with 3x3 kernels of stride 1 by Winograd's algorithms."""
        graph = tw.trace(self.inference(weights, prepared=False), x)
        return {"tilework winograd": graph.compile(winograd=True)}

    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The mean cross entropy of a batch and its gradient in every weight; running statistics move in place."""
        grads: Weights = {}
        tape: list[Callable[[Any], Any]] = []  # of gradients, one function a step of the way

        def unit(u: Unit, x: Any) -> tuple[Any, Callable[[Any], Any]]:
            w, stats = weights[f"{u.name}.w"], [weights[f"{u.name}.{n}"] for n in ("weight", "bias", "mean", "var")]
            attrs: dict[str, Any] = {"stride": u.stride, "padding": u.padding}
            y = tw.conv(x, w, **attrs)
            z, saved = tw.batch_norm.forward(y, *stats, training=True, eps=EPS)
            a = tw.relu(z) if u.relu else z

            def back(da: Any) -> Any:
                dz = tw.relu_dx(da, a) if u.relu else da
                dy, grads[f"{u.name}.weight"], grads[f"{u.name}.bias"], *_ = tw.batch_norm.backward(
                    dz, y, *stats, saved=saved, training=True, eps=EPS, wanted=("x", "weight", "bias")
                )
                wanted = ("w",) if u.name == "stem" else ("x", "w")  # nobody asks for the gradient in the images
                dx, grads[f"{u.name}.w"], *_ = tw.conv.backward(dy, x, w, wanted=wanted, **attrs)
                return dx

            return a, back

        y, back = unit(self.stem, x)
        tape.append(back)
        h, places = tw.max_pool.forward(y, kernel=3, stride=2, padding=1)
        tape.append(lambda dh: tw.max_pool.backward(dh, y, kernel=3, stride=2, padding=1, saved=places))
        for block in self.blocks():
            h, back = _residual(block, h, unit)
            tape.append(back)
        pooled, last = tw.reduce_mean(h, axes=(2, 3)), h
        w, b = weights["classes.w"], weights["classes.b"]
        logits = tw.linear(pooled, w, b)
        loss = tw.softmax_cross_entropy(logits, goal)

        dlogits, *_ = tw.softmax_cross_entropy.backward(np.ones((), loss.dtype), logits, goal)
        dpooled, grads["classes.w"], grads["classes.b"] = tw.linear.backward(dlogits, pooled, w, b)[:3]
        dh = tw.reduce_mean.backward(dpooled, last, axes=(2, 3))
        while tape:
            dh = tape.pop()(dh)
        return loss, grads

    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        from tilework.bench.networks import resnet_torch

        return resnet_torch.inference(self, weights, x)

    def torch_training(self, weights: Weights) -> Training:
        from tilework.bench.networks import resnet_torch

        return resnet_torch.Training(self, weights)

    def onnx(self, weights: Weights, shape: Shape) -> bytes:
        from tilework.bench.networks import resnet_onnx

        return resnet_onnx.inference(self, weights, shape)


def _plain(w: Any, b: Any, attrs: dict[str, Any]) -> Callable[..., Any]:
    return lambda x, residual=None: tw.conv(x, w, b, residual, **attrs)


def _residual(block: Block, x: Any, unit: Callable[[Unit, Any], Any]) -> tuple[Any, Callable[[Any], Any]]:
    backs, y = [], x
    for u in block.units:
        y, back = unit(u, y)
        backs.append(back)
    shortcut, across = unit(block.shortcut, x) if block.shortcut else (x, lambda d: d)
    a = tw.relu(tw.add(y, shortcut))

    def residual(da: Any) -> Any:
        d = tw.relu_dx(da, a)
        dx = d
        for back in reversed(backs):
            dx = back(dx)
        return tw.add(dx, across(d))

    return a, residual


NETWORKS = (ResNet("resnet18", (2, 2, 2, 2), False), ResNet("resnet50", (3, 4, 6, 3), True))
