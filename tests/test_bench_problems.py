"""Problems of the bench: lines that reproduce, sets, and requests it cannot serve."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilework import registry
from tilework.bench import choose, problems, results
from tilework.bench.commands import main
from tilework.bench.problems import BenchError

pytest.importorskip("scipy")

_SMALL = "relu/float32 x=128x1024"


def test_every_op_of_the_registry_appears() -> None:
    assert {p.op for p in choose.every_workload()} == set(registry.ops())
    assert {p.op for p in choose.select(["default"])} >= set(registry.ops())


def test_every_op_appears_in_every_type_it_declares() -> None:
    found = {(p.op, p.dtype) for p in choose.select(["full"])}
    for name, op in registry.ops().items():
        for dtype in registry.dtypes_of(op):
            if any(_accepted(p, dtype) for p in choose.workloads_of(name)):
                assert (name, dtype) in found


def _accepted(problem: problems.Problem, dtype: str) -> bool:
    try:
        problems.checked(replace(problem, dtype=dtype))
    except BenchError:
        return False
    return True


def test_attributes_survive_the_line() -> None:
    for value in ("bhqd,bhkd->bhqk", "a b", "1", "", "it's", "None", 1.5, math.inf, -math.inf, (1, (2, 3)), None, True):
        text = problems._attr_text(value)
        assert not set(text) & set(" \t\n")
        assert problems._literal(text) == value


def test_an_op_without_workloads_stands_with_a_sample() -> None:
    (problem,) = choose.select(["crop/float32 sample=1"])
    assert problems.parse(problem.text).text == problem.text == "crop/float32 sample=1"
    assert all(p.sample is not None for p in choose.workloads_of("crop"))


@pytest.mark.parametrize("name", sorted(choose.packaged_sets()))
def test_packaged_sets_are_problems(name: str) -> None:
    assert len(choose.select([name])) >= len(problems.parse_lines(choose.packaged_sets()[name], name))


def test_lines_reproduce_every_problem() -> None:
    for p in choose.select(["full"]):
        again = problems.parse(p.text)
        assert again.text == p.text
        assert again.shapes == p.shapes
        assert again.facts == p.facts


def test_operands_are_the_same_each_time() -> None:
    for line in ("max_pool_dx dy=1x2x4x4 indices=1x2x4x4 shape=(8,8)", "softmax_cross_entropy logits=3x5 labels=3"):
        first, second = problems.parse(line).operands(), problems.parse(line).operands()
        for a, b in zip(first, second, strict=True):
            assert a is b is None or np.array_equal(a, b)


def test_facts_count_operations_and_bytes() -> None:
    f = problems.parse("conv x=1x64x56x56 w=64x64x3x3 padding=1").facts
    assert f.flops == 2 * 64 * 64 * 9 * 56 * 56
    assert (f.read, f.written) == (4 * (64 * 56 * 56 + 64 * 64 * 9), 4 * 64 * 56 * 56)
    assert problems.parse("adam_step w=10 g=10 m=10 v=10 step=1").facts.written == 120


_BAD = {
    "unknown op": (["run", "conf x=1"], "no op called 'conf'; did you mean conv"),
    "op filter": (["run", "--op", "convv"], "no op called 'convv'"),
    "unknown set": (["run", "--set", "resnet51"], "did you mean resnet50"),
    "missing file": (["run", "--set", "nothing.txt"], "no set or file called"),
    "dtype": (["run", "--dtype", "f31"], "no dtype called 'f31'"),
    "line dtype": (["run", "relu/float31 x=3"], "no dtype called 'float31'"),
    "integer dtype": (["run", "relu/int8 x=3"], "x has dtype int8"),
    "direction": (["run", "--dir", "up"], "no direction called 'up'"),
    "no gradient": (["run", "relu/float32/bwd/x x=3"], "malformed"),
    "step of a step": (["run", "sgd_step/float32/bwd w=3 g=3 lr=0.1"], "has no gradient"),
    "peer": (["run", "--peers", "nunpy"], "no peer called 'nunpy'"),
    "device": (["run", "--device", "tpu"], "tpu"),
    "threads": (["run", "--threads", "0"], "--threads 0"),
    "shape": (["run", "relu x=3x"], "shape '3x'"),
    "negative": (["run", "relu x=-3"], "shape '-3'"),
    "repeated": (["run", "relu x=3 x=4"], "repeated"),
    "missing operand": (["run", "matmul a=3x3"], "b is missing"),
    "unknown attribute": (["run", "relu x=3 y=4"], "unknown argument 'y'"),
    "shapes do not fit": (["run", "matmul a=3x3 b=4x4"], "b has shape (4, 4), K=4"),
    "too large": (["run", "relu x=999999999999x9"], "relu"),
    "out": (["run", "relu x=3 out=maybe"], "want out=given"),
    "nothing left": (["run", "--op", "conv", "--set", "softmax"], "no problem matches"),
    "absent run": (["compare", "a.json", "b.json"], "cannot read a.json"),
    "unwritable": (["run", _SMALL, "-o", "/proc/x/y.json"], "cannot write"),
    "unwritable folder": (["run", _SMALL, "-o", "/proc"], "cannot write /proc"),
    "unwritable picture": (["roofline", "-o", "/proc/x/a.svg"], "cannot write"),
    "unwritable comparison": (["ab", "--old", ".", "--new", ".", "-o", "/proc/x/a.json"], "cannot write"),
    "unwritable record": (["record", "/proc/x/a.json"], "cannot write"),
    "unwritable docs": (["record", "a.json", "--docs", "/proc/x"], "cannot write"),
    "binary file": (["run", "--set", sys.executable], "cannot read"),
    "picture name": (["roofline", "-o", "roof.bmp"], "want a name that ends in"),
    "no output": (["report", "x.json"], "want -o FILE"),
    "absent installation": (["ab", "--old", "/nowhere", "--new", "/nowhere"], "/nowhere does not exist"),
    "sample": (["run", "crop sample=99"], "want sample=0 to sample="),
    "sample and more": (["run", "crop sample=1 x=3"], "want sample=N and nothing else"),
    "nothing to resume": (["run", "--resume"], "want -o FILE"),
    "file without marks": (["report", "README", "--readme", "README"], "cannot read README"),
    "absent module": (["run", "--import", "no_such_module", _SMALL], "no_such_module"),
}


@pytest.mark.parametrize("name", _BAD)
def test_bad_requests_are_one_line_and_exit_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, text = _BAD[name]
    assert main([*argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tilework bench: ")
    assert text in said
    assert said.count("\n") == 1


_EMPTY: dict[str, Any] = {
    **dict.fromkeys(results._KEYS, ""),
    **{k: {} for k in results._KINDS[dict]},
    **{k: [] for k in results._KINDS[list]},
    "schema": results.SCHEMA,
}
_ROW: dict[str, Any] = {
    **dict.fromkeys(results._ROW_KEYS, ""),
    "threads": 1,
    "contestants": {},
    "ratios": {},
    "bound": None,
}


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("relu x=3 # fine\nrelu x=three\n")
    assert main(["list", str(bad)]) == 2
    assert "line 2: shape 'three'" in capsys.readouterr().err
    for text, said in (
        ("{", "not JSON"),
        ("[]", "has schema"),
        ('{"schema": "tilework-bench/0"}', "want 'tilework-bench/2'"),
        ('{"schema": "tilework-bench/2"}', "lacks started"),
        ("[" * 100_000, "not JSON"),
        (json.dumps(_EMPTY | {"rows": {}}), "has rows of type dict; want list"),
        (json.dumps(_EMPTY | {"rows": [{}]}), "has a row without all of"),
        (json.dumps(_EMPTY | {"rows": [_ROW | {"contestants": 3}]}), "has a row that is none"),
        (json.dumps(_EMPTY | {"rows": [_ROW | {"ratios": {"torch": 1}}]}), "has a row that is none"),
        (json.dumps(_EMPTY | {"rows": [_ROW | {"scaling": 2}]}), "has a row that is none"),
    ):
        bad.write_text(text)
        assert main(["compare", str(bad), str(bad)]) == 2
        assert said in capsys.readouterr().err
