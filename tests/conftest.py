"""What runs by default, and the processes that risky checks run in, each started when first needed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import Worker


def pytest_configure() -> None:
    """Shells start what runs in the background deaf to Ctrl-C, which the programs of some tests must hear."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only where the marker expression speaks of them."""
    if "slow" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def cpu_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def opencl_worker() -> Iterator[Worker]:
    code = "import tilework; print(len(tilework.devices()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    if found.stdout.strip() == "0":
        pytest.skip("no OpenCL device: `tilework info` says why")
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of the bench with one peer."""
    pytest.importorskip("scipy")
    from tilework.bench.commands import main

    path = tmp_path_factory.mktemp("bench") / "run.json"
    lines = [
        "relu/float32 x=128x1024",
        "matmul a=64x64 b=64x64",
        "add a=1 b=1 out=given",
        "linear/float64/bwd x=4x8 w=3x8 b=3",
    ]
    assert main(["run", *lines, "--peers", "numpy", "--min-time", "0.1", "-o", str(path)]) == 0
    return path
