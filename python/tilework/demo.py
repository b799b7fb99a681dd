"""``tilework demo``: trains a small conv net on real handwritten digits, on the CPU and through OpenCL.

The first half is the example to learn the library from: a net is a dict of arrays, and one function computes its loss
and its gradients. Nothing in it says where it runs; the arrays do.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import tilework as tw
from tilework import _core
from tilework.arrays import Array

if TYPE_CHECKING:
    from rich.console import Console

# ------------------------------------------------------------------------------------------------------- the net

Params: TypeAlias = dict[str, Array]


def initial_params(seed: int) -> Params:
    """Weights of variance 2 / inputs and biases of zero. He et al., "Delving deep into rectifiers", 2015."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (16, 1, 3, 3), "w2": (48, 16, 3, 3), "w3": (10, 48 * 2 * 2)}
    params: Params = {}
    for name, shape in shapes.items():
        spread = math.sqrt(2 / math.prod(shape[1:]))
        params[name] = (spread * random.standard_normal(shape)).astype(np.float32)
        params[name.replace("w", "b")] = np.zeros(shape[0], np.float32)
    return params


def logits_of(params: Params, x: Array) -> Array:
    """The class scores (N, 10) of images x (N, 1, 8, 8)."""
    y = tw.conv(x, params["w1"], params["b1"], padding=1, activation="relu")
    y = tw.max_pool(y, kernel=2)
    y = tw.conv(y, params["w2"], params["b2"], padding=1, activation="relu")
    y = tw.avg_pool(y, kernel=2)
    return tw.linear(tw.reshape(y, shape=(x.shape[0], -1)), params["w3"], params["b3"])


def loss_and_gradients(params: Params, x: Array, labels: Array) -> tuple[Array, Params]:
    """The mean cross entropy of images x (N, 1, 8, 8) with labels (N,), and its gradient in every parameter."""
    w1, b1, w2, b2, w3, b3 = (params[name] for name in ("w1", "b1", "w2", "b2", "w3", "b3"))

    conv1, saved1 = tw.conv.forward(x, w1, b1, padding=1, activation="relu")
    pool1, places = tw.max_pool.forward(conv1, kernel=2)
    conv2, saved2 = tw.conv.forward(pool1, w2, b2, padding=1, activation="relu")
    pool2 = tw.avg_pool(conv2, kernel=2)
    flat = tw.reshape(pool2, shape=(x.shape[0], -1))
    logits = tw.linear(flat, w3, b3)
    loss = tw.softmax_cross_entropy(logits, labels)

    one = tw.add(tw.mul(loss, 0.0), 1.0)  # the gradient of the loss in itself, where the loss lives
    dlogits, *_ = tw.softmax_cross_entropy.backward(one, logits, labels)
    dflat, dw3, db3 = tw.linear.backward(dlogits, flat, w3, b3)
    dpool2 = tw.reshape(dflat, shape=pool2.shape)
    dconv2 = tw.avg_pool.backward(dpool2, conv2, kernel=2)
    dpool1, dw2, db2 = tw.conv.backward(dconv2, pool1, w2, b2, padding=1, activation="relu", saved=saved2)
    dconv1 = tw.max_pool.backward(dpool1, conv1, kernel=2, saved=places)
    wanted = ("w", "b")  # nobody asks for the gradient in the images
    _, dw1, db1 = tw.conv.backward(dconv1, x, w1, b1, padding=1, activation="relu", saved=saved1, wanted=wanted)
    return loss, {"w1": dw1, "b1": db1, "w2": dw2, "b2": db2, "w3": dw3, "b3": db3}


class Net:
    """Parameters and Adam's two moments of each, all where the given parameters are."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.steps = 0
        self._moments = {name: (tw.mul(w, 0.0), tw.mul(w, 0.0)) for name, w in params.items()}

    def train_step(self, x: Array, labels: Array, lr: float) -> Array:
        """One step of Adam on a batch; returns the loss before it."""
        loss, gradients = loss_and_gradients(self.params, x, labels)
        self.steps += 1
        for name, w in self.params.items():
            m, v = self._moments[name]
            tw.adam_step(w, gradients[name], m, v, step=self.steps, lr=lr)
        return loss


# ---------------------------------------------------------------------------------------------------- the digits

BATCH = 64
LEARNING_RATE = 4e-3
TEST_IMAGES = 360
GOAL = 0.98

# How far apart the two curves may drift: both round in float32 but sum in different orders, and training amplifies the
# difference. Measured with one unit in the last place of every initial weight changed: 0.004 after 40 epochs.
CURVE_BOUND = 0.02

# Through OpenCL the first epochs are enough for the comparison where all of them would take longer than this.
DEVICE_SECONDS = 15.0


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), split once and for all."""

    train_x: Array
    train_labels: Array
    test_x: Array
    test_labels: Array


def load_digits() -> Digits:
    """The 1797 digits that come with scikit-learn: 1437 to train on, 360 to test on."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = labels.astype(np.int64)
    order = np.random.default_rng(1797).permutation(len(x))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return Digits(x[train], labels[train], x[test], labels[test])


def batches(digits: Digits, seed: int, epoch: int) -> Iterator[tuple[Array, Array]]:
    """The batches of an epoch: shuffled, each image shifted by up to one pixel each way."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(digits.train_x))
    rows, columns = np.arange(8)[:, None], np.arange(8)
    for first in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[first : first + BATCH]
        down, right = random.integers(0, 3, (2, BATCH, 1, 1))
        padded = np.pad(digits.train_x[chosen, 0], ((0, 0), (1, 1), (1, 1)))
        shifted = padded[np.arange(BATCH)[:, None, None], rows + down, columns + right]
        yield shifted[:, None], digits.train_labels[chosen]


# ------------------------------------------------------------------------------------------------------ training


@dataclass
class Run:
    """What one training run did, and where."""

    name: str  # "CPU" or "OpenCL"
    place: str  # tier and threads, or the device
    losses: list[float] = field(default_factory=list)  # one per step
    accuracies: list[float] = field(default_factory=list)  # one per epoch, on the test images
    predictions: Array | None = None
    seconds: float = 0.0
    first_step: float = 0.0  # on a device: with the builds of its kernels

    @property
    def accuracy(self) -> float:
        return self.accuracies[-1]


def train(run: Run, digits: Digits, epochs: int, seed: int, move: Move, progress: Progress) -> None:
    """Trains the net of ``seed`` where ``move`` puts arrays; the same weights and batches for every ``move``."""
    net = Net({name: move(w) for name, w in initial_params(seed).items()})
    test_x = move(digits.test_x)
    steps = epochs * (len(digits.train_x) // BATCH)
    begin = time.perf_counter()
    while len(run.accuracies) < epochs:
        losses = []
        for x, labels in batches(digits, seed, len(run.accuracies)):
            lr = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * net.steps / steps))
            losses.append(net.train_step(move(x), move(labels), lr))
            if net.steps == 1:
                tw.to_host(losses[0])  # waits for the step
                run.first_step = time.perf_counter() - begin
        run.losses += [float(tw.to_host(loss)) for loss in losses]
        run.predictions = np.argmax(tw.to_host(logits_of(net.params, test_x)), axis=1)
        run.accuracies.append(float(np.mean(run.predictions == digits.test_labels)))
        run.seconds = time.perf_counter() - begin
        progress(run, epochs)
        if len(run.accuracies) == 1:
            epochs = affordable(run, epochs)


def affordable(run: Run, epochs: int) -> int:
    """How many epochs fit into the time of the run, from what the first one took; the builds of kernels do not count."""
    each = run.seconds - run.first_step
    return epochs if each * epochs <= run.limit else min(epochs, max(2, int(run.limit / each)))
