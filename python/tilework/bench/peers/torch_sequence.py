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

        def attend(q: Any, k: Any, v: Any, mask: Any = None, lengths: Any = None) -> Any:
            if lengths is not None:
                raise NotImplementedError("torch takes no lengths of keys")
            options = {"is_causal": a["causal"], "scale": a["scale"], "enable_gqa": q.shape[1] != k.shape[1]}
            return functional.scaled_dot_product_attention(q, k, v, mask, **options)

        return attend

    def lstm(x: Any, w: Any, r: Any, b: Any = None, h: Any = None, c: Any = None, lengths: Any = None) -> Any:
        if lengths is not None or a["return_saved"]:
            raise NotImplementedError("torch takes lengths as packed sequences, and keeps gates to itself")
        state = torch.zeros(w.shape[0], x.shape[1], r.shape[2], dtype=x.dtype)
        first = (state if h is None else h, state if c is None else c)
        biases = [] if b is None else [b, torch.zeros_like(b)]
        weights = [v[d] for d in range(w.shape[0]) for v in (w, r, *biases)]
        both = w.shape[0] == 2
        return torch.lstm(x, first, weights, b is not None, 1, 0.0, False, both, False)

    def rotate(x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
        if a["inverse"]:
            raise NotImplementedError("transformers turn forward")
        if positions is not None:
            cos, sin = (table[positions].unsqueeze(1) for table in (cos, sin))
        first, second = (x[..., ::2], x[..., 1::2]) if a["interleaved"] else x.chunk(2, -1)
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.stack(turned, -1).flatten(-2) if a["interleaved"] else torch.cat(turned, -1)

    return {
        "attention": attention,
        "embedding": lambda: lambda w, indices: functional.embedding(indices, w),
        "lstm": lambda: lstm,
        "rotary_embedding": lambda: rotate,
    }
