"""Transformers out of tilework's calls: the twelve blocks of GPT-2, four of them, and the encoder of BERT.

Radford et al., "Language models are unsupervised multitask learners", 2019: the norm comes before attention and before
the two layers behind it. Devlin et al., "BERT", 2019: every word sees all, and the norms come behind the sums. The
input is what embeddings give, (B, T, D); GPT-2 small and BERT-base have D = 768. gelu is the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tilework as tw
from tilework.bench.networks.network import Network, Shape, Training, Weights

HEAD = 64  # numbers of a head
EPS = 1e-5


class Transformer(Network):
    """Blocks of attention and two wide layers, each added to what comes in."""

    def __init__(self, name: str, blocks: int, *, encoder: bool = False) -> None:
        self.name, self.blocks, self.encoder, self.trains = name, blocks, encoder, not encoder

    def fault(self, shape: Shape) -> str:
        if len(shape) == 3 and min(shape) > 0 and shape[2] % HEAD == 0:
            return ""
        return f"x has shape {shape}; want (B, T, D) with D a multiple of {HEAD}"

    def result(self, shape: Shape) -> Shape:
        return shape

    def products(self, shape: Shape) -> float:
        batch, length, width = shape
        layers = 12 * batch * length * width**2  # of 3, 1, 4 and 4 times the width
        pairs = 2 * length if self.encoder else length + 1
        return float(self.blocks * (layers + batch * length * pairs * width))

    def weights(self, shape: Shape) -> Weights:
        random, d = np.random.default_rng(5), shape[2]

        def normal(scale: float, *shape: int) -> Any:
            return np.float32(scale) * random.standard_normal(shape, np.float32)

        made: Weights = {}
        for i in range(self.blocks):
            for norm in ("before", "between"):
                made[f"{i}.{norm}.weight"] = 1 + normal(0.1, d)
                made[f"{i}.{norm}.bias"] = normal(0.1, d)
            # What is added to the stream is the smaller, the more blocks there are.
            sizes = {"qkv": (3 * d, d), "out": (d, d), "up": (4 * d, d), "down": (d, 4 * d)}
            for layer, (rows, columns) in sizes.items():
                added = math.sqrt(1 / (2 * self.blocks)) if layer in ("out", "down") else 1.0
                made[f"{i}.{layer}.w"] = normal(added / math.sqrt(columns), rows, columns)
                made[f"{i}.{layer}.b"] = normal(0.02, rows)
        return made

    def goal(self, shape: Shape) -> Any:
        """The hidden states to reach."""
        return np.random.default_rng(6).standard_normal(shape, np.float32)

    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        def layer(name: str, activation: Any = None) -> Callable[..., Any]:
            w, b = weights[f"{name}.w"], weights[f"{name}.b"]
            if prepared:
                ready: Callable[..., Any] = tw.linear.prepare(w=w, b=b, activation=activation)
                return ready
            return lambda x, residual=None: tw.linear(x, w, b, residual, activation=activation)

        def norm(name: str, x: Any) -> Any:
            return tw.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=EPS)

        blocks = [
            (layer(f"{i}.qkv"), layer(f"{i}.out"), layer(f"{i}.up", "gelu"), layer(f"{i}.down"))
            for i in range(self.blocks)
        ]

        def encode(x: Any) -> Any:
            for i, (qkv, out, up, down) in enumerate(blocks):
                x = norm(f"{i}.before", out(_attended(qkv(x), causal=False), x))
                x = norm(f"{i}.between", down(up(x), x))
            return x

        def run(x: Any) -> Any:
            for i, (qkv, out, up, down) in enumerate(blocks):
                x = out(_attended(qkv(norm(f"{i}.before", x))), x)
                x = down(up(norm(f"{i}.between", x)), x)
            return x

        return encode if self.encoder else run

    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        grads: Weights = {}
        tape: list[Callable[[Any], Any]] = []

        def layer(name: str, x: Any, activation: Any = None) -> tuple[Any, Callable[[Any], Any]]:
            w, b = weights[f"{name}.w"], weights[f"{name}.b"]
            y, saved = tw.linear.forward(x, w, b, activation=activation)

            def back(dy: Any) -> Any:
                dx, grads[f"{name}.w"], grads[f"{name}.b"] = tw.linear.backward(
                    dy, x, w, b, activation=activation, saved=saved
                )
                return dx

            return y, back

        def norm(name: str, x: Any) -> tuple[Any, Callable[[Any], Any]]:
            affine = (weights[f"{name}.weight"], weights[f"{name}.bias"])
            y, saved = tw.layer_norm.forward(x, *affine, eps=EPS)

            def back(dy: Any) -> Any:
                dx, grads[f"{name}.weight"], grads[f"{name}.bias"], *_ = tw.layer_norm.backward(
                    dy, x, *affine, eps=EPS, saved=saved, wanted=("x", "weight", "bias")
                )
                return dx

            return y, back

        def attend(qkv: Any) -> tuple[Any, Callable[[Any], Any]]:
            q, k, v = _heads(qkv)
            y, saved = tw.attention.forward(q, k, v, causal=True)
            joined = _joined(y)

            def back(dy: Any) -> Any:
                found = tw.attention.backward(_split(dy, 1)[0], q, k, v, causal=True, saved=saved)
                if not isinstance(dy, np.ndarray):
                    return tw.concat([_joined(d) for d in found[:3]], axis=-1)
                dqkv = np.empty_like(qkv)
                for part, gradient in zip(_heads(dqkv), found, strict=False):
                    part[...] = gradient
                return dqkv

            return joined, back

        def chain(x: Any, *steps: Callable[[Any], tuple[Any, Callable[[Any], Any]]]) -> Any:
            """x and what a row of steps adds to it."""
            backs, y = [], x
            for step in steps:
                y, back = step(y)
                backs.append(back)

            def residual(dy: Any) -> Any:
                dx = dy
                for back in reversed(backs):
                    dx = back(dx)
                return tw.add(dy, dx)

            tape.append(residual)
            return tw.add(x, y)

        for i in range(self.blocks):
            x = chain(x, _named(norm, f"{i}.before"), _named(layer, f"{i}.qkv"), attend, _named(layer, f"{i}.out"))
            wide = _named(layer, f"{i}.up", "gelu")
            x = chain(x, _named(norm, f"{i}.between"), wide, _named(layer, f"{i}.down"))
        off = tw.sub(x, goal)
        loss = tw.reduce_mean(tw.mul(off, off))
        dx = tw.mul(off, 2 / off.size)
        while tape:
            dx = tape.pop()(dx)
        return loss, grads

    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        from tilework.bench.networks import gpt2_torch

        return gpt2_torch.inference(weights, x, encoder=self.encoder)

    def torch_training(self, weights: Weights) -> Training:
        from tilework.bench.networks import gpt2_torch

        return gpt2_torch.Training(weights)

    def onnx(self, weights: Weights, shape: Shape) -> bytes:
        from tilework.bench.networks import gpt2_onnx

        return gpt2_onnx.inference(weights, shape, self.blocks, encoder=self.encoder)


def _split(x: Any, parts: int) -> tuple[Any, ...]:
    """(B, T, parts H 64) as ``parts`` views (B, H, T, 64)."""
    batch, length, width = x.shape
    seen = x.reshape(batch, length, parts, width // parts // HEAD, HEAD)
    return tuple(seen[:, :, i].transpose(0, 2, 1, 3) for i in range(parts))


def _heads(qkv: Any) -> tuple[Any, ...]:
    return _split(qkv, 3)


def _room(x: Any) -> tuple[Any, Any]:
    """An array of x's shape, and its heads (B, H, T, 64)."""
    joined = np.empty(x.shape, x.dtype)
    return joined, _split(joined, 1)[0]


def _joined(heads: Any) -> Any:
    """(B, H, T, 64) with the heads side by side: (B, T, H 64)."""
    batch, count, length, size = heads.shape
    return heads.transpose(0, 2, 1, 3).reshape(batch, length, count * size)


def _attended(qkv: Any, *, causal: bool = True) -> Any:
    """Attention of queries, keys and values side by side, its heads side by side again."""
    q, k, v = _heads(qkv)
    if isinstance(qkv, np.ndarray):
        joined, heads = _room(qkv[..., : qkv.shape[-1] // 3])
        tw.attention(q, k, v, causal=causal, out=heads)
        return joined
    return _joined(tw.attention(q, k, v, causal=causal))  # in a graph, which lays it out as the reshape wants it


def _named(step: Callable[..., Any], name: str, *rest: Any) -> Callable[[Any], Any]:
    return lambda x: step(name, x, *rest)


NETWORKS = (Transformer("gpt2", 12), Transformer("transformer", 4), Transformer("bert", 12, encoder=True))
