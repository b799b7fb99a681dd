"""Launching norm.clh: which elements of an array make a line, and which parameter an element has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue, merged
from tilework.backends.opencl_reduce import WANTED_GROUPS, accumulator, group_for, reduce

_WEIGHT, _BIAS, _RESIDUAL, _SUM, _STATS, _GIVEN, _UPDATES, _RELU, _SUMS_TOO = (1 << i for i in range(9))
_LONG = 1 << 14  # elements of a line that 512 items share
_MIN_SHARE = 64  # terms of a parameter's sum


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
        self.beside = bool(along_strides) and along_strides[-1] == 1 and along[-1] >= 16
        self.run, self.period, self.step = max(1, run), period, step

    def group(self, queue: Queue, n: int) -> int:
        """Items that share n elements."""
        if not self.beside:
            return 1
        most = group_for(queue, n)
        return 2 * most if most == 256 and n >= _LONG else most

    @property
    def parameter_each(self) -> bool:
        """Whether every line has one parameter, and no other line has it."""
        return self.step == 1 and self.run >= self.n and self.period == self.count


def _launch(
    queue: Queue,
    lines: Lines,
    kernel: str,
    rows: int,
    group: int,
    args: tuple[Any, ...],
    *,
    centred: bool,
    **extra: Any,
) -> None:
    define = lines.define | {"GROUP": group, "CENTRED": int(centred)} | extra
    if kernel != "norm_sums" and lines.contiguous and group > 1 and lines.n <= 16 * group:
        define["PER_ITEM"] = 1 << (-(-lines.n // group) - 1).bit_length()
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


def gradients(
    queue: Queue,
    lines: Lines,
    dy: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    dx: Any,
    sums: tuple[Any, ...],
    *,
    constant: bool = False,
) -> None:
    """dx, and dw and db into ``sums`` if there are any: dw alone where ``mean`` is None, as lines are not centred.

    ``constant``: the statistics do not move with x.
    """
    centred = mean is not None
    together = bool(sums) and centred and lines.parameter_each and lines.n > 0
    flags = (weight is not None) * _WEIGHT + constant * _GIVEN + together * _SUMS_TOO
    stats = (mean if centred else rstd, rstd)
    targets = sums if together else (dx, dx)  # dx stands for what the flags leave out
    args = (dy, lines.x, *stats, dx if weight is None else weight, dx, *targets, lines.problem, flags)
    rows, group = lines.count if lines.n else 0, lines.group(queue, lines.n)
    _launch(queue, lines, "norm_dx", rows, group, args, centred=centred)
    if sums and not together:
        _parameter_gradient(queue, lines, dy, stats, sums, centred=centred)


def _parameter_gradient(
    queue: Queue, lines: Lines, dy: Any, stats: tuple[Any, Any], sums: tuple[Any, ...], *, centred: bool
) -> None:
    if lines.x.size == 0:
        for array in sums:
            queue.fill(array, 0)
        return
    count = int(sums[0].size)
    terms = lines.x.size // count
    group = 1 if lines.run == 1 else lines.group(queue, terms)
    groups = -(-count * group // (group if group > 1 else GROUP_SIZE))
    wanted = WANTED_GROUPS if queue.device.core == "S" else 1
    shares = max(1, min(wanted // groups, terms // _MIN_SHARE))
    most = -(-terms // shares)
    wide = accumulator(lines.x.dtype)
    targets = tuple(queue.empty((shares, count), wide) for _ in sums) if shares > 1 else sums
    args = (dy, lines.x, *stats, targets[0], targets[-1], lines.problem, count, most, shares)
    extra = {"IN_SHARES": 1} if shares > 1 else {}
    _launch(queue, lines, "norm_sums", count * shares, group, args, centred=centred, **extra)
    for part, whole in zip(targets, sums, strict=True):
        if shares > 1:
            reduce(queue, "sum", part, whole.reshape(-1), (0,))
