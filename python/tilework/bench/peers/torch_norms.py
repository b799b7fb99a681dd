"""PyTorch's normalisations, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Callable[..., Any] | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    functional = torch.nn.functional
    if a.get("return_stats") or a.get("return_sum"):  # which torch keeps to itself
        return {}

    def layer(x: Any, weight: Any = None, bias: Any = None, residual: Any = None) -> Any:
        x = x if residual is None else x + residual
        return functional.layer_norm(x, _tail(x, a), weight, bias, a["eps"])

    def rms(x: Any, weight: Any = None, residual: Any = None) -> Any:
        x = x if residual is None else x + residual
        return functional.rms_norm(x, _tail(x, a), weight, a["eps"])

    def batch(x: Any, weight: Any = None, bias: Any = None, mean: Any = None, var: Any = None) -> Any:
        y = functional.batch_norm(x, mean, var, weight, bias, a["training"], a["momentum"], a["eps"])
        return functional.relu(y) if a["activation"] else y

    def group(x: Any, weight: Any = None, bias: Any = None) -> Any:
        return functional.group_norm(x, a["groups"], weight, bias, a["eps"])

    return {
        "layer_norm": lambda: layer,
        "rms_norm": lambda: rms,
        "batch_norm": lambda: batch,
        "group_norm": lambda: group,
        "lp_norm": lambda: _normalised(torch, a),
        "local_response_norm": lambda: (
            lambda x: functional.local_response_norm(x, a["size"], a["alpha"], a["beta"], a["k"])
        ),
        "instance_norm": lambda: (
            lambda x, weight=None, bias=None: functional.instance_norm(x, None, None, weight, bias, True, 0.0, a["eps"])
        ),
    }


def _normalised(torch: Any, a: dict[str, Any]) -> Callable[..., Any] | None:
    axes = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]]
    return (lambda x: torch.nn.functional.normalize(x, a["p"], axes[0], a["eps"])) if len(axes) == 1 else None


def _tail(x: Any, a: dict[str, Any]) -> list[int]:
    """The sizes of the last axes, which are those that torch normalises over."""
    axes = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]]
    first = min(axis % x.ndim for axis in axes)
    if sorted(axis % x.ndim for axis in axes) != list(range(first, x.ndim)):
        raise NotImplementedError("torch normalises over the last axes")
    return list(x.shape[first:])
