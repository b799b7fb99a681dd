"""One process of the bench: it holds one library's contestants and times blocks of calls when told to.

Libraries do not share a process, so neither their thread pools nor their crashes meet. A request is one line of JSON on
standard input, its answer one line on what was standard output; ``python -m tilework.bench.worker`` serves them.

Where arrays happen to lie decides much: which pages share a set of a cache, and which are huge. So blocks take turns
with copies of the operands at several *places*, each with a result of its own; a round counts the fastest of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework import _core
from tilework.bench import check, networks, ours, peers
from tilework.bench.networks import NetworkProblem
from tilework.bench.problems import Problem, parse
from tilework.bench.protocol import CLEAN, PROTOCOL
from tilework.errors import UnsupportedError

_BLOCK_SECONDS = 1e-3
_MOST_CALLS = 100_000
_WARM = 0.02  # seconds of a call that warms itself
_PLACES = 4
_PLACED_BYTES, _PLACED_SECONDS = 32e6, 0.03  # of a problem at several places: its size, what it takes to make it
_HOLDING = 2e-3  # seconds of a call whose result has a place
_PROFILED_CALLS = 256
_PR_SET_PDEATHSIG = 1
# How libraries say that they have no such operation for such a type.
_ABSENT = re.compile(r"not.implemented|not supported|unsupported|could not find an implementation", re.IGNORECASE)
_LONG = 1e-4  # seconds of a call beside which noting its kernels costs nothing


def threads_waited() -> float:
    """Seconds that threads of this process were ready to run and had no CPU."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, IndexError, ValueError):  # the thread has ended
            total += int((task / "schedstat").read_text().split()[1])
    return total * 1e-9


def _in_turn(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


@dataclass
class _Place:
    """A contestant with operands of its own, and the result whose memory its calls use."""

    call: Callable[[], Any]
    result: Any = None


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v) for v in value)
    return np.array(value, order="K", copy=True) if isinstance(value, np.ndarray) else value


class Worker:
    """Serves requests for one library: ``tilework`` itself or a peer by name."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.threads = 1
        self._cpus = os.sched_getaffinity(0)
        self._contestants: dict[str, peers.Contestant] = {}
        self._calls: dict[str, int] = {}
        self._once: dict[str, float] = {}
        self._expected: tuple[str, Any] = ("", None)
        self._next: dict[str, Callable[[], Any]] = {}
        self._places: dict[str, list[_Place]] = {}
        self._turns: dict[str, int] = {}
        self._keep: list[Any] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; an exception becomes ``{"error": text}``."""
        arguments = {k: v for k, v in request.items() if k != "do"}
        try:
            answer: dict[str, Any] = getattr(self, f"do_{request['do']}")(**arguments)
        except UnsupportedError as error:
            return {"error": str(error), "unsupported": True}
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            if self.library != "tilework" and _ABSENT.search(text):
                return {"error": text, "unsupported": True}
            return {"error": text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"}
        return answer

    def do_hello(self) -> dict[str, Any]:
        """What this process runs."""
        import tilework

        tiers = [name for name, runs in _core.tiers() if runs]
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "library": self.library,
            "tilework": tilework.__version__,
            "where": str(Path(tilework.__file__).parent),
            "tier": _core.isa(),
            "tiers": tiers,
            "caches": list(_core.cache_sizes()),
            "compiler": getattr(_core, "compiler", ""),
            "flags": getattr(_core, "flags", ""),
        }

    def do_load(self, module: str) -> dict[str, Any]:
        """Imports a module of the user's, whose ops then take part."""
        importlib.import_module(module)
        return {}

    def do_threads(self, count: int) -> dict[str, Any]:
        """Sets the library's thread count by its own call, and says what the library then reports."""
        self._settle(None)
        if self.library == "tilework":
            _core.set_num_threads(count)
            self.threads = _core.num_threads()
        else:
            self.threads = peers.load(self.library).set_threads(count)
        if self.threads != count:
            return {"error": f"{self.library} runs on {self.threads} threads; want {count}"}
        return {"threads": self.threads}

    def do_build(
        self,
        problem: str,
        answers: str,
        device: str = "cpu",
        copies: int = 1,
        cold: str = "none",
        timed: bool = True,
        operands: str = "",
    ) -> dict[str, Any]:
        """Makes the contestants of a problem and checks what they compute, with ``answers``, where results are kept.

        ``copies`` of the operands (of the weights alone, if ``cold`` says so) take turns. In the file ``operands`` the
        workers share those of the problem.
        """
        self.do_drop()
        self._settle(None)
        stated = parse(problem)
        first = check.shared_operands(stated, operands)
        begin = time.perf_counter()
        made = [self._make(stated, first, device)]
        for _ in range(1, copies):
            again = stated.operands()
            if cold == "weights":
                names = stated.target.operands
                again = tuple(b if n in ("w", "b") else a for n, a, b in zip(names, first, again, strict=False))
            made.append(self._make(stated, again, device))
        told: dict[str, Any] = {}
        self._keep = made
        if copies == 1 and device == "cpu" and timed:
            made += self._elsewhere(stated, first, time.perf_counter() - begin)
        for name, contestant in made[0].items():
            status = self._checked(stated, contestant, answers, first)
            told[name] = {"prepacked": contestant.prepacked, "wrong": status}
            if status:
                continue
            self._contestants[name] = contestant
            calls = [m[name].call for m in made]
            self._places[name] = [_Place(c) for c in calls] if copies == 1 else [_Place(_in_turn(calls))]
            self._next[name] = self._places[name][0].call
            if timed:
                once = self._once[name] = self._calibrated(name)
                self._calls[name] = max(1, min(_MOST_CALLS, int(_BLOCK_SECONDS / max(once, 1e-8))))
                told[name].update(calls=self._calls[name], once=once)
        return {"contestants": told}

    def _elsewhere(self, problem: Problem, operands: tuple[Any, ...], seconds: float) -> list[Any]:
        """The contestants at further places, as many as cost little; ``seconds`` is what the first took."""
        facts = problem.facts
        small = facts.read + facts.written < _PLACED_BYTES and seconds < _PLACED_SECONDS
        # A sample may be a view, which a copy would not be.
        again = problem.operands if problem.sample is not None else lambda: _copied(operands)
        return [self._make(problem, again(), "cpu") for _ in range(_PLACES - 1 if small else 0)]

    def _make(self, problem: Problem, operands: tuple[Any, ...], device: str) -> dict[str, peers.Contestant]:
        if self.library == "tilework":
            if isinstance(problem, NetworkProblem):
                return problem.contestants(operands)
            return ours.calls(problem, operands, device)
        if isinstance(problem, NetworkProblem) and self.library not in networks.PEERS:
            return {}
        made: dict[str, peers.Contestant] = peers.load(self.library).calls(problem, operands, self.threads)
        return made

    def _checked(self, problem: Problem, contestant: peers.Contestant, answers: str, operands: tuple[Any, ...]) -> str:
        if not answers:
            return ""
        if isinstance(problem, NetworkProblem):
            return self._checked_network(problem, contestant, answers)
        if self.library != "tilework":
            return check.peer_mismatch(contestant.results(), check.load(answers), problem)
        if problem.text != self._expected[0]:  # the same on another number of threads
            self._expected = problem.text, ours.expected(problem, operands)
        wrong, results = ours.check_answer(problem, operands, contestant, self._expected[1])
        if not wrong:
            check.save(answers, results)
        return wrong

    def _checked_network(self, problem: NetworkProblem, contestant: peers.Contestant, answers: str) -> str:
        if self.library == "tilework" and problem.text != self._expected[0]:
            self._expected = problem.text, networks.expected(problem)
        want = self._expected[1] if self.library == "tilework" else check.load(answers)
        kinked = problem.direction == "step" and problem.network.kinked
        wrong = networks.mismatch(contestant.results(), want, kinked=kinked)
        if self.library == "tilework" and not wrong:
            check.save(answers, want)
        return wrong

    def _calibrated(self, name: str) -> float:
        """The seconds of one call, roughly."""
        once = self._timed(name, 1)[0]
        for _ in range(2 if once < _BLOCK_SECONDS else 0):
            once = min(once, self._timed(name, 1)[0])
        return once

    def _timed(self, name: str, count: int) -> tuple[float, float]:
        call, finish = self._next[name], self._contestants[name].finish
        cpu, begin = time.process_time(), time.perf_counter()
        for _ in itertools.repeat(None, count):
            call()
        if finish:
            finish()
        return time.perf_counter() - begin, time.process_time() - cpu

    def do_block(self, name: str, cpu: int | None = None) -> dict[str, Any]:
        """One untimed call, then one block: seconds per call, the share spent waiting for a CPU, kernel seconds."""
        self._settle(cpu)
        count, places = self._calls[name], self._places[name]
        place = places[self._turns.get(name, 0) % len(places)]
        self._turns[name] = self._turns.get(name, 0) + 1
        self._next[name] = place.call
        place.result = None  # calls find the memory it had
        if self._once[name] < _WARM:
            self._timed(name, 1)
        on_device = self._contestants[name].finish is not None
        noting = self.library == "tilework" and not on_device
        waited, first = threads_waited(), _core.profile_begin() if noting and count * _LONG < _BLOCK_SECONDS else None
        try:
            wall, worked = self._timed(name, count)
            records = [] if first is None else _core.profile_records(first)
        finally:
            if first is not None:
                _core.profile_end()
        waited = (threads_waited() - waited) / wall
        # On one thread the CPU clock leaves out the time in which others had the core.
        seconds = min(wall, worked) if self.threads == 1 and not on_device else wall
        kernel = sum(s for *_, s in records) / count if records or not noting else self._kernel_seconds(name, count)
        if len(places) > 1 and self._once[name] < _HOLDING:
            place.result = place.call()
        answer = {"seconds": seconds / count, "waited": waited}
        # A kernel's own clock runs on while others have the core.
        return {**answer, "kernel": kernel} if kernel and waited < CLEAN else answer

    def _kernel_seconds(self, name: str, count: int) -> float:
        """Of calls so short that noting their kernels would lengthen them: a block of its own."""
        count = min(count, _PROFILED_CALLS)
        first = _core.profile_begin()
        try:
            for _ in range(count):
                self._next[name]()
            records = _core.profile_records(first)
        finally:
            _core.profile_end()
        return float(sum(seconds for *_, seconds in records)) / count

    def _settle(self, cpu: int | None) -> None:
        """Moves this thread to a CPU, or lets it go anywhere again."""
        wanted = self._cpus if cpu is None else {cpu}
        if os.sched_getaffinity(0) != wanted:
            os.sched_setaffinity(0, wanted)

    def do_peak(
        self, kind: str, seconds: float, bytes: int = 0, tier: str | None = None, cpu: int | None = None
    ) -> dict[str, Any]:
        """Operations, or bytes read and written, per second of a peak loop on the current number of threads."""
        self._settle(cpu)
        waited, begin = threads_waited(), time.perf_counter()
        operations, took = _core.peak(kind, seconds, self.threads, bytes, tier)
        return {"rate": operations / took, "waited": (threads_waited() - waited) / (time.perf_counter() - begin)}

    def do_device_peaks(self, device: str) -> dict[str, Any]:
        """Peaks of an OpenCL device."""
        from tilework.bench import device_peaks

        return device_peaks.measure(device)

    def do_drop(self) -> dict[str, Any]:
        """Forgets the contestants and gives their memory back."""
        for kept in (self._contestants, self._calls, self._once, self._next, self._places, self._turns):
            kept.clear()
        self._keep = []
        _core.trim()
        return {}


def _lines() -> Iterator[str]:
    while line := sys.stdin.readline():
        yield line


def _die_with_parent() -> None:
    """A stopped process does not notice that nobody will ask it again: the kernel has to end it."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone can
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def main() -> int:
    """Serves until the input ends. What libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in _lines():
        print(json.dumps(worker.handle(json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
