"""Arrays by name as bytes in the safetensors format, which holds no code: a length, a JSON header, then the data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilework.dtypes import named
from tilework.errors import FormatError

_CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_NAMES = {name: code for code, name in _CODES.items()}
_LENGTH = 8  # bytes in front of the header
_LONGEST_HEADER = 100_000_000  # as the format's own reader allows


def dumps(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The arrays and a few words about them as bytes; the data starts at a multiple of 64."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at, parts = 0, []
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise FormatError(f"safetensors: {name} has dtype {array.dtype}; want one of {', '.join(_NAMES)}")
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + _LENGTH) % 64)
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *parts])


def loads(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays in bytes that :func:`dumps` or another writer of the format made, and the words about them."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > min(_LONGEST_HEADER, len(data) - _LENGTH):
        raise FormatError(f"safetensors: {len(data)} bytes cannot hold a header of {length}; want a whole file")
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length])
        metadata = header.pop("__metadata__", {})
        rows = {name: (row["dtype"], tuple(row["shape"]), tuple(row["data_offsets"])) for name, row in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise FormatError(f"safetensors: the header is damaged ({e}); want a whole file") from None
    body = memoryview(data)[_LENGTH + length :]
    return {name: _array(name, body, *row) for name, row in rows.items()}, metadata


def _array(name: str, body: memoryview, code: Any, shape: Any, offsets: Any) -> Any:
    if code not in _CODES:
        raise FormatError(f"safetensors: {name} has dtype {code!r:.20}; want one of {', '.join(_CODES)}")
    dtype = named(_CODES[code])
    whole = [*shape, *offsets]
    if len(offsets) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in whole):
        raise FormatError(f"safetensors: {name} has shape {shape!r:.80} at {offsets!r:.80}; want counts")
    start, stop = offsets
    if stop > len(body) or stop - start != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f"safetensors: {name}, {code} {shape}, is said to be in bytes {start} to {stop} of {len(body)}; "
            f"want {math.prod(shape) * dtype.itemsize} bytes inside"
        )
    return np.frombuffer(body[start:stop], dtype).reshape(shape).copy()
