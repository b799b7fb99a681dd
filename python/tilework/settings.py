"""Threads, tiers, the profile and memory: what is set for the process or for a ``with`` block."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

from tilework import _core
from tilework.errors import AttrError, AttrTypeError, Error


def _check_environment() -> None:
    """A malformed TILEWORK_* variable is an error at import, where its cause is easy to see."""
    for problem in (_core.thread_count_error(), _core.isa_error()):
        if problem:
            raise Error(problem)


_check_environment()


def num_threads() -> int:
    """How many threads a call from this thread may use now."""
    return _core.num_threads()


def _checked_count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise AttrTypeError(f"threads: n={n!r} is a {type(n).__name__}; want an int", op="threads", argument="n")
    if not 1 <= n <= 1024:
        raise AttrError(f"threads: n={n}; want 1 to 1024", op="threads", argument="n")
    return n


def set_num_threads(n: int) -> None:
    """Sets the number of threads of every later call, for the whole process."""
    _core.set_num_threads(_checked_count(n))


class threads:  # noqa: N801  (used like a function)
    """``with tw.threads(1):`` limits calls made by this Python thread inside the block."""

    def __init__(self, n: int) -> None:
        self._n = _checked_count(n)

    def __enter__(self) -> threads:
        self._before = _core.set_thread_limit(self._n)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        _core.set_thread_limit(self._before)


def isa() -> str:
    """The active tier: the instruction set that calls run on now."""
    return _core.isa()


def tiers() -> list[str]:
    """The tiers this CPU can run, worst first."""
    return [name for name, runs in _core.tiers() if runs]


def set_isa(name: str) -> None:
    """Forces a tier by name, or ``"auto"`` for the best; an unknown or unsupported name is an :class:`AttrError`."""
    if not isinstance(name, str):
        raise AttrTypeError(
            f"set_isa: name={name!r} is a {type(name).__name__}; want a str", op="set_isa", argument="name"
        )
    _core.set_isa(name)


class Ran(NamedTuple):
    """One kernel run: the op, the path it took, the tier, the threads it could use and its seconds."""

    op: str
    kernel: str
    tier: str
    threads: int
    seconds: float


class profile:  # noqa: N801  (used like a function)
    """``with tw.profile() as ran:`` records every kernel run inside the block; iterate or print ``ran`` afterwards."""

    def __enter__(self) -> profile:
        self._first = _core.profile_begin()
        self._runs: list[Ran] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._runs = self._read()
        _core.profile_end()

    def _read(self) -> list[Ran]:
        return [Ran(*record) for record in _core.profile_records(self._first)]

    def __iter__(self) -> Iterator[Ran]:
        return iter(self._read() if self._runs is None else self._runs)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __str__(self) -> str:
        lines = [f"{'op':<28}{'kernel':<24}{'tier':<12}{'threads':>7}{'us':>12}"]
        lines += [f"{r.op:<28}{r.kernel:<24}{r.tier:<12}{r.threads:>7}{1e6 * r.seconds:>12.1f}" for r in self]
        return "\n".join(lines)


def from_dlpack(producer: Any) -> Any:
    """Borrows a CPU array from any object with ``__dlpack__`` as a numpy array, without a copy; bfloat16 included."""
    return _core.from_dlpack(producer)


def to_dlpack(array: Any) -> Any:
    """A DLPack capsule (version 1) for a numpy array, bfloat16 included, which numpy itself cannot export."""
    return _core.to_dlpack(array)


def trim() -> None:
    """Gives cached memory back to the system."""
    _core.trim()


if os.environ.get("TILEWORK_PROFILE") == "1":
    import atexit

    _session = profile().__enter__()
    atexit.register(lambda: print(_session, file=sys.stderr))
