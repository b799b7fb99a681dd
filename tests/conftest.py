"""What runs by default, and the processes that risky checks run in, each started when first needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from worker import Worker


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
