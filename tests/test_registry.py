"""The op table is one table: Python signatures agree with C++, every op is complete, and arrows point down."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework
from tilework import _core
from tilework.registry import ops

ROOT = Path(__file__).parent.parent
COMPILED = [name for name, op in ops().items() if not op.is_view]

# Gradients of gradients and steps have no gradient rule unless it is easy.
NO_GRADIENT = {
    "gelu_dx",
    "max_pool_dx",
    "reduce_max_dx",
    "dequantize_linear",
    "dynamic_quantize_linear",
    "conv_integer",
    "qlinear_conv",
    "linear_int4",
    "linear_lut",
    "matmul_integer",
    "qlinear_matmul",
    "quantize_linear",
    "quantize_rows",
    "paged_attention",
    "attention_dx",
    "embedding_dw",
    "embedding_bag_dw",
    "lstm_dx",
    "gru_dx",
    "rnn_dx",
    "geglu_dx",
    "swiglu_dx",
    "layer_norm_dx",
    "rms_norm_dx",
    "batch_norm_dx",
    "group_norm_dx",
    "activation_dx",
    "canny",
    "absdiff",
    "bernoulli",
    "non_max_suppression",
    "random_normal",
    "random_uniform",
    "bilateral",
    "box_blur",
    "canny_gradients",
    "dilate",
    "edge_ways",
    "distance_transform",
    "filter2d",
    "flow_refine",
    "flow_search",
    "hough_votes",
    "integral",
    "integral_squares",
    "label",
    "look_up",
    "median_blur",
    "pyramid_down",
    "pyramid_up",
    "resize",
    "rgb_to_gray",
    "trace_contours",
    "warp_affine",
    "warp_perspective",
    "equalize_hist",
    "erode",
    "gaussian_blur",
    "histogram",
    "laplacian",
    "scharr",
    "sobel",
    "spatial_gradient",
    "threshold",
    "deform_unfold_doffset",
    "lp_norm_dx",
    "lp_pool_dx",
    "local_response_norm_dx",
    "softmax_cross_entropy_dx",
    "sgd_step",
    "adam_step",
    "rmsprop_step",
    "lion_step",
    "fused",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "isnan",
    "isinf",
    "bitcast",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_not",
    "shift_left",
    "shift_right",
    "scatter_elements",
    "scatter_nd",
    "argmax",
    "argmin",
    "cumprod",
    "grid_sample",
}


def test_python_and_cpp_have_the_same_ops() -> None:
    assert sorted(COMPILED) == sorted(_core.op_names())
    assert set(ops()) <= set(tilework.__all__)


@pytest.mark.parametrize("name", COMPILED)
def test_signature_agrees_with_the_cpp_table(name: str) -> None:
    spec = _core.op_spec(name)
    parameters = inspect.signature(ops()[name]).parameters
    names = [n for n, _ in spec["operands"]]
    operands = {n: p for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD or n in names}
    attrs = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in ("out", *names)}
    if spec["leading_text"]:  # the text, then the arrays one by one
        first = spec["attrs"][0]["name"]
        attrs = {first: operands.pop(first)} | attrs
        assert operands[names[0]].kind is inspect.Parameter.VAR_POSITIONAL
    assert list(operands) == [n for n, _ in spec["operands"]]
    for operand, role in spec["operands"]:
        assert (operands[operand].default is None) == role.startswith("optional"), operand
    assert list(attrs) == [a["name"] for a in spec["attrs"]]
    for attr in spec["attrs"]:
        default = attrs[attr["name"]].default
        if attr["required"]:
            assert default is inspect.Parameter.empty, attr["name"]
        else:
            assert default == attr["default"], attr["name"]
            assert type(default) is type(attr["default"]), attr["name"]
    works_in_place = any(role.endswith("inout") for _, role in spec["operands"])
    assert "out" in parameters or works_in_place


def _literals(hint: Any) -> set[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return {value for part in typing.get_args(hint) for value in _literals(part)}


CHOICES = [(name, a["name"]) for name in COMPILED for a in _core.op_spec(name)["attrs"] if a["kind"] == "choice"]


@pytest.mark.parametrize(("name", "attribute"), CHOICES)
def test_literal_types_list_the_choices_of_the_cpp_table(name: str, attribute: str) -> None:
    hints = typing.get_type_hints(ops()[name].__wrapped__)  # type: ignore[attr-defined]
    choices = next(a["choices"] for a in _core.op_spec(name)["attrs"] if a["name"] == attribute)
    assert _literals(hints[attribute]) == set(choices)


@pytest.mark.parametrize("name", ops())
def test_op_is_complete(name: str) -> None:
    op = ops()[name]
    assert {"reference", "samples", "errors"} <= set(op.rules)
    assert "ulp" in op.rules or "depth" in op.rules, "no tolerance"
    first_line = (op.__doc__ or "").splitlines()[0]
    assert re.fullmatch(r"[A-Z].*\.", first_line) or first_line.endswith(":"), first_line
    assert ("backward" in op.rules) == (name not in NO_GRADIENT)
    assert set(op.differentiable) <= set(op.operands)


@pytest.mark.parametrize("name", COMPILED)
def test_op_is_one_room_on_every_floor(name: str) -> None:
    family = ops()[name].__module__.rpartition(".")[2]
    if not (ROOT / "csrc/ops" / f"{family}.cc").exists():
        family = family.removesuffix("_gradients")  # Python of their own, in the rooms of the op they belong to
    rooms = [family + part for part in ("", "_dx", "_dw")]  # gradients that fill a file of their own
    texts = [path.read_text() for path in (ROOT / "csrc/ops" / f"{room}.cc" for room in rooms) if path.exists()]
    assert any(re.search(rf"\bop_{name} = ", text) for text in texts)
    # A gradient by another name, a product of other numbers and a layer made of ops launch the same kernels.
    kernels = (family, family.removesuffix("_transpose").removesuffix("_integer"), family.removeprefix("multi_head_"))
    kernels += ("conv",) if family == "inverted_residual" else ()
    if "opencl" in ops()[name].rules:
        assert any((ROOT / "kernels_cl" / f"{room}.cl").exists() for room in kernels)
    listed = (ROOT / "csrc/ops/ops.def").read_text()
    assert re.search(rf"// {family}\.cc\n(TW_OP\w*\(\w+\)\n)*TW_OP\w*\({name}\)", listed)


# ------------------------------------------------------------------------------------------------------- arrows

FLOORS = ["core", "lines", "simd", "image", "gemm", "linalg", "ops", "bindings"]


def _sources(*suffixes: str) -> list[Path]:
    return [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in suffixes and p.parent.name in FLOORS]


@pytest.mark.parametrize("path", _sources(".h", ".cc"), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_includes_point_down(path: Path) -> None:
    floor = path.parent.name
    for included in re.findall(r'#include "([^"]+)"', path.read_text()):
        target = included.rpartition("/")[0].removeprefix("../") or floor
        if included.endswith("ops.def") or target not in FLOORS:
            continue
        assert FLOORS.index(target) <= FLOORS.index(floor), f"{floor}/{path.name} includes {included}"


@pytest.mark.parametrize("path", [p for p in _sources(".cc") if p.parent.name == "ops"], ids=lambda p: p.name)
def test_op_files_do_not_include_each_other(path: Path) -> None:
    families = {p.stem for p in _sources(".cc") if p.parent.name == "ops"}
    included = {Path(i).stem for i in re.findall(r'#include "(?:ops/)?([^/"]+)"', path.read_text())}
    assert not included & families


@pytest.mark.parametrize("path", [p for p in _sources(".h", ".cc") if p.parent.name != "simd"], ids=lambda p: p.name)
def test_instruction_sets_are_named_in_simd_only(path: Path) -> None:
    assert not re.search(r"__AVX|__SSE|__FMA__|__ARM_|_mm\d*_|#include <\w*mmintrin", path.read_text())


# Floors of the Python package, lowest first; a module imports from its own floor or one below.
PACKAGE = [
    ["_core", "errors", "arrays", "nested", "programs", "dtypes", "files", "safetensors"],
    ["backends", "dispatch"],
    ["registry", "prepared", "devices", "linking", "settings"],
    ["ops", "operators"],
    ["testing", "graph", "autodiff"],
    ["contours", "hough", "trajectories"],
    ["train", "nn", "lines", "vision"],
    ["interop"],
    ["bench", "cli"],
]
LEVEL = {module: level for level, modules in enumerate(PACKAGE) for module in modules}

# Imported when first called, so that `registry.ops()` is complete and an op finds its preparation.
UPWARD = {("registry", "ops")}


def _imports(path: Path) -> set[str]:
    """First-floor names of tilework that a module imports, those for type checkers apart."""
    found: set[str] = set()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
        elif id(node) in skipped:
            continue
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tilework":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tilework.")}
    return found & set(LEVEL)


def _modules() -> list[Path]:
    package = ROOT / "python" / "tilework"
    return [p for p in sorted(package.rglob("*.py")) if p.parent != package or p.stem in LEVEL]


@pytest.mark.parametrize("path", _modules(), ids=lambda p: "/".join(p.parts[-2:]))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "python" / "tilework").parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} is on no floor: add it to PACKAGE"
    for target in _imports(path):
        assert LEVEL[target] <= LEVEL[own] or (own, target) in UPWARD, f"{own} imports {target}, which is above it"


def _numbers(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_gradients_are_added_to_what_is_given() -> None:
    x, w, b, dy = _numbers(2, 3, 7, 6), _numbers(4, 3, 3, 3), _numbers(4), _numbers(2, 4, 7, 6)
    plain = tilework.conv.backward(dy, x, w, b, padding=1)
    sums = {"w": np.ones_like(w), "b": np.full_like(b, 2)}
    dx, dw, db = tilework.conv.backward(dy, x, w, b, padding=1, into=sums)
    assert dw is sums["w"]
    assert db is sums["b"]
    np.testing.assert_array_equal(dx, plain[0])
    np.testing.assert_array_equal(dw, plain[1] + 1)
    np.testing.assert_array_equal(db, plain[2] + 2)
    only = np.ones_like(b)
    assert tilework.conv.backward(dy, x, w, b, padding=1, wanted=["b"], into={"b": only})[:2] == (None, None)
    np.testing.assert_array_equal(only, plain[2] + 1)
    scale, more = _numbers(6), np.ones(6, np.float32)
    want = tilework.layer_norm.backward(dy, dy, scale)
    assert tilework.layer_norm.backward(dy, dy, scale, into={"weight": more})[1] is more
    np.testing.assert_array_equal(more, want[1] + 1)
    total = np.ones_like(x)
    assert tilework.relu.backward(x, x, into={"x": total}) is total
    np.testing.assert_array_equal(total, np.maximum(x, 0) + 1)


def test_what_gradients_cannot_be_added_to_is_named() -> None:
    x, w, dy = _numbers(2, 3, 7, 6), _numbers(4, 3, 3, 3), _numbers(2, 4, 5, 4)
    for into, error, text in (
        ({"w": w[:3]}, tilework.ShapeError, r"into\['w'\] has shape \(3, 3, 3, 3\); want \(4, 3, 3, 3\)"),
        ({"w": w.astype(np.float64)}, tilework.DTypeError, r"into\['w'\] has dtype float64; want float32"),
        ({"w": None}, tilework.DTypeError, "is not where w is"),
        (
            {"b": w[0]},
            tilework.AttrTypeError,
            r"into names 'b'; want .* are wanted, \['w', 'x'\]",
        ),
        ([w], tilework.AttrTypeError, "want a dict"),
    ):
        with pytest.raises(error, match=text):
            tilework.conv.backward(dy, x, w, into=into)
    with pytest.raises(tilework.AttrTypeError, match="into names 'w'"):
        tilework.conv.backward(dy, x, w, wanted=["x"], into={"w": w})


def test_what_was_not_saved_is_named() -> None:
    x = _numbers(3, 5)
    for saved in ((x,), 3, (x, x, x, x)):
        with pytest.raises(tilework.Error, match="layer_norm: saved is not what"):
            tilework.layer_norm.backward(x, x, saved=saved)


@pytest.mark.parametrize("name", ["torch", "onnx", "jax"])
def test_an_adapter_says_what_it_wants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"tilework.interop.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'tilework\[{name}\]'"):
        importlib.import_module(f"tilework.interop.{name}")
