"""``tilework info``: what was built, what runs here, and why."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tilework
from tilework import _core
from tilework.linking import xla_handler_path

_COMPANIONS = ("ml_dtypes", "pyopencl", "torch", "onnx", "onnxruntime", "jax")


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def _opencl() -> list[tuple[str, str]]:
    from tilework.backends import opencl

    reason = opencl.why_none()
    if reason:
        return [("OpenCL", f"none: {reason}")]
    return [("OpenCL", f"{d.name} ({d.kind}, {d.platform})") for d in opencl.device_list()]


def facts() -> list[tuple[str, str]]:
    """What there is to say, as (name, text)."""
    active = _core.isa()
    tiers = [
        f"{name}{' (active)' if name == active else '' if runs else ' (not on this CPU)'}"
        for name, runs in _core.tiers()
    ]
    if _core.tiles_take_float16():
        tiers.append("with tiles of float16")
    level_one, level_two, level_three = map(_size, _core.cache_sizes())
    companions = [f"{n} {importlib.metadata.version(n)}" for n in _COMPANIONS if _is_installed(n)]
    return [
        ("tilework", f"{tilework.__version__}, {Path(tilework.__file__).parent}"),
        ("compiler", _core.compiler),
        ("Python", f"{platform.python_version()}, numpy {np.__version__}"),
        ("CPU", _cpu()),
        ("tiers", ", ".join(tiers)),
        ("caches", f"L1 {level_one}, L2 {level_two}, L3 {level_three}"),
        ("threads", f"{_core.num_threads()}, from {_core.thread_count_reason()}"),
        *_opencl(),
        ("JAX", _jax()),
        ("beside it", ", ".join(companions) or "none of " + ", ".join(_COMPANIONS)),
    ]


def _jax() -> str:
    handler = xla_handler_path()
    if handler is None:
        return "no handler: jaxlib's headers were not there when this was built"
    return "handler for XLA FFI {}.{}".format(*divmod(ctypes.CDLL(handler).tw_xla_version(), 1000))


def _cpu() -> str:
    from tilework.bench import machine

    return machine.cpu_name()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the facts: a table on a terminal with rich, plain lines otherwise."""
    argparse.ArgumentParser(prog="tilework info", description=__doc__).parse_args(argv)
    found = facts()
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        made = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, text in found:
            made.add_row(Text(name, style="bold cyan"), Text(text))
        Console().print(made)
    else:
        for name, text in found:
            print(f"{name:<10}{text}")
    return 0
