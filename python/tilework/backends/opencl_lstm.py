"""Launching lstm_matrix.cl: all steps of a plain LSTM in 16 bits, in one kernel where its groups fit on the device."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import numpy as np

from tilework.backends.opencl_gemm import Product
from tilework.backends.opencl_queue import Queue, Strided
from tilework.backends.opencl_recurrent import Layer

WARPS = 8
SEQUENCES = 64  # of a group


class _Alone:
    """Around a launch whose groups wait for each other: two on one device, from two queues, might wait forever."""

    _turn = threading.Lock()
    _last: dict[int, Queue] = {}  # noqa: RUF012  (shared by all, under the lock)

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __enter__(self) -> None:
        self._queue.unrepeatable()
        self._turn.acquire()
        key = self._queue.device.cl.int_ptr
        before = self._last.get(key)
        if before is not None and before.device is not self._queue.device:
            before.finish()  # contexts cannot wait for each other's events
        elif before is not None and before is not self._queue:
            self._queue.wait_for(before)
        self._last[key] = self._queue

    def __exit__(self, *exception: object) -> None:
        self._turn.release()


def in_fragments(own: Layer, r: Any, *, plain: bool) -> bool:
    """Whether the steps of this layer are lstm_matrix.cl's; ``plain``: no peepholes, projection or clip."""
    options = own.options == (0, 1, 1, False, False, False)
    whole = own.hidden % 32 == 0 and own.hidden <= 32 * WARPS * 8 and own.steps * own.count > 0 and not own.some
    narrow = own.type == r.dtype and own.dtype == np.float32 and own.type != np.float32 and own.stored is None
    return plain and options and whole and narrow and own.queue.device.multiplies_fragments


def sums(own: Layer, x: Any, w: Any, target: Any) -> None:
    """X wᵀ of all steps in float32 (D, T, N, 4H), from 16 bits as they are."""
    for d in range(own.directions):
        flat = own.queue.contiguous(x).reshape(own.rows, own.inputs)
        product = Product(flat, w[d].T)
        tiles = product.tiles(own.queue)
        goal = own.flat(target, d)
        define = product.define(tiles, goal) | {"DTYPE": x.dtype, "SHARES": 1, "PARTIAL": 1}
        define.pop("PAIRS", None)
        items = tiles.count(product.m, product.n) * tiles.group
        struct = product.struct(product.k + -product.k % tiles.k)
        args = (Strided(flat), Strided(w[d].T), goal, struct)
        own.queue.launch("matmul.cl", "matmul", items, tiles.group, args, **define)


def steps(own: Layer, r: Any, bias: Any, h0: Any, c0: Any, gates: Any, cells: Any, y: Any, h: Any, c: Any) -> None:
    """Gates, cells, y and the last states from sums in ``gates``; c0 and bias in float32."""
    queue = own.queue
    states = queue.empty((own.directions, own.count, own.hidden), y.dtype)
    queue.fill(states, 0) if h0 is None else queue.copy(h0, states)
    last = own.empty(*states.shape)
    whole = y if y.offset % 16 == 0 else queue.empty(y.shape, y.dtype)
    cut = -(-own.count // SEQUENCES)
    most = queue.device.cl.max_compute_units
    fragments = 1 if own.hidden // 4 * cut <= most else 2
    groups = own.hidden // (4 * fragments) * cut
    together = groups <= most and not queue.device.is_cpu
    define = {"DTYPE": y.dtype, "WARPS": WARPS, "FRAGMENTS": fragments, "TERMS": -(-own.hidden // (32 * WARPS))}
    define |= {"TOGETHER": 1} if together else {}
    items = 32 * WARPS
    for d in range(own.directions):
        arrived = queue.number(0, np.int32)
        for step in range(0, own.steps, own.steps if together else 1):
            sizes = (d, own.directions, step, own.steps, own.count, own.hidden, own.outputs, own.some)
            until = own.steps if together else step + 1
            numbers = np.array([*sizes, *own.options], np.int64)
            args = (queue.contiguous(r), bias, states, c0, gates, cells, whole, last, arrived, step, until, numbers)
            with _Alone(queue) if together else nullcontext():
                queue.launch("lstm_matrix.cl", "lstm_steps", groups * items, items, args, **define)
        end = whole[0 if d else own.steps - 1][:, d * own.hidden : (d + 1) * own.hidden]
        queue.copy(end, h[d])
    if whole is not y:
        queue.copy(whole, y)
    queue.cast(last, c)
