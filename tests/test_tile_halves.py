"""Products of float16 on tiles that take it as it is, in a process of its own that asks for it.

A hypervisor may hide that its CPU multiplies float16 in tiles: only that process finds out, and ends by SIGILL where it
does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilework as tw

pytestmark = pytest.mark.skipif("amx" not in tw.tiers(), reason="no tiles on this CPU")

THREADS = (1, 2, 3, 8)
EPS = 2.0**-24

WORKER = """
import sys, numpy as np, tilework as tw
assert tw.isa() == "amx"
with np.load(sys.argv[1]) as cases:
    given = {name: cases[name] for name in cases.files}
found = {}
for name in sorted({n.split(".")[0] for n in given}):
    a, b = given[name + ".a"], given[name + ".b"]
    calls = {"plain": lambda: tw.matmul(a, b), "turned": lambda: tw.matmul(a, np.asfortranarray(b))}
    calls["down"] = lambda: tw.matmul(np.asfortranarray(a), np.asfortranarray(b))
    if a.ndim == 2:
        bias = np.linspace(-1, 1, b.shape[-1]).astype(np.float16)
        layer = tw.linear.prepare(w=np.ascontiguousarray(b.T), b=bias, activation="relu")
        calls["linear"] = lambda: tw.linear(a, b.T, bias, activation="relu")
        calls["layer"] = lambda: layer(a)
        fixed = tw.matmul.prepare(b=b)
        calls["fixed"] = lambda: fixed(a)
    for kind, call in calls.items():
        for threads in (1, 2, 3, 8):
            with tw.threads(threads), tw.profile() as ran:
                found[f"{name}.{kind}.{threads}"] = np.asarray(call())
            assert next(iter(ran)).kernel == "tiles of f16", (name, kind, str(ran))
    tw.set_isa("avx512")
    found[name + ".below.1"] = np.asarray(tw.matmul(a, b))
    tw.set_isa("amx")
np.savez(sys.argv[2], **found)
"""

SHAPES = [(64, 64, 64), (128, 160, 128), (130, 513, 700), (300, 200, 1111), (48, 333, 2100)]


def operands() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    cases = {}
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16)

    for i, (m, n, k) in enumerate(SHAPES):
        cases[f"normal{i}"] = normal(m, k), normal(k, n)
        sparse = rng.integers(-3, 4, (k, n)) * (rng.random((k, n)) < 0.02)
        cases[f"whole{i}"] = rng.integers(-3, 4, (m, k)).astype(np.float16), sparse.astype(np.float16)
    cases["batch"] = normal(3, 70, 90), normal(3, 90, 100)
    # One term each: every product, denormal numbers among them, is rounded once.
    one = np.zeros((64, 64), np.float16)
    one[np.arange(64), np.arange(64)] = 2.0 ** rng.integers(-24, 11, 64)
    cases["denormal"] = one, (normal(64, 128) * 2.0 ** rng.integers(-24, 4, (64, 128))).astype(np.float16)
    tiny = np.full((64, 64), 2.0**-24, np.float16)
    cases["tiny"] = tiny, np.full((64, 64), 1024, np.float16)
    cases["large"] = np.full((64, 64), 60000, np.float16), normal(64, 96)
    for value in (np.inf, -np.inf, np.nan):
        for side in "ab":
            a, b = normal(200, 300), normal(300, 260)
            (a if side == "a" else b)[37, 77] = value
            cases[f"hostile{value}{side}"] = a, b
    return cases


CASES = operands()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("halves")
    np.savez(folder / "in.npz", **{f"{name}.{x}": v for name, pair in CASES.items() for x, v in zip("ab", pair)})  # noqa: B905
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder / "in.npz"), str(folder / "out.npz")],
        env=os.environ | {"TILEWORK_ISA": "amx_fp16"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == -signal.SIGILL:
        pytest.skip("tiles of this CPU do not multiply float16")
    assert done.returncode == 0, done.stderr
    with np.load(Path(folder / "out.npz")) as results:
        return {name: results[name] for name in results.files}


def products(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The exact product, and that of absolute values."""
    a, b = (x.astype(np.float64) for x in CASES[name])
    return a @ b, np.abs(a) @ np.abs(b)


def kinds(found: dict[str, np.ndarray], name: str) -> list[str]:
    """The calls of a case that are products alone."""
    ran = {n.split(".")[1] for n in found if n.startswith(name + ".")}
    return sorted(ran - {"linear", "layer"})


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("normal") or n == "batch"])
def test_sums_are_as_near_as_floats(found: dict[str, np.ndarray], name: str) -> None:
    exact, size = products(name)
    allowed = 4 * EPS * size + np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) / 2
    for kind in kinds(found, name):
        assert np.all(np.abs(found[f"{name}.{kind}.1"] - exact) <= allowed), kind


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("normal")])
def test_bias_and_activation_come_before_the_one_rounding(found: dict[str, np.ndarray], name: str) -> None:
    exact, size = products(name)
    exact = np.maximum(exact + np.linspace(-1, 1, exact.shape[1]).astype(np.float16).astype(np.float64), 0)
    allowed = 4 * EPS * (size + 1) + np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64) / 2
    for kind in ("linear", "layer"):
        assert np.all(np.abs(found[f"{name}.{kind}.1"] - exact) <= allowed), kind


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("whole")] + ["denormal", "tiny"])
def test_whole_numbers_and_single_products_are_exact(found: dict[str, np.ndarray], name: str) -> None:
    with np.errstate(over="ignore"):
        want = products(name)[0].astype(np.float16)
    for kind in kinds(found, name):
        np.testing.assert_array_equal(found[f"{name}.{kind}.1"], want, err_msg=kind)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("hostile") or n == "large"])
def test_infinities_and_nan_are_those_of_the_formula(found: dict[str, np.ndarray], name: str) -> None:
    want = found[name + ".below.1"]
    for kind in kinds(found, name):
        got = found[f"{name}.{kind}.1"]
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=kind)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=0.1, err_msg=kind)


@pytest.mark.parametrize("name", list(CASES))
def test_threads_do_not_change_bits(found: dict[str, np.ndarray], name: str) -> None:
    for kind in {n.split(".")[1] for n in found if n.startswith(name + ".")} - {"below"}:
        first = found[f"{name}.{kind}.1"]
        for threads in THREADS[1:]:
            np.testing.assert_array_equal(found[f"{name}.{kind}.{threads}"].view(np.uint16), first.view(np.uint16))
