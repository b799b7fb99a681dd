"""Gated units, swiglu and geglu, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tilework import ops
from tilework.arrays import Array, Wanted
from tilework.backends.opencl_queue import Queue
from tilework.dtypes import FLOATING
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.testing import Fill

Approximate: TypeAlias = Literal["none", "tanh"]


@op
def swiglu(gate: Array, x: Array, *, out: Array | None = None) -> Array:
    """Computes silu(gate) x for each element of gate and x, of one shape.

    Halves of one product are two views of it: swiglu(h[..., :n], h[..., n:]). Shazeer, "GLU variants improve
    transformer", 2020.
    """
    ...


@op
def swiglu_dx(dy: Array, gate: Array, x: Array, *, out: tuple[Array, ...] | None = None) -> Any:
    """Computes the gradients of swiglu in gate and x; dy, gate and x of one shape."""
    ...


@op
def geglu(gate: Array, x: Array, *, approximate: Approximate = "none", out: Array | None = None) -> Array:
    """Computes gelu(gate) x for each element of gate and x, of one shape; ``approximate`` is that of gelu."""
    ...


@op
def geglu_dx(
    dy: Array, gate: Array, x: Array, *, approximate: Approximate = "none", out: tuple[Array, ...] | None = None
) -> Any:
    """Computes the gradients of geglu in gate and x; dy, gate and x of one shape."""
    ...


def _silu(gate: Any) -> tuple[Any, Any]:
    """silu and its slope."""
    slope = ops.activation_dx.rules["reference"](np.ones_like(gate), gate, function="silu", alpha=0.0, beta=0.0)
    return ops.silu.rules["reference"](gate), slope


def _gelu(gate: Any, approximate: Approximate) -> tuple[Any, Any]:
    slope = ops.gelu_dx.rules["reference"](np.ones_like(gate), gate, approximate=approximate)
    return ops.gelu.rules["reference"](gate, approximate=approximate), slope


def _declare(forward_op: Any, gradient_op: Any, parts: Callable[..., tuple[Any, Any]], names: dict[str, str]) -> None:
    """The rules of one activation: ``parts`` gives it and its slope, ``names`` the kernels' suffix by attribute."""

    @reference(forward_op)
    def _(gate: Any, x: Any, **attrs: Any) -> Any:
        return parts(gate, **attrs)[0] * x

    @reference(gradient_op)
    def _(dy: Any, gate: Any, x: Any, **attrs: Any) -> Any:
        value, slope = parts(gate, **attrs)
        return dy * x * slope, dy * value

    @backward(forward_op, of=("gate", "x"))
    def _(dy: Array, gate: Array, x: Array, *, saved: None, wanted: Wanted, **attrs: Any) -> Any:
        dgate, dx = gradient_op(dy, gate, x, **attrs)
        return dgate if "gate" in wanted else None, dx if "x" in wanted else None

    # In gelu's left tail the argument of its exponential weighs more than its own rounding.
    forward_op.rules["scale"] = lambda gate, x, **attrs: np.abs(parts(gate, **attrs)[0] * x) * np.fmax(1, gate**2 / 4)
    gradient_op.rules["scale"] = lambda dy, gate, x, **attrs: (
        np.abs(dy * x) * np.fmax(1.0, np.abs(parts(gate, **attrs)[1])),
        np.abs(dy * parts(gate, **attrs)[0]) * np.fmax(1, gate**2 / 4),
    )

    variants: list[dict[str, Any]] = [{"approximate": a} for a in names] if len(names) > 1 else [{}]

    def arguments(fill: Fill, count: int) -> Iterator[Sample]:
        for attrs in variants:
            for n in (1, 5, 17):
                yield sample(*(fill(n) for _ in range(count)), **attrs)
            yield sample(*(fill(2, 3, 4) * np.asarray(3, fill.dtype) for _ in range(count)), **attrs)
        halves = fill(3, 10)
        yield sample(*(fill(3, 5) for _ in range(count - 2)), halves[:, :5], halves[:, 5:])
        yield sample(*(fill(5, 3).T for _ in range(count)))
        yield sample(*(fill() for _ in range(count)))
        yield sample(*(fill(3, 0) for _ in range(count)))

    def faults(fill: Fill, *dys: Any) -> Iterator[ErrorCase]:
        yield ErrorCase(sample(*dys, fill(2, 3), fill(3)), ShapeError, "x has shape (3,) but gate has (2, 3)")
        yield ErrorCase(sample(*dys, fill(2, 3), np.ones((2, 3), int)), DTypeError, "x has dtype int64 but gate has")
        if len(names) > 1:
            bad = sample(*dys, fill(2, 3), fill(2, 3), approximate="erf")
            yield ErrorCase(bad, AttrError, "approximate='erf'; want one of")

    samples(forward_op)(lambda fill: arguments(fill, 2))
    samples(gradient_op)(lambda fill: arguments(fill, 3))
    errors(forward_op)(lambda fill: faults(fill))
    errors(gradient_op)(lambda fill: faults(fill, fill(2, 3)))

    for target, count in ((forward_op, 2), (gradient_op, 3)):
        tolerance(target, ulp=8)
        dtypes(target, *FLOATING)
        workloads(target)(lambda count=count: [Workload("512x3072", ((512, 3072),) * count, sets=("transformer",))])

    @opencl(forward_op)
    def _(queue: Queue, gate: Any, x: Any, y: Any, approximate: str = "none") -> None:
        queue.each("swiglu.cl", names[approximate], (gate, x, y), DTYPE=y.dtype)

    @opencl(gradient_op)
    def _(queue: Queue, dy: Any, gate: Any, x: Any, dgate: Any, dx: Any, approximate: str = "none") -> None:
        queue.each("swiglu.cl", names[approximate] + "_dx", (dy, gate, x, dgate, dx), DTYPE=dx.dtype)


_declare(swiglu, swiglu_dx, _silu, {"none": "swiglu"})
_declare(geglu, geglu_dx, _gelu, {"none": "geglu", "tanh": "geglu_tanh"})
