"""Graphs in files: a zip of ``graph.json``, the structure as text, and ``weights.safetensors``; no code."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework import nested, registry, safetensors
from tilework.devices import to_host
from tilework.dispatch import Number
from tilework.dtypes import KNOWN, named
from tilework.errors import Error, FormatError
from tilework.files import path_of, replacing
from tilework.graph import ir
from tilework.graph.build import Graph, spec
from tilework.graph.ir import Constant, Node, Operand, Placeholder, Value, Variable
from tilework.graph.kernels import Kernel, kernel_named
from tilework.graph.regions import RUNS, Region

if TYPE_CHECKING:
    from tilework.graph.execute import Executable

FORMAT, VERSION = "tilework graph", 1
STRUCTURE, WEIGHTS = "graph.json", "weights.safetensors"
LONGEST_STRUCTURE = 1 << 25  # bytes: some 50 000 nodes


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Writes a graph, its constants and the present values of its variables to a file."""
    weights: dict[str, Any] = {}
    text = json.dumps({"format": FORMAT, "version": VERSION} | _written_graph(graph, weights), indent=1)
    if len(text) > LONGEST_STRUCTURE:
        raise FormatError(f"save: the structure takes {len(text)} bytes; want a graph of at most {LONGEST_STRUCTURE}")
    with replacing(path_of("save", path)) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        file.writestr(STRUCTURE, text)
        with file.open(WEIGHTS, "w", force_zip64=True) as part:
            for piece in safetensors.pieces(weights):
                part.write(piece)


def load(path: str | os.PathLike[str], **options: Any) -> Executable:
    """Reads what ``exe.save(path)`` wrote and compiles it, with the options of ``Graph.compile``.

    Weights are read from the file one by one, as they are packed; it stays open, and must stay as it is. Kernels
    of the user's are looked for by name. A file that is damaged, of another version or of something else is a
    FormatError.
    """
    return load_graph(path).compile(**options)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph in a file."""
    try:
        structure, weights = _read_parts(path_of("load", path))
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RecursionError) as e:
        if isinstance(e, Error):
            raise
        raise FormatError(f"load: {os.fspath(path)!s:.80} is damaged or no tilework graph ({e})") from None
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise FormatError(f"load: {os.fspath(path)!s:.80} is no tilework graph")
    if structure.get("version") != VERSION:
        raise FormatError(f"load: the file has version {structure.get('version')!r:.20}; want {VERSION}")
    try:
        return _read_graph(structure, weights)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as e:
        if isinstance(e, Error):
            raise
        raise FormatError(f"load: {STRUCTURE} is damaged ({type(e).__name__}: {e})") from None


def _read_parts(path: Path) -> tuple[Any, dict[str, Any]]:
    """The structure, and arrays that are read when asked for, of a file whose checksums are right."""
    with path.open("rb") as file, zipfile.ZipFile(file) as parts:
        names = sorted(parts.namelist())
        if names != sorted((STRUCTURE, WEIGHTS)):
            raise FormatError(f"load: the file holds {names!r:.80}; want {STRUCTURE} and {WEIGHTS}")
        packed = [part.filename for part in parts.infolist() if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise FormatError(f"load: {packed[0]} is compressed; want it stored, as save writes it")
        size = parts.getinfo(STRUCTURE).file_size
        if size > LONGEST_STRUCTURE:
            raise FormatError(f"load: {STRUCTURE} has {size} bytes; want at most {LONGEST_STRUCTURE}")
        structure, about = json.loads(parts.read(STRUCTURE)), parts.getinfo(WEIGHTS)
        with parts.open(WEIGHTS) as part:
            while part.read(1 << 20):
                pass
        names_lengths = os.pread(file.fileno(), 4, about.header_offset + 26)
        at = about.header_offset + 30 + sum(struct.unpack("<HH", names_lengths))
        return structure, safetensors.stored(file, at, about.file_size)[0]


# ---------------------------------------------------------------------------------------------------- writing


def _written_graph(graph: Graph, weights: dict[str, Any]) -> dict[str, Any]:
    numbers: dict[Value, int] = {}
    nodes = []
    for node in graph.nodes:
        nodes.append(_written_node(node, numbers, weights))
        for value in node.results:
            numbers[value] = len(numbers)
    labels = {n.op: i for i, n in enumerate(graph.nodes) if isinstance(n.op, Variable)}
    return {
        "name": graph.name,
        "arguments": _written_structure(graph.arguments),
        "statics": {str(i): _written(v, "an argument") for i, v in graph.statics.items()},
        "numbers": {str(i): [n.label, n.value] for i, n in graph.numbers.items()},
        "result": _written_structure(graph.result),
        "inputs": [numbers[v] for v in graph.inputs],
        "outputs": [numbers[v] for v in graph.outputs],
        "updates": [[labels[variable], numbers[state]] for variable, state in graph.states().items()],
        "nodes": nodes,
    }


def _written_node(node: Node, numbers: dict[Value, int], weights: dict[str, Any]) -> dict[str, Any]:
    op = node.op
    row: dict[str, Any] = {"op": op.name, "makes": [[v.dtype.name, list(v.shape)] for v in node.results]}
    if isinstance(op, (Placeholder, Constant, Variable)):
        row["label"] = op.label
        if not isinstance(op, Placeholder):
            row["tensor"] = f"{len(weights)}.{op.label}" if op.label else str(len(weights))
            held = op.again() if isinstance(op, Constant) else op.value
            weights[row["tensor"]] = held if isinstance(held, (np.ndarray, safetensors.Stored)) else to_host(held)
        return row
    if isinstance(op, Kernel):
        row["kernel"] = True
    if isinstance(op, Region):
        row["graphs"] = [_written_graph(g, weights) for g in op.graphs]
        row["counts"] = list(op.counts)
    row["operands"] = [_written_operand(o, numbers) for o in node.operands]
    row["attrs"] = {k: _written(v, f"{op.name}'s {k}") for k, v in node.attrs.items()}
    return row


def _written_operand(operand: Operand, numbers: dict[Value, int]) -> Any:
    if isinstance(operand, Value):
        return numbers[operand]
    if isinstance(operand, tuple):
        return [numbers[v] for v in operand]
    return None if operand is None else {"number": _written(operand, "a number")}


def _written(value: Any, what: str) -> Any:
    """An attribute as JSON has it; what JSON lacks is an object of one key."""
    if isinstance(value, (tuple, list)):
        return [_written(v, what) for v in value]
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Number):
        return {"given": value.label}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        return {"dtype": np.dtype(value).name} if not isinstance(value, np.generic) else value.item()
    except TypeError:
        raise FormatError(f"save: {what} is a {type(value).__name__}, which no file can hold") from None


def _written_structure(structure: nested.Structure | None) -> Any:
    if structure is None or isinstance(structure, nested.Leaf):
        return None if structure is None else "*"
    items = [_written_structure(i) for i in structure.items]
    if structure.keys or issubclass(structure.kind, dict):
        return {"dict": [[_written(k, "a key"), i] for k, i in zip(structure.keys, items, strict=True)]}
    return {"list" if issubclass(structure.kind, list) else "tuple": items}


# ---------------------------------------------------------------------------------------------------- reading


def _read_graph(row: dict[str, Any], weights: dict[str, Any]) -> Graph:
    graph = Graph(str(row["name"]))
    graph.numbers = {int(i): Number(value, str(label)) for i, (label, value) in row["numbers"].items()}
    values: list[Value] = []
    for i, item in enumerate(row["nodes"]):
        node = _read_node(i, item, values, weights, {n.label: n for n in graph.numbers.values()})
        graph.nodes.append(node)
        values += node.results
        made, said = [[v.dtype.name, list(v.shape)] for v in node.results], item["makes"]
        if made != said:
            raise FormatError(f"load: node {i}, {node.op.name}, makes {made} but the file says {said!r:.200}")
    if any(i < 0 for i in (*row["inputs"], *row["outputs"], *(i for pair in row["updates"] for i in pair))):
        raise FormatError("load: an input, a result or an update has a place below 0")
    graph.inputs = [values[i] for i in row["inputs"]]
    fed = [n.results[0] for n in graph.nodes if isinstance(n.op, Placeholder)]
    if len(graph.inputs) != len(fed) or {*graph.inputs} != {*fed} or len({n.node.op.label for n in fed}) != len(fed):
        raise FormatError(
            "load: the inputs of the graph are not its placeholders, each once and with a name of its own"
        )
    graph.outputs = [values[i] for i in row["outputs"]]
    graph.updates = {graph.nodes[i].op: values[state] for i, state in row["updates"]}
    for held, state in graph.updates.items():
        if not isinstance(held, Variable) or (held.shape, held.dtype) != (state.shape, state.dtype):
            raise FormatError(f"load: {held.name!s:.40} is updated by {state!r:.80}; want a variable and its like")
    graph.arguments, graph.result = _read_structure(row["arguments"]), _read_structure(row["result"])
    graph.statics = {int(i): _read(v) for i, v in row["statics"].items()}
    _check_counts(graph)
    return graph


def _check_counts(graph: Graph) -> None:
    for structure, count, what in (
        (graph.arguments, len(graph.inputs) + len(graph.statics) + len(graph.numbers), "arguments"),
        (graph.result, len(graph.outputs), "results"),
    ):
        if structure is not None and sum(1 for _ in nested.paths(structure)) != count:
            raise FormatError(f"load: the structure of the {what} does not have {count} places")


def _read_node(
    i: int, row: dict[str, Any], values: list[Value], weights: dict[str, Any], numbers: dict[str, Number]
) -> Node:
    name = row["op"]
    if name == "placeholder":
        ((dtype, shape),) = row["makes"]
        like = spec(shape, _dtype(dtype))
        return ir.source_node(Placeholder(_label(row)), like.shape, like.dtype)
    if name in ("constant", "variable"):
        if row["tensor"] not in weights:
            raise FormatError(f"load: node {i} wants the tensor {row['tensor']!r:.80}, which the file does not hold")
        data = weights[row["tensor"]]
        if name == "variable" and isinstance(data, safetensors.Stored):
            data = data()
        source = Constant(data, _label(row)) if name == "constant" else Variable(data, _label(row))
        return ir.source_node(source, data.shape, data.dtype)

    def operand(item: Any) -> Operand:
        if isinstance(item, list):
            return tuple(value(n) for n in item)
        if isinstance(item, dict):
            return float(_read(item["number"]))
        return None if item is None else value(item)

    def value(n: int) -> Value:
        if not 0 <= n < len(values):
            raise FormatError(f"load: node {i}, {name!s:.40}, takes value {n}, which no earlier node makes: a cycle")
        return values[n]

    op = _read_op(i, row, weights)
    attrs = {
        str(k): numbers[v["given"]] if isinstance(v, dict) and "given" in v else _read(v)
        for k, v in row["attrs"].items()
    }
    return ir.make_node(op, [operand(o) for o in row["operands"]], attrs)


def _dtype(name: Any) -> Any:
    if name not in KNOWN:
        raise FormatError(f"load: {name!r:.80} is no element type of tilework")
    return named(name)


def _label(row: dict[str, Any]) -> str:
    label = row["label"]
    if not isinstance(label, str):
        raise FormatError(f"load: the label {label!r:.80} is no text")
    return label


def _read_op(i: int, row: dict[str, Any], weights: dict[str, Any]) -> Any:
    name = row["op"]
    if name in RUNS:
        specs = [spec(shape, _dtype(dtype)) for dtype, shape in row["makes"]]
        graphs, counts = [_read_graph(g, weights) for g in row["graphs"]], tuple(row["counts"])
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != len(row["operands"]):
            raise FormatError(f"load: node {i} shares {len(row['operands'])} operands out as {counts!s:.80}")
        for g in graphs:
            if g.arguments is not None or g.result is not None or g.statics or g.numbers or g.updates:
                raise FormatError(f"load: a graph of node {i} has arguments, results or updates; want arrays alone")
        return Region(name, graphs, specs, counts)
    if row.get("kernel"):
        found = kernel_named(name)
        if found is None:
            raise FormatError(f"load: node {i} is the kernel {name!r:.80}; want it made by tw.kernel before loading")
        return found
    try:
        return registry.find(name)
    except (KeyError, TypeError):
        raise FormatError(f"load: node {i} is {name!r:.80}; there is no such op here") from None


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_read, value))
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "slice":
            return slice(*inner)
        return Ellipsis if kind == "ellipsis" else _dtype(inner) if kind == "dtype" else float(inner)
    return value


def _read_structure(row: Any) -> nested.Structure | None:
    if row is None:
        return None
    if row == "*":
        return nested.LEAF
    ((kind, items),) = row.items()
    pairs = items if kind == "dict" else [(None, i) for i in items]
    read = [s for _, item in pairs if (s := _read_structure(item)) is not None]
    keys = tuple(_read(k) for k, _ in pairs) if kind == "dict" else ()
    if any(not isinstance(k, (str, int, float, type(None))) for k in keys):
        raise FormatError(f"load: {keys!s:.80} are keys of a structure; want texts or numbers")
    return nested.Branch({"dict": dict, "list": list, "tuple": tuple}[kind], keys, tuple(read))
