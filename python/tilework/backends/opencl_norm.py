"""Launching norm.clh: which elements of an array make a line, and which parameter an element has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, merged
from tilework.backends.opencl_reduce import group_for

_WEIGHT, _BIAS, _RESIDUAL, _SUM, _STATS, _GIVEN, _UPDATES, _RELU = (1 << i for i in range(8))


class Lines:
    """Lines of x, seen in ``shape``, along ``axes``; parameter (line mod period) step + j / run of element j."""

    def __init__(
        self,
        x: Any,
        axes: tuple[int, ...],
        *,
        shape: tuple[int, ...] | None = None,
        file: str = "layer_norm.cl",
        period: int = 1,
        step: int = 0,
        run: int = 1,
    ) -> None:
        sizes = tuple(x.shape) if shape is None else shape
        strides = [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
        beside = [d for d in range(len(sizes)) if d not in axes]
        self.x, self.file = x, file
        self.n = math.prod(sizes[d] for d in axes)
        self.count = math.prod(sizes[d] for d in beside)
        kept, (kept_strides,) = merged([sizes[d] for d in beside], [[strides[d] for d in beside]])
        along, (along_strides,) = merged([sizes[d] for d in axes], [[strides[d] for d in axes]])
        self.define = {"KEPT": len(kept), "ALONG_AXES": len(along), "DTYPE": x.dtype}
        numbers = [self.count, self.n, period, step, max(1, run)]
        self.problem = np.array([*numbers, *kept, *kept_strides, *along, *along_strides], np.int64)
        self.contiguous = along_strides == [1]
        self.run, self.period = max(1, run), period

    def group(self, queue: Queue, n: int) -> int:
        """Items that share n elements."""
        return group_for(queue, n) if self.contiguous else 1


def _launch(
    queue: Queue, lines: Lines, kernel: str, rows: int, group: int, args: tuple[Any, ...], *, centred: bool
) -> None:
    define = lines.define | {"GROUP": group, "CENTRED": int(centred)}
    queue.launch(lines.file, kernel, rows * group, group if group > 1 else GROUP_SIZE, args, **define)


def normalised(
    queue: Queue,
    lines: Lines,
    parameters: tuple[Any, Any],
    residual: Any,
    y: Any,
    total: Any,
    stats: tuple[Any, Any] | None,
    eps: float,
    *,
    centred: bool = True,
    running: tuple[Any, Any] = (None, None),
    momentum: float | None = None,
    relu: bool = False,
) -> None:
    """y = lines of x (+ residual) normalised; ``running`` is moved by ``momentum``, or used instead if that is None."""
    weight, bias = parameters
    mean, rstd = stats or (None, None)
    use = running[0] is not None
    flags = (weight is not None) * _WEIGHT + (bias is not None) * _BIAS + (residual is not None) * _RESIDUAL
    flags += (total is not None) * _SUM + (stats is not None) * _STATS
    flags += use * (_GIVEN if momentum is None else _UPDATES) + relu * _RELU
    if lines.n == 0:
        for array in (mean, rstd):
            if array is not None:
                queue.fill(array, math.nan)
        return
    spare = y  # stands for what the flags leave out
    arrays = [spare if a is None else a for a in (residual, weight, bias)]
    results = [spare if a is None else a for a in (total, mean, rstd, *running)]
    args = (lines.x, *arrays, y, *results, lines.problem, flags, float(eps), float(momentum or 0.0))
    _launch(queue, lines, "norm", lines.count, lines.group(queue, lines.n), args, centred=centred)


def line_gradient(
    queue: Queue, lines: Lines, dy: Any, mean: Any, rstd: Any, weight: Any, dx: Any, *, constant: bool = False
) -> None:
    """dx from dy and the statistics; ``mean`` None: the lines are not centred. ``constant``: they do not move."""
    flags = (weight is not None) * _WEIGHT + constant * _GIVEN
    args = (dy, lines.x, rstd if mean is None else mean, rstd, dx if weight is None else weight, dx)
    group = lines.group(queue, lines.n)
    rows = lines.count if lines.n else 0
    _launch(queue, lines, "norm_dx", rows, group, (*args, lines.problem, flags), centred=mean is not None)


def parameter_gradient(queue: Queue, lines: Lines, dy: Any, mean: Any, rstd: Any, sums: tuple[Any, ...]) -> None:
    """dw and db (dw alone where ``mean`` is None) into ``sums``, if there are any."""
    if not sums:
        return
    dw, db = sums[0], sums[-1]
    if lines.x.size == 0:
        for array in sums:
            queue.fill(array, 0)
        return
    terms = lines.x.size // dw.size
    group = 1 if lines.run == 1 else lines.group(queue, terms)
    args = (dy, lines.x, rstd if mean is None else mean, rstd, dw, db, lines.problem, int(dw.size))
    _launch(queue, lines, "norm_sums", dw.size, group, args, centred=mean is not None)
