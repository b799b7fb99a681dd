"""Matrix products on an OpenCL device: are they right, how fast beside torch on the same card, which blocking is best.

Sections of opencl_first_contact.py. A product is timed by the device's own clock (events, kernels alone) and beside
torch by a stopwatch over many enqueued calls, ours and theirs in turn, medians of both. What is wrong is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import tilework as tw
from opencl_timing import Timed, beside, torch_beside
from tilework.backends import opencl_gemm, opencl_tiles
from tilework.backends.opencl_tiles import Tiles, fma, matrix, warpgroups

if TYPE_CHECKING:
    from opencl_first_contact import Probe

Row = tuple[str, str]


def operand(
    rng: Any, rows: int, columns: int, dtype: Any, *, transposed: bool = False, ragged: bool = False
) -> tuple[Any, Any]:
    """(numpy view, a function that makes the device view) of a matrix whose rows do, or do not, begin at 16 bytes."""
    dtype = np.dtype(dtype)
    if transposed:
        rows, columns = columns, rows
    shape = (rows, columns + (1 if ragged else -columns % 16))
    if dtype.kind in "iu":
        whole = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape, dtype)
    else:
        whole = rng.standard_normal(shape, np.float32).astype(dtype)

    def view(x: Any) -> Any:
        return x[:, :columns].T if transposed else x[:, :columns]

    return view(whole), lambda queue: view(tw.to_device(whole, queue.cl))


def relative_error(got: Any, a: Any, b: Any) -> float:
    """||got - a b|| / ||a b|| of some rows of a, in float64."""
    want = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


def _take(timed: Timed, core: str, products: int) -> None:
    """Makes the device take a core, whatever it would take by itself."""
    timed.device.tensor, timed.device.warpgroups, timed.device.products = core in ("T", "W"), core == "W", products


def _multiply(timed: Timed, a: Any, b: Any, y: Any) -> None:
    opencl_gemm.multiply(timed.queue, a, b, y)


def _result_dtype(dtype: Any) -> Any:
    return np.int32 if np.dtype(dtype).kind in "iu" else dtype


# Storage, precision, core, and the largest relative error that rounding explains.
KINDS = (
    ("float32", 0, "S", 2e-6),
    ("float32", 3, "T", 2e-6),
    ("float32", 1, "T", 1e-3),
    ("float64", 0, "S", 1e-14),
    ("float16", 0, "S", 5e-4),
    ("float16", 0, "T", 5e-4),
    ("float16", 0, "W", 5e-4),
    ("bfloat16", 0, "T", 4e-3),
    ("bfloat16", 0, "W", 4e-3),
    ("int8", 0, "S", 0.0),
    ("int8", 0, "T", 0.0),
    ("int8", 0, "W", 0.0),
    ("uint8", 0, "W", 0.0),
)


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _correctness(name: str, products: int, core: str, limit: float) -> Callable[[Probe], Iterator[Row]]:
    """A section: ragged shapes in one storage and core against float64 on the host, each twice."""

    def attempt(timed: Timed, rng: Any, small: bool) -> str:
        dtype = _dtype(name)
        worst, where = 0.0, ""
        turns = [(False, False, False), (False, True, True)]
        shapes = [((70, 45, 50), turns), ((129, 65, 200), turns)]
        if not small:
            turns = [*turns, (True, False, False), (True, True, True), (False, True, False)]
            shapes = [((70, 45, 50), turns[:2]), ((1541, 331, 2054), turns), ((1024, 2048, 1536), turns[:1])]
        for (m, k, n), ways in shapes:
            for a_turned, b_turned, ragged in ways:
                a, to_a = operand(rng, m, k, dtype, transposed=a_turned, ragged=ragged)
                b, to_b = operand(rng, k, n, dtype, transposed=b_turned, ragged=ragged)
                at = str((m, k, n, "a.T" if a_turned else "a", "b.T" if b_turned else "b", "ragged" if ragged else ""))
                try:
                    there = to_a(timed.queue), to_b(timed.queue)
                    y, again = (timed.empty(m, n, _result_dtype(dtype)) for _ in range(2))
                    _multiply(timed, *there, y)
                    _multiply(timed, *there, again)
                    got = tw.to_host(y)
                except tw.Error as failure:
                    return f"FAILED at {at}: {failure}"
                error = relative_error(got, a, b)
                if got.tobytes() != tw.to_host(again).tobytes():
                    return f"WRONG: two runs differ at {at}"
                if not error <= worst:
                    worst, where = error, at
        return f"{'right' if worst <= limit else 'WRONG'}, worst error {worst:.2g} {where}"

    def section(probe: Probe) -> Iterator[Row]:
        timed = Timed(probe.device)
        _take(timed, core, products)
        rng = np.random.default_rng(1)
        yield f"{name}, core {core}, products {products}", probe.outcome(lambda: attempt(timed, rng, probe.small), 1500)

    return section


# ---------------------------------------------------------------------------------------- beside torch, rows 2 to 8


def rows(probe: Probe) -> Iterator[Row]:
    """Rows 2, 3, 4, 6, 7 and 8 of the table that a release is measured by."""
    timed = Timed(probe.device)
    torch = torch_beside()
    rng = np.random.default_rng(2)
    big = 192 if probe.small else 8192
    half = 128 if probe.small else 4096
    cases: list[tuple[str, str, int, str, tuple[int, int, int], bool]] = [
        ("row 2 float32 strict", "float32", 0, "S", (half, half, half), False),
        ("row 2 float32 strict", "float32", 0, "S", (big, big, big), False),
        ("row 2 float32 strict, b transposed", "float32", 0, "S", (half, half, half), True),
        ("row 3 float32 by three products", "float32", 3, "T", (half, half, half), False),
        ("row 3 float32 by three products", "float32", 3, "T", (big, big, big), False),
        ("row 4 float16", "float16", 0, "W", (half, half, half), False),
        ("row 4 float16", "float16", 0, "W", (big, big, big), False),
        ("row 4 float16, b transposed", "float16", 0, "W", (half, half, half), True),
        ("row 4 bfloat16", "bfloat16", 0, "W", (half, half, half), False),
        ("row 6 float16 skinny", "float16", 0, "W", (16, half, 4 * half), False),
        ("row 6 float16 skinny", "float16", 0, "W", (64, half, 4 * half), False),
        ("row 7 int8, b transposed", "int8", 0, "W", (big, big, big), True),
        ("row 8 int8 by dp4a, b transposed", "int8", 0, "S", (half, half, half), True),
        ("float64", "float64", 0, "S", (half, half, half), False),
    ]
    for label, name, products, core, (m, k, n), turned in cases:
        dtype = _dtype(name)
        _take(timed, core, products)

        def attempt(
            dtype: Any = dtype, m: int = m, k: int = k, n: int = n, turned: bool = turned, name: str = name
        ) -> str:
            a, to_a = operand(rng, m, k, dtype)
            b, to_b = operand(rng, k, n, dtype, transposed=turned)
            left, right = to_a(timed.queue), to_b(timed.queue)
            y = timed.empty(m, n, _result_dtype(dtype))
            _multiply(timed, left, right, y)
            some = [0, m // 2, m - 1]
            got = tw.to_host(y)[some]
            error = relative_error(got, a[some], b)
            limit = {"float16": 5e-4, "bfloat16": 4e-3, "int8": 0.0, "float64": 1e-14}.get(name, 1e-5)
            if not error <= limit:
                return f"WRONG by {error:.2g}, so it has no time"
            tiles = opencl_gemm.Product(left, right).tiles(timed.queue)
            alone = timed.seconds(lambda: _multiply(timed, left, right, y))
            theirs = None
            their_error = float("nan")
            if torch is not None:
                kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
                kinds |= {"int8": torch.int8, "float64": torch.float64}
                plain = a.astype(np.float32) if name == "bfloat16" else np.ascontiguousarray(a)
                ta = torch.from_numpy(plain).cuda().to(kinds[name])
                base = b.T if turned else b
                plain = base.astype(np.float32) if name == "bfloat16" else np.ascontiguousarray(base)
                tb = torch.from_numpy(plain).cuda().to(kinds[name])
                tb = tb.T if turned else tb
                theirs = (lambda: torch._int_mm(ta, tb)) if name == "int8" else (lambda: torch.matmul(ta, tb))
                their_rows = theirs()[some].to(torch.float64).cpu().numpy()
                their_error = relative_error(their_rows, a[some], b)
            mine, other = beside(timed, lambda: _multiply(timed, left, right, y), torch, theirs)
            rate = 2 * m * n * k / 1e12
            moved = (left.nbytes + right.nbytes + y.nbytes) / 1e9
            return (
                f"{rate / alone:.1f} T/s alone, {rate / mine:.1f} in a row ({moved / alone:.0f} GB/s), torch "
                f"{rate / other:.1f}, ratio {other / mine:.3f}; error {error:.2g}, torch's {their_error:.2g}; "
                f"{_named(tiles)}"
            )

        yield f"{label} {m}x{k}x{n}", probe.outcome(attempt, 1500)


# ------------------------------------------------------------------------------------------------------- blockings


def _named(tiles: Tiles) -> str:
    inner = f"warp {tiles.warp_m}x{tiles.warp_n}" if tiles.warp_m else f"item {tiles.reg_m}x{tiles.reg_n}"
    most = f" registers {tiles.registers}" if tiles.registers else ""
    return f"{tiles.m}x{tiles.n}x{tiles.k} {inner} stages {tiles.stages}{most}"


TOGETHER = (
    warpgroups(128, 128, 32),
    warpgroups(128, 64, 64, 2),
    warpgroups(64, 128, 64, 2),
    warpgroups(64, 128, 32, 4),
    warpgroups(64, 64, 64),
    warpgroups(256, 128, 32, 2),
)
HALF = (
    matrix(128, 128, 32, 64, 64, 3),
    matrix(128, 128, 32, 64, 32, 3),
    matrix(128, 128, 32, 32, 64, 3),
    matrix(128, 128, 32, 64, 64, 2),
    matrix(128, 256, 32, 64, 64, 2),
    matrix(256, 128, 32, 64, 64, 2),
    matrix(128, 64, 32, 64, 32, 4),
    matrix(128, 64, 64, 64, 32, 2),
    matrix(64, 128, 32, 32, 64, 4),
    matrix(64, 64, 64, 32, 32, 3),
    replace(matrix(128, 128, 32, 64, 32, 3), registers=128),
)
FLOATS = (
    fma(128, 128, 16, 8, 8, 2),
    fma(128, 128, 16, 8, 8, 3),
    fma(128, 128, 8, 8, 8, 4),
    replace(fma(128, 128, 16, 8, 8, 2), registers=128),
    replace(fma(128, 128, 16, 8, 8, 3), registers=128),
    replace(fma(128, 128, 8, 8, 8, 3), registers=128),
    replace(fma(128, 128, 16, 8, 8, 2), registers=168),
    fma(128, 64, 16, 8, 8, 3),
    fma(64, 64, 16, 8, 8, 3),
    fma(64, 64, 16, 4, 4, 3),
)
THREE = (
    matrix(128, 128, 16, 64, 32, 3),
    matrix(128, 128, 16, 64, 32, 2),
    matrix(128, 128, 16, 32, 64, 3),
    matrix(128, 128, 16, 32, 32, 3),
    matrix(128, 64, 16, 32, 32, 4),
    matrix(128, 64, 16, 64, 32, 4),
    matrix(64, 64, 16, 32, 32, 3),
    matrix(64, 64, 32, 32, 32, 3),
)
BYTES = (
    matrix(128, 128, 64, 64, 64, 3),
    matrix(128, 128, 64, 64, 32, 3),
    matrix(128, 256, 64, 64, 64, 2),
    matrix(256, 128, 64, 64, 64, 2),
    matrix(128, 64, 64, 64, 32, 4),
)
DOTS = (fma(128, 128, 64, 8, 8, 2), fma(128, 128, 32, 8, 8, 3), fma(64, 64, 64, 4, 4, 3))
DOUBLES = (fma(64, 64, 16, 4, 4, 2), fma(128, 64, 16, 8, 4, 2), fma(64, 64, 8, 4, 4, 3))


# Name, the place in the table, what is tried there, storage, products, whether b is transposed.
SWEEPS: tuple[tuple[str, tuple[str, str, bool], tuple[Tiles, ...], str, int, bool], ...] = (
    ("together", ("W", "f16", True), TOGETHER, "float16", 0, False),
    ("half", ("T", "f16", True), HALF, "float16", 0, False),
    ("float", ("S", "f32", True), FLOATS, "float32", 0, False),
    ("three", ("T", "f32", True), THREE, "float32", 3, False),
    ("bytes", ("T", "i8", True), BYTES, "int8", 0, True),
    ("dots", ("S", "i8", True), DOTS, "int8", 0, True),
    ("double", ("S", "f64", True), DOUBLES, "float64", 0, False),
)


def _sweep(
    probe: Probe,
    key: tuple[str, str, bool],
    blockings: tuple[Tiles, ...],
    name: str,
    products: int,
    turned: bool,
    timing: bool,
) -> Iterator[Row]:
    """Every blocking at one size; without ``timing`` only built and checked, which many processes may do at once."""
    timed = Timed(probe.device)
    rng = np.random.default_rng(3)
    n = 192 if probe.small else 4096
    dtype = _dtype(name)
    _take(timed, key[0], products)
    a, to_a = operand(rng, n, n, dtype)
    b, to_b = operand(rng, n, n, dtype, transposed=turned)
    left, right = to_a(timed.queue), to_b(timed.queue)
    some = [0, n // 3, n - 1]
    for tiles in blockings[: 2 if probe.small else None]:
        opencl_tiles.SHARED[key] = (tiles, tiles)

        def attempt(tiles: Tiles = tiles) -> str:
            y = timed.empty(n, n, _result_dtype(dtype))
            start = time.perf_counter()
            _multiply(timed, left, right, y)
            timed.queue.finish()
            built = time.perf_counter() - start
            error = relative_error(tw.to_host(y)[some], a[some], b)
            if not error <= 1e-3:
                return f"WRONG by {error:.2g}"
            if not timing:
                return f"right, built in {built:.1f} s"
            taken = timed.seconds(lambda: _multiply(timed, left, right, y), 5)
            return f"{2 * n**3 / taken / 1e12:.2f} T/s, built in {built:.1f} s, error {error:.2g}"

        yield f"{name} {'nt' if turned else 'nn'} {n}^3 {_named(tiles)}", probe.outcome(attempt, 800)


def skinny_shares(probe: Probe) -> Iterator[Row]:
    """Row 6 with K cut into more or fewer shares, and tiles of other widths."""
    timed = Timed(probe.device)
    _take(timed, "W", 0)
    rng = np.random.default_rng(4)
    m, k, n = (16, 256, 512) if probe.small else (16, 4096, 16384)
    a, to_a = operand(rng, m, k, np.float16)
    b, to_b = operand(rng, k, n, np.float16)
    left, right = to_a(timed.queue), to_b(timed.queue)
    y = timed.empty(m, n, np.float16)
    for tiles in (
        warpgroups(64, 64, 64),
        warpgroups(64, 64, 64, 2),
        warpgroups(64, 64, 32, 6),
        warpgroups(64, 128, 64, 2),
    )[: 1 if probe.small else 4]:
        opencl_tiles.SHARED["W", "f16", True] = (tiles, tiles)
        for wanted in (256, 512, 1024, 2048)[: 1 if probe.small else 4]:
            opencl_tiles.WANTED_TILES = wanted

            def attempt() -> str:
                taken = timed.seconds(lambda: opencl_gemm.multiply(timed.queue, left, right, y))
                error = relative_error(tw.to_host(y), a, b)
                return f"{taken * 1e6:.1f} us, {right.nbytes / taken / 1e9:.0f} GB/s of weights, error {error:.2g}"

            yield f"{m}x{k}x{n} {_named(tiles)}, {wanted} tiles wanted", probe.outcome(attempt, 800)


def _swept(which: int, timing: bool) -> Callable[[Probe], Iterator[Row]]:
    return lambda probe: _sweep(probe, *SWEEPS[which][1:], timing=timing)


# Section, the seconds it may take, whether it may run beside its neighbours: compilers work on one core.
SECTIONS: dict[str, tuple[Callable[[Probe], Iterator[Row]], int, bool]] = {
    **{f"right_{kind[0]}_{kind[2]}{kind[1]}": (_correctness(*kind), 100, True) for kind in KINDS},
    **{f"build_{sweep[0]}": (_swept(i, False), 100, True) for i, sweep in enumerate(SWEEPS)},
    "rows": (rows, 110, False),
    **{f"sweep_{sweep[0]}": (_swept(i, True), 45, False) for i, sweep in enumerate(SWEEPS)},
    "skinny": (skinny_shares, 40, False),
}
