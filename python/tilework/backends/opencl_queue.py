"""What an ``@opencl`` rule talks to: launches on one in-order command queue, and memory that belongs to it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.backends.opencl_plans import Plan, now
from tilework.errors import AllocationError, DeviceError, IndexContentError

if TYPE_CHECKING:
    from tilework.backends.opencl_device import Device
    from tilework.backends.opencl_programs import Written

# Arrays that span more elements than this are indexed in 64 bits; half of 2^31, so that sums of two indices fit.
WIDE_ELEMENTS = 1 << 30
GROUP_SIZE = 256


class Strided:
    """Marks a launch argument whose kernel walks the array's own strides: it is passed as it lies, never copied."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array


class Queue:
    """Launches kernels in order on one OpenCL command queue; results come from its memory pool.

    Arrays are passed to kernels as a buffer and the number of their first element, Python integers as long, Python
    floats in the DTYPE of the launch, and structs as int64 vectors.
    """

    def __init__(self, device: Device, command_queue: Any) -> None:
        import pyopencl as cl
        import pyopencl.array
        from pyopencl.tools import ImmediateAllocator, MemoryPool

        self._array: Any = pyopencl.array.Array
        self._quick = "_fast" in inspect.signature(pyopencl.array.Array.__init__).parameters
        self._context = command_queue.context
        self.plans: dict[Any, Plan] = {}
        self.device = device
        self.cl = command_queue
        self.pool = MemoryPool(ImmediateAllocator(command_queue))
        self._out_of_order = bool(command_queue.properties & cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE)

    # ------------------------------------------------------------------------------------------------ memory

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """A new contiguous array, also for workspace: freed arrays return to the pool at once, in queue order."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        data = self.allocate(nbytes) if nbytes else None
        if data is not None and now.recording is not None:
            now.recording.allocated(self, data, nbytes)
        return self.array(shape, dtype, data)

    def array(self, shape: tuple[int, ...], dtype: Any, data: Any) -> Any:
        """The contiguous array in a buffer of ours, past pyopencl's own look at shapes where that can be had."""
        if not self._quick:
            return self._array(self.cl, shape, dtype, data=data, allocator=self.pool)
        strides, step = [0] * len(shape), dtype.itemsize
        for axis in range(len(shape) - 1, -1, -1):
            strides[axis] = step
            step *= max(1, shape[axis])
        options = {"_fast": True, "_size": math.prod(shape), "_context": self._context, "_queue": self.cl}
        return self._array(None, shape, dtype, strides=tuple(strides), data=data, allocator=self.pool, **options)

    def allocate(self, nbytes: int) -> Any:
        """A buffer of the pool; held blocks are given back where memory runs out."""
        import pyopencl as cl

        limit = self.device.memory_limit
        if self.pool.managed_bytes + nbytes > limit:
            self.pool.free_held()
        reason = "that is more than the device has"
        if self.pool.managed_bytes + nbytes <= limit:
            try:
                return self.pool.allocate(nbytes)
            except cl.Error:
                self.pool.free_held()
            try:
                return self.pool.allocate(nbytes)
            except cl.Error as error:
                reason = str(error)
        raise AllocationError(
            f"{nbytes} bytes asked for on {self.device.name!r}, where tilework holds {self.pool.managed_bytes} of "
            f"{limit} and one buffer may have {self.device.max_buffer}: {reason}"
        )

    def number(self, value: float, dtype: Any) -> Any:
        """A 0-d array holding ``value``, written on the device."""
        array = self.empty((), dtype)
        self.fill(array, value)
        return array

    @functools.cached_property
    def nothing(self) -> Any:
        """One zero, for a kernel's argument that it never looks at; it is never written."""
        recording, now.recording = now.recording, None  # it stays beyond the call that first asked for it
        try:
            return self.number(0, np.int64)
        finally:
            now.recording = recording

    def unrepeatable(self) -> None:
        """Says that what is being done cannot be enqueued again as it is."""
        if now.recording is not None:
            now.recording.good = False

    def fill(self, array: Any, value: float) -> None:
        """Sets every element of a contiguous array."""
        if array.size:
            pattern = np.asarray(value, array.dtype).reshape(1).view(np.uint8)  # no buffer holds bfloat16
            if now.recording is not None:
                now.recording.filled(self, array.base_data, pattern, array.offset, array.nbytes)
            self.fill_bytes(array.base_data, pattern, array.offset, array.nbytes)

    def fill_bytes(self, buffer: Any, pattern: Any, offset: int, nbytes: int) -> None:
        """Repeats a pattern of bytes in a buffer."""
        import pyopencl as cl

        with ErrorsIn("fill"):
            cl.enqueue_fill_buffer(self.cl, buffer, pattern, offset, nbytes)
        self._ordered("fill")

    def contiguous(self, array: Any) -> Any:
        """The array itself if it is C-contiguous, else a copy made on the device."""
        if array.flags.c_contiguous:
            return array
        copy = self.empty(array.shape, array.dtype)
        self.copy(array, copy)
        return copy

    def copy(self, source: Any, target: Any) -> None:
        """Copies between arrays of one dtype, broadcasting ``source`` to the shape of ``target``."""
        self.each("movement.cl", "copy", (source, target), chunks=True, BITS=bits_of(source))

    def cast(self, source: Any, target: Any, *, saturate: bool = True) -> None:
        """Copies between arrays of two dtypes, broadcasting ``source`` to the shape of ``target``."""
        wraps = {} if saturate else {"WRAPS": 1}
        self.each("cast.cl", "cast", (source, target), SRC=source.dtype, DST=target.dtype, **wraps)

    # ---------------------------------------------------------------------------------------------- launching

    def launch(
        self, file: str | Written, kernel: str, items: int, group: int, args: Sequence[Any], **define: Any
    ) -> None:
        """Enqueues ``items`` work items (rounded up to whole groups) of a kernel specialised by ``define``.

        Arrays that are not contiguous are copied first, on the device, unless they are marked :class:`Strided`.
        A launch of no items is no launch.
        """
        if items == 0:
            return
        self.device.check_process()
        flat: list[Any] = []
        wide = self.device.always_wide
        for arg in args:
            if isinstance(arg, (int, float, np.ndarray)):
                flat.append(arg)
                continue
            array = arg.array if isinstance(arg, Strided) else self.contiguous(arg)
            flat += (array.base_data, array.offset // array.dtype.itemsize)
            wide = wide or (array.size if array.flags.c_contiguous else span(array)) >= WIDE_ELEMENTS
        define["INDEX"] = "long" if wide else "int"
        made = self.device.programs.kernel(file, kernel, define, flat)
        whole = (-(-items // group) * group,)
        what = f"kernel {kernel} of {file}"
        if now.recording is not None:
            now.recording.launched(self, what, made, whole, (group,), flat)
        self.enqueue(what, made, whole, (group,), flat)

    def enqueue(self, what: str, kernel: Any, items: tuple[int], group: tuple[int], args: list[Any]) -> None:
        """Enqueues a Kernel with all of its arguments; errors name ``what``."""
        with self.device.launching, ErrorsIn(what):
            self._enqueue(kernel, items, group, args)
        self._ordered(what)

    def _enqueue(self, kernel: Any, items: tuple[int], group: tuple[int], args: list[Any]) -> None:
        """Enqueues; where buffers get their memory at first use and there is none, held blocks are given back."""
        import pyopencl as cl

        try:
            kernel(self.cl, items, group, *args)
        except cl.MemoryError as error:
            if error.code != cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE:
                raise
            self.pool.free_held()
            kernel(self.cl, items, group, *args)

    def each(
        self, file: str, kernel: str, arrays: Sequence[Any], *scalars: float, chunks: int = False, **define: Any
    ) -> None:
        """Launches an each.clh kernel over the elements of the last array; the others broadcast to its shape.

        ``chunks``: the kernel can take elements of one size by 16 bytes, where arrays lie so.
        """
        shape = arrays[-1].shape
        count = arrays[-1].size
        if all(a.shape == shape and a.flags.c_contiguous for a in arrays):
            walk = np.array([count], np.int64)
        else:
            dims, strides = merged(shape, [broadcast_strides(a, shape) for a in arrays])
            walk = np.array([count, *dims, *(s for row in strides for s in row)], np.int64)
            define |= {"RANK": len(dims), "ARRAYS": len(arrays)}
        per_item = 4 if self.device.core == "S" else 1
        if chunks and per_item > 1 and "RANK" not in define and all(a.offset % 16 == 0 for a in arrays):
            per_item = 2 * 16 // arrays[0].dtype.itemsize
            define["VECTOR"] = 1
        define["ITEMS"] = per_item
        items = -(-count // per_item)
        self.launch(file, kernel, items, GROUP_SIZE, (*map(Strided, arrays), *scalars, walk), **define)

    def as_int64(self, array: Any) -> Any:
        """Integers in int64, contiguous, so that one build of a kernel reads them; one zero in place of None."""
        if array is None or array.size == 0:
            return self.nothing
        if array.dtype == np.int64:
            return self.contiguous(array)
        copy = self.empty(array.shape, np.int64)
        self.cast(array, copy)
        return copy

    def check_indices(self, name: str, indices: Any, limit: int, allowed: int | None = None, *, least: int = 0) -> None:
        """Raises IndexContentError unless every index is in [least, limit) or ``allowed``. Waits for the device."""
        none = np.iinfo(np.int32).max
        first = self.empty((), np.int32)
        self.fill(first, none)
        args = (indices, first, indices.size, least, limit, *(() if allowed is None else (allowed,)))
        define = {"DTYPE": indices.dtype} | ({} if allowed is None else {"ALLOWED": 1})
        self.launch("check.cl", "find_bad", indices.size, GROUP_SIZE, args, **define)
        where = int(self.read(first))
        if where != none:
            value = self.read(self.contiguous(indices).reshape(-1)[where : where + 1])[0]
            or_allowed = "" if allowed is None else f", or {allowed}"
            raise IndexContentError(
                f"{name} has {value} at position {where}; want {least} to {limit - 1}{or_allowed}", argument=name
            )

    def read(self, array: Any) -> Any:
        """A contiguous array's content as numpy. Waits."""
        self.unrepeatable()
        import pyopencl as cl

        host = np.empty(array.shape, array.dtype)
        if array.size:
            with ErrorsIn("copy to the host"):
                cl.enqueue_copy(self.cl, host, array.base_data, src_offset=array.offset, is_blocking=True)
        return host

    def write(self, host: Any, array: Any) -> None:
        """Fills a contiguous array from contiguous numpy memory. Waits, so that the memory may be reused."""
        self.unrepeatable()
        import pyopencl as cl

        if array.size:
            with ErrorsIn("copy to the device"):
                cl.enqueue_copy(self.cl, array.base_data, host, dst_offset=array.offset, is_blocking=True)

    def finish(self) -> None:
        """Waits for everything enqueued."""
        self.unrepeatable()
        self.device.check_process()
        with ErrorsIn("waiting for the device"):
            self.cl.finish()

    def wait_for(self, other: Queue) -> None:
        """Orders what is enqueued here from now on after what ``other`` was given so far."""
        self.unrepeatable()
        import pyopencl as cl

        with ErrorsIn("ordering two queues"):
            event = cl.enqueue_marker(other.cl)
            other.cl.flush()
            cl.enqueue_barrier(self.cl, wait_for=[event])

    def _ordered(self, what: str) -> None:
        import pyopencl as cl

        if self._out_of_order:
            cl.enqueue_barrier(self.cl)
        if self.device.synchronous:
            with ErrorsIn(what):
                self.cl.finish()


class ErrorsIn:
    """Turns an OpenCL error inside the block into a DeviceError, or AllocationError if memory ran out, naming ``what``.

    A kernel that failed shows in a later call, as OUT_OF_RESOURCES or as a queue that is not valid; the text says so.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyopencl as cl

        if not isinstance(error, cl.Error):
            return
        code = cl.status_code
        if error.code in (code.OUT_OF_RESOURCES, code.INVALID_COMMAND_QUEUE):
            raise DeviceError(
                f"{self._what} failed: {error}; a kernel before it may be the cause, and the context is lost then: "
                "TILEWORK_CL_SYNC=1 names the kernel"
            ) from error
        out_of_memory = isinstance(error, cl.MemoryError)
        raise (AllocationError if out_of_memory else DeviceError)(f"{self._what} failed: {error}") from error


# ---------------------------------------------------------------------------------------------------- strides


def bits_of(array: Any) -> str:
    """The unsigned OpenCL type of an element's size, for kernels that only move elements."""
    return {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}[array.dtype.itemsize]


def strides_of(array: Any) -> tuple[int, ...]:
    """Strides in elements."""
    size = array.dtype.itemsize
    return tuple(s // size for s in array.strides)


def span(array: Any) -> int:
    """Elements between the first and the last that the array touches."""
    sizes: tuple[int, ...] = array.shape
    return 1 + sum(abs(s) * (n - 1) for s, n in zip(strides_of(array), sizes, strict=True) if n > 1)


def broadcast_strides(array: Any, shape: Sequence[int]) -> list[int]:
    """Strides in elements of ``array`` broadcast to ``shape``: 0 along the stretched axes."""
    own = [0 if n == 1 else s for s, n in zip(strides_of(array), array.shape, strict=True)]
    return [0] * (len(shape) - len(own)) + own


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Neighbouring axes that every array walks as one are joined; axes of size 1 go. At least one axis remains."""
    dims: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        if dims and all(k[-1] == s[axis] * n for k, s in zip(kept, strides, strict=True)):
            dims[-1] *= n
            for k, s in zip(kept, strides, strict=True):
                k[-1] = s[axis]
        else:
            dims.append(n)
            for k, s in zip(kept, strides, strict=True):
                k.append(s[axis])
    return (dims, kept) if dims else ([1], [[0] for _ in strides])
