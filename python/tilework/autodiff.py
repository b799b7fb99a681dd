"""Gradients of functions of arrays, from the ops' backward rules: of numpy and device arrays, and in a traced graph.

An array whose gradient is wanted is followed: a ``Tracked`` array holds it, runs every call on what it holds, and keeps
the call on a tape. Going back along the tape calls the ops' backward rules, which are ops again; so a gradient that is
taken inside a traced function is part of its graph, and a gradient can be taken of a gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework import dispatch, nested, ops, registry
from tilework.arrays import Array, Sizes
from tilework.dtypes import is_floating
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.operators import Operators


class Tracked(Operators):
    """An array, ``value``, whose gradient its tape follows."""

    __slots__ = ("gradient", "tape", "value")

    def __init__(self, value: Array, tape: Tape) -> None:
        self.value, self.tape = value, tape
        self.gradient: Array | None = None  # summed up on the way back

    @property
    def level(self) -> int:  # type: ignore[override]
        return self.tape.level

    @property
    def shape(self) -> Sizes:  # type: ignore[override]
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.value.dtype

    @property
    def strides(self) -> Sizes:
        return tuple(self.value.strides)

    @property
    def flags(self) -> Any:
        return self.value.flags

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from tilework.graph.build import tracing

        inner = tracing()
        if inner is not None and inner.level > self.level:  # a body within what is followed takes it from outside
            return inner.call(op, *args, **kwargs)
        return self.tape.record(op, args, kwargs)

    def collect(self, gradient: Array | None) -> None:
        """Adds to the gradient in this array."""
        if gradient is not None:
            self.gradient = gradient if self.gradient is None else ops.add(self.gradient, gradient)

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        return f"Tracked({self.value!r})"


class Entry:
    """One call on the tape: its operands, those followed among them, and what it gave."""

    __slots__ = ("attrs", "op", "operands", "results", "saved", "tracked")

    def __init__(
        self, op: Any, operands: list[Any], tracked: dict[str, Any], attrs: dict[str, Any], saved: Any
    ) -> None:
        self.op, self.operands, self.tracked, self.attrs, self.saved = op, operands, tracked, attrs, saved
        self.results: list[Tracked | None] = []


class Tape:
    """The calls of one function, in order."""

    def __init__(self) -> None:
        self.level = next(dispatch.levels)
        self.entries: list[Entry] = []
        self.is_over = False  # its function has returned

    def follow(self, value: Array) -> Tracked:
        return Tracked(value, self)

    def held(self, value: Any) -> Any:
        """What an array of this tape holds; all else as it is."""
        if isinstance(value, (list, tuple)):
            return [self.held(v) for v in value]
        return value.value if isinstance(value, Tracked) and value.tape is self else value

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a call and keeps it."""
        if self.is_over:
            raise UnsupportedError(
                f"{op.name}: takes an array that a gradient followed in a function which has returned; "
                "want it returned, or tilework.stop_gradient of it",
                op=op.name,
            )
        attrs = dict(kwargs)
        if attrs.pop("out", None) is not None:
            raise AttrTypeError(f"{op.name}: out cannot be followed by a gradient; want the result", op=op.name)
        if op.is_view:
            bound = inspect.signature(op.__wrapped__).bind(*args, **attrs)
            bound.apply_defaults()
            attrs = dict(bound.arguments)
            operands = [attrs.pop(op.operands[0])]
        else:
            operands = list(dispatch.bind_operands(op, args, attrs))
        tracked = {n: o for n, o in zip(op.operands, operands, strict=True) if _is_tracked(o, self)}
        plain = [self.held(o) for o in operands]
        _check_not_updated(op, tracked, attrs)
        saved = None
        if op.is_view:
            result = op(*plain, **attrs)
        else:
            attrs = registry.resolve(op, tuple(plain), attrs) if "backward" in op.rules else attrs
            rule = op.rules.get("forward") if op.rules.keys() & {"backward", "pullback"} else None
            result, saved = rule(*plain, **attrs) if rule else (op(*plain, **attrs), None)
        made = result if isinstance(result, tuple) else (result,)
        if not any(a is not None and is_floating(a.dtype) for a in made):
            return result
        _check_differentiable(op, tracked)
        entry = Entry(op, plain, tracked, attrs, saved)
        first = registry.sloped_result(op)
        entry.results = [self.follow(a) if k >= first and is_floating(a.dtype) else None for k, a in enumerate(made)]
        self.entries.append(entry)
        out = tuple(a if t is None else t for a, t in zip(made, entry.results, strict=True))
        return out if isinstance(result, tuple) else out[0]

    def ended(self) -> list[Entry]:
        """What was recorded, which the tape no longer holds: in a ring of references arrays would wait to be freed."""
        self.is_over = True
        entries, self.entries = self.entries, []
        return entries

    def back(self, entries: list[Entry]) -> None:
        """Carries the gradients of results to operands, last call first."""
        for entry in reversed(entries):
            dys = [None if r is None else r.gradient for r in entry.results]
            if all(dy is None for dy in dys):
                continue
            by_name = _carried(entry, dys)
            for name, operand in entry.tracked.items():
                if isinstance(operand, Tracked):
                    operand.collect(by_name[name])
                    continue
                for item, gradient in zip(operand, by_name[name], strict=True):
                    if _is_tracked(item, self):
                        item.collect(gradient)
            for result in entry.results:
                if result is not None:
                    result.gradient = None


def _carried(entry: Entry, dys: list[Any]) -> dict[str, Any]:
    """The gradients of a call's operands by name, from those of its results."""
    op, wanted = entry.op, frozenset(entry.tracked)
    of_all = op.rules.get("pullback")
    if of_all is not None:
        by_name: dict[str, Any] = of_all(dys, entry.operands, saved=entry.saved, wanted=wanted, **entry.attrs)
        return by_name
    dy, *others = dys[registry.sloped_result(op) :]
    if any(other is not None for other in others):
        raise UnsupportedError(
            f"{op.name}: has a gradient of one result alone, and another was used; "
            "want tilework.stop_gradient of the others",
            op=op.name,
        )
    found = op.rules["backward"](dy, *entry.operands, saved=entry.saved, wanted=wanted, **entry.attrs)
    if len(op.operands) == 1:
        return {op.operands[0]: found}
    return dict(zip(op.differentiable, found, strict=True))


def _is_tracked(value: Any, tape: Tape) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_tracked(v, tape) for v in value)
    return isinstance(value, Tracked) and value.tape is tape


def _check_not_updated(op: Any, tracked: dict[str, Any], attrs: dict[str, Any]) -> None:
    for name in (op.operands[i] for i in registry.updated_operands(op, attrs)):
        if name in tracked:
            raise UnsupportedError(
                f"{op.name}: {name} would be updated in place while its gradient is followed; want stop_gradient",
                op=op.name,
                argument=name,
            )


def _check_differentiable(op: Any, tracked: dict[str, Any]) -> None:
    for name in tracked:
        if name not in op.differentiable:
            what = f"no gradient in {name}" if op.differentiable else "no gradient"
            reason = op.rules.get("no_gradient")
            if reason:
                raise UnsupportedError(f"{op.name}: has no gradient, {reason}", op=op.name, argument=name)
            raise UnsupportedError(
                f"{op.name}: has {what}; want tilework.stop_gradient({name}), or an op of "
                "tilework.differentiable_ops()",
                op=op.name,
                argument=name,
            )


# ----------------------------------------------------------------------------------------------- for everyone


def vjp(function: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """``function(*args)``, and the function that carries gradients of its results to gradients of its arguments.

    Arguments and results are arrays or nested tuples, lists and dicts of them. The second function takes gradients in
    the structure of the result, None where there is none, and returns one structure of gradients per argument.
    """
    _check_function("vjp", function)
    tape = Tape()
    leaves, structure = nested.flatten(args)
    tracked = [tape.follow(_checked(leaf, name)) for leaf, name in zip(leaves, nested.paths(structure), strict=True)]
    try:
        result, form = nested.flatten(function(*nested.unflatten(structure, tracked)))
    finally:
        entries = tape.ended()

    def pullback(gradients: Any) -> tuple[Any, ...]:
        given, its = nested.flatten(gradients)
        if not nested.alike(its, form):
            raise AttrTypeError(f"vjp: gradients are {nested.written(its)}; want {nested.written(form)}")
        for array in (*tracked, *(r for e in entries for r in e.results if r is not None)):
            array.gradient = None
        for y, dy in zip(result, given, strict=True):
            if dy is not None and hasattr(y, "dtype"):
                _check_gradient(y, dy)
            if dy is not None and _is_tracked(y, tape):
                y.collect(dy)
        tape.back(entries)
        found = [_filled(a.value, 0.0) if a.gradient is None else a.gradient for a in tracked]
        back: tuple[Any, ...] = nested.unflatten(structure, found)
        return back

    return nested.unflatten(form, [tape.held(y) for y in result]), pullback


def value_and_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """A function that returns (what ``function`` returns, its gradient in the arguments numbered by ``argnums``).

    ``function`` returns an array of shape (); with ``has_aux`` a pair of that and anything else, through which no
    gradient goes. The gradient has the structure of the argument, or is a tuple of those where ``argnums`` is one.
    """
    _check_function("grad", function)
    several = isinstance(argnums, (list, tuple))
    numbers: tuple[Any, ...] = tuple(argnums) if isinstance(argnums, (list, tuple)) else (argnums,)
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise AttrTypeError(f"grad: argnums={argnums!r:.80}; want an int or several", argument="argnums")

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if any(not -len(args) <= n < len(args) for n in numbers):
            what = f"grad: argnums={argnums!r:.80} but there are {len(args)} arguments"
            raise AttrError(f"{what}; want places among them", argument="argnums")
        places = [n % len(args) for n in numbers]
        if len({*places}) < len(places):
            raise AttrError(f"grad: argnums={argnums!r:.80} names one twice; want different ones", argument="argnums")

        def of_chosen(*chosen: Any) -> Any:
            merged = list(args)
            for n, a in zip(places, chosen, strict=True):
                merged[n] = a
            return function(*merged, **kwargs)

        result, pullback = vjp(of_chosen, *(args[n] for n in places))
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise AttrTypeError(f"grad: with has_aux the function returned a {type(result).__name__}; want a pair")
        loss = result[0] if has_aux else result
        _check_loss(loss)
        one = _filled(loss, 1.0)
        grads = pullback(nested.unflatten(nested.flatten(result)[1], [one, *_nothing(result)]) if has_aux else one)
        return result, grads if several else grads[0]

    return run


def _nothing(result: Any) -> list[None]:
    return [None] * (len(nested.flatten(result)[0]) - 1)


def grad(function: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the gradient alone of what :func:`value_and_grad` returns."""
    both = value_and_grad(function, argnums)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return run


def stop_gradient(x: Array) -> Array:
    """x itself, as a constant: no gradient goes through it."""
    while isinstance(x, Tracked):
        x = x.value
    return x


def differentiable_ops() -> list[str]:
    """The names of the ops that have a gradient."""
    return sorted(name for name, op in registry.ops().items() if "backward" in op.rules)


def _checked(x: Any, name: str) -> Array:
    """An argument of a function whose gradient is wanted."""
    if dispatch.backend_of("grad", name, x) == "" and not isinstance(x, dispatch.Traced):
        raise DTypeError(f"grad: argument {name} is a {type(x).__name__}; want an array", argument=name)
    x = dispatch.borrow("grad", name, x)
    if not is_floating(x.dtype):
        raise DTypeError(
            f"grad: argument {name} has dtype {x.dtype}, in which nothing has a gradient; want a floating one",
            argument=name,
        )
    return x


def _check_function(name: str, function: Any) -> None:
    if not callable(function):
        what = f"{name}: function is a {type(function).__name__}; want a function"
        raise AttrTypeError(what, op=name, argument="function")


def _check_gradient(y: Any, dy: Any) -> None:
    if not hasattr(dy, "dtype") or (dy.dtype, tuple(dy.shape)) != (y.dtype, tuple(y.shape)):
        what = f"{dy.dtype} {tuple(dy.shape)}" if hasattr(dy, "dtype") else type(dy).__name__
        raise ShapeError(f"vjp: a gradient is {what}; want {y.dtype} {tuple(y.shape)}, as the result is")


def _check_loss(loss: Any) -> None:
    if not hasattr(loss, "dtype") or not is_floating(loss.dtype):
        what = f"dtype {loss.dtype}" if hasattr(loss, "dtype") else f"a {type(loss).__name__}"
        raise DTypeError(f"grad: the function returned {what}; want a floating array of shape ()")
    if tuple(loss.shape) != ():
        raise ShapeError(
            f"grad: the function returned shape {tuple(loss.shape)}; want (), or tilework.vjp for what is no scalar"
        )


def _filled(like: Any, number: float) -> Array:
    """A constant array like another, where that lives."""
    like = stop_gradient(like)
    array = np.full(like.shape, number, like.dtype)
    if dispatch.is_device_array(like):
        from tilework.devices import to_device

        return to_device(array, like=like)
    return array
