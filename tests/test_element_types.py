"""Element types beyond those that are computed in: unsigned ones of 32 and 64 bits, and those of 8 bits or fewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import safetensors
from tilework.dtypes import SMALL, SMALL_FLOATS, SMALL_INTEGERS, finfo, is_floating, named
from tilework.graph import trace

pytest.importorskip("ml_dtypes", reason="ml_dtypes has the element types that numpy has not")

_HALVES = np.arange(1 << 16, dtype=np.uint16)


def _floats() -> Any:
    """Every half float, every bfloat16, and what lies on and beside the middles of two bfloat16s."""
    high = _HALVES.astype(np.uint32) << 16
    ends = [(high | low).view(np.float32) for low in (0, 0x7FFF, 0x8000, 0x8001)]
    return np.concatenate([_HALVES.view(np.float16).astype(np.float32), *ends])


def _same(got: Any, want: Any) -> None:
    got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_array_equal(got, want)
    number = ~np.isnan(want) & (want != 0)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))


@pytest.mark.parametrize("name", SMALL)
def test_every_code_is_read_as_ml_dtypes_reads_it(name: str) -> None:
    dtype = named(name)
    bits = 8 if name.startswith("float8") else int(name[-1]) if name in SMALL_INTEGERS else 4
    codes = np.arange(1 << bits, dtype=np.uint8).view(dtype)
    for to in ("float32", "float64", "float16", "bfloat16"):
        got = tw.cast(codes, dtype=to)
        assert got.dtype == named(to)
        with np.errstate(over="ignore"):
            _same(got, codes.astype(np.float32).astype(named(to)))


@pytest.mark.parametrize("name", [n for n in SMALL_FLOATS if n != "float8_e8m0fnu"])
def test_floats_are_rounded_as_ml_dtypes_rounds_them(name: str) -> None:
    x, dtype = _floats(), named(name)
    most = float(finfo(dtype).max)
    with np.errstate(invalid="ignore", over="ignore"):
        _same(tw.cast(x, dtype=dtype, saturate=False), x.astype(dtype))
        _same(tw.cast(x, dtype=dtype), np.clip(x, -most, most).astype(dtype))
        double = x.astype(np.float64) * (1 + 2.0**-40)  # which float32 would round first
        _same(tw.cast(double, dtype=dtype), tw.cast.reference(double, dtype=dtype))


def test_powers_of_two_are_rounded_up() -> None:
    x = np.array([0, 1, 1.1, 2, 2.0**127, 3e38, 2.0**-127, 2.0**-126 * 0.9, np.inf, np.nan, -1.0], np.float32)
    got = tw.cast(x, dtype="float8_e8m0fnu").view(np.uint8)
    assert got.tolist() == [0, 127, 128, 128, 254, 254, 0, 1, 255, 255, 255]
    assert tw.cast(x, dtype="float8_e8m0fnu", saturate=False).view(np.uint8)[5] == 255


@pytest.mark.parametrize("name", SMALL_INTEGERS)
def test_small_integers_saturate_or_keep_their_low_bits(name: str) -> None:
    x = np.arange(-300, 300)
    bits, low = int(name[-1]), 0 if name[0] == "u" else -(1 << int(name[-1]) - 1)
    for source in ("int64", "float32", "int16"):
        given = x.astype(source)
        held = tw.cast(given, dtype=name).astype(np.int64)
        assert np.array_equal(held, np.clip(x, low, low + (1 << bits) - 1))
        kept = tw.cast(given, dtype=name, saturate=False).astype(np.int64)
        assert np.array_equal(kept, (x - low) % (1 << bits) + low)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_unsigned_integers_are_computed_as_numpy_does(dtype: str) -> None:
    top = int(np.iinfo(dtype).max)
    a = np.array([0, 1, 5, 7, 1 << 31, top, top - 1, 12345678], dtype)
    b = np.array([3, 2, 7, 7, 2, top, 1, 31], dtype)
    for ours, theirs in (
        (tw.add, np.add), (tw.sub, np.subtract), (tw.mul, np.multiply), (tw.div, np.floor_divide), (tw.mod, np.mod),
        (tw.pow, np.power), (tw.maximum, np.maximum), (tw.minimum, np.minimum), (tw.less, np.less),
        (tw.greater_equal, np.greater_equal), (tw.equal, np.equal), (tw.bitwise_xor, np.bitwise_xor),
        (tw.shift_left, np.left_shift), (tw.shift_right, np.right_shift),
    ):  # fmt: skip
        other = b % np.asarray(8 * a.itemsize, dtype) if theirs in (np.left_shift, np.right_shift) else b
        got, want = ours(a, other), theirs(a, other)
        assert got.dtype == want.dtype
        assert np.array_equal(got, want), ours.name
    assert np.array_equal(tw.add(a, 3), a + np.asarray(3, dtype))
    assert tw.reduce_min(a) == 0
    assert tw.reduce_prod(b, axes=0) == np.prod(b, dtype=dtype)
    assert tw.argmax(a) == 5
    assert np.array_equal(tw.cumsum(b), np.cumsum(b, dtype=dtype))
    assert np.array_equal(tw.top_k(a, k=3)[0], [top, top - 1, 1 << 31])
    assert np.array_equal(tw.scatter_elements(a, np.array([0]), b[:1], reduction="max")[:1], b[:1])
    assert np.array_equal(tw.sign(a), np.minimum(a, 1))


@pytest.mark.parametrize("dtype", ["uint32", "uint64", "float8_e5m2", "int4", "uint2", "float4_e2m1fn"])
def test_elements_of_any_type_are_moved(dtype: str) -> None:
    x = (np.arange(24) % 4).reshape(2, 3, 4).astype(named(dtype))
    moved = tw.transpose(x, (2, 0, 1))
    places = np.array([2, 0])
    for got, want in (
        (tw.concat([moved, moved], axis=1), np.concatenate([moved, moved], 1)),
        (tw.expand(x[:, :1], shape=(2, 5, 4)), np.broadcast_to(x[:, :1], (2, 5, 4))),
        (tw.gather(x, places, axis=1), x[:, places]),
        (tw.where(x[0].astype(np.float32) > 1, x[0], x[1]), np.where(x[0].astype(np.float32) > 1, x[0], x[1])),
        (tw.pad(x, pads=((0, 0), (1, 0), (0, 2)), value=1), np.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=1)),
        (tw.reshape(x, (6, 4)), x.reshape(6, 4)),
    ):
        assert got.dtype == want.dtype
        assert np.array_equal(got.astype(np.float64), want.astype(np.float64))
    net = trace(lambda a: tw.cast(tw.concat([a, a], axis=0), dtype="float32"), x).compile()
    assert np.array_equal(net(x), np.concatenate([x, x]).astype(np.float32))


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "float64"])
@pytest.mark.parametrize("n", [127, 1024, 2051])
def test_long_rows_are_moved_wherever_they_lie(dtype: str, n: int) -> None:
    x = (np.arange(3 * n) % 100).reshape(3, n).astype(dtype)
    for skipped in (0, 1, 5, 16, 63):
        first = np.full((3, skipped), 7, dtype)
        assert np.array_equal(tw.concat([first, x], axis=1), np.concatenate([first, x], axis=1))
        room = np.full(skipped + 3 * n + 64, 9, dtype)
        for given in (x[1], x[:, :1]):
            tw.expand(given, shape=(3, n), out=room[skipped : skipped + 3 * n].reshape(3, n))
            assert np.array_equal(room[skipped : skipped + 3 * n].reshape(3, n), np.broadcast_to(given, (3, n)))
            assert (room[:skipped] == 9).all()
            assert (room[skipped + 3 * n :] == 9).all()


def test_nothing_is_computed_in_small_types() -> None:
    for name in SMALL:
        x = np.ones(3, named(name))
        assert not is_floating(x.dtype)
        for call in (lambda: tw.add(x, x), lambda: tw.relu(x), lambda: tw.reduce_sum(x), lambda: tw.matmul(x, x)):  # noqa: B023
            with pytest.raises(tw.DTypeError, match=name):
                call()


def test_a_model_of_eight_bits_is_stored_and_shared() -> None:
    x = tw.cast(np.linspace(-4, 4, 9, dtype=np.float32), dtype="float8_e4m3fn")
    kept, _ = safetensors.loads(safetensors.dumps({"x": x, "n": np.arange(3, dtype=np.uint64)}))
    assert kept["x"].dtype == x.dtype
    assert kept["x"].tobytes() == x.tobytes()
    assert kept["n"].dtype == np.uint64
    torch = pytest.importorskip("torch", reason="torch is an extra that the tests do not bring")
    pytest.importorskip("tilework.interop.torch")
    back = torch.ops.tilework.cast(torch.from_numpy(x.view(np.uint8)).view(torch.float8_e4m3fn), dtype=torch.float32)
    assert back.tolist() == np.linspace(-4, 4, 9).tolist()
