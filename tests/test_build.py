"""What the compiler made: tier objects that cannot leak into each other, a quiet and light import, NEON on aarch64."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tilework
from tilework import _core

ROOT = Path(__file__).parent.parent
MODULE = Path(str(_core.__file__))
LIBRARY = Path(tilework.library_path())  # what C links against: the kernels
WIDE = {"base": r"%[yz]mm", "avx2": r"%zmm"}  # registers that a tier's objects must not touch


def _run(*command: str | Path, **options: str) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _needs(*tools: str) -> None:
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed")


# ------------------------------------------------------------------------------------------------- the objects


def _is_plain_build(folder: Path) -> bool:
    cache = folder / "CMakeCache.txt"
    return (
        cache.is_file()
        and "TILEWORK_SANITIZE:BOOL=OFF" in cache.read_text()
        and any((folder / "CMakeFiles" / "tw_core.dir").rglob("*.o"))
    )


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The object files by part: core, bindings and the tiers. From the build of this checkout, else built here."""
    named = os.environ.get("TILEWORK_BUILD_DIR")
    found = [f for f in ([Path(named)] if named else (ROOT / "build").glob("*")) if _is_plain_build(f)]
    folder = max(found, key=lambda f: f.stat().st_mtime, default=None)
    if folder is None:
        _needs("cmake", "ninja")
        folder = tmp_path_factory.mktemp("build")
        pybind11 = pytest.importorskip("pybind11", reason="no build in build/, and pybind11 is needed to make one")
        where = (f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        _run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *where)
        _run("cmake", "--build", folder)
    parts: dict[str, list[Path]] = {}
    for path in sorted((folder / "CMakeFiles").rglob("*.o")):
        target = path.relative_to(folder / "CMakeFiles").parts[0].removesuffix(".dir")
        part = {"tw_core": "core", "tilework": "bindings", "_core": "bindings", "tilework_xla": "bindings"}.get(
            target, target.removeprefix("tw_ops_")
        )
        parts.setdefault(part, []).append(path)
    return parts


def _tiers(objects: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {part: paths for part, paths in objects.items() if part not in ("core", "bindings")}


def test_every_tier_is_built(objects: dict[str, list[Path]]) -> None:
    assert set(_tiers(objects)) == {name for name, _ in _core.tiers()}
    sources = {p.name for folder in ("gemm", "linalg", "ops") for p in (ROOT / "csrc" / folder).glob("*.cc")}
    listed = (ROOT / "csrc/ops/ops.def").read_text()
    dot8, tiles, narrow = (
        set(re.findall(rf"// (\w+\.cc)\n(?:TW_OP\(\w+\)\n)*TW_OP_{m}", listed)) for m in ("DOT8", "TILES", "NARROW")
    )
    dot8 |= {"peak.cc", "table.cc"}
    wanted = {"avx512": sources - narrow, "avx512vnni": dot8, "amx": dot8 | tiles}
    for tier, paths in _tiers(objects).items():
        assert {p.name.removesuffix(".o") for p in paths} >= wanted.get(tier, sources), tier


def test_tier_objects_define_no_weak_symbol(objects: dict[str, list[Path]]) -> None:
    """The linker keeps one of several weak definitions: it could be one for a newer CPU."""
    _needs("nm")
    for paths in _tiers(objects).values():
        for path in paths:
            weak = [line for line in _run("nm", "-C", path).splitlines() if re.match(r"[0-9a-f]+ [WVu] ", line)]
            assert not weak, f"{path}: {weak[:5]}"


def test_tier_objects_define_names_of_their_tier_only(objects: dict[str, list[Path]]) -> None:
    _needs("nm")
    for tier, paths in _tiers(objects).items():
        for path in paths:
            for line in _run("nm", "-C", "--defined-only", "-g", path).splitlines():
                name = line.split(maxsplit=2)[2]
                assert f"tw::{tier}::" in name, f"{path} defines {name}"


def test_tier_objects_have_no_start_up_code(objects: dict[str, list[Path]]) -> None:
    _needs("readelf")
    for paths in _tiers(objects).values():
        for path in paths:
            assert ".init_array" not in _run("readelf", "-SW", path), path


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these registers are x86-64's")
def test_baseline_code_runs_on_every_cpu(objects: dict[str, list[Path]]) -> None:
    """core, bindings and the base tier touch no AVX register, and avx2 no AVX-512 one."""
    _needs("objdump")
    for part, paths in objects.items():
        forbidden = WIDE.get("base" if part in ("core", "bindings") else part)
        for path in paths if forbidden else []:
            code = _run("objdump", "-d", "--no-show-raw-insn", path)
            met = re.search(rf"^.*{forbidden}.*$", code, re.MULTILINE)
            assert met is None, f"{path}: {met[0] if met else ''}"


def test_the_library_needs_nothing_but_the_compilers_runtime() -> None:
    _needs("readelf")
    runtime = {"libstdc", "libm", "libgcc_s", "libc", "libpthread", "ld", "libasan", "libubsan"}
    for path, allowed in ((LIBRARY, runtime), (MODULE, runtime | {"libtilework"})):
        needed = set(re.findall(r"\(NEEDED\).*\[(\w+)", _run("readelf", "-dW", path)))
        assert needed <= allowed, f"{path}: {needed}"


# -------------------------------------------------------------------------------------------------- the import


def test_import_changes_no_floating_point_mode() -> None:
    """A library linked with fast-math would flush denormals to zero in the whole process."""
    code = """
import numpy as np
tiny = np.array([1e-40], np.float32)
import tilework
assert (tiny * np.float32(0.5))[0] > 0, "denormals are flushed"
assert tilework.mul(tiny, 0.5)[0] > 0
"""
    _run(sys.executable, "-c", code)


def test_import_takes_less_than_half_of_numpys_own_time() -> None:
    """Importing both takes under 1.5 times as long as importing numpy."""
    code = """
import time
begin = time.perf_counter()
import numpy
middle = time.perf_counter()
import tilework
print(middle - begin, time.perf_counter() - middle)
"""
    _run(sys.executable, "-c", code)
    pairs = [tuple(map(float, _run(sys.executable, "-c", code).split())) for _ in range(9)]
    numpy_time, own_time = min(n for n, _ in pairs), min(t for _, t in pairs)
    assert own_time < 0.5 * numpy_time, f"{1e3 * own_time:.0f} ms beside numpy's {1e3 * numpy_time:.0f} ms"


def test_import_needs_numpy_alone() -> None:
    code = "import sys, tilework; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(_run(sys.executable, "-c", code).split())
    assert not loaded & {"pyopencl", "rich", "matplotlib", "sklearn", "scipy", "torch", "ml_dtypes", "threadpoolctl"}


def test_the_wheel_stays_small() -> None:
    """Under 8 MB, compressed as a wheel is."""
    if "asan" in _run("readelf", "-dW", MODULE):
        pytest.skip("a sanitizer build is larger")
    package = Path(tilework.__file__).parent
    inside = {MODULE, LIBRARY}
    inside |= {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc")}
    if not any("kernels_cl" in p.parts for p in inside):  # an editable install leaves them where they are
        inside |= set((ROOT / "kernels_cl").glob("*.cl*"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in sorted(inside):
            wheel.write(path, path.relative_to(package) if path.is_relative_to(package) else path.name)
    size = len(packed.getvalue())
    assert size < 8e6


# --------------------------------------------------------------------------------------------------- elsewhere


def _check_program(compiler: str, folder: Path, *flags: str) -> Path:
    """tests/aarch64_check.cc, the ops it calls and the floors below in one program; of other ops the syntax."""
    check = ROOT / "tests" / "aarch64_check.cc"
    called = set(re.findall(r'Run(?: \w+)?\("(\w+)"', check.read_text()))
    (folder / "ops").mkdir()
    (folder / "ops" / "ops.def").write_text("".join(f"TW_OP({name})\n" for name in sorted(called)))
    (folder / "tiers.h").write_text(
        "#define TW_TIERS(X) X(base)\n#define TW_WHOLE_TIERS(X) X(base)\n#define TW_HIGHER_TIERS(X)\n"
        "#define TW_LEAST_TIER base\n#define TW_LEAST_base 1\n"
    )
    common = ("-std=c++20", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")

    def compile_one(source: Path) -> list[Path]:
        ops = set(re.findall(r"const Entry op_(\w+) = ", source.read_text()))
        target = folder / f"{source.parent.name}_{source.stem}.o"
        include = (f"-I{folder}", f"-I{ROOT / 'csrc'}")
        wanted = not ops or ops & called
        how = ("-c", "-o", str(target)) if wanted else ("-fsyntax-only",)
        table = () if wanted else (f"-I{ROOT / 'csrc'}",)
        _run(compiler, *common, *flags, "-DTW_ISA=base", *table, *include, source, *how)
        return [target] if wanted else []

    floors = ("core", "gemm", "linalg", "ops")
    sources = [check, *(p for floor in floors for p in sorted((ROOT / "csrc" / floor).glob("*.cc")))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = [target for targets in pool.map(compile_one, sources) for target in targets]
    program = folder / "check"
    _run(compiler, "-static", *made, "-o", program, "-pthread")
    return program


def test_the_neon_tier_computes_under_emulation(tmp_path: Path) -> None:
    """core, gemm, linalg and a few ops are cross-compiled for aarch64 and give known answers under qemu."""
    _needs("aarch64-linux-gnu-g++")
    emulator = next((e for e in ("qemu-aarch64-static", "qemu-aarch64") if shutil.which(e)), None)
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed")
    program = _check_program("aarch64-linux-gnu-g++", tmp_path)
    said = _run(emulator, program)
    assert said.splitlines()[-1] == "0 failures", said
