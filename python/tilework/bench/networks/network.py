"""What the bench asks of a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

import tilework as tw

Weights = dict[str, Any]
Shape = tuple[int, ...]
RATE = 1e-3  # of the descent


class Training(Protocol):
    """A network in training in another library."""

    @property
    def loss(self) -> Any:
        """The function that a compiler of that library would compile."""

    def gradients(self, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradient in every weight."""

    def step(self, x: Any, goal: Any) -> Any:
        """One step of gradient descent; the loss before it."""


class Network(ABC):
    """A network of x alone; what a problem asks of its op are the first five."""

    operands = ("x",)
    differentiable = ("x",)
    is_view = False
    is_variadic = False
    kinked = False  # its activations or pools have kinks
    trains = True  # whether it has a training step
    prepares = True  # whether it has weights to pack
    name: str

    @abstractmethod
    def fault(self, shape: Shape) -> str:
        """What is wrong with a shape of x, "" if nothing."""

    @abstractmethod
    def products(self, shape: Shape) -> float:
        """Multiplications with an addition, of a forward pass."""

    @abstractmethod
    def result(self, shape: Shape) -> Shape:
        """The shape of what a forward pass gives."""

    @abstractmethod
    def weights(self, shape: Shape) -> Weights:
        """Random weights that keep activations of the order of 1; always the same."""

    @abstractmethod
    def goal(self, shape: Shape) -> Any:
        """What training is to reach."""

    def moved(self, shape: Shape, weights: int, direction: str) -> tuple[int, int]:
        """The bytes that a forward pass or a step has to read and to write, weights of so many among them."""
        x, y = 4 * math.prod(shape), 4 * math.prod(self.result(shape))
        return (x + weights, y) if direction == "fwd" else (x + 2 * weights, 2 * weights)

    def mask(self, shape: Shape) -> Any:
        """What a dropout of tilework's multiplies by, for other libraries, where there is one."""
        return np.ones((), np.float32)

    def torch_function(self, weights: Weights) -> Callable[..., Any] | None:
        """A forward pass as one function of x and of the mask of a dropout, where that is all."""
        return None

    def deployed(self, weights: Weights) -> Weights:
        """The weights that inference takes."""
        return weights

    @abstractmethod
    def inference(self, weights: Weights, *, prepared: bool) -> Callable[[Any], Any]:
        """A function of x, from weights for inference."""

    def compiled(self, weights: Weights, x: Any) -> Callable[[Any], Any]:
        """The same as a compiled graph, for arrays like x."""
        return tw.trace(self.inference(weights, prepared=False), x).compile()

    def opted(self, weights: Weights, x: Any) -> dict[str, Callable[[Any], Any]]:
        """Inference of arrays like x by algorithms that a caller opts in to, by the name of the contestant."""
        return {}

    @abstractmethod
    def loss_and_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradient in every weight that learns."""

    def compiled_gradients(self, weights: Weights, x: Any, goal: Any) -> tuple[Any, Weights]:
        """The loss and its gradients by a compiled graph."""
        held = {name: tw.Variable(w, name) for name, w in weights.items()}
        graph = tw.trace(lambda x, goal: self.loss_and_gradients(held, x, goal), x, goal)
        loss, gradients = graph.compile()(x, goal)
        return loss, gradients

    def compiled_step(self, weights: Weights, x: Any, goal: Any) -> Callable[[Any, Any], Any]:
        """A step as a compiled graph, which updates these weights."""
        held = {name: tw.Variable(w, name) for name, w in weights.items()}
        return tw.trace(lambda x, goal: self.step(held, x, goal), x, goal).compile()

    def step(self, weights: Weights, x: Any, goal: Any) -> Any:
        """One step of gradient descent; the loss before it."""
        loss, gradients = self.loss_and_gradients(weights, x, goal)
        for name, g in gradients.items():
            tw.sgd_step(weights[name], g, lr=RATE)
        return loss

    @abstractmethod
    def torch_inference(self, weights: Weights, x: Any) -> dict[str, Callable[[], Any]]:
        """The same in PyTorch on a tensor x, by the name of the contestant."""

    @abstractmethod
    def torch_training(self, weights: Weights) -> Training:
        """The same in PyTorch, in training."""

    def onnx(self, weights: Weights, shape: Shape) -> bytes | None:
        """A serialized ONNX model for inference, where there is one."""
        return None

    def x(self, shape: Shape) -> Any:
        """The input."""
        return np.random.default_rng(4).standard_normal(shape, np.float32)
