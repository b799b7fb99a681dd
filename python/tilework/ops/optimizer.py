"""Optimizer steps, which update their arrays in place.

A step returns None. Its reference returns the updated arrays instead, a tuple in the order of the inout operands that
were given: (w, v) of sgd_step, (w, m, v, vmax) of adam_step. Steps go along scale g + weight_decay w + l1 sign(w).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework.arrays import Array, Sizes
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    errors,
    fills,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def sgd_step(
    w: Array,
    g: Array,
    v: Array | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    velocity: Literal["gradients", "steps", "moves"] = "gradients",
    scale: float = 1.0,
    l1: float = 0.0,
) -> None:
    """Updates w, of any shape, and its velocity v in place by one step of stochastic gradient descent along g.

    The rule is torch.optim.SGD's: v = momentum v + (1 - dampening) g, w -= lr v; nesterov steps along g + momentum v.
    With velocity="steps" v sums lr g, and w -= v; with "moves" it is the negative of that, and w += v: these differ
    once lr changes. Momentum needs v, zeros at first; without momentum v is not touched.
    """
    ...


@op
def adam_step(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    vmax: Array | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: float = 1.0,
    l1: float = 0.0,
) -> None:
    """Updates w, of any shape, and its moments m and v in place by one step of Adam along g.

    ``step`` counts from 1. The rule is torch.optim.Adam's: weight_decay w is added to g, and eps to the square root of
    the corrected v; AdamW's if ``decoupled``: w shrinks by lr weight_decay w. AMSGrad's if ``vmax`` is given, which
    keeps the largest v. Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, 2019; Reddi et al., 2018.
    """
    ...


@op
def rmsprop_step(
    w: Array,
    g: Array,
    v: Array,
    mean: Array | None = None,
    speed: Array | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    l1: float = 0.0,
) -> None:
    """Updates w, of any shape, and the mean square v of its gradients in place by one step of RMSProp along g.

    The rule is torch.optim.RMSprop's, the centered one if ``mean`` is given, the mean of the gradients. Momentum needs
    ``speed``, zeros at first. Tieleman and Hinton, 2012.
    """
    ...


@op
def lion_step(
    w: Array,
    g: Array,
    m: Array,
    *,
    lr: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    l1: float = 0.0,
) -> None:
    """Updates w, of any shape, and its momentum m in place by one step of Lion, lr along a sign in every element.

    ``weight_decay`` is decoupled. Chen et al., "Symbolic discovery of optimization algorithms", 2023.
    """
    ...


def _slope(g: Any, w: Any, weight_decay: float, scale: float, l1: float) -> Any:
    g = scale * g + weight_decay * w if weight_decay else scale * g
    return g + l1 * np.sign(w) if l1 else g


@reference(sgd_step)
def _(
    w: Any,
    g: Any,
    v: Any,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    velocity: str,
    scale: float,
    l1: float,
) -> Any:
    g = _slope(g, w, weight_decay, scale, l1)
    rate = lr
    if momentum != 0:
        into, rate = {"gradients": (1.0, lr), "steps": (lr, 1.0), "moves": (-lr, -1.0)}[velocity]
        v = momentum * v + (1 - dampening) * into * g
        g = into * g + momentum * v if nesterov else v
    w = w - rate * g
    return (w,) if v is None else (w, v)


@reference(adam_step)
def _(
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    vmax: Any,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    scale: float,
    l1: float,
) -> Any:
    g = _slope(g, w, 0.0 if decoupled else weight_decay, scale, l1)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    largest = v if vmax is None else np.maximum(vmax, v)
    corrected_m, corrected_v = m / (1 - beta1**step), largest / (1 - beta2**step)
    w = (1 - lr * weight_decay) * w if decoupled else w
    w = w - lr * corrected_m / (np.sqrt(corrected_v) + eps)
    return (w, m, v) if vmax is None else (w, m, v, largest)


@reference(rmsprop_step)
def _(
    w: Any,
    g: Any,
    v: Any,
    mean: Any,
    speed: Any,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    scale: float,
    l1: float,
) -> Any:
    g = _slope(g, w, weight_decay, scale, l1)
    v = alpha * v + (1 - alpha) * g * g
    size = v
    if mean is not None:
        mean = alpha * mean + (1 - alpha) * g
        size = v - mean * mean
    move = g / (np.sqrt(size) + eps)
    if momentum != 0:
        move = speed = momentum * speed + move
    return tuple(x for x in (w - lr * move, v, mean, speed) if x is not None)


@reference(lion_step)
def _(
    w: Any,
    g: Any,
    m: Any,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    scale: float,
    l1: float,
) -> Any:
    g = _slope(g, w, 0.0, scale, l1)
    return w - lr * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * w), beta2 * m + (1 - beta2) * g


def _sgd_scale(w: Any, g: Any, v: Any, **attrs: Any) -> Any:
    attrs |= {"lr": -attrs["lr"], "dampening": 0.0, "velocity": "gradients"}
    return sgd_step.rules["reference"](np.abs(w), np.abs(g), None if v is None else np.abs(v), **attrs)


def _adam_scale(w: Any, g: Any, m: Any, v: Any, vmax: Any, **attrs: Any) -> Any:
    attrs |= {"lr": -attrs["lr"]}
    return adam_step.rules["reference"](np.abs(w), np.abs(g), np.abs(m), v, vmax, **attrs)


def _rmsprop_scale(w: Any, g: Any, v: Any, mean: Any, speed: Any, **attrs: Any) -> Any:
    rule = rmsprop_step.rules["reference"]
    attrs |= {"lr": -attrs["lr"]}
    speed = None if speed is None else np.abs(speed)
    if mean is None:
        return rule(np.abs(w), np.abs(g), v, None, speed, **attrs)
    # v - mean mean is off by the roundings of both, and the move by half as much, relatively.
    _, square, middle, *_ = rule(w, g, v, mean, speed, **attrs)
    size = square - middle * middle
    known = size > 0
    off = np.where(known, 1 + (square + middle * middle) / (2 * np.where(known, size, 1.0)), 1.0)
    large = _slope(np.abs(g), np.abs(w), attrs["weight_decay"], attrs["scale"], attrs["l1"])
    move = off * large / (np.sqrt(np.where(known, size, 1.0)) + attrs["eps"])
    if attrs["momentum"] != 0:
        move = speed = attrs["momentum"] * speed + move
    made = (np.abs(w) - attrs["lr"] * move, square, (1 - attrs["alpha"]) * large + attrs["alpha"] * np.abs(mean), speed)
    return tuple(x for x in made if x is not None)


def _lion_scale(w: Any, g: Any, m: Any, **attrs: Any) -> Any:
    return lion_step.rules["reference"](np.abs(w), np.abs(g), np.abs(m), **(attrs | {"lr": -attrs["lr"]}))


# What would be summed if no two terms had opposite signs.
sgd_step.rules["scale"] = _sgd_scale
adam_step.rules["scale"] = _adam_scale
rmsprop_step.rules["scale"] = _rmsprop_scale
lion_step.rules["scale"] = _lion_scale
tolerance(sgd_step, ulp=4)
tolerance(adam_step, ulp=8)
tolerance(rmsprop_step, ulp=8)
tolerance(lion_step, ulp=4)


@samples(sgd_step)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 16, 17, 33):
        yield sample(fill(n), fill(n), lr=0.1)
        yield sample(fill(n), fill(n), fill(n), lr=0.1, momentum=0.9)
    for shape in ((), (3, 5), (2, 0)):
        yield sample(fill(*shape), fill(*shape), fill(*shape), lr=0.1, momentum=0.9, weight_decay=0.01)
    yield sample(fill(17), fill(17), lr=0.1, weight_decay=0.01)
    yield sample(fill(17), fill(17), fill(17), lr=0.1, momentum=0.9, nesterov=True)
    yield sample(fill(17), fill(17), fill(17), lr=0.1, momentum=0.5, dampening=0.3)
    yield sample(fill(17), fill(17), fill(17), lr=0.1)
    yield sample(fill(5, 3).T, fill(3, 5), fill(3, 5), lr=0.1, momentum=0.9)
    yield sample(fill(9), fill(9), fill(9), lr=0.1, momentum=0.9, velocity="steps", scale=0.5, l1=0.01)
    yield sample(fill(9), fill(9), fill(9), lr=0.1, momentum=0.9, velocity="moves", dampening=0.1)
    yield sample(fill(9), fill(9), fill(9), lr=0.1, momentum=0.9, velocity="moves", nesterov=True)


@samples(rmsprop_step)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 5, 17):
        yield sample(fill(n), fill(n), fill.positive(n))
        yield sample(fill(n), fill(n), 4 + fill.positive(n), fill(n), fill(n), momentum=0.9, alpha=0.5)
    yield sample(fill(5, 3).T, fill(3, 5), fill.positive(3, 5), None, fill(3, 5), momentum=0.9, scale=0.5)
    yield sample(fill(2, 0), fill(2, 0), fill(2, 0), weight_decay=0.1, l1=0.1)
    yield sample(fill(), fill(), fill.positive(), weight_decay=0.1)


@samples(lion_step)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 5, 17):
        yield sample(fill(n), fill(n), fill(n))
    yield sample(fill(5, 3).T, fill(3, 5), fill(3, 5), weight_decay=0.1, lr=0.1, scale=0.5, l1=0.1)
    yield sample(fill(2, 0), fill(2, 0), fill(2, 0))
    yield sample(fill(), fill(), fill(), beta1=0.0, beta2=0.5)


@samples(adam_step)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 16, 17, 33):
        yield sample(fill(n), fill(n), fill(n), fill.positive(n), step=1)
    for shape in ((), (3, 5), (2, 0)):
        yield sample(fill(*shape), fill(*shape), fill(*shape), fill.positive(*shape), step=3, weight_decay=0.01)
    yield sample(fill(17), fill(17), fill(17), fill.positive(17), step=100000, lr=0.1)
    yield sample(fill(17), fill(17), fill(17), fill.positive(17), step=7, beta1=0.5, beta2=0.9, eps=1e-3)
    yield sample(fill(5, 3).T, fill(3, 5), fill(3, 5), fill.positive(3, 5), step=2)
    more = {"step": 4, "weight_decay": 0.01, "decoupled": True}
    yield sample(fill(9), fill(9), fill(9), fill.positive(9), fill.positive(9), scale=0.5, l1=0.01, **more)


def _read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


@errors(sgd_step)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, g, v = fill(4), fill(4), fill(4)
    yield ErrorCase(sample(w, g), AttrTypeError, "lr")
    yield ErrorCase(sample(w, g, lr=0.1, momentum=0.9), ShapeError, "momentum=0.9")
    yield ErrorCase(sample(w, fill(3), lr=0.1), ShapeError, "g has shape (3,); want (4,)")
    yield ErrorCase(sample(w, g, fill(4, 1), lr=0.1, momentum=0.9), ShapeError, "v has shape (4, 1); want (4,)")
    yield ErrorCase(sample(_read_only(fill(4)), g, lr=0.1), ShapeError, "w is read-only")
    yield ErrorCase(sample(np.arange(4), g, lr=0.1), DTypeError, "w has dtype int64")
    yield ErrorCase(sample(w, g, v, lr="fast"), AttrTypeError, "lr='fast' is a str; want a float")


@errors(adam_step)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, g, m, v = fill(4), fill(4), fill(4), fill.positive(4)
    yield ErrorCase(sample(w, g, m, v), AttrTypeError, "step")
    yield ErrorCase(sample(w, g, m, v, step=0), AttrError, "step=0")
    yield ErrorCase(sample(w, g, m, v, step=1.0), AttrTypeError, "step=1.0 is a float; want an int")
    yield ErrorCase(sample(w, g, m, fill(5), step=1), ShapeError, "v has shape (5,); want (4,)")
    yield ErrorCase(sample(w, g, m, _read_only(fill.positive(4)), step=1), ShapeError, "v is read-only")


@errors(rmsprop_step)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, g, v = fill(4), fill(4), fill.positive(4)
    yield ErrorCase(sample(w, g, v, momentum=0.9), ShapeError, "speed is not given but momentum=0.9")
    yield ErrorCase(sample(w, g, v, fill(3)), ShapeError, "mean has shape (3,); want (4,)")
    yield ErrorCase(sample(w, g, v, alpha=1.0), AttrError, "alpha=1; want 0 <= alpha < 1")
    yield ErrorCase(sample(w, g, v, scale=math.nan), AttrError, "scale=nan; want a finite number")


@errors(lion_step)
def _(fill: Fill) -> Iterator[ErrorCase]:
    w, g, m = fill(4), fill(4), fill(4)
    yield ErrorCase(sample(w, g, fill(4, 1)), ShapeError, "m has shape (4, 1); want (4,)")
    yield ErrorCase(sample(w, g, m, beta1=1.0), AttrError, "beta1=1; want 0 <= beta1 < 1")
    yield ErrorCase(sample(w, g, m, l1=-1.0), AttrError, "l1=-1; want a finite number >= 0")


@workloads(rmsprop_step)
def _() -> Iterator[Workload]:
    yield Workload("4M", (((1 << 22),),) * 3 + (None, None))


@workloads(lion_step)
def _() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,),) * 3)


@fills(rmsprop_step)
def _(fill: Fill, w: Sizes, g: Sizes, v: Sizes, mean: None, speed: None, **attrs: Any) -> Any:
    return fill(*w), fill(*g), fill.positive(*v), None, None


@workloads(sgd_step)
def _() -> Iterator[Workload]:
    size = (1 << 22,)
    yield Workload("4M", (size, size, None), {"lr": 0.1})
    yield Workload("4M momentum", (size, size, size), {"lr": 0.1, "momentum": 0.9})


@workloads(adam_step)
def _() -> Iterator[Workload]:
    size = (1 << 22,)
    yield Workload("4M", (size, size, size, size, None), {"step": 1})
    yield Workload("768x3072", (*((768, 3072),) * 4, None), {"step": 1}, ("transformer",))


@fills(adam_step)
def _(fill: Fill, w: Sizes, g: Sizes, m: Sizes, v: Sizes, vmax: None, **attrs: Any) -> Any:
    return fill(*w), fill(*g), fill(*m), fill.positive(*v), None


# ------------------------------------------------------------------------------------------------- OpenCL


def _launch(queue: Queue, kernel: str, given: dict[str, Any], *scalars: float) -> None:
    """Runs a kernel of optimizer.cl on the arrays that are given, which are defined in it as HAS_name."""
    arrays = {n: a for n, a in given.items() if a is not None}
    define = {f"HAS_{n.upper()}": k for k, n in enumerate(arrays)}
    queue.each("optimizer.cl", kernel, tuple(arrays.values()), *scalars, DTYPE=given["w"].dtype, **define)


@opencl(sgd_step)
def _(
    queue: Queue,
    w: Any,
    g: Any,
    v: Any,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    velocity: str,
    scale: float,
    l1: float,
) -> None:
    into, rate = {"gradients": (1.0, lr), "steps": (lr, 1.0), "moves": (-lr, -1.0)}[velocity]
    if not momentum:
        rate = lr
    given = {"w": w, "g": g, "v": v if momentum else None}
    scalars = (rate, momentum, into * (1 - dampening), into if nesterov else 0.0, scale, weight_decay, l1)
    _launch(queue, "sgd", given, *scalars)


@opencl(adam_step)
def _(
    queue: Queue,
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    vmax: Any,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    scale: float,
    l1: float,
) -> None:
    rate, root = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    decay, left = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    scalars = (rate, root, beta1, 1 - beta1, beta2, 1 - beta2, eps, left, scale, decay, l1)
    _launch(queue, "adam", {"w": w, "g": g, "m": m, "v": v, "vmax": vmax}, *scalars)


@opencl(rmsprop_step)
def _(
    queue: Queue,
    w: Any,
    g: Any,
    v: Any,
    mean: Any,
    speed: Any,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    scale: float,
    l1: float,
) -> None:
    given = {"w": w, "g": g, "v": v, "mean": mean, "speed": speed if momentum else None}
    _launch(queue, "rmsprop", given, lr, alpha, 1 - alpha, eps, momentum, scale, weight_decay, l1)


@opencl(lion_step)
def _(
    queue: Queue,
    w: Any,
    g: Any,
    m: Any,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    scale: float,
    l1: float,
) -> None:
    scalars = (lr, beta1, 1 - beta1, beta2, 1 - beta2, weight_decay, scale, 0.0, l1)
    _launch(queue, "lion", {"w": w, "g": g, "m": m}, *scalars)
