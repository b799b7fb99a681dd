"""The OpenCL backend: runs ops on pyopencl arrays and moves arrays when asked to. Imports pyopencl on first use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import _core
from tilework.backends.opencl_checks import check_written
from tilework.backends.opencl_device import (
    Device,
    default_device,
    devices_in_use,
    found_devices,
    machine_devices,
    queue_of,
    select,
)
from tilework.backends.opencl_plans import Described, Named, Recording
from tilework.backends.opencl_programs import Written
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.dispatch import borrow, is_device_array
from tilework.errors import AttrTypeError, DTypeError, UnsupportedError

if TYPE_CHECKING:
    from tilework.registry import Op

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool")


def run(
    op: Op[..., Any], operands: tuple[Any, ...], attrs: dict[str, Any], out: Any, call: Described | None = None
) -> Any:
    """Enqueues ``op`` where its operands are; returns its results, device arrays that may still be computing.

    Calls like ``call`` are to be repeated without coming here.
    """
    outs = () if out is None else out if isinstance(out, tuple) else (out,)
    arrays = [a for a in (*_flatten(operands), *outs) if is_device_array(a)]
    specs, resolved = _core.infer(op.name, list(operands), attrs)
    rule = op.rules.get("opencl")
    if rule is None:
        raise UnsupportedError(
            f"{op.name}: has no OpenCL kernel; want its operands on the CPU (tilework.to_host)", op=op.name
        )
    queue, others = _queues(op.name, arrays)
    _check_float64(op.name, queue.device, arrays)
    _check_dtypes(op.name, specs)
    check_written(op, operands, outs, specs)
    recording = None if call is None or others else Recording(call)
    with Named(op.name), recording or nullcontext():
        results = [
            outs[i] if outs and outs[i].flags.c_contiguous else queue.empty(shape, dtype)
            for i, (shape, dtype) in enumerate(specs)
        ]
        for other in others:
            queue.wait_for(other)
        rule(queue, *operands, *results, **resolved)
        for given, result in zip(outs, results, strict=bool(outs)):
            if given is not result:
                queue.copy(result, given)
        for other in others:
            other.wait_for(queue)
    finished = list(outs) or results
    if call is not None and recording is not None:
        call.keep(recording, finished)
    return finished[0] if len(finished) == 1 else tuple(finished) or None


def _check_dtypes(name: str, specs: Sequence[Any]) -> None:
    for _, dtype in specs:
        if np.dtype(dtype).name not in DTYPES:
            raise UnsupportedError(
                f"{name}: the result has dtype {dtype}, which is the CPU's alone; want one of {', '.join(DTYPES)}",
                op=name,
            )


def queue_for(device: Any) -> Queue:
    """The queue of a device, as ``to_device`` takes it."""
    return _queue_for(device, None)


def hold(queue: Queue, events: Sequence[Any]) -> None:
    """Lets what is enqueued from now on wait for OpenCL events."""
    import pyopencl as cl

    for event in events:
        if not isinstance(event, cl.Event):
            raise DTypeError(f"start: after has a {type(event).__name__}; want pyopencl events", argument="after")
    if events:
        cl.enqueue_barrier(queue.cl, wait_for=list(events))


def mark(queue: Queue) -> Any:
    """The OpenCL event of all that was enqueued so far, which begins now if it had not."""
    import pyopencl as cl

    event = cl.enqueue_marker(queue.cl)
    queue.cl.flush()
    return event


def run_source(
    name: str, source: str, operands: Sequence[Any], specs: Any, numbers: Sequence[float], items: int | None
) -> list[Any]:
    """Enqueues the kernel ``name`` of a user's source on device arrays: (operands, results, numbers, items)."""
    queue, others = _queues(name, operands)
    _check_float64(name, queue.device, operands)
    with Named(name):
        results = [queue.empty(shape, dtype) for shape, dtype in specs]
        for other in others:
            queue.wait_for(other)
        count = results[0].size if items is None else items
        args = (*operands, *results, *numbers, count)
        queue.launch(Written("types.clh", source), name, count, GROUP_SIZE, args, DTYPE=operands[0].dtype)
        for other in others:
            other.wait_for(queue)
    return results


# ------------------------------------------------------------------------------------------- moving arrays


def device_list() -> list[Device]:
    """The OpenCL devices of this machine, GPUs first; empty if there are none (:func:`why_none` says why)."""
    return machine_devices()


def why_none() -> str:
    """One line saying why :func:`device_list` is empty, "" if it is not."""
    return found_devices()[1]


def to_device(a: Any, device: Any = None, *, like: Any = None, dtype: Any = None) -> Any:
    """Copies an array to an OpenCL device, as a ``pyopencl.array.Array``.

    ``device`` is None or "opencl" (the default device), a text like "nvidia:0", an item of ``devices()``, or a
    pyopencl Context or CommandQueue; ``like`` is an array on the device that is meant. ``dtype`` converts on the way.
    An array that is already there in that dtype is returned as it is.
    """
    queue = _queue_for(device, like)
    if is_device_array(a):
        if queue_of(a).device is queue.device and dtype in (None, a.dtype):
            return a
        a = to_host(a)
    host = np.asarray(borrow("to_device", "a", a), dtype=dtype, order="C")
    if host.dtype.name not in DTYPES or not host.dtype.isnative:
        raise DTypeError(f"to_device: a has dtype {host.dtype}; want one of {', '.join(DTYPES)}", argument="a")
    with Named("to_device"):
        array = queue.empty(host.shape, host.dtype)
        queue.write(host, array)
    return array


def to_host(a: Any) -> Any:
    """Copies a device array to a new numpy array, waiting for what computes it; numpy arrays pass through."""
    if not is_device_array(a):
        return np.asarray(borrow("to_host", "a", a))
    queue, _ = _queues("to_host", [a])
    with Named("to_host"):
        return queue.read(queue.contiguous(a))


def synchronize(device: Any = None) -> None:
    """Waits until everything enqueued on ``device`` (default: on every device in use) is done."""
    for one in devices_in_use() if device is None else [_queue_for(device, None).device]:
        one.finish()


def _queue_for(device: Any, like: Any) -> Queue:
    if like is not None:
        if not is_device_array(like):
            raise DTypeError(f"to_device: like is a {type(like).__name__}; want an array on a device", argument="like")
        return _queues("to_device", [like])[0]
    if device is None:
        return default_device().queue()
    if isinstance(device, Device):
        return device.queue()
    if isinstance(device, str):
        return (default_device() if device == "opencl" else select(device)).queue()
    import pyopencl as cl

    from tilework.backends.opencl_device import device_in

    if isinstance(device, cl.Context):
        return device_in(device, device.devices[0]).queue()
    if isinstance(device, cl.CommandQueue):
        return device_in(device.context, device.device).queue(device)
    raise AttrTypeError(
        f"device is a {type(device).__name__}; want None, a text like 'nvidia:0', an item of tilework.devices(), "
        "or a pyopencl Context or CommandQueue",
        argument="device",
    )


# ------------------------------------------------------------------------------------------- before a launch


def _flatten(operands: Iterable[Any]) -> Iterable[Any]:
    for operand in operands:
        if isinstance(operand, (list, tuple)):
            yield from operand
        else:
            yield operand


def _queues(op: str, arrays: Sequence[Any]) -> tuple[Queue, list[Queue]]:
    """The queue of the first array, and the other queues that the arrays are used on."""
    queue = queue_of(arrays[0])
    others: list[Queue] = []
    for array in arrays[1:]:
        other = queue_of(array)
        if other.device is not queue.device:
            raise DTypeError(
                f"{op}: the arrays are on {queue.device.name!r} and on {other.device.name!r}, or in two contexts; "
                "move one with tilework.to_device(..., like=...)",
                op=op,
            )
        if other is not queue and other not in others:
            others.append(other)
    return queue, others


def _check_float64(op: str, device: Device, arrays: Sequence[Any]) -> None:
    if not device.has_float64 and any(a.dtype == np.float64 for a in arrays):
        raise UnsupportedError(f"{op}: {device.name!r} has no float64; want float32", op=op)
