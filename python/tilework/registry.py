"""The table of ops: what an op module declares, and the public face that grows out of it.

An op module writes one typed function per op (its signature and docstring) and hangs rules on it::

    @op
    def relu(x: Array, *, out: Array | None = None) -> Array: ...

    @reference(relu)                  # numpy, float64, obvious: the judge
    def _(x): ...

    @backward(relu)                   # in ops, so it holds on every backend
    def _(dy, x, *, saved, wanted): ...

    @opencl(relu)                     # enqueues kernels on a Queue
    def _(queue, x, y): ...

    @samples(relu)                    # few, small, awkward
    def _(fill): ...

Everything else (tests, gradient checks, benchmarks, docs row) is derived from what is registered here.
Rules receive *resolved* attributes: one number per axis, padding as pairs, sorted non-negative axes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

import numpy as np

import tilework.ops
from tilework import _core, dispatch
from tilework.dispatch import bind_operands, borrow_operand, spelt
from tilework.errors import AttrTypeError, DTypeError, Error, ShapeError, UnsupportedError

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[..., Any]

_ops: dict[str, Op[..., Any]] = {}


@dataclass(frozen=True)
class Sample:
    """Arguments of one call: operands in order (None where not given) and keyword attributes."""

    args: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorCase:
    """A call that must fail: the class of its error and a piece of its text."""

    sample: Sample
    error: type[Exception]
    text: str


@dataclass(frozen=True)
class Workload:
    """A named problem for the bench: operand shapes (None where not given), attributes and the sets it is in."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()


def sample(*args: Any, **attrs: Any) -> Sample:
    """``Sample(args, attrs)``, spelt like the call it stands for."""
    return Sample(args, attrs)


def find(name: str) -> Op[..., Any]:
    """The op called ``name``; a pickled op is restored by it."""
    if name not in _ops:
        getattr(tilework.ops, name, None)  # registers its family
    return _ops[name]


def ops() -> dict[str, Op[..., Any]]:
    """Every op by name, in the order of the table of contents; then those of plug-ins."""
    for name in tilework.ops.FAMILIES:
        getattr(tilework.ops, name)  # registers its family
    return {name: _ops[name] for name in tilework.ops.FAMILIES if name in _ops} | _ops


# ---------------------------------------------------------------------------------------------- declaring an op


if TYPE_CHECKING:

    class Op(Generic[P, R]):
        """An op as a user sees it: call it, or reach its ``forward``, ``backward``, ``prepare`` and ``reference``."""

        name: str
        operands: tuple[str, ...]  # tensor arguments in order
        differentiable: tuple[str, ...]  # operands with a gradient, () if none
        is_view: bool
        is_variadic: bool
        forward: Rule
        backward: Rule
        prepare: Rule
        reference: Rule
        rules: dict[str, Any]  # what the op module registered, by the decorator's name

        def __init__(self, name: str, fallback: Rule) -> None: ...

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

else:
    Op = _core.Op


class View(Generic[P, R]):
    """An op without a kernel: a Python function that returns a view, on any backend."""

    is_view = True
    is_variadic = False

    def __init__(self, function: Callable[P, R], operands: tuple[str, ...]) -> None:
        self.name = function.__name__
        self.operands = operands
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if args and type(args[0]) is np.ndarray:  # the only operand: nothing is traced
            return self._function(*args, **kwargs)
        traced = dispatch.recorder((*args, *kwargs.values()))
        if traced is not None:
            return cast("R", traced.record(self, args, kwargs))
        return self._function(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> View[P, R]:
        return self  # found on a class it stays itself, and help() prints its docstring


def op(signature: Callable[P, R]) -> Op[P, R]:
    """Declares a compiled op: ``signature`` gives its name, parameters and docstring, C++ its shapes and kernel."""
    return cast("Op[P, R]", _describe(Op(signature.__name__, dispatch.call), signature))


def view_op(function: Callable[P, R]) -> Op[P, R]:
    """Declares an op without a kernel: ``function`` itself returns a view of its first operand."""
    first = next(iter(inspect.signature(function).parameters))
    return cast("Op[P, R]", _describe(View(function, (first,)), function))


def _describe(made: Any, signature: Callable[..., Any]) -> Any:
    made.__name__ = made.__qualname__ = signature.__name__
    made.__doc__ = signature.__doc__
    made.__module__ = signature.__module__
    made.__wrapped__ = signature
    made.rules = {}
    made.differentiable = ()
    made.forward = _forward(made)
    made.backward = _no_backward(made)
    made.prepare = _prepare(made)
    made.reference = _reference(made)
    _ops[signature.__name__] = made
    return made


def _registrar(kind: str) -> Callable[[Op[..., Any]], Callable[[Rule], Rule]]:
    def register(target: Op[..., Any]) -> Callable[[Rule], Rule]:
        def keep(rule: Rule) -> Rule:
            target.rules[kind] = rule
            return rule

        return keep

    register.__doc__ = f"Registers the {kind} rule of an op."
    return register


reference = _registrar("reference")  # (*operands, **attrs) in numpy float64
forward = _registrar("forward")  # (*operands, **attrs) -> (result, saved)
opencl = _registrar("opencl")  # (queue, *operands, *results, **attrs): enqueue
flops = _registrar("flops")  # (*shapes, **attrs) -> float
bytes_moved = _registrar("bytes")  # (*shapes, **attrs) -> (read, written), where not all of every operand counts once
depth = _registrar("depth")  # (*operands, **attrs) -> K of a linear op's sums: gives its bound
terms = _registrar("terms")  # (*operands, **attrs) -> per result, what the bound of `depth` multiplies: see numerics.md
samples = _registrar("samples")  # (fill) -> iterable of Sample
errors = _registrar("errors")  # (fill) -> iterable of ErrorCase
workloads = _registrar("workloads")  # () -> iterable of Workload
updates = _registrar("updates")  # (**attrs) -> bool: whether this call updates its inout operands, as most always do
spelling = _registrar("spelling")  # (args, attrs) -> (operands, attrs): another way to write a call, or None
preparing = _registrar("preparing")  # (arguments) -> arguments: what prepare takes beyond what a call does
fills = _registrar("fills")  # (fill, *shapes, **attrs) -> operands of a workload, where normal values would not do


def backward(
    target: Op[..., Any], *, of: Iterable[str], where_given: Iterable[str] = (), result: int = 0
) -> Callable[[Rule], Rule]:
    """Registers the backward rule: ``(dy, *operands, saved, wanted, **attrs)`` -> one gradient per name in ``of``.

    Last operands named in ``where_given`` have a gradient among the results only where they are given. ``dy`` is the
    gradient of that result; those before it are steps, whose slope is 0.
    """

    def keep(rule: Rule) -> Rule:
        target.rules["backward"] = rule
        target.differentiable = tuple(of)
        target.rules["where_given"] = tuple(where_given)
        target.rules["sloped"] = result
        target.backward = _backward(target, rule)
        return rule

    return keep


def sloped_result(target: Op[..., Any]) -> int:
    """Which result the backward rule takes the gradient of."""
    return int(target.rules.get("sloped", 0))


def dtypes(target: Op[..., Any], *names: str) -> None:
    """Declares the element types that ``fill`` takes in turn when an op is checked: float32 and float64 by default."""
    target.rules["dtypes"] = names


def dtypes_of(target: Op[..., Any]) -> tuple[str, ...]:
    """The element types that an op is checked in."""
    return tuple(target.rules.get("dtypes", ("float32", "float64")))


def reorders(target: Op[..., Any]) -> None:
    """Declares that sums may be taken in another order, or out of a product, when operands lie otherwise in memory.

    Bits then depend on the layout, within the bound, and an infinity may meet a finite sum instead of its terms.
    """
    target.rules["reorders"] = True


def tolerance(target: Op[..., Any], *, ulp: float) -> None:
    """Declares that a nonlinear op is within ``ulp`` units of the last place of its largest term."""
    target.rules["ulp"] = ulp


# ------------------------------------------------------------------------------------- the face of a declared op


def resolve(target: Op[..., Any], args: tuple[Any, ...], attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes as the kernel sees them: defaults filled in, one number per axis, names checked."""
    if target.is_view:
        bound = inspect.signature(target).bind(*args, **attrs)
        bound.apply_defaults()
        return {k: v for k, v in bound.arguments.items() if k not in target.operands}
    return infer(target, args, attrs)[1] if isinstance(target, Op) else attrs


def infer(
    target: Op[..., Any], args: Sequence[Any], attrs: dict[str, Any]
) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
    """Shapes and dtypes of the results, and the attributes resolved; numbers that runs are given stay open."""
    specs, resolved = _core.infer(target.name, list(args), dispatch.settled(attrs))
    return specs, resolved | {k: v for k, v in attrs.items() if isinstance(v, dispatch.Number)}


def updated_operands(target: Op[..., Any], attrs: dict[str, Any]) -> tuple[int, ...]:
    """Positions of the operands that a call with these attributes updates in place."""
    places = _inout_operands(target)
    rule = target.rules.get("updates") if places else None
    return places if rule is None or rule(**attrs) else ()


@functools.cache
def _inout_operands(target: Op[..., Any]) -> tuple[int, ...]:
    if not isinstance(target, Op):
        return ()
    return tuple(i for i, (_, role) in enumerate(_core.op_spec(target.name)["operands"]) if role.endswith("inout"))


def _reference(target: Op[..., Any]) -> Rule:
    def run(*args: Any, **kwargs: Any) -> Any:
        from tilework.backends.reference import run as run_reference

        return run_reference(target, bind_operands(target, args, kwargs), kwargs)

    run.__doc__ = f"The float64 numpy reference of {target.name}: same arguments, same dtype of result."
    return run


def _forward(target: Op[..., Any]) -> Rule:
    def run(*args: Any, **kwargs: Any) -> Any:
        rule = target.rules.get("forward")
        if rule is None:
            return target(*args, **kwargs), None
        operands = bind_operands(target, args, kwargs)
        return rule(*operands, **resolve(target, operands, kwargs))

    run.__doc__ = f"Returns ({target.name}'s result, what its backward would otherwise compute again)."
    return run


def _no_backward(target: Op[..., Any]) -> Rule:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(f"{target.name}: has no gradient", op=target.name)

    return run


def _named(target: Op[..., Any], operands: tuple[Any, ...]) -> Iterable[tuple[str, Any]]:
    return zip(target.operands, operands, strict=True)


def _expected(
    target: Op[..., Any], operands: tuple[Any, ...], attrs: dict[str, Any]
) -> tuple[dict[str, Any], Any, Any]:
    """Resolved attributes, and the shape and dtype that the gradient of the result must have."""
    if target.is_view:
        result = target(*operands, **attrs)
        return resolve(target, operands, attrs), tuple(result.shape), result.dtype
    specs, resolved = _core.infer(target.name, list(operands), attrs)
    return resolved, *specs[sloped_result(target)]


def _checked_gradient(target: Op[..., Any], dy: Any, shape: Any, dtype: Any) -> Any:
    if dy is None or isinstance(dy, (bool, int, float)):
        raise DTypeError(f"{target.name}: dy is {dy!r}; want an array of shape {shape}", op=target.name, argument="dy")
    if dispatch.backend_of(target.name, "dy", dy) == "cpu":
        dy = dispatch.borrow(target.name, "dy", dy)
    if dy.dtype != dtype:
        raise DTypeError(f"{target.name}: dy has dtype {dy.dtype}; want {dtype}", op=target.name, argument="dy")
    if tuple(dy.shape) != tuple(shape):
        raise ShapeError(
            f"{target.name}: dy has shape {tuple(dy.shape)}; want {tuple(shape)}, the shape of the result",
            op=target.name,
            argument="dy",
        )
    return dy


def _checked_wanted(target: Op[..., Any], wanted: Any) -> frozenset[str]:
    if wanted is None:
        return frozenset(target.differentiable)
    if isinstance(wanted, str) or not isinstance(wanted, Iterable) or not set(wanted) <= set(target.differentiable):
        raise AttrTypeError(
            f"{target.name}: wanted={wanted!r}; want names out of {list(target.differentiable)}",
            op=target.name,
            argument="wanted",
        )
    return frozenset(wanted)


def _checked_into(
    target: Op[..., Any], into: Mapping[str, Any] | None, wanted: frozenset[str], operands: Mapping[str, Any]
) -> dict[str, Any]:
    """The arrays that gradients are added to, each as its operand is."""
    if into is not None and not isinstance(into, Mapping):
        raise AttrTypeError(
            f"{target.name}: into={into!r}; want a dict of arrays by operand", op=target.name, argument="into"
        )
    checked = {}
    for name, array in (into or {}).items():
        if name not in wanted or isinstance(operands[name], (list, tuple)):
            raise AttrTypeError(
                f"{target.name}: into names {name!r}; want operands whose gradients are wanted, {sorted(wanted)}",
                op=target.name,
                argument="into",
            )
        argument, operand = f"into[{name!r}]", operands[name]
        where = dispatch.backend_of(target.name, argument, array)
        if where != dispatch.backend_of(target.name, name, operand) or array is None:
            text = f"{argument} is not where {name} is; want an array of the same device"
            raise DTypeError(f"{target.name}: {text}", op=target.name, argument="into")
        array = dispatch.borrow(target.name, argument, array) if where == "cpu" else array
        for what, error in (("dtype", DTypeError), ("shape", ShapeError)):
            if getattr(array, what) != getattr(operand, what):
                raise error(
                    f"{target.name}: {argument} has {what} {getattr(array, what)}; want {getattr(operand, what)}",
                    op=target.name,
                    argument="into",
                )
        checked[name] = array
    return checked


def _backward(target: Op[..., Any], rule: Rule) -> Rule:
    def run(
        dy: Any,
        *args: Any,
        saved: Any = None,
        wanted: Iterable[str] | None = None,
        into: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        listed = spelt(target, args, kwargs) is None
        operands = tuple(
            borrow_operand(target.name, n, a) for n, a in _named(target, bind_operands(target, args, kwargs))
        )
        attrs, shape, dtype = _expected(target, operands, kwargs)
        dy = _checked_gradient(target, dy, shape, dtype)
        given = {n for n, a in zip(target.operands, operands, strict=True) if a is not None}
        names = _checked_wanted(target, wanted) & given
        sums = _checked_into(target, into, names, dict(_named(target, operands)))
        try:
            grads = rule(dy, *operands, saved=saved, wanted=names, **attrs)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if saved is None or isinstance(error, Error):
                raise
            text = f"{target.name}: saved is not what {target.name}.forward returned for these operands"
            raise AttrTypeError(text, op=target.name, argument="saved") from error
        by_name = dict(zip(target.differentiable, grads if len(target.operands) > 1 else (grads,), strict=True))
        for name, array in sums.items():
            by_name[name] = tilework.ops.add(by_name[name], array, out=array)
        if len(target.operands) == 1:
            return by_name[target.operands[0]]
        if listed:
            last = target.rules["where_given"]
            return tuple(by_name.get(n) for n in target.operands if n in given or n not in last)
        return (*by_name[target.operands[0]], *(by_name.get(n) for n in target.operands[1:] if n in given))

    run.__doc__ = (
        f"Gradients of {target.name}: takes the gradient of the result, then {', '.join(target.operands)} and the\n"
        "same attributes; returns one gradient per operand (a bare array if there is only one), None where it is not\n"
        "differentiable, not given or not in ``wanted``. ``saved`` is what ``forward`` returned; without it, it is\n"
        "computed again. ``into`` holds arrays by operand that the gradients are added to, as by ``add``; they are\n"
        "returned in their places."
    )
    return run


def _prepare(target: Op[..., Any]) -> Rule:
    def run(**given: Any) -> Any:
        rule = target.rules.get("preparing")
        return _core.Prepared(target, rule(given) if rule else given)

    run.__doc__ = (
        f"Binds some operands and attributes of {target.name} once (weights are packed); returns a picklable callable\n"
        "over the remaining operands."
    )
    return run
