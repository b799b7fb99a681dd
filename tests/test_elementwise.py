"""Elementwise functions over the float32 numbers: all of them in the slow run, one in 211 otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

import tilework as tw
from tilework.dtypes import named
from tilework.testing.compare import spacing

Array = npt.NDArray[Any]

_BLOCK = 1 << 22


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * special.erfc(-x / math.sqrt(2)))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Name, function, float64 reference and the ULP of DESIGN: what each op promises over all of float32.
FUNCTIONS: list[tuple[str, Callable[[Array], Array], Callable[[Array], Array], float]] = [
    ("exp", tw.exp, np.exp, 1),
    ("log", tw.log, np.log, 1),
    ("tanh", tw.tanh, np.tanh, 1),
    ("erf", tw.erf, special.erf, 1),
    ("sigmoid", tw.sigmoid, special.expit, 2),
    ("gelu", tw.gelu, _gelu, 4),
    ("gelu_tanh", lambda x: tw.gelu(x, approximate="tanh"), _gelu_tanh, 4),
    ("sqrt", tw.sqrt, np.sqrt, 0.5),
    ("rsqrt", tw.rsqrt, lambda x: 1 / np.sqrt(x), 1.5),
]


def _every(step: int) -> Iterator[Array]:
    """One in ``step`` of all float32 bit patterns, in blocks."""
    for start in range(0, 1 << 32, step * _BLOCK):
        bits = np.arange(start, min(start + step * _BLOCK, 1 << 32), step, dtype=np.uint64)
        yield bits.astype(np.uint32).view(np.float32)


def _assert_within(call: Callable[[Array], Array], truth: Callable[[Array], Array], ulp: float, step: int) -> None:
    """Asserts that ``call`` is within ``ulp`` of ``truth`` on every tier."""
    for x in _every(step):
        with np.errstate(all="ignore"):
            wide = truth(x.astype(np.float64))
            want = wide.astype(np.float32)
        for tier in tw.tiers():
            tw.set_isa(tier)
            got = call(x)
            other = np.flatnonzero((got != want) & ~(np.isnan(got) & np.isnan(want)))
            with np.errstate(all="ignore"):
                apart = np.abs(got[other].astype(np.float64) - wide[other]) / spacing(wide[other], np.float32)
            apart = np.where(np.isnan(apart), np.inf, apart)
            if np.any(apart > ulp):
                worst = other[int(np.argmax(apart))]
                pytest.fail(
                    f"tier {tier}: {int(np.sum(apart > ulp))} of {x.size} are wrong; worst at x={x[worst]!r}: got "
                    f"{got[worst]!r}, want {want[worst]!r}, {np.max(apart):.4g} ULP apart, allowed {ulp}"
                )


@pytest.fixture(autouse=True)
def _same_tier_afterwards() -> Iterator[None]:
    before = tw.isa()
    yield
    tw.set_isa(before)


@pytest.mark.parametrize(("name", "call", "truth", "ulp"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_functions_keep_their_ulp_on_a_sample_of_float32(
    name: str, call: Callable[[Array], Array], truth: Callable[[Array], Array], ulp: float
) -> None:
    _assert_within(call, truth, ulp, step=211)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "call", "truth", "ulp"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_functions_keep_their_ulp_on_all_of_float32(
    name: str, call: Callable[[Array], Array], truth: Callable[[Array], Array], ulp: float
) -> None:
    _assert_within(call, truth, ulp, step=1)


def test_roots_are_rounded_as_numpy_rounds_them() -> None:
    mantissas = np.arange(1 << 24, dtype=np.uint32)  # of two exponents: a root knows of no more
    with np.errstate(all="ignore"):
        for exponent in (126, 30, 0, 253):
            x = (mantissas + np.uint32(exponent << 23)).view(np.float32)
            x = x[: x.size // (1 if exponent in (126, 0) else 256)]
            assert np.array_equal(tw.sqrt(x), np.sqrt(x), equal_nan=True)
        x = np.float32([0, -0.0, np.inf, -np.inf, np.nan, -1, 1e-45, 4])
        assert np.array_equal(tw.sqrt(x), np.sqrt(x), equal_nan=True)
        assert np.array_equal(tw.rsqrt(x)[[0, 1, 2, 3, 4, 5, 7]], 1 / np.sqrt(x[[0, 1, 2, 3, 4, 5, 7]]), equal_nan=True)
        assert np.array_equal(np.signbit(tw.sqrt(x[:2])), [False, True])


@pytest.mark.parametrize("offset", [0, 4, 16, 28, 60])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 32, 100, 4097])
def test_operands_may_lie_anywhere_in_a_line(offset: int, n: int) -> None:
    line = np.zeros(n * 4 + 128, np.uint8)
    at = -line.ctypes.data % 64 + offset
    a = line[at : at + n * 4].view(np.float32)
    a[:] = np.arange(n) + 1
    for b in (np.arange(n, dtype=np.float32), a[::-1].copy()):
        assert np.array_equal(tw.add(a, b), a + b)
        assert np.array_equal(tw.sub(b, a), b - a)
        twice = np.stack([a, a + 1])
        assert np.array_equal(tw.mul(twice, a), twice * a)
        assert np.array_equal(tw.div(a, b + 1), a / (b + 1))
    want = a * a
    assert np.array_equal(tw.mul(a, a, out=a), want)


def test_arithmetic_keeps_the_sign_of_zero() -> None:
    zeros = np.array([0.0, -0.0, 1.0, -1.0], np.float32)
    a, b = np.meshgrid(zeros, zeros)
    for call, truth in ((tw.add, np.add), (tw.sub, np.subtract), (tw.mul, np.multiply), (tw.div, np.divide)):
        with np.errstate(all="ignore"):
            want = truth(a, b)
        number = ~np.isnan(want)
        assert np.array_equal(np.signbit(call(a, b))[number], np.signbit(want)[number])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_number_zero_is_zero_beside_16_bits(dtype: str) -> None:
    x = np.linspace(-2, 2, 9).astype(named(dtype))
    assert np.array_equal(tw.mul(x, 0.0), np.zeros(9))
    assert np.array_equal(tw.add(x, 0.0), x)
    assert np.array_equal(tw.maximum(x, 0.0), tw.relu(x))


def test_integers_of_every_width_wrap_and_compare() -> None:
    for name in ("int8", "uint8", "int16", "uint16", "int32", "int64"):
        low, high = np.iinfo(name).min, np.iinfo(name).max
        x = np.array([low, low + 1, 0, 1, 7, high - 1, high], name)
        a, b = np.repeat(x, 7), np.tile(x, 7)
        with np.errstate(all="ignore"):
            for op, function in (
                (tw.add, np.add),
                (tw.sub, np.subtract),
                (tw.mul, np.multiply),
                (tw.maximum, np.maximum),
            ):
                assert np.array_equal(op(a, b), function(a, b)), (op.name, name)
            quotient = [
                int(p) // int(q) + (int(p) % int(q) != 0 and (p < 0) != (q < 0)) if q else 0
                for p, q in zip(a, b, strict=True)
            ]
        assert np.array_equal(tw.div(a, b), np.array(quotient).astype(name)), name
        assert np.array_equal(tw.less(a, b), a < b)
        assert np.array_equal(tw.greater_equal(a, b), a >= b)
        assert np.array_equal(tw.equal(a, b), a == b)


def test_zeros_have_the_sign_zero() -> None:
    for name in ("float16", "float32", "float64"):
        assert np.array_equal(tw.sign(np.array([0.0, -0.0, 1e-7, -1e-7], name)), [0, 0, 1, -1])
