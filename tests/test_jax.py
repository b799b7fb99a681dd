"""tilework.interop.jax: values, gradients, mapped axes, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import linking, registry
from tilework.registry import ops
from tilework.testing.cases import cases, in_place, results_of

jax = pytest.importorskip("jax", reason="jax is an extra that the tests do not bring")
if linking.xla_handler_path() is None:
    pytest.skip("tilework was built without jaxlib's headers", allow_module_level=True)

import jax.numpy as jnp  # noqa: E402

import tilework.interop.jax as twj  # noqa: E402

RNG = np.random.default_rng(0)
X, W, B = (RNG.standard_normal(s, np.float32) for s in ((2, 4, 7, 6), (6, 2, 3, 3), (6,)))
CONV = {"groups": 2, "stride": (2, 1), "padding": ((1, 0), (2, 1))}


def _close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [n for n, op in ops().items() if not op.is_view])
def test_a_sample_of_every_op_has_the_bits_of_numpys(name: str) -> None:
    op = ops()[name]
    dtype = min(registry.dtypes_of(op), key=lambda d: d != "float32")
    sample = cases(op, dtype)[0].build()
    run = getattr(twj, name)
    with jax.enable_x64(True):
        if in_place(op, sample.args):
            with pytest.raises(tw.UnsupportedError, match="updated in place"):
                run(*sample.args, **sample.attrs)
            return
        got = run(*sample.args, **sample.attrs)
        wants = results_of(op, sample.args, sample.attrs)
        for g, w in zip(got if isinstance(got, tuple) else (got,), wants, strict=True):
            assert (g.shape, g.dtype) == (w.shape, w.dtype)
            assert np.asarray(g).tobytes() == w.tobytes(), sample.attrs


def test_integers_of_64_bits_are_asked_for() -> None:
    with pytest.raises(tw.UnsupportedError, match="jax_enable_x64"):
        twj.max_pool(X, kernel=2, return_indices=True)


def test_a_jitted_layer_has_the_bits_of_numpys() -> None:
    layer = jax.jit(lambda x: twj.conv(x, W, B, activation="gelu", **CONV))
    assert np.asarray(layer(X)).tobytes() == tw.conv(X, W, B, activation="gelu", **CONV).tobytes()
    half = jnp.asarray(X, jnp.bfloat16)
    assert twj.softmax(half, axis=1).dtype == jnp.bfloat16
    np.testing.assert_array_equal(twj.mul(X, 2.0), 2 * X)
    np.testing.assert_array_equal(twj.concat([X, X], axis=1), np.concatenate([X, X], 1))
    np.testing.assert_allclose(twj.einsum("ijkl,ijkl->i", X, X), (X * X).sum((1, 2, 3)), rtol=1e-5)


def test_gradients_are_those_of_the_backward_rules() -> None:
    def loss(x: Any, w: Any, b: Any) -> Any:
        return (twj.conv(x, w, b, activation="tanh", **CONV) ** 2).sum()

    dy = 2 * tw.conv(X, W, B, activation="tanh", **CONV)
    want = tw.conv.backward(dy, X, W, B, activation="tanh", **CONV)
    for g, w in zip(jax.jit(jax.grad(loss, (0, 1, 2)))(X, W, B), want, strict=True):
        _close(np.asarray(g), w)
    _close(np.asarray(jax.grad(loss, 1)(X, W, B)), want[1])


def test_gradients_of_gradients_hold() -> None:
    x = jnp.asarray([0.3, -0.7, 1.1], jnp.float32)
    twice = jax.grad(lambda x: jax.grad(lambda x: twj.tanh(x).sum())(x).sum())(x)
    want = jax.grad(lambda x: jax.grad(lambda x: jnp.tanh(x).sum())(x).sum())(x)
    _close(twice, want)


def test_what_forward_keeps_reaches_backward() -> None:
    x, w, r = (RNG.standard_normal(s, np.float32) for s in ((4, 2, 3), (1, 20, 3), (1, 20, 5)))
    got = jax.jit(jax.grad(lambda x, w, r: twj.lstm(x, w, r)[0].sum(), (0, 1, 2)))(x, w, r)
    (y, _, _), saved = tw.lstm.forward(x, w, r)
    for g, d in zip(got, tw.lstm.backward(np.ones_like(y), x, w, r, saved=saved), strict=False):
        _close(np.asarray(g), d)
    with pytest.raises(tw.UnsupportedError, match="further results"):
        jax.grad(lambda x: twj.lstm(x, w, r)[1].sum())(x)


def test_operands_without_a_gradient_are_left_alone() -> None:
    labels = np.array([1, 0], np.int32)
    logits = RNG.standard_normal((2, 3), np.float32)
    got = jax.grad(lambda x: twj.softmax_cross_entropy(x, labels))(logits)
    _close(np.asarray(got), tw.softmax_cross_entropy.backward(np.ones((), np.float32), logits, labels)[0])
    with pytest.raises(tw.UnsupportedError, match=r"want jax\.lax\.stop_gradient"):
        jax.grad(lambda x: twj.activation_dx(x, x, function="silu").sum())(logits)


def test_a_mapped_axis_is_one_call_or_many() -> None:
    _close(np.asarray(jax.vmap(twj.add, (0, None))(X, X[0, 0])), X + X[0, 0])
    got = jax.jit(jax.vmap(lambda x: twj.conv(x[None], W, B, **CONV)[0]))(X)
    _close(np.asarray(got), tw.conv(X, W, B, **CONV))
    per_sample = jax.vmap(jax.grad(lambda w, x: twj.conv(x[None], w, **CONV).sum()), (None, 0))(W, X)
    want = [tw.conv.backward(np.ones_like(tw.conv(x[None], W, **CONV)), x[None], W, **CONV)[1] for x in X]
    _close(np.asarray(per_sample), np.stack(want), 1e-4)


def test_what_cannot_be_is_said_while_tracing() -> None:
    with pytest.raises(tw.ShapeError, match=r"conv: x has C=4"):
        jax.jit(twj.conv)(X, RNG.standard_normal((6, 3, 3, 3), np.float32))
    with pytest.raises(tw.AttrTypeError, match="unknown argument"):
        twj.relu(X, slope=1)
    with pytest.raises(tw.AttrTypeError, match="out"):
        twj.relu(X, out=X)
    with pytest.raises(tw.DTypeError, match="element type"):
        twj.relu(jnp.ones(3, jnp.complex64))
    with pytest.raises(AttributeError, match="no attribute"):
        _ = twj.nothing


def test_what_fails_while_computing_is_an_error_of_jax() -> None:
    logits, labels = np.zeros((2, 3), np.float32), np.array([1, 7], np.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"softmax_cross_entropy: .*7"):
        jax.jit(twj.softmax_cross_entropy)(logits, labels).block_until_ready()


def test_another_version_of_the_ffi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twj, "_version_of_jaxlib", lambda: (0, 0))
    with pytest.raises(tw.UnsupportedError, match=r"built for XLA FFI 0\.\d+ and this jaxlib has 0\.0; want"):
        twj._register()
    monkeypatch.setattr(twj, "xla_handler_path", lambda: None)
    with pytest.raises(tw.UnsupportedError, match="without jaxlib's headers"):
        twj._register()


def test_the_page_about_it_runs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "jax.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert len(program.splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *_, last = map(float, done.stdout.split())
    assert last < 0.1 * first
