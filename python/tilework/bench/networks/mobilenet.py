"""MobileNet-v2 out of tilework's calls: inference with folded norms.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018: blocks widen by a 1x1 convolution,
filter each channel by itself, and narrow without an activation.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

import tilework as tw
from tilework.bench.networks.network import Network, Shape, Training, Weights

CLASSES = 1000
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_SMALLEST = 32  # pixels that five halvings leave one of
_OPSET, _IR = 20, 10


@dataclass(frozen=True)
class Unit:
    """A convolution with a bias."""

    name: str
    channels: int  # of its input
    filters: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    relu6: bool = True

    @property
    def attrs(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}


@dataclass(frozen=True)
class Block:
    """Units, one after the other, whose result may be added to the input."""

    units: tuple[Unit, ...]
    added: bool


class MobileNet(Network):
    """A stem, inverted residuals, and classes read from what is left of a picture (N, 3, H, W)."""

    name = "mobilenet"
    trains = False

    def blocks(self) -> Iterator[Block]:
        """Everything in front of the classes."""
        yield Block((Unit("stem", 3, 32, 3, 2),), added=False)
        channels = 32
        for stage, (widening, filters, count, first) in enumerate(_STAGES):
            for i in range(count):
                name, stride, wide = f"{stage}.{i}", first if i == 0 else 1, widening * channels
                units = [Unit(f"{name}.wide", channels, wide)] if widening > 1 else []
                units.append(Unit(f"{name}.each", wide, wide, 3, stride, wide))
                units.append(Unit(f"{name}.narrow", wide, filters, relu6=False))
                yield Block(tuple(units), stride == 1 and channels == filters)
                channels = filters
        yield Block((Unit("head", channels, 1280),), added=False)

    def weights(self, shape: Shape) -> Weights:
        random = np.random.default_rng(5)

        def normal(scale: float, *shape: int) -> Any:
            return (scale * random.standard_normal(shape)).astype(np.float32)

        made: Weights = {}
        for u in (u for b in self.blocks() for u in b.units):
            fan = u.channels // u.groups * u.kernel**2
            made[f"{u.name}.w"] = normal(math.sqrt(2 / fan), u.filters, u.channels // u.groups, u.kernel, u.kernel)
            made[f"{u.name}.b"] = normal(0.1, u.filters)
        made["classes.w"], made["classes.b"] = normal(math.sqrt(1 / 1280), CLASSES, 1280), normal(0.1, CLASSES)
        return made

    def fault(self, shape: Shape) -> str:
        if len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and min(shape[2:]) >= _SMALLEST:
            return ""
        return f"images have shape {shape}; want (N, 3, H, W) with H and W of at least {_SMALLEST}"

    def result(self, shape: Shape) -> Shape:
        return (shape[0], CLASSES)

    def products(self, shape: Shape) -> float:
        total, (h, w) = float(shape[0] * CLASSES * 1280), shape[2:]
        for u in (u for b in self.blocks() for u in b.units):
            h, w = -(-h // u.stride), -(-w // u.stride)
            total += shape[0] * u.filters * u.channels // u.groups * u.kernel**2 * h * w
        return total

    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        def layer(u: Unit) -> Callable[..., Any]:
            w, b = weights[f"{u.name}.w"], weights[f"{u.name}.b"]
            attrs = u.attrs | {"activation": "relu6" if u.relu6 else None}
            if not prepared:
                return lambda x, residual=None: tw.conv(x, w, b, residual, **attrs)
            run: Callable[..., Any] = tw.conv.prepare(w=w, b=b, **attrs)
            return run

        w, b = weights["classes.w"], weights["classes.b"]
        classes = tw.linear.prepare(w=w, b=b) if prepared else lambda x: tw.linear(x, w, b)
        blocks = [([layer(u) for u in b.units], b.added) for b in self.blocks()]

        def run(x: Any) -> Any:
            for layers, added in blocks:
                y = x
                for each in layers[:-1]:
                    y = each(y)
                x = layers[-1](y, x if added else None)
            return classes(tw.reduce_mean(x, axes=(2, 3)))

        return run

    def goal(self, shape: Shape) -> NoReturn:
        raise NotImplementedError

    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> NoReturn:
        raise NotImplementedError

    def torch_training(self, weights: Weights) -> Training:
        raise NotImplementedError

    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        torch: Any = importlib.import_module("torch")
        functional = torch.nn.functional
        given = {n: torch.from_numpy(w) for n, w in weights.items()}
        blocks = list(self.blocks())

        def run() -> Any:
            with torch.inference_mode():
                h = x
                for block in blocks:
                    y = h
                    for u in block.units:
                        y = functional.conv2d(y, given[f"{u.name}.w"], given[f"{u.name}.b"], **u.attrs)
                        y = functional.relu6(y, inplace=True) if u.relu6 else y
                    h = h + y if block.added else y
                return functional.linear(h.mean((2, 3)), given["classes.w"], given["classes.b"])

        return {"torch": run}

    def onnx(self, weights: Weights, shape: Shape) -> bytes:
        onnx: Any = importlib.import_module("onnx")
        helper = onnx.helper
        nodes: list[Any] = []

        def node(op: str, name: str, *inputs: str, **attrs: Any) -> str:
            nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
            return name

        x = "x"
        for i, block in enumerate(self.blocks()):
            y = x
            for u in block.units:
                attrs = {"strides": [u.stride] * 2, "pads": [u.kernel // 2] * 4, "group": u.groups}
                y = node("Conv", u.name, y, f"{u.name}.w", f"{u.name}.b", kernel_shape=[u.kernel] * 2, **attrs)
                y = node("Clip", f"{u.name}.relu6", y, "low", "high") if u.relu6 else y
            x = node("Add", f"{i}.sum", x, y) if block.added else y
        node(
            "Gemm",
            "y",
            node("Flatten", "flat", node("GlobalAveragePool", "mean", x)),
            "classes.w",
            "classes.b",
            transB=1,
        )
        kind, constants = onnx.TensorProto.FLOAT, weights | {"low": np.float32(0), "high": np.float32(6)}
        tensors = [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in constants.items()]
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        outputs = [helper.make_tensor_value_info("y", kind, self.result(shape))]
        graph = helper.make_graph(nodes, "mobilenet", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        model.ir_version = _IR
        return bytes(model.SerializeToString())


NETWORK = MobileNet()
