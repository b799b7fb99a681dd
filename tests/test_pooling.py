"""Pooling and norms over windows beside PyTorch, and what their derived checks do not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tilework as tw

Array = npt.NDArray[Any]

_random = np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    return _random.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, np.asarray(want), rtol=2e-5, atol=2e-5)


def test_pools_of_a_given_size_are_torchs(torch: Any) -> None:
    x = _normal(2, 3, 11, 13)
    t = torch.tensor(x)
    f = torch.nn.functional
    for size in (1, 4, (11, 5), (13, 20)):
        _near(tw.adaptive_avg_pool(x, size=size), f.adaptive_avg_pool2d(t, size))
        y, indices = tw.adaptive_max_pool(x, size=size, return_indices=True)
        want, places = f.adaptive_max_pool2d(t, size, return_indices=True)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(indices, places)
    _near(tw.global_avg_pool(x), t.mean(dim=(2, 3), keepdim=True))
    np.testing.assert_array_equal(tw.global_max_pool(x), t.amax(dim=(2, 3), keepdim=True))
    _near(tw.global_lp_pool(x, p=3.0), t.abs().pow(3).sum(dim=(2, 3), keepdim=True).pow(1 / 3))


def test_unpooling_what_was_pooled(torch: Any) -> None:
    x = _normal(2, 3, 8, 10)
    y, indices = tw.max_pool(x, kernel=2, return_indices=True)
    want = torch.nn.functional.max_unpool2d(torch.tensor(y), torch.tensor(indices), 2)
    np.testing.assert_array_equal(tw.max_unpool(y, indices, shape=(8, 10)), want)
    flat = tw.max_pool(x, kernel=2, return_indices=True, flat_indices=True)[1]
    np.testing.assert_array_equal(x.reshape(-1)[flat], y)


def test_an_index_out_of_range_leaves_out_untouched() -> None:
    out, indices = np.ones((1, 1, 8), np.float32), np.array([[[1, 8]]])
    with pytest.raises(tw.IndexContentError, match="indices has 8"):
        tw.max_unpool(_normal(1, 1, 2), indices, shape=8, out=out)
    assert np.all(out == 1)


def test_norms_over_windows_and_axes_are_torchs(torch: Any) -> None:
    x = np.abs(_normal(2, 7, 9, 8))
    t = torch.tensor(x)
    f = torch.nn.functional
    _near(tw.lp_pool(x, kernel=3, stride=2, p=3.0), f.lp_pool2d(t, 3.0, 3, 2))
    _near(tw.lp_norm(x, p=3.0, axes=1), f.normalize(t, 3.0, 1))
    for size in (1, 4, 5):
        got = tw.local_response_norm(x, size=size, alpha=0.5, beta=0.6, k=2.0)
        _near(got, f.local_response_norm(t, size, 0.5, 0.6, 2.0))
    _near(tw.avg_pool(x, kernel=3, padding=1, divisor=5), f.avg_pool2d(t, 3, padding=1, divisor_override=5))
    _near(tw.logsumexp(x, axes=(0, 2)), torch.logsumexp(t, (0, 2)))
    over = tw.softmax(x, axis=(1, 3))
    _near(over, np.exp(x - tw.logsumexp(x, axes=(1, 3), keepdims=True)))


def test_the_maximum_of_boxes() -> None:
    x = _normal(2, 3, 7, 9)
    boxes = np.array([[1.1, 0.7, 6.4, 4.3], [-3.3, -2.6, 4.2, 3.1], [20.2, 20.3, 23.4, 24.4], [5.1, 4.2, 1.3, 1.2]])
    boxes, images = boxes.astype(np.float32), np.array([0, 1, 0, 1])
    for ratio, mode in ((0, "max_corner"), (2, "max_corner"), (0, "max"), (2, "max")):
        attrs: dict[str, Any] = {"size": (2, 3), "mode": mode, "sampling_ratio": ratio}
        _near(tw.roi_align(x, boxes, images, **attrs), tw.roi_align.reference(x, boxes, images, **attrs))
    with pytest.raises(tw.UnsupportedError, match="mode='max' has no gradient"):
        tw.roi_align.backward(_normal(4, 3, 2, 3), x, boxes, images, **attrs)


def test_a_box_far_larger_than_the_image_takes_no_longer() -> None:
    x = _normal(1, 1, 5, 5)
    boxes = np.array([[-1e9, -1e9, 1e9, 1e9], [-1e30, 0, 1e30, 4], [np.nan, 0, 1, 1]], np.float32)
    y = tw.roi_align(x, boxes, np.zeros(3, np.int64), size=2)
    assert np.all(np.abs(y[:2]) < 1e-6)
    assert np.all(np.isnan(y[2]))
