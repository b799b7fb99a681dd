"""Finding OpenCL devices, and what tilework keeps per (context, device): kernels, queues, memory pools, abilities."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from tilework.backends.opencl_programs import Programs
from tilework.backends.opencl_queue import Queue
from tilework.errors import DeviceError

NVIDIA_LIBRARY = "libnvidia-opencl.so.1"
NVIDIA_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
ICD_FOLDER = "/etc/OpenCL/vendors"
KEPT_CONTEXTS = 16

# How many products of matrix instructions stand for one of floats; 0: none, floats are multiplied as floats.
PRECISIONS = {"float32": 0, "fast32": 3, "tf32": 1}

_lock = threading.RLock()
_devices: dict[tuple[int, int], Device] = {}
_queues: dict[Any, Queue] = {}  # by pyopencl command queue
_machine: list[Device] = []
_found: tuple[list[Any], str] | None = None
_found_in = 0


class Device:
    """One OpenCL device in one context. ``queue()`` launches on it; ``name``, ``kind`` and sizes describe it.

    Without a context it makes one of its own when first used, so that listing devices costs nothing.
    """

    def __init__(self, device: Any, context: Any = None) -> None:
        import pyopencl as cl

        self.cl = device
        self.name: str = device.name.strip()
        self.platform: str = device.platform.name.strip()
        self.is_cpu = bool(device.type & cl.device_type.CPU)
        self.kind = "cpu" if self.is_cpu else "gpu" if device.type & cl.device_type.GPU else "accelerator"
        self.has_float64 = bool(device.double_fp_config)
        self.memory_limit: int = device.global_mem_size
        self.max_buffer: int = device.max_mem_alloc_size
        self.nvidia = _compute_capability(device)
        wanted = _wanted_core() or ("P" if self.is_cpu else "S")
        self.core = "P" if wanted == "P" else "S"  # T and W are S with matrix instructions
        # Matrix instructions for 16 bits and bytes; floats take them where products is not 0.
        self.tensor = wanted in ("T", "W") or (self.nvidia >= 80 and not _wanted_core())
        self.products = _wanted_products() if self.tensor or self.nvidia >= 80 else 0
        self.synchronous = os.environ.get("TILEWORK_CL_SYNC", "0") not in ("", "0")
        self.always_wide = os.environ.get("TILEWORK_CL_INDEX") == "long"
        self.launching = threading.Lock()  # a cl.Kernel keeps its arguments between set and enqueue
        self.context: Any = context
        self.programs: Programs = Programs(context, device, self._build_options())
        self._process = os.getpid()
        self._queues: list[Queue] = []
        self._own: Queue | None = None

    @property
    def multiplies_fragments(self) -> bool:
        """Whether matrix instructions are at hand, or their emulation was asked for."""
        return self.core == "S" and (self.tensor or self.nvidia >= 80)

    def _build_options(self) -> tuple[str, ...]:
        import pyopencl as cl

        options = ["-cl-std=CL1.2", "-cl-mad-enable", f"-DCORE_{self.core}"]
        if self.cl.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
            options.append("-cl-fp32-correctly-rounded-divide-sqrt")
        if self.nvidia:
            options.append(f"-DNVIDIA={self.nvidia}")
        options += os.environ.get("TILEWORK_CL_OPTIONS", "").split()
        return (*options, "-DON_CPU") if self.is_cpu else tuple(options)

    @functools.cached_property
    def warpgroups(self) -> bool:
        """Whether four warps multiply together; tried on first use, with the answer taken for yes in the meantime."""
        if _wanted_core() or self.nvidia != 90:
            return _wanted_core() == "W"
        from tilework.backends.opencl_gemm import warpgroups_work

        self.warpgroups = True
        return warpgroups_work(self.queue())

    def __repr__(self) -> str:
        return f"<tilework opencl device {self.name!r} ({self.kind}, {self.platform})>"

    def check_process(self) -> None:
        """OpenCL does not survive fork: in the child this raises instead of hanging."""
        if os.getpid() != self._process:
            raise DeviceError(
                f"OpenCL on {self.name!r} was used before this process was forked, and does not work in the child; "
                "start workers with multiprocessing's 'spawn', or fork before the first use"
            )

    def queue(self, command_queue: Any = None) -> Queue:
        """The Queue around a pyopencl command queue, or around this device's own in-order one."""
        self.check_process()
        with _lock:
            if command_queue is not None:
                return _queues.get(command_queue) or self._add(command_queue)
            if self._own is None:
                self._own = self._open()
            return self._own

    def _open(self) -> Queue:
        import pyopencl as cl

        try:
            if self.context is None:
                self.context = cl.Context([self.cl])
                self.programs = Programs(self.context, self.cl, self._build_options())
                _devices[self.context.int_ptr, self.cl.int_ptr] = self
            return self._add(cl.CommandQueue(self.context, self.cl))
        except cl.Error as error:
            raise DeviceError(f"{self.name!r} does not open: {error}") from error

    def _add(self, command_queue: Any) -> Queue:
        made = _queues[command_queue] = Queue(self, command_queue)
        self._queues.append(made)
        return made

    def finish(self) -> None:
        """Waits for everything tilework enqueued on this device."""
        self.check_process()
        for queue in list(self._queues):
            queue.finish()

    def forget(self) -> None:
        """Drops the queues, and with them their memory pools."""
        for queue in self._queues:
            del _queues[queue.cl]


def queue_of(array: Any) -> Queue:
    """The Queue of an array of any context: its own if it has one, else the one of its device."""
    known = _queues.get(array.queue)
    if known is not None:
        known.device.check_process()
        return known
    device = array.context.devices[0] if array.queue is None else array.queue.device
    return device_in(array.context, device).queue(array.queue)


def device_in(context: Any, device: Any) -> Device:
    """The Device of a pyopencl (context, device); the oldest of many contexts that users made is forgotten."""
    key = (context.int_ptr, device.int_ptr)
    with _lock:
        found = _devices.get(key)
        if found is None:
            theirs = [k for k, d in _devices.items() if d not in _machine]
            if len(theirs) >= KEPT_CONTEXTS:
                _devices.pop(theirs[0]).forget()
            found = _devices[key] = Device(device, context)
    return found


def devices_in_use() -> list[Device]:
    """Every Device that has a context."""
    return list(_devices.values())


def machine_devices() -> list[Device]:
    """The devices of this machine, GPUs first and CPUs last; the same objects every time."""
    with _lock:
        found, _ = found_devices()
        if not _machine:
            _machine.extend(Device(d) for d in found)
        return list(_machine) if found else []


def default_device() -> Device:
    """The device that TILEWORK_CL_DEVICE names, else the first GPU, else the first CPU."""
    return select(os.environ.get("TILEWORK_CL_DEVICE", ""))


def select(text: str) -> Device:
    """The device that ``text`` names: part of a platform's or device's name and a number, as in "nvidia:0".

    "gpu" and "cpu" name a kind; "" and "opencl" stand for any, which are sorted by kind.
    """
    devices = machine_devices()
    if not devices:
        raise DeviceError(f"no OpenCL device: {found_devices()[1]}")
    head, _, tail = text.rpartition(":")
    part, number = (head, int(tail)) if tail.isdigit() else (text, 0)
    part = "" if part.lower() == "opencl" else part.lower()
    by_kind = part in ("gpu", "cpu")
    matching = [d for d in devices if (part == d.kind if by_kind else part in f"{d.platform} {d.name}".lower())]
    if number >= len(matching):
        have = ", ".join(f"{d.name!r} of {d.platform!r}" for d in devices)
        raise DeviceError(f"no OpenCL device matches {text!r}; there are: {have}")
    return matching[number]


def found_devices() -> tuple[list[Any], str]:
    """All pyopencl devices, GPUs first and CPUs last, and why there are none."""
    global _found, _found_in
    if _found is None:
        with _lock:
            if _found is None:
                _found_in = os.getpid()
                _found = _find()
    if _found[0] and _found_in != os.getpid():
        return [], "OpenCL was in use before this process was forked; start workers with multiprocessing's 'spawn'"
    return _found


def _find() -> tuple[list[Any], str]:
    if importlib.util.find_spec("pyopencl") is None:
        return [], "pyopencl is not installed; want pip install 'tilework[opencl]'"
    try:
        with _NvidiaMadeVisible():
            import pyopencl as cl

            platforms = cl.get_platforms()
    except Exception as error:  # an import of a broken driver may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        if "PLATFORM_NOT_FOUND" in text:
            text = f"no driver is registered (no .icd file in {ICD_FOLDER}); PoCL comes with tilework[opencl]"
        return [], text
    devices = []
    problems = []
    for platform in platforms:
        try:
            devices += platform.get_devices()
        except cl.Error as error:
            problems.append(f"{platform.name.strip()}: {' '.join(str(error).split())}")
    order = {cl.device_type.GPU: 0, cl.device_type.CPU: 2}
    devices.sort(key=lambda d: min((rank for bit, rank in order.items() if d.type & bit), default=1))
    return devices, "" if devices else "; ".join(problems) or "the drivers offer no device"


class _NvidiaMadeVisible:
    """Shows the loader an NVIDIA driver that has no .icd file, as in many containers, while platforms are listed.

    The loader reads OPENCL_VENDOR_PATH once; the variable and the folder are gone again afterwards.
    """

    def __enter__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if os.environ.get("OPENCL_VENDOR_PATH") or os.environ.get("OCL_ICD_VENDORS"):
            return
        library = None if _has_icd() else _nvidia_library()
        if library is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="tilework-icd-")
            Path(self._folder.name, "nvidia.icd").write_text(library + "\n")
            for other in Path(ICD_FOLDER).glob("*.icd"):
                Path(self._folder.name, other.name).write_bytes(other.read_bytes())
            os.environ["OPENCL_VENDOR_PATH"] = self._folder.name

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            del os.environ["OPENCL_VENDOR_PATH"]
            self._folder.cleanup()


def _has_icd() -> bool:
    folder = Path(ICD_FOLDER)
    return folder.is_dir() and any("nvidia" in f.name for f in folder.glob("*.icd"))


def _nvidia_library() -> str | None:
    for path in (NVIDIA_LIBRARY, *(f"{folder}/{NVIDIA_LIBRARY}" for folder in NVIDIA_FOLDERS)):
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        return path
    return None


def _compute_capability(device: Any) -> int:
    """90 for sm_90; 0 where it is not NVIDIA's driver."""
    if "NVIDIA" not in device.platform.name:
        return 0
    return int(10 * device.compute_capability_major_nv + device.compute_capability_minor_nv)


def _wanted_core() -> str:
    core = os.environ.get("TILEWORK_CL_CORE", "")
    if core not in ("", "P", "S", "T", "W"):
        raise DeviceError(
            f"TILEWORK_CL_CORE={core!r}; want P (portable), S (tiles in local memory), T (matrix instructions) or "
            "W (those of warpgroups too)"
        )
    return core


def _wanted_products() -> int:
    precision = os.environ.get("TILEWORK_CL_PRECISION", "float32")
    if precision not in PRECISIONS:
        raise DeviceError(f"TILEWORK_CL_PRECISION={precision!r}; want {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]
