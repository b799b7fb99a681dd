"""Threads, tiers, the profile, environment variables, threadpoolctl."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core

_COUNTS = ("TILEWORK_NUM_THREADS", "OMP_NUM_THREADS")


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in _COUNTS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _said(code: str, **environment: str) -> str:
    done = _python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------------ threads


def test_set_num_threads_holds_for_the_process() -> None:
    before = tw.num_threads()
    try:
        tw.set_num_threads(3)
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(tw.num_threads()))
        thread.start()
        thread.join()
        assert seen == [3]
        assert _core.thread_count_reason() == "set_num_threads"
    finally:
        tw.set_num_threads(before)


def test_threads_limits_its_block_and_its_thread_only() -> None:
    before = tw.num_threads()
    seen: list[int] = []
    with tw.threads(1):
        assert tw.num_threads() == 1
        thread = threading.Thread(target=lambda: seen.append(tw.num_threads()))
        thread.start()
        thread.join()
        with tw.threads(1):
            pass
        assert tw.num_threads() == 1
    assert tw.num_threads() == before
    assert seen == [before]


def test_threads_ends_with_an_exception() -> None:
    before = tw.num_threads()
    with pytest.raises(KeyError), tw.threads(1):
        raise KeyError
    assert tw.num_threads() == before


@pytest.mark.parametrize(("n", "error"), [(0, tw.AttrError), (-1, tw.AttrError), (1025, tw.AttrError)])
def test_a_thread_count_out_of_range_is_refused(n: int, error: type[Exception]) -> None:
    for call in (tw.set_num_threads, tw.threads):
        with pytest.raises(error, match=f"n={n}; want 1 to 1024"):
            call(n)


@pytest.mark.parametrize("n", [1.0, "2", None, True, np.float32(2)])
def test_a_thread_count_of_another_type_is_refused(n: Any) -> None:
    for call in (tw.set_num_threads, tw.threads):
        with pytest.raises(tw.AttrTypeError, match="want an int"):
            call(n)


def test_the_environment_sets_the_thread_count() -> None:
    code = "import tilework as tw; from tilework import _core; print(tw.num_threads(), _core.thread_count_reason())"
    assert _said(code, TILEWORK_NUM_THREADS="5") == "5 TILEWORK_NUM_THREADS"
    assert _said(code, TILEWORK_NUM_THREADS="5", OMP_NUM_THREADS="3") == "5 TILEWORK_NUM_THREADS"
    assert _said(code, OMP_NUM_THREADS="3,2") == "3 OMP_NUM_THREADS"


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1.5", "1000000000", "2 3"])
def test_a_malformed_thread_count_is_an_error_at_import(value: str) -> None:
    done = _python("import tilework", TILEWORK_NUM_THREADS=value)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"TILEWORK_NUM_THREADS='{value}' is not a thread count; want an integer from 1 to 1024" in last


def test_the_affinity_mask_is_respected() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("only one CPU")
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    assert _said(f"{one}; import tilework as tw; print(tw.num_threads())") == "1"


# -------------------------------------------------------------------------------------------------------- tiers


def test_every_tier_can_be_forced() -> None:
    before = tw.isa()
    try:
        for tier in tw.tiers():
            tw.set_isa(tier)
            assert tw.isa() == tier
            with tw.profile() as ran:
                tw.relu(np.ones(3, np.float32))
            assert [r.tier for r in ran] == [tier]
        tw.set_isa("auto")
        assert tw.isa() == tw.tiers()[-1]
    finally:
        tw.set_isa(before)


@pytest.mark.parametrize("name", ["AVX2", "", "sse", "best", "base,avx2"])
def test_an_unknown_tier_is_refused_with_the_valid_names(name: str) -> None:
    before = tw.isa()
    with pytest.raises(tw.AttrError, match=tw.tiers()[0]) as caught:
        tw.set_isa(name)
    assert caught.value.op == "set_isa"
    assert tw.isa() == before
    assert all(tier in str(caught.value) for tier in tw.tiers())


@pytest.mark.parametrize("name", [None, 2, b"base"])
def test_a_tier_of_another_type_is_refused(name: Any) -> None:
    with pytest.raises(tw.AttrTypeError, match="want a str"):
        tw.set_isa(name)


def test_the_environment_forces_a_tier() -> None:
    assert _said("import tilework as tw; print(tw.isa())", TILEWORK_ISA=tw.tiers()[0]) == tw.tiers()[0]


@pytest.mark.skipif("amx" not in tw.tiers(), reason="no tiles on this CPU")
def test_the_environment_may_name_what_a_hypervisor_hides() -> None:
    assert _said("import tilework as tw; print(tw.isa())", TILEWORK_ISA="amx_fp16") == "amx"


@pytest.mark.parametrize("value", ["sse9", "AVX2", "avx2 "])
def test_a_wrong_tier_in_the_environment_is_an_error_at_import(value: str) -> None:
    done = _python("import tilework", TILEWORK_ISA=value)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "TILEWORK_ISA" in last
    assert tw.tiers()[0] in last, "the valid names are not listed"


# ------------------------------------------------------------------------------------------------------ profile


def test_profile_records_what_ran_inside_it() -> None:
    a = np.ones((65, 65), np.float32)
    tw.relu(a)
    with tw.profile() as ran:
        tw.matmul(a, a)
        with tw.profile() as inner:
            tw.relu(a)
    tw.relu(a)
    assert [r.op for r in ran] == ["matmul", "relu"]
    assert [r.op for r in inner] == ["relu"]
    assert len(ran) == 2
    assert all(r.tier == tw.isa() and r.threads >= 1 and 0 < r.seconds < 5 for r in ran)
    assert next(iter(ran)).kernel.startswith("gemm")
    assert str(ran).splitlines()[0].split() == ["op", "kernel", "tier", "threads", "us"]
    assert len(str(ran).splitlines()) == 3


def test_profile_says_how_many_threads_a_call_could_use() -> None:
    a = np.ones(1 << 20, np.float32)
    before = tw.num_threads()
    try:
        tw.set_num_threads(2)
        with tw.profile() as ran, tw.threads(1):
            tw.relu(a)
        assert [r.threads for r in ran] == [1]
        with tw.profile() as ran:
            tw.relu(a)
        assert [r.threads for r in ran] == [2]
    finally:
        tw.set_num_threads(before)


def test_the_environment_prints_a_profile_at_exit() -> None:
    code = "import numpy as np, tilework as tw; tw.relu(np.ones(3))"
    done = _python(code, TILEWORK_PROFILE="1")
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[1].split()[0] == "relu"
    assert _python(code).stderr == ""


# ------------------------------------------------------------------------------------------------------- memory


def test_trim_gives_cached_memory_back() -> None:
    a = np.ones(1 << 20, np.float32)
    y = tw.relu(a)
    del y
    assert _core.pool_stats()[2] > 0
    tw.trim()
    assert _core.pool_stats()[2] == 0


def test_an_allocation_limit_gives_an_allocation_error() -> None:
    code = """
import numpy as np, tilework as tw
a = np.ones(1 << 20, np.float32)
try:
    tw.relu(a)
except MemoryError as error:
    assert isinstance(error, tw.AllocationError) and error.op == "relu", error
    print(error)
print(tw.relu(a[:100]).sum())
"""
    first, second = _said(code, TILEWORK_MAX_ALLOC=str(1 << 20)).splitlines()
    assert "4194304 bytes" in first
    assert second == "100.0"


# ------------------------------------------------------------------------------------------------ threadpoolctl


def test_threadpoolctl_reads_and_limits_the_pool() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    from tilework import threadpool

    threadpool.register()
    threadpool.register()
    before = tw.num_threads()
    try:
        tw.set_num_threads(4)
        mine = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "tilework"]
        assert [(i["internal_api"], i["num_threads"], i["version"]) for i in mine] == [("tilework", 4, tw.__version__)]
        with threadpoolctl.threadpool_limits(2):
            assert tw.num_threads() == 2
        assert tw.num_threads() == 4
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert tw.num_threads() == 4
    finally:
        tw.set_num_threads(before)


def test_importing_tilework_does_not_import_threadpoolctl() -> None:
    assert _said("import sys, tilework; print('threadpoolctl' in sys.modules)") == "False"


# ----------------------------------------------------------------------------------------------- import is quiet


def test_import_starts_no_thread_and_loads_no_opencl() -> None:
    code = """
import os, sys
import numpy
before = dict(os.environ), len(os.listdir("/proc/self/task"))
import tilework
assert (dict(os.environ), len(os.listdir("/proc/self/task"))) == before
assert "pyopencl" not in sys.modules and not any("OpenCL" in line for line in open("/proc/self/maps"))
"""
    _said(code)
