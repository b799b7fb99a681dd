"""The reference backend: the ops' numpy rules in float64, rounded once to the dtype of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import _core
from tilework.dtypes import is_floating, rounded

if TYPE_CHECKING:
    from tilework.registry import Op


def widen(value: Any) -> Any:
    """Floating operands as float64; integers and None as they are; lists element by element."""
    if isinstance(value, (list, tuple)):
        return [widen(v) for v in value]
    if value is None or not is_floating(np.asarray(value).dtype):
        return value
    return np.asarray(value).astype(np.float64)


def run(op: Op[..., Any], operands: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """The result of ``op`` by its reference rule, in the dtypes its shape rule gives."""
    results, dtypes = run_wide(op, operands, attrs)
    narrowed = tuple(rounded(r, d) for r, d in zip(results, dtypes, strict=False))  # updated operands come after
    return narrowed if len(narrowed) > 1 else narrowed[0]


def run_wide(op: Op[..., Any], operands: tuple[Any, ...], attrs: dict[str, Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """The float64 results before rounding, and the dtypes they would be rounded to."""
    wide = tuple(widen(o) for o in operands)
    if op.is_view:
        result = op(*operands, **attrs)
        return (np.asarray(result, dtype=np.float64),), [result.dtype]
    specs, resolved = _core.infer(op.name, list(operands), attrs)
    with np.errstate(all="ignore"):
        results = op.rules["reference"](*wide, **resolved)
    if not isinstance(results, tuple):
        results = (results,)
    return results, [dtype for _, dtype in specs]
