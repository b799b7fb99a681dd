"""Kernels of the user's as ops: in a graph, in gradients and in plans they take part like tilework's own."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilework import _core, dispatch, ops
from tilework.dtypes import is_floating
from tilework.errors import AttrError, AttrTypeError, DTypeError, Error, ShapeError, UnsupportedError
from tilework.graph.build import Spec, spec, tracing
from tilework.graph.ir import Node

_kernels: dict[str, Kernel] = {}
_TAKEN = ("placeholder", "constant", "variable", "cond", "while_loop", "scan")  # what other nodes are called


class Kernel:
    """An op of the user's: a shape rule, and what computes it on the CPU and on OpenCL devices.

        scaled = tw.Kernel("scaled", ("x",), lambda x, *, by: x.shape, numbers=("by",))
        scaled.c(library.scaled).opencl(source)
        y = scaled(x, by=2.0)

    ``infer`` takes the operands, of which only shapes and dtypes are there, and the attributes by keyword; it returns
    the shape of the result, a ``tw.spec(shape, dtype)`` or a list of those. ``numbers`` names the attributes, in the
    order in which C and OpenCL take them. With ``effects`` a call matters beside its results, of which there may be
    none (the rule returns []): a graph makes each such call, in the order in which they were written.
    :func:`kernel` makes one of a Python function. Kernels are found by their names when a file is loaded, so a program
    that loads one makes its kernels first.
    """

    is_view = False
    is_variadic = False

    def __init__(
        self,
        name: str,
        operands: Sequence[str],
        infer: Callable[..., Any],
        *,
        numbers: Sequence[str] = (),
        function: Callable[..., Any] | None = None,
        effects: bool = False,
    ) -> None:
        for argument, words in (("operands", operands), ("numbers", numbers)):
            if not isinstance(words, (list, tuple)):
                raise AttrTypeError(f"kernel: {argument}={words!r:.80}; want a tuple of names", argument=argument)
        for word in (name, *operands, *numbers):
            if not isinstance(word, str) or not word.isidentifier():
                raise AttrError(f"kernel: name={word!r:.80}; want an identifier", argument="name")
        if len({*operands, *numbers}) < len(operands) + len(numbers):
            words = (*operands, *numbers)
            raise AttrError(f"kernel: {name} takes {words}; want names that differ", argument="operands")
        if name in _TAKEN or hasattr(getattr(ops, name, None), "is_view"):
            raise AttrError(f"kernel: name={name!r} is that of an op; want another", argument="name")
        _check_callable(name, "infer", infer)
        if function is not None:
            _check_callable(name, "function", function)
        self.name, self.operands, self.numbers = name, tuple(operands), tuple(numbers)
        self.differentiable: tuple[str, ...] = ()
        self.rules: dict[str, Any] = {}
        self._function, self._infer, self.effects = function, infer, effects
        self._address = 0
        self._source: tuple[str, Callable[..., int] | None] | None = None
        _kernels[name] = self

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"

    # ---------------------------------------------------------------------------------------- what computes it

    def c(self, function: Any) -> Kernel:
        """Computes it on the CPU by a C function: its address, or one that ctypes found; returns the kernel.

        The type is ``tw_kernel`` of ``tilework/kernel.h``: the function reads compact DLPack tensors, fills others,
        takes the numbers as doubles, and returns 0. It is called without Python, possibly by several threads at once.
        """
        try:
            address = function if isinstance(function, int) else ctypes.cast(function, ctypes.c_void_p).value
        except (TypeError, ctypes.ArgumentError):
            address = None
        if not isinstance(address, int) or isinstance(function, (bool, str, bytes)) or not 0 < address < 1 << 64:
            what = f"{self.name}: {function!r:.80} is not the address of a C function"
            raise AttrError(f"{what}; want one, or what ctypes found", op=self.name, argument="function")
        self._address, self._owner = address, function
        return self

    def opencl(self, source: str, *, items: Callable[..., int] | None = None) -> Kernel:
        """Computes it on OpenCL devices by the kernel of its name in ``source``; returns the kernel.

        The arguments are a pointer and the long number of its first element for every operand and every result,
        compact arrays; then the numbers, in the floating type of the first operand or as long where an int is given;
        and last the long count of work items: the elements of the first result, or what ``items`` returns for operands
        and attributes. Work items from the count on have nothing to do. ``kernels_cl/types.clh`` comes before the
        source.
        """
        if not isinstance(source, str):
            what = f"{self.name}: source is a {type(source).__name__}; want OpenCL C"
            raise AttrTypeError(what, op=self.name, argument="source")
        if items is not None:
            _check_callable(self.name, "items", items)
        self._source = source, items
        return self

    def backward(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the gradient, in ops: ``rule(dy, *operands, **attrs)`` returns one per operand, or None.

        ``dy`` is a tuple where there are several results, None in it for those without a gradient.
        """
        _check_callable(self.name, "backward", rule)
        self.differentiable = self.operands

        def run(dys: list[Any], operands: list[Any], *, saved: None, wanted: frozenset[str], **attrs: Any) -> Any:
            grads = rule(dys[0] if len(dys) == 1 else tuple(dys), *operands, **attrs)
            found = grads if isinstance(grads, tuple) or len(self.operands) > 1 else (grads,)
            if not isinstance(found, tuple) or len(found) != len(self.operands):
                raise ShapeError(
                    f"{self.name}: its backward returned {type(grads).__name__}; want a tuple of "
                    f"{len(self.operands)} gradients",
                    op=self.name,
                )
            for name, operand, gradient in zip(self.operands, operands, found, strict=True):
                self._check_gradient(name, operand, gradient)
            return dict(zip(self.operands, found, strict=True))

        self.rules["pullback"] = run
        return rule

    def _check_gradient(self, name: str, operand: Any, gradient: Any) -> None:
        """Refuses a gradient unlike its operand; one in what is no floating array is nobody's."""
        if gradient is None or not is_floating(operand.dtype):
            return
        shape, dtype = getattr(gradient, "shape", None), getattr(gradient, "dtype", None)
        if shape is None or (tuple(shape), dtype) != (tuple(operand.shape), operand.dtype):
            what = type(gradient).__name__ if shape is None else f"{dtype} {tuple(shape)}"
            raise ShapeError(
                f"{self.name}: its backward returned {what} for {name}; want {operand.dtype} {tuple(operand.shape)}",
                op=self.name,
                argument=name,
            )

    # -------------------------------------------------------------------------------------------------- calls

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        traced = dispatch.recorder((*args, *attrs.values()))
        if traced is not None:
            return traced.record(self, args, attrs)
        operands = dispatch.bind_operands(self, args, attrs)  # type: ignore[arg-type]
        where = {dispatch.backend_of(self.name, n, a) for n, a in zip(self.operands, operands, strict=True)} - {""}
        around = tracing()
        on_device = "opencl" not in where and not (self._address or self._function)
        if around is not None and (on_device or self.effects):
            return around.call(self, *operands, **attrs)  # of constants, which the graph may have on its device
        specs, _ = self.infer(list(operands), attrs)
        if "opencl" in where:
            results = self._on_device(operands, attrs, specs, mixed=len(where) > 1)
        else:
            results = [np.empty(shape, dtype) for shape, dtype in specs]
            arrays = [dispatch.borrow(self.name, n, a) for n, a in zip(self.operands, operands, strict=True)]
            self._filler(attrs)(list(map(_read_only, arrays)), results)
        return results[0] if len(results) == 1 else tuple(results) or None

    def infer(self, operands: list[Any], attrs: dict[str, Any]) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
        """Shapes and dtypes of the results, as the user's rule gives them."""
        for name, operand in zip(self.operands, operands, strict=True):
            if not hasattr(operand, "shape"):
                what = "missing" if operand is None else f"a {type(operand).__name__}"
                raise AttrTypeError(f"{self.name}: {name} is {what}; want an array", op=self.name, argument=name)
        found = self._infer(*operands, **attrs)
        listed = found if isinstance(found, list) else [found]
        specs = []
        for item in listed:
            made = item if isinstance(item, Spec) else Spec(item, operands[0].dtype)
            try:
                checked = spec(made.shape, made.dtype)
            except Error as e:
                what = f"{self.name}: its shape rule gives {found!r:.80}; want shapes or specs ({e})"
                raise ShapeError(what, op=self.name) from None
            specs.append((checked.shape, checked.dtype))
        return specs, attrs

    def step(self, node: Node) -> Any:
        """What a program calls for a node, with arrays to read and arrays to fill."""
        return self._filler(node.attrs, compact=all(v.ghost.flags.c_contiguous for v in node.values()))

    def _filler(self, attrs: dict[str, Any], *, compact: bool = False) -> Callable[[list[Any], list[Any]], None]:
        """Fills results from operands, which C wants compact."""
        if self._address:
            call = _core.Foreign(self.name, self._address, [float(n) for n in self._given(attrs)])
            if compact:
                return call
            return lambda operands, results: call(
                [np.require(a, requirements=["C", "A"]) for a in operands], list(results)
            )
        if self._function is None:
            raise UnsupportedError(f"{self.name}: has nothing for the CPU; want operands on a device", op=self.name)
        return lambda operands, results: self._compute(operands, attrs, results)

    def _compute(self, operands: Sequence[Any], attrs: dict[str, Any], results: Sequence[Any]) -> None:
        """Runs the Python function and checks what it returns against what the shape rule said."""
        assert self._function is not None
        made = self._function(*operands, **attrs)
        arrays = made if isinstance(made, tuple) else () if made is None else (made,)
        if len(arrays) != len(results):
            raise ShapeError(f"{self.name}: returned {len(arrays)} arrays; want {len(results)}", op=self.name)
        for array, result in zip(arrays, results, strict=True):
            if not isinstance(array, (np.ndarray, np.generic)) or array.dtype != result.dtype:
                what = getattr(array, "dtype", type(array).__name__)
                raise DTypeError(f"{self.name}: returned {what}; want {result.dtype}", op=self.name)
            if array.shape != result.shape:
                raise ShapeError(f"{self.name}: returned shape {array.shape}; want {result.shape}", op=self.name)
            result[...] = array

    def _on_device(self, operands: Sequence[Any], attrs: dict[str, Any], specs: Any, *, mixed: bool) -> list[Any]:
        from tilework.backends import opencl

        if self._source is None or mixed:
            what = "has operands on the CPU too" if self._source else "has no OpenCL kernel"
            raise UnsupportedError(f"{self.name}: {what}; want its operands on one of the two", op=self.name)
        source, items = self._source
        count = None if items is None else items(*operands, **attrs)
        return opencl.run_source(self.name, source, operands, specs, self._given(attrs), count)

    def _given(self, attrs: dict[str, Any]) -> list[float]:
        """The numbers, in order."""
        values = [attrs[n] for n in self.numbers if n in attrs]
        if len(values) != len(self.numbers) or len(attrs) != len(values):
            odd = sorted(set(attrs) ^ set(self.numbers))[0]
            what = "is missing" if odd in self.numbers else "is not among its numbers"
            raise AttrTypeError(f"{self.name}: {odd} {what}; want {', '.join(self.numbers) or 'none'}", op=self.name)
        for name, value in zip(self.numbers, values, strict=True):
            if not isinstance(value, (bool, int, float)):
                raise AttrTypeError(f"{self.name}: {name} is a {type(value).__name__}; want a number", op=self.name)
        return values


def _check_callable(kernel: str, argument: str, given: Any) -> None:
    if not callable(given):
        what = f"{kernel}: {argument} is a {type(given).__name__}; want a function"
        raise AttrTypeError(what, op=kernel, argument=argument)


def _read_only(array: Any) -> Any:
    seen = array.view()
    seen.flags.writeable = False
    return seen


def kernel(
    infer: Callable[..., Any], *, name: str | None = None, effects: bool = False
) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a :class:`Kernel` of a function of numpy arrays: a decorator.

    The function takes its arrays, which it may only read, by position and attributes by keyword, and returns an array
    or a tuple of them.
    """

    _check_callable("kernel", "infer", infer)

    def make(function: Callable[..., Any]) -> Kernel:
        _check_callable("kernel", "function", function)
        parameters = inspect.signature(function).parameters.values()
        operands = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        numbers = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        made = Kernel(name or function.__name__, operands, infer, numbers=numbers, function=function, effects=effects)
        made.__doc__ = function.__doc__
        made.__wrapped__ = function  # type: ignore[attr-defined]
        return made

    return make


def kernel_named(name: str) -> Kernel | None:
    """The kernel that was made last under a name."""
    return _kernels.get(name)
