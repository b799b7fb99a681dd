"""Compute kernels for n-dimensional layers, forward and backward: C++ SIMD and OpenCL behind the same numpy calls."""

import importlib
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
    FormatError,
    IndexContentError,
    ShapeError,
    SingularError,
    UnsupportedError,
)
from tilework.linking import cmake_dir, include_dir, library_path, pkgconfig_dir
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
    from tilework.autodiff import differentiable_ops, grad, stop_gradient, value_and_grad, vjp
    from tilework.graph import (
        Executable,
        Graph,
        Kernel,
        Variable,
        cond,
        kernel,
        load,
        number,
        scan,
        spec,
        trace,
        while_loop,
    )
    from tilework.ops import *  # noqa: F403
else:
    # Imported at first use, like the ops.
    _LATER = {
        "tilework.autodiff": ("differentiable_ops", "grad", "stop_gradient", "value_and_grad", "vjp"),
        "tilework.graph": ("Executable", "Graph", "Kernel", "Variable", "kernel", "load", "number", "spec", "trace"),
        "tilework.graph.control": ("cond", "scan", "while_loop"),
    }
    _MODULES = {name: module for module, names in _LATER.items() for name in names}

    _PARTS = ("nn", "train", "vision")  # type checkers ask for their import

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return importlib.import_module(f"tilework.{name}")
        if name in _MODULES:
            return globals().setdefault(name, getattr(importlib.import_module(_MODULES[name]), name))
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
    "Executable",
    "FormatError",
    "Graph",
    "IndexContentError",
    "Kernel",
    "Ran",
    "ShapeError",
    "SingularError",
    "UnsupportedError",
    "Variable",
    "__version__",
    "cmake_dir",
    "cond",
    "devices",
    "differentiable_ops",
    "from_dlpack",
    "grad",
    "include_dir",
    "isa",
    "kernel",
    "library_path",
    "load",
    "num_threads",
    "number",
    "pkgconfig_dir",
    "profile",
    "scan",
    "set_isa",
    "set_num_threads",
    "spec",
    "stop_gradient",
    "synchronize",
    "threads",
    "tiers",
    "to_device",
    "to_dlpack",
    "to_host",
    "trace",
    "trim",
    "value_and_grad",
    "vjp",
    "while_loop",
]
