"""Compute kernels for n-dimensional layers, forward and backward: C++ SIMD and OpenCL behind the same numpy calls."""

from tilework import _core as _core
from tilework.devices import devices, synchronize, to_device, to_host
from tilework.errors import (
    AllocationError,
    AttrError,
    AttrTypeError,
    DeviceError,
    DTypeError,
    Error,
    IndexContentError,
    ShapeError,
    UnsupportedError,
)
from tilework.ops import *  # noqa: F403
from tilework.ops import __all__ as _ops
from tilework.settings import (
    Ran,
    from_dlpack,
    isa,
    num_threads,
    profile,
    set_isa,
    set_num_threads,
    threads,
    tiers,
    to_dlpack,
    trim,
)

__version__ = "0.1.0"

__all__ = [
    *_ops,
    "AllocationError",
    "AttrError",
    "AttrTypeError",
    "DTypeError",
    "DeviceError",
    "Error",
    "IndexContentError",
    "Ran",
    "ShapeError",
    "UnsupportedError",
    "__version__",
    "devices",
    "from_dlpack",
    "isa",
    "num_threads",
    "profile",
    "set_isa",
    "set_num_threads",
    "synchronize",
    "threads",
    "tiers",
    "to_device",
    "to_dlpack",
    "to_host",
    "trim",
]
