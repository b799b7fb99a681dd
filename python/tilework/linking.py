"""Where C and C++ programs find the header, the library and the files that describe them."""

from __future__ import annotations

import sys
from pathlib import Path

from tilework import _core

_ROOT = Path(str(_core.__file__)).parent
_NAMES = {"darwin": "libtilework.dylib", "win32": "tilework.dll"}


def include_dir() -> str:
    """The folder to compile with, ``-I``: ``tilework/tilework.h`` is in it."""
    return str(_ROOT / "include")


def library_path() -> str:
    """The shared library itself, for ctypes and other foreign-function interfaces."""
    return str(_ROOT / "lib" / _NAMES.get(sys.platform, "libtilework.so"))


def xla_handler_path() -> str | None:
    """The library that JAX calls, None where tilework was built without jaxlib's headers."""
    library = Path(library_path())
    handler = library.with_name(library.name.replace("tilework", "tilework_xla"))
    return str(handler) if handler.exists() else None


def cmake_dir() -> str:
    """The folder for ``-Dtilework_DIR=``, so that ``find_package(tilework)`` gives ``tilework::tilework``."""
    return str(_ROOT / "lib" / "cmake" / "tilework")


def pkgconfig_dir() -> str:
    """The folder for ``PKG_CONFIG_PATH``, so that ``pkg-config tilework`` works."""
    return str(_ROOT / "lib" / "pkgconfig")
