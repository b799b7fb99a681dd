"""PyTorch's attention, embeddings and recurrent layers, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Callable[..., Any] | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    functional = torch.nn.functional

    def attention() -> Callable[..., Any] | None:
        if a["window"] is not None or a["softcap"] or a["return_lse"]:
            return None

        def attend(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            options = {"is_causal": a["causal"], "scale": a["scale"], "enable_gqa": q.shape[1] != k.shape[1]}
            return functional.scaled_dot_product_attention(q, k, v, mask, **options)

        return attend

    def lstm(x: Any, w: Any, r: Any, b: Any = None) -> Any:
        state = torch.zeros(w.shape[0], x.shape[1], r.shape[2], dtype=x.dtype)
        biases = [] if b is None else [b, torch.zeros_like(b)]
        weights = [v[d] for d in range(w.shape[0]) for v in (w, r, *biases)]
        both = w.shape[0] == 2
        return torch.lstm(x, (state, state), weights, b is not None, 1, 0.0, False, both, False)[0]

    return {
        "attention": attention,
        "embedding": lambda: lambda w, indices: functional.embedding(indices, w),
        "lstm": lambda: lstm,
        "swiglu": lambda: lambda gate, x: functional.silu(gate) * x,
        "geglu": lambda: lambda gate, x: functional.gelu(gate, approximate=a["approximate"]) * x,
    }
