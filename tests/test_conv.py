"""Convolutions against PyTorch: the meaning of padding, dilation, groups and output_padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw

torch = pytest.importorskip("torch")

_BY_RANK = {
    1: (torch.nn.functional.conv1d, torch.nn.functional.conv_transpose1d),
    2: (torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d),
    3: (torch.nn.functional.conv3d, torch.nn.functional.conv_transpose3d),
}


def _arrays(*shapes: tuple[int, ...]) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) for shape in shapes]


def _assert_same(ours: Any, theirs: Any) -> None:
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-10)


def _assert_same_gradients(op: Any, y: Any, operands: list[Any], tensors: list[Any], attrs: dict[str, Any]) -> None:
    (dy,) = _arrays(tuple(y.shape))
    y.backward(torch.from_numpy(dy))
    for ours, tensor in zip(op.backward(dy, *operands, **attrs), tensors, strict=True):
        _assert_same(ours, tensor.grad)


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 3, 19), (4, 3, 5), {"stride": 3, "padding": 2}),
        ((2, 6, 11, 14), (8, 3, 3, 2), {"groups": 2, "dilation": (1, 3), "padding": (1, 2), "stride": (2, 1)}),
        ((1, 5, 20, 37), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
        ((1, 5, 20, 37), (5, 1, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
        ((2, 4, 9, 30), (8, 1, 5, 5), {"groups": 4, "padding": 2, "stride": 2}),
        ((1, 130, 6, 7), (140, 130, 3, 3), {"padding": 1}),
        ((1, 3, 33, 40), (20, 3, 7, 7), {"padding": 3, "stride": 2}),
        ((1, 4, 5, 6, 7), (6, 2, 3, 2, 1), {"groups": 2, "padding": (1, 0, 2), "dilation": (2, 1, 1)}),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_conv_means_what_it_means_in_torch(x: Any, w: Any, attrs: dict[str, Any], layout: str) -> None:
    a, k, b = _arrays(x, w, w[:1])
    tensors = [torch.from_numpy(v).requires_grad_() for v in (a, k, b)]
    y = _BY_RANK[len(x) - 2][0](*tensors, **attrs)
    if layout == "NHWC":
        a, attrs = np.moveaxis(a, 1, -1), {"layout": layout, **attrs}
        _assert_same(np.moveaxis(tw.conv(a, k, b, **attrs), -1, 1), y)
        return
    _assert_same(tw.conv(a, k, b, **attrs), y)
    _assert_same_gradients(tw.conv, y, [a, k, b], tensors, attrs)


def test_conv_pads_each_side_by_its_own_number() -> None:
    a, k = _arrays((1, 4, 9, 8), (5, 4, 3, 4))
    padded = torch.nn.functional.pad(torch.from_numpy(a), (0, 3, 2, 1))
    y = torch.nn.functional.conv2d(padded, torch.from_numpy(k), dilation=2)
    _assert_same(tw.conv(a, k, padding=((2, 1), (0, 3)), dilation=2), y)


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((2, 4, 9), (4, 3, 5), {"stride": 3, "padding": 2, "output_padding": 2}),
        ((2, 6, 5, 7), (6, 2, 3, 2), {"groups": 3, "stride": (2, 1), "dilation": (1, 3), "output_padding": (1, 2)}),
        ((1, 140, 5, 6), (140, 13, 4, 4), {"stride": 2, "padding": 1}),
        ((1, 4, 3, 4, 5), (4, 2, 2, 3, 3), {"stride": (1, 2, 3), "padding": (0, 1, 1), "output_padding": (0, 1, 2)}),
    ],
)
def test_conv_transpose_means_what_it_means_in_torch(x: Any, w: Any, attrs: dict[str, Any]) -> None:
    a, k, b = _arrays(x, w, (w[1] * attrs.get("groups", 1),))
    tensors = [torch.from_numpy(v).requires_grad_() for v in (a, k, b)]
    y = _BY_RANK[len(x) - 2][1](*tensors, **attrs)
    _assert_same(tw.conv_transpose(a, k, b, **attrs), y)
    _assert_same_gradients(tw.conv_transpose, y, [a, k, b], tensors, attrs)
