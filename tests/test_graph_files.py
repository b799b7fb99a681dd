"""Graphs in files: what comes back is the same, and what is damaged or foreign is refused."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import safetensors

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype("f")


W, BIAS = normal(4, 3, 3, 3), normal(4)


def net(p: dict[str, Any], x: Any, n: int) -> Any:
    y = tw.conv(x, W, p["b"], padding="same", activation="relu")
    y = tw.clip(y, low=-float("inf"), high=2.0)[:, ::2, ..., 1:] if hasattr(tw, "clip") else y
    return {"sum": [y.sum(axis=(2, 3)) * float(n)], "last": tw.cast(y[-1], dtype="float64")}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tw.trace(net, {"b": BIAS}, tw.spec((2, 3, 6, 6)), 2).compile().save(tmp_path / "net.tw")
    return tmp_path / "net.tw"


def test_a_file_gives_the_graph_back(saved: Path) -> None:
    x = normal(2, 3, 6, 6)
    got, want = tw.load(saved)({"b": BIAS}, x, 2), net({"b": BIAS}, x, 2)
    np.testing.assert_array_equal(got["sum"][0], want["sum"][0])
    np.testing.assert_array_equal(got["last"], want["last"])


def test_another_process_on_another_tier_loads_it(saved: Path) -> None:
    code = (
        f"import numpy as np, tilework as tw; tw.set_isa(tw.tiers()[0]); e = tw.load({str(saved)!r});"
        "print(e({'b': np.zeros(4, 'f')}, np.ones((2, 3, 6, 6), 'f'), 2)['last'].sum())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    want = net({"b": np.zeros(4, "f")}, np.ones((2, 3, 6, 6), "f"), 2)["last"].sum()
    assert float(out) == pytest.approx(float(want), rel=1e-5)


def test_variables_are_saved_as_they_are(tmp_path: Path) -> None:
    v = tw.Variable(np.zeros(2, "f"), "v")

    def step(g: Any) -> Any:
        tw.sgd_step(v, g, lr=1.0)
        return v * 1.0

    exe = tw.trace(step, np.ones(2, "f")).compile()
    exe(np.ones(2, "f"))
    exe.save(tmp_path / "step.tw")
    again = tw.load(tmp_path / "step.tw")
    np.testing.assert_array_equal(again(np.ones(2, "f")), [-2, -2])
    np.testing.assert_array_equal(again(np.ones(2, "f")), [-3, -3])
    np.testing.assert_array_equal(v.value, [-1, -1])


def test_weights_are_read_when_they_are_packed_and_not_kept(tmp_path: Path) -> None:
    """What is loaded holds packed weights alone, and may be saved over the file that it comes from."""
    w, m, path, x = normal(64, 64, 3, 3), normal(64, 64), tmp_path / "net.tw", normal(1, 64, 8, 8)
    f = lambda x: tw.matmul(tw.conv(x, w, padding=1).sum(axis=(2, 3)), m)  # noqa: E731
    tw.trace(f, x).compile().save(path)
    exe = tw.load(path)
    pieces = 1.5 if tw.isa() == "amx" else 1.0  # of a float, three in bfloat16
    assert exe.peak_bytes < exe.arena_bytes + 1.2 * pieces * (w.nbytes + m.nbytes) + 4096
    want, before = exe(x), tw.isa()
    exe.save(path)
    np.testing.assert_array_equal(tw.load(path)(x), want)
    try:
        for name in tw.tiers():
            tw.set_isa(name)
            np.testing.assert_allclose(exe(x), f(x), rtol=1e-4, atol=1e-3)
    finally:
        tw.set_isa(before)
    other = tw.load(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    np.testing.assert_array_equal(other(x), want)
    with pytest.raises(tw.FormatError, match="has changed since it was opened"):
        other.save(tmp_path / "other.tw")


def test_what_cannot_be_saved_keeps_no_weights() -> None:
    p, x = [normal(64, 64)], normal(2, 64)
    want, seen = tw.linear(x, p[0]), weakref.ref(p[0])
    exe = tw.trace(lambda x: tw.linear(x, p[0]), x).compile(savable=False)
    p.clear()
    gc.collect()
    assert seen() is None
    np.testing.assert_array_equal(exe(x), want)
    for call, what in ((lambda: exe.save("net.tw"), "save"), (lambda: exe.graph.compile(), "was packed by a layer")):
        with pytest.raises(tw.UnsupportedError, match=what):
            call()


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    with zipfile.ZipFile(path) as file:
        structure, weights = json.loads(file.read("graph.json")), file.read("weights.safetensors")
    change(structure)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("graph.json", json.dumps(structure))
        file.writestr("weights.safetensors", weights)
    return path


def node_of(structure: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in structure["nodes"] if n["op"] == op)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda s: s.update(version=99), "version 99; want 1"),
    "format": (lambda s: s.update(format="onnx"), "is no tilework graph"),
    "cycle": (lambda s: node_of(s, "conv").update(operands=[99, 0, 1, None]), "which no earlier node makes: a cycle"),
    "op": (lambda s: node_of(s, "conv").update(op="magic"), "there is no such op here"),
    "shape": (lambda s: node_of(s, "conv").update(makes=[["float32", [1]]]), "but the file says"),
    "weight": (lambda s: node_of(s, "constant").update(tensor="../../etc/passwd"), "which the file does not hold"),
    "attribute": (lambda s: node_of(s, "conv")["attrs"].update(padding="diagonal"), "padding"),
    "missing": (lambda s: s.pop("outputs"), "graph.json is damaged"),
    "places": (lambda s: s.update(outputs=s["outputs"][:1]), "results does not have 1 places"),
    "place below 0": (lambda s: s.update(outputs=[-1 for _ in s["outputs"]]), "a place below 0"),
}


def _turned(x: Any, rate: float) -> Any:
    y = tw.cond(tw.less(tw.reduce_sum(x["a"]), np.array(3, "f")), lambda x: x * 2.0, lambda x: x - 1.0, x["a"])
    last, rows = tw.scan(lambda s, r: (s + r, s * r), y[0], y)
    tw.sgd_step(STATE, last, lr=rate)
    return {"s": last, "t": (rows, y[..., ::2])}


STATE = tw.Variable(np.zeros(4, np.float32), "state")
ODD: list[Any] = [
    None, True, 0, -1, 2, 99, 2**31, 2**63, 10**30, 1.5, float("nan"), "", "x", "conv", "cond", "placeholder",
    "variable", "float32", "*", [], [0], [[0]], [-1], {}, {"number": "x"}, {"slice": [0, 0, 0]}, {"slice": ["a"]},
    {"float": "zz"}, {"given": "rate"}, {"dtype": "O"}, {"list": ["*"]}, {"dict": [[[], "*"]]}, {"a": 1, "b": 2},
]  # fmt: skip


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from _places(item, (*path, key))


def test_any_change_of_a_structure_is_refused_or_runs(tmp_path: Path) -> None:
    x = {"a": np.ones((3, 4), np.float32)}
    path = tmp_path / "turned.tw"
    tw.trace(_turned, x, tw.number(0.1)).compile().save(path)
    with zipfile.ZipFile(path) as file:
        whole = json.loads(file.read("graph.json"))
    rng, places = np.random.default_rng(0), list(_places(whole))

    def changed(structure: dict[str, Any]) -> None:
        inside: Any = structure
        inside.clear()
        inside.update(json.loads(json.dumps(whole)))
        *before, last = places[rng.integers(len(places))]
        for key in before:
            inside = inside[key]
        inside[last] = ODD[rng.integers(len(ODD))]

    for _ in range(400):
        with contextlib.suppress(tw.Error):
            tw.load(edited(path, changed))(x, 0.1)


@pytest.mark.parametrize("name", EDITS)
def test_a_file_that_was_changed_is_refused(saved: Path, name: str) -> None:
    change, text = EDITS[name]
    with pytest.raises(tw.Error, match=text):
        tw.load(edited(saved, change))


def test_a_damaged_or_foreign_file_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    broken = tmp_path / "broken.tw"
    places = [0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 30]
    for data in [whole[:n] for n in places] + [b"x" * 99, whole[:200] + b"!" + whole[201:]]:
        broken.write_bytes(data)
        with pytest.raises(tw.FormatError, match=r"load|safetensors"):
            tw.load(broken)
    with zipfile.ZipFile(saved) as file:
        weights = file.read("weights.safetensors")
    deep = (100_000).to_bytes(8, "little") + b"[" * 100_000
    for structure, data in ((b"[" * 100_000, weights), (b"{}", deep)):
        with zipfile.ZipFile(broken, "w") as file:
            file.writestr("graph.json", structure)
            file.writestr("weights.safetensors", data)
        with pytest.raises(tw.FormatError, match="damaged"):
            tw.load(broken)
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED) as file:  # 256 MB in a quarter of one
        file.writestr("graph.json", b" " * (1 << 28))
        file.writestr("weights.safetensors", weights)
    with pytest.raises(tw.FormatError, match=r"graph\.json is compressed"):
        tw.load(broken)
    with zipfile.ZipFile(broken, "w") as file:
        file.writestr("graph.json", b" " * (1 << 26))
        file.writestr("weights.safetensors", weights)
    with pytest.raises(tw.FormatError, match=r"graph\.json has 67108864 bytes; want at most"):
        tw.load(broken)
    with zipfile.ZipFile(broken, "w") as file:
        file.writestr("../escape", "x")
    with pytest.raises(tw.FormatError, match="the file holds"):
        tw.load(broken)


def test_safetensors_hold_every_dtype() -> None:
    names = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint16", "uint8", "bool"]
    arrays = {n: np.ones((2, 3), n) for n in names} | {"empty": np.zeros((0, 2)), "scalar": np.array(3.0)}
    back, words = safetensors.loads(safetensors.dumps(arrays, {"made": "here"}))
    assert words == {"made": "here"}
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_safetensors_header_that_lies_is_refused() -> None:
    data = safetensors.dumps({"a": np.ones(4)})
    for old, new in (("[4]", "[5]"), ("[0, 32]", "[0,999]"), ("F64", "F99"), ("[4]", "[-4"), ('"a"', "'a'")):
        with pytest.raises(tw.FormatError, match="safetensors"):
            safetensors.loads(data.replace(old.encode(), new.encode()))
