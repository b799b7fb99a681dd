"""Optimizer steps, which update their arrays in place.

A step returns None. Its reference returns the updated arrays instead, a tuple in the order of the inout operands that
were given: (w, v) of sgd_step, (w, m, v) of adam_step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
) -> None:
    """Updates w, of any shape, and its velocity v in place by one step of stochastic gradient descent along g.

    The rule is torch.optim.SGD's: g += weight_decay w, v = momentum v + (1 - dampening) g, w -= lr v; nesterov steps
    along g + momentum v. Momentum needs v, zeros at first; without momentum v is not touched.
    """
    ...


@op
def adam_step(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    step: int,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Updates w, of any shape, and its moments m and v in place by one step of Adam along g.

    ``step`` counts from 1. The rule is torch.optim.Adam's: weight_decay w is added to g, and eps to the square root of
    the corrected v. Kingma and Ba, "Adam", 2015.
    """
    ...


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
) -> Any:
    g = g + weight_decay * w if weight_decay else g
    if momentum != 0:
        v = momentum * v + (1 - dampening) * g
        g = g + momentum * v if nesterov else v
    w = w - lr * g
    return (w,) if v is None else (w, v)


@reference(adam_step)
def _(
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Any:
    g = g + weight_decay * w if weight_decay else g
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    corrected_m, corrected_v = m / (1 - beta1**step), v / (1 - beta2**step)
    return w - lr * corrected_m / (np.sqrt(corrected_v) + eps), m, v


def _sgd_scale(w: Any, g: Any, v: Any, **attrs: Any) -> Any:
    attrs |= {"lr": -attrs["lr"], "dampening": 0.0}
    return sgd_step.rules["reference"](np.abs(w), np.abs(g), None if v is None else np.abs(v), **attrs)


def _adam_scale(w: Any, g: Any, m: Any, v: Any, **attrs: Any) -> Any:
    return adam_step.rules["reference"](np.abs(w), np.abs(g), np.abs(m), v, **(attrs | {"lr": -attrs["lr"]}))


# What would be summed if no two terms had opposite signs.
sgd_step.rules["scale"] = _sgd_scale
adam_step.rules["scale"] = _adam_scale
tolerance(sgd_step, ulp=4)
tolerance(adam_step, ulp=8)


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


@samples(adam_step)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 16, 17, 33):
        yield sample(fill(n), fill(n), fill(n), fill.positive(n), step=1)
    for shape in ((), (3, 5), (2, 0)):
        yield sample(fill(*shape), fill(*shape), fill(*shape), fill.positive(*shape), step=3, weight_decay=0.01)
    yield sample(fill(17), fill(17), fill(17), fill.positive(17), step=100000, lr=0.1)
    yield sample(fill(17), fill(17), fill(17), fill.positive(17), step=7, beta1=0.5, beta2=0.9, eps=1e-3)
    yield sample(fill(5, 3).T, fill(3, 5), fill(3, 5), fill.positive(3, 5), step=2)


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


@workloads(sgd_step)
def _() -> Iterator[Workload]:
    size = (1 << 22,)
    yield Workload("4M", (size, size, None), {"lr": 0.1})
    yield Workload("4M momentum", (size, size, size), {"lr": 0.1, "momentum": 0.9})


@workloads(adam_step)
def _() -> Iterator[Workload]:
    size = (1 << 22,)
    yield Workload("4M", (size, size, size, size), {"step": 1})
    yield Workload("768x3072", ((768, 3072),) * 4, {"step": 1}, ("transformer",))


@fills(adam_step)
def _(fill: Fill, w: Sizes, g: Sizes, m: Sizes, v: Sizes, **attrs: Any) -> Any:
    return fill(*w), fill(*g), fill(*m), fill.positive(*v)


# ------------------------------------------------------------------------------------------------- OpenCL


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
) -> None:
    define: dict[str, Any] = {"DTYPE": w.dtype}
    if momentum:
        define["MOMENTUM"] = 1
    if nesterov:
        define["NESTEROV"] = 1
    arrays = (w, g, v) if momentum else (w, g)
    queue.each("optimizer.cl", "sgd", arrays, lr, momentum, 1 - dampening, weight_decay, **define)


@opencl(adam_step)
def _(
    queue: Queue,
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    rate, root = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    scalars = (rate, root, beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay)
    queue.each("optimizer.cl", "adam", (w, g, m, v), *scalars, DTYPE=w.dtype)
