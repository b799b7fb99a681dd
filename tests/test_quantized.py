"""What is special about 8-bit arithmetic: exact at the ends of its ranges, and what other libraries compute."""

from __future__ import annotations

import numpy as np
import pytest

import tilework as tw
from one_node import onnxruntime_of


@pytest.mark.parametrize(
    ("a", "b", "most"), [("int8", "int8", 131071), ("uint8", "int8", 65793), ("uint8", "uint8", 33025)]
)
def test_the_longest_sums_of_extreme_values_are_exact(a: str, b: str, most: int) -> None:
    ends = {"int8": (-128, 127), "uint8": (255, 0)}
    for left in ends[a]:
        for right in ends[b]:
            x, y = np.full((2, most), left, a), np.full((most, 3), right, b)
            assert np.all(tw.matmul_integer(x, y) == left * right * most)
    with pytest.raises(tw.ShapeError, match=f"K={most + 1} terms could leave int32; want {most} or fewer"):
        tw.matmul_integer(np.zeros((1, most + 1), a), np.zeros((most + 1, 1), b))


@pytest.mark.parametrize("a", ["int8", "uint8"])
@pytest.mark.parametrize("b", ["int8", "uint8"])
def test_every_product_of_two_bytes_is_exact(a: str, b: str) -> None:
    left = np.arange(256, dtype=np.uint8).view(a).reshape(-1, 1)
    right = np.arange(256, dtype=np.uint8).view(b).reshape(1, -1)
    assert np.array_equal(tw.matmul_integer(left, right), left.astype(np.int32) * right.astype(np.int32))


@pytest.mark.parametrize("a", ["int8", "uint8"])
@pytest.mark.parametrize("b", ["int8", "uint8"])
@pytest.mark.parametrize(("m", "k", "n"), [(176, 128, 160), (161, 64, 128), (192, 200, 300), (16, 64, 130)])
def test_large_products_are_exact_however_their_operands_lie(a: str, b: str, m: int, k: int, n: int) -> None:
    random = np.random.default_rng(0)
    left = random.integers(0, 256, (m, 2 * k), np.uint8).view(a)
    right = random.integers(0, 256, (k, 2 * n), np.uint8).view(b)
    zero = random.integers(0, 256, n, np.uint8).view(b)
    for x in (left[:, :k].copy(), left[:, k:], np.asfortranarray(left[:, :k]), np.broadcast_to(left[:1, :k], (m, k))):
        for y in (right[:, :n].copy(), right[:, n:], np.asfortranarray(right[:, :n])):
            wide = x.astype(np.int32)
            assert np.array_equal(tw.matmul_integer(x, y), wide @ y.astype(np.int32))
            assert np.array_equal(tw.matmul_integer(x, y, None, zero), wide @ (y.astype(np.int32) - zero))


def test_linear_int8_without_activation_is_its_definition_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((70, 900)).astype(np.float32)
    w, scale = random.integers(-128, 128, (50, 900), np.int8), random.random(50).astype(np.float32)
    got = tw.linear_int8(x, w, scale)
    assert np.array_equal(got, tw.linear_int8.reference(x, w, scale))
    assert np.array_equal(got, tw.linear_int8.prepare(w=w, w_scale=scale)(x))
    exact = x.astype(np.float64) @ (w * scale[:, None].astype(np.float64)).T
    assert np.max(np.abs(got - exact)) < 0.01 * np.max(np.abs(exact))


# ---------------------------------------------------------------------------------------------- ONNX Runtime


def test_results_are_those_of_onnx_runtime() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, (7, 40), np.uint8), random.integers(-60, 61, (40, 9), np.int8)
    az, bz = np.array(131, np.uint8), np.array(-3, np.int8)
    (want,) = onnxruntime_of("MatMulInteger", {"a": a, "b": b, "az": az, "bz": bz}, ["y"])
    assert np.array_equal(tw.matmul_integer(a, b, az, bz), want)

    x = (random.standard_normal((4, 6, 5)) * 30).astype(np.float32)
    scale, zero = (random.random(6) + 0.1).astype(np.float32), random.integers(-128, 128, 6, np.int8)
    (want,) = onnxruntime_of("QuantizeLinear", {"x": x, "s": scale, "z": zero}, ["y"], axis=1)
    q = tw.quantize_linear(x, scale, zero)
    assert np.array_equal(q, want)
    (want,) = onnxruntime_of("DequantizeLinear", {"x": q, "s": scale, "z": zero}, ["y"], axis=1)
    assert np.array_equal(tw.dequantize_linear(q, scale, zero), want)
    for got, wanted in zip(
        tw.dynamic_quantize_linear(x), onnxruntime_of("DynamicQuantizeLinear", {"x": x}, ["q", "s", "z"]), strict=True
    ):
        assert np.array_equal(got, wanted)

    one, scales = np.array(0.02, np.float32), (np.array(0.11, np.float32), np.array(0.07, np.float32))
    inputs = {"a": a, "as": scales[0], "az": az, "b": b, "bs": scales[1], "bz": bz, "ys": one, "yz": az}
    (want,) = onnxruntime_of("QLinearMatMul", inputs, ["y"])
    got = tw.qlinear_matmul(a, scales[0], az, b, scales[1], bz, one, az)
    assert (
        np.max(np.abs(got.astype(int) - want)) <= 1
    )  # a multiplication by 1 / y_scale there: halves may fall otherwise


@pytest.mark.parametrize("with_zeros", [False, True])
def test_linear_int4_is_matmul_nbits_of_onnx_runtime(with_zeros: bool) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 96)).astype(np.float32)
    w, scales = random.integers(0, 256, (10, 3, 16), np.uint8), random.random((10, 3)).astype(np.float32)
    zeros = random.integers(0, 256, (10, 2), np.uint8) if with_zeros else None
    inputs = {"x": x, "w": w, "s": scales.reshape(-1), "z": None if zeros is None else zeros.reshape(-1)}
    shape = {"K": 96, "N": 10, "bits": 4, "block_size": 32}
    (want,) = onnxruntime_of("MatMulNBits", inputs, ["y"], domain="com.microsoft", **shape)
    got = tw.linear_int4(x, w, scales, zeros)
    assert np.allclose(got, want, rtol=0, atol=1e-5 * np.max(np.abs(want)))


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
def test_convolutions_are_those_of_onnx_runtime(x_type: str) -> None:
    random = np.random.default_rng(0)
    limits = np.iinfo(x_type)
    x = random.integers(limits.min, limits.max + 1, (2, 6, 11, 14)).astype(x_type)
    # Halves: without VNNI, sums of two products saturate there, and the answer is another.
    w = random.integers(-64, 65, (8, 3, 3, 3), np.int8)
    xz, wz = np.array(37, x_type), np.zeros(8, np.int8)
    ours = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
    theirs = {"strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 2], "group": 2}
    if x_type == "uint8":  # the other has no kernel there
        (want,) = onnxruntime_of("ConvInteger", {"x": x, "w": w, "xz": xz}, ["y"], **theirs)
        assert np.array_equal(tw.conv_integer(x, w, xz, **ours), want)

    xs, ys = np.array(0.11, np.float32), np.array(3.7, np.float32)
    ws, b = (random.random(8) * 0.1 + 0.01).astype(np.float32), random.integers(-999, 1000, 8, np.int32)
    inputs = {"x": x, "xs": xs, "xz": xz, "w": w, "ws": ws, "wz": wz, "ys": ys, "yz": xz, "b": b}
    (want,) = onnxruntime_of("QLinearConv", inputs, ["y"], **theirs)
    got = tw.qlinear_conv(x, xs, xz, w, ws, wz, ys, xz, b, **ours)
    assert np.max(np.abs(got.astype(int) - want)) <= 1  # halves may fall otherwise
    assert np.mean(got == want) > 0.99


def test_conv_int8_without_activation_is_its_definition_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 20, 17, 30)).astype(np.float32)
    w, scale = random.integers(-127, 128, (13, 20, 3, 3), np.int8), random.random(13).astype(np.float32)
    got = tw.conv_int8(x, w, scale, padding=1)
    assert np.array_equal(got, tw.conv_int8.reference(x, w, scale, padding=1))
    assert np.array_equal(got, tw.conv_int8.prepare(w=w, w_scale=scale, padding=1)(x))
    exact = tw.conv.reference(x, w * scale[:, None, None, None], padding=1)
    assert np.max(np.abs(got - exact)) < 0.02 * np.max(np.abs(exact))
