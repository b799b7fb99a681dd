"""Fourier transforms, which are products with matrices of cosines and sines, and what goes with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilework as tw
from tilework.interop.onnx.rules import NodeView, axis_of, node


def _waves(terms: int, bins: int, length: int, *, inverse: bool, dtype: Any) -> Any:
    """The matrix from (real, imaginary) terms to (real, imaginary) bins, (2 terms, 2 bins)."""
    angle = 2 * math.pi / length * (np.arange(terms)[:, None] * np.arange(bins) % length)
    c, s = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    made = np.block([[c, s], [-s, c]]) / (length if inverse else 1)
    return made.astype(dtype)


def _half_waves(terms: int, length: int, dtype: Any) -> Any:
    """The matrix from the first half of a transform to the real numbers it is of, (2 terms, length)."""
    twice = np.full(terms, 2.0)
    twice[0] = 1
    if length % 2 == 0 and terms == length // 2 + 1:
        twice[-1] = 1
    waves = _waves(terms, length, length, inverse=True, dtype=np.float64)[:, :length]
    return (waves * np.tile(twice, 2)[:, None]).astype(dtype)


def _transformed(x: Any, length: int, *, inverse: bool, onesided: bool) -> Any:
    """The transform of (.., terms, 1 or 2) along its last axis but one: (.., bins, 1 or 2)."""
    *lead, terms, parts = x.shape
    if terms > length:
        x, terms = x[(*(slice(None),) * len(lead), slice(0, length))], length
    back = inverse and onesided
    bins = length // 2 + 1 if onesided and not inverse else length
    waves = _half_waves(terms, length, x.dtype) if back else _waves(terms, bins, length, inverse=inverse, dtype=x.dtype)
    flat = tw.reshape(tw.transpose(x, (*range(len(lead)), len(lead) + 1, len(lead))), (*lead, parts * terms))
    made = tw.matmul(flat, np.ascontiguousarray(waves[: parts * terms]))
    if back:
        return tw.reshape(made, (*lead, length, 1))
    return tw.transpose(tw.reshape(made, (*lead, 2, bins)), (*range(len(lead)), len(lead) + 1, len(lead)))


@node("DFT")
def dft(n: NodeView, x: Any, length: Any = None, axis: Any = None) -> Any:
    along = n.get("axis", 1) if n.opset < 20 else -2 if axis is None else int(n.scalar(axis, "axis"))
    along, last = axis_of(along, len(x.shape)), len(x.shape) - 2
    inverse, onesided = bool(n.get("inverse", 0)), bool(n.get("onesided", 0))
    terms = x.shape[along]
    whole = 2 * (terms - 1) if inverse and onesided else terms
    order = [*(d for d in range(last + 1) if d != along), along, last + 1]
    made = _transformed(
        tw.transpose(x, order),
        whole if length is None else int(n.scalar(length, "dft_length")),
        inverse=inverse,
        onesided=onesided,
    )
    return tw.transpose(made, [order.index(d) for d in range(last + 2)])


@node("STFT")
def stft(n: NodeView, x: Any, step: Any, window: Any = None, length: Any = None) -> Any:
    hop = int(n.scalar(step, "frame_step"))
    size = window.shape[0] if length is None else int(n.scalar(length, "frame_length"))
    onesided = bool(n.get("onesided", 1))
    count = (x.shape[1] - size) // hop + 1
    places = np.arange(count, dtype=np.int64)[:, None] * hop + np.arange(size)
    frames = tw.gather(x, np.ascontiguousarray(places), axis=1)
    if window is not None:
        frames = tw.mul(frames, tw.reshape(window, (size, 1)))
    return _transformed(frames, size, inverse=False, onesided=onesided)


@node("MelWeightMatrix")
def mel_weights(n: NodeView, *numbers: Any) -> Any:
    for number in numbers:
        n.known(number, "a number of the filters")  # then onnx's reference works the matrix out
    n.refuse("its numbers are not known")
