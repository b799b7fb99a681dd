"""Optical flow from coarse to fine, and its colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from tilework import ops
from tilework.arrays import Array
from tilework.eight_bits import in_eight_bits
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.wants import own_errors, want_array

Preset = Literal["fast", "medium", "fine"]


@dataclass(frozen=True)
class _Effort:
    """How much is done at one level."""

    stride: int
    steps: int
    rounds: int
    refine: int


# How often the pictures are halved where the search ends, what is done there and at coarser levels.
_EFFORTS = {
    "fast": (1, _Effort(4, 4, 0, 1), _Effort(4, 8, 1, 3)),
    "medium": (0, _Effort(4, 4, 0, 1), _Effort(4, 8, 1, 4)),
    "fine": (0, _Effort(3, 12, 4, 5), _Effort(3, 12, 4, 10)),
}
_LEAST_SIDE = 24  # of the coarsest pictures


@own_errors()
def optical_flow(first: Array, second: Array, *, preset: Preset = "medium") -> Any:
    """Finds where each pixel of ``first`` (H, W) went in ``second`` (H, W): (H, W, 2), x and y, float32.

    From pictures halved until their smaller side is about 24 pixels to the whole ones ("fast": to halves):
    :data:`tilework.flow_search`, then :data:`tilework.flow_refine`. "fine" takes
    some four times as long as "medium". Pixels that are hidden in ``second`` follow their surroundings. On the CPU.

    Pictures are both uint8, or both uint16 or float32, whose common range is then divided into 255 steps.
    """
    want_array("optical_flow", first=first, second=second)
    if preset not in get_args(Preset):
        wanted = ", ".join(get_args(Preset))
        raise AttrError(f"optical_flow: preset={preset!r}; want one of {wanted}", argument="preset")
    finest, last, before = _EFFORTS[preset]
    firsts, seconds = ([picture] for picture in in_eight_bits("optical_flow", first=first, second=second))
    while min(firsts[-1].shape, default=0) >= 2 * _LEAST_SIDE or len(firsts) <= finest:
        firsts.append(ops.pyramid_down(firsts[-1]))
        seconds.append(ops.pyramid_down(seconds[-1]))
    flow = None
    for level in range(len(firsts) - 1, finest - 1, -1):
        a, b = firsts[level], seconds[level]
        effort = last if level == finest else before
        flow = ops.flow_search(a, b, flow, stride=effort.stride, steps=effort.steps, rounds=effort.rounds)
        flow = ops.flow_refine(a, b, flow, steps=effort.refine)
    for level in range(finest - 1, -1, -1):
        flow = _doubled(flow, *firsts[level].shape)
    return flow


def _doubled(flow: Any, height: int, width: int) -> Any:
    """The flow of pictures twice as large, linear between the middles of its pixels."""
    twice = 2 * flow
    for axis, size in ((0, height), (1, width)):
        n = flow.shape[axis]
        before, behind = (
            np.take(twice, np.maximum(np.arange(n) - 1, 0), axis),
            np.take(twice, np.minimum(np.arange(n) + 1, n - 1), axis),
        )
        pair = np.stack([0.75 * twice + 0.25 * before, 0.75 * twice + 0.25 * behind], axis + 1)
        twice = pair.reshape(*twice.shape[:axis], 2 * n, *twice.shape[axis + 1 :]).take(range(size), axis)
    return twice.astype(np.float32, copy=False)


def draw_flow(flow: Array, *, longest: float | None = None) -> Any:
    """Draws a flow (H, W, 2), float32, as colours (H, W, 3), uint8: the hue is its direction, no flow is white.

    Right is red, down yellow-green, left cyan and up violet. Colours are full where it is ``longest`` pixels long or
    more, by default where it is the longest. Where it is not finite the picture is black.
    """
    field = np.asarray(flow)
    if field.ndim != 3 or field.shape[-1] != 2:
        raise ShapeError(f"draw_flow: flow has shape {tuple(field.shape)}; want (H, W, 2)", argument="flow")
    if field.dtype != np.float32:
        raise DTypeError(f"draw_flow: flow has dtype {field.dtype}; want float32", argument="flow")
    if longest is not None and not 0 < longest < float("inf"):
        raise AttrError(f"draw_flow: longest={longest}; want a number above 0", argument="longest")
    known = np.isfinite(field).all(axis=-1)
    x, y = np.where(known[..., None], field, 0).astype(np.float64).transpose(2, 0, 1)
    length = np.hypot(x, y)
    full = np.minimum(length / (longest or max(float(np.max(length, initial=0)), 1e-9)), 1)
    turn = np.arctan2(y, x) / (2 * np.pi) * 6
    hue = np.abs((np.stack([turn, turn - 2, turn - 4], -1) + 3) % 6 - 3)  # how far red, green and blue are
    pure = np.clip(2 - hue, 0, 1)
    colours = (1 - full[..., None] * (1 - pure)) * known[..., None]
    return np.rint(255 * colours).astype(np.uint8)
