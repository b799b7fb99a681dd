"""PyTorch's convolutions, by the ops of tilework; NHWC as its channels_last, which takes the arrays as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Call | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    return {
        "conv": lambda: _conv(torch, a),
        "conv_transpose": lambda: _transpose(torch, a),
        "conv_dx": lambda: _gradient(torch, a, True),
        "conv_dw": lambda: _gradient(torch, a, False),
    }


def activated(torch: Any, y: Any, name: str | None) -> Any:
    """An activation by its name."""
    if name is None:
        return y
    return getattr(torch if name in ("sigmoid", "tanh") else torch.nn.functional, name.replace("_", ""))(y)


def even(padding: Any) -> list[int] | None:
    """One number per axis, where both sides are padded alike."""
    return [before for before, _ in padding] if all(b == a for b, a in padding) else None


def _first(x: Any, a: dict[str, Any]) -> Any:
    return x.movedim(-1, 1) if a["layout"] == "NHWC" else x


def _last(y: Any, a: dict[str, Any]) -> Any:
    return y.movedim(1, -1) if a["layout"] == "NHWC" else y


def _conv(torch: Any, a: dict[str, Any]) -> Call | None:
    padding, rank = even(a["padding"]), len(a["stride"])
    if padding is None:
        return None
    function = getattr(torch.nn.functional, f"conv{rank}d")

    def conv(x: Any, w: Any, b: Any = None, residual: Any = None) -> Any:
        y = _last(function(_first(x, a), w, b, a["stride"], padding, a["dilation"], a["groups"]), a)
        return activated(torch, y if residual is None else y + residual, a["activation"])

    return conv


def _transpose(torch: Any, a: dict[str, Any]) -> Call | None:
    padding, rank = even(a["padding"]), len(a["stride"])
    if padding is None:
        return None
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    rest = (a["stride"], padding, a["output_padding"], a["groups"], a["dilation"])

    def transposed(x: Any, w: Any, b: Any = None, residual: Any = None) -> Any:
        y = _last(function(_first(x, a), w, b, *rest), a)
        return activated(torch, y if residual is None else y + residual, a["activation"])

    return transposed


def _gradient(torch: Any, a: dict[str, Any], of_x: bool) -> Call | None:
    padding, rank = even(a["padding"]), len(a["stride"])
    if padding is None:
        return None
    mask, stride, dilation, groups = [of_x, not of_x, False], a["stride"], a["dilation"], a["groups"]
    gradient, none = torch.ops.aten.convolution_backward, [0] * rank

    def added(gradient: Any, c: Any) -> Any:
        return gradient if c is None else gradient + c

    def dx(dy: Any, w: Any, c: Any = None) -> Any:
        dy = _first(dy, a)
        x = torch.empty(1, dtype=dy.dtype).expand(dy.shape[0], w.shape[1] * groups, *a["shape"])
        found = gradient(dy, x, w, None, stride, padding, dilation, False, none, groups, mask)[0]
        return added(_last(found, a), c)

    def dw(dy: Any, x: Any, c: Any = None) -> Any:
        dy, x = _first(dy, a), _first(x, a)
        w = torch.empty(1, dtype=dy.dtype).expand(dy.shape[1], x.shape[1] // groups, *a["kernel"])
        return added(gradient(dy, x, w, None, stride, padding, dilation, False, none, groups, mask)[1], c)

    return dx if of_x else dw
