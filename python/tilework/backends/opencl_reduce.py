"""Launching reduce.cl over any axes and strides, and how many items share a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, Strided, merged, strides_of
from tilework.dtypes import is_narrow

# Work-groups that fill a large GPU, and the shortest share of a reduction that is worth a second pass.
WANTED_GROUPS = 512
MIN_SHARE = 2048


def group_for(queue: Queue, n: int) -> int:
    """Items that share a contiguous row of n elements: 1 where barriers cost more than they bring."""
    if queue.device.core == "P" or n <= 8:
        return 1
    return 32 if n <= 128 else 128 if n <= 2048 else 256


def accumulator(dtype: Any) -> Any:
    """The dtype that sums of ``dtype`` are kept in: float32 for 16-bit floats."""
    return np.dtype(np.float32) if is_narrow(dtype) else dtype


def reduce(
    queue: Queue, kind: str, x: Any, y: Any, axes: tuple[int, ...], *, divisor: float = 1.0, largest: Any = None
) -> None:
    """y = ``kind`` ("sum", "max" or "count" of elements equal to ``largest``) of x over axes, divided by ``divisor``.

    y holds one element per kept place of x, contiguous, in any shape; x may have any strides.
    """
    strides = strides_of(x)
    kept, (kept_strides,) = _merged_axes(x, strides, [a for a in range(x.ndim) if a not in axes])
    dims, (dim_strides,) = _merged_axes(x, strides, list(axes))
    count, results = math.prod(x.shape[a] for a in axes), y.size
    if not results:
        return
    by_row = abs(dim_strides[-1]) <= abs(kept_strides[-1]) or results < 32
    group = group_for(queue, count) if by_row else 1
    wanted = WANTED_GROUPS if queue.device.core == "S" else 1
    shares = max(1, min(wanted * (GROUP_SIZE if group == 1 else 1) // results, count // MIN_SHARE))
    share = -(-count // shares)
    shares = max(1, -(-count // share)) if share else 1
    target = queue.empty((shares, results), accumulator(y.dtype)) if shares > 1 else y
    problem = np.array([results, count, share, *kept, *kept_strides, *dims, *dim_strides], np.int64)
    queue.launch(
        "reduce.cl",
        "reduce",
        results * shares * group,
        group if group > 1 else GROUP_SIZE,
        (Strided(x), *([] if largest is None else [largest]), target, problem, divisor if shares == 1 else 1.0),
        **{
            "DTYPE": x.dtype,
            "INTO": target.dtype,
            "GROUP": group,
            "SHARES": shares,
            "KEPT": len(kept),
            "REDUCED": len(dims),
            f"REDUCE_{kind}": 1,
        },
    )
    if shares > 1:
        reduce(queue, "max" if kind == "max" else "sum", target, y, (0,), divisor=divisor)


def _merged_axes(x: Any, strides: tuple[int, ...], axes: list[int]) -> tuple[list[int], list[list[int]]]:
    return merged([x.shape[a] for a in axes], [[strides[a] for a in axes]])
