"""Kernel sources and their builds: expands headers, specialises by -D, keeps every Kernel, explains build errors."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilework.errors import DeviceError

LOG_LINES = 40

_DTYPE_NAMES = {
    "bool": "boolean",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "int64": "i64",
} | {
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
}
_INCLUDE = re.compile(r'\s*#include "([^"]+)"')


def source_folder() -> Path:
    """Where the .cl files lie: inside the installed package, or beside python/ in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels_cl", package.parent.parent / "kernels_cl"):
        if folder.is_dir():
            return folder
    raise DeviceError(f"the kernel sources are missing from {package / 'kernels_cl'}; reinstall tilework")


@functools.cache
def expanded(file: str) -> str:
    """The text of a .cl file with its headers in place; #line directives keep the compiler's messages true."""
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((source_folder() / file).read_text("ascii").splitlines(), 1):
        include = _INCLUDE.match(line)
        if include:
            lines += [expanded(include[1]), f'#line {number + 1} "{file}"']
        else:
            lines.append(line)
    return "\n".join(lines)


@dataclass(frozen=True)
class Written:
    """A kernel written at run time, behind the text of a .cl file."""

    file: str
    kernel: str

    def __str__(self) -> str:
        return self.file


def source_of(file: str | Written) -> str:
    """The whole text that is built for a .cl file or a written kernel."""
    return expanded(file) if isinstance(file, str) else f'{expanded(file.file)}\n#line 1 "kernel"\n{file.kernel}'


def dtype_name(dtype: np.dtype[Any]) -> str:
    """An element type as the kernels spell it: f32, bf16, i8."""
    return _DTYPE_NAMES[dtype.name]


def define_options(define: dict[str, Any]) -> tuple[str, ...]:
    """-D options in one order; dtypes are spelt as types.clh spells them."""
    return tuple(
        f"-D{name}={dtype_name(value) if isinstance(value, np.dtype) else value}"
        for name, value in sorted(define.items())
    )


def with_architecture(ptx: str) -> str:
    """PTX for sm_90 made PTX for sm_90a, and what stands behind //@ there let in."""
    return re.sub(r"\.target sm_90\b", ".target sm_90a", ptx).replace("//@", "")


class Programs:
    """The built programs of one device in one context. A first request builds, and the caller waits for it."""

    def __init__(self, context: Any, device: Any, options: tuple[str, ...]) -> None:
        self._context = context
        self._device = device
        self._options = options
        self._built: dict[tuple[str | Written, tuple[str, ...]], Any] = {}
        self._kernels: dict[tuple[str | Written, str, tuple[tuple[str, Any], ...]], Any] = {}
        self._lock = threading.Lock()

    def kernel(self, file: str | Written, name: str, define: dict[str, Any], args: Sequence[Any]) -> Any:
        """The Kernel ``name`` of ``file`` built with ``define``, ready for arguments like ``args``."""
        key = (file, name, tuple(define.items()))
        found = self._kernels.get(key)
        if found is None:
            with self._lock:
                found = self._make(file, name, define_options(define))
                found.set_scalar_arg_dtypes([_argument_type(a, define) for a in args])
                self._kernels[key] = found
        return found

    def _make(self, file: str | Written, name: str, defines: tuple[str, ...]) -> Any:
        import pyopencl as cl

        program = self._built.get((file, defines))
        if program is None:
            program = self._built[file, defines] = self._build(file, name, defines)
        try:
            return cl.Kernel(program, name)
        except cl.Error as error:
            raise DeviceError(f"kernel {name} is not in {file} built with {' '.join(defines)}: {error}") from error

    def _build(self, file: str | Written, name: str, defines: tuple[str, ...]) -> Any:
        import pyopencl as cl

        options = [*self._options, *defines]
        if any(option.startswith("-DNVIDIA=") for option in options):
            options += [f"-cl-nv-maxrregcount={d[12:]}" for d in defines if d.startswith("-DREGISTERS=")]
        try:
            program = cl.Program(self._context, source_of(file)).build(options, [self._device])
            if "-DWARPGROUPS=1" in defines and any(option.startswith("-DNVIDIA=") for option in options):
                text = program.get_info(cl.program_info.BINARIES)[0]
                text = with_architecture(bytes(text).decode("ascii").rstrip("\0"))
                program = cl.Program(self._context, [self._device], [text.encode("ascii")]).build(options[:1])
            return program
        except cl.Error as error:
            raise DeviceError(
                f"kernel {name} of {file} does not build on {self._device.name.strip()!r} with {' '.join(options)}:\n"
                + _readable_log(str(error))
            ) from error


def _readable_log(message: str) -> str:
    """The compiler's own lines out of pyopencl's message, and none of the files pyopencl leaves behind."""
    saved = re.search(r"\(source saved as (.*)\)", message)
    if saved:
        Path(saved[1]).unlink(missing_ok=True)
    log = message.partition("Build on <")[2].partition("\n\n")[2] or message
    log = log.partition("\n(options:")[0].strip()
    lines = log.splitlines()
    return "\n".join(lines[:LOG_LINES] + ([f"({len(lines) - LOG_LINES} more lines)"] if len(lines) > LOG_LINES else []))


def _argument_type(value: Any, define: dict[str, Any]) -> Any:
    """How pyopencl packs an argument: numbers by value, buffers and structs (None) as they are."""
    if isinstance(value, float):
        return np.float64 if define.get("DTYPE") == np.float64 else np.float32
    return np.int64 if isinstance(value, int) else None
