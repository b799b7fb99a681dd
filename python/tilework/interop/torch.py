"""Every op as ``torch.ops.tilework.*``, with shapes for tracing and gradients; registered when this is imported.

The schema of an op comes from the op table: tensors are positional, attributes keyword-only, as in tilework. One number
stands for all axes; padding is one number per axis, or (before, after) of each axis in one list. Ops whose number of
results depends on attributes return a list. Tensors are borrowed, bfloat16 included, never copied.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError("tensors want torch; pip install 'tilework[torch]'") from error

from tilework import _core
from tilework.dtypes import named
from tilework.errors import DTypeError, UnsupportedError
from tilework.registry import Op, ops, sloped_result, updated_operands

_TO_NUMPY = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.uint16: "uint16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
    torch.bool: "bool",
}
_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
_TO_NUMPY |= {getattr(torch, name): name for name in _FLOAT8 if hasattr(torch, name)}
_TO_TORCH = {name: dtype for dtype, name in _TO_NUMPY.items()}
_TYPES = {
    "integer": "int",
    "real": "float",
    "boolean": "bool",
    "choice": "str",
    "text": "str",
    "integers": "int[1]",
    "axes": "int[1]",
    "padding": "int[1]",
    "dtype": "ScalarType",
}
_ROLES = {
    "required": "Tensor {}",
    "optional": "Tensor? {}=None",
    "inout": "Tensor({}!) {}",
    "optional inout": "Tensor({}!)? {}=None",
    "variadic": "Tensor[] {}",
}

_Tensor = torch.Tensor
_from_numpy = torch.from_numpy
_dispatch_modes = torch._C._len_torch_dispatch_stack

library = torch.library.Library("tilework", "DEF")


# ---------------------------------------------------------------------------------------------- tensors and arrays


def _are_plain(operands: Sequence[Any]) -> bool:
    """Whether every operand is a tensor of the CPU itself, no subclass, without a gradient or a negative bit."""
    for t in operands:
        if type(t) is _Tensor:
            if t.requires_grad or not t.is_cpu or t.is_neg():
                return False
        elif t is not None and (type(t) is not list or not _are_plain(t)):
            return False
    return True


def _exchange(op: str) -> Any:
    """The op on tensors as torch shows them to C, None where torch is older than 2.10."""
    try:
        return _core.Exchange(op, _Tensor)
    except BufferError:
        return None


def _array(op: str, name: str, tensor: Any) -> Any:
    """A tensor's memory as a numpy array."""
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError):
        return _array_of_other(op, name, tensor)


def _array_of_other(op: str, name: str, tensor: Any) -> Any:
    """What ``Tensor.numpy`` refuses: bfloat16 and tensors that require a gradient are borrowed, the others refused."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise DTypeError(
            f"{op}: {name} is a {kind} tensor on {tensor.device}; want a strided one on the CPU",
            op=op,
            argument=name,
        )
    if tensor.is_neg() or tensor.is_conj():
        raise DTypeError(
            f"{op}: {name} has its negative or conjugate bit set; want {name}.resolve_neg().resolve_conj()",
            op=op,
            argument=name,
        )
    if tensor.dtype not in _TO_NUMPY:
        raise DTypeError(f"{op}: {name} has dtype {tensor.dtype}; want one of tilework's", op=op, argument=name)
    dtype = named(_TO_NUMPY[tensor.dtype])
    if dtype.name == "bfloat16" or dtype.name in _FLOAT8:
        return tensor.detach().view(torch.int16 if dtype.itemsize == 2 else torch.uint8).numpy().view(dtype)
    return tensor.detach().numpy()


def _tensor(array: Any) -> Any:
    """The tensor over a result's memory."""
    try:
        return _from_numpy(array)
    except TypeError:  # of ml_dtypes
        bits = np.int16 if array.itemsize == 2 else np.uint8
        return _from_numpy(array.view(bits)).view(_TO_TORCH[array.dtype.name])


def _own(gradient: Any, others: Sequence[Any]) -> Any:
    """A gradient in memory of its own: torch adds to gradients in place, and some rules hand on dy itself."""
    shared = any(np.may_share_memory(gradient, other) for other in others)
    return gradient.copy() if shared else np.ascontiguousarray(gradient)


def _spec(tensor: Any) -> Any:
    """Shape and dtype, which is all that the shape rule looks at."""
    if tensor is None:
        return None
    if isinstance(tensor, (list, tuple)):
        return [_spec(t) for t in tensor]
    return tuple(int(size) for size in tensor.shape), named(_TO_NUMPY.get(tensor.dtype, str(tensor.dtype)[6:]))


# ------------------------------------------------------------------------------------------------------- attributes


def _listed(value: Sequence[int]) -> Any:
    return value[0] if len(value) == 1 else tuple(value)


def _integers(value: Sequence[int], _: Bridge, __: Sequence[Any]) -> Any:
    return _listed(value)


def _padding(value: Sequence[int], bridge: Bridge, operands: Sequence[Any]) -> Any:
    axes = operands[0].dim() - (0 if bridge.op.name == "pad" else 2)
    return tuple(zip(value[::2], value[1::2], strict=True)) if len(value) == 2 * axes > 0 else _listed(value)


def _dtype(value: Any, _: Bridge, __: Sequence[Any]) -> Any:
    return named(_TO_NUMPY.get(value, str(value)[6:]))


_SPELLINGS = {"integers": _integers, "padding": _padding, "dtype": _dtype}  # the other kinds are spelt alike


def _attributes(bridge: Bridge, operands: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Attributes as tilework takes them."""
    if bridge.implied:
        given = {name: value for name, value in given.items() if value is not None or name not in bridge.implied}
    for name in bridge.respelt.intersection(given):
        if (value := given[name]) is not None:
            given[name] = _SPELLINGS[bridge.kinds[name]](value, bridge, operands)
    return given


def _is_infinite(value: Any) -> bool:
    """Whether a default is a number that schemas cannot spell; None stands for it."""
    return isinstance(value, float) and math.isinf(value)


def _default(spec: dict[str, Any]) -> str:
    if spec["required"]:
        return ""
    value = spec["default"]
    if _is_infinite(value):
        return "=None"
    if spec["kind"] == "dtype" and value is not None:
        raise UnsupportedError(f"torch: a default dtype, of {spec['name']}, has no schema")
    if isinstance(value, str):
        return f'="{value}"'
    if isinstance(value, (tuple, list)):
        return "=[" + ", ".join(map(str, value)) + "]"
    return f"={value!r}"


# -------------------------------------------------------------------------------------------------------------- ops


class Bridge:
    """One op between torch's dispatcher and tilework."""

    def __init__(self, op: Op[..., Any]) -> None:
        spec = _core.op_spec(op.name)
        self.op = op
        self.roles: dict[str, str] = dict(spec["operands"])
        self.kinds: dict[str, str] = {a["name"]: a["kind"] for a in spec["attrs"]}
        returns = str(inspect.signature(op).return_annotation)
        self.returns = {"Array": "Tensor", "None": "()"}.get(returns, "Tensor[]")
        self.respelt = {name for name, kind in self.kinds.items() if kind in _SPELLINGS}
        self.implied = {a["name"] for a in spec["attrs"] if _is_infinite(a.get("default"))}
        self.respells = bool(self.respelt or self.implied)
        self.updates = any("inout" in role for role in self.roles.values())
        attrs = [
            f"{_TYPES[a['kind']]}{'?' if a['none_ok'] or a['name'] in self.implied else ''} {a['name']}{_default(a)}"
            for a in spec["attrs"]
        ]
        self.attributes = [*(["*"] if attrs else []), *attrs]
        self.call = _exchange(op.name) or self.through_numpy

    def define(self) -> None:
        """Schema, kernel, shapes and gradient."""
        name = self.op.name
        operands = [_ROLES[role].format(*[n] * 2) for n, role in self.roles.items()]
        library.define(f"{name}({', '.join(operands + self.attributes)}) -> {self.returns}")
        self.overload = getattr(torch.ops.tilework, name).default
        library.impl(name, self.run, "CPU")
        if self.updates:
            library.impl(name, self.refused, "Negative")
            library.impl(name, self.updating, "Autograd")
        torch.library.register_fake(f"tilework::{name}", self.shapes, lib=library)
        if not self.op.differentiable:
            return
        reading = [_ROLES[role.replace("inout", "").strip() or "required"].format(n) for n, role in self.roles.items()]
        attributes = ["*", "bool[] wanted", *self.attributes[1:]]
        library.define(f"{name}_backward({', '.join(['Tensor dy', *reading, *attributes])}) -> Tensor[]")
        self.backward_overload = getattr(torch.ops.tilework, f"{name}_backward").default
        library.impl(f"{name}_backward", self.run_backward, "CPU")
        torch.library.register_fake(f"tilework::{name}_backward", self.backward_shapes, lib=library)
        if not self.updates:
            library.impl(name, self.recorded, "Autograd")

    # The kernel ----------------------------------------------------------------------------------------------------

    def _arrays(self, operands: Sequence[Any]) -> list[Any]:
        try:  # what most calls need
            return [None if t is None else t.numpy() for t in operands]
        except (AttributeError, RuntimeError, TypeError):
            return [self._borrowed(n, t) for n, t in zip(self.roles, operands, strict=False)]

    def _borrowed(self, name: str, operand: Any) -> Any:
        if isinstance(operand, (list, tuple)):
            return [_array(self.op.name, f"{name}[{i}]", t) for i, t in enumerate(operand)]
        return None if operand is None else _array(self.op.name, name, operand)

    def run(self, *operands: Any, **attrs: Any) -> Any:
        """On real tensors."""
        return self._run(operands, attrs)

    def _run(self, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
        if attrs and self.respells:
            attrs = _attributes(self, operands, attrs)
        try:
            result = self.call(*operands, **attrs)
        except DTypeError:
            for name, operand in zip(self.roles, operands, strict=False):  # says it in torch's words
                for tensor in _tensors([operand]):
                    _array_of_other(self.op.name, name, tensor)
            raise
        if self.updates:
            for i in updated_operands(self.op, attrs):
                if i < len(operands) and operands[i] is not None and not operands[i].is_inference():
                    torch.autograd.graph.increment_version(operands[i])
        if self.returns == "Tensor" or result is None:
            return result
        return list(result) if isinstance(result, tuple) else [result]

    def through_numpy(self, *operands: Any, **attrs: Any) -> Any:
        """The op on arrays over the tensors' memory."""
        result = self.op(*self._arrays(operands), **attrs)
        return tuple(map(_tensor, result)) if isinstance(result, tuple) else None if result is None else _tensor(result)

    def shapes(self, *operands: Any, **attrs: Any) -> Any:
        """On tensors without data."""
        attrs = _attributes(self, operands, attrs)
        filled = [_spec(t) for t in operands] + [None] * (len(self.roles) - len(operands))
        devices = [t.device for t in _tensors(operands)]
        device = devices[0]
        if any(d != device for d in devices):
            places = ", ".join(sorted({str(d) for d in devices}))
            raise DTypeError(f"{self.op.name}: the tensors are on {places}; want them on one device", op=self.op.name)
        made = [
            torch.empty(shape, dtype=_TO_TORCH[np.dtype(dtype).name], device=device)
            for shape, dtype in _core.infer(self.op.name, filled, attrs)[0]
        ]
        return made[0] if self.returns == "Tensor" else made if self.returns == "Tensor[]" else None

    # The gradient --------------------------------------------------------------------------------------------------

    def _wanted(self, wanted: Sequence[bool]) -> list[str]:
        return [name for name, is_wanted in zip(self.op.differentiable, wanted, strict=True) if is_wanted]

    def run_backward(self, dy: Any, *operands: Any, wanted: Sequence[bool], **attrs: Any) -> list[Any]:
        """The gradients of the wanted operands, in order."""
        attrs = _attributes(self, operands, attrs)
        names = self._wanted(wanted)
        arrays = self._arrays(operands)
        arrays += [None] * (len(self.roles) - len(arrays))
        dy = _array(self.op.name, "dy", dy)
        found = self.op.backward(dy, *arrays, wanted=names, **attrs)
        if len(self.roles) == 1:
            found = (found,)
        by_name = dict(zip(self.op.operands, found, strict=False))
        made: list[Any] = []
        for name in names:
            gradient = by_name[name]
            made += gradient if self.roles[name] == "variadic" else [gradient]
        return [_tensor(_own(g, [dy, *made[:i]])) for i, g in enumerate(made)]

    def backward_shapes(self, dy: Any, *operands: Any, wanted: Sequence[bool], **attrs: Any) -> list[Any]:
        """Empty tensors of the shapes of the wanted operands."""
        by_name = dict(zip(self.roles, operands, strict=False))
        return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in self._chosen(by_name, wanted)]

    def _chosen(self, by_name: dict[str, Any], wanted: Sequence[bool]) -> Iterator[Any]:
        for name in self._wanted(wanted):
            yield from by_name[name] if self.roles[name] == "variadic" else (by_name[name],)

    def recorded(self, *operands: Any, **attrs: Any) -> Any:
        """Above the kernel: records what the gradient needs where one is wanted, else calls on."""
        if _dispatch_modes() == 0 and _are_plain(operands):  # spares a second pass through the dispatcher
            return self._run(operands, attrs)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in _tensors(operands)):
            return self.below(operands, attrs)
        sizes = [len(t) if isinstance(t, list) else None for t in operands]
        made = Recorded.apply(self, attrs, sizes, *_tensors(operands, none=True))
        return list(made) if self.returns == "Tensor[]" else made

    def updating(self, *operands: Any, **attrs: Any) -> Any:
        """Above the kernel of an op that updates operands: none of these may be one whose gradient is followed."""
        if torch.is_grad_enabled():
            for i, (name, t) in enumerate(zip(self.roles, operands, strict=False)):
                if t is not None and t.requires_grad and i in updated_operands(self.op, attrs):
                    raise UnsupportedError(
                        f"{self.op.name}: {name} requires a gradient and would be updated in place; "
                        "want the call under torch.no_grad()",
                        op=self.op.name,
                        argument=name,
                    )
        return self.recorded(*operands, **attrs) if self.op.differentiable else self.below(operands, attrs)

    def refused(self, *operands: Any, **attrs: Any) -> Any:
        """An update of a tensor that is seen with the other sign."""
        names = [n for n, t in zip(self.roles, operands, strict=False) if t is not None and t.is_neg()]
        raise DTypeError(
            f"{self.op.name}: {names[0]} has its negative bit set; want {names[0]}.resolve_neg()",
            op=self.op.name,
            argument=names[0],
        )

    def below(self, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
        """The op without the recording of gradients."""
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*operands, **attrs)


def _tensors(operands: Sequence[Any], *, none: bool = False) -> Iterator[Any]:
    for t in operands:
        if isinstance(t, (list, tuple)):
            yield from t
        elif t is not None or none:
            yield t


def _nested(flat: Sequence[Any], sizes: Sequence[int | None]) -> list[Any]:
    items = iter(flat)
    return [next(items) if n is None else [next(items) for _ in range(n)] for n in sizes]


class Recorded(torch.autograd.Function):  # type: ignore[misc]
    """A call whose gradient tilework's backward rule computes."""

    @staticmethod
    def forward(ctx: Any, bridge: Bridge, attrs: dict[str, Any], sizes: list[Any], *flat: Any) -> Any:
        updated = [("inout" in role) for role in bridge.roles.values()]
        operands = _nested(flat, sizes)
        kept = [t.clone() if u and t is not None else t for t, u in zip(operands, updated, strict=False)]
        ctx.save_for_backward(*_tensors(kept, none=True))
        ctx.set_materialize_grads(False)
        ctx.call = bridge, attrs, sizes
        made = bridge.below(operands, attrs)
        if bridge.returns == "Tensor":
            return made
        first = sloped_result(bridge.op)
        ctx.mark_non_differentiable(*(t for k, t in enumerate(made) if k < first or not t.is_floating_point()))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *dys: Any) -> Any:
        bridge, attrs, sizes = ctx.call
        dy, *others = dys[sloped_result(bridge.op) :]
        if any(d is not None for d in others):
            raise UnsupportedError(
                f"{bridge.op.name}: a gradient of its further results is not computed; want one of the first alone",
                op=bridge.op.name,
            )
        operands = _nested(ctx.saved_tensors, sizes)
        needs = dict(zip(bridge.roles, _nested(ctx.needs_input_grad[3:], sizes), strict=False))
        wanted = [bool(np.any(needs.get(name, False))) for name in bridge.op.differentiable]
        if dy is None or not any(wanted):
            return (None,) * (3 + len(ctx.saved_tensors))
        found = iter(bridge.backward_overload(dy, *operands, wanted=wanted, **attrs))
        gradients: list[Any] = []
        names = set(bridge._wanted(wanted))
        for name, size in zip(bridge.roles, sizes, strict=False):
            gradients += [next(found) if name in names else None for _ in range(1 if size is None else size)]
        return (None, None, None, *gradients)


def _register() -> dict[str, Bridge]:
    bridges = {name: Bridge(op) for name, op in ops().items() if not op.is_view and name in _core.op_names()}
    for bridge in bridges.values():
        bridge.define()
    return bridges


bridges: dict[str, Bridge] = _register()


def is_registered(name: str) -> bool:
    """Whether ``torch.ops.tilework`` has an op of this name; views have none, torch has its own."""
    return name in bridges


__all__ = ["bridges", "is_registered"]
