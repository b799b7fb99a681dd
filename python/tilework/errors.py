"""The errors tilework raises: each is also the built-in error a caller would expect."""

from __future__ import annotations

from numpy.linalg import LinAlgError


class Error(Exception):
    """Base of every error of tilework; ``op`` and ``argument`` name what to blame (``""`` if nothing)."""

    op: str = ""
    argument: str = ""

    def __init__(self, message: str = "", *, op: str = "", argument: str = "") -> None:
        super().__init__(message)
        self.op = op
        self.argument = argument


class ShapeError(Error, ValueError):
    """A shape that does not fit, or a size that is not representable."""


class DTypeError(Error, TypeError):
    """An operand of the wrong type or element type."""


class AttrError(Error, ValueError):
    """An attribute outside its range."""


class AttrTypeError(Error, TypeError):
    """An attribute of the wrong type, or a call with a missing or surplus argument."""


class IndexContentError(Error, IndexError):
    """An index inside a tensor that points outside its target."""


class SingularError(Error, LinAlgError):
    """A matrix without an inverse, or one that is not positive definite; numpy's LinAlgError is a ValueError."""


class UnsupportedError(Error, NotImplementedError):
    """A combination that tilework does not compute on this device."""


class FormatError(Error, ValueError):
    """A file that is damaged, of another version, or of something else; or what no file can hold."""


class AllocationError(Error, MemoryError):
    """Memory that could not be had, with the bytes asked for."""


class DeviceError(Error, RuntimeError):
    """An OpenCL device, driver or kernel that failed."""
