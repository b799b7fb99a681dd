"""The steps of optimizers that ONNX has, in the domain of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tilework as tw
from tilework.interop.onnx.rules import NodeView, node

_DOMAIN = "ai.onnx.preview.training"
Step = Callable[..., tuple[Any, ...]]


def _each(step: Step, kinds: int) -> Any:
    """A rule over several tensors: all of one kind come one after another, and so do the results."""

    def rule(n: NodeView, rate: Any, count: Any, *operands: Any) -> Any:
        many = len(operands) // kinds
        made = [step(n, rate, count, *operands[i::many]) for i in range(many)]
        return tuple(results[k] for k in range(kinds - 1) for results in made)

    return rule


def _regularized(n: NodeView, x: Any, g: Any) -> Any:
    return tw.add(tw.mul(x, n.get("norm_coefficient", 0.0)), g)


def _momentum(n: NodeView, rate: Any, count: Any, x: Any, g: Any, v: Any) -> tuple[Any, ...]:
    alpha = n.get("alpha")
    g = _regularized(n, x, g)
    first = tw.cast(tw.equal(count, 0), dtype=x.dtype)
    beta = tw.add(tw.mul(tw.sub(1.0, first), n.get("beta")), first)
    v = tw.add(tw.mul(v, alpha), tw.mul(g, beta))
    along = tw.add(g, tw.mul(v, alpha)) if n.get("mode") == "nesterov" else v
    return tw.sub(x, tw.mul(along, rate)), v


def _adagrad(n: NodeView, rate: Any, count: Any, x: Any, g: Any, h: Any) -> tuple[Any, ...]:
    rate = tw.div(rate, tw.add(tw.mul(tw.cast(count, dtype=x.dtype), n.get("decay_factor", 0.0)), 1.0))
    g = _regularized(n, x, g)
    h = tw.add(h, tw.mul(g, g))
    return tw.sub(x, tw.div(tw.mul(g, rate), tw.add(tw.sqrt(h), n.get("epsilon", 1e-6)))), h


def _adam(n: NodeView, rate: Any, count: Any, x: Any, g: Any, v: Any, h: Any) -> tuple[Any, ...]:
    alpha, beta = n.get("alpha", 0.9), n.get("beta", 0.999)
    g = _regularized(n, x, g)
    v = tw.add(tw.mul(v, alpha), tw.mul(g, 1 - alpha))
    h = tw.add(tw.mul(h, beta), tw.mul(tw.mul(g, g), 1 - beta))
    t = tw.cast(count, dtype=x.dtype)
    rest = [tw.sub(1.0, tw.pow(np.asarray(decay, x.dtype), t)) for decay in (alpha, beta)]
    adjusted = tw.where(tw.greater(count, 0), tw.div(tw.mul(rate, tw.sqrt(rest[1])), rest[0]), rate)
    x = tw.sub(x, tw.mul(tw.div(v, tw.add(tw.sqrt(h), n.get("epsilon", 1e-6))), adjusted))
    return tw.mul(x, 1 - n.get("norm_coefficient_post", 0.0)), v, h


node("Momentum", domain=_DOMAIN)(_each(_momentum, 3))
node("Adagrad", domain=_DOMAIN)(_each(_adagrad, 3))
node("Adam", domain=_DOMAIN)(_each(_adam, 4))
