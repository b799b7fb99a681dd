"""Whole networks as problems of the bench: ``resnet50 x=1x3x224x224``, ``resnet18/step x=8x3x224x224``.

A network is made of tilework's calls alone. It is checked against itself in float64, whose kernels have rows of their
own, and peers run the same weights.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from tilework.bench.networks import resnet
from tilework.bench.networks.resnet import FORMS, ResNet, Weights
from tilework.bench.peers import Contestant
from tilework.bench.problems import BenchError, Facts, Problem

PEERS = ("torch", "onnxruntime", "openvino")
TOLERANCE = 1e-4  # relative, in the norm of an array


class Network:
    """What a problem asks of its op, for a network."""

    operands = ("x",)
    differentiable = ("x",)
    is_view = False
    is_variadic = False

    def __init__(self, name: str) -> None:
        self.name = name


NETWORKS = {name: Network(name) for name in FORMS}


class NetworkProblem(Problem):
    """A network on images: inference with folded norms (fwd), or a training step (step)."""

    @property
    def target(self) -> Any:  # type: ignore[override]
        return NETWORKS[self.op]

    @property
    def family(self) -> str:
        return "networks"

    @property
    def form(self) -> ResNet:
        """The network."""
        return FORMS[self.op]

    def operands(self, fill: Any = None) -> tuple[Any, ...]:
        """The images."""
        return (np.random.default_rng(4).standard_normal(self.shapes[0], np.float32),)

    def _check(self) -> None:
        wrong = resnet.fault(self.shapes[0] or ())
        if wrong or self.attrs or self.out_given:
            raise BenchError(wrong or f"{self.op} takes no attributes; want x alone")
        if self.dtype != "float32" or self.direction == "bwd":
            raise BenchError(f"{self.op} has {self.op}/float32 and {self.op}/float32/step only")

    @cached_property
    def facts(self) -> Facts:
        """Counts of the convolutions and the last product; a step has three of each."""
        self._check()
        n, _, height, width = self.shapes[0]
        weights, flops = 4 * _count(self.form), 2 * self.form.products(n, height, width)
        images = 4 * n * 3 * height * width
        if self.direction == "fwd":
            return Facts(flops, images + weights, 4 * n * resnet.CLASSES, "float32")
        return Facts(3 * flops, images + 2 * weights, 2 * weights, "float32")

    def contestants(self, operands: tuple[Any, ...]) -> dict[str, Contestant]:
        """tilework's own."""
        (x,), form, weights = operands, self.form, self.form.weights()
        if self.direction == "fwd":
            weights = resnet.folded(form, weights)
            plain, prepared = (resnet.inference(form, weights, prepared=p) for p in (False, True))
            return {
                "tilework": Contestant(lambda: plain(x)),
                "tilework prepared": Contestant(lambda: prepared(x), prepacked=True),
            }
        labels = resnet.labels_of(len(x))
        return {
            "tilework": Contestant(
                lambda: resnet.step(form, weights, x, labels), answer=lambda: in_order(*_gradients(form, x, labels))
            )
        }


def _count(form: ResNet) -> int:
    return sum(u.filters * (u.channels * u.kernel**2 + 4) for u in form.units()) + resnet.CLASSES * (form.features + 1)


def _gradients(form: ResNet, x: Any, labels: Any) -> tuple[Any, Weights]:
    return resnet.loss_and_gradients(form, {n: w.astype(x.dtype) for n, w in form.weights().items()}, x, labels)


def in_order(loss: Any, gradients: Weights) -> list[Any]:
    """The results of a step that are compared: the loss, and the gradients by name."""
    return [np.asarray(loss), *(np.asarray(gradients[n]) for n in sorted(gradients))]


def expected(problem: NetworkProblem) -> list[Any]:
    """What the network gives in float64."""
    (x,), form = (o.astype(np.float64) for o in problem.operands()), problem.form
    if problem.direction == "fwd":
        weights = {n: w.astype(np.float64) for n, w in resnet.folded(form, form.weights()).items()}
        return [resnet.inference(form, weights, prepared=False)(x)]
    return in_order(*_gradients(form, x, resnet.labels_of(len(x))))


def mismatch(got: list[Any], want: list[Any]) -> str:
    """``""`` if every array is as near as 1e-4 of its norm, else one line on the worst."""
    if len(got) != len(want) or any(g.shape != w.shape for g, w in zip(got, want, strict=True)):
        return f"results have shapes {[g.shape for g in got]}; want {[w.shape for w in want]}"
    norms = [float(np.linalg.norm(w)) for w in want]
    errors = [float(np.linalg.norm(g - w)) / (n or 1.0) for g, w, n in zip(got, want, norms, strict=True)]
    worst = int(np.argmax(errors))  # the first NaN, where there is one
    return "" if errors[worst] <= TOLERANCE else f"result {worst} differs by {errors[worst]:.2g} of its norm"


def workloads() -> list[Problem]:
    """The networks of the default set."""
    return [
        NetworkProblem("resnet50", ((1, 3, 224, 224),), name="ResNet-50, 1 image"),
        NetworkProblem("resnet18", ((8, 3, 224, 224),), direction="step", name="ResNet-18, a step on 8 images"),
    ]


def torch_contestants(problem: NetworkProblem, operands: tuple[Any, ...]) -> dict[str, Contestant]:
    """PyTorch's, in both memory formats."""
    import torch

    from tilework.bench.networks import resnet_torch

    form, weights, (x,) = problem.form, problem.form.weights(), map(torch.from_numpy, operands)
    found = {}
    if problem.direction == "fwd":
        weights = resnet.folded(form, weights)
        for name, last in (("torch", False), ("torch channels_last", True)):
            run = resnet_torch.inference(form, weights, channels_last=last)
            images = x.contiguous(memory_format=torch.channels_last) if last else x
            found[name] = Contestant(lambda run=run, images=images: run(images))  # type: ignore[misc]
        return found
    labels = torch.from_numpy(resnet.labels_of(len(x)))
    net = resnet_torch.Training(form, weights)

    def answer() -> list[Any]:
        loss, gradients = resnet_torch.Training(form, weights).gradients(x, labels)
        return in_order(loss.numpy(), {n: g.numpy() for n, g in gradients.items()})

    return {"torch": Contestant(lambda: net.step(x, labels), answer=answer)}


def onnx_model(problem: NetworkProblem) -> bytes:
    """The serialized model of an inference."""
    from tilework.bench.networks import resnet_onnx

    return resnet_onnx.inference(problem.form, resnet.folded(problem.form, problem.form.weights()), problem.shapes[0])
