"""Every op on JAX's arrays: ``tilework.interop.jax.conv(x, w, b, padding=1)`` under ``jit``, ``grad`` and ``vmap``.

All ops go through one XLA FFI handler. Shapes come from the one shape rule while JAX traces; gradients are the ops' own
backward rules, whose calls are emitted in turn, so gradients of gradients hold too. Elementwise ops take an axis mapped
by ``vmap`` as a leading one; the others run once per element of it. A call outside ``jit`` costs JAX some 0.3 ms.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
except ModuleNotFoundError as error:
    raise ImportError("JAX's arrays want jax; pip install 'tilework[jax]'") from error

from tilework import _core, dispatch, nested, registry
from tilework.arrays import Sizes
from tilework.errors import AttrTypeError, UnsupportedError
from tilework.linking import xla_handler_path
from tilework.operators import Operators

_TARGET = "tilework"


def _register() -> None:
    """Hands the handler to XLA, if it was built and for a version that this jaxlib calls."""
    path = xla_handler_path()
    if path is None:
        raise UnsupportedError(
            "jax: tilework was built without jaxlib's headers; "
            "want it built where jaxlib is, by pip install --no-build-isolation tilework"
        )
    library = ctypes.CDLL(path)
    built, here = divmod(library.tw_xla_version(), 1000), _version_of_jaxlib()
    refusal = UnsupportedError(
        "jax: the handler was built for XLA FFI {}.{} and this jaxlib has {}.{}; "
        "want tilework built where this jaxlib is, by pip install --no-build-isolation tilework".format(*built, *here)
    )
    if built[0] != here[0] or built > here:
        raise refusal
    try:
        jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.tw_xla_call), platform="cpu")
    except Exception as error:
        raise refusal from error


def _version_of_jaxlib() -> tuple[int, ...]:
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    return tuple(int(re.search(rf"define XLA_FFI_API_{part} (\d+)", header)[1]) for part in ("MAJOR", "MINOR"))  # type: ignore[index]


# ----------------------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True)
class Call:
    """All of a call but its arrays: what JAX may compare and hash."""

    name: str
    attrs: tuple[tuple[str, Any], ...]  # as the shape rule resolved them, those alone that were given
    given: tuple[bool, ...]  # which operands there are
    items: int | None  # arrays of the variadic operand, which is the first; None where there is none

    @property
    def op(self) -> Any:
        return registry.find(self.name)

    def arranged(self, arrays: Sequence[Any]) -> list[Any]:
        """Operands by position: a list for the variadic one, None where one is not given."""
        left = iter(arrays)
        arranged: list[Any] = [[next(left) for _ in range(self.items)]] if self.items is not None else []
        return arranged + [next(left) if there else None for there in self.given[len(arranged) :]]

    def flat(self, operands: Sequence[Any]) -> list[Any]:
        """The arrays of operands by position, or of anything arranged like them."""
        return [
            item
            for operand, there in zip(operands, self.given, strict=True)
            if there
            for item in (operand if isinstance(operand, list) else [operand])
        ]


def _bound(op: Any, args: tuple[Any, ...], attrs: dict[str, Any]) -> tuple[Call, list[Any]]:
    """A call as the user wrote it: what is static of it, and its arrays."""
    if attrs.pop("out", None) is not None:
        raise AttrTypeError(f"{op.name}: out is given; want the result, JAX's arrays are never written to", op=op.name)
    operands: list[Any] = list(dispatch.bind_operands(op, args, attrs))
    operands = [
        [_taken(o) for o in operand] if isinstance(operand, (list, tuple)) else _taken(operand) for operand in operands
    ]
    first = next((o for o in operands if isinstance(o, jax.Array)), None)
    operands = [jnp.asarray(o, first.dtype) if first is not None and _is_number(o) else o for o in operands]
    resolved = _core.infer(op.name, operands, attrs)[1]
    for i in registry.updated_operands(op, resolved):
        if operands[i] is not None:
            raise UnsupportedError(
                f"{op.name}: {op.operands[i]} is updated in place; want an op that returns what it makes, "
                "JAX's arrays are never written to",
                op=op.name,
                argument=op.operands[i],
            )
    items = len(operands[0]) if op.is_variadic else None
    call = Call(op.name, tuple((k, resolved[k]) for k in attrs), tuple(o is not None for o in operands), items)
    return call, call.flat(operands)


def _each(operands: Sequence[Any]) -> Iterator[Any]:
    for operand in operands:
        yield from operand if isinstance(operand, list) else [operand]


def _is_number(operand: Any) -> bool:
    return isinstance(operand, (int, float)) and not isinstance(operand, bool)


def _taken(operand: Any) -> Any:
    """An operand as an array of JAX's; Python numbers take the dtype of the first array later."""
    return operand if operand is None or isinstance(operand, jax.Array) or _is_number(operand) else jnp.asarray(operand)


def _emitted(call: Call, arrays: Sequence[Any]) -> Any:
    """The call to the handler."""
    spec = _core.op_spec(call.name)
    batches = spec["elementwise"] and all(jnp.issubdtype(a.dtype, jnp.floating) for a in arrays)
    if batches:  # a mapped axis comes first, so all need the same number behind it
        rank = max(a.ndim for a in arrays)
        arrays = [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]
    operands = call.arranged(arrays)
    given = "".join("1" if o is not None else "0" for o in _each(operands))
    results = [jax.ShapeDtypeStruct(*made) for made in _core.infer(call.name, operands, dict(call.attrs))[0]]
    for result in results:
        if jax.dtypes.canonicalize_dtype(result.dtype) != result.dtype:
            raise UnsupportedError(
                f'{call.name}: a result is {result.dtype}; want jax.config.update("jax_enable_x64", True)', op=call.name
            )
    kinds = {a["name"]: a["kind"] for a in spec["attrs"]}
    attrs = dict(_written(name, kinds[name], value) for name, value in call.attrs)
    run = jax.ffi.ffi_call(
        _TARGET,
        results[0] if len(results) == 1 else results,
        vmap_method="broadcast_all" if batches else "sequential",
    )
    made = run(*arrays, _op=call.name, _given=given, **attrs)
    return made if len(results) == 1 else tuple(made)


def _written(name: str, kind: str, value: Any) -> tuple[str, Any]:
    """An attribute as the handler reads it."""
    if value is None:
        return f"none:{name}", np.bool_(True)
    if isinstance(value, str):
        return name, value
    if kind == "dtype":
        return name, np.dtype(value).name
    if kind == "boolean":
        return name, np.bool_(value)
    if kind == "real":
        return name, np.float64(value)
    if isinstance(value, tuple):
        is_pairs = bool(value) and isinstance(value[0], tuple)
        return f"pairs:{name}" if is_pairs else name, np.array(value, np.int64).reshape(-1)
    return name, np.int64(value)


# ------------------------------------------------------------------------------------------------------- gradients


class Held(Operators):
    """An array of JAX's that the ops' own rules work on: their calls on it are emitted at once."""

    __slots__ = ("value",)
    level = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> Sizes:  # type: ignore[override]
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return np.dtype(self.value.dtype)

    @property
    def strides(self) -> Sizes:
        return tuple(np.empty(self.shape, self.dtype).strides)

    @property
    def flags(self) -> Any:
        return np.empty(self.shape, self.dtype).flags

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = nested.mapped(_value, args), nested.mapped(_value, kwargs)
        if op.is_view:
            return Held(_VIEWS[op.name](*args, **kwargs))
        made = _called(op, args, kwargs)
        return tuple(map(Held, made)) if isinstance(made, tuple) else Held(made)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Held) else x


def _held(x: Any) -> Any:
    return [_held(i) for i in x] if isinstance(x, list) else None if x is None else Held(x)


def _crop(x: Any, pads: Any) -> Any:
    pairs = [
        (p, p) if isinstance(p, int) else p for p in (pads if isinstance(pads, (tuple, list)) else [pads] * x.ndim)
    ]
    return x[tuple(slice(before, n - after) for n, (before, after) in zip(x.shape, pairs, strict=True))]


_VIEWS: dict[str, Callable[..., Any]] = {
    "transpose": jnp.transpose,
    "reshape": jnp.reshape,
    "getitem": lambda x, key: x[key],
    "crop": _crop,
}


@jax.tree_util.register_pytree_node_class
class Residuals:
    """What the backward rule needs: arrays, and what JAX must not see of it."""

    def __init__(self, arrays: Sequence[Any], saved: Any, wanted: frozenset[str]) -> None:
        self.arrays, self.saved, self.wanted = arrays, saved, wanted

    def tree_flatten(self) -> tuple[Any, Any]:
        leaves, structure = nested.flatten(self.saved)
        places = tuple(isinstance(leaf, Held) for leaf in leaves)
        statics = tuple(None if isinstance(leaf, Held) else leaf for leaf in leaves)
        return (self.arrays, [leaf.value for leaf in leaves if isinstance(leaf, Held)]), (
            structure,
            places,
            statics,
            self.wanted,
        )

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> Residuals:
        (structure, places, statics, wanted), (arrays, values) = static, children
        left = iter(values)
        leaves = [Held(next(left)) if there else s for there, s in zip(places, statics, strict=True)]
        return cls(arrays, nested.unflatten(structure, leaves), wanted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(call: Call, *arrays: Any) -> Any:
    return _emitted(call, arrays)


def _resolved(call: Call, operands: Sequence[Any]) -> dict[str, Any]:
    attrs: dict[str, Any] = registry.resolve(call.op, tuple(_held(o) for o in operands), dict(call.attrs))
    return attrs


def _forward(call: Call, *primals: Any) -> Any:
    arrays = [p.value for p in primals]
    wanted = frozenset(
        name
        for name, perturbed in zip(call.op.operands, call.arranged([p.perturbed for p in primals]), strict=True)
        if (any(perturbed) if isinstance(perturbed, list) else perturbed)
    )
    rule = call.op.rules.get("forward") if "backward" in call.op.rules else None
    if rule is None:
        return _emitted(call, arrays), Residuals(arrays, None, wanted)
    operands = call.arranged(arrays)
    result, saved = rule(*map(_held, operands), **_resolved(call, operands))
    return nested.mapped(_value, result), Residuals(arrays, saved, wanted)


def _is_zero(cotangent: Any) -> bool:
    return isinstance(cotangent, jax.custom_derivatives.SymbolicZero) or cotangent.dtype == jax.dtypes.float0


def _backward(call: Call, kept: Residuals, cotangent: Any) -> Any:
    op = call.op
    dy, *others = cotangent[registry.sloped_result(op) :] if isinstance(cotangent, tuple) else (cotangent,)
    if not all(map(_is_zero, others)):
        raise UnsupportedError(
            f"{op.name}: a gradient of its further results is not computed; want one of the first alone", op=op.name
        )
    if _is_zero(dy) or not kept.wanted:
        return (None,) * len(kept.arrays)
    for name in kept.wanted:
        if name not in op.differentiable:
            raise UnsupportedError(
                f"{op.name}: has no gradient{f' in {name}' if op.differentiable else ''}; "
                f"want jax.lax.stop_gradient({name})",
                op=op.name,
                argument=name,
            )
    operands = call.arranged(kept.arrays)
    attrs = _resolved(call, operands)
    found = op.rules["backward"](Held(dy), *map(_held, operands), saved=kept.saved, wanted=kept.wanted, **attrs)
    by_name = {op.operands[0]: found} if len(op.operands) == 1 else dict(zip(op.differentiable, found, strict=True))
    gradients: list[Any] = []
    for name, operand in zip(op.operands, operands, strict=True):
        found = by_name.get(name) if name in kept.wanted else None
        gradients.append(
            (list(found) if found is not None else [None] * len(operand)) if isinstance(operand, list) else found
        )
    return tuple(None if g is None else jnp.asarray(_value(g)) for g in call.flat(gradients))


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


# ----------------------------------------------------------------------------------------------------- the functions


def _called(op: Any, args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    call, arrays = _bound(op, args, attrs)
    return _differentiable(call, *arrays)


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    op = registry.find(name)

    @functools.wraps(op.__wrapped__)  # type: ignore[attr-defined]
    def run(*args: Any, **attrs: Any) -> Any:
        return _called(op, args, attrs)

    return run


def __getattr__(name: str) -> Any:
    if name in _core.op_names():
        return _function(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_core.op_names())


_register()
