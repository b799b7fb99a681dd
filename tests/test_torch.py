"""torch.ops.tilework: every op with its schema, shapes without data, gradients, and the tensors that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core
from tilework.registry import ops

torch = pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
bridge = pytest.importorskip("tilework.interop.torch")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def _random(*shape: int, grad: bool = False, dtype: Any = None) -> Any:
    generator = torch.Generator().manual_seed(len(shape))
    made = torch.randn(*shape, generator=generator).to(dtype or torch.float32)
    return made.requires_grad_(grad)


def test_every_compiled_op_is_registered() -> None:
    missing = [name for name, op in ops().items() if not op.is_view and not bridge.is_registered(name)]
    assert not missing
    for name, made in bridge.bridges.items():
        arguments = getattr(torch.ops.tilework, name).default._schema.arguments
        spec = _core.op_spec(name)
        assert [a.name for a in arguments if not a.kwarg_only] == [n for n, _ in spec["operands"]]
        assert [a.name for a in arguments if a.kwarg_only] == [a["name"] for a in spec["attrs"]]
        assert bool(made.op.differentiable) == hasattr(torch.ops.tilework, f"{name}_backward")


CHECKED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "conv": ((_random(2, 4, 7, 7, grad=True), _random(6, 2, 3, 3, grad=True), _random(6, grad=True)),
             {"groups": 2, "padding": [1, 0, 2, 1], "stride": [2, 1], "activation": "gelu"}),
    "linear": ((_random(3, 5, 8, grad=True), _random(4, 8, grad=True), None), {"activation": "relu"}),
    "max_pool": ((_random(1, 2, 6, 6, grad=True),), {"kernel": 2, "return_indices": True}),
    "softmax": ((_random(3, 7, grad=True),), {"axis": 0}),
    "layer_norm": ((_random(3, 5, 8, grad=True), _random(8, grad=True), _random(8, grad=True)), {}),
    "attention": ((_random(1, 2, 5, 8, grad=True), _random(1, 2, 6, 8, grad=True), _random(1, 2, 6, 8, grad=True)),
                  {"causal": True}),
    "lstm": ((_random(4, 2, 3, grad=True), _random(1, 20, 3, grad=True), _random(1, 20, 5, grad=True)), {}),
    "einsum": (([_random(3, 4, grad=True), _random(4, 5, grad=True)],), {"subscripts": "ij,jk->ki"}),
    "concat": (([_random(3, 4, grad=True), _random(3, 2, grad=True)],), {"axis": 1}),
    "cast": ((_random(3, 4),), {"dtype": torch.bfloat16}),
    "clip": ((_random(3, 4, grad=True),), {"high": 0.5}),
    "adam_step": ((_random(5), _random(5), torch.zeros(5), torch.zeros(5)), {"step": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_opcheck_finds_nothing_wrong(name: str) -> None:
    args, attrs = CHECKED[name]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name != "lstm":  # the last check asks for the gradients of all results
        checks.append("test_aot_dispatch_dynamic")
    overload = getattr(torch.ops.tilework, name).default
    found = torch.library.opcheck(overload, args, attrs, test_utils=checks, raise_exception=False)
    wrong = {check: result for check, result in found.items() if result != "SUCCESS"}
    assert not wrong


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_those_of_the_numpy_call(dtype: str) -> None:
    x, w = _random(2, 3, 8, 8, dtype=getattr(torch, dtype)), _random(4, 3, 3, 3, dtype=getattr(torch, dtype))
    got = torch.ops.tilework.conv(x.transpose(2, 3), w, None, padding=1, activation="relu")
    want = tw.conv(_array(x.transpose(2, 3)), _array(w), padding=1, activation="relu")
    assert got.dtype == x.dtype
    assert _array(got).tobytes() == want.tobytes()


def test_a_gradient_that_is_handed_on_has_memory_of_its_own() -> None:
    x, dy = _random(5, grad=True), torch.ones(5)
    y = torch.ops.tilework.sub(x, torch.ops.tilework.tanh(x))
    (dx,) = torch.autograd.grad(y, x, dy)  # torch adds the second gradient to the first in place
    assert dy.tolist() == [1.0] * 5
    torch.testing.assert_close(dx, torch.tanh(x.detach()).square())
    a, b = torch.autograd.grad(torch.ops.tilework.add(x, other := _random(5, grad=True)), (x, other), dy)
    a += 1
    assert b.tolist() == dy.tolist() == [1.0] * 5


def _array(t: Any) -> Any:
    if t.dtype != torch.bfloat16:
        return t.detach().numpy()
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 of its own")
    return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def test_gradients_are_those_of_torch() -> None:
    x, w, b = _random(2, 3, 9, 9, grad=True), _random(4, 3, 3, 3, grad=True), _random(4, grad=True)
    want = torch.autograd.grad(torch.nn.functional.conv2d(x, w, b, stride=2).tanh().square().sum(), (x, w, b))
    got = torch.autograd.grad(torch.ops.tilework.conv(x, w, b, stride=2, activation="tanh").square().sum(), (x, w, b))
    for g, r in zip(got, want, strict=True):
        torch.testing.assert_close(g, r, rtol=1e-4, atol=1e-4)
    only = torch.autograd.grad(torch.ops.tilework.linear(_random(3, 4), w[:, 0, 0].new_ones(2, 4), b[:2]).sum(), b)[0]
    assert only.tolist() == [3, 3, 0, 0]


def test_a_gradient_of_another_result_is_refused() -> None:
    args, _ = CHECKED["lstm"]
    y, h, _ = torch.ops.tilework.lstm(*args)
    torch.autograd.grad(y.sum(), args[0], retain_graph=True)
    with pytest.raises(tw.UnsupportedError, match="further results"):
        torch.autograd.grad(h.sum(), args[0])


def test_tensors_that_cannot_be_borrowed_are_refused() -> None:
    relu = torch.ops.tilework.relu
    assert torch.equal(relu(torch._neg_view(_random(3))), relu(-_random(3))), "torch resolves the bit first"
    with pytest.raises(tw.DTypeError, match="complex64"):
        relu(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(tw.DTypeError, match="sparse"):
        relu(_random(3).to_sparse())
    assert relu(_random(3).to("meta")).device.type == "meta"
    with pytest.raises(tw.ShapeError, match=r"conv: x has C=3"):
        torch.ops.tilework.conv(_random(1, 3, 4, 4), _random(2, 5, 3, 3))
    with pytest.raises(tw.ShapeError, match=r"conv: x has C=3"):
        torch.ops.tilework.conv(_random(1, 3, 4, 4).to("meta"), _random(2, 5, 3, 3).to("meta"))
    grown = _random(3, grad=True)
    with torch.no_grad():
        assert not relu(grown).requires_grad


def test_no_tensor_is_read_with_the_wrong_sign() -> None:
    x = torch._neg_view(_random(3))
    run = tw.trace(tw.relu, tw.spec((3,))).compile()
    for call in (tw.relu, tw.from_dlpack, run):
        with pytest.raises(tw.DTypeError, match=r"x has its negative bit set; want x\.resolve_neg|array has its"):
            call(x)
    np.testing.assert_array_equal(tw.relu(x.resolve_neg()), torch.relu(x).numpy())
    with pytest.raises(tw.DTypeError, match="w has its negative bit set"):
        torch.ops.tilework.sgd_step(x, _random(3), lr=0.1)


def test_tensors_of_several_devices_are_refused() -> None:
    x = _random(3)
    for a, b in ((x, x.to("meta")), (x.to("meta"), x)):
        with pytest.raises(tw.DTypeError, match="add: the tensors are on cpu, meta; want them on one device"):
            torch.ops.tilework.add(a, b)
    with pytest.raises(tw.DTypeError, match="x is a nested tensor"):
        torch.ops.tilework.relu(torch.nested.nested_tensor([x, x[:2]]))


def test_an_update_in_place_is_one_to_torch() -> None:
    w, g, x = _random(3), _random(3), _random(3, grad=True)
    y = (x * w).sum()
    torch.ops.tilework.sgd_step(w, g, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with pytest.raises(tw.UnsupportedError, match=r"w requires a gradient and would be .* under torch.no_grad\(\)"):
        torch.ops.tilework.sgd_step(x, g, lr=0.1)
    with torch.no_grad():
        torch.ops.tilework.sgd_step(x, g, lr=0.1)
    with torch.inference_mode():
        torch.ops.tilework.sgd_step(torch.ones(3), g, lr=0.1)


def test_memory_is_shared_both_ways() -> None:
    w, g = torch.ones(4, dtype=torch.float32), torch.ones(4)
    view = w.numpy()
    torch.ops.tilework.sgd_step(w, g, None, lr=0.5)
    assert view.tolist() == [0.5] * 4


def test_a_compiled_function_keeps_the_op_whole() -> None:
    x, w = _random(2, 3, 8, 8), _random(4, 3, 3, 3)

    def layer(x: Any, w: Any) -> Any:
        return torch.ops.tilework.conv(x, w, padding=1) * 2

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, w), layer(x, w))


def test_the_page_about_it_runs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "torch.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert len(program.splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *_, last = map(float, done.stdout.split())
    assert last < 0.5 * first
    assert np.isfinite(last)
