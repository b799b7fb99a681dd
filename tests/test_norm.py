"""Norms, dropout and pooling beside PyTorch, and what their derived checks do not see."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tilework as tw
from tilework.backends.philox import philox

Array = npt.NDArray[Any]

_random = np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    return _random.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, np.asarray(want), rtol=2e-5, atol=2e-5)


def test_batch_norm_moves_its_running_statistics_as_torch_does(torch: Any) -> None:
    x, w, b = 3 + _normal(4, 5, 6, 7), _normal(5), _normal(5)
    mean, var = _normal(5), 1 + np.abs(_normal(5))
    running = torch.tensor(mean), torch.tensor(var)
    for _ in range(3):
        y = tw.batch_norm(x, w, b, mean, var, training=True, momentum=0.25)
        want = torch.nn.functional.batch_norm(
            torch.tensor(x), *running, torch.tensor(w), torch.tensor(b), training=True, momentum=0.25
        )
    _near(y, want)
    _near(mean, running[0])
    _near(var, running[1])
    kept = mean.copy(), var.copy()
    _near(
        tw.batch_norm(x, w, b, mean, var),
        torch.nn.functional.batch_norm(torch.tensor(x), *running, torch.tensor(w), torch.tensor(b)),
    )
    assert np.array_equal(mean, kept[0])
    assert np.array_equal(var, kept[1])


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_gradients_are_torchs(name: str, torch: Any) -> None:
    x, dy = _normal(4, 6, 10), _normal(4, 6, 10)
    size = 10 if name in ("layer_norm", "rms_norm") else 6
    w, b = _normal(size), _normal(size)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    function = torch.nn.functional
    if name == "layer_norm":
        want = function.layer_norm(tensors[0], (10,), *tensors[1:])
        got = tw.layer_norm.backward(dy, x, w, b)[:3]
    elif name == "rms_norm":
        want = function.rms_norm(tensors[0], (10,), tensors[1], eps=1e-6)
        got = tw.rms_norm.backward(dy, x, w)[:2]
    elif name == "group_norm":
        want = function.group_norm(tensors[0], 3, *tensors[1:])
        got = tw.group_norm.backward(dy, x, w, b, groups=3)
    else:
        want = function.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
        got = tw.batch_norm.backward(dy, x, w, b, training=True)[:3]
    want.backward(torch.tensor(dy))
    for mine, tensor in zip(got, tensors, strict=False):
        _near(mine, tensor.grad)


_NORM = {"weight": _normal(6), "bias": _normal(6), "mean": _normal(6), "var": 1 + np.abs(_normal(6)), "eps": 1e-3}
_LAYERS: list[tuple[Any, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    (tw.conv, (2, 4, 9, 8), (6, 2, 3, 3), {"groups": 2, "padding": 1, "activation": "relu"}),
    (tw.conv, (2, 9, 8, 4), (6, 4, 3, 3), {"layout": "NHWC"}),
    (tw.conv_transpose, (2, 4, 5, 6), (4, 3, 3, 3), {"groups": 2, "stride": 2, "activation": "relu"}),
    (tw.linear, (5, 7), (6, 7), {}),
]


@pytest.mark.parametrize(("layer", "x", "w", "attrs"), _LAYERS, ids=str)
def test_a_batch_norm_folds_into_prepared_weights(layer: Any, x: Any, w: Any, attrs: dict[str, Any]) -> None:
    a, k, b = _normal(*x), _normal(*w), _normal(6)
    plain = layer(a, k, b, **{n: v for n, v in attrs.items() if n != "activation"})
    last = attrs.get("layout") == "NHWC"
    want = tw.batch_norm(np.moveaxis(plain, -1, 1) if last else plain, **_NORM)
    want = np.maximum(want, 0) if "activation" in attrs else want
    folded = layer.prepare(w=k, b=b, batch_norm=tw.batch_norm.prepare(**_NORM), **attrs)
    _near(folded(a), np.moveaxis(want, 1, -1) if last else want)
    assert np.array_equal(pickle.loads(pickle.dumps(folded))(a), folded(a))
    assert np.array_equal(layer.prepare(w=k, b=b, batch_norm=_NORM, **attrs)(a), folded(a))


def test_what_cannot_be_folded_is_named() -> None:
    w = _normal(6, 2, 3, 3)
    for norm, error, text in (
        (_NORM | {"mean": _normal(5)}, tw.ShapeError, r"batch_norm: mean has shape \(5,\); want \(6,\)"),
        (_NORM | {"eps": -1.0}, tw.AttrError, "batch_norm: eps=-1"),
        (_NORM | {"training": True}, tw.AttrTypeError, "conv: batch_norm is of .*training"),
        ({"weight": _normal(6)}, tw.ShapeError, "batch_norm: mean is not given"),
        (3, tw.AttrTypeError, "conv: batch_norm is int; want a dict"),
    ):
        with pytest.raises(error, match=text):
            tw.conv.prepare(w=w, batch_norm=norm)
    with pytest.raises(tw.ShapeError, match="conv: w is not given"):
        tw.conv.prepare(batch_norm=_NORM)
    with pytest.raises(tw.ShapeError, match=r"b has shape \(1,\) but w has K=6"):
        tw.conv.prepare(w=w, b=_normal(1), batch_norm=_NORM)
    with pytest.raises(tw.AttrError, match="groups=0 does not divide C=6"):
        tw.conv_transpose.prepare(w=w, groups=0, batch_norm=_NORM)


def test_a_large_mean_costs_no_digits() -> None:
    x = (1000 + _normal(3, 5000)).astype(np.float32)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert np.max(np.abs(tw.layer_norm(x) - want)) < 2e-6


def test_the_residual_is_added_before_the_norm() -> None:
    x, residual, w = _normal(5, 9), _normal(5, 9), _normal(9)
    y, total = tw.rms_norm(x, w, residual, return_sum=True)
    assert np.array_equal(total, x + residual)
    assert np.array_equal(y, tw.rms_norm(total, w))


@pytest.mark.parametrize("op", [tw.softmax, tw.log_softmax], ids=str)
@pytest.mark.parametrize("n", [100, 257, 1024, 2049, 4096, 4097])
def test_softmax_of_many_rows_is_that_of_each(op: Any, n: int) -> None:
    x = _normal(37, n + 3)[:, :n]
    x[2, -1], x[5] = 300, x[5] + 1e4
    want = np.exp(x - x.max(1, keepdims=True).astype(np.float64))
    want = want / want.sum(1, keepdims=True)
    np.testing.assert_allclose(op(x), want if op is tw.softmax else np.log(want), rtol=2e-6, atol=1e-6)
    x[8, -1], x[9], x[10, 0], x[11, n // 2] = np.nan, -np.inf, -np.inf, np.inf
    together = op(x)
    for row, alone in zip(together, x, strict=True):
        assert np.array_equal(row, op(alone[np.newaxis])[0], equal_nan=True)
    assert [r for r in range(37) if np.isnan(together[r]).any()] == [8, 9, 11]


def test_philox_draws_the_published_numbers() -> None:
    """The known answers of Random123 for philox4x32-10."""
    assert [int(v) for v in philox(4, 0, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_dropout_drops_the_share_asked_for() -> None:
    y = tw.dropout(np.ones(1 << 18, np.float32), p=0.3, seed=7)
    assert abs(np.mean(y == 0) - 0.3) < 0.005
    assert np.all((y == 0) | (y == np.float32(1 / 0.7)))
    assert not np.array_equal(y, tw.dropout(np.ones(1 << 18, np.float32), p=0.3, seed=7, offset=1))


_WINDOWS: list[dict[str, Any]] = [
    {"kernel": 3, "stride": 2, "padding": 1},
    {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel": (2, 3), "stride": (3, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel": 5, "stride": 3, "padding": 2},
]


@pytest.mark.parametrize("attrs", _WINDOWS, ids=str)
def test_pools_are_torchs(attrs: dict[str, Any], torch: Any) -> None:
    x = _normal(2, 3, 11, 14)
    options = {"kernel_size": attrs["kernel"], **{k: v for k, v in attrs.items() if k != "kernel"}}
    function = torch.nn.functional
    y, indices = tw.max_pool(x, return_indices=True, **attrs)
    want, places = function.max_pool2d(torch.tensor(x), return_indices=True, **options)
    assert np.array_equal(y, want)
    assert np.array_equal(indices, places)
    for count in (True, False):
        mean = function.avg_pool2d(torch.tensor(x), count_include_pad=count, **options)
        _near(tw.avg_pool(x, count_include_pad=count, **attrs), mean)


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilated_max_pool_is_torchs(dilation: int, torch: Any) -> None:
    x = _normal(2, 3, 13, 16)
    want = torch.nn.functional.max_pool2d(torch.tensor(x), 3, stride=2, padding=1, dilation=dilation)
    assert np.array_equal(tw.max_pool(x, kernel=3, stride=2, padding=1, dilation=dilation), want)


def test_padding_on_one_side_only_is_onnxruntimes() -> None:
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    x, helper = _normal(1, 2, 7, 8), onnx.helper
    for name, attrs in (("MaxPool", {}), ("AveragePool", {"count_include_pad": 1}), ("AveragePool", {})):
        node = helper.make_node(name, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 0], **attrs)
        value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
        graph = helper.make_graph([node], "pool", value[:1], value[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        pads: dict[str, Any] = {"kernel": 3, "stride": 2, "padding": ((0, 1), (1, 0))}
        if name == "MaxPool":
            assert np.array_equal(tw.max_pool(x, **pads), want[0])
        else:
            _near(tw.avg_pool(x, count_include_pad=bool(attrs), **pads), want[0])
