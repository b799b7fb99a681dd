"""Whole networks as problems of the bench: ``resnet50 x=1x3x224x224``, ``gpt2/step x=4x128x768``.

A network is made of tilework's calls alone. It is checked against itself in float64, whose kernels have rows of their
own, and peers run the same weights.
"""

from __future__ import annotations

import os
import shutil
from functools import cache, cached_property, partial
from typing import Any

import numpy as np

from tilework.bench.networks import chains, gpt2, lstm, mobilenet, resnet
from tilework.bench.networks.network import Network, Weights
from tilework.bench.peers import Contestant
from tilework.bench.problems import BenchError, Facts, Problem

NETWORKS: dict[str, Network] = {
    n.name: n for n in (*resnet.NETWORKS, *gpt2.NETWORKS, mobilenet.NETWORK, lstm.NETWORK, *chains.NETWORKS)
}
PEERS = ("torch", "torch.compile", "onnxruntime", "openvino", "numexpr")
TOLERANCE = 1e-4  # relative, in the norm of an array
# Of gradients where rounding moves some elements across a kink, each with its whole term: PyTorch's of ResNet-18 on 8
# images are as far as 0.004 from those in float64.
KINKED_TOLERANCE = 0.02


class NetworkProblem(Problem):
    """A network on x: inference (fwd), or a training step (step)."""

    @property
    def target(self) -> Any:  # type: ignore[override]
        return NETWORKS[self.op]

    @property
    def network(self) -> Network:
        """The network."""
        return NETWORKS[self.op]

    @property
    def family(self) -> str:
        return "networks"

    def operands(self, fill: Any = None) -> tuple[Any, ...]:
        """The input alone."""
        return (self.network.x(self.shapes[0]),)

    def _check(self) -> None:
        wrong = self.network.fault(self.shapes[0] or ())
        if wrong or self.attrs or self.out_given:
            raise BenchError(wrong or f"{self.op} takes no attributes; want x alone")
        if self.dtype != "float32" or self.direction == "bwd":
            raise BenchError(f"{self.op} has {self.op}/float32 and {self.op}/float32/step only")
        if self.direction == "step" and not self.network.trains:
            raise BenchError(f"{self.op} has {self.op}/float32 only")

    @cached_property
    def facts(self) -> Facts:
        """Counts of the products and the weights; a step has three of each product."""
        self._check()
        (shape,) = self.shapes
        moved = self.network.moved(shape, _weight_bytes(self.op, shape), self.direction)
        flops = 2 * self.network.products(shape)
        return Facts(flops if self.direction == "fwd" else 3 * flops, *moved, "float32")

    def contestants(self, operands: tuple[Any, ...]) -> dict[str, Contestant]:
        """tilework's own."""
        (x,), network, weights = operands, self.network, self.network.weights(self.shapes[0])
        if self.direction == "fwd":
            deployed = network.deployed(weights)
            plain, prepared = (network.inference(deployed, prepared=p) for p in (False, True))
            compiled = network.compiled(deployed, x)
            opted = {n: Contestant(partial(run, x), prepacked=True) for n, run in network.opted(deployed, x).items()}
            ready = {"tilework prepared": Contestant(lambda: prepared(x), prepacked=True)}
            return {
                "tilework": Contestant(lambda: plain(x)),
                **(ready if network.prepares else {}),
                "tilework graph": Contestant(lambda: compiled(x), prepacked=True),
                **opted,
            }
        goal = network.goal(self.shapes[0])

        def answer() -> list[Any]:
            return in_order(*network.loss_and_gradients(network.weights(self.shapes[0]), x, goal))

        def compiled_answer() -> list[Any]:
            return in_order(*network.compiled_gradients(network.weights(self.shapes[0]), x, goal))

        stepped = network.compiled_step(network.weights(self.shapes[0]), x, goal)
        return {
            "tilework": Contestant(lambda: network.step(weights, x, goal), answer=answer),
            "tilework graph": Contestant(lambda: stepped(x, goal), answer=compiled_answer),
        }


@cache
def _weight_bytes(name: str, shape: tuple[int, ...]) -> int:
    return sum(w.nbytes for w in NETWORKS[name].weights(shape).values())


def in_order(loss: Any, gradients: Weights) -> list[Any]:
    """The results of a step that are compared: the loss, and the gradients by name."""
    return [np.asarray(loss), *(np.asarray(gradients[n]) for n in sorted(gradients))]


def _wide(value: Any) -> Any:
    return value.astype(np.float64) if value.dtype == np.float32 else value


def expected(problem: NetworkProblem) -> list[Any]:
    """What the network gives in float64."""
    network, (shape,) = problem.network, problem.shapes
    weights, x = network.weights(shape), _wide(network.x(shape))
    if problem.direction == "fwd":
        weights = {n: _wide(w) for n, w in network.deployed(weights).items()}
        return [network.inference(weights, prepared=False)(x)]
    weights, goal = {n: _wide(w) for n, w in weights.items()}, _wide(network.goal(shape))
    return in_order(*network.loss_and_gradients(weights, x, goal))


def mismatch(got: list[Any], want: list[Any], *, kinked: bool = False) -> str:
    """``""`` if every array is as near as 1e-4 of its norm, else one line on the worst.

    Of a step through functions with kinks the loss is, and gradients are as near as 0.02.
    """
    if len(got) != len(want) or any(g.shape != w.shape for g, w in zip(got, want, strict=True)):
        return f"results have shapes {[g.shape for g in got]}; want {[w.shape for w in want]}"
    norms = [float(np.linalg.norm(w)) or 1.0 for w in want]
    errors = np.array([float(np.linalg.norm(g - w)) / n for g, w, n in zip(got, want, norms, strict=True)])
    allowed = np.array([TOLERANCE] + [KINKED_TOLERANCE if kinked else TOLERANCE] * (len(want) - 1))
    worst = int(np.argmax(errors / allowed))  # the first NaN, where there is one
    near = errors[worst] <= allowed[worst]
    return "" if near else f"result {worst} differs by {errors[worst]:.2g} of its norm"


def workloads() -> list[Problem]:
    """The networks of the default set."""
    return [
        NetworkProblem("resnet50", ((1, 3, 224, 224),), name="ResNet-50, 1 image"),
        NetworkProblem("resnet18", ((8, 3, 224, 224),), direction="step", name="ResNet-18, a step on 8 images"),
        NetworkProblem("mobilenet", ((1, 3, 224, 224),), name="MobileNet-v2, 1 image"),
        NetworkProblem("bert", ((1, 128, 768),), name="BERT-base, 12 blocks on 128 words"),
        NetworkProblem("gpt2", ((1, 512, 768),), name="GPT-2 small, 12 blocks on 512 words"),
        NetworkProblem("transformer", ((8, 64, 256),), direction="step", name="4 blocks, a step on 8 times 64 words"),
        NetworkProblem("lstms", ((64, 16, 256),), direction="step", name="2 LSTM layers, a step on 16 times 64 words"),
        NetworkProblem("gpt2", ((4, 128, 768),), direction="step", name="GPT-2 small, a step on 4 times 128 words"),
        *(
            NetworkProblem(op, (shape,), direction=direction, name=f"{what}{behind}")
            for op, shape, what in (
                ("chain", (1 << 22,), "10 operations on 4M"),
                ("chain", (1 << 16,), "10 operations on 64k"),
                ("epilogue", (4096, 1024), "bias to layer_norm on 4096x1024"),
            )
            for direction, behind in (("fwd", ""), ("step", ", and back"))
        ),
    ]


def torch_contestants(problem: NetworkProblem, operands: tuple[Any, ...]) -> dict[str, Contestant]:
    """PyTorch's."""
    import torch

    network, (shape,), (x,) = problem.network, problem.shapes, map(torch.from_numpy, operands)
    weights = network.weights(shape)
    if problem.direction == "fwd":
        runs = network.torch_inference(network.deployed(weights), x)
        function, mask = network.torch_function(weights), network.mask(shape)
        answer_of = function and (lambda: [function(x, torch.from_numpy(mask)).numpy()])
        return {name: Contestant(run, answer=answer_of) for name, run in runs.items()}
    goal, net = torch.from_numpy(network.goal(shape)), network.torch_training(weights)

    def answer() -> list[Any]:
        loss, gradients = network.torch_training(network.weights(shape)).gradients(x, goal)
        return in_order(loss.numpy(), {n: g.numpy() for n, g in gradients.items()})

    return {"torch": Contestant(lambda: net.step(x, goal), answer=answer)}


def compiled_contestants(problem: NetworkProblem, operands: tuple[Any, ...]) -> dict[str, Contestant]:
    """PyTorch's compiler's: of steps, and of what is one function."""
    import torch

    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return {}
    network, (shape,), (x,) = problem.network, problem.shapes, map(torch.from_numpy, operands)
    weights = network.weights(shape)
    if problem.direction == "fwd":
        function = network.torch_function(weights)
        if function is None:
            return {}
        made, mask = torch.compile(function, dynamic=False), torch.from_numpy(network.mask(shape))

        def run() -> Any:
            with torch.inference_mode():
                return made(x)

        def right() -> list[Any]:
            with torch.inference_mode():
                return [made(x, mask).numpy()]

        return {"torch.compile": Contestant(run, answer=right)}

    def training() -> Any:
        net: Any = network.torch_training(network.weights(shape))
        net.loss = torch.compile(net.loss, dynamic=False)
        return net

    goal, net = torch.from_numpy(network.goal(shape)), training()

    def answer() -> list[Any]:
        loss, gradients = training().gradients(x, goal)
        return in_order(loss.numpy(), {n: g.numpy() for n, g in gradients.items()})

    return {"torch.compile": Contestant(lambda: net.step(x, goal), answer=answer)}


def onnx_model(problem: NetworkProblem) -> bytes | None:
    """The serialized model of an inference, where there is one."""
    network, (shape,) = problem.network, problem.shapes
    return network.onnx(network.deployed(network.weights(shape)), shape)
