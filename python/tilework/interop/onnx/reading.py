"""Reading a model: its bytes, and the arrays in it and in files beside it, checked before memory is taken for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilework.errors import AllocationError, AttrTypeError
from tilework.graph.ir import MOST_ELEMENTS
from tilework.interop.onnx.rules import ModelError


def load(model: Any) -> Any:
    """The model of a file name, bytes or a ModelProto; data it keeps in other files may only lie in its own folder."""
    folder = None
    if isinstance(model, (str, Path)):
        folder = Path(model).resolve().parent
        model = Path(model).read_bytes()
    if isinstance(model, (bytes, bytearray, memoryview)):
        try:
            model = onnx.load_model_from_string(bytes(model))
        except Exception as error:
            raise ModelError(f"onnx: this is no model: {error!s:.200}") from None
    if not isinstance(model, onnx.ModelProto):
        what = f"onnx: model is a {type(model).__name__}; want a file's name, bytes or a ModelProto"
        raise AttrTypeError(what, argument="model")
    if not model.graph.node or not model.opset_import:
        raise ModelError("onnx: this is no model: it has no nodes or no operator set")
    _check_opsets(model)
    for tensor in tensors(model.graph):
        if onnx.external_data_helper.uses_external_data(tensor):
            _read_external(tensor, folder)
    return model


def _check_opsets(model: Any) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        most = newest if entry.domain in ("", "ai.onnx") else entry.version
        if not 1 <= entry.version <= most:
            raise ModelError(
                f"onnx: the model is of operator set {entry.version} of {entry.domain or 'ai.onnx'!r:.40}; want 1 to "
                f"{newest}, the newest that the package onnx knows here"
            )


def tensors(graph: Any) -> Iterator[Any]:
    """Every array in a graph and in the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t,) if attribute.HasField("t") else attribute.tensors
            for inner in (attribute.g,) if attribute.HasField("g") else attribute.graphs:
                yield from tensors(inner)


def structure_of(graph: Any) -> Any:
    """A copy without the arrays, which would be held twice."""
    return onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)


def _read_external(tensor: Any, folder: Path | None) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        raise ModelError(f"onnx: {tensor.name} lies in another file, which a model without a folder does not reach")
    place = where.get("location", "")
    try:
        path = (folder / place).resolve()
        inside = path.is_relative_to(folder) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL in it, a circle of links
        inside = False
    if not inside:
        raise ModelError(f"onnx: {tensor.name} lies in {place!r:.80}; want a file in the model's folder")
    size, want = path.stat().st_size, _bytes_of(tensor)
    offset = _count(tensor, where, "offset", 0)
    length = _count(tensor, where, "length", max(size - offset, 0))
    if offset + length > size or length != want:
        raise ModelError(
            f"onnx: {tensor.name} of {want} bytes is said to be {length} from {offset} on of {place!r:.80}, which has "
            f"{size}; want it inside"
        )
    try:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except MemoryError:
        raise AllocationError(f"onnx: no memory for the {length} bytes of {tensor.name}; want a smaller one") from None
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _count(tensor: Any, where: dict[str, str], key: str, default: int) -> int:
    text = where.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"onnx: {tensor.name} has the {key} {text!r:.40}; want a count of bytes")
    return int(text)


def _check_shape(tensor: Any) -> None:
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims) or math.prod(max(d, 1) for d in dims) > MOST_ELEMENTS:
        raise ModelError(f"onnx: {tensor.name} has shape {dims!s:.80}; want sizes >= 0, at most 2^40 elements in all")


def _bytes_of(tensor: Any) -> int:
    _check_shape(tensor)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError:
        dtype = np.dtype(object)
    if dtype.hasobject:
        raise ModelError(f"onnx: {tensor.name} in another file has element type {tensor.data_type}; want numbers")
    each: int = _PACKED_BITS.get(dtype.name, 8 * dtype.itemsize)
    return -(-int(np.prod(tensor.dims, dtype=np.int64)) * each // 8)


_PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def array(tensor: Any) -> Any:
    """An initialiser, its size checked against its shape."""
    _check_shape(tensor)
    try:
        return np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    except Exception as error:
        raise ModelError(f"onnx: {tensor.name} does not hold what its shape says: {error!s:.200}") from None
