"""Layers and further operations in ONNX, ONNX Runtime's own among them, by the ops of tilework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilework.bench.peers.onnx_graph import Graph, Node, ends, node, then
from tilework.bench.problems import Problem

_OWN = "com.microsoft"
_PLAIN = {
    "abs": "Abs",
    "neg": "Neg",
    "sqrt": "Sqrt",
    "softplus": "Softplus",
    "mish": "Mish",
    "hard_swish": "HardSwish",
}


def arrange(op: str, feeds: dict[str, Any]) -> None:
    """Lays operands out as ONNX has them, before anything is timed."""
    if op == "lstm":  # gates i, o, f, g; a bias for the state too
        for name in ("w", "r", "b"):
            if name in feeds:
                i, f, g, o = np.split(feeds[name], 4, axis=1)
                feeds[name] = np.ascontiguousarray(np.concatenate([i, o, f, g], axis=1))
        if "b" in feeds:
            feeds["b"] = np.concatenate([feeds["b"], np.zeros_like(feeds["b"])], axis=1)
    if op == "gru":  # gates z, r, n; both biases in one
        for name in ("w", "r", "b", "rb"):
            if name in feeds:
                r, z, n = np.split(feeds[name], 3, axis=1)
                feeds[name] = np.ascontiguousarray(np.concatenate([z, r, n], axis=1))
        if "b" in feeds or "rb" in feeds:
            b, rb = feeds.get("b"), feeds.pop("rb", None)
            pair = [np.zeros_like(rb) if b is None else b, np.zeros_like(b) if rb is None else rb]
            feeds["b"] = np.concatenate(pair, axis=1)
    if op == "rotary_embedding" and "positions" not in feeds:
        feeds["positions"] = np.zeros(1, np.int64)  # of the first word
    if op in ("linear_int8", "conv_int8") and "w_zero" not in feeds:
        # With signed weights and without VNNI, sums of pairs saturate at 16 bits: the library advises unsigned ones.
        feeds["w"] = (feeds["w"].astype(np.int16) + 128).astype(np.uint8)
        feeds["w_zero"] = np.full((), 128, np.uint8)
    if op == "linear_int4":
        feeds["w"] = feeds["w"].reshape(*feeds["scales"].shape, -1)


def graph(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    """The graph of an op, or None; ``given`` are the names of its operands."""
    if problem.op in _PLAIN:
        return node(_PLAIN[problem.op], "x")
    make = _LAYERS.get(problem.op)
    return make(problem, a, given) if make else None


def _optional(names: tuple[str, ...], given: list[str]) -> list[str]:
    """Inputs in order, "" for one that is not given."""
    inputs = [n if n in given else "" for n in names]
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def _window(a: dict[str, Any]) -> dict[str, Any]:
    return {"strides": a["stride"], "pads": ends(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}


def _transpose(rank: int, axes: Any) -> Graph:
    return node("Transpose", "x", perm=[i % rank for i in axes] if axes else list(range(rank))[::-1])


def _clip(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    limits = {n: np.array(a[n], problem.dtype) for n in ("low", "high")}
    return Graph([("Clip", ["x", "low", "high"], ["y"], {})], limits)


def _cast(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    # By the number that ONNX gives the type.
    kinds = ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "", "bool", "float16", "float64")
    name = np.dtype(a["dtype"]).name
    return node("Cast", "x", to=1 + kinds.index(name)) if name in kinds else None


def _conv_transpose(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["layout"] != "NCHW" or "residual" in given:
        return None
    made = node("ConvTranspose", *_optional(("x", "w", "b"), given), output_padding=a["output_padding"], **_window(a))
    return then(made, a["activation"])


def _deform_conv(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    inputs = _optional(("x", "w", "offset", "b", "mask"), given)
    return node("DeformConv", *inputs, offset_group=a["offset_groups"], **_window(a))


def _conv_integer(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    return node("ConvInteger", *_optional(("x", "w", "x_zero", "w_zero"), given), **_window(a))


def _qlinear_conv(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    names = ("x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "b")
    return node("QLinearConv", *_optional(names, given), **_window(a))


def _qlinear_matmul(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    return node("QLinearMatMul", *given)


def _conv_int8(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    """What ONNX Runtime's dynamic quantisation makes of a convolution; it quantises all of x by one range."""
    if problem.dtype != "float32" or (len(problem.shapes) > 4 and problem.shapes[4] is not None):
        return None
    filters = np.array([1, -1, *(1 for _ in a["stride"])], np.int64)
    nodes: list[Node] = [
        ("DynamicQuantizeLinear", ["x"], ["codes", "x_scale", "x_zero"], {}),
        ("ConvInteger", ["codes", "w", "x_zero", "w_zero"], ["sums"], _window(a)),
        ("Cast", ["sums"], ["wide"], {"to": 1}),
        ("Mul", ["x_scale", "w_scale"], ["scale"], {}),
        ("Reshape", ["scale", "filters"], ["by_filter"], {}),
        ("Mul", ["wide", "by_filter"], ["y"], {}),
    ]
    if "b" in given:
        nodes[-1] = ("Mul", ["wide", "by_filter"], ["scaled"], {})
        nodes.append(("Reshape", ["b", "filters"], ["addend"], {}))
        nodes.append(("Add", ["scaled", "addend"], ["y"], {}))
    return then(Graph(nodes, {"filters": filters}), a["activation"])


def _linear_int4(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["activation"] or problem.dtype not in ("float32", "float16"):
        return None
    (*_, size), scales = problem.shapes[0], problem.shapes[2]
    inputs = _optional(("x", "w", "scales", "zeros", "", "b"), given)
    return node("MatMulNBits", *inputs, K=size, N=scales[0], bits=4, block_size=a["group"], domain=_OWN)


def _lstm(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    names, functions = ("x", "w", "r", "b", "", "h0", "c0"), ("gate_activation", "cell_activation", "output_activation")
    plain = [a[f] for f in functions] == ["sigmoid", "tanh", "tanh"] and not (a["clip"] or a["coupled"] or a["dtype"])
    if a["return_saved"] or not plain or set(given) - set(names):
        return None
    inputs = [str(n) if n in given else "" for n in names]
    return _recurrent("LSTM", problem, inputs, ("h", "c"))


def _gru(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["return_saved"] or a["dtype"] or "lengths" in given:
        return None
    biased = "b" if "b" in given or "rb" in given else ""
    inputs = ["x", "w", "r", biased, "", "h0" if "h0" in given else ""]
    return _recurrent("GRU", problem, inputs, ("h",), linear_before_reset=int(a["reset_after"]))


def _recurrent(kind: str, problem: Problem, inputs: list[str], last: tuple[str, ...], **attrs: Any) -> Graph:
    """A layer of ONNX, whose directions lie side by side in y."""
    directions, _, hidden = problem.shapes[2]
    steps, count, _ = problem.shapes[0]
    attrs |= {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes: list[Node] = [
        (kind, inputs, ["by_direction", *last], attrs),
        ("Transpose", ["by_direction"], ["beside"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["beside", "shape"], ["y"], {}),
    ]
    return Graph(nodes, {"shape": np.array([steps, count, -1], np.int64)}, results=("y", *last))


def _attention(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if "lengths" in given or a["window"] is not None or a["return_lse"]:
        return None
    if a["causal"] and problem.shapes[0][2] != problem.shapes[1][2]:  # ONNX aligns the first words, not the last
        return None
    attrs = {"is_causal": int(a["causal"]), "softcap": float(a["softcap"])}
    if a["scale"] is not None:
        attrs["scale"] = float(a["scale"])
    return node("Attention", *_optional(("q", "k", "v", "mask"), given), opset=23, **attrs)


def _rotary(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["inverse"]:
        return None
    inputs = ("x", "positions", "cos", "sin")
    return node("RotaryEmbedding", *inputs, interleaved=int(a["interleaved"]), domain=_OWN)


def _rms_norm(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    axes, rank = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]], len(problem.shapes[0])
    first = min(axis % rank for axis in axes)
    last = sorted(axis % rank for axis in axes) == list(range(first, rank))
    if not last or a["return_stats"] or a["return_sum"] or "residual" in given or "weight" not in given:
        return None
    return node("RMSNormalization", "x", "weight", opset=23, axis=first, epsilon=a["eps"])


def _group_norm(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if len(given) != 3 or a["return_stats"]:
        return None
    return node("GroupNormalization", *given, opset=21, num_groups=a["groups"], epsilon=a["eps"])


def _lp_pool(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["p"] != round(a["p"]) or a["ceil_mode"]:
        return None
    window = {"kernel_shape": a["kernel"], "strides": a["stride"] or a["kernel"], "pads": ends(a["padding"])}
    return node("LpPool", "x", p=round(a["p"]), **window)


def _lp_norm(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    axes = a["axes"] if isinstance(a["axes"], (list, tuple)) else [a["axes"]]
    return node("LpNormalization", "x", axis=axes[0], p=round(a["p"])) if len(axes) == 1 and a["p"] in (1, 2) else None


def _roi_align(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    (height, width), mode = a["size"], "half_pixel" if a["aligned"] else "output_half_pixel"
    rest = {"spatial_scale": a["scale"], "sampling_ratio": a["sampling_ratio"], "mode": a["mode"]}
    inputs = ("x", "boxes", "images")
    return node(
        "RoiAlign", *inputs, output_height=height, output_width=width, coordinate_transformation_mode=mode, **rest
    )


def _fold(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if any(before != behind for before, behind in a["padding"]) or set(a["dilation"]) != {1}:
        return None
    sizes = {"shape": np.array(a["shape"], np.int64), "kernel": np.array(a["kernel"], np.int64)}
    window = {"strides": a["stride"], "pads": ends(a["padding"]), "dilations": a["dilation"]}
    return Graph([("Col2Im", ["y", "shape", "kernel"], ["image"], window)], sizes)


def _loss(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["label_smoothing"]:
        return None
    return node("SoftmaxCrossEntropyLoss", *given, reduction=a["reduction"], ignore_index=a["ignore_index"])


def _logsumexp(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    axes = {"axes": np.array(a["axes"], np.int64)}
    return Graph([("ReduceLogSumExp", ["x", "axes"], ["y"], {"keepdims": int(a["keepdims"])})], axes)


def _mean_variance(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
    axes = a["axes"]
    if axes is None:
        axes = [i for i in range(len(problem.shapes[0])) if i != 1]
    return node("MeanVarianceNormalization", "x", axes=list(axes))


def _response(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph | None:
    if a["size"] % 2 == 0:
        return None
    return node("LRN", "x", size=a["size"], alpha=a["alpha"], beta=a["beta"], bias=a["k"])


def _triangle(upper: int) -> Callable[[Problem, dict[str, Any], list[str]], Graph]:
    def make(problem: Problem, a: dict[str, Any], given: list[str]) -> Graph:
        return Graph([("Trilu", ["x", "k"], ["y"], {"upper": upper})], {"k": np.array(a["diagonal"], np.int64)})

    return make


_LAYERS: dict[str, Callable[[Problem, dict[str, Any], list[str]], Graph | None]] = {
    "elu": lambda p, a, given: node("Elu", "x", alpha=a["alpha"]),
    "leaky_relu": lambda p, a, given: node("LeakyRelu", "x", alpha=a["alpha"]),
    "hard_sigmoid": lambda p, a, given: node("HardSigmoid", "x", alpha=a["alpha"], beta=a["beta"]),
    "silu": lambda p, a, given: node("QuickGelu", "x", alpha=1.0, domain=_OWN),
    "clip": _clip,
    "cast": _cast,
    "transpose": lambda p, a, given: _transpose(len(p.shapes[0]), a["axes"]),
    "embedding": lambda p, a, given: None if a["max_norm"] else node("Gather", "w", "indices", axis=0),
    "conv_transpose": _conv_transpose,
    "deform_conv": _deform_conv,
    "conv_integer": _conv_integer,
    "qlinear_conv": _qlinear_conv,
    "qlinear_matmul": _qlinear_matmul,
    "conv_int8": _conv_int8,
    "linear_int4": _linear_int4,
    "lstm": _lstm,
    "gru": _gru,
    "attention": _attention,
    "rotary_embedding": _rotary,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "lp_pool": _lp_pool,
    "lp_norm": _lp_norm,
    "roi_align": _roi_align,
    "fold": _fold,
    "softmax_cross_entropy": _loss,
    "logsumexp": _logsumexp,
    "mean_variance_norm": _mean_variance,
    "local_response_norm": _response,
    "tril": _triangle(0),
    "triu": _triangle(1),
}
