"""PyTorch's attention, embeddings and recurrent layers, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Callable[..., Any] | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    functional = torch.nn.functional

    def attention() -> Callable[..., Any] | None:
        if a["window"] is not None or a["softcap"] or a["return_lse"] or a["dropout"]:
            return None

        def attend(q: Any, k: Any, v: Any, mask: Any = None, *others: Any) -> Any:
            if any(a is not None for a in others):
                raise NotImplementedError("torch takes no lengths of keys, no alibi and no sinks")
            options = {"is_causal": a["causal"], "scale": a["scale"], "enable_gqa": q.shape[1] != k.shape[1]}
            return functional.scaled_dot_product_attention(q, k, v, mask, **options)

        return attend

    def recurrent(run: Any, states: int) -> Callable[..., Any]:
        def layer(x: Any, w: Any, r: Any, b: Any = None, *others: Any) -> Any:
            rb, rest = (others[0], others[1:]) if run is torch.gru and others else (None, others)
            first = rest[:states]
            if any(p is not None for p in rest[states:]):
                raise NotImplementedError("torch takes lengths as packed sequences, and has no peepholes")
            zero = torch.zeros(w.shape[0], x.shape[1], r.shape[2], dtype=x.dtype)
            given = tuple(zero if s is None else s for s in (*first, *(None,) * (states - len(first))))
            pair = [torch.zeros(w.shape[:2], dtype=x.dtype) if v is None else v for v in (b, rb)]
            biases = [] if b is None and rb is None else pair
            weights = [v[d] for d in range(w.shape[0]) for v in (w, r, *biases)]
            both = w.shape[0] == 2
            return run(x, given if states > 1 else given[0], weights, bool(biases), 1, 0.0, False, both, False)

        return layer

    usual = {"gate_activation": "sigmoid", "cell_activation": "tanh", "output_activation": "tanh"}

    def as_usual() -> bool:
        return all(a.get(name, function) == function for name, function in usual.items())

    def lstm() -> Callable[..., Any] | None:
        plain = not (a["return_saved"] or a["clip"] or a["coupled"] or a["dtype"]) and as_usual()
        return recurrent(torch.lstm, 2) if plain else None

    def gru() -> Callable[..., Any] | None:
        plain = a["reset_after"] and not (a["return_saved"] or a["dtype"]) and as_usual()
        return recurrent(torch.gru, 1) if plain else None

    def rnn() -> Callable[..., Any] | None:
        run = {"relu": torch.rnn_relu, "tanh": torch.rnn_tanh}.get(a["activation"])
        return None if run is None or a["dtype"] else recurrent(run, 1)

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
        "embedding": lambda: None if a["max_norm"] else lambda w, indices: functional.embedding(indices, w),
        "gru": gru,
        "lstm": lstm,
        "rnn": rnn,
        "rotary_embedding": lambda: rotate,
    }
