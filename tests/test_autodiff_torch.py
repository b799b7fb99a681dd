"""Gradients of whole networks, traced and eager, against torch's, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import nested

torch = pytest.importorskip("torch", reason="its gradients are what ours are compared with")
F = torch.nn.functional

RANDOM = np.random.default_rng(5)


def normal(*shape: int, scale: float = 0.5) -> Any:
    return scale * RANDOM.standard_normal(shape)


class Net:
    """A network written twice, with its parameters and its input."""

    def __init__(self, ours: Callable[..., Any], theirs: Callable[..., Any], params: Any, x: Any) -> None:
        self.ours, self.theirs, self.params, self.x = ours, theirs, params, x


LABELS = RANDOM.integers(0, 4, 6)
IMAGES, ROWS, SERIES = normal(6, 3, 8, 8), normal(6, 10), normal(3, 5, 8)
AFFINE = {"g": 1 + normal(8), "b": normal(8)}


def encoder(linear: Any, norm: Any, attention: Any, gelu: Any, swap: Any) -> Callable[..., Any]:
    def run(p: Any, x: Any) -> Any:
        y = norm(x, p["g"], p["b"])
        q, k, v = (swap(linear(y, w).reshape(3, 5, 2, 4)) for w in p["qkv"])
        x = x + linear(swap(attention(q, k, v)).reshape(3, 5, 8), p["out"])
        return x + linear(gelu(linear(norm(x, p["g"], p["b"]), p["up"])), p["down"])

    return run


def their_lstm(p: Any, x: Any) -> Any:
    h, c = torch.zeros(x.shape[1], 4, dtype=torch.float64), torch.zeros(x.shape[1], 4, dtype=torch.float64)
    found = []
    for row in x:
        i, f, g, o = (row @ p["w"][0].T + h @ p["r"][0].T + p["b"][0]).split(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        found.append(h)
    return torch.stack(found)


NETS = {
    "perceptron": Net(
        lambda p, x: tw.softmax_cross_entropy(
            tw.linear(tw.linear(x, p["w"], p["b"], activation="relu"), p["v"]), LABELS
        ),
        lambda p, x: F.cross_entropy(F.linear(F.relu(F.linear(x, p["w"], p["b"])), p["v"]), torch.tensor(LABELS)),
        {"w": normal(7, 10), "b": normal(7), "v": normal(4, 7)},
        ROWS,
    ),
    "convnet": Net(
        lambda p, x: tw.avg_pool(
            tw.conv(tw.max_pool(tw.conv(x, p["w"], p["b"], padding=1, activation="relu"), kernel=2), p["v"]), kernel=2
        ),
        lambda p, x: F.avg_pool2d(F.conv2d(F.max_pool2d(F.relu(F.conv2d(x, p["w"], p["b"], padding=1)), 2), p["v"]), 2),
        {"w": normal(5, 3, 3, 3), "b": normal(5), "v": normal(4, 5, 3, 3)},
        IMAGES,
    ),
    "residual": Net(
        lambda p, x: tw.relu(tw.batch_norm(tw.conv(x, p["w"], padding=1), p["g"], p["b"], training=True)) + x,
        lambda p, x: F.relu(F.batch_norm(F.conv2d(x, p["w"], padding=1), None, None, p["g"], p["b"], True)) + x,
        {"w": normal(3, 3, 3, 3), "g": normal(3), "b": normal(3)},
        IMAGES,
    ),
    "depthwise": Net(
        lambda p, x: tw.conv(tw.silu(tw.conv(x, p["d"], stride=2, padding=1, groups=3)), p["p"]),
        lambda p, x: F.conv2d(F.silu(F.conv2d(x, p["d"], stride=2, padding=1, groups=3)), p["p"]),
        {"d": normal(3, 1, 3, 3), "p": normal(6, 3, 1, 1)},
        IMAGES,
    ),
    "upsampling": Net(
        lambda p, x: tw.tanh(tw.conv_transpose(tw.group_norm(tw.conv(x, p["w"]), groups=2), p["v"], stride=2)),
        lambda p, x: torch.tanh(F.conv_transpose2d(F.group_norm(F.conv2d(x, p["w"]), 2), p["v"], stride=2)),
        {"w": normal(4, 3, 3, 3), "v": normal(4, 2, 2, 2)},
        IMAGES,
    ),
    "encoder": Net(
        encoder(tw.linear, tw.layer_norm, tw.attention, tw.gelu, lambda x: x.transpose(0, 2, 1, 3)),
        encoder(
            F.linear,
            lambda x, g, b: F.layer_norm(x, (8,), g, b),
            F.scaled_dot_product_attention,
            F.gelu,
            lambda x: x.transpose(1, 2),
        ),
        AFFINE
        | {"qkv": [normal(8, 8) for _ in "qkv"], "out": normal(8, 8), "up": normal(16, 8), "down": normal(8, 16)},
        SERIES,
    ),
    "recurrent": Net(
        lambda p, x: tw.lstm(x, p["w"], p["r"], p["b"])[0],
        their_lstm,
        {"w": normal(1, 16, 8), "r": normal(1, 16, 4), "b": normal(1, 16)},
        SERIES,
    ),
    "unrolled": Net(
        lambda p, x: unrolled(p, x, tw.tanh, tw.linear, lambda r: tw.concat(r)),
        lambda p, x: unrolled(p, x, torch.tanh, F.linear, torch.cat),
        {"w": normal(8, 8), "r": normal(8, 8)},
        SERIES,
    ),
    "gated": Net(
        lambda p, x: tw.rms_norm(x, p["g"]) * tw.sigmoid(tw.einsum("bth,kh->btk", x, p["w"])) / (2.0 + tw.exp(-x)),
        lambda p, x: (
            F.rms_norm(x, (8,), p["g"], 1e-6)
            * torch.sigmoid(torch.einsum("bth,kh->btk", x, p["w"]))
            / (2 + torch.exp(-x))
        ),
        {"g": normal(8), "w": normal(8, 8)},
        SERIES,
    ),
    "sliced": Net(
        lambda p, x: tw.log_softmax(x[:, ::2, 1:] * p["a"][None, :, :-1], axis=1).sum(axis=0) - x[0, 0, 0],
        lambda p, x: torch.log_softmax(x[:, ::2, 1:] * p["a"][None, :, :-1], 1).sum(0) - x[0, 0, 0],
        {"a": normal(3, 8)},
        SERIES,
    ),
}


def unrolled(p: Any, x: Any, tanh: Any, linear: Any, concat: Any) -> Any:
    h, found = x[0] * 0.0, []
    for i in range(len(x)):
        h = tanh(linear(x[i], p["w"]) + linear(h, p["r"]))
        found.append(h)
    return concat(found)


@pytest.mark.parametrize("name", NETS)
def test_gradients_equal_torchs(name: str) -> None:
    net = NETS[name]
    weights = np.asarray(normal(*np.shape(net.ours(net.params, net.x))))

    def loss(p: Any, x: Any) -> Any:
        return tw.reduce_sum(net.ours(p, x) * weights)

    params = nested.mapped(lambda a: torch.tensor(a, requires_grad=True), net.params)
    x = torch.tensor(net.x, requires_grad=True)
    theirs = (net.theirs(params, x) * torch.tensor(weights)).sum()
    theirs.backward()
    wanted = [a.grad.numpy() for a in (*nested.flatten(params)[0], x)]
    both = tw.value_and_grad(loss, argnums=(0, 1))
    for run in (both, tw.trace(both, net.params, net.x).compile()):
        value, grads = run(net.params, net.x)
        assert float(value) == pytest.approx(theirs.item(), rel=1e-9, abs=1e-9)
        for g, w in zip(nested.flatten(grads)[0], wanted, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-8, atol=1e-9 * (1 + abs(w).max()))
