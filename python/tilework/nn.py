"""Layers with more to them than one op: stacks of recurrent layers, their streams, caches of keys and values, and
attention within packed sequences.

A layer holds no numbers. Its ``parameters`` are a dict that every call takes, so that ``tilework.value_and_grad`` and
graphs see them as any other operands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tilework import ops
from tilework.arrays import Array
from tilework.caches import KVCache, KVPages, KVSequence
from tilework.errors import AttrError, ShapeError, UnsupportedError

__all__ = ["GRU", "LSTM", "RNN", "KVCache", "KVPages", "KVSequence", "Stream", "packed_attention"]

State = tuple[Any, ...]  # of one layer: (h, c) of an LSTM, (h,) of the others


class _Stack:
    """Recurrent layers above each other, the second one on what the first made, and so on."""

    op: Any
    blocks: int  # of H rows in the weights of a layer
    biases: tuple[str, ...]
    states: int

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        merge: Literal["concat", "add", "none"] = "concat",
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        for argument, value in (("inputs", inputs), ("hidden", hidden), ("layers", layers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise AttrError(f"{name}: {argument}={value!r}; want 1 or more", op=name, argument=argument)
        if merge not in ("concat", "add", "none"):
            raise AttrError(f"{name}: merge={merge!r}; want concat, add or none", op=name, argument="merge")
        if not 0 <= dropout < 1:
            text = f"{name}: dropout={dropout!r}; want a probability, 0 or more and below 1"
            raise AttrError(text, op=name, argument="dropout")
        self.inputs, self.hidden, self.layers, self.directions = inputs, hidden, layers, 1 + bool(bidirectional)
        self.merge, self.dropout, self.options = merge, dropout, options

    def parameters(self, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """Uniform numbers of at most 1 / sqrt(H): w0 (D, blocks H, I), r0 (D, blocks H, H), b0 and so on, per layer."""
        random, most = np.random.default_rng(seed), 1 / math.sqrt(self.hidden)
        made = {}
        for k in range(self.layers):
            rows = (self.directions, self.blocks * self.hidden)
            shapes = {"w": (*rows, self.directions * self.hidden if k else self.inputs), "r": (*rows, self.hidden)}
            for name, shape in {**shapes, **dict.fromkeys(self.biases, rows)}.items():
                made[f"{name}{k}"] = random.uniform(-most, most, shape).astype(dtype)
        return made

    def _of(self, parameters: dict[str, Any], layer: int) -> dict[str, Any]:
        return {name: parameters[f"{name}{layer}"] for name in ("w", "r", *self.biases)}

    def __call__(
        self,
        parameters: dict[str, Any],
        x: Any,
        state: Sequence[State] | None = None,
        lengths: Any = None,
        *,
        seed: int | None = None,
    ) -> tuple[Any, list[State]]:
        """Runs all layers over x (T, N, I): returns y (T, N, D H) and the last states, one tuple per layer.

        ``state`` are states as they were returned, zero unless given. With a ``seed``, what one layer gives to the next
        is dropped out. Of two directions, y is theirs side by side, their sum with merge="add", or a pair with "none".
        """
        y, last = x, []
        for k in range(self.layers):
            if k and self.dropout and seed is not None:
                y = ops.dropout(y, p=self.dropout, seed=seed, offset=k)
            start = (None,) * self.states if state is None else state[k]
            own = tuple(self._of(parameters, k).values())
            y, *ends = self.op(y, *own, *start, lengths, **self.options)
            last.append(tuple(ends))
        return self._merged(y), last

    def _merged(self, y: Any) -> Any:
        if self.directions == 1 or self.merge == "concat":
            return y
        first, second = (ops.crop(y, ((0, 0), (0, 0), pair)) for pair in ((0, self.hidden), (self.hidden, 0)))
        return ops.add(first, second) if self.merge == "add" else (first, second)

    def stream(self, parameters: dict[str, Array], sequences: int) -> Stream:
        """What takes one step of all sequences at a time."""
        if self.directions == 2:
            name = type(self).__name__
            raise UnsupportedError(f"{name}: two directions need the whole sequence; want bidirectional=False", op=name)
        return Stream(self, parameters, sequences)


class LSTM(_Stack):
    """Stacked LSTM layers from I inputs to H hidden units: see ``lstm`` for one of them and its ``options``.

    ``bidirectional``, ``merge`` and ``dropout`` as in the call; ``dtype="int8"`` and others are what weights are stored
    in, by a stream once.
    """

    op, blocks, biases, states = ops.lstm, 4, ("b",), 2


class GRU(_Stack):
    """Stacked GRU layers from I inputs to H hidden units; ``reset_after`` goes to ``gru``."""

    op, blocks, biases, states = ops.gru, 3, ("b", "rb"), 1


class RNN(_Stack):
    """Stacked plain recurrent layers from I inputs to H hidden units; ``activation`` goes to ``rnn``."""

    op, blocks, biases, states = ops.rnn, 1, ("b",), 1


class Stream:
    """A stack of one direction step by step: weights are packed once, results go to memory that was made once."""

    def __init__(self, stack: _Stack, parameters: dict[str, Array], sequences: int) -> None:
        self._layers = [stack.op.prepare(**stack._of(parameters, k), **stack.options) for k in range(stack.layers)]
        dtype = parameters["w0"].dtype
        shape = (1, sequences, stack.hidden)
        # Two of each: a state is read while the next is written.
        self._results = [
            [tuple(np.zeros(shape, dtype) for _ in range(1 + stack.states)) for _ in range(2)] for _ in self._layers
        ]
        self._turn = 0

    @property
    def state(self) -> list[State]:
        """The states after the last step, one tuple per layer; they change with the next but one."""
        return [pair[self._turn][1:] for pair in self._results]

    @state.setter
    def state(self, state: Sequence[State]) -> None:
        for pair, given in zip(self._results, state, strict=True):
            for to, a in zip(pair[self._turn][1:], given, strict=True):
                to[...] = a

    def step(self, x: Array) -> Array:
        """Takes x (N, I) and returns y (N, H), which changes with the next step but one."""
        y = x[None]
        for layer, pair in zip(self._layers, self._results, strict=True):
            now, then = pair[self._turn], pair[1 - self._turn]
            y = layer(y, *now[1:], out=then)[0]
        self._turn = 1 - self._turn
        return y[0]


def packed_attention(q: Any, k: Any, v: Any, offsets: Any, key_offsets: Any = None, **attrs: Any) -> Any:
    """Attends from q (L, H, D) to k (S, Hkv, D) and v (S, Hkv, Dv) within sequences one behind the other: (L, H, Dv).

    Sequence n has the rows of q from offsets[n] to offsets[n + 1] and those of k and v from key_offsets[n], the same
    unless given: numbers of the host that rise from 0 to L, and to S. ``attrs`` go to ``attention``; dropout draws each
    sequence at its own offset. Nothing is padded, and what sequences do not share is never computed.
    """
    rows = _ends("offsets", offsets, q.shape[0])
    keys = rows if key_offsets is None else _ends("key_offsets", key_offsets, k.shape[0])
    if len(keys) != len(rows) or keys[-1] != k.shape[0]:
        text = (
            f"{len(keys)} key offsets up to {keys[-1]} beside {len(rows)} offsets and {k.shape[0]} keys; want as many"
        )
        raise ShapeError(f"packed_attention: {text}", op="packed_attention", argument="key_offsets")
    made = []
    for n in range(len(rows) - 1):
        own = [_of_heads(a, ends[n], ends[n + 1]) for a, ends in ((q, rows), (k, keys), (v, keys))]
        moved = {"offset": attrs.get("offset", 0) + n} if attrs.get("dropout") else {}
        made.append(ops.transpose(ops.attention(*own, **attrs | moved), (0, 2, 1, 3)))
    joined = ops.concat(made, axis=1)
    return ops.reshape(joined, joined.shape[1:])


def _ends(name: str, offsets: Any, total: int) -> list[int]:
    """Offsets as numbers, from 0 to the total."""
    ends = np.asarray(offsets)
    numbers = ends.dtype.kind in "iu" and ends.ndim == 1 and ends.size > 1
    if not numbers or ends[0] != 0 or ends[-1] != total or np.any(np.diff(ends.astype(np.int64)) < 0):
        text = (
            f"packed_attention: {name}={np.array2string(ends, threshold=8)}; want integers that rise from 0 to {total}"
        )
        raise ShapeError(text, op="packed_attention", argument=name)
    return [int(end) for end in ends]


def _of_heads(a: Any, begin: int, end: int) -> Any:
    """Rows of a (L, H, D) as (1, H, rows, D)."""
    rows = ops.crop(a, ((begin, a.shape[0] - end), (0, 0), (0, 0)))
    return ops.transpose(ops.reshape(rows, (1, *rows.shape)), (0, 2, 1, 3))
