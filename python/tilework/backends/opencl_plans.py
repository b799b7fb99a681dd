"""Calls that were made before: what they enqueued is enqueued again, without shape rule, checks or rule in between.

A plan belongs to a queue and to all that the launches of a call depend on: op, shapes, strides, dtypes and places in
their buffers of all arrays, which of them share a buffer, and attributes. It is written while such a call runs for the
first time: buffers allocated and filled, kernels launched with their arguments, where buffers of arrays and of the
call's own are numbered. A call that reads from the device, or waits for another queue, has no plan.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.errors import Error

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue

KEPT = 512  # plans of a queue

MISSING: Any = object()

_PLAIN = (bool, int, str, type(None), type, np.dtype)


class _Now(threading.local):
    """What this thread is recording."""

    recording: Recording | None = None


now = _Now()


class Named:
    """Puts the op's name in front of an error that a launch inside the block raises."""

    __slots__ = ("_op",)

    def __init__(self, op: str) -> None:
        self._op = op

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Error) and not error.op:
            error.op = self._op
            error.args = (f"{self._op}: {error}",)


class Described:
    """A call as plans know it: its arrays in order of appearance, and the key of its plan."""

    __slots__ = ("arrays", "key", "queue")

    def __init__(self, arrays: list[Any], key: tuple[Any, ...], queue: Queue) -> None:
        self.arrays, self.key, self.queue = arrays, key, queue

    def repeat(self, name: str) -> Any:
        """Results of the call by its plan; MISSING if it has none."""
        plan = self.queue.plans.get(self.key)
        return MISSING if plan is None else plan.repeat(name, self.queue, self.arrays)

    def keep(self, recording: Recording, results: Sequence[Any]) -> None:
        """Keeps what was recorded as the plan of calls like this one."""
        plans = self.queue.plans
        if recording.good:
            for oldest in list(plans)[: len(plans) - KEPT + 1]:
                plans.pop(oldest, None)
            plans[self.key] = Plan(recording, results)


def described(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: Any) -> Described | None:
    """How plans know a call with arrays of type ``kind`` on one queue; None if they do not, or within another call."""
    if now.recording is not None:
        return None
    arrays: list[Any] = []
    known: list[Any] = [op]
    for value in args:
        if not _describe(value, kind, arrays, known):
            return None
    for name, value in kwargs.items():
        known.append(name)
        if not _describe(value, kind, arrays, known):
            return None
    if not arrays:
        return None
    first = arrays[0].queue
    if first is None or any(a.queue is not first for a in arrays):
        return None
    from tilework.backends.opencl_device import queue_of

    queue = queue_of(arrays[0])
    device = queue.device
    return Described(arrays, (*known, device.tensor, device.products), queue)


def _describe(value: Any, kind: Any, arrays: list[Any], known: list[Any]) -> bool:
    """Adds what counts of one argument; False if nobody knows what does."""
    of = type(value)
    if of is kind:
        shared = len(arrays)
        if shared and value.size:
            memory = value.base_data.int_ptr
            for i, other in enumerate(arrays):
                if other.size and other.base_data.int_ptr == memory:
                    shared = i
                    break
        known += (kind, value.shape, value.strides, value.dtype, value.offset, shared)
        arrays.append(value)
        return True
    if of is float:
        known += (of, value.hex())  # which tells -0.0 from 0.0
        return True
    if of in (list, tuple):
        known += (of, len(value))
        return all(_describe(v, kind, arrays, known) for v in value)
    if isinstance(value, _PLAIN):
        known += (of, value)
        return True
    return False


class Recording:
    """Around the first run of a call: writes down what its queue enqueues in this thread."""

    def __init__(self, call: Described) -> None:
        self.queue, self.good = call.queue, True
        self.numbers: dict[int, int] = {}
        self.held = [a.base_data for a in call.arrays]  # alive, so that no other buffer gets its id
        for i, buffer in enumerate(self.held):
            if buffer is not None:
                self.numbers.setdefault(id(buffer), i)
        self.given = list(call.arrays)
        self.steps: list[tuple[Any, ...]] = []

    def __enter__(self) -> Recording:
        now.recording = self
        return self

    def __exit__(self, kind: Any, *exception: object) -> None:
        now.recording = None
        self.good = self.good and kind is None

    def allocated(self, queue: Queue, buffer: Any, nbytes: int) -> None:
        self.good = self.good and queue is self.queue
        self.numbers[id(buffer)] = len(self.held)
        self.steps.append(("allocate", len(self.held), nbytes))
        self.held.append(buffer)

    def filled(self, queue: Queue, buffer: Any, pattern: Any, offset: int, nbytes: int) -> None:
        number = self.numbers.get(id(buffer))
        self.good = self.good and queue is self.queue and number is not None
        self.steps.append(("fill", number, pattern, offset, nbytes))

    def launched(self, queue: Queue, what: str, kernel: Any, items: Any, group: Any, args: Sequence[Any]) -> None:
        self.good = self.good and queue is self.queue
        buffers = [(i, self.numbers[id(a)]) for i, a in enumerate(args) if a is not None and id(a) in self.numbers]
        own = {i for i, _ in buffers}
        fixed = [None if i in own else a.copy() if isinstance(a, np.ndarray) else a for i, a in enumerate(args)]
        self.steps.append(("launch", what, kernel, items, group, fixed, buffers))


class Plan:
    """What a call enqueues, and which arrays it returns."""

    def __init__(self, recording: Recording, results: Sequence[Any]) -> None:
        given = len(recording.given)
        self._room = len(recording.held) - given
        self._results: list[tuple[int, tuple[int, ...], Any]] = []  # number of a given array, or of a buffer; its form
        for r in results:
            same = next((i for i, a in enumerate(recording.given) if a is r), None)
            number = -1 if r.base_data is None else recording.numbers[id(r.base_data)]
            self._results.append((same, (), None) if same is not None else (number, tuple(r.shape), r.dtype))
        self._fresh = [all(a is not r for a in recording.given) for r in results]
        returned = {n for (n, _, _), fresh in zip(self._results, self._fresh, strict=True) if fresh}
        last: dict[int, int] = {}
        for at, step in enumerate(recording.steps):
            used = [n for _, n in step[6]] if step[0] == "launch" else [step[1]]
            last |= dict.fromkeys(used, at)
        self._steps = [
            (*step, [n for n, end in last.items() if end == at and n >= given and n not in returned])
            for at, step in enumerate(recording.steps)
        ]

    def repeat(self, name: str, queue: Queue, arrays: Sequence[Any]) -> Any:
        """Enqueues all of it for other arrays of the same description."""
        queue.device.check_process()
        buffers = [a.base_data for a in arrays] + [None] * self._room
        with Named(name):
            for step in self._steps:
                if step[0] == "launch":
                    _, what, kernel, items, group, fixed, places, ended = step
                    args = list(fixed)
                    for i, number in places:
                        args[i] = buffers[number]
                    queue.enqueue(what, kernel, items, group, args)
                elif step[0] == "allocate":
                    _, number, nbytes, ended = step
                    buffers[number] = queue.allocate(nbytes)
                else:
                    _, number, pattern, offset, nbytes, ended = step
                    queue.fill_bytes(buffers[number], pattern, offset, nbytes)
                for number in ended:
                    buffers[number] = None
        results = [
            queue.array(shape, dtype, None if number < 0 else buffers[number]) if fresh else arrays[number]
            for (number, shape, dtype), fresh in zip(self._results, self._fresh, strict=True)
        ]
        return results[0] if len(results) == 1 else tuple(results) or None
