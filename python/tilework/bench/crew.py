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
        self.refused: set[tuple[str, int]] = set()  # peers that cannot run on so many threads
        self.scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.answers = str(Path(self.scratch.name) / "answers.npz")
        self.operands = str(Path(self.scratch.name) / "operands")

    def worker(self, library: str, threads: int) -> Remote:
        """A worker of this library on this many threads."""
        key, environment = library, {}
        if library != OURS and hasattr(peers.load(library), "environment"):
            # Its thread count is a matter of how it is started, so there is a worker for each.
            key, environment = f"{library} {threads}", peers.load(library).environment(threads)
        if key not in self._workers:
            self._workers[key] = Remote(library, environment=environment)
            for module in self._load:
                self._demand(key, "load", module=module)
        if self._threads.get(key) != threads:
            self._demand(key, "threads", count=threads)
            self._threads[key] = threads
        return self._workers[key]

    def _demand(self, key: str, do: str, **arguments: Any) -> None:
        error = self._workers[key].ask(do, **arguments).get("error")
        if error:
            raise BenchError(f"{key}: {error}")

    def drop(self, library: str) -> None:
        """Forgets the workers of a library of which one was lost."""
        for key in [k for k in self._workers if k.partition(" ")[0] == library]:
            self._threads.pop(key, None)
            self._workers.pop(key).close()

    def close(self) -> None:
        """Ends every worker."""
        for library in {k.partition(" ")[0] for k in self._workers}:
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
