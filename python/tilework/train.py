"""Training: parameters in nested containers, losses, optimizers, and a trainer that compiles the step.

    trainer = train.Trainer(loss, params, train.Adam(lr=1e-3), clip=train.Clip(global_norm=1.0))
    for x, labels in batches:
        value = trainer.step(x, labels)

``loss(params, *batch)`` is an ordinary function of arrays. Its value, its gradients and the optimizer's ops, which
update the parameters in place, are traced once per shape of batch and run as one graph, on the CPU or on an OpenCL
device.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from tilework import autodiff, graph, nested, ops, safetensors
from tilework.arrays import Array
from tilework.devices import to_device, to_host
from tilework.dispatch import Number, is_device_array
from tilework.dtypes import is_floating
from tilework.errors import AttrError, AttrTypeError, DTypeError, FormatError, ShapeError, UnsupportedError
from tilework.files import path_of, replacing
from tilework.settings import threads as limited_threads

Params: TypeAlias = Any  # nested tuples, lists and dicts of arrays

# ------------------------------------------------------------------------------------------------------- losses


def mean_square(y: Array, target: Array) -> Array:
    """The mean over all elements of (y - target)^2; y and target of one shape."""
    difference = ops.sub(y, target)
    return ops.reduce_mean(ops.mul(difference, difference))


def mean_absolute(y: Array, target: Array) -> Array:
    """The mean over all elements of |y - target|; y and target of one shape."""
    return ops.reduce_mean(ops.abs(ops.sub(y, target)))


def huber(y: Array, target: Array, *, delta: float = 1.0) -> Array:
    """The mean of d^2 / 2 where d = |y - target| is at most delta, and of delta (d - delta / 2) elsewhere."""
    size = ops.abs(ops.sub(y, target))
    near = ops.clip(size, low=0.0, high=delta)
    return ops.reduce_mean(ops.mul(near, ops.sub(size, ops.mul(near, 0.5))))


def sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean of softplus(x) - x labels over logits x, labels in [0, 1] of the same shape: without overflow."""
    return ops.reduce_mean(ops.sub(ops.softplus(logits), ops.mul(logits, labels)))


def hinge(y: Array, labels: Array) -> Array:
    """The mean of max(0, 1 - y labels), labels of -1 and 1 in the shape of y."""
    return ops.reduce_mean(ops.relu(ops.sub(1.0, ops.mul(y, labels))))


# --------------------------------------------------------------------------------------------------- optimizers


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimizer takes: a rate, L2 and L1 regularization, and a factor of the gradient."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    l1: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, value in asdict(self).items():
            wanted = type(self).__dataclass_fields__[name].type
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if wanted == "float" and not number:
                raise AttrError(f"{kind}: {name}={value!r:.80}; want a finite number", argument=name)
            if wanted == "bool" and not isinstance(value, bool):
                raise AttrTypeError(f"{kind}: {name}={value!r:.80}; want a bool", argument=name)

    def slots(self) -> tuple[str, ...]:
        """The names of the arrays that it keeps for each parameter; they begin as zeros."""
        raise UnsupportedError(f"{type(self).__name__}: is no optimizer by itself; want train.SGD or another")

    def numbers(self, step: int) -> dict[str, float]:
        """What may change from step to step, which counts from 1: attributes of the optimizer's op."""
        return {"lr": self.lr}

    def update(self, w: Array, g: Array, state: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Updates w and its state in place along g, with the :meth:`numbers` of a step."""
        raise NotImplementedError

    def _shared(self) -> dict[str, Any]:
        return {"weight_decay": self.weight_decay, "l1": self.l1, "scale": self.scale}


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent: :func:`tilework.sgd_step`, which says what the kinds of velocity are."""

    lr: float = 1e-2
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    velocity: Literal["gradients", "steps", "moves"] = "gradients"

    def slots(self) -> tuple[str, ...]:
        return ("v",) if self.momentum else ()

    def numbers(self, step: int) -> dict[str, float]:
        # torch takes the first gradient whole: dampening begins with the second.
        return {"lr": self.lr, "dampening": self.dampening if step > 1 else 0.0}

    def update(self, w: Array, g: Array, state: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        own: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov, "velocity": self.velocity}
        ops.sgd_step(w, g, state.get("v"), **own, **numbers, **self._shared())


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, and AMSGrad if ``amsgrad``: :func:`tilework.adam_step`."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    decoupled: ClassVar[bool] = False

    def slots(self) -> tuple[str, ...]:
        return ("m", "v", "vmax") if self.amsgrad else ("m", "v")

    def numbers(self, step: int) -> dict[str, float]:
        return {"lr": self.lr, "step": step}

    def update(self, w: Array, g: Array, state: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        own: dict[str, Any] = {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps, "decoupled": self.decoupled}
        ops.adam_step(w, g, state["m"], state["v"], state.get("vmax"), **own, **numbers, **self._shared())


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay."""

    weight_decay: float = 1e-2
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """RMSProp, plain or centered, with momentum or without: :func:`tilework.rmsprop_step`."""

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def slots(self) -> tuple[str, ...]:
        return ("v", *(("mean",) if self.centered else ()), *(("speed",) if self.momentum else ()))

    def update(self, w: Array, g: Array, state: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        own: dict[str, Any] = {"alpha": self.alpha, "eps": self.eps, "momentum": self.momentum}
        ops.rmsprop_step(w, g, state["v"], state.get("mean"), state.get("speed"), **own, **numbers, **self._shared())


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion, which steps by signs: :func:`tilework.lion_step`."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99

    def slots(self) -> tuple[str, ...]:
        return ("m",)

    def update(self, w: Array, g: Array, state: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        ops.lion_step(w, g, state["m"], beta1=self.beta1, beta2=self.beta2, **numbers, **self._shared())


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Limits of gradients: of each element, of the L2 norm of each array, of the norm of all together."""

    value: float | None = None
    norm: float | None = None
    global_norm: float | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if limit is not None and not (number and limit > 0):
                raise AttrError(f"Clip: {name}={limit!r}; want a number above 0", argument=name)

    def __call__(self, gradients: Sequence[Array]) -> tuple[list[Array], Array | None]:
        """The gradients within the limits, and the norm of all of them before if ``global_norm`` asks for it."""
        limited = list(gradients)
        if self.value is not None:
            limited = [ops.clip(g, low=-self.value, high=self.value) for g in limited]
        if self.norm is not None:
            limited = [ops.mul(g, _factor(ops.sqrt(_square(g)), self.norm)) for g in limited]
        if self.global_norm is None:
            return limited, None
        total = _square(limited[0])
        for g in limited[1:]:
            total = ops.add(total, ops.cast(_square(g), dtype=total.dtype) if g.dtype != total.dtype else _square(g))
        norm = ops.sqrt(total)
        factor = _factor(norm, self.global_norm)
        return [ops.mul(g, ops.cast(factor, dtype=g.dtype) if g.dtype != norm.dtype else factor) for g in limited], norm


def _square(g: Array) -> Array:
    return ops.reduce_sum(ops.mul(g, g))


def _factor(norm: Array, limit: float) -> Array:
    """limit / norm where the norm is larger, else 1; a norm of 0 gives 1."""
    return ops.clip(ops.div(limit, norm), low=0.0, high=1.0)


# ------------------------------------------------------------------------------------------------------ training


def _kind(argument: Any) -> Any:
    """What a compiled function depends on."""
    if hasattr(argument, "shape"):
        return tuple(argument.shape), argument.dtype
    return Number if isinstance(argument, Number) else argument


@dataclass(frozen=True)
class Stepped:
    """What one step gave: the loss before it, what else the loss function returned, the norm of all gradients."""

    loss: Array
    aux: Any = None
    norm: Array | None = None

    def __float__(self) -> float:
        return float(to_host(self.loss))


class Trainer:
    """Trains ``params`` on a loss: a compiled step per shape of batch, state that can be saved and resumed bit for bit.

    ``loss(params, *batch)`` returns an array of shape (), or a pair of that and anything else if ``has_aux``.
    ``params`` are copied, to ``device`` (see :func:`tilework.to_device`) if given. ``reduce`` takes the list of
    gradients and returns one like it: the mean over processes or devices, where several train together; a step is then
    two graphs, one before and one behind it.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Params,
        optimizer: Optimizer,
        *,
        clip: Clip | None = None,
        reduce: Callable[[list[Array]], Sequence[Array]] | None = None,
        has_aux: bool = False,
        device: Any = None,
        threads: int | None = None,
    ) -> None:
        for name, given, fits, what in (
            ("loss", loss, callable(loss), "a function"),
            ("optimizer", optimizer, isinstance(optimizer, Optimizer), "an optimizer, as train.SGD()"),
            ("clip", clip, clip is None or isinstance(clip, Clip), "a train.Clip"),
            ("reduce", reduce, reduce is None or callable(reduce), "a function"),
            ("has_aux", has_aux, isinstance(has_aux, bool), "a bool"),
        ):
            if not fits:
                raise AttrTypeError(f"Trainer: {name} is a {type(given).__name__}; want {what}", argument=name)
        if threads is not None:
            limited_threads(threads)  # checks it
        self._loss, self._reduce, self._has_aux = loss, reduce, has_aux
        self.optimizer, self.clip = optimizer, clip or Clip()
        self.device, self._threads = device, threads
        leaves, self._structure = nested.flatten(params)
        if not leaves:
            raise AttrError("Trainer: params hold no array; want one or more", argument="params")
        self._names = list(nested.paths(self._structure, "params"))
        self._weights = [graph.Variable(self._copied(n, w), n) for n, w in zip(self._names, leaves, strict=True)]
        self._state = [
            {slot: graph.Variable(self._zeros(w.value), f"{slot}:{w.label}") for slot in optimizer.slots()}
            for w in self._weights
        ]
        self.steps = 0
        self._compiled: dict[Any, graph.Executable] = {}

    def _copied(self, name: str, w: Any) -> Array:
        if not hasattr(w, "dtype") or not hasattr(w, "shape") or not is_floating(w.dtype):
            what = w.dtype if hasattr(w, "dtype") else type(w).__name__
            raise DTypeError(f"Trainer: {name} is {what}; want an array of floats", argument=name)
        host = np.array(to_host(w), order="C")
        return host if self.device is None else to_device(host, self.device)

    def _zeros(self, like: Array) -> Array:
        zeros = np.zeros(like.shape, like.dtype)
        return zeros if self.device is None else to_device(zeros, like=like)

    @property
    def params(self) -> Params:
        """The parameters as they are now, in their containers; a step changes these arrays in place."""
        return nested.unflatten(self._structure, [w.value for w in self._weights])

    def step(self, *batch: Any, lr: float | None = None) -> Stepped:
        """One step on a batch of arrays, at the optimizer's rate or at ``lr``."""
        given = batch if self.device is None else nested.mapped(self._placed, batch)
        numbers = self.optimizer.numbers(self.steps + 1) | ({} if lr is None else {"lr": lr})
        if self._reduce is None:
            returned, norm = self._executable(self._stepped, self._open(numbers), *given)(numbers, *given)
        else:
            returned, gradients = self._executable(self._differentiated, *given)(*given)
            reduced = self._reduced(gradients)
            norm = self._executable(self._updated, self._open(numbers), reduced)(numbers, reduced)
        self.steps += 1
        loss, aux = returned if self._has_aux else (returned, None)
        return Stepped(loss, aux, None if isinstance(norm, tuple) else norm)

    def evaluate(self, function: Callable[..., Any], *batch: Any) -> Any:
        """``function(params, *batch)``, compiled like the step."""
        given = batch if self.device is None else nested.mapped(self._placed, batch)
        return self._executable(function, self.params, *given)(self.params, *given)

    def _placed(self, a: Any) -> Any:
        return a if is_device_array(a) or not hasattr(a, "shape") else to_device(a, like=self._weights[0].value)

    def _executable(self, function: Callable[..., Any], *args: Any) -> graph.Executable:
        leaves, structure = nested.flatten(args)
        key = (function, structure, tuple(map(_kind, leaves)))
        try:
            hash(key)
        except TypeError as e:
            raise DTypeError(f"Trainer: a batch holds what no graph depends on ({e}); want arrays") from None
        if key not in self._compiled:
            self._compiled[key] = graph.trace(function, *args).compile(device=self.device, threads=self._threads)
        return self._compiled[key]

    @staticmethod
    def _open(numbers: Mapping[str, float]) -> dict[str, Any]:
        """Numbers that a compiled step is given anew each time."""
        return {name: graph.number(value) for name, value in numbers.items()}

    # What is traced: the loss and its gradients, the update, and both in one.

    def _differentiated(self, *batch: Any) -> tuple[Any, list[Array]]:
        params = nested.unflatten(self._structure, self._weights)
        returned, gradients = autodiff.value_and_grad(self._loss, has_aux=self._has_aux)(params, *batch)
        return returned, list(nested.flatten(gradients)[0])

    def _updated(self, numbers: Mapping[str, float], gradients: Sequence[Array]) -> Any:
        limited, norm = self.clip(gradients)
        for w, g, state in zip(self._weights, limited, self._state, strict=True):
            self.optimizer.update(w, g, state, numbers)
        return () if norm is None else norm

    def _stepped(self, numbers: Mapping[str, float], *batch: Any) -> tuple[Any, Any]:
        returned, gradients = self._differentiated(*batch)
        return returned, self._updated(numbers, gradients)

    def _reduced(self, gradients: list[Array]) -> list[Array]:
        assert self._reduce is not None
        found = self._reduce(gradients)
        if not isinstance(found, (list, tuple)) or len(found) != len(gradients):
            what = f"{len(found)} arrays" if isinstance(found, (list, tuple)) else f"a {type(found).__name__}"
            raise AttrTypeError(f"Trainer: reduce returned {what}; want {len(gradients)} in a list", argument="reduce")
        for name, old, now in zip(self._names, gradients, found, strict=True):
            if not hasattr(now, "dtype"):
                what = f"Trainer: reduce returned a {type(now).__name__} for {name}; want an array"
                raise DTypeError(what, argument="reduce")
            if tuple(now.shape) != tuple(old.shape) or now.dtype != old.dtype:
                raise ShapeError(
                    f"Trainer: reduce returned {now.dtype} {tuple(now.shape)} for {name}; want {old.dtype} "
                    f"{tuple(old.shape)}",
                    argument=name,
                )
        return list(found)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save(self, path: str | os.PathLike[str], **more: str) -> None:
        """Writes parameters, the optimizer's state and the number of steps to a safetensors file, with more texts."""
        arrays = self._arrays()
        for name, text in more.items():
            if name in ("format", "steps", "optimizer") or not isinstance(text, str):
                raise AttrError(f"save: {name}={text!r:.80}; want a text of another name", argument=name)
        about = {"format": "tilework.train 1", "steps": str(self.steps), "optimizer": self._described()}
        data = safetensors.dumps({name: to_host(array) for name, array in arrays.items()}, about | more)
        with replacing(path_of("save", path)) as partial:
            partial.write_bytes(data)

    def load(self, path: str | os.PathLike[str]) -> dict[str, str]:
        """Goes on from a file of :meth:`save`, bit for bit, and returns its texts; on an error nothing has changed."""
        arrays, about = safetensors.loads(path_of("load", path).read_bytes())
        if about.get("format") != "tilework.train 1" or not about.get("steps", "").isdigit():
            raise FormatError(f"load: {path} is no checkpoint of a trainer; want a file that Trainer.save wrote")
        if about.get("optimizer") != self._described():
            raise FormatError(f"load: {path} is of {about.get('optimizer')}; want {self._described()}")
        targets = self._arrays()
        if arrays.keys() != targets.keys():
            odd = sorted(arrays.keys() ^ targets.keys())[0]
            raise FormatError(f"load: {odd} is {'not ' if odd in targets else ''}in {path}; want {len(targets)} arrays")
        for name, target in targets.items():
            if (arrays[name].shape, arrays[name].dtype) != (tuple(target.shape), target.dtype):
                raise FormatError(
                    f"load: {name} in {path} is {arrays[name].dtype} {arrays[name].shape}; want {target.dtype} "
                    f"{tuple(target.shape)}"
                )
        for name, target in targets.items():
            if self.device is None:
                target[...] = arrays[name]
            else:
                target.set(arrays[name])
        self.steps = int(about["steps"])
        return about

    def _arrays(self) -> dict[str, Array]:
        """Parameters and the optimizer's state, by name."""
        return {v.label: v.value for v in (*self._weights, *(v for state in self._state for v in state.values()))}

    def _described(self) -> str:
        kept = {k: v for k, v in asdict(self.optimizer).items() if k != "lr"}
        return f"{type(self.optimizer).__name__} {json.dumps(kept, sort_keys=True)}"
