"""Processes that risky checks run in: one for the CPU, one for OpenCL, each started when first needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker import Worker


@pytest.fixture(scope="session")
def cpu_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def opencl_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()
