"""From a model to graphs, one per set of input shapes, and the interface of ``onnx.backend``."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.backend.base import Backend as BackendBase, BackendRep

from tilework import dispatch
from tilework.errors import AttrTypeError, DTypeError, Error, ShapeError, UnsupportedError
from tilework.graph import Executable, Graph, Symbol
from tilework.interop.onnx import arithmetic as arithmetic, layers as layers, movement as movement
from tilework.interop.onnx.rules import RULES, ModelError, NeedsValueError, NodeView

_KEPT = 16  # graphs of one model, by shapes of what was fed
_SMALL = 4096  # elements: constants below this are worked out by onnx's own reference when the model is prepared


# ---------------------------------------------------------------------------------------------------------- reading


def load(model: Any) -> Any:
    """The model of a file name, bytes or a ModelProto; data it keeps in other files may only lie in its own folder."""
    if isinstance(model, onnx.ModelProto):
        return model
    folder = None
    try:
        if isinstance(model, (str, Path)):
            folder = Path(model).resolve().parent
            model = Path(model).read_bytes()
        proto = onnx.load_model_from_string(bytes(model))
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"onnx: this is no model: {error}") from None
    if not proto.graph.node or not proto.opset_import:
        raise ModelError("onnx: this is no model: it has no nodes or no operator set")
    for tensor in _tensors(proto.graph):
        if onnx.external_data_helper.uses_external_data(tensor):
            _read_external(tensor, folder)
    return proto


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t,) if attribute.HasField("t") else attribute.tensors


def _read_external(tensor: Any, folder: Path | None) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        raise ModelError(f"onnx: {tensor.name} lies in another file, which a model without a folder does not reach")
    path = (folder / where.get("location", "")).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise ModelError(f"onnx: {tensor.name} lies in {where.get('location')!r}; want a file in the model's folder")
    offset, length = int(where.get("offset", 0)), where.get("length")
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read() if length is None else file.read(int(length))
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _array(tensor: Any) -> Any:
    """An initialiser, its size checked against its shape."""
    if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > 2**40:
        raise ModelError(f"onnx: {tensor.name} has shape {tuple(tensor.dims)}")
    try:
        return np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    except Exception as error:
        raise ModelError(f"onnx: {tensor.name} does not hold what its shape says: {error}") from None


class Fed(NamedTuple):
    """An input of a model: None for a size that differs from run to run."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: Any


def _fed(info: Any) -> Fed:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        raise UnsupportedError(f"onnx: input {info.name} is no tensor")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise UnsupportedError(f"onnx: input {info.name} has element type {kind.elem_type}") from None
    if not kind.HasField("shape"):
        return Fed(info.name, None, dtype)
    return Fed(info.name, tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim), dtype)


# --------------------------------------------------------------------------------------------------------- building


class Importer:
    """Turns a model into a graph for inputs of given shapes, some of them with their values."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.opsets = {_domain(entry): entry.version for entry in model.opset_import}
        self.constants = {t.name: _array(t) for t in model.graph.initializer}
        self.fed = [_fed(i) for i in model.graph.input if i.name not in self.constants]
        self._check_order()

    def _check_order(self) -> None:
        made = {"", *self.constants, *(f.name for f in self.fed)}
        for node in self.model.graph.node:
            for name in node.input:
                if name not in made:
                    raise ModelError(f"onnx: {node.op_type} takes {name!r}, which nothing before it makes")
            made.update(node.output)
        for output in self.model.graph.output:
            if output.name not in made:
                raise ModelError(f"onnx: the result {output.name!r} is made by nothing")

    def unknown(self) -> list[str]:
        """Why nodes are not computed, of those whose op is not in the table."""
        found = []
        for i, node in enumerate(self.model.graph.node):
            if (_domain(node), node.op_type) not in RULES:
                found.append(f"{_label(i, node)}: tilework has no {node.op_type}")
        return found

    def build(self, shapes: dict[str, tuple[int, ...]], values: dict[str, Any]) -> tuple[Graph, dict[str, Any]]:
        """The graph, and the results that are known beforehand."""
        graph = Graph(self.model.graph.name or "model")
        held: dict[str, Any] = {"": None} | self.constants
        for fed in self.fed:
            made = graph.placeholder(fed.name, shapes[fed.name], fed.dtype)
            held[fed.name] = values.get(fed.name, made)
        refused: list[str] = []
        for i, node in enumerate(self.model.graph.node):
            if any(name not in held for name in node.input):
                continue  # it stands behind a node that was refused
            inputs = [held[name] for name in node.input]
            try:
                held.update(zip(node.output, self._run(node, inputs), strict=False))
            except (Error, MemoryError) as error:
                refused.append(f"{_label(i, node)}: {str(error).partition(chr(10))[0]}")
        if refused:
            raise _refusal(refused)
        ready = {}
        for output in self.model.graph.output:
            value = held[output.name]
            if isinstance(value, Symbol):
                graph.output(value)
            else:
                ready[output.name] = value
        return graph, ready

    def _run(self, node: Any, inputs: list[Any]) -> tuple[Any, ...]:
        domain = _domain(node)
        while inputs and inputs[-1] is None:
            inputs.pop()
        view = NodeView(node, self.opsets.get(domain, 1))
        rule = RULES.get((domain, node.op_type))
        fixed = bool(inputs) and not any(isinstance(v, Symbol) for v in inputs)
        if fixed and sum(np.size(v) for v in inputs if v is not None) <= _SMALL:
            return self._known(node, inputs)
        if rule is None:
            raise UnsupportedError(f"tilework has no {node.op_type}")
        try:
            made = rule(view, *inputs)
        except TypeError as error:
            if isinstance(error, Error):
                raise
            raise ModelError(f"{node.op_type} with {len(inputs)} inputs: {error}") from None
        view.check_read()
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    def _known(self, node: Any, inputs: list[Any]) -> tuple[Any, ...]:
        """Results of constants, by onnx's reference: shapes and the like, once, when the model is prepared."""
        from onnx.reference import ReferenceEvaluator

        feeds = {n: np.asarray(v) for n, v in zip(node.input, inputs, strict=False) if v is not None}
        infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in feeds]
        results = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output if n]
        graph = onnx.helper.make_graph([node], "constant", infos, results)
        model = onnx.helper.make_model(graph, opset_imports=list(self.model.opset_import))
        try:
            made = iter(ReferenceEvaluator(model).run(None, feeds))
        except Exception as error:
            raise ModelError(f"{node.op_type} of constants: {error}") from None
        return tuple(np.asarray(next(made)) if name else None for name in node.output)


def _domain(of: Any) -> str:
    return "" if of.domain == "ai.onnx" else of.domain


def _label(i: int, node: Any) -> str:
    return f"node {i}" + (f" ({node.name})" if node.name else "")


def _refusal(reasons: list[str]) -> UnsupportedError:
    return UnsupportedError(f"onnx: {len(reasons)} nodes are not computed:\n  " + "\n  ".join(reasons))


# ---------------------------------------------------------------------------------------------------------- running


class Prepared(BackendRep):  # type: ignore[misc]
    """A model that is ready to run; graphs are built for the shapes that are fed, and kept."""

    def __init__(self, model: Any, device: Any = None, threads: int | None = None) -> None:
        self.importer = Importer(load(model))
        self.device, self.threads = device, threads
        unknown = self.importer.unknown()
        if unknown:
            raise _refusal(unknown)
        self.inputs = self.importer.fed
        self.outputs = [o.name for o in self.importer.model.graph.output]
        self._by_value: set[str] = set()
        self._graphs: OrderedDict[Any, tuple[Executable | None, list[str], dict[str, Any]]] = OrderedDict()
        shapes = {f.name: f.shape for f in self.inputs}
        if all(s is not None and None not in s for s in shapes.values()):
            self._graph(shapes, {})

    def _graph(self, shapes: dict[str, Any], feeds: dict[str, Any]) -> Any:
        while True:
            values = {n: feeds[n] for n in self._by_value if n in feeds}
            key = tuple(shapes.items()), tuple((n, v.tobytes()) for n, v in sorted(values.items()))
            if key in self._graphs:
                self._graphs.move_to_end(key)
                return self._graphs[key]
            try:
                graph, ready = self.importer.build(shapes, values)
            except NeedsValueError as need:
                self._by_value.add(need.label)
                if not feeds:
                    return None  # known at the first run
                continue
            names = [name for name in self.outputs if name not in ready]
            run = graph.compile(device=self.device, threads=self.threads) if names else None
            self._graphs[key] = run, names, ready
            if len(self._graphs) > _KEPT:
                self._graphs.popitem(last=False)
            return self._graphs[key]

    def build(self, inputs: Any) -> None:
        """Builds and compiles for inputs like these, as the first run with them would."""
        feeds = self._feeds(inputs)
        self._graph({n: tuple(v.shape) for n, v in feeds.items()}, feeds)

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """The results, in the model's order, of arrays in the order of its inputs or by name."""
        feeds = self._feeds(inputs)
        run, names, ready = self._graph({n: tuple(v.shape) for n, v in feeds.items()}, feeds)
        made = run(*feeds.values()) if run is not None else ()
        made = made if isinstance(made, tuple) else (made,)
        results = dict(zip(names, made, strict=True)) | ready
        return tuple(results[name] for name in self.outputs)

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        names = [f.name for f in self.inputs]
        given = dict(inputs) if isinstance(inputs, dict) else dict(zip(names, inputs, strict=False))
        if set(given) != set(names) or (not isinstance(inputs, dict) and len(inputs) != len(names)):
            raise AttrTypeError(f"onnx: {len(inputs)} inputs; want {', '.join(names) or 'none'}")
        feeds = {}
        for fed in self.inputs:
            value = given[fed.name]
            array = value if dispatch.is_device_array(value) else np.asarray(value)
            if array.dtype != fed.dtype:
                raise DTypeError(f"onnx: {fed.name} has dtype {array.dtype}; want {fed.dtype}", argument=fed.name)
            fits = fed.shape is None or (
                len(fed.shape) == len(array.shape)
                and all(w in (None, s) for w, s in zip(fed.shape, array.shape, strict=True))
            )
            if not fits:
                raise ShapeError(f"onnx: {fed.name} has shape {array.shape}; want {fed.shape}", argument=fed.name)
            feeds[fed.name] = array
        return feeds


class Backend(BackendBase):  # type: ignore[misc]
    """tilework as a backend of ONNX: what ``onnx.backend.test`` and others drive."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **options: Any) -> Prepared:
        """A model ready to run. ``device`` is "CPU" or what ``tilework.to_device`` takes."""
        return Prepared(model, None if device == "CPU" else device, options.get("threads"))

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
    return {name: ("", name) in RULES for name in names}
