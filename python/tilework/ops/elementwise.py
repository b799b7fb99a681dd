"""Element by element: arithmetic with broadcasting, and the activation functions with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilework import ops
from tilework.arrays import Activation, Array, Sizes, Wanted
from tilework.dtypes import FLOATING, is_floating
from tilework.errors import AttrError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    dtypes,
    errors,
    fills,
    forward,
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

# ------------------------------------------------------------------------------------------------- arithmetic


@op
def add(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Adds a and b, arrays of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number, which is taken in the dtype of the other.
    """
    ...


@op
def sub(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Subtracts b from a, arrays of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number, which is taken in the dtype of the other.
    """
    ...


@op
def mul(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Multiplies a by b, arrays of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number, which is taken in the dtype of the other.
    """
    ...


@op
def div(a: Array | float, b: Array | float, *, out: Array | None = None) -> Array:
    """Divides a by b, arrays of shapes that broadcast as numpy's do, element by element.

    Either operand may be a Python number, which is taken in the dtype of the other. x/0 is an infinity and 0/0 is NaN.
    Integers are divided towards zero, and by 0 they give 0.
    """
    ...


reference(add)(np.add)
reference(sub)(np.subtract)
reference(mul)(np.multiply)


@reference(div)
def _(a: Any, b: Any) -> Any:
    if np.result_type(a, b).kind not in "iu":
        return np.divide(a, b)
    by = np.where(np.equal(b, 0), 1, b)
    whole = a // by + ((a % by != 0) & ((a < 0) != (by < 0)))
    return np.where(np.equal(b, 0), 0, whole)


def sum_to_shape(dy: Array, shape: Sizes) -> Array:
    """dy summed over the axes along which ``shape`` was broadcast to dy's: the gradient of broadcasting."""
    if tuple(dy.shape) == tuple(shape):
        return dy
    extra = dy.ndim - len(shape)
    stretched = tuple(extra + i for i, n in enumerate(shape) if n == 1 and dy.shape[extra + i] != 1)
    return ops.reshape(ops.reduce_sum(dy, axes=(*range(extra), *stretched)), shape=shape)


def _sum_to(dy: Array, operand: Array | float) -> Array | None:
    return None if isinstance(operand, (int, float)) else sum_to_shape(dy, operand.shape)


@backward(add, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    da = _sum_to(dy, a) if "a" in wanted else None
    db = _sum_to(dy, b) if "b" in wanted else None
    return da, db


@backward(sub, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    da = _sum_to(dy, a) if "a" in wanted else None
    db = _sum_to(mul(dy, -1.0), b) if "b" in wanted else None
    return da, db


@backward(mul, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    da = _sum_to(mul(dy, b), a) if "a" in wanted else None
    db = _sum_to(mul(dy, a), b) if "b" in wanted else None
    return da, db


@backward(div, of=("a", "b"))
def _(dy: Array, a: Array, b: Array, *, saved: None, wanted: Wanted) -> Any:
    da_full = div(dy, b)
    da = _sum_to(da_full, a) if "a" in wanted else None
    db = _sum_to(mul(mul(da_full, -1.0), div(a, b)), b) if "b" in wanted else None
    return da, db


def _binary_samples(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 8, 17, 33):
        yield sample(fill(n), fill.positive(n))
    yield sample(fill(), fill.positive())
    whole = fill.dtype.kind in "iu"
    yield sample(fill(3, 5), 2 if whole else 2.5)
    yield sample(3 if whole else -3, fill.positive(2, 3, 5))
    yield sample(fill(2, 3, 17), fill.positive(17))
    yield sample(fill(4, 1, 5), fill.positive(3, 1))
    yield sample(fill(1), fill.positive(2, 3, 4))
    yield sample(fill(2, 9), fill.positive())
    yield sample(fill(5, 4).T, fill.positive(4, 5))
    yield sample(fill(3, 0), fill.positive(1, 1))


def _binary_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(
        sample(fill(2, 3), fill(2, 4)), ShapeError, "a has shape (2, 3) and b has (2, 4); want shapes that broadcast"
    )
    other = np.float64 if fill.dtype == np.float32 else np.float32
    yield ErrorCase(sample(fill(3), fill(3).astype(other)), DTypeError, f"b has dtype {np.dtype(other)}")
    flags = np.array([True, False])
    yield ErrorCase(sample(flags, flags), DTypeError, "a has dtype bool; want a float or an integer of 8 to 64 bits")
    yield ErrorCase(sample(np.arange(3), 1.5), DTypeError, "b is a float and the other operand is int64; want an int")
    yield ErrorCase(sample(np.arange(3, dtype=np.int8), 200), AttrError, "b does not fit int8")
    yield ErrorCase(sample(2.0, 3.0), DTypeError, "want at least one array")


def _binary_workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,), (1 << 22,)))
    yield Workload("128x1024", ((128, 1024), (128, 1024)))
    yield Workload("128x1024 + row", ((128, 1024), (1024,)))
    yield Workload("128x1024 + column", ((128, 1024), (128, 1)))


for _arithmetic in (add, sub, mul, div):
    samples(_arithmetic)(_binary_samples)
    errors(_arithmetic)(_binary_errors)
    workloads(_arithmetic)(_binary_workloads)
    tolerance(_arithmetic, ulp=0.5)
    dtypes(_arithmetic, *FLOATING, "int32")


@fills(div)
def _(fill: Fill, a: Sizes, b: Sizes) -> Any:
    return fill(*a), fill.positive(*b)


# -------------------------------------------------------------------------------- functions of one array


@op
def relu(x: Array, *, out: Array | None = None) -> Array:
    """Replaces the negative elements of x, of any shape, by zero. NaN stays NaN."""
    ...


@op
def sigmoid(x: Array, *, out: Array | None = None) -> Array:
    """Computes 1 / (1 + exp(-x)) for each element of x, of any shape."""
    ...


@op
def tanh(x: Array, *, out: Array | None = None) -> Array:
    """Computes the hyperbolic tangent of each element of x, of any shape."""
    ...


@op
def gelu(x: Array, *, approximate: Literal["none", "tanh"] = "none", out: Array | None = None) -> Array:
    """Computes x times the normal distribution function at x, for each element of x, of any shape.

    "none" is the exact function, accurate also in the left tail; "tanh" is the approximation of the paper, for models
    trained with it. Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    ...


@op
def exp(x: Array, *, out: Array | None = None) -> Array:
    """Computes e to the power of each element of x, of any shape."""
    ...


@op
def log(x: Array, *, out: Array | None = None) -> Array:
    """Computes the natural logarithm of each element of x, of any shape: -inf at 0, NaN below."""
    ...


@op
def erf(x: Array, *, out: Array | None = None) -> Array:
    """Computes the error function of each element of x, of any shape."""
    ...


_GELU_SCALE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715
_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


@reference(relu)
def _relu(x: Any) -> Any:
    return np.where(x <= 0, 0.0, x)


reference(sigmoid)(_sigmoid)
reference(tanh)(np.tanh)
reference(exp)(np.exp)
reference(log)(np.log)
reference(erf)(_erf)


@reference(gelu)
def _gelu(x: Any, *, approximate: str = "none") -> Any:
    if approximate == "none":
        y = x * (0.5 * _erfc(-x / math.sqrt(2)))
    else:
        y = x * _sigmoid(2 * _GELU_SCALE * (x + _GELU_CUBIC * x**3))
    return np.where(np.isneginf(x), -0.0, y)


@backward(relu, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Array:
    return relu_dx(dy, x)


def _keep_result(target: Any) -> Callable[..., tuple[Array, Array]]:
    def run(x: Array, **attrs: Any) -> tuple[Array, Array]:
        y = target(x, **attrs)
        return y, y

    return run


for _by_result in (sigmoid, tanh, exp):
    forward(_by_result)(_keep_result(_by_result))


@backward(sigmoid, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted) -> Array:
    return sigmoid_dx(dy, sigmoid(x) if saved is None else saved)


@backward(tanh, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted) -> Array:
    return tanh_dx(dy, tanh(x) if saved is None else saved)


@backward(gelu, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted, approximate: Literal["none", "tanh"]) -> Array:
    return gelu_dx(dy, x, approximate=approximate)


@backward(exp, of=("x",))
def _(dy: Array, x: Array, *, saved: Array | None, wanted: Wanted) -> Array:
    return mul(dy, exp(x) if saved is None else saved)


@backward(log, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Array:
    return div(dy, x)


@backward(erf, of=("x",))
def _(dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Array:
    return mul(mul(dy, 2 / math.sqrt(math.pi)), exp(mul(mul(x, x), -1.0)))


def _unary_samples(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33):
        yield sample(fill(n))
    yield sample(fill())
    yield sample(fill(2, 3, 5) * 4)
    yield sample(fill(5, 3).T)
    yield sample(fill(3, 0, 2))


@samples(log)
def _(fill: Fill) -> Iterator[Sample]:
    for n in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33):
        yield sample(fill.positive(n))
    yield sample(fill.positive())
    yield sample(fill.positive(5, 3).T * 100)
    yield sample(fill.positive(3, 0, 2))


@samples(gelu)
def _(fill: Fill) -> Iterator[Sample]:
    for approximate in ("none", "tanh"):
        for s in _unary_samples(fill):
            yield Sample(s.args, {"approximate": approximate})


def _unary_errors(fill: Fill) -> Iterator[ErrorCase]:
    yield ErrorCase(sample(np.arange(3)), DTypeError, "x has dtype int64; want float32, float64, float16 or bfloat16")
    yield ErrorCase(sample([1.0, 2.0]), DTypeError, "x is a list")


@errors(gelu)
def _(fill: Fill) -> Iterator[ErrorCase]:
    yield from _unary_errors(fill)
    yield ErrorCase(sample(fill(3), approximate="Tanh"), AttrError, "approximate='Tanh'; want one of none|tanh")


def _unary_workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,),))
    yield Workload("128x1024", ((128, 1024),))


for _unary, _ulp in ((relu, 0.5), (sigmoid, 2), (tanh, 1), (gelu, 4), (exp, 1), (log, 1), (erf, 1)):
    if "samples" not in _unary.rules:
        samples(_unary)(_unary_samples)
    if "errors" not in _unary.rules:
        errors(_unary)(_unary_errors)
    workloads(_unary)(_unary_workloads)
    tolerance(_unary, ulp=_ulp)
    dtypes(_unary, *FLOATING)


@fills(log)
def _(fill: Fill, x: Sizes) -> Any:
    return (fill.positive(*x),)


# Down the left tail a rounding of x / sqrt(2) counts x x times.
gelu.rules["scale"] = lambda x, *, approximate: np.abs(_gelu(x, approximate=approximate)) * np.fmax(1.0, x * x / 4)


# ------------------------------------------------------------------------------------------------ their gradients


@op
def relu_dx(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """Computes the gradient of relu: dy where x > 0 and 0 elsewhere; dy and x of one shape.

    x may as well be the result of relu.
    """
    ...


@op
def sigmoid_dx(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Computes the gradient of sigmoid, dy y (1 - y), from its result y; dy and y of one shape."""
    ...


@op
def tanh_dx(dy: Array, y: Array, *, out: Array | None = None) -> Array:
    """Computes the gradient of tanh, dy (1 - y y), from its result y; dy and y of one shape."""
    ...


@op
def gelu_dx(dy: Array, x: Array, *, approximate: Literal["none", "tanh"] = "none", out: Array | None = None) -> Array:
    """Computes the gradient of gelu at x; dy and x of one shape."""
    ...


@reference(relu_dx)
def _(dy: Any, x: Any) -> Any:
    return np.where(x <= 0, 0.0, dy)


@reference(sigmoid_dx)
def _(dy: Any, y: Any) -> Any:
    return dy * y * (1 - y)


@reference(tanh_dx)
def _(dy: Any, y: Any) -> Any:
    return dy * (1 - y) * (1 + y)


@reference(gelu_dx)
def _(dy: Any, x: Any, *, approximate: str = "none") -> Any:
    if approximate == "none":
        slope = 0.5 * _erfc(-x / math.sqrt(2)) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    else:
        inner = 2 * _GELU_SCALE * (x + _GELU_CUBIC * x**3)
        slope_of_inner = 2 * _GELU_SCALE * (1 + 3 * _GELU_CUBIC * x**2)
        slope = _sigmoid(inner) + x * _sigmoid(inner) * _sigmoid(-inner) * slope_of_inner
    return dy * np.where(np.isinf(x), x > 0, slope)


@backward(relu_dx, of=("dy",))
def _(g: Array, dy: Array, x: Array, *, saved: None, wanted: Wanted) -> Any:
    return (relu_dx(g, x) if "dy" in wanted else None,)


@backward(sigmoid_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted) -> Any:
    d_dy = sigmoid_dx(g, y) if "dy" in wanted else None
    d_y = mul(mul(g, dy), sub(1.0, mul(y, 2.0))) if "y" in wanted else None
    return d_dy, d_y


@backward(tanh_dx, of=("dy", "y"))
def _(g: Array, dy: Array, y: Array, *, saved: None, wanted: Wanted) -> Any:
    d_dy = tanh_dx(g, y) if "dy" in wanted else None
    d_y = mul(mul(g, dy), mul(y, -2.0)) if "y" in wanted else None
    return d_dy, d_y


def _pair_samples(result: Callable[[Any], Any]) -> Callable[[Fill], Iterator[Sample]]:
    def run(fill: Fill) -> Iterator[Sample]:
        for s in _unary_samples(fill):
            yield sample(fill(*s.args[0].shape), np.asarray(result(s.args[0]), fill.dtype))

    return run


samples(relu_dx)(_pair_samples(np.asarray))
samples(sigmoid_dx)(_pair_samples(_sigmoid))
samples(tanh_dx)(_pair_samples(np.tanh))


@samples(gelu_dx)
def _(fill: Fill) -> Iterator[Sample]:
    for approximate in ("none", "tanh"):
        for s in _pair_samples(np.asarray)(fill):
            yield Sample(s.args, {"approximate": approximate})


def _pair_errors(second: str) -> Callable[[Fill], Iterator[ErrorCase]]:
    def run(fill: Fill) -> Iterator[ErrorCase]:
        yield ErrorCase(sample(fill(2, 3), fill(3)), ShapeError, f"{second} has shape (3,)")
        yield ErrorCase(sample(np.arange(3), fill(3)), DTypeError, "dy has dtype int64")

    return run


def _pair_workloads() -> Iterator[Workload]:
    yield Workload("4M", ((1 << 22,), (1 << 22,)))
    yield Workload("128x1024", ((128, 1024), (128, 1024)))


for _gradient, _operand, _ulp in ((relu_dx, "x", 0.5), (sigmoid_dx, "y", 2), (tanh_dx, "y", 2), (gelu_dx, "x", 4)):
    errors(_gradient)(_pair_errors(_operand))
    workloads(_gradient)(_pair_workloads)
    tolerance(_gradient, ulp=_ulp)
    dtypes(_gradient, *FLOATING)


@fills(sigmoid_dx)
def _(fill: Fill, dy: Sizes, y: Sizes) -> Any:
    return fill(*dy), 1 / (1 + np.exp(-fill(*y)))


@fills(tanh_dx)
def _(fill: Fill, dy: Sizes, y: Sizes) -> Any:
    return fill(*dy), np.tanh(fill(*y))


# 1 - y y and the two halves of gelu's slope are differences of terms of the size of 1.
tanh_dx.rules["scale"] = lambda dy, y: np.abs(dy)
gelu_dx.rules["scale"] = lambda dy, x, **attrs: np.abs(dy)


# ---------------------------------------------------------------------------- activations at the end of other ops


def activated(y: Any, activation: Activation) -> Any:
    """The reference of an op's ``activation`` attribute, applied to its float64 result y."""
    if activation is None:
        return y
    functions: dict[str, Callable[[Any], Any]] = {"relu": _relu, "sigmoid": _sigmoid, "tanh": np.tanh, "gelu": _gelu}
    functions["relu6"] = lambda y: np.minimum(_relu(y), 6)
    functions["silu"] = lambda y: np.where(np.isneginf(y), 0, y * _sigmoid(y))
    functions["hard_swish"] = lambda y: y * np.clip(y + 3, 0, 6) / 6
    return functions[activation](y)


def forward_activated(run: Callable[[Activation], Array], activation: Activation) -> tuple[Array, Array | None]:
    """(y, what activation_dx needs) of an op that ``run`` calls with the activation it is given."""
    if activation in ("gelu", "silu", "hard_swish"):
        before = run(None)
        return getattr(ops, activation)(before), before
    y = run(activation)
    return y, y if activation else None


def activation_dx(dy: Array, saved: Array, activation: Activation) -> Array:
    """The gradient in front of an op's activation, from what ``forward_activated`` saved."""
    if activation is None:
        return dy
    if activation in ("silu", "hard_swish"):
        return ops.activation_dx(dy, saved, function=activation)
    if activation == "relu6":
        return relu_dx(relu_dx(dy, saved), sub(6.0, saved))
    gradients: dict[str, Callable[..., Array]]
    gradients = {"relu": relu_dx, "sigmoid": sigmoid_dx, "tanh": tanh_dx, "gelu": gelu_dx}
    return gradients[activation](dy, saved)


# ------------------------------------------------------------------------------------------------- OpenCL


# Integers have kernels of another room.
_OF_INTEGERS = {"add": 10, "sub": 11, "mul": 12, "div": 13}


def _each(kernel: str) -> Callable[..., None]:
    def run(queue: Queue, *arrays: Any) -> None:
        dtype = arrays[-1].dtype
        placed = tuple(a if hasattr(a, "shape") else queue.number(a, dtype) for a in arrays)
        if is_floating(dtype):
            queue.each("elementwise.cl", kernel, placed, chunks=True, DTYPE=dtype)
        else:
            queue.each("arithmetic.cl", "arithmetic", placed, _OF_INTEGERS[kernel], DTYPE=dtype)

    return run


for _target, _kernel in (
    (add, "add"),
    (sub, "sub"),
    (mul, "mul"),
    (div, "div"),
    (relu, "each_relu"),
    (sigmoid, "each_sigmoid"),
    (tanh, "each_tanh"),
    (exp, "each_exp"),
    (log, "each_log"),
    (erf, "each_erf"),
    (relu_dx, "relu_dx"),
    (sigmoid_dx, "sigmoid_dx"),
    (tanh_dx, "tanh_dx"),
):
    opencl(_target)(_each(_kernel))


@opencl(gelu)
def _(queue: Queue, x: Any, y: Any, *, approximate: str) -> None:
    _each("each_gelu" if approximate == "none" else "each_gelu_tanh")(queue, x, y)


@opencl(gelu_dx)
def _(queue: Queue, dy: Any, x: Any, dx: Any, *, approximate: str) -> None:
    _each("gelu_dx" if approximate == "none" else "gelu_tanh_dx")(queue, dy, x, dx)
