"""The interface of ``onnx.backend``: a model is prepared once, and a graph is kept per set of input shapes."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as BackendBase, BackendRep

from tilework import dispatch
from tilework.devices import to_host
from tilework.errors import AttrTypeError, DTypeError, Error, ShapeError
from tilework.graph import Executable
from tilework.interop.onnx.importer import Fed, Importer, Slot, computes, refusal
from tilework.interop.onnx.reading import load
from tilework.interop.onnx.rules import RUN, NeedsResultError, NeedsValueError

_KEPT = 16  # graphs of one model, by shapes of what was fed


class Prepared(BackendRep):  # type: ignore[misc]
    """A model that is ready to run; graphs are built for the shapes that are fed, and kept.

    ``threads`` and ``winograd`` are those of :meth:`tilework.Graph.compile`.
    """

    def __init__(self, model: Any, device: Any = None, threads: int | None = None, winograd: bool = False) -> None:
        self.importer = Importer(load(model))
        self.device, self.threads, self.winograd = device, threads, winograd
        unknown = self.importer.unknown()
        if unknown:
            raise refusal(unknown)
        self.inputs = self.importer.fed
        self.outputs = [o.name for o in self.importer.structure.output]
        self._by_value: set[str] = set()
        self._runs = itertools.count()
        self._graphs: OrderedDict[Any, tuple[Executable | None, dict[str, Any] | None]] = OrderedDict()
        shapes = {f.name: f.shape for f in self.inputs}
        known = all(f.shape is not None and None not in f.shape for f in self.inputs)
        if known and not any(f.is_list or f.may_be_none for f in self.inputs):
            self._graph(shapes, {})

    def _graph(self, shapes: dict[str, Any], feeds: dict[str, Any], computed: Sequence[Any] = ()) -> Any:
        """What runs, and the model's results: None if it gives what has to be known before the rest is built."""
        results: dict[str, Any] | None
        while True:
            values = {n: feeds[n] for n in self._by_value if n in feeds}
            known = *sorted(values.items()), *enumerate(computed)
            key = tuple(shapes.items()), tuple((n, v.shape, v.tobytes()) for n, v in known)
            if key in self._graphs:
                self._graphs.move_to_end(key)
                return self._graphs[key]
            try:
                graph, results = self.importer.build(shapes, values, computed)
            except NeedsResultError as need:
                if not feeds:
                    return None  # known at the first run
                graph, results = need.graph, None
            except NeedsValueError as need:
                if feeds and need.label not in feeds:  # of a list
                    raise refusal([f"a shape depends on the numbers of {need.label}"]) from None
                self._by_value.add(need.label)
                if not feeds:
                    return None  # known at the first run
                continue
            how = {"device": self.device, "threads": self.threads, "winograd": self.winograd}
            run = graph.compile(**how) if graph.outputs else None
            self._graphs[key] = run, results
            if len(self._graphs) > _KEPT:
                self._graphs.popitem(last=False)
            return self._graphs[key]

    def build(self, inputs: Any) -> None:
        """Builds and compiles for inputs like these, as the first run with them would."""
        feeds = self._feeds(inputs)
        self._graph({n: _shape(v) for n, v in feeds.items()}, feeds)

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """The results, in the model's order, of arrays in the order of its inputs or by name; sequences are lists."""
        feeds = self._feeds(inputs)
        shapes, turn, computed = {n: _shape(v) for n, v in feeds.items()}, next(self._runs), list[Any]()
        results = None
        while results is None:
            run, results = self._graph(shapes, feeds, computed)
            number = {RUN: turn} if run is not None and run.graph.numbers else {}
            made = run(*_arrays(feeds.values()), **number) if run is not None else ()
            made = made if isinstance(made, tuple) else (made,)
            if results is None:
                computed.append(np.asarray(to_host(made[0]) if self.device else made[0]))
        return tuple(_filled(results[name], made) for name in self.outputs)

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        names = [f.name for f in self.inputs]
        if not isinstance(inputs, (dict, list, tuple)):
            what = f"onnx: inputs is a {type(inputs).__name__}; want a list or a dict of {', '.join(names) or 'none'}"
            raise AttrTypeError(what, argument="inputs")
        given = dict(inputs) if isinstance(inputs, dict) else dict(zip(names, inputs, strict=False))
        if set(given) != set(names) or (not isinstance(inputs, dict) and len(inputs) != len(names)):
            raise AttrTypeError(f"onnx: {len(inputs)} inputs; want {', '.join(names) or 'none'}")
        return {fed.name: _fed(fed, given[fed.name]) for fed in self.inputs}


def _fed(fed: Fed, value: Any) -> Any:
    """What is fed for an input, checked: an array, a list of them, or None."""
    if value is None and fed.may_be_none:
        return None
    if fed.is_list:
        if not isinstance(value, (list, tuple)):
            raise DTypeError(f"onnx: {fed.name} is a {type(value).__name__}; want a list of arrays", argument=fed.name)
        return [_fed(fed._replace(is_list=False, may_be_none=False), v) for v in value]
    array = value if dispatch.is_device_array(value) else np.asarray(value)
    if array.dtype != fed.dtype:
        raise DTypeError(f"onnx: {fed.name} has dtype {array.dtype}; want {fed.dtype}", argument=fed.name)
    fits = fed.shape is None or (
        len(fed.shape) == len(array.shape) and all(w in (None, s) for w, s in zip(fed.shape, array.shape, strict=True))
    )
    if not fits:
        raise ShapeError(f"onnx: {fed.name} has shape {array.shape}; want {fed.shape}", argument=fed.name)
    return array


def _shape(value: Any) -> Any:
    return None if value is None else tuple(map(_shape, value)) if isinstance(value, list) else tuple(value.shape)


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        elif value is not None:
            yield value


def _filled(result: Any, made: tuple[Any, ...]) -> Any:
    """A result of the model with its slots filled."""
    if isinstance(result, list):
        return [_filled(r, made) for r in result]
    return made[result] if isinstance(result, Slot) else result


class Backend(BackendBase):  # type: ignore[misc]
    """tilework as a backend of ONNX: what ``onnx.backend.test`` and others drive."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> Prepared:
        """A model ready to run. ``device`` is "CPU" or what ``tilework.to_device`` takes; see :class:`Prepared`."""
        chosen = {name: options[name] for name in ("threads", "winograd") if name in options}
        return Prepared(model, None if device == "CPU" else device, **chosen)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **options: Any) -> tuple[Any, ...]:
        """Prepares and runs once."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **options: Any) -> Any:
        """Runs one node."""
        named = list(dict.fromkeys(n for n in node.input if n))
        arrays = [np.asarray(v) for v in (inputs.values() if isinstance(inputs, dict) else inputs)]
        infos = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(named, arrays, strict=True)
        ]
        results = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output if n]
        opset = options.pop("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], node.op_type, infos, results),
            opset_imports=[onnx.helper.make_opsetid(node.domain, opset)],
        )
        return cls.run_model(model, arrays, device, **options)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU is promised; devices are named at ``prepare``."""
        return device == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **_: Any) -> bool:
        """Whether every node has a rule."""
        try:
            return not Importer(load(model)).unknown()
        except Error:
            return False


prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
is_compatible = Backend.is_compatible


def coverage() -> dict[str, bool]:
    """Every op of the newest operator set, and whether tilework computes it."""
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated})
    newest = onnx.defs.onnx_opset_version()
    return {name: computes("", name, newest) for name in names}
