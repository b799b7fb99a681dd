"""The path of a call: arguments, out, errors, DLPack in and out, pickling, the GIL, Ctrl-C, and what a call costs."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import pydoc
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core
from tilework.registry import ops

LOOSE: Any = tw  # for calls that mypy would refuse

# ---------------------------------------------------------------------------------------------------- arguments


@pytest.fixture
def x() -> Any:
    return np.arange(-6, 6, dtype=np.float32).reshape(3, 4)


def test_operands_may_be_given_by_keyword(x: Any) -> None:
    w = np.ones((2, 4), np.float32)
    want = tw.linear(x, w)
    assert np.array_equal(tw.linear(x=x, w=w), want)
    assert np.array_equal(tw.linear(w=w, x=x, b=None), want)
    assert np.array_equal(tw.linear(x, w=w, **{"activation": None}), want)


def _error(error: type[tw.Error], call: Callable[[], Any]) -> Any:
    with pytest.raises(error) as caught:
        call()
    return caught.value


def test_wrong_arguments_name_the_op_and_the_argument(x: Any) -> None:
    for error, call, op, argument, text in (
        (tw.AttrTypeError, lambda: LOOSE.relu(), "relu", "x", "x is missing"),
        (tw.AttrTypeError, lambda: LOOSE.relu(x, x), "relu", "", "2 positional arguments; want at most 1"),
        (tw.AttrTypeError, lambda: LOOSE.relu(x, x=x), "relu", "x", "x is given twice"),
        (tw.AttrTypeError, lambda: LOOSE.relu(x, y=x), "relu", "", "unknown argument 'y'"),
        (
            tw.AttrTypeError,
            lambda: LOOSE.softmax(x, axis=1.0),
            "softmax",
            "axis",
            "axis=1.0 is a float; want None, an int or",
        ),
        (tw.AttrTypeError, lambda: LOOSE.conv_dx(x, x), "conv_dx", "shape", "shape is missing"),
        (tw.AttrError, lambda: tw.softmax(x, axis=2), "softmax", "axis", "axis=2"),
        (tw.AttrError, lambda: tw.softmax(x, axis=1 << 70), "softmax", "axis", "axis=1180591620717411303424"),
        (tw.DTypeError, lambda: tw.relu(x.astype(np.int32)), "relu", "x", "x has dtype int32"),
        (tw.DTypeError, lambda: tw.relu([1.0]), "relu", "x", "x is a list"),
        (tw.DTypeError, lambda: tw.relu(None), "relu", "x", "x is None"),
        (tw.DTypeError, lambda: tw.relu(x.astype(">f4")), "relu", "x", "native byte order"),
        (tw.ShapeError, lambda: tw.linear(x, x.T), "linear", "w", "x has"),
        (tw.ShapeError, lambda: tw.relu(np.ones((1,) * 9)), "relu", "x", "x has 9 dimensions; want at most 8"),
    ):
        raised = _error(error, call)
        assert (raised.op, raised.argument) == (op, argument), raised
        assert str(raised).startswith(f"{op}: "), raised
        assert text in str(raised), raised


def test_errors_are_the_built_in_ones_too() -> None:
    pairs = [(tw.ShapeError, ValueError), (tw.DTypeError, TypeError), (tw.AttrError, ValueError)]
    pairs += [(tw.AttrTypeError, TypeError), (tw.IndexContentError, IndexError), (tw.DeviceError, RuntimeError)]
    pairs += [(tw.UnsupportedError, NotImplementedError), (tw.AllocationError, MemoryError)]
    for ours, built_in in pairs:
        assert issubclass(ours, built_in)
        assert issubclass(ours, tw.Error)


def test_an_error_survives_pickling(x: Any) -> None:
    raised = _error(tw.AttrError, lambda: tw.softmax(x, axis=2))
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again), again.op, again.argument) == (tw.AttrError, str(raised), "softmax", "axis")


# ---------------------------------------------------------------------------------------------------------- out


def test_out_is_filled_and_returned(x: Any) -> None:
    out = np.full_like(x, 7)
    assert tw.relu(x, out=out) is out
    assert np.array_equal(out, np.maximum(x, 0))
    assert tw.relu(x, out=None) is not out
    assert tw.relu(x, out=(out,)) is out
    assert tw.relu(x, out=x) is x
    assert np.array_equal(x, out)


def test_out_of_several_results_is_a_tuple() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    y, indices = np.empty((1, 1, 2, 2), np.float32), np.empty((1, 1, 2, 2), np.int64)
    given = tw.max_pool(x, kernel=2, return_indices=True, out=(y, indices))
    assert given[0] is y
    assert given[1] is indices
    assert indices.ravel().tolist() == [5, 7, 13, 15]
    assert _error(tw.AttrTypeError, lambda: tw.max_pool(x, kernel=2, return_indices=True, out=y)).argument == "out"
    shared = np.empty(8, np.int64)
    both = (shared.view(np.float32)[:4].reshape(y.shape), shared[:4].reshape(y.shape))
    assert "out[0]" in str(_error(tw.ShapeError, lambda: tw.max_pool(x, kernel=2, return_indices=True, out=both)))


def test_a_wrong_out_is_refused_before_it_is_written(x: Any) -> None:
    locked = np.full_like(x, 7)
    locked.flags.writeable = False
    line = np.full(24, 7, np.float32)
    for out, error, text in (
        (np.full((4, 3), 7, np.float32), tw.ShapeError, "out has shape (4, 3); want (3, 4)"),
        (np.full((3, 4), 7, np.float64), tw.DTypeError, "out has dtype float64; want float32"),
        (locked, tw.ShapeError, "out is read-only"),
        (np.lib.stride_tricks.as_strided(line, (3, 4), (4, 4)), tw.ShapeError, "elements of out share memory"),
        (np.frombuffer(bytearray(b"7" * 49), np.uint8)[1:49].view(np.float32).reshape(3, 4), tw.ShapeError, "aligned"),
        ([0.0], tw.DTypeError, "out is a list"),
    ):
        before = out.tobytes() if isinstance(out, np.ndarray) else b""
        raised = _error(error, lambda out=out: tw.relu(x, out=out))  # type: ignore[misc]
        assert text in str(raised), raised
        assert (raised.op, raised.argument) == ("relu", "out")
        assert before == (out.tobytes() if isinstance(out, np.ndarray) else b"")


def test_an_out_that_partly_overlaps_an_operand_is_refused() -> None:
    line = np.arange(13, dtype=np.float32)
    raised = _error(tw.ShapeError, lambda: tw.relu(line[:12], out=line[1:]))
    assert "out shares memory with x" in str(raised)
    square = np.ones((4, 4), np.float32)
    assert "shares memory" in str(_error(tw.ShapeError, lambda: tw.matmul(square, square, out=square)))
    assert np.array_equal(line, np.arange(13))


def test_read_only_operands_are_read(x: Any) -> None:
    x.flags.writeable = False
    assert np.array_equal(tw.relu(x), np.maximum(x, 0))
    assert _error(tw.ShapeError, lambda: tw.sgd_step(x, x.copy(), lr=0.1)).argument == "w"


def test_results_are_aligned_and_free_their_memory() -> None:
    for n in (1, 1000, 100_000, 1 << 20):
        y = tw.relu(np.ones(n, np.float32))
        if n >= 1000 << 4:
            assert y.ctypes.data % 64 == 0
    del y
    gc.collect()
    live = _core.pool_stats()[1]
    y = tw.relu(np.ones(1 << 20, np.float32))
    assert _core.pool_stats()[1] == live + 1
    del y
    assert _core.pool_stats()[1] == live


# ------------------------------------------------------------------------------------------------------- DLPack


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("dl_tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _Tensor),
    )


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Producer:
    """Describes six float32 (0 to 5) as a 2 x 3 array by DLPack; whatever is given replaces that field."""

    def __init__(self, *, versioned: bool = True, name: bytes = b"", **fields: Any) -> None:
        self.memory = np.arange(64, dtype=np.float32)
        self.deleted = 0
        self.device = fields.pop("device", (1, 0))
        self.name = name or (b"dltensor_versioned" if versioned else b"dltensor")
        self.managed = _Versioned() if versioned else _Managed()
        self._delete = _Deleter(self._count)
        if fields.pop("deleter", True):
            self.managed.deleter = self._delete
        if versioned:
            self.managed.major, self.managed.flags = fields.pop("major", 1), fields.pop("flags", 0)
        tensor = self.managed.dl_tensor
        shape, strides = fields.pop("shape", (2, 3)), fields.pop("strides", (3, 1))
        self._shape = None if shape is None else (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        if self._shape is not None:
            tensor.shape = ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64))
        if self._strides is not None:
            tensor.strides = ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64))
        tensor.ndim = fields.pop("ndim", 2 if shape is None else len(shape))
        tensor.device = _Device(fields.pop("device_type", 1), 0)
        tensor.dtype = _DataType(*fields.pop("dtype", (2, 32, 1)))
        tensor.data = fields.pop("data", self.memory.ctypes.data) + fields.pop("shift", 0) or None
        tensor.byte_offset = fields.pop("byte_offset", 0)
        assert not fields, fields

    def _count(self, _: int) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return _new_capsule(ctypes.addressof(self.managed), self.name, None)


SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("versioned", [False, True])
def test_dlpack_arrays_are_borrowed_and_given_back_once(versioned: bool) -> None:
    producer = Producer(versioned=versioned)
    borrowed = tw.from_dlpack(producer)
    assert np.array_equal(borrowed, SIX)
    assert borrowed.ctypes.data == producer.memory.ctypes.data, "copied"
    assert producer.deleted == 0
    del borrowed
    gc.collect()
    assert producer.deleted == 1
    assert np.array_equal(tw.relu(Producer(versioned=versioned)), SIX)
    assert np.array_equal(tw.add(Producer(versioned=versioned), SIX), SIX + SIX)


def test_dlpack_descriptors_that_are_odd_but_right() -> None:
    for fields, want in (
        ({"strides": None}, SIX),
        ({"strides": (1, 2)}, np.array([[0, 2, 4], [1, 3, 5]])),
        ({"strides": (-3, 1), "shift": 12}, SIX[::-1]),
        ({"strides": (0, 0)}, np.zeros((2, 3))),
        ({"byte_offset": 4}, SIX + 1),
        ({"shape": (), "strides": None, "ndim": 0}, np.zeros(())),
        ({"shape": (0, 3), "data": 0}, np.zeros((0, 3))),
        ({"shape": (1, 3), "strides": (1 << 62, 1)}, SIX[:1]),
        ({"deleter": False}, SIX),
        ({"dtype": (0, 8, 1), "shape": (4,), "strides": (1,)}, np.zeros(4)),
    ):
        borrowed = tw.from_dlpack(Producer(**fields))
        assert borrowed.shape == want.shape
        assert np.array_equal(borrowed, want), fields


def test_a_read_only_dlpack_array_stays_so() -> None:
    producer = Producer(flags=1)
    assert not tw.from_dlpack(producer).flags.writeable
    assert _error(tw.ShapeError, lambda: tw.relu(SIX, out=Producer(flags=1))).argument == "out"


HOSTILE: dict[str, tuple[dict[str, Any], type[tw.Error], str]] = {
    "on a GPU": ({"device": (2, 0)}, tw.DTypeError, "device type 2"),
    "on a GPU, it lies": ({"device_type": 2}, tw.DTypeError, "device type 2"),
    "device is no pair": ({"device": 1}, tw.DTypeError, "device"),
    "device is text": ({"device": ("cpu", 0)}, tw.DTypeError, "device"),
    "two lanes": ({"dtype": (2, 32, 2)}, tw.DTypeError, "2 lanes"),
    "no lanes": ({"dtype": (2, 32, 0)}, tw.DTypeError, "0 lanes"),
    "four bits": ({"dtype": (0, 4, 1)}, tw.DTypeError, "4 bits"),
    "no bits": ({"dtype": (2, 0, 1)}, tw.DTypeError, "0 bits"),
    "odd bits": ({"dtype": (2, 33, 1)}, tw.DTypeError, "33 bits"),
    "complex": ({"dtype": (5, 64, 1)}, tw.DTypeError, "code 5"),
    "unknown code": ({"dtype": (99, 32, 1)}, tw.DTypeError, "code 99"),
    "uint128": ({"dtype": (1, 128, 1)}, tw.DTypeError, "code 1"),
    "negative ndim": ({"ndim": -1}, tw.ShapeError, "-1 dimensions"),
    "nine axes": ({"shape": (1,) * 9, "strides": None}, tw.ShapeError, "9 dimensions"),
    "2^31 - 1 axes": ({"ndim": 2**31 - 1}, tw.ShapeError, "2147483647 dimensions"),
    "no shape": ({"shape": None}, tw.ShapeError, "no shape"),
    "a negative size": ({"shape": (2, -3)}, tw.ShapeError, "-3"),
    "2^63 - 1 elements": ({"shape": (2**63 - 1,), "strides": None}, tw.ShapeError, "2^40"),
    "a product that overflows": ({"shape": (2**33, 2**33), "strides": None}, tw.ShapeError, "2^40"),
    "an overflow behind a zero": ({"shape": (0, 2**62, 2**62), "strides": None}, tw.ShapeError, "2^40"),
    "a stride that overflows": ({"strides": (2**62, 1)}, tw.ShapeError, "stride"),
    "a stride below the address space": ({"strides": (-(2**60), 1)}, tw.ShapeError, "address space"),
    "an offset that overflows": ({"byte_offset": 2**64 - 8}, tw.ShapeError, "address space"),
    "no data": ({"data": 0}, tw.ShapeError, "null data"),
    "misaligned data": ({"shift": 1}, tw.ShapeError, "aligned"),
    "misaligned offset": ({"byte_offset": 2}, tw.ShapeError, "aligned"),
    "version 2": ({"major": 2}, tw.DTypeError, "DLPack 2"),
    "a used capsule": ({"name": b"used_dltensor"}, tw.DTypeError, "used_dltensor"),
    "a capsule of something else": ({"name": b"arrow_schema"}, tw.DTypeError, "arrow_schema"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_dlpack_descriptor_is_refused(what: str) -> None:
    fields, error, text = HOSTILE[what]
    producer = Producer(**fields)
    raised = _error(error, lambda: tw.relu(producer))
    assert text in str(raised), raised
    assert (raised.op, raised.argument) == ("relu", "x"), raised
    gc.collect()
    assert producer.deleted == 0, "a tensor that was not taken is not ours to delete"
    assert np.array_equal(tw.relu(SIX), SIX)


def test_a_producer_that_fails_is_reported() -> None:
    class Raising(Producer):
        def __dlpack__(self, **options: Any) -> Any:
            raise RuntimeError("no")

    class Lying(Producer):
        def __dlpack__(self, **options: Any) -> Any:
            return 5

    class Deviceless:
        def __dlpack__(self, **options: Any) -> Any:
            return None

    for made in (Raising(), Lying(), Deviceless()):
        raised = _error(tw.DTypeError, lambda made=made: tw.relu(made))  # type: ignore[misc]
        assert (raised.op, raised.argument) == ("relu", "x"), raised


def test_a_producer_that_asks_for_itself_is_refused() -> None:
    class Mirror(Producer):
        def __dlpack__(self, **options: Any) -> Any:
            return tw.relu(self)

    with pytest.raises(tw.DTypeError, match=r"x.__dlpack__\(\) asks for itself|failed"):
        tw.relu(Mirror())
    assert tw.relu(np.ones(2)).tolist() == [1, 1]


def test_an_old_producer_without_max_version_is_read() -> None:
    class Old(Producer):
        def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
            return super().__dlpack__()

    assert np.array_equal(tw.relu(Old(versioned=False)), SIX)


def test_bfloat16_goes_in_and_out() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy has no bfloat16 of its own")
    x = np.array([1.0, -2.5, 3.0078125, np.inf], ml_dtypes.bfloat16)
    assert tw.cast(x, dtype="float32").tolist() == [1.0, -2.5, 3.0, np.inf]
    assert tw.cast(np.array([1.00390625], np.float32), dtype="bfloat16").dtype == ml_dtypes.bfloat16

    class Exported:
        def __dlpack__(self, **options: Any) -> Any:
            return tw.to_dlpack(x)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    again = tw.from_dlpack(Exported())
    assert again.dtype == ml_dtypes.bfloat16
    assert again.ctypes.data == x.ctypes.data
    assert again.tobytes() == x.tobytes()


def test_an_exported_capsule_keeps_its_array_alive() -> None:
    a = np.arange(5.0)
    references = sys.getrefcount(a)
    capsule = tw.to_dlpack(a)
    assert sys.getrefcount(a) == references + 1
    del capsule
    assert sys.getrefcount(a) == references
    assert _error(tw.DTypeError, lambda: tw.to_dlpack([1.0])).op == "to_dlpack"


# ----------------------------------------------------------------------------------------------- what an op is


@pytest.mark.parametrize("name", ops())
def test_an_op_tells_its_signature(name: str) -> None:
    text = pydoc.render_doc(ops()[name], renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    assert f"{name}(" in text
    assert (ops()[name].__doc__ or "").splitlines()[0] in text


def test_help_shows_names_defaults_and_docstring() -> None:
    shown = io.StringIO()
    pydoc.Helper(output=shown)(tw.conv)
    text = shown.getvalue()
    for piece in ("conv(", "padding:", "groups: 'int' = 1", "(N, C, *spatial)"):
        assert piece in text, text


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_ops_and_prepared_ops_pickle(x: Any, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(tw.conv, protocol)) is tw.conv
    w, b = np.ones((2, 4), np.float32), np.array([1, 2], np.float32)
    layer = tw.linear.prepare(w=w, b=b, activation="relu")
    again = pickle.loads(pickle.dumps(layer, protocol))
    assert again.packed_bytes == layer.packed_bytes > 0
    assert np.array_equal(again(x), layer(x))
    assert np.array_equal(layer(x), tw.linear(x, w, b, activation="relu"))


def test_a_prepared_op_takes_the_remaining_operands_only(x: Any) -> None:
    layer = tw.linear.prepare(w=np.ones((2, 4), np.float32))
    out = np.empty((3, 2), np.float32)
    assert layer(x=x, out=out) is out
    for call in (lambda: layer(x, x, x, x), lambda: layer(x, w=x), lambda: layer(x, activation="relu")):
        assert _error(tw.AttrTypeError, call).op == "linear"
    assert _error(tw.AttrTypeError, lambda: layer()).argument == "x"


# ------------------------------------------------------------------------------------- the GIL, Ctrl-C, the cost

_LONG = """
import numpy as np, sys, tilework as tw
a = np.ones((3000, 3000))
tw.set_num_threads({threads})
with tw.threads({threads}):
    tw.matmul(a[:64], a)
    print("go", flush=True)
    while True:
        tw.matmul(a, a)
"""


def test_other_python_threads_run_during_a_long_call() -> None:
    a = np.ones((700, 700))
    longest = 0.0
    stop = threading.Event()

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = threading.Thread(target=tick)
    with tw.threads(1):
        begin = time.perf_counter()
        tw.matmul(a, a)
        once = time.perf_counter() - begin
        repeat = max(1, int(0.5 / once))
        ticker.start()
        wide = np.ones((700 * min(repeat, 40), 700))
        begin = time.perf_counter()
        tw.matmul(wide, a)
        took = time.perf_counter() - begin
        stop.set()
        ticker.join()
    assert took > 0.05
    assert longest < 0.6 * took, f"a thread waited {longest:.3f} s of {took:.3f} s"


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_call_within_half_a_second(threads: int) -> None:
    code = _LONG.format(threads=threads)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        time.sleep(0.3)
        sent = time.monotonic()
        os.kill(child.pid, signal.SIGINT)
        _, stderr = child.communicate(timeout=30)
        latency = time.monotonic() - sent
    assert stderr.strip().endswith(b"KeyboardInterrupt"), stderr.decode()
    assert latency < 0.5, f"{latency:.2f} s"


def test_an_interrupted_call_leaves_the_library_whole() -> None:
    code = """
import numpy as np, os, signal, threading, tilework as tw
a = np.ones((1200, 1200))
caught = False
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        tw.matmul(a, a)
except KeyboardInterrupt:
    caught = True
assert caught and (tw.matmul(a[:50], a) == 1200).all() and (tw.matmul(a, a) == 1200).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_call_costs_at_most_half_a_microsecond_more_than_numpys() -> None:
    a, b, out = (np.ones(1, np.float32) for _ in range(3))

    def cost(call: Callable[[], Any]) -> float:
        return min(timeit.repeat(call, number=5000, repeat=20)) / 5000

    pairs = [(cost(lambda: np.add(a, b, out=out)), cost(lambda: tw.add(a, b, out=out))) for _ in range(5)]
    excess = min(ours - theirs for theirs, ours in pairs)
    assert excess < 0.5e-6, f"{1e6 * excess:.2f} us"
