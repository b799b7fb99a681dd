"""Compute kernels for n-dimensional layers, forward and backward: C++ SIMD and OpenCL behind the same numpy calls."""

from typing import TYPE_CHECKING, Any

from tilework import _core as _core, ops as _ops
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
    SingularError,
    UnsupportedError,
)
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

if TYPE_CHECKING:
    from tilework.ops import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name not in _ops.FAMILIES:
            raise AttributeError(f"module 'tilework' has no attribute {name!r}")
        return globals().setdefault(name, getattr(_ops, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "0.1.0"

__all__ = [
    *_ops.FAMILIES,
    "AllocationError",
    "AttrError",
    "AttrTypeError",
    "DTypeError",
    "DeviceError",
    "Error",
    "IndexContentError",
    "Ran",
    "ShapeError",
    "SingularError",
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
