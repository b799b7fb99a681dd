"""Recurrent layers on OpenCL: a launch or two per step and direction, products over all steps around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework.backends.opencl_gemm import multiply
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import reduce
from tilework.dtypes import is_narrow


class Layer:
    """A layer of ``blocks`` times H rows of w and r; operands widened once. ``flag`` goes to the kernels."""

    def __init__(self, queue: Queue, x: Any, w: Any, r: Any, lengths: Any, *, flag: bool = False) -> None:
        self.queue = queue
        self.dtype = np.dtype(np.float32) if is_narrow(x.dtype) else x.dtype
        (self.steps, self.count, self.inputs), self.directions, self.hidden = x.shape, w.shape[0], r.shape[2]
        self.rows, self.wide = self.steps * self.count, w.shape[1]
        self.x, self.w, self.r = (self.widened(a) for a in (x, w, r))
        if lengths is not None:
            queue.check_indices("lengths", lengths, self.steps + 1)
        self.lengths, self.some, self.flag = queue.as_int64(lengths), lengths is not None, flag
        self.type = x.dtype

    def widened(self, a: Any) -> Any:
        """A contiguous copy in the type of the sums, or the array itself."""
        a = self.queue.contiguous(a)
        if a.dtype == self.dtype:
            return a
        copy = self.queue.empty(a.shape, self.dtype)
        self.queue.cast(a, copy)
        return copy

    def empty(self, *shape: int) -> Any:
        return self.queue.empty(shape, self.dtype)

    def per_step(self, width: int) -> Any:
        """An empty (D, T, N, width)."""
        return self.empty(self.directions, self.steps, self.count, width)

    def state(self, given: Any) -> Any:
        """A copy of a state, zero where it is not given."""
        made = self.empty(self.directions, self.count, self.hidden)
        if given is None:
            self.queue.fill(made, 0)
        else:
            self.queue.cast(self.queue.contiguous(given), made)
        return made

    def peepholes(self, peep: Any) -> Any:
        """Peepholes (D, 3H), zero where they are not given."""
        made = self.empty(self.directions, 3 * self.hidden)
        self.queue.fill(made, 0) if peep is None else self.queue.cast(self.queue.contiguous(peep), made)
        return made

    def launch(
        self, kernel: str, direction: int, step: int, *arrays: Any, clip: float | None = None, items: int | None = None
    ) -> None:
        """Launches an item per sequence and unit; a kernel of cells takes a ``clip``."""
        sizes = (direction, self.directions, step, self.steps, self.count, self.hidden, self.some, self.flag)
        last = (np.array(sizes, np.int64),) if clip is None else (clip, np.array(sizes, np.int64))
        args = (self.lengths, self.r, *arrays, *last)
        count = self.count * self.hidden if items is None else items
        self.queue.launch("recurrent.cl", kernel, count, GROUP_SIZE, args, DTYPE=self.type)

    def sums(self, bias: Any, target: Any) -> Any:
        """X wᵀ + bias of all steps into ``target`` (D, T, N, blocks H)."""
        for d in range(self.directions):
            own = self.flat(target, d)
            if self.rows and self.inputs:
                flat = self.x.reshape(self.rows, self.inputs)
                multiply(self.queue, flat, self.w[d].T, own, None if bias is None else bias[d])
            elif self.rows:
                self.queue.fill(own, 0) if bias is None else self.queue.copy(bias[d], own)
        return target

    def forward(self, h0: Any, h: Any, step_on: Callable[[int, int, Any, Any], None]) -> None:
        """Calls ``step_on(direction, step, state, next state)`` in order of time; the last state goes to h."""
        now = [self.state(h0), self.state(h0)]
        for step in range(self.steps):
            for d in range(self.directions):
                step_on(d, step, now[step % 2], now[1 - step % 2])
        self.queue.cast(now[self.steps % 2], h)

    def backward(self, step_back: Callable[[int, int], None]) -> None:
        """Calls ``step_back(direction, step)`` from the last step to step -1."""
        for step in reversed(range(-1, self.steps)):
            for d in range(self.directions):
                step_back(d, step)

    def flat(self, a: Any, d: int) -> Any:
        """Direction d of an array per step as a matrix."""
        return a[d].reshape(self.rows, a.shape[-1])

    def _rows_within(self) -> Any:
        """X, zero behind the lengths."""
        if not self.some:
            return self.x
        made, sizes = self.empty(*self.x.shape), (0, 0, 0, self.steps, self.count, self.inputs, 0, 0)
        args = (self.lengths, self.x, made, np.array(sizes, np.int64))
        self.queue.launch("recurrent.cl", "rows_within", made.size, GROUP_SIZE, args, DTYPE=self.type)
        return made

    def gradients(
        self, da: Any, parts: Callable[[int], Sequence[tuple[int, Any, Any]]], results: Sequence[Any]
    ) -> None:
        """Gradients of x, w, r and b from da (D, T, N, blocks H).

        The rows of r from ``first`` on get slopesᵀ states, for each (first, slopes, states) of a direction's parts.
        """
        queue, rows, x = self.queue, self.rows, self._rows_within()
        dx, dw, dr, db = made = [self.empty(*a.shape) for a in results]
        if rows == 0:
            for a in made:
                queue.fill(a, 0)
        else:
            for d in range(self.directions):
                own = self.flat(da, d)
                if self.inputs:
                    multiply(queue, own.T, x.reshape(rows, self.inputs), dw[d])
                for first, slopes, states in parts(d):
                    multiply(queue, slopes.T, states, dr[d][first : first + slopes.shape[1]])
                reduce(queue, "sum", own, db[d], (0,))
            if self.inputs and self.hidden:
                # Gates of all directions side by side, against their weights one below the other.
                beside = self.empty(self.steps, self.count, self.directions, self.wide)
                for d in range(self.directions):
                    queue.copy(da[d], beside[:, :, d])
                flat = dx.reshape(rows, self.inputs)
                multiply(queue, beside.reshape(rows, -1), self.w.reshape(-1, self.inputs), flat)
        for a, result in zip(made, results, strict=True):
            queue.cast(a, result)


def lstm(
    queue: Queue,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    peep: Any,
    *results: Any,
    clip: float,
    coupled: bool,
) -> None:
    """Y, h, c, and gates and cells where they are asked for."""
    layer = Layer(queue, x, w, r, lengths, flag=coupled)
    peepholes = layer.peepholes(peep)
    y, h, c, *kept = results
    gates, cells = kept or (layer.per_step(layer.wide), layer.per_step(layer.hidden))
    layer.sums(None if b is None else layer.widened(b), gates)
    cell = layer.state(c0)

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        layer.launch("lstm_on", d, step, now, then, cell, peepholes, gates, cells, y, clip=clip)

    layer.forward(h0, h, step_on)
    queue.cast(cell, c)


def lstm_dx(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    cells: Any,
    h0: Any,
    c0: Any,
    lengths: Any,
    dh: Any,
    dc: Any,
    peep: Any,
    *results: Any,
    clip: float,
    coupled: bool,
) -> None:
    """Gradients of x, w, r, b, h0 and c0, and of the peepholes where they are given."""
    layer = Layer(queue, x, w, r, lengths, flag=coupled)
    first_h, first_c, last_h, cell, start = (layer.state(s) for s in (h0, c0, dh, dc, None))
    da, before = layer.per_step(layer.wide), layer.per_step(layer.hidden)
    arrays = (gates, cells, dy, y, first_h, first_c, last_h, cell, layer.peepholes(peep), da, before, start)
    layer.backward(lambda d, step: layer.launch("lstm_dx", d, step, *arrays, clip=clip))
    layer.gradients(da, lambda d: [(0, layer.flat(da, d), layer.flat(before, d))], results[:4])
    queue.cast(start, results[4])
    queue.cast(cell, results[5])
    if peep is not None:
        slopes = layer.empty(*peep.shape)
        for d in range(layer.directions):
            layer.launch("peep_dx", d, 0, cells, first_c, da, slopes, items=3 * layer.hidden)
        queue.cast(slopes, results[6])


def gru(
    queue: Queue,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    rb: Any,
    h0: Any,
    lengths: Any,
    y: Any,
    h: Any,
    *kept: Any,
    reset_after: bool,
) -> None:
    """Y, h, and gates where they are asked for."""
    layer = Layer(queue, x, w, r, lengths, flag=reset_after)
    hidden = layer.hidden
    gates = kept[0] if kept else layer.per_step(4 * hidden)
    bias, own = layer.empty(layer.directions, layer.wide), layer.empty(layer.directions, hidden)
    queue.fill(bias, 0) if b is None else queue.cast(queue.contiguous(b), bias)
    queue.fill(own, 0)
    if rb is not None:
        wide = layer.widened(rb)
        joined = 2 * hidden if reset_after else layer.wide
        some = bias[:, :joined]
        queue.each("elementwise.cl", "add", (some, wide[:, :joined], some), DTYPE=layer.dtype)
        if reset_after:
            queue.copy(wide[:, joined:], own)
    sums = layer.sums(bias, layer.per_step(layer.wide))

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        layer.launch("gru_gates", d, step, now, sums, own, gates)
        layer.launch("gru_on", d, step, now, then, sums, gates, y)

    layer.forward(h0, h, step_on)


def gru_dx(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    gates: Any,
    h0: Any,
    lengths: Any,
    dh: Any,
    *results: Any,
    reset_after: bool,
) -> None:
    """Gradients of x, w, r, b, rb and h0."""
    layer = Layer(queue, x, w, r, lengths, flag=reset_after)
    hidden = layer.hidden
    first_h, past, start = (layer.state(s) for s in (h0, dh, None))
    da, other, before = layer.per_step(layer.wide), layer.per_step(hidden), layer.per_step(hidden)

    def step_back(d: int, step: int) -> None:
        layer.launch("gru_dx", d, step, gates, dy, y, first_h, past, da, other, before, start)
        if step >= 0 and not reset_after:
            layer.launch("gru_reset", d, step, gates, before, past, da)

    layer.backward(step_back)

    def parts(d: int) -> list[tuple[int, Any, Any]]:
        slopes, beside, states = (layer.flat(a, d) for a in (da, other, before))
        first, last = slopes[:, : 2 * hidden], slopes[:, 2 * hidden :]
        return [(0, first, states), (2 * hidden, *((beside, states) if reset_after else (last, beside)))]

    layer.gradients(da, parts, results[:4])
    drb = layer.empty(layer.directions, layer.wide)
    queue.cast(results[3], drb)
    if reset_after:
        for d in range(layer.directions):
            if layer.rows:
                reduce(queue, "sum", layer.flat(other, d), drb[d][2 * hidden :], (0,))
    queue.cast(drb, results[4])
    queue.cast(start, results[5])


def rnn(
    queue: Queue, x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any, y: Any, h: Any, *, activation: str
) -> None:
    """Y and h."""
    layer = Layer(queue, x, w, r, lengths, flag=activation == "relu")
    sums = layer.sums(None if b is None else layer.widened(b), layer.per_step(layer.wide))

    def step_on(d: int, step: int, now: Any, then: Any) -> None:
        layer.launch("rnn_on", d, step, now, then, sums, y)

    layer.forward(h0, h, step_on)


def rnn_dx(
    queue: Queue,
    dy: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    h0: Any,
    lengths: Any,
    dh: Any,
    *results: Any,
    activation: str,
) -> None:
    """Gradients of x, w, r, b and h0."""
    layer = Layer(queue, x, w, r, lengths, flag=activation == "relu")
    first, last, start = (layer.state(s) for s in (h0, dh, None))
    da, before = layer.per_step(layer.wide), layer.per_step(layer.hidden)
    layer.backward(lambda d, step: layer.launch("rnn_dx", d, step, dy, y, first, last, da, before, start))
    layer.gradients(da, lambda d: [(0, layer.flat(da, d), layer.flat(before, d))], results[:4])
    queue.cast(start, results[4])
