"""Chains of elementwise ops and folds of trailing axes in one pass over memory, given as a program."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes
from tilework.backends.philox import philox
from tilework.dtypes import FLOATING, named, rounded
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.ops import activation, elementwise
from tilework.programs import COMPARISONS, FOLDS, Instruction, parsed
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    dtypes,
    errors,
    op,
    opencl,
    reference,
    sample,
    samples,
    spelling,
    tolerance,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill


@op
def fused(program: str, *operands: Array, trailing: int = 1, out: Array | None = None) -> Any:
    """Runs a program of elementwise instructions over operands of shapes that broadcast together, in one pass.

    Instructions are separated by semicolons. ``$0``, ``$1``, ... are the operands, then what the instructions make, one
    after another; numbers may stand in their place. The last value is the result, unless ``return`` names others::

        fused("mul $0 $1; gelu $2; add $3 0.5", x, w)
        fused("sub $0 $1; mul $2 $2; mean $3; return $2 $4", x, target)

    Instructions are the elementwise ops of this library by name, and their gradients: ``silu_dx $dy $x``. Their own
    numbers follow: ``elu $0 1.0``, ``clip $0 -1 1``, ``dropout $0 0.1 17 0`` (p, seed, offset). ``equal``, ``less`` and
    their like make bool, which ``where $c $a $b`` takes; ``cast $0 float16`` converts. Every value has the shape that
    all operands broadcast to, except what ``sum``, ``mean`` and ``max`` make: they fold the last ``trailing`` axes to
    size 1, and broadcast when they meet whole values again, so that ``fused("max $0; sub $0 $1; exp $2; sum $3; div $3
    $4", x)`` is a softmax. 16-bit values are kept in float32 between instructions.
    """
    ...


@spelling(fused)
def _(args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    if not args or not isinstance(args[0], str) or "operands" in attrs:
        return None
    if "program" in attrs:
        raise AttrTypeError("fused: program is given twice; want it once", op="fused", argument="program")
    listed = len(args) == 2 and isinstance(args[1], (list, tuple))
    return (args[1:] if listed else (list(args[1:]),)), {"program": args[0]}


# ------------------------------------------------------------------------------------------------------ reference

_Function = Callable[..., Any]


def _of(name: str, **attrs: Any) -> _Function:
    return functools.partial(getattr(elementwise, name).rules["reference"], **attrs)


_FUNCTIONS: dict[str, _Function] = {
    name: _of(name)
    for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "gelu", "exp", "log", "erf", "relu_dx")
}
_FUNCTIONS |= {
    "sigmoid_dx": _of("sigmoid_dx"),
    "tanh_dx": _of("tanh_dx"),
    "gelu_tanh": _of("gelu", approximate="tanh"),
    "gelu_dx": _of("gelu_dx"),
    "gelu_tanh_dx": _of("gelu_dx", approximate="tanh"),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": lambda c, a, b: np.where(c != 0, a, b),
}
_FUNCTIONS |= {name: getattr(np, name) for name in COMPARISONS}


def _activation_of(name: str) -> _Function:
    return lambda x, *numbers: getattr(activation, name).rules["reference"](x, *numbers)


def _slope_of(name: str) -> _Function:
    def run(dy: Any, x: Any, alpha: float = 0.0, beta: float = 0.0) -> Any:
        return activation.activation_dx.rules["reference"](dy, x, function=name, alpha=alpha, beta=beta)

    return run


for _name in activation.NAMES:
    _FUNCTIONS[_name] = _activation_of(_name)
    _FUNCTIONS[f"{_name}_dx"] = _slope_of(_name)


def _folded(name: str, x: Any, axes: Sizes) -> Any:
    if name == "max":
        return np.max(x, axis=axes, keepdims=True)
    total = np.sum(x, axis=axes, keepdims=True)
    return total / math.prod(x.shape[a] for a in axes) if name == "mean" else total


def _dropped(x: Any, p: float, seed: int, offset: int) -> Any:
    passes = philox(x.size, offset, seed).reshape(x.shape) >= np.uint64(int(p * 2.0**32))
    return np.where(passes, x / (1 - p) if p < 1 else 0.0, 0.0)


def _evaluated(instruction: Instruction, sources: Sequence[Any], axes: Sizes) -> Any:
    name, numbers = instruction.name, instruction.numbers
    if name in FOLDS:
        return _folded(name, sources[0], axes)
    if name == "dropout":
        return _dropped(sources[0], float(numbers[0]), int(numbers[1]), int(numbers[2]))
    if name == "cast":
        x = sources[0]
        return x != 0 if numbers[0] == "bool" else np.asarray(rounded(x, named(numbers[0])), np.float64)
    return _FUNCTIONS[name](*sources, *(float(n) for n in numbers))


def _axes(shape: Sizes, trailing: int) -> Sizes:
    return tuple(range(len(shape) - trailing, len(shape)))


def _run(operands: Sequence[Any], program: str, trailing: int) -> tuple[list[Any], tuple[int, ...]]:
    """Every value of a program, and the numbers of those that it returns."""
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    values = [np.broadcast_to(x, shape) for x in operands]
    instructions, results = parsed(program, len(operands))
    for i in instructions:
        made = _evaluated(i, [values[s] if isinstance(s, int) else s for s in i.sources], _axes(shape, trailing))
        values.append(np.asarray(made, np.float64))
    return values, results


@reference(fused)
def _(operands: Any, *, program: str, trailing: int) -> Any:
    values, results = _run(operands, program, trailing)
    return tuple(values[r] for r in results)


def _scale(operands: Any, *, program: str, trailing: int) -> Any:
    """Running error analysis: what one unit of the last place in every value may add up to, slopes by difference."""
    values, results = _run(operands, program, trailing)
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    instructions, _ = parsed(program, len(operands))
    wrong = [np.zeros(shape) for _ in operands]
    for i, y in zip(instructions, values[len(operands) :], strict=True):
        sources = [values[s] if isinstance(s, int) else s for s in i.sources]
        # Errors of a function are relative to the largest of its operands where these cancel.
        total = np.fmax(np.abs(y), 1.0 if i.name.endswith("_dx") else 0.0)
        if i.name in ("add", "sub"):
            total = np.abs(sources[0]) + np.abs(sources[1])
        if i.name in FOLDS and i.name != "max":
            total = 4 * _folded(i.name, np.abs(sources[0]), _axes(shape, trailing))
        for k, s in enumerate(i.sources):
            if not isinstance(s, int) or not np.any(wrong[s]):
                continue
            if i.name in FOLDS:
                total = total + _folded(i.name, wrong[s], _axes(shape, trailing))
                continue
            moved = list(sources)
            moved[k] = values[s] + 1e-6 * (1 + np.abs(values[s]))
            slope = np.abs(_evaluated(i, moved, ()) - y) / (1e-6 * (1 + np.abs(values[s])))
            total = total + np.where(np.isfinite(slope), slope, 0.0) * wrong[s]
        wrong.append(np.where(np.isfinite(total), total, np.abs(y)))
    return tuple(wrong[r] for r in results)


fused.rules["scale"] = _scale
tolerance(fused, ulp=4)
dtypes(fused, *FLOATING)

# ----------------------------------------------------------------------------------------- samples, errors, workloads

_CHAIN = "mul $0 $1; add $3 $2; gelu $4; mul $5 0.5; sub $6 $0; tanh $7"
_NORM = "add $0 $3; mean $4; sub $4 $5; mul $6 $6; mean $7; add $8 1e-5; rsqrt $9; mul $6 $10; mul $11 $1; add $12 $2"
_SOFTMAX = "max $0; sub $0 $1; exp $2; sum $3; div $3 $4"
_TRAIN = "add $0 $1; dropout $2 0.25 7 3; add $3 $0; sum $4; return $4 $2 $5"
_KINDS = "greater $0 0.25; where $2 $0 $1; clip $3 -0.5 0.75; cast $4 {}; silu_dx $1 $0; return $5 $2 $6"
_LOSS = "sub $0 $1; abs $2; mean $3; max $2; return $4 $5"


@samples(fused)
def _(fill: Fill) -> Iterator[Sample]:
    for shape in ((1,), (7,), (16,), (33,), (), (3, 0, 2)):
        yield sample([fill(*shape) for _ in range(3)], program=_CHAIN)
    yield sample([fill(2, 9, 5), fill(5), fill(9, 1)], program=_CHAIN)
    yield sample([fill(5, 7).T, fill(7, 1), fill(5)], program=_CHAIN)
    yield sample([fill(1100), fill(1), fill(1100)], program=_CHAIN)
    yield sample([fill(3)], program="tanh $0; mul $1 2.0; return $1 $2")
    yield sample([fill(4, 13), fill(13), fill(13), fill(4, 13)], program=_NORM)
    yield sample([fill(2, 3, 5, 4), fill(5, 4), fill(5, 4), fill(2, 1, 5, 4)], program=_NORM, trailing=2)
    yield sample([fill(2, 1301), fill(1301), fill(1301), fill(2, 1)], program=_NORM)
    yield sample([fill(2, 11), fill(11)], program=_KINDS.format(np.dtype(fill.dtype).name))
    if fill.dtype != np.float32:
        return  # the rest has nothing of its own in other types
    yield sample([fill(3, 40) * np.float32(3)], program=_SOFTMAX)
    yield sample([fill(9, 1)], program=_SOFTMAX)
    yield sample([fill(0, 4)], program=_SOFTMAX)
    yield sample([fill(3, 5, 7), fill(7)], program=_TRAIN, trailing=2)
    yield sample([fill(35000), fill(35000)], program=_LOSS)


@errors(fused)
def _(fill: Fill) -> Iterator[ErrorCase]:
    def wrong(program: Any, text: str, error: type[Exception] = AttrError, n: int = 1, **attrs: Any) -> ErrorCase:
        return ErrorCase(sample([fill(3) for _ in range(n)], program=program, **attrs), error, text)

    yield wrong("", "program lacks instruction 0")
    yield wrong("exp $0;", "program lacks instruction 1")
    yield wrong("exp $0;; exp $1", "program lacks instruction 1")
    yield wrong("expo $0", "'expo' as instruction 0")
    yield wrong("exp", "gives instruction 0, exp, 0 sources; want 1")
    yield wrong("add $0", "gives instruction 0, add, 1 sources; want 2")
    yield wrong("exp $0 $0", "'$0' behind instruction 0, exp")
    yield wrong("exp $1", "takes $1 in instruction 0; want one of $0 to $0")
    yield wrong("exp $-1", "takes $-1 in instruction 0")
    yield wrong("exp $99999999999999999999", "'$99999999999999999999' in instruction 0")
    yield wrong("add $0 x", "'x' in instruction 0, add; want a value like $0 or a number")
    yield wrong("add 1 2", "gives instruction 0, add, numbers alone")
    yield wrong("elu $0", "'' in instruction 0, elu; want one number of its own")
    yield wrong("elu $0 nan", "'nan' in instruction 0, elu")
    yield wrong("clip $0 1 0", "low=1 above high=0")
    yield wrong("cast $0 float", "'float' in instruction 0, cast; want float32")
    yield wrong("cast $0 int32", "'int32' in instruction 0, cast")
    yield wrong("dropout $0 1.5 1 0", "'1.5' in instruction 0, dropout; want a probability")
    yield wrong("dropout $0 0.5 -1 0", "'-1' in instruction 0, dropout; want a seed and an offset")
    yield wrong("return $0", "has no instruction")
    yield wrong("exp $0; return", "returns nothing")
    yield wrong("exp $0; return $0", "returns '$0'; want values that it makes, $1 to $1")
    yield wrong("exp $0; return $1 $1", "returns $1 twice")
    yield wrong("exp $0; return $1; exp $1", "goes on behind its return")
    yield wrong("sum $0; sum $1", "a value that is folded already")
    yield wrong(";".join(["exp $0"] * 129), "more than 128 instructions")
    yield wrong(";".join(["sum $0"] * 9), "folds more than 8")
    yield wrong("exp $0 " + " " * 9000, "bytes; want at most 8192")
    yield wrong("e\N{SNOWMAN}p $0", "'e???p' as instruction 0")
    yield wrong("less $0 0; exp $1", "$1 of bool; want a float", DTypeError)
    yield wrong("where $0 $0 0", "chooses in instruction 0 by what is not bool", DTypeError)
    yield wrong("sum $0", "trailing=2; want 1 to 1", trailing=2)
    yield wrong("exp $0", "trailing=0; want 1", trailing=0)
    yield wrong(b"exp $0", "want a string", AttrTypeError)
    other = np.float32 if fill.dtype == np.float64 else np.float64
    mixed = sample([fill(3), fill(3).astype(other)], program="add $0 $1")
    yield ErrorCase(mixed, DTypeError, "no mix of float64 with narrower floats")
    yield ErrorCase(sample([np.arange(3)], program="exp $0"), DTypeError, "operands[0] has dtype int64")
    yield ErrorCase(sample([fill(3), fill(4)], program="add $0 $1"), ShapeError, "operands[1] has shape (4,)")
    yield ErrorCase(sample([fill()], program="sum $0"), ShapeError, "operands have no axes")
    yield ErrorCase(sample([fill(3, 0)], program="max $0"), ShapeError, "max has nothing to fold")


_TEN = "mul $0 $1; add $2 $0; tanh $3; mul $4 0.5; sub $5 $1; exp $6; add $7 1.0; div $4 $8; mul $9 $9; relu $10"


@workloads(fused)
def _() -> Iterator[Workload]:
    yield Workload("ten 4M", ((1 << 22,),) * 2, {"program": _TEN})
    yield Workload("ten 64k", ((1 << 16,),) * 2, {"program": _TEN})
    norm = ((4096, 768), (768,), (768,), (4096, 768))
    yield Workload("residual + layer_norm 4096x768", norm, {"program": _NORM}, ("transformer",))


# --------------------------------------------------------------------------------------------------------- OpenCL


@opencl(fused)
def _(queue: Queue, operands: Sequence[Any], *results: Any, program: str, trailing: int) -> None:
    from tilework.backends.opencl_fused import launch

    launch(queue, program, trailing, operands, results)
