"""The workers of a run, one process for each library."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tilework.bench import peers
from tilework.bench.problems import BenchError
from tilework.bench.remote import Remote

OURS, PREPARED = "tilework", "tilework prepared"


def available_peers(wanted: list[str]) -> list[str]:
    """The peers of ``wanted`` that are installed."""
    return [p for p in wanted if not peers.why_absent(p)]


class Crew:
    """The workers of a run; one that was lost is started again for the next row."""

    def __init__(self, load: list[str]) -> None:
        self._load = load
        self._workers: dict[str, Remote] = {}
        self._threads: dict[str, int] = {}
        self.refused: dict[str, str] = {}  # peers that cannot run with the threads asked for, and why
        self.scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.answers = str(Path(self.scratch.name) / "answers.npz")

    def worker(self, library: str, threads: int) -> Remote:
        """A worker of this library on this many threads."""
        environment = {}
        if library != OURS and hasattr(peers.load(library), "environment"):
            environment = peers.load(library).environment(threads)
            if self._threads.get(library) not in (None, threads):
                self.drop(library)
        if library not in self._workers:
            self._workers[library] = Remote(library, environment=environment)
            for module in self._load:
                self._demand(library, "load", module=module)
        if self._threads.get(library) != threads:
            self._demand(library, "threads", count=threads)
            self._threads[library] = threads
        return self._workers[library]

    def _demand(self, library: str, do: str, **arguments: Any) -> None:
        error = self._workers[library].ask(do, **arguments).get("error")
        if error:
            raise BenchError(f"{library}: {error}")

    def drop(self, library: str) -> None:
        """Forgets a worker that was lost."""
        self._threads.pop(library, None)
        lost = self._workers.pop(library, None)
        if lost:
            lost.close()

    def close(self) -> None:
        """Ends every worker."""
        for library in list(self._workers):
            self.drop(library)
        self.scratch.cleanup()


@contextmanager
def crew(load: list[str]) -> Iterator[Crew]:
    """The workers of a run, ended afterwards."""
    made = Crew(load)
    try:
        yield made
    finally:
        made.close()
