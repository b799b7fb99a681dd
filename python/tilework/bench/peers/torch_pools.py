"""PyTorch's pools, what undoes them, and windows laid out as columns, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilework.bench.peers.torch_conv import even

Call = Callable[..., Any]


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Call | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    aten = torch.ops.aten
    return {
        "max_pool": lambda: _pool(torch, a, True),
        "avg_pool": lambda: _pool(torch, a, False),
        "lp_pool": lambda: _lp_pool(torch, a),
        "adaptive_avg_pool": lambda: _adaptive(torch, a, "avg"),
        "adaptive_max_pool": lambda: _adaptive(torch, a, "max"),
        "max_unpool": lambda: (
            (lambda x, indices: aten.max_unpool2d(x, indices, a["shape"])) if len(a["shape"]) == 2 else None
        ),
        "max_unpool_dx": lambda: lambda dy, indices: dy.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape),
        "unfold": lambda: _columns(torch.nn.functional.unfold, a),
        "fold": lambda: _columns(torch.nn.functional.fold, a),
    }


def _pool(torch: Any, a: dict[str, Any], maximum: bool) -> Call | None:
    padding, rank = even(a["padding"]), len(a["kernel"])
    # torch counts positions in the spatial axes, ONNX in the whole array.
    if padding is None or (a.get("divisor") and rank == 1) or a.get("flat_indices"):
        return None
    if maximum:
        pool, indices = getattr(torch.nn.functional, f"max_pool{rank}d"), bool(a.get("return_indices"))
        return lambda x: pool(x, a["kernel"], a["stride"], padding, a["dilation"], a["ceil_mode"], indices)
    pool, counts = getattr(torch.nn.functional, f"avg_pool{rank}d"), a["count_include_pad"]
    divisor = () if rank == 1 else (a["divisor"],)
    return lambda x: pool(x, a["kernel"], a["stride"], padding, a["ceil_mode"], counts, *divisor)


def _lp_pool(torch: Any, a: dict[str, Any]) -> Call | None:
    rank = len(a["kernel"])
    # torch takes the root of a sum that may be negative, p = 2 has none; and a mean of windows that reach beyond.
    if any(n for pads in a["padding"] for n in pads) or a["p"] != 2 or a["ceil_mode"]:
        return None
    pool = getattr(torch.nn.functional, f"lp_pool{rank}d")
    kernel, stride = (v if rank > 1 else v[0] for v in (a["kernel"], a["stride"] or a["kernel"]))
    return lambda x: pool(x, 2.0, kernel, stride, a["ceil_mode"])


def _adaptive(torch: Any, a: dict[str, Any], kind: str) -> Call | None:
    if a.get("return_indices"):
        return None
    pool = getattr(torch.nn.functional, f"adaptive_{kind}_pool{len(a['size'])}d")
    return lambda x: pool(x, a["size"])


def _columns(function: Any, a: dict[str, Any]) -> Call | None:
    padding = even(a["padding"])
    if padding is None or len(a["kernel"]) != 2:
        return None
    first = () if a.get("shape") is None else (a["shape"],)
    return lambda x: function(x, *first, a["kernel"], a["dilation"], padding, a["stride"])
