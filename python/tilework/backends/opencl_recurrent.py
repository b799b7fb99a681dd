"""Recurrent layers on OpenCL: launches per step and direction, products over all steps around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from tilework.arrays import GateActivation
from tilework.backends.opencl_gemm import multiply
from tilework.backends.opencl_queue import GROUP_SIZE, Queue
from tilework.backends.opencl_reduce import reduce
from tilework.dtypes import is_narrow

GATES: tuple[str, ...] = get_args(GateActivation)


class Layer:
    """A layer of ``blocks`` times H rows of w and r, its kernels in ``program``; operands widened once.

    ``flag``, the functions and the form of its weights go to the kernels. Weights are what ``dtype`` makes of them.
    """

    def __init__(
        self,
        queue: Queue,
        program: str,
        blocks: int,
        x: Any,
        w: Any,
        r: Any,
        lengths: Any,
        *,
        flag: bool = False,
        gate: str = "sigmoid",
        cell: str = "tanh",
        output: str = "tanh",
        full: bool = False,
        projected: bool = False,
        dtype: Any = None,
    ) -> None:
        self.queue, self.program = queue, program
        self.dtype = np.dtype(np.float32) if is_narrow(x.dtype) else x.dtype
        (self.steps, self.count, self.inputs), self.directions = x.shape, w.shape[0]
        self.wide, self.hidden, self.outputs = w.shape[1], w.shape[1] // blocks, r.shape[2]
        self.rows = self.steps * self.count
        self.stored = None if dtype is None else np.dtype(dtype)
        self.coded = self.stored == np.int8
        self.x, self.w, self.r = self.met(self.widened(x)), self._stored(w), self._stored(r)
        if lengths is not None:
            queue.check_indices("lengths", lengths, self.steps + 1)
        self.lengths, self.some, self.type = queue.as_int64(lengths), lengths is not None, x.dtype
        self.options = (*(GATES.index(f) for f in (gate, cell, output)), flag, full, projected)

    def widened(self, a: Any) -> Any:
        """A contiguous copy in the type of the sums, or the array itself."""
        a = self.queue.contiguous(a)
        if a.dtype == self.dtype:
            return a
        copy = self.queue.empty(a.shape, self.dtype)
        self.queue.cast(a, copy)
        return copy

    def _stored(self, w: Any) -> Any:
        """Weights as they are stored, widened again."""
        if self.stored is None or self.coded:
            return self._codes(self.widened(w), weights=True) if self.coded else self.widened(w)
        narrow = self.queue.empty(w.shape, self.stored)
        self.queue.cast(self.queue.contiguous(w), narrow)
        return self.widened(narrow)

    def _codes(self, a: Any, *, weights: bool) -> Any:
        """Rows as what their codes stand for."""
        made = self.empty(*a.shape)
        rows, k = math.prod(a.shape[:-1]), a.shape[-1]
        if rows and k:
            args = (a, made, rows, k, int(weights))
            self.queue.launch("recurrent.cl", "code_rows", rows, GROUP_SIZE, args, DTYPE=self.dtype)
        return made

    def met(self, a: Any) -> Any:
        """Rows that a product with weights takes, (..., terms)."""
        return self._codes(a, weights=False) if self.coded else a

    def empty(self, *shape: int) -> Any:
        return self.queue.empty(shape, self.dtype)

    def zero_behind(self, *arrays: Any) -> None:
        """Makes arrays per step zero where a sequence may not come to write."""
        for a in arrays if self.some else ():
            self.queue.fill(a, 0)

    def per_step(self, width: int) -> Any:
        """A (D, T, N, width), zero behind the lengths."""
        made = self.empty(self.directions, self.steps, self.count, width)
        self.zero_behind(made)
        return made

    def state(self, given: Any, width: int | None = None) -> Any:
        """A copy of a state, zero where it is not given."""
        made = self.empty(self.directions, self.count, self.hidden if width is None else width)
        if given is None:
            self.queue.fill(made, 0)
        else:
            self.queue.cast(self.queue.contiguous(given), made)
        return made

    def launch(
        self,
        kernel: str,
        direction: int,
        step: int,
        *arrays: Any,
        clip: float | None = None,
        width: int | None = None,
        items: int | None = None,
    ) -> None:
        """Launches an item per sequence and unit, ``width`` of them; a kernel of cells takes a ``clip``."""
        sizes = (direction, self.directions, step, self.steps, self.count, self.hidden, self.outputs, self.some)
        numbers = np.array([*sizes, *self.options], np.int64)
        args = (self.lengths, *arrays, *(() if clip is None else (clip,)), numbers)
        count = self.count * (self.hidden if width is None else width) if items is None else items
        self.queue.launch(self.program, kernel, count, GROUP_SIZE, args, DTYPE=self.type)

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

    def forward(self, h0: Any, y: Any, h: Any, step_on: Callable[[int, int, Any, Any], None]) -> None:
        """Calls ``step_on(direction, step, state, next state)`` in order of time; the last state goes to h."""
        self.zero_behind(y)
        now = [self.state(h0, self.outputs), self.state(h0, self.outputs)]
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
        made = self.empty(*self.x.shape)
        sizes = (0, 0, 0, self.steps, self.count, self.inputs, 0, 0, *self.options)
        args = (self.lengths, self.x, made, np.array(sizes, np.int64))
        self.queue.launch("recurrent.cl", "rows_within", made.size, GROUP_SIZE, args, DTYPE=self.type)
        return made

    def product(self, slopes: Any, states: Any, target: Any) -> None:
        """Slopesᵀ states, a sum over all steps."""
        if self.rows:
            multiply(self.queue, slopes.T, states, target)
        else:
            self.queue.fill(target, 0)

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
