"""The C API: programs in C, C++ and ctypes against the installed library, and what it refuses."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import _core

PROGRAMS = Path(__file__).parent / "capi"


def _run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode == 0, f"{done.returncode} {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _needs(*tools: str) -> None:
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed")


def _expects_no_sanitizer() -> None:
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("a program would need the sanitizer's library too")


LINEAR = "1 result of shape (2, 4)\n11 22 33 0 14 25 36 0 \nsame, ABI 1, 1 ops\n"


def test_find_package_builds_programs_in_c_and_cpp(tmp_path: Path) -> None:
    _needs("cmake", "cc", "c++", "ninja")
    _expects_no_sanitizer()
    _run("cmake", "-G", "Ninja", "-S", PROGRAMS, "-B", tmp_path, f"-Dtilework_DIR={tw.cmake_dir()}")
    _run("cmake", "--build", tmp_path)
    assert _run(tmp_path / "linear") == LINEAR
    assert _run(tmp_path / "hosted").endswith("\nsame bits\n")  # behind the refusal of a pool that runs nothing


def test_pkg_config_builds_a_program_in_c(tmp_path: Path) -> None:
    _needs("pkg-config", "cc")
    _expects_no_sanitizer()
    flags = _run("pkg-config", "--cflags", "--libs", "tilework", PKG_CONFIG_PATH=tw.pkgconfig_dir()).split()
    program = tmp_path / "linear"
    pedantic = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    folder = str(Path(tw.library_path()).parent)
    _run("cc", *pedantic, PROGRAMS / "linear.c", "-o", program, *flags, f"-Wl,-rpath,{folder}")
    assert _run(program) == LINEAR


# ---------------------------------------------------------------------------------------------------- by ctypes


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Value(ctypes.Union):
    _fields_ = (
        ("i", ctypes.c_int64),
        ("f", ctypes.c_double),
        ("ints", ctypes.POINTER(ctypes.c_int64)),
        ("text", ctypes.c_char_p),
    )


class _Attr(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("kind", ctypes.c_int32), ("n", ctypes.c_int32), ("value", _Value))


class _Job(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("op", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(ctypes.POINTER(_Tensor))),
        ("n_in", ctypes.c_int32),
        ("n_attrs", ctypes.c_int32),
        ("attrs", ctypes.POINTER(_Attr)),
        ("prepared", ctypes.c_uint64),
    )


class _Error(ctypes.Structure):
    _fields_ = (
        ("status", ctypes.c_int32),
        ("op", ctypes.c_char * 48),
        ("argument", ctypes.c_char * 48),
        ("text", ctypes.c_char * 512),
    )


class _Spec(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
    )


class _Info(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("operands", ctypes.c_char_p), ("attributes", ctypes.c_char_p))


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(tw.library_path())
    loaded.tw_last_error.restype = ctypes.POINTER(_Error)
    loaded.tw_op.restype = ctypes.POINTER(_Info)
    loaded.tw_release.argtypes = (ctypes.c_uint64,)
    return loaded


KINDS = {"none": 0, "int": 1, "real": 2, "bool": 3, "text": 4, "ints": 5, "pairs": 6}
OK, SHAPE, DTYPE, ATTR, UNSUPPORTED, ARGUMENT = 0, 1, 2, 3, 5, 10


class _Call:
    """A job, and everything it points to."""

    def __init__(self, op: str, arrays: list[Any], attrs: list[tuple[str, str, Any]] | None = None) -> None:
        self.tensors = [_tensor(a) for a in arrays]
        self.pointers = (ctypes.POINTER(_Tensor) * max(1, len(arrays)))()
        for i, tensor in enumerate(self.tensors):
            if tensor is not None:
                self.pointers[i] = ctypes.pointer(tensor)
        self.attrs = (_Attr * max(1, len(attrs or [])))()
        for place, (name, kind, value) in zip(self.attrs, attrs or [], strict=False):
            place.name, place.kind = name.encode(), KINDS[kind]
            if kind in ("ints", "pairs"):
                place.n = len(value) // (2 if kind == "pairs" else 1)
                place.value.ints = (ctypes.c_int64 * len(value))(*value)
            elif kind == "text":
                place.value.text = value.encode()
            elif kind == "real":
                place.value.f = value
            elif kind != "none":
                place.value.i = value
        self.job = _Job(ctypes.sizeof(_Job), op.encode(), self.pointers, len(arrays), len(attrs or []), self.attrs, 0)

    def into(self, library: ctypes.CDLL, *outs: Any) -> int:
        tensors = [_tensor(o) for o in outs]
        pointers = (ctypes.POINTER(_Tensor) * max(1, len(outs)))(*(ctypes.pointer(t) for t in tensors))
        return int(library.tw_call(ctypes.byref(self.job), pointers, len(outs)))


def _tensor(a: Any) -> _Tensor | None:
    if a is None or isinstance(a, _Tensor):
        return a
    code = {"f": 2, "i": 0, "u": 1, "b": 6}[a.dtype.kind]
    shape = (ctypes.c_int64 * max(1, a.ndim))(*a.shape)
    strides = (ctypes.c_int64 * max(1, a.ndim))(*(s // a.itemsize for s in a.strides))
    return _Tensor(a.ctypes.data, 1, 0, a.ndim, code, 8 * a.itemsize, 1, shape, strides, 0)


def _refused(library: ctypes.CDLL, status: int, want: int, argument: str, text: str) -> None:
    error = library.tw_last_error().contents
    assert (status, error.status) == (want, want), error.text
    assert error.argument.decode() == argument, error.text
    assert text in error.text.decode()


def test_ctypes_runs_a_convolution(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 9), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    y = np.empty((2, 4, 5, 5), np.float32)
    call = _Call("conv", [x[..., ::-1], w, None], [("stride", "int", 2), ("padding", "pairs", (1, 1, 1, 2))])
    assert call.into(library, y) == OK, library.tw_last_error().contents.text
    assert np.array_equal(y, tw.conv(x[..., ::-1], w, stride=2, padding=((1, 1), (1, 2))))


def test_every_op_is_listed(library: ctypes.CDLL) -> None:
    infos = [library.tw_op(i).contents for i in range(library.tw_op_count())]
    assert [i.name.decode() for i in infos] == _core.op_names()
    assert not library.tw_op(-1)
    assert not library.tw_op(len(infos))
    for info in infos:
        spec = _core.op_spec(info.name.decode())
        marks = {"required": "", "optional": "?", "inout": "!", "optional inout": "!?", "variadic": "*"}
        assert info.operands.decode().split() == [name + marks[role] for name, role in spec["operands"]]
        assert [a.partition(":")[0] for a in info.attributes.decode().split()] == [a["name"] for a in spec["attrs"]]


def test_infer_gives_what_the_call_gives(library: ctypes.CDLL) -> None:
    call = _Call(
        "max_pool", [np.zeros((1, 2, 8, 8), np.float32)], [("kernel", "int", 2), ("return_indices", "bool", 1)]
    )
    specs, n = (_Spec * 2)(), ctypes.c_int32(2)
    call.tensors[0].data = None  # type: ignore[union-attr]
    assert library.tw_infer(ctypes.byref(call.job), specs, ctypes.byref(n)) == OK
    assert [(s.code, s.bits, list(s.shape[: s.ndim])) for s in specs] == [(2, 32, [1, 2, 4, 4]), (0, 64, [1, 2, 4, 4])]
    n.value = 1
    status = library.tw_infer(ctypes.byref(call.job), specs, ctypes.byref(n))
    _refused(library, status, ARGUMENT, "", "2 results")
    assert n.value == 2


def test_a_handle_is_known_from_one_that_is_not(library: ctypes.CDLL) -> None:
    x, w, y = np.ones((3, 8), np.float32), np.ones((5, 8), np.float32), np.empty((3, 5), np.float32)
    handle = ctypes.c_uint64()
    assert library.tw_prepare(ctypes.byref(_Call("linear", [None, w]).job), ctypes.byref(handle)) == OK
    rest = _Call("linear", [x])
    rest.job.prepared = handle.value
    assert rest.into(library, y) == OK
    assert (y == 8).all()
    both = _Call("linear", [x, w])
    both.job.prepared = handle.value
    _refused(library, both.into(library, y), ARGUMENT, "w", "prepared")
    other = _Call("matmul", [x])
    other.job.prepared = handle.value
    _refused(library, other.into(library, y), ARGUMENT, "", "for linear")
    assert library.tw_release(handle) == OK
    _refused(library, rest.into(library, y), ARGUMENT, "", "released")
    _refused(library, library.tw_release(handle), ARGUMENT, "", "released")
    for forged in (1 << 32 | 5000000, 7, 2**64 - 1):
        _refused(library, library.tw_release(forged), ARGUMENT, "", "no handle")
    again = ctypes.c_uint64()
    assert library.tw_prepare(ctypes.byref(_Call("linear", [None, w]).job), ctypes.byref(again)) == OK
    assert again.value != handle.value
    assert library.tw_release(again) == OK


def _sums(library: ctypes.CDLL, call: _Call, y: Any) -> float:
    y.fill(np.nan)
    assert call.into(library, y) == OK, library.tw_last_error().contents.text
    return float(y.sum())


def test_a_job_called_again_is_that_of_its_data_and_attributes(library: ctypes.CDLL) -> None:
    """Jobs are kept when they come again: whatever of one changes must be seen."""
    a, b = np.full((2, 3), 1, np.float32), np.full((2, 3), 2, np.float32)
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    c, eye = a - 2, np.eye(3, dtype=np.float32)
    y, z = np.empty((2, 3), np.float32), np.empty((3, 2), np.float32)
    for _ in range(3):
        assert [_sums(library, _Call("add", [p, q]), y) for p, q in ((a, a), (a, b), (b, b))] == [12, 18, 24]
        assert _sums(library, _Call("add", [wide[::2, ::2], a]), y) == wide[::2, ::2].sum() + 6
        assert _sums(library, _Call("add", [wide[:2, :3], a]), y) == wide[:2, :3].sum() + 6
        assert _sums(library, _Call("add", [a, b]), z.T) == 18
        assert _sums(library, _Call("sub", [a, b]), y) == -6
        assert _sums(library, _Call("add", [a, b[:1]]), y) == 18
        for axis, kind in ((0, "int"), (1, "int"), ([0, 1], "ints"), ([1], "ints"), ([0], "ints")):
            want = tw.softmax(wide[:2, :3], axis=tuple(axis) if isinstance(axis, list) else axis)
            assert _Call("softmax", [wide[:2, :3]], [("axis", kind, axis)]).into(library, y) == OK
            assert np.array_equal(y, want)
        for name in ("relu", "tanh", "hard_swish"):
            assert _Call("linear", [c, eye], [("activation", "text", name)]).into(library, y) == OK
            assert np.array_equal(y, tw.linear(c, eye, activation=name))


def test_a_job_called_again_is_checked_again(library: ctypes.CDLL) -> None:
    x, y = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    for _ in range(4):
        assert _Call("relu", [x]).into(library, y) == OK
    low = np.zeros(16, np.float32)
    first, second = low[:6].reshape(2, 3), low[3:9].reshape(2, 3)
    _refused(library, _Call("relu", [first]).into(library, second), SHAPE, "out", "shares memory")
    assert _Call("relu", [first]).into(library, first) == OK
    bad = [
        ({"data": None}, "null data"),
        ({"offset": 1}, "aligned"),
        ({"offset": 2**63}, "address space"),
        ({"data": 2**63 - 8}, "address space"),
    ]
    for strides in (None, (3, 1)):
        for _ in range(3):
            assert _Call("relu", [_described(strides=strides)]).into(library, y) == OK
        for fields, text in bad:
            status = _Call("relu", [_described(strides=strides, **fields)]).into(library, y)
            _refused(library, status, SHAPE, "x", text)
            status = _Call("relu", [X]).into(library, _described(strides=strides, **fields))
            _refused(library, status, SHAPE, "out", text)
    for fields, want in (({"type": 2}, DTYPE), ({"dtype": (0, 32, 1)}, DTYPE), ({"shape": None}, SHAPE)):
        assert _Call("relu", [_described(**fields)]).into(library, y) == want
    _refused(library, _Call("relu", [x]).into(library), ARGUMENT, "", "1 results")
    _refused(library, _Call("relu", [x, x]).into(library, y), ARGUMENT, "", "n_in=2")
    _refused(library, _Call("relu", [None]).into(library, y), ARGUMENT, "x", "missing")
    call = _Call("softmax", [x], [("axis", "int", 1)])
    for _ in range(3):
        assert call.into(library, y) == OK
    call.job.attrs = None
    _refused(library, call.into(library, y), ARGUMENT, "", "n_attrs=1")
    for op, attrs in (
        ("softmax", [("axis", "int", 2)]),
        ("softmax", [("axe", "int", 1)]),
        ("relu", [("axis", "int", 1)]),
    ):
        assert _Call(op, [x], attrs).into(library, y) == ATTR


def test_a_prepared_job_called_again_needs_its_handle(library: ctypes.CDLL) -> None:
    x, y, handles = np.ones((3, 8), np.float32), np.empty((3, 5), np.float32), []
    for value in (1, 2):
        w = np.full((5, 8), value, np.float32)
        handle = ctypes.c_uint64()
        assert library.tw_prepare(ctypes.byref(_Call("linear", [None, w]).job), ctypes.byref(handle)) == OK
        handles.append((handle, w))
    for _ in range(3):
        for (handle, _), want in zip(handles, (120, 240), strict=True):
            rest = _Call("linear", [x])
            rest.job.prepared = handle.value
            assert _sums(library, rest, y) == want
            _refused(library, rest.into(library, x[:, :5]), SHAPE, "out", "shares memory")
    for handle, _ in handles:
        assert library.tw_release(handle) == OK
        rest = _Call("linear", [x])
        rest.job.prepared = handle.value
        _refused(library, rest.into(library, y), ARGUMENT, "", "released")


X, Y = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "outs", "want", "argument", "text"),
    [
        (_Call("nothing", [X]), [Y], UNSUPPORTED, "", "no op"),
        (_Call("relu", []), [Y], ARGUMENT, "x", "missing"),
        (_Call("relu", [None]), [Y], ARGUMENT, "x", "missing"),
        (_Call("relu", [X, X]), [Y], ARGUMENT, "", "n_in=2"),
        (_Call("relu", [X], [("slope", "real", 1.0)]), [Y], ATTR, "", "slope"),
        (_Call("relu", [X]), [], ARGUMENT, "", "1 results"),
        (_Call("relu", [X]), [Y.T], SHAPE, "out", "shape (3, 2)"),
        (_Call("relu", [X]), [Y.astype(np.float64)], DTYPE, "out", "float64"),
        (_Call("relu", [Y]), [Y], OK, "", ""),
        (_Call("relu", [Y[:, ::-1]]), [Y], SHAPE, "out", "shares memory"),
        (_Call("relu", [X]), [np.broadcast_to(Y[:1], (2, 3))], SHAPE, "out", "strides overlap"),
        (_Call("softmax", [X], [("axis", "real", 1.0)]), [Y], ATTR, "axis", "kind"),
        (_Call("softmax", [X], [("axis", "int", 7)]), [Y], ATTR, "axis", "7"),
        (_Call("softmax", [X], [("axis", "int", 1), ("axis", "int", 1)]), [Y], ATTR, "axis", "twice"),
        (_Call("linear", [X, X], [("activation", "text", "Relu")]), [Y], ATTR, "activation", "relu"),
        (_Call("relu", [_Tensor(X.ctypes.data, 2, 0, 1, 2, 32, 1, None, None, 0)]), [Y], DTYPE, "x", "device type 2"),
        (_Call("relu", [_Tensor(X.ctypes.data, 1, 0, 2, 2, 32, 1, None, None, 0)]), [Y], SHAPE, "x", "no shape"),
        (_Call("relu", [_Tensor(X.ctypes.data, 1, 0, -1, 2, 32, 1, None, None, 0)]), [Y], SHAPE, "x", "-1 dimensions"),
        (_Call("relu", [_Tensor(None, 1, 0, 0, 2, 32, 1, None, None, 0)]), [Y], SHAPE, "x", "null data"),
    ],
)
def test_a_bad_job_is_refused(
    library: ctypes.CDLL, call: _Call, outs: list[Any], want: int, argument: str, text: str
) -> None:
    status = call.into(library, *outs)
    assert status == want
    if want != OK:
        _refused(library, status, want, argument, text)


def _described(**fields: Any) -> _Tensor:
    """A descriptor of X with some fields another way."""
    given = {"data": X.ctypes.data, "type": 1, "id": 0, "ndim": 2, "dtype": (2, 32, 1), "offset": 0}
    given |= {"shape": (2, 3), "strides": (3, 1)} | fields
    sizes, steps = ((ctypes.c_int64 * len(v))(*v) if v else None for v in (given["shape"], given["strides"]))
    return _Tensor(
        given["data"], given["type"], given["id"], given["ndim"], *given["dtype"], sizes, steps, given["offset"]
    )


DESCRIPTORS: list[tuple[dict[str, Any], int, str]] = [
    ({"ndim": -1}, SHAPE, "-1 dimensions"),
    ({"ndim": 200}, SHAPE, "200 dimensions"),
    ({"ndim": 0}, SHAPE, "out has shape (2, 3)"),
    ({"shape": None}, SHAPE, "no shape"),
    ({"shape": (2, -3)}, SHAPE, "dimension of -3"),
    ({"shape": (2**62, 1)}, SHAPE, "2^40 elements"),
    ({"shape": (2**33, 2**33)}, SHAPE, "2^40 elements"),
    ({"strides": None}, OK, ""),
    ({"strides": (-3, 1), "offset": 12}, OK, ""),
    ({"strides": (0, 0)}, OK, ""),
    ({"strides": (2**61, 1)}, SHAPE, "address space"),
    ({"strides": (2**40, 2**60)}, SHAPE, "address space"),
    ({"data": None}, SHAPE, "null data"),
    ({"data": None, "shape": (0, 3)}, SHAPE, "out has shape (2, 3)"),
    ({"offset": 1}, SHAPE, "aligned"),
    ({"offset": 2**63}, SHAPE, "address space"),
    ({"strides": (2**58, 1)}, SHAPE, "address space"),
    ({"data": 2**63 - 8, "strides": None}, SHAPE, "address space"),
    ({"dtype": (77, 32, 1)}, DTYPE, "code 77"),
    ({"dtype": (2, 0, 1)}, DTYPE, "0 bits"),
    ({"dtype": (2, 24, 1)}, DTYPE, "24 bits"),
    ({"dtype": (2, 32, 0)}, DTYPE, "0 lanes"),
    ({"dtype": (2, 32, 4)}, DTYPE, "4 lanes"),
    ({"type": 99}, DTYPE, "device type 99"),
    ({"type": 2}, DTYPE, "device type 2"),
]


@pytest.mark.parametrize(("fields", "want", "text"), DESCRIPTORS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_every_field_of_a_descriptor_is_checked(
    library: ctypes.CDLL, fields: dict[str, Any], want: int, text: str
) -> None:
    y = np.full((2, 3), 5, np.float32)
    status = _Call("relu", [_described(**fields)]).into(library, y)
    assert status == want, library.tw_last_error().contents.text
    if want == OK:
        assert (y == 1).all()
    else:
        assert text in library.tw_last_error().contents.text.decode()
        assert (y == 5).all(), "written to"
    out = _described(**{"data": y.ctypes.data} | fields)
    if _Call("relu", [X]).into(library, out) != OK:
        assert (y == (1 if want == OK else 5)).all(), "written to"


def test_null_pointers_and_wrong_sizes_are_refused(library: ctypes.CDLL) -> None:
    call = _Call("relu", [X])
    assert library.tw_call(None, None, 0) == ARGUMENT
    assert library.tw_infer(ctypes.byref(call.job), None, None) == ARGUMENT
    assert library.tw_prepare(ctypes.byref(call.job), None) == ARGUMENT
    call.job.struct_size = 8
    _refused(library, call.into(library, Y), ARGUMENT, "", "struct_size")
    call = _Call("relu", [X])
    call.job.n_in = -1
    _refused(library, call.into(library, Y), ARGUMENT, "", "n_in=-1")
    call.job.n_in, call.job.n_attrs = 1, 2**31 - 1
    call.job.attrs = None
    _refused(library, call.into(library, Y), ARGUMENT, "", "n_attrs")
    call.job.n_attrs, call.job.op = 0, None
    _refused(library, call.into(library, Y), UNSUPPORTED, "", "no op")
    assert library.tw_set_num_threads(-1) == ARGUMENT
    assert library.tw_set_isa(b"mmx") == ATTR


def test_the_page_about_it_runs(tmp_path: Path) -> None:
    """The ctypes program of docs/c-api.md."""
    text = (Path(__file__).parent.parent / "docs" / "c-api.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert len(program.splitlines()) <= 15
    assert _run(sys.executable, "-c", program) == "0 [0.0, 2.0, 0.0]\n"
