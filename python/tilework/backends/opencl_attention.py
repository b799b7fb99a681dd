"""What the launches of attention.cl have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilework.backends.opencl_queue import Queue, broadcast_strides

GROUP = 64  # items that share a query, or a key


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
        self.define = {"DTYPE": q.dtype, "GROUP": GROUP}
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
        self.operands = (q, k, v, mask, queue.as_int64(lengths), alibi)

    def __call__(self, kernel: str, rows: int, columns: int, *arrays: Any) -> None:
        none = self.queue.number(0, np.int32)  # for a kernel that never looks at it
        args = [none if a is None or a.size == 0 else a for a in (*self.operands, *arrays)]
        define = self.define | {"COLUMNS": 1 << max(-(-columns // GROUP) - 1, 0).bit_length()}
        args += [*self.scalars, self.sizes]
        self.queue.launch("attention.cl", kernel, rows * GROUP, GROUP, args, **define)
