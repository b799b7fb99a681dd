"""Lets threadpoolctl, where it is used, read and limit tilework's threads like those of any other library."""

from __future__ import annotations

import functools
import sys

from tilework import _core


@functools.cache
def register() -> None:
    """Registers tilework with threadpoolctl, once; then ``threadpool_limits(2)`` holds for tilework too.

    Importing tilework does this where threadpoolctl has been imported before. Raises ImportError without threadpoolctl.
    """
    import threadpoolctl

    class TileworkController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "tilework"
        internal_api = "tilework"
        filename_prefixes = ("libtilework.",)

        def get_num_threads(self) -> int:
            return _core.num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            _core.set_num_threads(max(1, num_threads))

        def get_version(self) -> str:
            from tilework import __version__

            return __version__

    threadpoolctl.register(TileworkController)


def register_if_used() -> None:
    """:func:`register` where threadpoolctl has been imported, nothing otherwise."""
    if "threadpoolctl" in sys.modules:
        register()
