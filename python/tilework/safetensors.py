"""Arrays by name in the safetensors format, which holds no code: a length, a JSON header, then the data."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

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
    "U64": "uint64",
    "U32": "uint32",
    "I16": "int16",
    "I8": "int8",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "BOOL": "bool",
}
_NAMES = {name: code for code, name in _CODES.items()}
_LENGTH = 8  # bytes in front of the header
_LONGEST_HEADER = 100_000_000  # as the format's own reader allows


def dumps(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> bytes:
    """The arrays and a few words about them as bytes; the data starts at a multiple of 64."""
    return b"".join(pieces(arrays, metadata))


def pieces(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """What :func:`dumps` returns, bit by bit; arrays may also be :class:`Stored`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise FormatError(f"safetensors: {name} has dtype {array.dtype}; want one of {', '.join(_NAMES)}")
        end = at + math.prod(array.shape) * array.dtype.itemsize
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + _LENGTH) % 64)
    yield len(text).to_bytes(_LENGTH, "little") + text
    for array in arrays.values():
        yield np.ascontiguousarray(array() if isinstance(array, Stored) else array).tobytes()


def loads(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays in bytes that :func:`dumps` or another writer of the format made, and the words about them."""
    length = _header_length(data[:_LENGTH], len(data))
    rows, metadata = _rows(data[_LENGTH : _LENGTH + length], len(data) - _LENGTH - length)
    body = memoryview(data)[_LENGTH + length :]
    read = {n: np.frombuffer(body[at:end], dtype).reshape(shape).copy() for n, (dtype, shape, at, end) in rows.items()}
    return read, metadata


class Held:
    """A file that stays open as long as this lives, and should stay as it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self.name, self.number = file.name, os.dup(file.fileno())
        self._state = self._now()

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self.number)
        return about.st_size, about.st_mtime_ns

    def has_changed(self) -> bool:
        """Whether somebody has written to it."""
        return self._now() != self._state

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


class Stored:
    """An array in a part of a file: called, it reads it."""

    def __init__(self, file: Held, at: int, dtype: Any, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self._file, self._at = file, at

    def __call__(self) -> Any:
        array = np.empty(self.shape, self.dtype)
        left, at = memoryview(array.reshape(-1).view(np.uint8).data), self._at
        while left:
            count = os.preadv(self._file.number, [left], at)
            if not count:
                break
            left, at = left[count:], at + count
        if left or self._file.has_changed():
            raise FormatError(f"safetensors: {self._file.name} has changed since it was opened; want it as it was")
        return array


def stored(file: IO[bytes], at: int, size: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """The arrays in ``size`` bytes of an open file from ``at`` on, read when asked for, and the words about them."""
    length = _header_length(os.pread(file.fileno(), _LENGTH, at), size)
    rows, metadata = _rows(os.pread(file.fileno(), length, at + _LENGTH), size - _LENGTH - length)
    begin, held = at + _LENGTH + length, Held(file)
    return {n: Stored(held, begin + first, dtype, shape) for n, (dtype, shape, first, _) in rows.items()}, metadata


def _header_length(data: bytes, size: int) -> int:
    length = int.from_bytes(data, "little")
    if len(data) < _LENGTH or length > min(_LONGEST_HEADER, size - _LENGTH):
        raise FormatError(f"safetensors: {size} bytes cannot hold a header of {length}; want a whole file")
    return length


Row = tuple[Any, tuple[int, ...], int, int]  # dtype, shape, first byte and the one behind the last


def _rows(text: bytes, size: int) -> tuple[dict[str, Row], dict[str, str]]:
    """What a header says of the ``size`` bytes behind it."""
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        rows = {name: (row["dtype"], tuple(row["shape"]), tuple(row["data_offsets"])) for name, row in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FormatError(f"safetensors: the header is damaged ({e}); want a whole file") from None
    return {name: _row(name, size, *row) for name, row in rows.items()}, metadata


def _row(name: str, size: int, code: Any, shape: Any, offsets: Any) -> Row:
    if code not in _CODES:
        raise FormatError(f"safetensors: {name} has dtype {code!r:.20}; want one of {', '.join(_CODES)}")
    dtype = named(_CODES[code])
    whole = [*shape, *offsets]
    if len(offsets) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in whole):
        raise FormatError(f"safetensors: {name} has shape {shape!r:.80} at {offsets!r:.80}; want counts")
    start, stop = offsets
    if stop > size or stop - start != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f"safetensors: {name}, {code} {shape}, is said to be in bytes {start} to {stop} of {size}; "
            f"want {math.prod(shape) * dtype.itemsize} bytes inside"
        )
    return dtype, tuple(shape), start, stop
