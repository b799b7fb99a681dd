"""Launching attention: a group per query, or tiles of queries and keys on matrix instructions (attention_matrix.cl)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilework.backends.opencl_queue import Queue, broadcast_strides
from tilework.backends.opencl_reduce import accumulator
from tilework.dtypes import is_narrow

GROUP = 64  # items that share a query, or a key
WIDTHS = (16, 32, 64, 128)  # of rows in fragments

# Groups that keep a large GPU busy; where there are fewer, keys are cut into shares of at least MIN_KEYS.
WANTED_GROUPS = 528
MIN_KEYS = 256


@dataclass(frozen=True)
class Block:
    """How attention_matrix.cl is cut: ``fragments`` of 16 rows a warp, tiles of ``step`` rows passing in ``slots``.

    ``q_aside``: q is read from memory for every tile, as registers do not suffice for it.
    """

    warps: int
    fragments: int
    step: int
    slots: int
    q_aside: bool = False

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return 16 * self.warps * self.fragments

    def define(self, step: str) -> dict[str, Any]:
        """The -D options; the passing tiles' rows under the name ``step``."""
        own = {"WARPS": self.warps, "FRAGMENTS": self.fragments, step: self.step, "SLOTS": self.slots}
        return own | ({"Q_ASIDE": 1} if self.q_aside else {})


# By the larger of DEPTH and WIDTH: up to 64, and 128. Few rows: what counts is how many bytes are under way.
FORWARD = {64: Block(4, 2, 64, 3), 128: Block(4, 2, 32, 3, q_aside=True)}
THIN = {64: Block(1, 1, 64, 3), 128: Block(1, 1, 32, 4)}
OF_QUERIES = {64: Block(4, 2, 32, 2), 128: Block(4, 1, 32, 3)}
OF_KEYS = {64: Block(4, 1, 64, 2), 128: Block(8, 1, 16, 3)}


class Launch:
    """What the kernels of one call have in common: operands, sizes, strides of the mask, options of the program."""

    def __init__(
        self,
        queue: Queue,
        q: Any,
        k: Any,
        v: Any,
        mask: Any,
        lengths: Any,
        alibi: Any,
        sinks: Any = None,
        *,
        causal: bool,
        scale: float,
        window: Any,
        softcap: float,
        dropout: float,
        seed: int,
        offset: int,
        return_slopes: bool = False,
    ) -> None:
        self.queue, self.scalars = queue, (scale, softcap, 1 / (1 - dropout))
        self.define: dict[str, Any] = {"DTYPE": q.dtype}
        steps = [0] * 4
        if mask is not None:
            mask = queue.contiguous(mask)
            steps = broadcast_strides(mask, (*q.shape[:3], k.shape[2]))
            if mask.dtype != np.bool_:
                self.define["ADDED"] = 1
        if lengths is not None:
            queue.check_indices("lengths", lengths, k.shape[2] + 1)
        far = 1 << 40
        left, right = window or (far, far)
        sizes = (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
        right = min(right, 0) if causal else right
        given = (lengths is not None, alibi is not None, sinks is not None)
        drawn = (int(dropout * 2.0**32), seed, offset)
        self.sizes = np.array([*sizes, left, right, mask is not None, *steps, *given, *drawn, return_slopes], np.int64)
        self.operands = (*map(queue.contiguous, (q, k, v)), mask, queue.as_int64(lengths), alibi)
        plain = mask is None and alibi is None and sinks is None
        self.extras = not plain or bool(softcap or drawn[0] or return_slopes) or scale == 0
        self.group = q.shape[1] // max(k.shape[1], 1)

    def attend(self, sinks: Any, y: Any, lse: Any) -> None:
        """The result, and the logarithm of the sum of the powers."""
        if not self._in_fragments:
            self._by_rows("attend", math.prod(y.shape[:3]), y.shape[3], sinks, y, lse)
            return
        queue, (q, k, _) = self.queue, self.operands[:3]
        rows, pairs = self.group * q.shape[2], math.prod(k.shape[:2])
        widths = self._widths()
        block = (THIN if rows <= THIN[64].rows else FORWARD)[max(64, *widths.values())]
        groups = -(-rows // block.rows) * pairs
        shares = max(1, min(WANTED_GROUPS // groups, k.shape[2] // MIN_KEYS))
        define = self._matrix_define(y) | block.define("KEYS")
        targets = (y, lse)
        if shares > 1:
            define["PARTIAL"] = 1
            targets = (queue.empty((shares, *y.shape), lse.dtype), queue.empty((shares, *lse.shape), lse.dtype))
        aside = queue.empty((groups * block.rows * widths["DEPTH"],), q.dtype) if block.q_aside else None
        self._launch("attention_matrix.cl", "attend", groups * shares, block, define, sinks, *targets, aside, shares)
        if shares > 1:
            args = (*targets, y, lse, shares, lse.size, y.shape[3])
            queue.launch("attention_matrix.cl", "attend_together", y.size, GROUP, args, **define)

    def gradients(self, dy: Any, y: Any, lse: Any, dq: Any, dk: Any, dv: Any, slopes: Any = None) -> None:
        """All gradients; ``slopes`` of the scores are zero where a query does not see a key."""
        queue, (q, k, v) = self.queue, self.operands[:3]
        delta = queue.empty(q.shape[:3], accumulator(q.dtype))
        if slopes is not None:  # keys that a query does not see are not visited
            queue.fill(slopes, 0)
        if not self._in_fragments:
            widest = max(q.shape[3], v.shape[3])
            self._by_rows("attend_dq", math.prod(q.shape[:3]), widest, dy, y, lse, delta, dq, slopes)
            self._by_rows("attend_dkv", math.prod(k.shape[:3]), widest, dy, lse, delta, dk, dv)
            return
        rows, pairs = self.group * q.shape[2], math.prod(k.shape[:2])
        widest = max(64, *self._widths().values())
        dy, y = queue.contiguous(dy), queue.contiguous(y)
        define = self._matrix_define(dy, y, dq, dk, dv)
        for kernel, block, count, arrays in (
            ("attend_dq", OF_QUERIES[widest], rows, (dy, y, lse, delta, dq, slopes)),
            ("attend_dkv", OF_KEYS[widest], k.shape[2], (dy, lse, delta, dk, dv)),
        ):
            groups = -(-count // block.rows) * pairs
            own = define | block.define("STEP") | ({"OF_QUERIES": 1} if kernel == "attend_dq" else {})
            self._launch("attention_matrix_dx.cl", kernel, groups, block, own, *arrays)

    @property
    def _in_fragments(self) -> bool:
        q, k, v = self.operands[:3]
        sizes = (*q.shape, k.shape[2], v.shape[3])
        return (
            self.queue.device.multiplies_fragments
            and is_narrow(q.dtype)
            and min(sizes) > 0
            and max(q.shape[3], v.shape[3]) <= WIDTHS[-1]
        )

    def _widths(self) -> dict[str, int]:
        q, _, v = self.operands[:3]
        return {n: next(w for w in WIDTHS if w >= a.shape[3]) for n, a in (("DEPTH", q), ("WIDTH", v))}

    def _matrix_define(self, *others: Any) -> dict[str, Any]:
        define = self.define | self._widths() | ({"EXTRAS": 1} if self.extras else {})
        arrays = (*self.operands[:3], *others)
        whole = all(a.shape[3] % 8 == 0 and a.offset % 16 == 0 for a in arrays)
        return define | ({"COPIED": 1} if whole else {})

    def _launch(self, file: str, kernel: str, groups: int, block: Block, define: dict[str, Any], *arrays: Any) -> None:
        items = 32 * block.warps
        self.queue.launch(file, kernel, groups * items, items, self._arguments(*arrays), **define)

    def _by_rows(self, kernel: str, rows: int, columns: int, *arrays: Any) -> None:
        own = {"GROUP": GROUP, "COLUMNS": 1 << max(-(-columns // GROUP) - 1, 0).bit_length()}
        self.queue.launch("attention.cl", kernel, rows * GROUP, GROUP, self._arguments(*arrays), **self.define, **own)

    def _arguments(self, *arrays: Any) -> list[Any]:
        none = self.queue.nothing
        given = (*self.operands, *arrays)
        known = [a if isinstance(a, int) else none if a is None or a.size == 0 else a for a in given]
        return [*known, *self.scalars, self.sizes]
