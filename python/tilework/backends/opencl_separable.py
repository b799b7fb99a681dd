"""Separable filters of pictures of uint16 and float32 on OpenCL devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import GROUP_SIZE, Queue

Terms = Sequence[tuple[Sequence[float], Sequence[float]]]  # weights down, weights along


def launch_separable(
    queue: Queue, image: Any, y: Any, terms: Terms, *, divisor: int = 1, pace: int = 1, repeats: bool = False
) -> None:
    """Enqueues the filter whose sums, of every ``pace``-th window, are y, float32 or uint16."""
    down, along = terms[0]
    if len(down) * len(along) > 64 and len(terms) == 1:  # in two steps, whose number of products does not multiply
        sums = queue.empty((y.shape[0], *image.shape[1:]), np.float32)
        _launch(queue, image, sums, [(down, [1.0])], 1, (pace, 1), repeats)
        _launch(queue, sums, y, [([1.0], along)], divisor, (1, pace), repeats)
    else:
        _launch(queue, image, y, terms, divisor, (pace, pace), repeats)


def _launch(queue: Queue, image: Any, y: Any, terms: Terms, divisor: int, pace: tuple[int, int], repeats: bool) -> None:
    host = np.concatenate([np.asarray(w, np.float32) for term in terms for w in term])
    weights = queue.empty(host.shape, np.float32)
    queue.write(host, weights)
    (height, width), (rows, columns) = image.shape[:2], y.shape[:2]
    sizes = (height, width, rows, columns, image.shape[2] if image.ndim == 3 else 1)
    args = (image, weights, y, len(terms[0][0]), len(terms[0][1]), len(terms), divisor, *pace, int(repeats), *sizes)
    define = {"WHOLE": 1} if y.dtype == np.uint16 else {}
    queue.launch("separable.cl", "separable", y.size, GROUP_SIZE, args, DTYPE=image.dtype, **define)
