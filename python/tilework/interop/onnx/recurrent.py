"""Recurrent layers: ONNX's order of gates and layout of directions, and tilework's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tilework as tw
from tilework.interop.onnx.rules import NodeView, node


def _reordered(w: Any, order: tuple[int, ...]) -> Any:
    """The gates of w, stacked along axis 1, in another order."""
    if w is None or order == tuple(range(len(order))):
        return w
    h = w.shape[1] // len(order)
    return tw.concat([w[:, g * h : (g + 1) * h] for g in order], axis=1)


def _halves(b: Any) -> tuple[Any, Any]:
    """The biases of the input and of the state."""
    half = b.shape[1] // 2
    return b[:, :half], b[:, half:]


def _turned(x: Any) -> Any:
    return None if x is None else tw.transpose(x, (1, 0, 2))


def _doubled(w: Any) -> Any:
    return None if w is None else tw.concat([w, w], axis=0)


def _run(n: NodeView, layer: Callable[..., Any], x: Any, weights: list[Any], states: list[Any], lengths: Any) -> Any:
    """The results of a layer in ONNX's layout; weights and states have the directions first."""
    batched, direction = bool(n.get("layout", 0)), n.get("direction", "forward")
    if batched:
        x, states = _turned(x), [_turned(s) for s in states]
    # The second of two directions runs backward, also where sequences end early: the first is left out of the results.
    backward = direction == "reverse" and lengths is not None
    if backward:
        weights, states = [_doubled(w) for w in weights], [_doubled(s) for s in states]
    elif direction == "reverse":
        x = x[::-1]
    y, *last = layer(x, weights, states, lengths)
    t, batch = x.shape[:2]
    directions = weights[0].shape[0]
    y = tw.transpose(tw.reshape(y, (t, batch, directions, y.shape[2] // directions)), (0, 2, 1, 3))
    if backward:
        y, last = y[:, 1:], [s[1:] for s in last]
    elif direction == "reverse":
        y = y[::-1]
    if batched:
        return tw.transpose(y, (2, 0, 1, 3)), *(_turned(s) for s in last)
    return y, *last


_NAMES = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Relu": "relu",
    "HardSigmoid": "hard_sigmoid",
    "LeakyRelu": "leaky_relu",
    "Elu": "elu",
    "Softsign": "softsign",
    "Softplus": "softplus",
}


def _activations(n: NodeView, *usual: str) -> list[str]:
    """tilework's names of the functions of a layer, which must be the same in both directions."""
    n.want(not n.get("input_forget", 0), "input_forget")
    n.want(not n.get("clip", 0.0), "clip, which limits what goes into the functions")
    given = [a.decode() if isinstance(a, bytes) else a for a in n.get("activations", ())] or list(usual)
    count = len(usual)
    same = len(given) % count == 0 and all(name == given[i % count] for i, name in enumerate(given))
    n.want(same and all(name in _NAMES for name in given), f"activations {', '.join(given)}")
    return [_NAMES[name] for name in given[:count]]


@node("LSTM")
def lstm(
    n: NodeView,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    h0: Any = None,
    c0: Any = None,
    peepholes: Any = None,
) -> Any:
    gates, cell, result = _activations(n, "Sigmoid", "Tanh", "Tanh")
    order = (0, 2, 3, 1)  # i o f c -> i f g o
    bias = None if b is None else _reordered(tw.add(*_halves(b)), order)
    peep = _reordered(peepholes, (0, 2, 1))  # i o f -> i f o

    def layer(x: Any, weights: list[Any], states: list[Any], lengths: Any) -> Any:
        w, r, bias, peep = weights
        run: Any = tw.lstm
        return run(
            x, w, r, bias, *states, lengths, peep, gate_activation=gates, cell_activation=cell, output_activation=result
        )

    return _run(n, layer, x, [_reordered(w, order), _reordered(r, order), bias, peep], [h0, c0], lengths)


@node("GRU")
def gru(n: NodeView, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h0: Any = None) -> Any:
    gates, cell = _activations(n, "Sigmoid", "Tanh")
    order = (1, 0, 2)  # z r h -> r z n
    biases = [None, None] if b is None else [_reordered(half, order) for half in _halves(b)]
    after = bool(n.get("linear_before_reset", 0))

    def layer(x: Any, weights: list[Any], states: list[Any], lengths: Any) -> Any:
        run: Any = tw.gru
        return run(x, *weights, *states, lengths, reset_after=after, gate_activation=gates, cell_activation=cell)

    return _run(n, layer, x, [_reordered(w, order), _reordered(r, order), *biases], [h0], lengths)


@node("RNN")
def rnn(n: NodeView, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h0: Any = None) -> Any:
    (activation,) = _activations(n, "Tanh")
    bias = None if b is None else tw.add(*_halves(b))

    def layer(x: Any, weights: list[Any], states: list[Any], lengths: Any) -> Any:
        run: Any = tw.rnn
        return run(x, *weights, *states, lengths, activation=activation)

    return _run(n, layer, x, [w, r, bias], [h0], lengths)
