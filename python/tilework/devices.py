"""OpenCL devices as users see them. The first call that needs pyopencl imports it; ``import tilework`` never does."""

from __future__ import annotations

from typing import Any

from tilework.arrays import Array


def devices() -> list[Any]:
    """The OpenCL devices that can be used, best first; ``[]`` when there is none (``tilework info`` says why)."""
    from tilework.backends import opencl

    return opencl.device_list()


def to_device(a: Array, device: Any = None, *, like: Array | None = None, dtype: Any = None) -> Array:
    """Copies a numpy array to an OpenCL device and returns a ``pyopencl.array.Array``.

    ``device`` is an entry of :func:`devices`, ``"opencl"`` (the default device) or a name such as ``"nvidia:0"``;
    ``like`` is a device array whose queue to use. Raises :class:`DeviceError` when there is no device.
    """
    from tilework.backends import opencl

    return opencl.to_device(a, device, like=like, dtype=dtype)


def queue_on(device: Any) -> Any:
    """The queue on which arrays of ``device`` are moved and computed."""
    from tilework.backends import opencl

    return opencl.queue_for(device)


def to_host(a: Array) -> Array:
    """Copies a device array to a new numpy array, waiting for the kernels before it."""
    from tilework.backends import opencl

    return opencl.to_host(a)


def synchronize(device: Any = None) -> None:
    """Waits until everything enqueued on ``device`` (by default: on all used devices) is done."""
    from tilework.backends import opencl

    opencl.synchronize(device)
