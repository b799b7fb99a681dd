"""ONNX models on the graph: node tests of the onnx package, refusals, hostile files, `tilework run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw

onnx = pytest.importorskip("onnx", reason="onnx is an extra that the tests do not bring")
backend = pytest.importorskip("tilework.interop.onnx")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")

FLOAT = 1


def _info(name: str, *shape: int | None, kind: int = FLOAT) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[str], **weights: Any) -> Any:
    held = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in weights.items()]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in outputs]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "model", inputs, results, held))


def _node(kind: str, inputs: list[str], outputs: list[str], **attrs: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, outputs, **attrs)


def _reference(model: Any, feeds: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(None, feeds))


def _small_network() -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(8).astype(np.float32),
        "v": rng.standard_normal((8, 5)).astype(np.float32),
        "minus": np.array([-1], np.int64),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        _node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        _node("Relu", ["c"], ["r"]),
        _node("GlobalAveragePool", ["r"], ["g"]),
        _node("Shape", ["g"], ["s"]),
        _node("Gather", ["s", "zero"], ["n"]),
        _node("Concat", ["n", "minus"], ["to"], axis=0),
        _node("Reshape", ["g", "to"], ["f"]),
        _node("Gemm", ["f", "v"], ["l"]),
        _node("Softmax", ["l"], ["y"]),
    ]
    model = _model(nodes, [_info("x", None, 3, None, None)], ["y", "r"], **weights)
    return model, {"x": rng.standard_normal((2, 3, 9, 8)).astype(np.float32)}


def test_a_network_with_open_sizes_runs_for_every_size() -> None:
    model, feeds = _small_network()
    prepared = backend.prepare(model)
    for batch in (2, 1, 2):
        now = {"x": feeds["x"][:batch]}
        for got, want in zip(prepared.run(now), _reference(model, now), strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_a_shape_may_be_fed() -> None:
    model = _model([_node("Reshape", ["x", "s"], ["y"])], [_info("x", 2, 6), _info("s", 2, kind=7)], ["y"])
    prepared = backend.prepare(model)
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for shape in ([3, 4], [4, -1], [3, 4]):
        assert np.array_equal(prepared.run([x, np.array(shape, np.int64)])[0], x.reshape(shape))


def test_every_node_that_is_not_computed_is_listed() -> None:
    nodes = [
        _node("MaxRoiPool", ["x", "x"], ["a"], pooled_shape=[1, 1]),
        _node("Relu", ["x"], ["b"]),
        _node("StringConcat", ["b", "b"], ["y"]),
    ]
    model = _model(nodes, [_info("x", 1, 2, 4)], ["y"])
    with pytest.raises(tw.UnsupportedError, match=r"2 nodes") as caught:
        backend.prepare(model)
    assert "node 0: tilework has no MaxRoiPool" in str(caught.value)
    assert "node 2: tilework has no StringConcat" in str(caught.value)
    assert not backend.is_compatible(model)
    assert not backend.coverage()["StringConcat"]
    assert backend.coverage()["Conv"]
    nodes = [_node("MaxPool", ["x"], ["a", "i"], kernel_shape=[2], storage_order=1), _node("Abs", ["x"], ["y"])]
    with pytest.raises(tw.UnsupportedError, match=r"node 0: storage_order=1"):
        backend.prepare(_model(nodes, [_info("x", 1, 2, 4)], ["y"]))


def test_a_node_without_a_rule_is_what_onnx_says_it_stands_for() -> None:
    model = _model(
        [_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"])], [_info("x", 3, 5), _info("t", 3, kind=7)], ["y"]
    )
    x, labels = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32), np.array([0, 4, 2])
    (y,) = backend.prepare(model).run([x, labels])
    np.testing.assert_allclose(y, -x[np.arange(3), labels].mean(), rtol=1e-6)


def test_choices_and_loops_are_decided_when_a_model_is_prepared() -> None:
    total = onnx.helper.make_tensor_value_info("total", FLOAT, (2,))
    names = ("s", "row"), ("total", "total_row")
    nodes = [_node("Add", ["s", "row"], ["total"]), _node("Identity", ["total"], ["total_row"])]
    row = onnx.helper.make_tensor_value_info("total_row", FLOAT, (2,))
    body = onnx.helper.make_graph(nodes, "body", [_info(n, 2) for n in names[0]], [total, row])
    scan = _node("Scan", ["s0", "x"], ["last", "rows"], body=body, num_scan_inputs=1)
    model = _model([scan], [_info("s0", 2), _info("x", 3, 2)], ["last", "rows"])
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    last, rows = backend.prepare(model).run([np.zeros(2, np.float32), x])
    assert np.array_equal(rows, np.cumsum(x, 0))
    assert np.array_equal(last, x.sum(0))


@pytest.mark.parametrize(
    ("kind", "gates", "names"),
    [("RNN", 1, ["Relu"]), ("GRU", 3, ["HardSigmoid", "Softsign"]), ("LSTM", 4, ["Sigmoid", "Relu", "Tanh"])],
)
def test_recurrent_layers_of_other_functions(kind: str, gates: int, names: list[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a peer that the tests do not bring")
    rng = np.random.default_rng(0)
    w, r, x = (rng.standard_normal(s).astype(np.float32) for s in ((1, gates * 5, 3), (1, gates * 5, 5), (4, 2, 3)))
    layer = _node(kind, ["x", "w", "r"], ["y"], hidden_size=5, activations=names)
    model = _model([layer], [_info("x", 4, 2, 3)], ["y"], w=w, r=r)
    model.ir_version, model.opset_import[0].version = 10, 20
    model.graph.output[0].CopyFrom(_info("y", 4, 1, 2, 5))
    want = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(backend.prepare(model).run([x])[0], want, rtol=1e-4, atol=1e-5)


def test_wrong_feeds_are_refused() -> None:
    model, feeds = _small_network()
    prepared = backend.prepare(model)
    x = feeds["x"]
    with pytest.raises(tw.DTypeError, match="x has dtype float64"):
        prepared.run([x.astype(np.float64)])
    with pytest.raises(tw.ShapeError, match="x has shape"):
        prepared.run([x[:, :2]])
    with pytest.raises(tw.ShapeError, match="x has shape"):
        prepared.run([x[0]])
    with pytest.raises(tw.AttrTypeError, match="0 inputs; want x"):
        prepared.run([])
    with pytest.raises(tw.AttrTypeError, match="2 inputs; want x"):
        prepared.run({"x": x, "z": x})


def _constant(name: str, *values: Any, dtype: Any = np.int64) -> Any:
    array = np.array(values, dtype)
    return onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))


def _looped(depth: int) -> Any:
    """Loops in loops of 200 turns each."""
    graph = None
    for _ in range(depth):
        inner = (
            onnx.helper.make_node("Relu", ["s"], ["t"])
            if graph is None
            else onnx.helper.make_node("Loop", ["turns", "", "s"], ["t"], body=graph)
        )
        going = onnx.helper.make_node("Identity", ["going"], ["still"])
        bool_, count = onnx.TensorProto.BOOL, onnx.TensorProto.INT64
        value = onnx.helper.make_tensor_value_info
        given = [value("i", count, ()), value("going", bool_, ()), _info("s", 2)]
        graph = onnx.helper.make_graph([going, inner], "body", given, [value("still", bool_, ()), _info("t", 2)])
    return onnx.helper.make_node("Loop", ["turns", "", "x"], ["y"], body=graph)


_HUGE = onnx.TensorProto(name="w", data_type=1, dims=[2**62])
_LESS = onnx.TensorProto(name="w", data_type=1, dims=[-2])

# Nodes, the results that a model of them asks for, and what is said of it.
CONTRADICTIONS: list[tuple[Any, list[str], str]] = [
    ([_node("Relu", ["x"], ["y"]), _node("Neg", ["x"], ["y"])], ["y"], "Neg makes 'y' again"),
    ([_node("Relu", ["x"], ["y"])], [""], "the result '' is made by nothing"),
    ([_node("Relu", ["x"], ["y", "z"])], ["z"], "the result 'z' is none of what its node gives"),
    ([_node("Relu", ["q" * 10000], ["y"])], ["y"], "which nothing before it makes"),
    ([_node("Add", ["x"], ["y"])], ["y"], "Add with 1 inputs contradicts itself"),
    ([_node("If", ["x"], ["y"])], ["y"], "If|cond"),
    ([_constant("c", True, dtype=bool), _node("If", ["c"], ["y"])], ["y"], "If with 1 inputs contradicts itself"),
    ([_node("Scan", ["x"], ["y"])], ["y"], "Scan with 1 inputs contradicts itself"),
    ([_constant("turns", 200), _looped(2)], ["y"], "turns into more than 32768 nodes"),
    ([onnx.helper.make_node("Constant", [], ["y"], value=_HUGE)], ["y"], "at most 2.40 elements"),
    ([onnx.helper.make_node("Constant", [], ["y"], value=_LESS)], ["y"], "want sizes >= 0"),
    ([_constant("s", 5, -3), _node("Split", ["x", "s"], ["y", "z"])], ["y"], "want sizes >= 0 that add up to 2"),
    ([onnx.helper.make_node("Split", ["x"], ["y"], num_outputs=2**30)], ["y"], "num_outputs=1073741824 of 1 outputs"),
    ([_constant("p", -5, 0), _node("Pad", ["x", "p"], ["y"])], ["y"], "leave less than nothing"),
    ([_constant("s", -1), _node("Expand", ["x", "s"], ["y"])], ["y"], "Expand with 2 inputs contradicts itself"),
    ([_constant("s", 2**40, 2**20), _node("Expand", ["x", "s"], ["y"])], ["y"], "Expand|elements"),
    ([_constant("a", 9), _node("ReduceSum", ["x", "a"], ["y"])], ["y"], "axis=9 of an array of 1"),
    ([_constant("s", np.nan, dtype="f"), _node("Resize", ["x", "", "s"], ["y"])], ["y"], r"scales=\[nan\]"),
    ([_constant("s", 0, dtype="f"), _node("Resize", ["x", "", "s"], ["y"])], ["y"], r"scales=\[0.0\]"),
]


def test_hostile_models_are_refused(tmp_path: Path) -> None:
    model, _ = _small_network()
    good = model.SerializeToString()
    for bad in (b"", b"\0" * 100, b"not a model", good[:200], good[: len(good) // 2]):
        with pytest.raises(tw.Error):
            backend.prepare(bad)
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(good)
        for at in rng.integers(0, len(good), 4):
            broken[at] = rng.integers(256)
        try:
            backend.prepare(bytes(broken))
        except tw.Error:
            continue
    cycle = _model([_node("Relu", ["b"], ["a"]), _node("Relu", ["a"], ["b"])], [_info("x", 1)], ["b"])
    with pytest.raises(tw.Error, match="nothing before it makes"):
        backend.prepare(cycle)
    with pytest.raises(tw.Error, match="made by nothing"):
        backend.prepare(_model([_node("Relu", ["x"], ["a"])], [_info("x", 1)], ["z"]))
    for i, (nodes, results, text) in enumerate(CONTRADICTIONS):
        with pytest.raises(tw.Error, match=text) as caught:
            backend.prepare(_model(nodes, [_info("x", 2)], results)).run([np.ones(2, np.float32)])
        assert "\n" not in str(caught.value), i
        assert len(str(caught.value)) < 400, i
    many = _model([_node("Relu", ["x"], ["y"])] * (2**15 + 1), [_info("x", 1)], ["y"])
    with pytest.raises(tw.UnsupportedError, match="the model has 32769 nodes; want at most 32768"):
        backend.prepare(many)
    for version in (0, -1, 1000, 2**62):
        good_nodes = _model([_node("Relu", ["x"], ["y"])], [_info("x", 1)], ["y"])
        good_nodes.opset_import[0].version = version
        with pytest.raises(tw.Error, match="is of operator set"):
            backend.prepare(good_nodes)
    for odd in (3, None, 1.5, [], 2**40):
        with pytest.raises(tw.AttrTypeError, match="want a file's name, bytes or a ModelProto"):
            backend.prepare(odd)
    model.graph.initializer[0].dims[0] = 800
    with pytest.raises(tw.Error, match="w does not hold what its shape says"):
        backend.prepare(model)
    model.graph.initializer[0].dims[0] = -8
    with pytest.raises(tw.Error, match="w has shape"):
        backend.prepare(model)


def test_external_data_stays_in_the_models_folder(tmp_path: Path) -> None:
    model, feeds = _small_network()
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    want = backend.prepare(_small_network()[0]).run(feeds)
    for got, expected in zip(backend.prepare(path).run(feeds), want, strict=True):
        assert got.tobytes() == expected.tobytes()
    (tmp_path / "inside" / "weights.bin").rename(tmp_path / "weights.bin")
    outside = onnx.load(path, load_external_data=False)
    for place in ("../weights.bin", str(tmp_path / "weights.bin"), "missing.bin"):
        for tensor in outside.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = place
        path.write_bytes(outside.SerializeToString())
        with pytest.raises(tw.Error, match="want a file in the model's folder"):
            backend.prepare(path)
    for tensor in outside.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = "weights.bin"
    first = outside.graph.initializer[0]
    size = (tmp_path / "weights.bin").rename(path.parent / "weights.bin").stat().st_size
    for key, lie in (
        ("length", "-1"), ("length", "a"), ("length", str(2**62)), ("length", str(size + 1)), ("length", "1"),
        ("offset", "-4"), ("offset", str(2**62)), ("offset", str(2**70)), ("offset", "x"), ("offset", str(size - 1)),
        ("location", "a\0b"), ("location", "x" * 5000), ("location", "."),
    ):  # fmt: skip
        entry = next(e for e in first.external_data if e.key == key)
        truth, entry.value = entry.value, lie
        path.write_bytes(outside.SerializeToString())
        with pytest.raises(tw.Error, match=f"onnx: {first.name} "):
            backend.prepare(path)
        entry.value = truth
    with pytest.raises(tw.Error, match="without a folder"):
        backend.prepare(path.read_bytes())


def test_winograd_is_asked_for() -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    given, made = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 32, 12, 12)) for n in "xy")
    graph = onnx.helper.make_graph([conv], "net", [given], [made], [onnx.numpy_helper.from_array(w, "w")])
    x = rng.standard_normal((1, 32, 12, 12)).astype(np.float32)
    results = {}
    for asked in (False, True):
        model = backend.prepare(onnx.helper.make_model(graph), winograd=asked)
        (results[asked],) = model.run([x])
    np.testing.assert_array_equal(results[False], tw.conv(x, w, padding=1))
    np.testing.assert_allclose(results[True], results[False], atol=2e-4)
    assert (results[True] != results[False]).any()


def test_the_command_runs_a_model(tmp_path: Path) -> None:
    model, feeds = _small_network()
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", feeds["x"])
    command = [sys.executable, "-m", "tilework", "run", "model.onnx", "--input", "x.npy", "-o", "y.npy", "--profile"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "conv" in done.stdout
    assert "y: float32 (2, 5)" in done.stdout
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), _reference(model, feeds)[0], rtol=1e-4, atol=1e-6)
    done = subprocess.run([*command[:4], "absent.onnx"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (
        2,
        "tilework run: absent.onnx cannot be read: No such file or directory\n",
    )
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    done = subprocess.run([*command[:4], "bad.onnx"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("tilework run: onnx: this is no model")


# Families whose node tests all pass, but for what stands in EXCEPT, with the reason.
FAMILIES = {
    "conv": ["Conv", "ConvTranspose", "DeformConv", "Col2Im", "ConvInteger", "QLinearConv", "CausalConvWithState"],
    "matmul": ["MatMul", "Gemm", "Einsum", "MatMulInteger", "QLinearMatMul"],
    "pool": ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "MaxUnpool", "RoiAlign"],
    "cast": ["Cast", "CastLike", "BitCast"],
    "quantize": ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"],
    "training": ["Adagrad", "Adam", "Momentum"],
    "rnn": ["RNN", "GRU", "LSTM"],
    "resample": ["Resize", "Upsample", "GridSample", "AffineGrid"],
    "unary": ["Ceil", "Floor", "Round", "Sign", "Sin", "Acosh", "IsNaN", "IsInf", "Not", "BitwiseNot", "Reciprocal"],
    "binary": ["Where", "And", "Or", "Xor", "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "BitShift", "BitwiseXor",
               "Less", "GreaterOrEqual"],
    "reduce": ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ArgMax", "CumSum", "CumProd", "TopK"],
    "norm": ["LayerNormalization", "RMSNormalization", "LpNormalization", "BatchNormalization", "GroupNormalization",
             "InstanceNormalization", "LRN", "MeanVarianceNormalization"],
    "softmax": ["Softmax", "LogSoftmax", "Hardmax"],
    "loss": ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"],
    "activation": ["Gelu", "Celu", "Elu", "Selu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid",
                   "Softplus", "Softsign", "Swish", "SwiGLU", "Tanh", "Mish", "Clip", "ThresholdedRelu", "Shrink"],
    "movement": ["Concat", "Split", "Squeeze", "Unsqueeze", "Flatten", "Tile", "Gather", "Slice", "Reshape",
                 "Transpose", "DepthToSpace", "SpaceToDepth", "Expand", "CenterCropPad", "GatherElements", "GatherND",
                 "ScatterElements", "ScatterND", "Pad", "OneHot", "ReverseSequence", "Trilu", "Range", "EyeLike",
                 "Unique", "NonZero", "Identity"],
    "sequence": ["SequenceInsert", "SplitToSequence", "SequenceMap", "OptionalHasElement", "OptionalGetElement"],
    "signal": ["DFT", "STFT", "MelWeightMatrix"],
    "boxes": ["NonMaxSuppression"],
    "control": ["Scan", "If", "Loop"],
}  # fmt: skip


def _each(values: Any) -> Any:
    """The arrays of results, those in lists one by one."""
    for value in values:
        yield from _each(value) if isinstance(value, list) else [value]


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _wide(value: Any) -> Any:
    """Numbers of ml_dtypes as float32."""
    value = np.asarray(value)
    return value.astype(np.float32) if value.dtype.kind == "V" or value.dtype.itemsize == 1 else value


def test_lists_of_arrays_and_none_are_fed_and_given_back() -> None:
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    array = make.make_tensor_type_proto(number, None)
    rows, maybe = make.make_sequence_type_proto(array), make.make_optional_type_proto(array)
    nodes = [
        make.make_node("OptionalHasElement", ["maybe"], ["has"]),
        make.make_node("SequenceAt", ["rows", "place"], ["row"]),
        make.make_node("Relu", ["row"], ["positive"]),
        make.make_node("SequenceInsert", ["rows", "positive"], ["more"]),
    ]
    inputs = [make.make_value_info(n, t) for n, t in (("rows", rows), ("maybe", maybe))]
    results = [make.make_value_info("more", rows), make.make_tensor_value_info("has", onnx.TensorProto.BOOL, [])]
    place = onnx.numpy_helper.from_array(np.asarray(-1, np.int64), "place")
    model = backend.prepare(make.make_model(make.make_graph(nodes, "lists", inputs, results, [place])))
    a, b = np.float32([[-1, 2]]), np.float32([3, -4, 5])
    (more, has) = model.run([[a, b], None])
    assert [m.tolist() for m in more] == [[[-1, 2]], [3, -4, 5], [3, 0, 5]]
    assert not has
    assert model.run([[a], b])[1]
    with pytest.raises(tw.Error, match="rows is a ndarray; want a list of arrays"):
        model.run([a, None])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_node_tests_of_the_onnx_package_pass(family: str) -> None:
    from onnx.backend.test import loader

    np.random.seed(0)
    ran, failed = 0, []
    for case in loader.load_model_tests(kind="node"):
        if "_expanded" in case.name or case.model.graph.node[0].op_type not in FAMILIES[family]:
            continue
        ran += 1
        for held, results in case.data_sets:
            inputs, outputs = ([_array(v) for v in side] for side in (held, results))
            try:
                made = backend.prepare(case.model).run(inputs)
                for got, want in zip(_each(made), _each(outputs), strict=True):
                    assert (got.dtype, got.shape) == (np.asarray(want).dtype, np.shape(want))
                    np.testing.assert_allclose(_wide(got), _wide(want), rtol=case.rtol, atol=1e-6)
            except (AssertionError, tw.Error) as error:
                failed.append(f"{case.name}: {error}")
    assert ran > 0
    assert not failed


def test_the_page_lists_the_ops_that_are_not_computed() -> None:
    if onnx.defs.onnx_opset_version() != 28:
        pytest.skip("the page is about operator set 28")
    text = " ".join((Path(__file__).parent.parent / "docs" / "onnx.md").read_text().split())
    covered = backend.coverage()
    assert f"Of the {len(covered)} ops of operator set 28 tilework computes {sum(covered.values())}," in text
    listed = text.partition("all but: ")[2].partition(".")[0]
    assert listed.split(", ") == [name for name, computed in covered.items() if not computed]


def test_the_page_about_it_runs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "onnx.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert len(program.splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[[0.0, 2.0, 0.0, 4.0]]\n"), done.stderr


DRAWING = {
    "RandomNormal": ({"shape": [200, 200], "mean": 2.0, "scale": 3.0}, None, 2.0, 3.0),
    "RandomUniform": ({"shape": [200, 200], "low": 1.0, "high": 3.0, "dtype": 11}, None, 2.0, 12**-0.5 * 2),
    "RandomNormalLike": ({"dtype": 10}, np.zeros((200, 200), np.int64), 0.0, 1.0),
    "RandomUniformLike": ({}, np.zeros((200, 200), np.float32), 0.5, 12**-0.5),
    "Bernoulli": ({"dtype": 7}, np.full((200, 200), 0.25, np.float32), 0.25, 0.1875**0.5),
    "Multinomial": ({"sample_size": 20000}, np.log(np.float32([[1, 2, 1], [1, 2, 1]])), 1.0, 0.5**0.5),
}


@pytest.mark.parametrize("kind", DRAWING)
def test_random_numbers_are_others_in_every_run(kind: str) -> None:
    attrs, x, mean, deviation = DRAWING[kind]
    fed = [] if x is None else [x]

    def prepared(**more: Any) -> Any:
        names = [_info("x", *x.shape, kind=onnx.helper.np_dtype_to_tensor_dtype(x.dtype))] if fed else []
        model = _model([_node(kind, ["x"] if fed else [], ["y"], **attrs, **more)], names, ["y"])
        model.opset_import[0].version = 22
        return backend.prepare(model)

    free, seeded, again = prepared(), prepared(seed=5.0), prepared(seed=5.0)
    (first,), (second,) = free.run(fed), free.run(fed)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, prepared().run(fed)[0])
    np.testing.assert_allclose(first.astype(np.float64).mean(), mean, atol=0.1)
    np.testing.assert_allclose(first.astype(np.float64).std(), deviation, atol=0.1)
    for _ in range(2):
        assert np.array_equal(seeded.run(fed)[0], again.run(fed)[0])


def test_dropout_that_trains_draws_its_mask() -> None:
    model = _model(
        [_node("Dropout", ["x", "p", "training"], ["y", "mask"])],
        [_info("x", 40, 50)], ["y", "mask"], p=np.float32(0.25), training=np.array(True),
    )  # fmt: skip
    prepared, x = backend.prepare(model), np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    y, mask = prepared.run([x])
    assert mask.dtype == bool
    assert 0.7 < mask.mean() < 0.8
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)
    assert not np.array_equal(mask, prepared.run([x])[1])


def test_gradients_that_a_model_asks_for() -> None:
    domain = "ai.onnx.preview.training"
    nodes = [
        _node("Mul", ["a", "b"], ["p"]),
        _node("Add", ["p", "a"], ["y"]),
        _node("Gradient", ["a", "b"], ["da", "db"], domain=domain, xs=["a", "b"], y="y"),
    ]
    model = _model(nodes, [_info("a", 3), _info("b", 3)], ["y", "da", "db"])
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    a, b = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)
    y, da, db = backend.prepare(model).run([a, b])
    assert np.array_equal(y, a * b + a)
    assert np.array_equal(da, b + 1)
    assert np.array_equal(db, a)


def test_shapes_may_follow_what_a_model_computes() -> None:
    make, float32, int64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    nodes = [
        make.make_node("Conv", ["x", "w"], ["high"]),
        make.make_node("Relu", ["high"], ["positive"]),
        make.make_node("NonZero", ["positive"], ["places"]),
        make.make_node("Transpose", ["places"], ["rows"]),
        make.make_node("GatherND", ["positive", "rows"], ["picked"]),
        make.make_node("ReduceSum", ["picked"], ["sum"], keepdims=0),
        make.make_node("Greater", ["sum", "limit"], ["much"]),
        make.make_node("If", ["much"], ["y"], then_branch=_branch("Neg"), else_branch=_branch("Identity")),
    ]
    w, limit = np.float32([[[[1]], [[-1]]]]), np.float32(100)
    initial = [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(limit, "limit")]
    x = make.make_tensor_value_info("x", float32, [1, 2, 60, 50])
    results = [make.make_tensor_value_info("y", float32, None), make.make_tensor_value_info("rows", int64, None)]
    model = backend.prepare(make.make_model(make.make_graph(nodes, "net", [x], results, initial)))
    random = np.random.default_rng(5)
    for scale in (1, 0.01, 1):
        held = scale * random.standard_normal((1, 2, 60, 50)).astype(np.float32)
        positive = np.maximum(held[:, :1] - held[:, 1:], 0)
        picked = positive[positive > 0]
        y, rows = model.run([held])
        np.testing.assert_allclose(y, -picked if picked.sum() > limit else picked, rtol=1e-6)
        np.testing.assert_array_equal(rows, np.argwhere(positive))


def _branch(op: str) -> Any:
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return onnx.helper.make_graph([onnx.helper.make_node(op, ["picked"], ["y"])], op, [], [y])
