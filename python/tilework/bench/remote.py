"""The parent's end of a worker: a process that may crash or hang without taking the run with it.

A worker runs only while it is asked something and is stopped in between, so that no thread of one library, however long
it spins after its work, takes a CPU from another.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tilework.bench.problems import BenchError
from tilework.bench.protocol import PROTOCOL, WorkerLostError

PATIENCE = 180.0  # seconds for one answer: a float64 reference of a large problem, a first import of torch
# Whether glibc gives a result's pages back and faults them in again at every call depends on what else a process has
# allocated; so it keeps them, for every library.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
_FAREWELL = 2.0  # seconds for a worker to end by itself


class Remote:
    """A worker process of one library. ``python`` and ``path`` choose the installation it runs."""

    def __init__(
        self, library: str, *, python: str = sys.executable, path: str = "", environment: dict[str, str] | None = None
    ) -> None:
        self.library = library
        variables = {**_MEMORY, **os.environ, **(environment or {})}
        inherited = [p for p in sys.path if p] if python == sys.executable else []
        variables["PYTHONPATH"] = os.pathsep.join([path, *inherited] if path else inherited)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the worker)
        self._process = subprocess.Popen(
            # Without site: an editable installation beside it would be found before the folder.
            [python, *(["-S"] if path else []), "-m", "tilework.bench.worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            start_new_session=True,
        )
        try:
            self.facts = self.ask("hello")
        except WorkerLostError as lost:
            self.close(farewell=0.0)
            raise BenchError(f"{path or python}: no bench worker there: {lost}") from None
        if path and not Path(self.facts["where"]).resolve().is_relative_to(Path(path).resolve()):
            self.close()
            raise BenchError(f"{path}: what runs there is {self.facts['where']}")
        if self.facts.get("protocol") != PROTOCOL:
            self.close()
            raise BenchError(
                f"{path or python}: its bench speaks protocol {self.facts.get('protocol')}; want {PROTOCOL}"
            )

    def ask(self, do: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """The worker's answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            self._signal(signal.SIGCONT)
        except OSError:
            raise self._lost() from None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            self.close(farewell=0.0)
            raise WorkerLostError(f"no answer within {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._lost()
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self) -> WorkerLostError:
        code = self._process.wait()
        self._errors.seek(0)
        words = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        last = f": {words[-1][:200]}" if words else ""
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return WorkerLostError(f"{how}{last}")

    def _signal(self, number: signal.Signals) -> None:
        """To the worker and what it started; none, if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self, farewell: float = _FAREWELL) -> None:
        """Ends the process, which has ``farewell`` seconds to do so itself."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):  # what was not yet read by a worker that died
                    stream.close()
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
        try:
            self._process.wait(farewell)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def installation(where: str, scratch: str) -> dict[str, str]:
    """``python`` and ``path`` of :class:`Remote` for a folder, an environment, a Python or a wheel."""
    path = Path(where)
    if not path.exists():
        raise BenchError(
            f"{where} does not exist; want a folder with tilework in it, an environment, a Python or a wheel"
        )
    if path.suffix == ".whl":
        target = Path(scratch) / path.stem
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{where} cannot be installed: {done.stderr.strip().splitlines()[-1][:200]}")
        return {"path": str(target)}
    if path.is_file():
        return {"python": str(path)}
    if (path / "bin" / "python").exists():
        return {"python": str(path / "bin" / "python")}
    if (path / "tilework" / "__init__.py").exists():
        return {"path": str(path.resolve())}
    raise BenchError(
        f"{where} holds no tilework; want a folder with tilework in it, an environment, a Python or a wheel"
    )
