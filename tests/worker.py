"""A process of its own for checks that may end or hang it: jobs go in as lines, verdicts come out as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Hostile calls may ask for any amount of memory: refuse what a test has no use for.
_ENVIRONMENT = {"TILEWORK_MAX_ALLOC": str(1 << 30), "PYTHONFAULTHANDLER": "1"}


class Worker:
    """Runs ``run_check(check, op, dtype)`` elsewhere; a new process is started after one that died or hung."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, check: str, op: str, dtype: str, seconds: float) -> str:
        """What failed, "" if nothing did."""
        process = self._process or self._start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: there will be no reply either
            process.stdin.write(f"{check} {op} {dtype}\n")
            process.stdin.flush()
        reply = self._reply(time.monotonic() + seconds)
        if reply is None:
            ended = process.poll()
            how = f"did not end within {seconds:.0f} s" if ended is None else f"ended with status {ended}"
            last = Path(self._log.name).read_text(errors="replace")[-2000:]
            self.stop()
            return f"the process {how}\n    python -m tilework.testing {check} {op} - {dtype}\n{last}"
        return str(json.loads(reply))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            os.close(self._replies)
            with contextlib.suppress(BrokenPipeError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            self._log.close()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._replies, theirs = os.pipe()
        self._log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  (closed by stop)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            pass_fds=(theirs,),
            env=os.environ | _ENVIRONMENT,
        )
        os.close(theirs)
        return self._process

    def _reply(self, deadline: float) -> str | None:
        """The next line from the process; None if it ended or the time is up."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._replies, 1 << 16) if ready else b""
            if not piece:
                if ready and self._process is not None:
                    self._process.wait()
                return None
            line += piece
        return line.decode()


def serve(replies: int) -> None:
    """The process's own loop: one check per line of standard input."""
    from tilework.registry import ops
    from tilework.testing import run_check

    with os.fdopen(replies, "w") as out:
        for line in sys.stdin:
            check, op, dtype = line.split()
            try:
                run_check(check, ops()[op], dtype)
                verdict = ""
            except AssertionError as failure:
                verdict = str(failure) or "failed"
            out.write(json.dumps(verdict) + "\n")
            out.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
