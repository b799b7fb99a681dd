"""Every op by name. A family is imported, and its ops registered, when the first of them is used.

Importing all of them would take longer than importing numpy. The table of contents is __init__.pyi, which type checkers
read too.
"""

import importlib
import re
import sys
from types import ModuleType
from typing import Any

with open(__file__ + "i") as _listing:  # noqa: PTH123  (pathlib takes longer to import than all of this package)
    FAMILIES = {
        name: family
        for family, names in re.findall(r"^from (\S+) import ([^(]+?$|\([^)]+\))", _listing.read(), re.MULTILINE)
        for name in re.findall(r"(\w+) as ", names)
    }

__all__ = list(FAMILIES)


class _Ops(ModuleType):
    """This module: it loads a family at first use, and gives a family and an op of one name to the op."""

    def __getattr__(self, name: str) -> Any:
        if name not in FAMILIES:
            raise AttributeError(f"module 'tilework.ops' has no attribute {name!r}")
        found = getattr(importlib.import_module(FAMILIES[name]), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        is_family = isinstance(value, ModuleType) and name in FAMILIES
        super().__setattr__(name, getattr(value, name) if is_family else value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *FAMILIES]


sys.modules[__name__].__class__ = _Ops
