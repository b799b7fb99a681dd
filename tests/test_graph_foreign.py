"""Kernels of the user's in C and in OpenCL, and numbers that every run is given."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw

INCLUDE = Path(__file__).parents[1] / "csrc" / "include"

C = """
#include <tilework/kernel.h>
int32_t scaled(const DLTensor* in, int32_t n_in, DLTensor* out, int32_t n_out, const double* by, int32_t n) {
    const double* x = in[0].data;
    double* y = out[0].data;
    int64_t count = 1;
    for (int d = 0; d < in[0].ndim; ++d) count *= in[0].shape[d];
    if (by[0] == 0) return 7;
    for (int64_t i = 0; i < count; ++i) y[i] = by[0] * x[i];
    return 0;
}
"""
OPENCL = """
kernel void scaled(global const float* x, long x_at, global float* y, long y_at, float by, long count) {
    long i = get_global_id(0);
    if (i < count) y[y_at + i] = by * x[x_at + i];
}
"""


def shaped(x: Any, *, by: float) -> Any:
    return x.shape


def scaled_kernel() -> tw.Kernel:
    made = tw.Kernel("scaled", ("x",), shaped, numbers=("by",))
    made.backward(lambda dy, x, *, by: made(dy, by=by))
    return made


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> tw.Kernel:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "scaled.c").write_text(C)
    built = folder / "scaled.so"
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{INCLUDE}", str(folder / "scaled.c"), "-o", built], check=True)
    return scaled_kernel().c(ctypes.CDLL(str(built)).scaled)


def net(scaled: tw.Kernel) -> Any:
    return lambda x: tw.reduce_sum(tw.tanh(scaled(x.transpose(), by=3.0) + 1.0) * 2.0)


def test_a_c_function_is_an_op(scaled: tw.Kernel, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5))
    np.testing.assert_array_equal(scaled(x[:, ::2], by=0.5), x[:, ::2] / 2)
    f = net(scaled)
    exe = tw.trace(tw.value_and_grad(f), x).compile()
    value, slope = exe(x)
    np.testing.assert_allclose(value, (2 * np.tanh(3 * x + 1)).sum())
    np.testing.assert_allclose(slope, 6 / np.cosh(3 * x + 1) ** 2)
    exe.save(tmp_path / "scaled.tw")
    np.testing.assert_array_equal(tw.load(tmp_path / "scaled.tw")(x)[1], slope)


def test_what_a_c_function_says_is_raised(scaled: tw.Kernel) -> None:
    x = np.ones((2, 2))
    exe = tw.trace(lambda x: scaled(x, by=0.0) + 1.0, x).compile()
    for run in (lambda: exe(x), lambda: scaled(x, by=0.0)):
        with pytest.raises(tw.Error, match="scaled: the C function returned 7; want 0"):
            run()
    with pytest.raises(tw.AttrTypeError, match="scaled: by is a str; want a number"):
        scaled(x, by="three")
    with pytest.raises(tw.AttrError, match="0 is not the address of a C function"):
        tw.Kernel("nothing", ("x",), shaped).c(0)
    with pytest.raises(tw.UnsupportedError, match="nothing: has nothing for the CPU"):
        tw.Kernel("nothing", ("x",), lambda x: x.shape)(x)
    with pytest.raises(tw.AttrError, match="want an identifier"):
        tw.Kernel("no name", ("x",), shaped)


@pytest.mark.opencl
def test_opencl_source_is_an_op() -> None:
    if not tw.devices():
        pytest.skip("no OpenCL device")
    scaled = scaled_kernel().opencl(OPENCL)
    x = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    xd = tw.to_device(x, "opencl")
    np.testing.assert_allclose(tw.to_host(scaled(xd[1:], by=2.0)), 2 * x[1:])
    exe = tw.trace(tw.grad(net(scaled)), xd).compile(device="opencl")
    np.testing.assert_allclose(tw.to_host(exe(xd)), 6 / np.cosh(3 * x + 1) ** 2, rtol=1e-5, atol=1e-6)
    with pytest.raises(tw.UnsupportedError, match="scaled: has nothing for the CPU"):
        scaled(x, by=2.0)
    with pytest.raises(tw.DeviceError, match="does not build"):
        tw.Kernel("torn", ("x",), lambda x: x.shape).opencl("kernel void torn(")(xd)


# -------------------------------------------------------------------------------------------------------- numbers


def dropped(x: Any, numbers: dict[str, Any]) -> Any:
    y = tw.dropout(x * 2.0, p=0.5, seed=3, offset=numbers["offset"])
    return tw.reduce_sum(tw.elu(y, alpha=numbers["alpha"]))


def test_a_number_is_given_to_every_run(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((4, 50))
    exe = tw.trace(tw.value_and_grad(dropped), x, {"offset": tw.number(0), "alpha": tw.number(1.0)}).compile()
    exe.save(tmp_path / "numbers.tw")
    again = tw.load(tmp_path / "numbers.tw")
    seen = set()
    for offset, alpha in ((0, 1.0), (7, 1.0), (7, 0.25), (0, 1.0)):
        numbers = {"offset": offset, "alpha": alpha}
        value, slope = exe(x, numbers)
        np.testing.assert_array_equal(value, tw.value_and_grad(dropped)(x, numbers)[0])
        np.testing.assert_array_equal(again(x, numbers)[1], slope)
        seen.add(float(value))
    assert len(seen) == 3


def test_numbers_are_checked() -> None:
    x = np.ones(4)
    exe = tw.trace(dropped, x, {"offset": tw.number(0), "alpha": tw.number(1.0)}).compile()
    with pytest.raises(tw.DTypeError, match=r"numbers.offset: is 0.5; want an int"):
        exe(x, {"offset": 0.5, "alpha": 1.0})
    with pytest.raises(tw.AttrError, match="dropout: offset=-1"):
        exe(x, {"offset": -1, "alpha": 1.0})
    with pytest.raises(tw.DTypeError, match="number: value is a str"):
        tw.number("much")  # type: ignore[arg-type]
    with pytest.raises(tw.AttrError, match="elu: alpha is the number number"):
        tw.trace(lambda x: tw.elu(x, alpha=tw.number(1.0)), x)
