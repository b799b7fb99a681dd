"""Attention and recurrent layers: what they mean in torch, and what is special about them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.bench import ours, problems
from tilework.dtypes import FLOATING, named

RANDOM = np.random.default_rng(5)


def _normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _assert_close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "attrs"),
    [
        (2, 2, 5, 7, {}),
        (4, 2, 300, 300, {"causal": True}),
        (6, 2, 100, 530, {"scale": 0.3}),
        (4, 1, 1, 700, {}),
    ],
)
@pytest.mark.parametrize("masked", [None, "bool", "added"])
def test_attention_is_torchs(
    heads: int, kv_heads: int, queries: int, keys: int, attrs: dict[str, Any], masked: str | None, torch: Any
) -> None:
    if masked and "causal" in attrs:
        pytest.skip("torch takes one of them")
    arrays = [_normal(2, heads, queries, 16), _normal(2, kv_heads, keys, 16), _normal(2, kv_heads, keys, 8)]
    mask: Any = {"bool": RANDOM.random((2, 1, queries, keys)) > 0.3, "added": _normal(queries, keys)}.get(masked or "")
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
    if masked == "added":
        tensors.append(torch.from_numpy(mask).requires_grad_())
    y = torch.nn.functional.scaled_dot_product_attention(
        *tensors[:3],
        attn_mask=None if mask is None else tensors[3] if masked == "added" else torch.from_numpy(mask),
        is_causal=attrs.get("causal", False),
        scale=attrs.get("scale"),
        enable_gqa=True,
    )
    call: Any = tw.attention
    _assert_close(call(*arrays, mask, **attrs), y)
    dy = _normal(*y.shape)
    y.backward(torch.from_numpy(dy))
    for got, tensor in zip(call.backward(dy, *arrays, mask, **attrs), tensors, strict=False):
        _assert_close(got, tensor.grad)


def test_attention_joins_what_a_cache_was_cut_into() -> None:
    q, k, v = _normal(1, 2, 1, 8), _normal(1, 2, 900, 8), _normal(1, 2, 900, 8)
    parts = [tw.attention(q, k[:, :, i : i + 300], v[:, :, i : i + 300], return_lse=True) for i in (0, 300, 600)]
    weights = np.exp(np.stack([lse for _, lse in parts]))
    joined = sum(w[..., None] * y for (y, _), w in zip(parts, weights, strict=True)) / weights.sum(axis=0)[..., None]
    np.testing.assert_allclose(tw.attention(q, k, v), joined, rtol=1e-12)


def test_causal_attention_of_the_last_queries_is_the_end_of_all() -> None:
    q, k, v = _normal(1, 2, 310, 8), _normal(1, 2, 310, 8), _normal(1, 2, 310, 8)
    whole = tw.attention(q, k, v, causal=True, window=(40, 0))
    for last in (1, 20, 150):
        some = tw.attention(q[:, :, -last:], k, v, causal=True, window=(40, 0))
        np.testing.assert_allclose(some, whole[:, :, -last:], rtol=1e-12, atol=1e-14)


def test_keys_behind_the_length_are_not_read() -> None:
    q, k, v = _normal(2, 2, 20, 8), _normal(2, 2, 300, 8), _normal(2, 2, 300, 8)
    lengths = np.array([270, 5])
    for b, n in enumerate(lengths):
        k[b, :, n:] = v[b, :, n:] = np.nan
    grads = tw.attention.backward(np.ones((2, 2, 20, 8)), q, k, v, None, lengths)
    assert np.isfinite(tw.attention(q, k, v, None, lengths)).all()
    assert all(np.isfinite(g).all() for g in grads[:3])
    assert np.all(grads[1][1, :, 5:] == 0)


_GROWTH = """
import sys
import ml_dtypes, numpy as np, tilework as tw

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

q = np.ones((1, 1, 16384, 64), sys.argv[1])
tw.attention.backward(*[q[:, :, :64]] * 4)
before = peak()
y, saved = tw.attention.forward(q, q, q, causal=True)
tw.attention.backward(y, q, q, q, causal=True, saved=saved)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_needs_no_memory_that_grows_with_the_square_of_the_length(dtype: str) -> None:
    ran = subprocess.run([sys.executable, "-c", _GROWTH, dtype], check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 16384 * 8  # KiB: 8 a row, of which the scores alone would be 32 or 64


@pytest.mark.parametrize(("op", "blocks"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
@pytest.mark.parametrize("direction", ["fwd", "step"])
def test_products_of_a_step_with_more_terms_than_stay_in_l1(op: str, blocks: int, direction: str) -> None:
    wide = blocks * 260
    line = f"{op}/float32/{direction} x=2x7x5 w=1x{wide}x5 r=1x{wide}x260 b=1x{wide}"
    problem = problems.parse(line)
    operands = problem.operands()
    contestant = ours.calls(problem, operands)["tilework"]
    assert ours.check_answer(problem, operands, contestant, ours.expected(problem, operands))[0] == ""


# ------------------------------------------------------------------------------------------- embeddings, recurrence


def test_rotation_leaves_products_of_places_equally_far_apart() -> None:
    angles = np.arange(50)[:, None] / 100.0 ** np.linspace(0, 1, 4)
    cos, sin = np.cos(angles), np.sin(angles)
    q, k = _normal(1, 1, 1, 8), _normal(1, 1, 1, 8)

    def product(a: int, b: int, interleaved: bool) -> float:
        turned = [
            tw.rotary_embedding(x, cos, sin, np.array([place]), interleaved=interleaved)
            for x, place in ((q, a), (k, b))
        ]
        return float(np.sum(turned[0] * turned[1]))

    for interleaved in (False, True):
        assert product(3, 7, interleaved) == pytest.approx(product(31, 35, interleaved), rel=1e-12)


def test_the_gradient_of_an_embedding_is_torchs(torch: Any) -> None:
    w, indices = _normal(7, 5), RANDOM.integers(0, 7, (4, 6))
    tensor = torch.from_numpy(w).requires_grad_()
    y = torch.nn.functional.embedding(torch.from_numpy(indices), tensor, padding_idx=3, scale_grad_by_freq=True)
    dy = _normal(*y.shape)
    y.backward(torch.from_numpy(dy))
    got = tw.embedding.backward(dy, w, indices, padding_idx=3, scale_by_frequency=True)
    _assert_close(got[0], tensor.grad)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_torchs(name: str, directions: int, packed: bool, torch: Any) -> None:
    steps, count, inputs, hidden = 6, 19, 5, 7
    layer = getattr(torch.nn, name)(inputs, hidden, bidirectional=directions == 2).double()
    lengths = RANDOM.integers(1, steps + 1, count) if packed else None
    states = [_normal(directions, count, hidden) for _ in range(1 + (name == "LSTM"))]
    x = _normal(steps, count, inputs)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, *states)]
    given = tensors[0]
    if packed:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        given = pack(given, torch.from_numpy(lengths), enforce_sorted=False)
    y, last = layer(given, tuple(tensors[1:]) if len(states) > 1 else tensors[1])
    if packed:
        y = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=steps)[0]
    ends = ("", "_reverse")[:directions]
    w, r, b, rb = (
        np.stack([getattr(layer, f"{kind}_l0{end}").detach().numpy() for end in ends])
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    call: Any = getattr(tw, name.lower())
    operands = (x, w, r, *((b, rb) if name == "GRU" else (b + rb,)), *states, lengths)
    for got, want in zip(call(*operands), (y, *(last if len(states) > 1 else (last,))), strict=True):
        _assert_close(got, want)
    dy = _normal(*y.shape)
    y.backward(torch.from_numpy(dy))
    dx, dw, dr, *others = call.backward(dy, *operands)[: len(operands) - 1]
    *biases, dh = others if len(states) == 1 else (others[0], others[1])
    for got, tensor in zip((dx, dh, *others[len(biases) + 1 :]), tensors, strict=True):
        _assert_close(got, tensor.grad)
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for got, kind in zip((dw, dr, *biases), kinds, strict=False):
        for d, end in enumerate(ends):
            _assert_close(got[d], getattr(layer, f"{kind}_l0{end}").grad)


def test_a_projection_is_torchs(torch: Any) -> None:
    steps, count, inputs, hidden, width = 5, 4, 3, 7, 2
    layer = torch.nn.LSTM(inputs, hidden, proj_size=width, bidirectional=True).double()
    ends = ("", "_reverse")
    w, r, b, rb, proj = (
        np.stack([getattr(layer, f"{kind}_l0{end}").detach().numpy() for end in ends])
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    )
    x, h0, c0 = _normal(steps, count, inputs), _normal(2, count, width), _normal(2, count, hidden)
    y, last = layer(torch.from_numpy(x), (torch.from_numpy(h0), torch.from_numpy(c0)))
    operands = (x, w, r, b + rb, h0, c0, None, None, proj)
    for got, want in zip(tw.lstm(*operands), (y, *last), strict=True):
        _assert_close(got, want)
    dy = _normal(*y.shape)
    y.backward(torch.from_numpy(dy))
    grads = tw.lstm.backward(dy, *operands)
    for got, kind in zip(
        (grads[1], grads[2], grads[3], grads[-1]), ("weight_ih", "weight_hh", "bias_ih", "weight_hr"), strict=True
    ):
        for d, end in enumerate(ends):
            _assert_close(got[d], getattr(layer, f"{kind}_l0{end}").grad)


def test_steps_that_threads_share_have_the_bits_of_one_thread() -> None:
    x, w, r = (a.astype(np.float32) for a in (_normal(20, 3, 40), _normal(2, 600, 40), _normal(2, 600, 150)))
    for call, blocks in ((tw.lstm, 4), (tw.gru, 3), (tw.rnn, 1)):
        layer: Any = call
        weights = w[:, : blocks * 150] / 12, r[:, : blocks * 150] / 12
        runs = []
        for threads in (1, 2, 7):
            with tw.threads(threads):
                y, *_ = layer(x, *weights)
                runs.append((y, *layer.backward(x[..., :1] * np.ones_like(y), x, *weights)))
        for other in runs[1:]:
            assert all(a is b is None or np.array_equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_a_gru_may_reset_the_state_before_its_product() -> None:
    x, w, r, h = _normal(1, 2, 3), _normal(1, 12, 3), _normal(1, 12, 4), _normal(1, 2, 4)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    first, fresh = x[0] @ w[0].T, slice(8, None)
    gates = sigmoid(first[:, :8] + h[0] @ r[0, :8].T)
    n = np.tanh(first[:, fresh] + (gates[:, :4] * h[0]) @ r[0, fresh].T)
    want = (1 - gates[:, 4:]) * n + gates[:, 4:] * h[0]
    np.testing.assert_allclose(tw.gru(x, w, r, None, None, h, reset_after=False)[1][0], want, rtol=1e-12)


@pytest.mark.parametrize("dtype", FLOATING)
def test_rows_that_are_looked_up_are_copies(dtype: str) -> None:
    w, indices = _normal(7, 19).astype(named(dtype)), RANDOM.integers(0, 7, (3, 4))
    assert np.array_equal(tw.embedding(w, indices), w[indices])
    held = tw.embedding(w, indices, max_norm=1e3)
    assert np.array_equal(held, w[indices])


@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
def test_rows_held_to_a_norm_are_torchs_and_the_table_stays(norm: float, torch: Any) -> None:
    w, indices, offsets = _normal(7, 5), RANDOM.integers(0, 7, 12), np.array([0, 4, 4, 9])
    kept = w.copy()
    options: dict[str, Any] = {"max_norm": 0.8, "norm_type": norm}
    table = torch.from_numpy(w.copy())
    want = torch.nn.functional.embedding(torch.from_numpy(indices), table, **options)
    _assert_close(tw.embedding(w, indices, **options), want)
    table = torch.from_numpy(w.copy())
    bags = torch.nn.functional.embedding_bag(
        torch.from_numpy(indices), table, torch.from_numpy(offsets), mode="mean", padding_idx=2, **options
    )
    _assert_close(tw.embedding_bag(w, indices, offsets, mode="mean", padding_idx=2, **options), bags)
    assert np.array_equal(w, kept)
