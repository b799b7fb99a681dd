"""Kernels of the user's as ops: in a graph, in gradients and in plans they take part like tilework's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework import dispatch
from tilework.arrays import Array
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.graph.build import Spec
from tilework.graph.ir import Node

_kernels: dict[str, Kernel] = {}


class Kernel:
    """An op computed by a Python function of numpy arrays: see :func:`kernel`."""

    is_view = False
    is_variadic = False

    def __init__(self, function: Callable[..., Any], infer: Callable[..., Any], name: str) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.name = name
        self.operands = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        self.differentiable: tuple[str, ...] = ()
        self.rules: dict[str, Any] = {}
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self._function, self._infer = function, infer

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        traced = dispatch.recorder((*args, *attrs.values()))
        if traced is not None:
            return traced.record(self, args, attrs)
        operands = dispatch.bind_operands(self, args, attrs)  # type: ignore[arg-type]
        where = {dispatch.backend_of(self.name, n, a) for n, a in zip(self.operands, operands, strict=True)} - {""}
        if where == {"opencl"} and "opencl" in self.rules:
            return self.rules["opencl"](*operands, **attrs)
        if "opencl" in where:
            raise UnsupportedError(f"{self.name}: has no OpenCL kernel; want its operands on the CPU", op=self.name)
        specs, _ = self.infer(list(operands), attrs)
        results = [np.empty(shape, dtype) for shape, dtype in specs]
        self._compute([dispatch.borrow(self.name, "x", a) for a in operands], attrs, results)
        return results[0] if len(results) == 1 else tuple(results)

    def infer(self, operands: list[Any], attrs: dict[str, Any]) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
        """Shapes and dtypes of the results, as the user's rule gives them."""
        missing = [n for n, o in zip(self.operands, operands, strict=True) if o is None]
        if missing:
            raise AttrTypeError(f"{self.name}: {missing[0]} is missing; want an array", op=self.name)
        found = self._infer(*operands, **attrs)
        listed = found if isinstance(found, list) else [found]
        specs = []
        for item in listed:
            made = item if isinstance(item, Spec) else Spec(item, operands[0].dtype)
            if not isinstance(made.shape, (tuple, list)) or not all(isinstance(n, int) and n >= 0 for n in made.shape):
                raise ShapeError(f"{self.name}: its shape rule gives {found!r:.80}; want shapes or specs", op=self.name)
            specs.append((tuple(made.shape), np.dtype(made.dtype)))
        return specs, attrs

    def _compute(self, operands: Sequence[Any], attrs: dict[str, Any], results: Sequence[Any]) -> None:
        """Runs the function and checks what it returns against what the shape rule said."""
        made = self._function(*operands, **attrs)
        arrays = made if isinstance(made, tuple) else (made,)
        if len(arrays) != len(results):
            raise ShapeError(f"{self.name}: returned {len(arrays)} arrays; want {len(results)}", op=self.name)
        for array, result in zip(arrays, results, strict=True):
            if not isinstance(array, (np.ndarray, np.generic)) or array.dtype != result.dtype:
                what = getattr(array, "dtype", type(array).__name__)
                raise DTypeError(f"{self.name}: returned {what}; want {result.dtype}", op=self.name)
            if array.shape != result.shape:
                raise ShapeError(f"{self.name}: returned shape {array.shape}; want {result.shape}", op=self.name)
            result[...] = array

    def step(self, node: Node) -> Callable[[list[Any], list[Any]], None]:
        """What a program calls for a node, with arrays to read and arrays to fill."""
        return lambda operands, results: self._compute(operands, node.attrs, results)

    def backward(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the gradient, in ops: ``rule(dy, *operands, **attrs)`` returns one per operand, or None."""
        self.differentiable = self.operands

        def run(dy: Array, *operands: Any, saved: None, wanted: frozenset[str], **attrs: Any) -> Any:
            grads = rule(dy, *operands, **attrs)
            if len(self.operands) > 1 and (not isinstance(grads, tuple) or len(grads) != len(self.operands)):
                raise ShapeError(
                    f"{self.name}: its backward returned {type(grads).__name__}; want a tuple of "
                    f"{len(self.operands)} gradients",
                    op=self.name,
                )
            return grads

        self.rules["backward"] = run
        return rule


def kernel(infer: Callable[..., Any], *, name: str | None = None) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes an op of a function of numpy arrays: a decorator.

    The function takes its arrays by position and attributes by keyword, and returns an array or a tuple of them.
    ``infer`` takes the same, of which only shapes and dtypes are there, and returns the shape of the result, a
    ``tw.spec(shape, dtype)`` or a list of those. ``.backward`` of what is returned registers a gradient. Kernels are
    found by their names when a file is loaded, so a program that loads one makes its kernels first.
    """

    def make(function: Callable[..., Any]) -> Kernel:
        chosen = name or function.__name__
        if not chosen.isidentifier():
            raise AttrError(f"kernel: name={chosen!r:.80}; want an identifier", argument="name")
        made = Kernel(function, infer, chosen)
        _kernels[chosen] = made
        return made

    return make


def kernel_named(name: str) -> Kernel | None:
    """The kernel that was made last under a name."""
    return _kernels.get(name)
