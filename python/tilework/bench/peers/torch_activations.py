"""PyTorch's activations and gated products, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Call | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    functional = torch.nn.functional
    found: dict[str, Callable[[], Call | None]] = {
        name: lambda name=name: activation(torch, name, a.get("alpha", 0.0), a.get("beta", 0.0))  # type: ignore[misc]
        for name in ("abs", "elu", "hard_sigmoid", "hard_swish", "leaky_relu", "mish", "neg", "rsqrt", "silu")
    }
    return found | {
        "softplus": lambda: functional.softplus,
        "sqrt": lambda: torch.sqrt,
        "clip": lambda: activation(torch, "clip", a.get("low", 0.0), a.get("high", 0.0)),
        "swiglu": lambda: lambda gate, x: functional.silu(gate) * x,
        "geglu": lambda: lambda gate, x: functional.gelu(gate, approximate=a["approximate"]) * x,
    }


def activation(torch: Any, name: str, alpha: float, beta: float) -> Call | None:
    """The function of one tensor by its name; alpha and beta are its parameters, of clip the limits."""
    functional = torch.nn.functional
    plain = {
        "abs": torch.abs,
        "neg": torch.neg,
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "silu": functional.silu,
        "mish": functional.mish,
        "softplus": functional.softplus,
        "hard_swish": functional.hardswish,
    }
    if name in plain:
        return plain[name]  # type: ignore[no-any-return]
    if name == "hard_sigmoid":
        return functional.hardsigmoid if (alpha, beta) == (1 / 6, 0.5) else None
    made: dict[str, Call] = {
        "elu": lambda x: functional.elu(x, alpha),
        "leaky_relu": lambda x: functional.leaky_relu(x, alpha),
        "clip": lambda x: torch.clamp(x, alpha, beta),
    }
    return made.get(name)
