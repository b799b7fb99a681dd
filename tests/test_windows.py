"""Windows at their corners beside ONNX Runtime and PyTorch: one-sided padding, last windows of ceil_mode, dilation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tilework as tw
from one_node import onnxruntime_of

Array = npt.NDArray[Any]

_random = np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    return _random.standard_normal(shape).astype(np.float32)


def _pairs(pads: list[int]) -> tuple[tuple[int, int], ...]:
    """ONNX's pads, those before every axis and those behind."""
    half = len(pads) // 2
    return tuple(zip(pads[:half], pads[half:], strict=True))


def _near(got: Any, want: Any) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


# Sizes, kernel, strides, pads and dilations.
_POOLS: list[tuple[tuple[int, ...], list[int], list[int], list[int], list[int]]] = [
    ((1, 2, 7, 8), [3, 3], [2, 2], [0, 1, 1, 0], [1, 1]),
    ((2, 3, 9, 11), [3, 2], [3, 2], [1, 0, 0, 1], [1, 1]),
    ((1, 2, 10, 13), [3, 3], [2, 3], [1, 2, 2, 1], [2, 3]),
    ((1, 1, 5, 5), [2, 2], [3, 3], [0, 0, 1, 1], [1, 1]),
    ((2, 2, 12), [4], [3], [1, 2], [2]),
    ((1, 2, 5, 6, 7), [2, 3, 2], [2, 2, 3], [1, 0, 0, 0, 1, 1], [1, 2, 1]),
]


@pytest.mark.parametrize(("x", "kernel", "strides", "pads", "dilations"), _POOLS, ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool_is_onnx_runtimes(
    x: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, ceil_mode: bool
) -> None:
    a = _normal(*x)
    theirs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    want, places = onnxruntime_of("MaxPool", {"x": a}, ["y", "i"], ceil_mode=int(ceil_mode), **theirs)
    ours: dict[str, Any] = {"kernel": tuple(kernel), "stride": tuple(strides), "padding": _pairs(pads)}
    ours |= {"dilation": tuple(dilations), "ceil_mode": ceil_mode}
    y, indices = tw.max_pool(a, return_indices=True, flat_indices=True, **ours)
    assert np.array_equal(y, want)
    assert np.array_equal(indices, places)
    assert np.array_equal(tw.max_pool(a, **ours), want)


@pytest.mark.parametrize(("x", "kernel", "strides", "pads"), [p[:4] for p in _POOLS if max(p[4]) == 1], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_avg_pool_is_onnx_runtimes(
    x: Any, kernel: Any, strides: Any, pads: Any, ceil_mode: bool, count_include_pad: bool
) -> None:
    a = _normal(*x)
    (want,) = onnxruntime_of(
        "AveragePool",
        {"x": a},
        ["y"],
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )
    ours: dict[str, Any] = {"kernel": tuple(kernel), "stride": tuple(strides), "padding": _pairs(pads)}
    _near(tw.avg_pool(a, ceil_mode=ceil_mode, count_include_pad=count_include_pad, **ours), want)


_CONVS: list[tuple[tuple[int, ...], tuple[int, ...], list[int], list[int], list[int], int]] = [
    ((1, 4, 9, 8), (6, 4, 3, 4), [1, 2], [2, 0, 1, 3], [2, 1], 1),
    ((2, 6, 7, 10), (9, 2, 3, 3), [2, 1], [0, 3, 1, 0], [1, 2], 3),
    ((1, 5, 8, 9), (5, 1, 3, 3), [2, 2], [0, 0, 1, 1], [1, 1], 5),
    ((1, 3, 21), (8, 3, 5), [3], [4, 1], [2], 1),
    ((1, 2, 5, 6, 7), (4, 2, 3, 2, 2), [1, 2, 1], [0, 1, 2, 1, 0, 0], [1, 1, 2], 1),
]


@pytest.mark.parametrize(("x", "w", "strides", "pads", "dilations", "group"), _CONVS, ids=str)
def test_conv_is_onnx_runtimes(x: Any, w: Any, strides: Any, pads: Any, dilations: Any, group: int) -> None:
    a, k, b = _normal(*x), _normal(*w), _normal(w[0])
    theirs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    (want,) = onnxruntime_of("Conv", {"x": a, "w": k, "b": b}, ["y"], **theirs)
    ours: dict[str, Any] = {"stride": tuple(strides), "dilation": tuple(dilations), "groups": group}
    _near(tw.conv(a, k, b, padding=_pairs(pads), **ours), want)


@pytest.mark.parametrize(("x", "w", "strides", "pads", "dilations", "group"), _CONVS, ids=str)
def test_conv_transpose_is_onnx_runtimes(x: Any, w: Any, strides: Any, pads: Any, dilations: Any, group: int) -> None:
    a, k = _normal(x[0], w[0], *x[2:]), _normal(*w)
    b = _normal(w[1] * group)
    more = [stride - 1 for stride in strides]
    theirs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "output_padding": more}
    (want,) = onnxruntime_of("ConvTranspose", {"x": a, "w": k, "b": b}, ["y"], **theirs)
    ours: dict[str, Any] = {"stride": tuple(strides), "dilation": tuple(dilations), "groups": group}
    ours |= {"padding": _pairs(pads), "output_padding": tuple(more)}
    _near(tw.conv_transpose(a, k, b, **ours), want)
    layer = tw.conv_transpose.prepare(w=k, b=b, **ours)
    assert np.array_equal(layer(a), tw.conv_transpose(a, k, b, **ours))
    last = tw.conv_transpose(np.moveaxis(a, 1, -1), k, b, layout="NHWC", **ours)
    _near(np.moveaxis(last, -1, 1), want)


@pytest.mark.parametrize("attrs", [{}, {"ceil_mode": True}, {"ceil_mode": True, "padding": 1}], ids=str)
@pytest.mark.parametrize("size", [(6, 7), (9, 10)], ids=str)
def test_last_windows_of_ceil_mode_are_torchs(attrs: dict[str, Any], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    x = _normal(1, 2, *size)
    f, t = torch.nn.functional, torch.tensor(x)
    want = f.max_pool2d(t, (2, 3), (3, 2), dilation=(2, 1), **attrs)
    got = tw.max_pool(x, kernel=(2, 3), stride=(3, 2), dilation=(2, 1), **attrs)
    assert np.array_equal(got, want)
    for count in (True, False):
        mean = f.avg_pool2d(t, (2, 3), (3, 2), count_include_pad=count, **attrs)
        _near(tw.avg_pool(x, kernel=(2, 3), stride=(3, 2), count_include_pad=count, **attrs), mean.numpy())
