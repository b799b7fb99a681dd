"""Stacks of recurrent layers, their streams, and caches of keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import nn
from tilework.dtypes import named

RANDOM = np.random.default_rng(8)


def _normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_stacks_are_torchs(name: str, bidirectional: bool) -> None:
    torch = pytest.importorskip("torch")
    peer = getattr(torch.nn, name)(5, 6, num_layers=2, bidirectional=bidirectional).double()
    stack = getattr(nn, name)(5, 6, layers=2, bidirectional=bidirectional)
    parameters = stack.parameters(dtype=np.float64)
    ends = ("", "_reverse")[: stack.directions]
    for k in range(2):
        numbers = {
            kind: np.stack([getattr(peer, f"{kind}_l{k}{end}").detach().numpy() for end in ends])
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        biases = numbers["bias_ih"], numbers["bias_hh"]
        own = dict(zip(stack.biases, biases if name == "GRU" else (sum(biases),), strict=True))
        own |= {"w": numbers["weight_ih"], "r": numbers["weight_hh"]}
        for kind, value in own.items():
            assert parameters[f"{kind}{k}"].shape == value.shape
            parameters[f"{kind}{k}"] = value
    x = _normal(4, 3, 5)
    y, state = stack(parameters, x)
    want, _ = peer(torch.from_numpy(x))
    np.testing.assert_allclose(y, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    again, _ = stack(parameters, x, state)
    assert not np.allclose(again, y)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_stream_gives_what_the_whole_sequence_gives(name: str) -> None:
    stack = getattr(nn, name)(5, 33, layers=2)
    parameters = stack.parameters(seed=1)
    x = _normal(6, 3, 5).astype(np.float32)
    y, last = stack(parameters, x)
    stream = stack.stream(parameters, 3)
    steps = [stream.step(x[t]).copy() for t in range(4)]
    resumed = stack.stream(parameters, 3)
    resumed.state = stream.state
    steps += [resumed.step(x[t]).copy() for t in range(4, 6)]
    np.testing.assert_allclose(np.stack(steps), y, rtol=1e-5, atol=1e-6)
    for got, want in zip(resumed.state, last, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_directions_merge_as_asked() -> None:
    x = _normal(4, 2, 3).astype(np.float32)
    stacks = {m: nn.GRU(3, 5, layers=2, bidirectional=True, merge=m) for m in ("concat", "add", "none")}
    made = {m: stack(stack.parameters(seed=2), x)[0] for m, stack in stacks.items()}
    for part, half in zip(made["none"], (made["concat"][..., :5], made["concat"][..., 5:]), strict=True):
        assert np.array_equal(part, half)
    assert np.array_equal(made["add"], made["none"][0] + made["none"][1])


def test_dropout_lies_between_layers_and_follows_the_seed() -> None:
    stack = nn.RNN(3, 40, layers=2, dropout=0.5)
    parameters, x = stack.parameters(), _normal(2, 3, 3).astype(np.float32)
    runs = [stack(parameters, x, seed=seed)[0] for seed in (1, 1, 2, None)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0], runs[3])


def test_a_stack_is_trained_through() -> None:
    stack = nn.LSTM(3, 4, layers=2, bidirectional=True, merge="add")
    x = _normal(3, 2, 3)

    def loss(parameters: Any) -> Any:
        y, _ = stack(parameters, x)
        return tw.reduce_sum(tw.mul(y, y))

    parameters = stack.parameters(dtype=np.float64)
    value, slopes = tw.value_and_grad(loss)(parameters)
    moved = {n: p - 1e-6 * slopes[n] for n, p in parameters.items()}
    size = sum(float(np.sum(s * s)) for s in slopes.values())
    assert float(value) - float(loss(moved)) == pytest.approx(1e-6 * size, rel=1e-4)


def test_a_cache_gives_what_all_keys_give() -> None:
    q, k, v = _normal(2, 4, 12, 8), _normal(2, 2, 12, 8), _normal(2, 2, 12, 5)
    cache = nn.KVCache(2, 2, 8, width=5, capacity=12, dtype=np.float64)
    got = [cache.attend(q[:, :, i:j], k[:, :, i:j], v[:, :, i:j]) for i, j in ((0, 7), (7, 8), (8, 12))]
    np.testing.assert_allclose(np.concatenate(got, axis=2), tw.attention(q, k, v, causal=True), rtol=1e-12)
    with pytest.raises(tw.ShapeError, match="exceed capacity=12"):
        cache.append(k[:, :, :1], v[:, :, :1])


def test_a_window_slides() -> None:
    q, k, v = (_normal(1, 2, 40, 4) for _ in range(3))
    cache = nn.KVCache(1, 2, 4, window=6, dtype=np.float64)
    want = tw.attention(q, k, v, causal=True, window=(5, 0))
    begin = 0
    for count in (1, 3, 9, 1, 1, 6, *(1,) * 19):
        part = slice(begin, begin + count)
        got = cache.attend(q[:, :, part], k[:, :, part], v[:, :, part])
        np.testing.assert_allclose(got, want[:, :, part], rtol=1e-12)
        begin += count
    assert begin == 40
    assert len(cache) == 6


def _half_steps(x: Any) -> Any:
    """Half of what a code of 8 bits stands for, row by row."""
    return np.abs(x).max(axis=-1, keepdims=True) / 254


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("window", [None, 6])
def test_a_cache_of_any_dtype_is_read_as_it_lies(dtype: str, window: int | None) -> None:
    q, k, v = (_normal(2, n, 23, 8).astype(np.float32) for n in (4, 2, 2))
    cache = nn.KVCache(2, 2, 8, capacity=None if window else 23, window=window, dtype=named(dtype))
    rounded = [tw.cast(tw.cast(a, dtype=named(dtype)), dtype=np.float32) for a in (k, v)]
    if dtype == "int8":
        codes = [tw.quantize_rows(a) for a in (k, v)]
        rounded = [c * s[..., None] for c, s in codes]
        assert all(np.all(np.abs(a - b) <= 1.001 * _half_steps(a)) for a, b in zip((k, v), rounded, strict=True))
    want = tw.attention(q, *rounded, causal=True, window=None if window is None else (window - 1, 0))
    begin = 0
    for count in (5, 1, 1, 9, 1, 6):
        part = slice(begin, begin + count)
        got = cache.attend(q[:, :, part], k[:, :, part], v[:, :, part])
        np.testing.assert_allclose(got, want[:, :, part], rtol=2e-5, atol=2e-6)
        begin += count
    assert (cache.scales is None) == (dtype != "int8")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sequences_share_the_pages_of_a_pool(dtype: str) -> None:
    q, k, v = (_normal(3, n, 30, 8).astype(np.float32) for n in (4, 2, 2))
    seen = (k, v) if dtype == "float32" else tuple(c * s[..., None] for c, s in map(tw.quantize_rows, (k, v)))
    pool = nn.KVPages(2, 8, pages=11, page=4, dtype=dtype)
    sequences = [pool.sequence() for _ in range(3)]
    starts = (3, 8, 0)  # places that each has before they go on together
    for b, (s, n) in enumerate(zip(sequences, starts, strict=True)):
        s.append(k[b, :, :n], v[b, :, :n])
    at = np.array(starts)
    for count in (1, 5, 1):
        parts = [np.stack([a[b, :, n : n + count] for b, n in enumerate(at)]) for a in (q, k, v)]
        got = pool.attend(sequences, *parts)
        at += count
        for b, n in enumerate(at):
            whole = [a[b : b + 1, :, :n] for a in seen]
            want = tw.attention(q[b : b + 1, :, n - count : n], *whole, causal=True)
            np.testing.assert_allclose(got[b : b + 1], want, rtol=2e-5, atol=2e-6)
    assert [len(s) for s in sequences] == [10, 15, 7]
    assert pool.free == 11 - 3 - 4 - 2
    with pytest.raises(tw.ShapeError, match="5 pages are needed but 2 are free"):
        sequences[0].append(k[0, :, :20], v[0, :, :20])
    assert len(sequences[0]) == 10
    for s in sequences:
        s.release()
    assert pool.free == 11


def test_a_fork_shares_pages_until_it_goes_on() -> None:
    q, k, v = (_normal(2, 2, 12, 4).astype(np.float32) for _ in range(3))
    pool = nn.KVPages(2, 4, pages=4, page=4)
    first = pool.sequence()
    first.append(k[0, :, :6], v[0, :, :6])
    second = first.fork()
    assert pool.free == 2
    step = [np.stack([a[b, :, 6:7] for b in (0, 1)]) for a in (q, k, v)]
    got = pool.attend([first, second], *step)
    assert pool.free == 1
    for b in (0, 1):
        own = [np.concatenate([a[0, :, :6], a[b, :, 6:7]], axis=1)[None] for a in (k, v)]
        np.testing.assert_allclose(got[b : b + 1], tw.attention(step[0][b : b + 1], *own), rtol=1e-5, atol=1e-6)
    first.release()
    second.release()
    assert pool.free == 4


def test_a_window_gives_pages_back() -> None:
    q, k, v = (_normal(1, 2, 40, 4).astype(np.float32) for _ in range(3))
    want = tw.attention(q, k, v, causal=True, window=(5, 0))
    pool = nn.KVPages(2, 4, pages=5, page=4)
    sequence = pool.sequence(window=6)
    begin = 0
    for count in (1, 3, 9, 1, 1, 6, *(1,) * 19):
        part = slice(begin, begin + count)
        got = pool.attend([sequence], q[:, :, part], k[:, :, part], v[:, :, part])
        np.testing.assert_allclose(got, want[:, :, part], rtol=1e-5, atol=1e-6)
        begin += count
    assert begin == 40
    assert len(sequence) == 6
    assert pool.free >= 2


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16"])
def test_stored_weights_are_close_and_have_the_bits_of_one_thread(name: str, dtype: str) -> None:
    x = _normal(20, 4, 48).astype(np.float32)
    plain, stored = getattr(nn, name)(48, 96, layers=2), getattr(nn, name)(48, 96, layers=2, dtype=dtype)
    parameters = plain.parameters()
    want, _ = plain(parameters, x)
    runs = []
    for threads in (1, 2, 7):
        with tw.threads(threads):
            runs.append(stored(parameters, x)[0])
    assert all(np.array_equal(runs[0], other) for other in runs[1:])
    # Halves of steps of 1/127 (2^-9, 2^-12 of 16 bits) of weights and states, summed over 96 of either sign.
    assert np.sqrt(np.mean((runs[0] - want) ** 2)) < {"int8": 4e-3, "bfloat16": 1e-3, "float16": 1.2e-4}[dtype]
    stream = stored.stream(parameters, 4)
    steps = np.stack([stream.step(x[t]).copy() for t in range(20)])
    np.testing.assert_allclose(steps, runs[0], rtol=0, atol=2e-3 if dtype == "int8" else 1e-5)


def test_packed_sequences_attend_within_themselves() -> None:
    offsets, key_offsets = np.array([0, 3, 3, 8]), np.array([0, 4, 6, 13])
    q, k, v = _normal(8, 4, 6), _normal(13, 2, 6), _normal(13, 2, 5)

    def loss(arrays: Any) -> Any:
        y = nn.packed_attention(*arrays, offsets, key_offsets, causal=True)
        return tw.reduce_sum(tw.mul(y, y))

    y = nn.packed_attention(q, k, v, offsets, key_offsets, causal=True)
    want = np.zeros((8, 4, 5))
    grads = [np.zeros(a.shape) for a in (q, k, v)]
    for n in (0, 2):
        t, s = slice(*offsets[n : n + 2]), slice(*key_offsets[n : n + 2])
        own = [np.swapaxes(a[part], 0, 1)[None] for a, part in ((q, t), (k, s), (v, s))]
        part = tw.attention(*own, causal=True)
        want[t] = np.swapaxes(part[0], 0, 1)
        for to, g, rows in zip(grads, tw.attention.backward(2 * part, *own, causal=True), (t, s, s), strict=False):
            to[rows] = np.swapaxes(g[0], 0, 1)
    np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-13)
    for got, to in zip(tw.grad(loss)([q, k, v]), grads, strict=True):
        np.testing.assert_allclose(got, to, rtol=1e-10, atol=1e-12)
    for bad in ([0, 3, 2, 8], [1, 8], [0, 9], [0.0, 8.0], [0, -1, 8], [8]):
        with pytest.raises(tw.ShapeError, match="rise from 0 to 8"):
            nn.packed_attention(q, k, v, bad)
    with pytest.raises(tw.ShapeError, match="want as many"):
        nn.packed_attention(q, k, v, offsets)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.LSTM(3, 4, layers=0), "LSTM: layers=0; want 1 or more"),
        (lambda: nn.GRU(3, -1), "GRU: hidden=-1; want 1 or more"),
        (lambda: nn.RNN(3, 4, dropout=1.0), "dropout=1.0; want a probability"),
        (lambda: nn.RNN(3, 4, dropout=float("nan")), "dropout=nan; want a probability"),
        (lambda: nn.LSTM(3, 4, merge="mean"), "merge='mean'; want concat, add or none"),
        (lambda: nn.KVCache(1, 1, 4), "want one of them"),
        (lambda: nn.KVCache(1, 1, 4, window=0), "window=0; want 1 or more"),
        (lambda: nn.KVPages(1, 4, pages=0), "KVPages: pages=0; want 1 or more"),
        (lambda: nn.KVPages(1, 4, pages=2).sequence(window=-1), "window=-1; want 1 or more"),
        (lambda: nn.LSTM(3, 4, bidirectional=True).stream({}, 1), "two directions need the whole sequence"),
    ],
)
def test_layers_refuse_what_they_cannot_be(make: Any, text: str) -> None:
    with pytest.raises(tw.Error, match=text):
        make()
