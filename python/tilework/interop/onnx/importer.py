"""From a model to a graph: every node turned into calls."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx

import tilework as tw
from tilework.errors import Error, UnsupportedError
from tilework.graph import Graph, Symbol
from tilework.interop.onnx import (
    arithmetic as arithmetic,
    drawing as drawing,
    layers as layers,
    movement as movement,
    pooling as pooling,
    quantizing as quantizing,
    recurrent as recurrent,
    reductions as reductions,
    sampling as sampling,
    sequences as sequences,
    signals as signals,
    training as training,
)
from tilework.interop.onnx.reading import array, structure_of
from tilework.interop.onnx.rules import RULES, Draws, ModelError, NeedsResultError, NeedsValueError, NodeView, axis_of
from tilework.operators import Operators

Turns: TypeAlias = tuple[list[Any], list[list[Any]]]  # of a loop: the last states, and rows of results

_SMALL = 4096  # elements: constants below this are worked out by onnx's own reference when the model is prepared
_MOST_TURNS = 256  # of a loop, which is unrolled
_MOST_NODES = 1 << 15  # that a model turns into, loops unrolled


class Fed(NamedTuple):
    """An input of a model: an array, a list of them, or None; a size is None if it differs from run to run."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: Any
    is_list: bool = False
    may_be_none: bool = False


def _fed(info: Any) -> Fed:
    kind = info.type
    may_be_none = kind.HasField("optional_type")
    if may_be_none:
        kind = kind.optional_type.elem_type
    is_list = kind.HasField("sequence_type")
    if is_list:
        kind = kind.sequence_type.elem_type
    if not kind.HasField("tensor_type"):
        raise UnsupportedError(f"onnx: input {info.name} is no tensor, list of tensors or optional one")
    kind = kind.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise UnsupportedError(f"onnx: input {info.name} has element type {kind.elem_type}") from None
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Fed(info.name, shape, dtype, is_list, may_be_none)


class Slot(int):
    """Stands for a result of the graph, by its number."""


# --------------------------------------------------------------------------------------------------------- building


class Importer:
    """Turns a model into a graph for inputs of given shapes, some of them with their values."""

    def __init__(self, model: Any) -> None:
        if len(model.graph.node) > _MOST_NODES:
            raise UnsupportedError(f"onnx: the model has {len(model.graph.node)} nodes; want at most {_MOST_NODES}")
        self.structure = structure_of(model.graph)
        self.opsets = {_domain(entry): entry.version for entry in model.opset_import}
        self.constants = {t.name: array(t) for t in model.graph.initializer}
        self.fed = [_fed(i) for i in model.graph.input if i.name not in self.constants]
        self._check_order()
        self._left = _MOST_NODES
        self._seed = secrets.randbits(62)

    def _check_order(self) -> None:
        made = {"", *self.constants, *(f.name for f in self.fed)}
        for node in self.structure.node:
            for name in node.input:
                if name not in made:
                    raise ModelError(f"onnx: {node.op_type:.40} takes {name!r:.80}, which nothing before it makes")
            for name in filter(None, node.output):
                if name in made:
                    raise ModelError(f"onnx: {node.op_type:.40} makes {name!r:.80} again; want a name of its own")
                made.add(name)
        for output in self.structure.output:
            if output.name not in made or not output.name:
                raise ModelError(f"onnx: the result {output.name!r:.80} is made by nothing")

    def unknown(self) -> list[str]:
        """Why nodes are not computed, of those whose op is not in the table and stands for no others."""
        found = []
        for i, node in enumerate(self.structure.node):
            if not computes(_domain(node), node.op_type, self.opsets.get(_domain(node), 1)):
                found.append(f"{_label(i, node)}: tilework has no {node.op_type}")
        return found

    def build(
        self, shapes: dict[str, Any], values: dict[str, Any], computed: Sequence[Any] = ()
    ) -> tuple[Graph, dict[str, Any]]:
        """The graph, and the model's results by name: slots, what is known beforehand, and lists of both.

        ``computed`` are the results of the graphs that a ``NeedsResultError`` brought before.
        """
        self._left = _MOST_NODES
        graph = Graph(self.structure.name or "model")
        self._draws = Draws(graph, self._seed, computed)
        held: dict[str, Any] = {"": None} | self.constants
        for fed in self.fed:
            made = _placeholders(graph, fed, shapes[fed.name])
            held[fed.name] = values.get(fed.name, made)
        refused: list[str] = []
        for i, node in enumerate(self.structure.node):
            if any(name not in held for name in node.input):
                continue  # it stands behind a node that was refused
            try:
                self._take(node, held, self.opsets)
            except (Error, MemoryError) as error:
                refused.append(f"{_label(i, node)}: {str(error).partition(chr(10))[0]}")
        if refused:
            raise refusal(refused)
        missing = [output.name for output in self.structure.output if output.name not in held]
        if missing:
            raise ModelError(f"onnx: the result {missing[0]!r:.80} is none of what its node gives")

        def given_back(value: Any) -> Any:
            if isinstance(value, list):
                return [given_back(v) for v in value]
            if not isinstance(value, Symbol):
                return value
            graph.output(value)
            return Slot(len(graph.outputs) - 1)

        return graph, {output.name: given_back(held[output.name]) for output in self.structure.output}

    def _take(self, node: Any, held: dict[str, Any], opsets: dict[str, int]) -> None:
        """Adds the results of a node to what is held by name."""
        self._left -= 1
        if self._left < 0:
            raise UnsupportedError(f"the model turns into more than {_MOST_NODES} nodes")
        try:
            made = self._run(node, [held[name] for name in node.input], held, opsets)
        except (Error, NeedsResultError, NeedsValueError, MemoryError):
            raise
        except _CONTRADICTIONS as error:
            what = f"{type(error).__name__}: {error!s:.200}"
            raise ModelError(f"{node.op_type:.40} with {len(node.input)} inputs contradicts itself ({what})") from None
        held.update((name, value) for name, value in zip(node.output, made, strict=False) if name)

    def _run(self, node: Any, inputs: list[Any], held: dict[str, Any], opsets: dict[str, int]) -> tuple[Any, ...]:
        domain = _domain(node)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if (domain, node.op_type) in _CONTROL:
            return self._control(node, inputs, held, opsets)
        if (domain, node.op_type) == _GRADIENT:
            return self._gradient(node, held, opsets)
        fixed = bool(inputs) and not any(isinstance(v, (Operators, list)) for v in inputs)
        if (
            fixed
            and (domain, node.op_type) not in _PLAIN
            and sum(np.size(v) for v in inputs if v is not None) <= _SMALL
        ):
            return self._known(node, inputs, opsets)
        view = NodeView(node, opsets.get(domain, 1), self._draws)
        rule = RULES.get((domain, node.op_type))
        if rule is None:
            return self._body(node, inputs, opsets, UnsupportedError(f"tilework has no {node.op_type}"))
        try:
            made = rule(view, *inputs)
            view.check_read()
        except UnsupportedError as error:
            return self._body(node, inputs, opsets, error)
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    # ---- nodes that stand for others

    def _body(self, node: Any, inputs: list[Any], opsets: dict[str, int], why: Exception) -> tuple[Any, ...]:
        """The nodes that ONNX says a node stands for, or ``why`` if there are none."""
        function = _function(node, inputs, opsets.get(_domain(node), 1))
        if function is None:
            raise why
        body, given = function
        held: dict[str, Any] = {"": None} | dict.fromkeys(body.input)
        held.update(zip(body.input, inputs, strict=False))
        newest = {"": onnx.defs.onnx_opset_version()}
        inner = newest | opsets | {_domain(entry): entry.version for entry in body.opset_import}
        for each in body.node:
            self._take(_bound(each, given), held, inner)
        return tuple(held.get(name) for name in body.output)

    def _control(self, node: Any, inputs: list[Any], held: dict[str, Any], opsets: dict[str, int]) -> tuple[Any, ...]:
        """Choices and loops that are decided when the model is prepared: the one branch, or the turns one by one."""
        view = NodeView(node, opsets.get(_domain(node), 1), self._draws)
        if node.op_type == "If":
            branch = "then_branch" if view.known(inputs[0], "cond").any() else "else_branch"
            return self._inside(view.attributes[branch], [], held, opsets)
        body = view.attributes["body"]
        states, rows = (
            self._loop(view, body, inputs, held, opsets)
            if node.op_type == "Loop"
            else (self._scan if view.opset > 8 else self._scan_of_batches)(view, body, inputs, held, opsets)
        )
        axes = view.attributes.get("scan_output_axes") or [0] * len(rows)
        return *states, *(_stacked(each, axis) for each, axis in zip(rows, axes, strict=True))

    def _loop(self, view: NodeView, body: Any, inputs: list[Any], held: Any, opsets: Any) -> Turns:
        turns = _MOST_TURNS + 1 if inputs[0] is None else int(view.scalar(inputs[0], "M"))
        going = np.True_ if len(inputs) < 2 or inputs[1] is None else view.known(inputs[1], "cond")
        states, count = list(inputs[2:]), len(inputs) - 2
        rows: list[list[Any]] = [[] for _ in body.output[1 + count :]]
        for turn in range(turns):
            if not np.any(going):
                break
            view.want(turn < _MOST_TURNS, f"more than {_MOST_TURNS} turns")
            going, *made = self._inside(body, [np.asarray(turn, np.int64), going, *states], held, opsets)
            going = view.known(going, "cond")
            states = made[:count]
            for row, value in zip(rows, made[count:], strict=True):
                row.append(value)
        return states, rows

    def _scan(self, view: NodeView, body: Any, inputs: list[Any], held: Any, opsets: Any) -> Turns:
        count = view.get("num_scan_inputs")
        states, over = list(inputs[:-count]), inputs[-count:]
        axes = view.attributes.get("scan_input_axes") or [0] * count
        back = view.attributes.get("scan_input_directions") or view.attributes.get("directions") or [0] * count
        turned = [_axis_first(x, a) for x, a in zip(over, axes, strict=True)]
        turns = turned[0].shape[0]
        view.want(all(x.shape[0] == turns for x in turned), "inputs of several lengths")
        view.want(turns <= _MOST_TURNS, f"more than {_MOST_TURNS} turns")
        view.want(not any(view.attributes.get("scan_output_directions") or ()), "results from the end")
        rows: list[list[Any]] = [[] for _ in body.output[len(states) :]]
        for turn in range(turns):
            now = [x[turns - 1 - turn if b else turn] for x, b in zip(turned, back, strict=True)]
            made = self._inside(body, [*states, *now], held, opsets)
            states = list(made[: len(states)])
            for row, value in zip(rows, made[len(states) :], strict=True):
                row.append(value)
        return states, rows

    def _scan_of_batches(self, view: NodeView, body: Any, inputs: list[Any], held: Any, opsets: Any) -> Turns:
        """Scan of operator set 8: a first input of lengths, and a batch, each of which is a scan."""
        lengths, *batches = inputs
        view.want(lengths is None, "lengths of its own for each of a batch")
        each = [self._scan(view, body, [x[i] for x in batches], held, opsets) for i in range(batches[0].shape[0])]
        states = [_stacked(list(made), 0) for made in zip(*(states for states, _ in each), strict=True)]
        return states, [[_stacked(row, 0) for row in made] for made in zip(*(rows for _, rows in each), strict=True)]

    def _gradient(self, node: Any, held: dict[str, Any], opsets: dict[str, int]) -> tuple[Any, ...]:
        """Gradients of one value in others: the nodes before are taken once more, and followed."""
        view = NodeView(node, opsets.get(_domain(node), 1))
        names, goal = [x.decode() for x in view.attributes["xs"]], view.get("y")

        def follow(*values: Any) -> Any:
            own = held | dict(zip(names, values, strict=True))
            for each in self.structure.node:
                if own[goal] is held[goal] and not {*names} & {*each.output}:
                    self._take(each, own, opsets)
            return own[goal]

        y, pull = tw.vjp(follow, *(held[name] for name in names))
        return pull(np.ones(tuple(y.shape), y.dtype))

    def _inside(self, graph: Any, inputs: list[Any], held: dict[str, Any], opsets: dict[str, int]) -> tuple[Any, ...]:
        """The results of a graph within a node, which sees what is held around it."""
        own = held | {t.name: array(t) for t in graph.initializer}
        own.update(zip((i.name for i in graph.input), inputs, strict=True))
        for node in graph.node:
            self._take(node, own, opsets)
        return tuple(own[output.name] for output in graph.output)

    @staticmethod
    def _known(node: Any, inputs: list[Any], opsets: dict[str, int]) -> tuple[Any, ...]:
        """Results of constants, by onnx's reference: shapes and the like, once, when the model is prepared."""
        from onnx.reference import ReferenceEvaluator

        feeds = {n: np.asarray(v) for n, v in zip(node.input, inputs, strict=False) if v is not None}
        infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in feeds]
        results = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output if n]
        graph = onnx.helper.make_graph([node], "constant", infos, results)
        imports = [onnx.helper.make_opsetid(name, version) for name, version in opsets.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        try:
            made = iter(ReferenceEvaluator(model).run(None, feeds))
        except Exception as error:
            raise ModelError(f"{node.op_type:.40} of constants: {error!s:.200}") from None
        return tuple(_plain(next(made)) if name else None for name in node.output)


def _plain(value: Any) -> Any:
    """A value of onnx's reference as this importer holds it."""
    return [np.asarray(v) for v in value] if isinstance(value, list) else None if value is None else np.asarray(value)


def _placeholders(graph: Graph, fed: Fed, shape: Any) -> Any:
    """What is fed under a name, given its shape: of a list a tuple of shapes, None of nothing."""
    if shape is None:
        return None
    if fed.is_list:
        return [graph.placeholder(f"{fed.name}[{i}]", s, fed.dtype) for i, s in enumerate(shape)]
    return graph.placeholder(fed.name, shape, fed.dtype)


def _domain(of: Any) -> str:
    return "" if of.domain == "ai.onnx" else of.domain


def _axis_first(x: Any, axis: int) -> Any:
    axis = axis_of(axis, len(x.shape))
    return tw.transpose(x, (axis, *(a for a in range(len(x.shape)) if a != axis)))


def _stacked(values: list[Any], axis: int) -> Any:
    """Results of the turns of a loop, joined along a new axis."""
    axis = axis_of(axis, len(values[0].shape) + 1)
    rows = [tw.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in values]
    return tw.concat(rows, axis=axis)


def _bound(node: Any, given: dict[str, Any]) -> Any:
    """A node of a function, with the attributes that it takes from the node that calls it."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            bound.attribute.append(given[attribute.ref_attr_name])
            bound.attribute[-1].name = attribute.name
    return bound


def _schema(domain: str, kind: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(kind, opset, domain)
    except (onnx.defs.SchemaError, TypeError):  # a name may be no text at all
        return None


# What a rule runs into when a node's attributes, inputs and outputs do not go together.
_CONTRADICTIONS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RecursionError)
_DRAWING = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
_PLAIN = {("", kind) for kind in ("ConstantOfShape", "Shape", *_DRAWING)}  # which onnx's reference is not asked about
_CONTROL = {("", "If"), ("", "Loop"), ("", "Scan")}
_GRADIENT = ("ai.onnx.preview.training", "Gradient")


def computes(domain: str, kind: str, opset: int) -> bool:
    """Whether there is a rule for an op, or ONNX says what other ops it stands for."""
    if (domain, kind) in RULES or (domain, kind) in {*_CONTROL, _GRADIENT}:
        return True
    schema = _schema(domain, kind, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _function(node: Any, inputs: list[Any], opset: int) -> Any:
    """The function of ONNX that a node stands for, and its attributes with their defaults; None if there is none."""
    schema = _schema(_domain(node), node.op_type, opset)
    if schema is None:
        return None
    whole = onnx.NodeProto()
    whole.CopyFrom(node)
    named = {a.name for a in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in named and attribute.default_value.name:
            whole.attribute.append(attribute.default_value)
    made = onnx.FunctionProto()
    plain = [v for v in schema.function_opset_versions if v <= opset]
    if plain:
        made.ParseFromString(schema.get_function_with_opset_version(max(plain)))
    else:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if not versions:
            return None
        types = [_type_of(v).SerializeToString() for v in inputs]
        text = schema.get_context_dependent_function_with_opset_version(max(versions), whole.SerializeToString(), types)
        made.ParseFromString(text)
    return made, {a.name: a for a in whole.attribute}


def _type_of(value: Any) -> Any:
    if value is None:
        return onnx.TypeProto()
    if isinstance(value, list):
        return onnx.helper.make_sequence_type_proto(_type_of(value[0] if value else np.zeros(0, np.float32)))
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_type_proto(code, tuple(value.shape))


def _label(i: int, node: Any) -> str:
    return f"node {i}" + (f" ({node.name:.80})" if node.name else "")


def refusal(reasons: list[str]) -> UnsupportedError:
    if len(reasons) == 1:
        return UnsupportedError(f"onnx: {reasons[0]}")
    return UnsupportedError(f"onnx: {len(reasons)} nodes are not computed:\n  " + "\n  ".join(reasons))
