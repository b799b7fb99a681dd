"""What functions made of ops want of their arguments, and the errors of those ops under the functions' own names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from tilework.errors import AttrError, AttrTypeError, DTypeError, Error

P = ParamSpec("P")
R = TypeVar("R")


def own_errors(**arguments: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: what ops within say is wrong is said of the function; ``arguments`` are theirs with other names."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Error as error:
                before, _, text = str(error).partition(": ")
                if before == name or not text:
                    raise
                for theirs, ours in arguments.items():
                    if text.startswith((f"{theirs} ", f"{theirs}=")):
                        text = ours + text[len(theirs) :]
                argument = arguments.get(error.argument, error.argument)
                raise type(error)(f"{name}: {text}", op=name, argument=argument) from None

        return call

    return decorate


def want_array(op: str, **operands: Any) -> None:
    """Operands have a shape and a type."""
    for name, value in operands.items():
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise DTypeError(f"{op}: {name} is a {type(value).__name__}; want an array", argument=name)


def want_number(op: str, **values: Any) -> None:
    """Numbers that are finite."""
    for name, value in values.items():
        try:
            good = not isinstance(value, bool) and math.isfinite(float(value)) and not isinstance(value, str)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            wrong = AttrError if isinstance(value, (int, float)) else AttrTypeError
            raise wrong(f"{op}: {name}={value!r}; want a finite number", argument=name)


def want_color(op: str, color: Any) -> None:
    """Three numbers of 0 to 255."""
    try:
        good = len(color) == 3 and all(c == int(c) and 0 <= c <= 255 for c in color)
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise AttrError(f"{op}: color={color!r}; want three integers of 0 to 255", argument="color")
