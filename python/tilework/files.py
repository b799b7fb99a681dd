"""Paths that users give, and files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilework.errors import AttrTypeError


def path_of(op: str, given: Any) -> Path:
    """The path in an argument called ``path``."""
    if not isinstance(given, (str, bytes, os.PathLike)):
        raise AttrTypeError(f"{op}: path={given!r:.80}; want a str or a pathlib.Path", op=op, argument="path")
    return Path(os.fsdecode(given))


@contextlib.contextmanager
def replacing(whole: Path) -> Iterator[Path]:
    """A path beside ``whole``; what is written there becomes ``whole`` at the end, unless something is raised."""
    partial = whole.with_name(f".{whole.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(whole)
    finally:
        partial.unlink(missing_ok=True)
