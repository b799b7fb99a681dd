"""PyTorch on 8-bit integers: exact products, quantised tensors, layers that quantise their operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Callable[..., Any] | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    return {
        "matmul_integer": lambda: lambda x, y, *zeros: _product(torch, x, y, zeros),
        "quantize_linear": lambda: lambda x, scale, zero=None: _quantised(torch, x, scale, zero, a),
        "dequantize_linear": lambda: lambda q, scale, zero=None: _restored(torch, q, scale, zero, a),
    }


def _product(torch: Any, x: Any, y: Any, zeros: tuple[Any, ...]) -> Any:
    if any(z is not None for z in zeros) or x.ndim != 2 or x.dtype != torch.int8 or y.dtype != torch.int8:
        raise NotImplementedError("torch._int_mm multiplies int8 matrices without zero points")
    return torch._int_mm(x, y)


def _quantised(torch: Any, x: Any, scale: Any, zero: Any, a: dict[str, Any]) -> Any:
    if a.get("block") or x.dtype != torch.float32:
        raise NotImplementedError("torch quantises float32 by tensor or by one axis")
    name = str(a.get("dtype") or (zero.dtype if zero is not None else "uint8"))
    kind = torch.quint8 if "uint8" in name else torch.qint8
    if scale.ndim == 0:
        return torch.quantize_per_tensor(x, scale, torch.tensor(0) if zero is None else zero.int(), kind).int_repr()
    zeros = torch.zeros_like(scale, dtype=torch.int64) if zero is None else zero.long()
    return torch.quantize_per_channel(x, scale, zeros, a["axis"], kind).int_repr()


def _restored(torch: Any, q: Any, scale: Any, zero: Any, a: dict[str, Any]) -> Any:
    if a.get("block"):
        raise NotImplementedError("torch has no scales by block")
    axes = [1] * q.ndim
    if scale.ndim:
        axes[a["axis"]] = scale.shape[0]
    wide = q.to(scale.dtype) if zero is None else q.to(scale.dtype) - zero.to(scale.dtype).reshape(axes)
    return wide * scale.reshape(axes if scale.ndim else [])
