"""Every matrix product that an NVIDIA device would get, through clang to PTX and through ptxas: no GPU is needed.

NVIDIA's own OpenCL front end may differ. What is checked is that the PTX in the kernels is right for its target, that a
group's local memory and registers suffice, and that nothing spills.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilework.backends import opencl_attention
from tilework.backends.opencl_programs import define_options, expanded, with_architecture
from tilework.backends.opencl_tiles import LOCAL_BYTES, SHARED, Tiles

CLANG = next((c for c in (f"clang-{v}" for v in range(22, 18, -1)) if shutil.which(c)), None)
ELEMENTS = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "i8": np.int8}
REGISTERS = 65536  # of a multiprocessor
FRONT = (
    *("-target", "nvptx64-nvidia-nvcl", "-Xclang", "-target-feature", "-Xclang", "+ptx80", "-x", "cl", "-O3", "-S"),
    *("-cl-std=CL1.2", "-cl-mad-enable", "-Xclang", "-finclude-default-header"),
    *(
        "-Xclang",
        "-cl-ext=+cl_khr_fp16,+cl_khr_fp64",
        "-DCORE_S",
        "-include",
        str(Path(__file__).parent / "nvidia_builtins.h"),
    ),
)
PROBE = """
__kernel void f(__global float* y) {
    barrier(CLK_LOCAL_MEM_FENCE);
    y[get_global_id(0)] = fma(y[0], y[get_local_id(0)], y[get_group_id(0) + get_num_groups(0)]);
}
"""


@pytest.fixture(scope="module")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips, saying why, unless clang knows the built-ins that stand for OpenCL's, and ptxas is there."""
    if CLANG is None:
        pytest.skip("no clang of version 19 to 22")
    if not shutil.which("ptxas"):
        pytest.skip("no ptxas (CUDA)")
    probe = tmp_path_factory.mktemp("probe") / "probe.cl"
    probe.write_text(PROBE)
    done = subprocess.run([CLANG, *FRONT, str(probe), "-o", str(probe) + ".ptx"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{CLANG} does not compile for NVIDIA: {done.stderr.strip().splitlines()[:1]}")


def resources(
    tmp_path: Path, define: dict[str, Any], capability: int, file: str = "matmul.cl", kernel: str = ""
) -> dict[str, int]:
    """Compiles a file; what ptxas says that an item (registers, spilled bytes) and a group (local bytes) take.

    ``kernel``: of which, where the file has several.
    """
    source, ptx = tmp_path / "kernel.cl", tmp_path / "kernel.ptx"
    source.write_text(expanded(file))
    target = ("-Xclang", "-target-cpu", "-Xclang", f"sm_{capability}", f"-DNVIDIA={capability}")
    subprocess.run([CLANG or "", *FRONT, *target, *define_options(define), source, "-o", ptx], check=True)
    limit = [f"--maxrregcount={define['REGISTERS']}"] if "REGISTERS" in define else []
    architecture = f"sm_{capability}"
    if "WARPGROUPS" in define:
        ptx.write_text(with_architecture(ptx.read_text()))
        architecture += "a"
    command = ["ptxas", "-v", f"-arch={architecture}", *limit, str(ptx), "-o", str(tmp_path / "kernel.cubin")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    told = told[told.index(f"entry function '{kernel}'") :] if kernel else told
    found = {
        name: re.search(pattern, told)
        for name, pattern in {
            "registers": r"Used (\d+) registers",
            "spilled": r"(\d+) bytes spill stores",
            "local": r"(\d+) bytes smem",
        }.items()
    }
    return {name: int(match[1]) if match else 0 for name, match in found.items()}


def kernels() -> Iterator[tuple[str, dict[str, Any], Tiles]]:
    """Name, -D options and blocking of every matrix product in the tables, with b as it lies and transposed."""
    for (core, kind, copied), (large, small) in SHARED.items():
        for size, tiles in {"large": large, "small": small}.items():
            for b_along_k in (False, True):
                if copied and kind == "i8" and not b_along_k:  # bytes are kept along k
                    continue
                define = {"DTYPE": np.dtype(ELEMENTS[kind]), "INDEX": "int", "BATCH": 1, "SHARES": 1, "A_ALONG_K": 1}
                define |= {"B_ALONG_K": 1} if b_along_k else {}
                define |= {"A_COPIED": 1, "B_COPIED": 1, "PAIRS": 1} if copied else {}
                for products in (3, 1) if (core, kind) == ("T", "f32") else (1,):
                    one = replace(tiles, products=products)
                    way = "chunks" if copied else "elements"
                    yield (
                        f"{core}-{kind}-{size}-{way}-{'nt' if b_along_k else 'nn'}-{products}",
                        define | one.define(),
                        one,
                    )


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize(("define", "tiles"), [pytest.param(d, t, id=name) for name, d, t in kernels()])
def test_kernel_fits_a_multiprocessor(tmp_path: Path, define: dict[str, Any], tiles: Tiles) -> None:
    taken = resources(tmp_path, define, 90)
    assert taken["spilled"] == 0
    assert 0 < taken["local"] <= LOCAL_BYTES
    assert taken["registers"] * tiles.group <= REGISTERS


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize(("file", "kernel"), [("einsum.cl", {}), ("conv.cl", {"CONV": 1}), ("conv.cl", {"CONV_DX": 1})])
@pytest.mark.parametrize("core", ["S", "T"])
def test_other_products_fit_a_multiprocessor(tmp_path: Path, file: str, kernel: dict[str, int], core: str) -> None:
    tiles = replace(SHARED[core, "f32", False][0], products=3)
    define = {"DTYPE": np.dtype(np.float32), "INDEX": "int", "A_ALONG_K": 1, **tiles.define(), **kernel}
    taken = resources(tmp_path, define, 90, file)
    assert 0 < taken["local"] <= LOCAL_BYTES
    assert taken["registers"] * tiles.group <= REGISTERS


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize("kernel", ["CONV", "CONV_DX", "CONV_DW"])
@pytest.mark.parametrize(("core", "kind"), [("S", "f32"), ("T", "f16"), ("W", "f16")])
def test_convolutions_in_chunks_fit_a_multiprocessor(tmp_path: Path, kernel: str, core: str, kind: str) -> None:
    tiles = SHARED[core, kind, True][0]
    define = {"DTYPE": np.dtype(ELEMENTS[kind]), "INDEX": "int", "SHARES": 2, "ROWS": 1, "A_COPIED": 1, "B_COPIED": 1}
    define |= {kernel: 1, "KERNEL0": 1, "KERNEL1": 3, "KERNEL2": 3, **tiles.define()}
    define |= {} if kernel == "CONV_DW" else {"A_ALONG_K": 1, "B_ALONG_K": 1}
    taken = resources(tmp_path, define, 90, "conv.cl")
    assert taken["spilled"] == 0
    assert 0 < taken["local"] <= LOCAL_BYTES
    assert taken["registers"] * tiles.group <= REGISTERS


def attention_kernels() -> Iterator[Any]:
    """File, -D options and items of every block of attention in the tables, for plain scores of whole chunks."""
    tables = {
        "forward": (opencl_attention.FORWARD, "attention_matrix.cl", "attend", "KEYS"),
        "thin": (opencl_attention.THIN, "attention_matrix.cl", "attend", "KEYS"),
        "queries": (opencl_attention.OF_QUERIES, "attention_matrix_dx.cl", "attend_dq", "STEP"),
        "keys": (opencl_attention.OF_KEYS, "attention_matrix_dx.cl", "attend_dkv", "STEP"),
    }
    for name, (table, file, kernel, step) in tables.items():
        for width, block in table.items():
            define = {"DTYPE": np.dtype(np.float16), "INDEX": "int", "COPIED": 1, "DEPTH": width, "WIDTH": width}
            define |= block.define(step) | {"thin": {"PARTIAL": 1}, "queries": {"OF_QUERIES": 1}}.get(name, {})
            yield pytest.param(file, kernel, define, 32 * block.warps, id=f"{name}-{width}")


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize(("file", "kernel", "define", "items"), list(attention_kernels()))
def test_attention_fits_a_multiprocessor(
    tmp_path: Path, file: str, kernel: str, define: dict[str, Any], items: int
) -> None:
    taken = resources(tmp_path, define, 90, file, kernel)
    assert taken["spilled"] == 0
    assert 0 < taken["local"] <= LOCAL_BYTES
    assert taken["registers"] * items <= REGISTERS


def test_every_blocking_fits_its_kernel() -> None:
    for (core, kind, _), pair in SHARED.items():
        for tiles in pair:
            size = np.dtype(ELEMENTS[kind]).itemsize
            assert tiles.local_bytes(size) <= LOCAL_BYTES
            step = 16 // size  # one operand may lie in chunks where the other does not
            for side in (tiles.m, tiles.n):
                assert side * tiles.k % (step * tiles.group) == 0
                assert size == 1 or side * size % 128 == 0, "the chunks of a row across are permuted among 8"
            if tiles.together:
                assert tiles.m % (4 * tiles.warp_m) == 0
                assert tiles.n == tiles.warp_n
                assert tiles.k * size in (64, 128), "a line in which the instruction knows chunks to be permuted"
                assert tiles.m * tiles.k * size % 1024 == tiles.n * tiles.k * size % 1024 == 0
            elif core == "T":
                assert tiles.m % tiles.warp_m == tiles.n % tiles.warp_n == 0
                assert tiles.warp_m % 16 == tiles.warp_n % 16 == 0
                assert tiles.k * size % 32 == 0
            else:
                assert tiles.n // tiles.reg_n % 8 == tiles.m // tiles.reg_m % 4 == 0
                assert tiles.k * size % 16 == 0


if __name__ == "__main__":
    import tempfile

    for name, define, _ in kernels():
        with tempfile.TemporaryDirectory() as folder:
            print(name, resources(Path(folder), define, int((sys.argv[1:] or ["90"])[0])), flush=True)
