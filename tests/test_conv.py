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


@pytest.mark.parametrize(
    "attrs", [{"kernel": 3}, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 3)}]
)
def test_unfold_and_fold_mean_what_they_mean_in_torch(attrs: dict[str, Any]) -> None:
    (a,) = _arrays((2, 3, 11, 14))
    theirs = {"kernel_size": attrs["kernel"], **{k: v for k, v in attrs.items() if k != "kernel"}}
    columns = torch.nn.functional.unfold(torch.from_numpy(a), **theirs)
    _assert_same(tw.unfold(a, **attrs), columns)
    (y,) = _arrays(tuple(columns.shape))
    image = torch.nn.functional.fold(torch.from_numpy(y), (11, 14), **theirs)
    _assert_same(tw.fold(y, shape=(11, 14), **attrs), image)


def _sampled_by_torch(x: Any, at_h: Any, at_w: Any) -> Any:
    """x (N, C, H, W) at places (N, P, Q): bilinear, zeros outside."""
    grid = torch.stack([2 * at_w / (x.shape[3] - 1) - 1, 2 * at_h / (x.shape[2] - 1) - 1], dim=-1)
    return torch.nn.functional.grid_sample(x, grid, align_corners=True)


def test_deform_conv_samples_as_torch_samples_a_grid() -> None:
    n, c, k, r, s, p, q, groups, offset_groups = 2, 4, 6, 3, 2, 4, 8, 2, 2
    operands = _arrays((n, c, 7, 8), (k, c // groups, r, s), (n, 2 * offset_groups * r * s, p, q), (k,))
    operands += [1 + a for a in _arrays((n, offset_groups * r * s, p, q))]
    tensors = [torch.from_numpy(v).requires_grad_() for v in operands]
    x, w, offset, b, mask = tensors
    by, factor = offset.reshape(n, offset_groups, r * s, 2, p, q), mask.reshape(n, offset_groups, r * s, p, q)
    columns = []
    for channel in range(c):
        group = channel // (c // offset_groups)
        for tap in range(r * s):
            at_h = torch.arange(p)[:, None] * 2 - 1 + tap // s + by[:, group, tap, 0]
            at_w = torch.arange(q) - 1 + tap % s * 2 + by[:, group, tap, 1]
            seen = _sampled_by_torch(x[:, channel : channel + 1], at_h, at_w)[:, 0]
            columns.append(seen * factor[:, group, tap])
    by_group = torch.stack(columns, 1).reshape(n, groups, -1, p * q)
    y = torch.einsum("gkc,ngcp->ngkp", w.reshape(groups, k // groups, -1), by_group).reshape(n, k, p, q)
    y = y + b[:, None, None]
    attrs: dict[str, Any] = {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}
    attrs |= {"groups": groups, "offset_groups": offset_groups}
    _assert_same(tw.deform_conv(*operands, **attrs), y)
    _assert_same_gradients(tw.deform_conv, y, operands, tensors, attrs)


def test_a_deform_conv_without_offsets_is_a_conv() -> None:
    a, k, b = _arrays((1, 5, 12, 9), (7, 5, 3, 3), (7,))
    still = np.zeros((1, 18, 6, 5))
    y = tw.conv(a, k, b, stride=2, padding=1)
    np.testing.assert_allclose(tw.deform_conv(a, k, still, b, stride=2, padding=1), y, rtol=1e-12, atol=1e-12)


def test_local_correlation_finds_a_shift() -> None:
    (a,) = _arrays((1, 16, 12, 13))
    shifted = np.roll(a, (2, -1), axis=(2, 3))
    y = tw.local_correlation(a, shifted, max_displacement=3, normalize=True)
    inside = y[:, :, 3:-3, 3:-3].mean(axis=(0, 2, 3)).reshape(7, 7)
    assert divmod(int(np.argmax(inside)), 7) == (3 + 2, 3 - 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_accumulate_in_place(dtype: str) -> None:
    dy, x, w = (a.astype(dtype) for a in _arrays((1, 4, 6, 6), (1, 3, 6, 6), (4, 3, 3, 3)))
    for op, operands, attrs in ((tw.conv_dx, (dy, w), {"shape": (6, 6)}), (tw.conv_dw, (dy, x), {"kernel": 3})):
        once = op(*operands, padding=1, **attrs)
        total = np.ones_like(once)
        want = op(*operands, total, padding=1, **attrs)
        assert op(*operands, total, padding=1, out=total, **attrs) is total
        np.testing.assert_array_equal(total, want)
        np.testing.assert_allclose(want.astype(np.float64), 1 + once.astype(np.float64), rtol=2e-3, atol=4e-3)


def _spoilt(x: Any, kind: str) -> Any:
    x = x.copy()
    flat = x.reshape(-1)
    if kind == "special":
        flat[[flat.size // 9, flat.size // 3, flat.size // 2]] = np.inf, np.nan, -np.inf
    elif kind == "denormal":
        flat[flat.size // 3 : flat.size // 2] *= 1e-39
    elif kind == "tiny":
        flat *= 1e-30
    elif kind == "huge":
        flat[flat.size // 2 :] *= 1e35
    return x


@pytest.mark.parametrize("image", ["plain", "special", "denormal", "tiny", "huge"])
@pytest.mark.parametrize("weights", ["plain", "special", "denormal", "tiny"])
@pytest.mark.parametrize("shape", [(1, 40, 40, 44, 70, 3), (2, 100, 7, 9, 130, 3), (1, 80, 30, 31, 96, 1)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_of_any_size_are_convolved_as_floats_are(shape: Any, image: str, weights: str) -> None:
    n, c, h, w, k, side = shape
    x, f, b, r = (v.astype(np.float32) for v in _arrays((n, c, h, w), (k, c, side, side), (k,), (n, k, h, w)))
    x, f = _spoilt(x, image), _spoilt(f, weights)
    attrs: dict[str, Any] = {"padding": side // 2, "activation": "relu"}
    y = tw.conv(x, f, b, r, **attrs)
    with np.errstate(all="ignore"):
        want = tw.conv(*(v.astype(np.float64) for v in (x, f, b, r)), **attrs).astype(np.float32)
        most = tw.conv(*(np.abs(v.astype(np.float64)) for v in (x, f, b, r)), **attrs)
    sure = np.isfinite(want) & (most < 1e38)
    beyond = ~np.isfinite(want) & ~np.isfinite(most)
    assert np.all(np.abs(y - want)[sure] <= 3e-7 * c**0.5 * side * most[sure] + 1e-44)
    np.testing.assert_array_equal(np.isnan(y)[beyond], np.isnan(want)[beyond])
    np.testing.assert_array_equal(tw.conv.prepare(w=f, b=b, **attrs)(x, residual=r), y)
    with tw.threads(1):
        np.testing.assert_array_equal(tw.conv(x, f, b, r, **attrs), y)
