"""The bench: right before fast, honest verdicts, lines that reproduce, and requests it cannot serve."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework
from tilework import cli, registry
from tilework.bench import check, choose, compare, measure, peaks, problems, results, run, table
from tilework.bench.commands import main
from tilework.bench.problems import BenchError
from tilework.bench.remote import Remote
from tilework.bench.run import Options

pytest.importorskip("scipy")

_SMALL = "relu/float32 x=128x1024"
_RUN = ["--peers", "none", "--min-time", "0.05", "--sweeps", "1"]


def _document(path: Path) -> dict[str, Any]:
    return results.load(str(path))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with one peer."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    lines = [_SMALL, "matmul a=64x64 b=64x64", "add a=1 b=1 out=given", "linear/float64/bwd x=4x8 w=3x8 b=3"]
    assert main(["run", *lines, "--peers", "numpy", "--min-time", "0.1", "-o", str(path)]) == 0
    return path


# ------------------------------------------------------------------------------------------------------ problems


def test_every_op_of_the_registry_appears() -> None:
    assert {p.op for p in choose.every_workload()} == set(registry.ops())


def test_every_op_appears_in_every_type_it_declares() -> None:
    found = {(p.op, p.dtype) for p in choose.select(["default"])}
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
    for p in choose.select(["default"]):
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
    ):
        bad.write_text(text)
        assert main(["compare", str(bad), str(bad)]) == 2
        assert said in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- measuring


def test_a_run_is_recorded_with_raw_samples_and_facts(recorded: Path) -> None:
    document = _document(recorded)
    assert {"cpu", "affinity", "governor", "load"} <= set(document["machine"])
    assert {"tilework", "tier", "compiler", "flags", "numpy"} <= set(document["build"])
    assert {(p["kind"], p["level"]) for p in document["peaks"]} >= {("fma_f32", ""), ("read", "L1"), ("copy", "DRAM")}
    relu, matmul, call, backward = document["rows"]
    for row in (relu, matmul, call):
        assert set(row["contestants"]) == {"tilework", "numpy"}
        assert row["ratios"]["numpy"]["low"] <= row["ratios"]["numpy"]["ratio"] <= row["ratios"]["numpy"]["high"]
    ours = relu["contestants"]["tilework"]
    assert ours["passes"] == len(ours["samples"]) == len(ours["kernel_samples"]) >= 3
    assert 0 < ours["kernel"] <= ours["median"] * 1.5
    assert ours["p10"] <= ours["median"] <= ours["p90"]
    assert relu["bound"]["by"] in ("L2", "L3")
    assert matmul["bound"]["by"] == "FMA"
    assert backward["contestants"]["tilework"]["median"] > 0


def test_output_is_not_replaced_unasked(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", _SMALL, "-o", str(recorded)]) == 2
    assert "exists; want another name, or --force" in capsys.readouterr().err


_BROKEN = """
from tilework import registry
right = registry.find("relu")
class Wrong(type(registry.ops()["reshape"])):
    def __init__(self):
        self.__dict__.update(right.__dict__)
        self.name, self.operands, self.is_view = "relu", right.operands, False
    def __call__(self, x, **attrs):
        y = right(x, **attrs)
        y.flat[-1] += 0.001
        return y
registry._ops["relu"] = Wrong()
"""


def test_a_wrong_kernel_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_relu.py").write_text(_BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = registry.find("relu")
    try:
        path = tmp_path / "run.json"
        assert main(["run", _SMALL, *_RUN, "--import", "broken_relu", "-o", str(path)]) == 1
    finally:
        registry._ops["relu"] = before
    (row,) = _document(path)["rows"]
    assert row["status"] == "wrong"
    assert "median" not in row["contestants"]["tilework"]
    said = capsys.readouterr().out
    assert "1 of 131072 elements are wrong" in said
    assert "tilework bench run 'relu/float32 x=128x1024'" in said


def test_a_wrong_gradient_is_caught() -> None:
    from tilework.bench import check

    problem = problems.parse("linear/float32/bwd x=16x32 w=8x32 b=8")
    operands, op = problem.operands(), registry.ops()["linear"]
    dy = problem.upstream((16, 8))
    given = zip(op.operands, op.backward(dy, *operands), strict=False)
    right = {name: gradient for name, gradient in given if gradient is not None}
    assert check.gradient_mismatch(problem, operands, dy, right) == ""
    wrong = right | {"w": right["w"] * np.float32(1.01)}
    assert "gradient along a random direction" in check.gradient_mismatch(problem, operands, dy, wrong)


_CRASHING = """
import os
from tilework.bench.peers import PEERS, Contestant, Peer
PEERS["crashing"] = Peer("crashing", ("json",), "", "crashing.calls_module")
"""
_CRASHING_CALLS = """
import os
from tilework.bench.peers import Contestant
def set_threads(count): return count
def calls(problem, operands, threads): os.abort()
"""


def test_a_crashing_peer_is_named_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "crashing"
    package.mkdir()
    (package / "__init__.py").write_text(_CRASHING)
    (package / "calls_module.py").write_text(_CRASHING_CALLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "run.json"
    from tilework.bench import peers

    monkeypatch.setattr(peers, "PEERS", dict(peers.PEERS))
    lines = [_SMALL, "exp x=1000"]
    assert (
        main(["run", *lines, "--import", "crashing", "--peers", "crashing", "--min-time", "0.05", "-o", str(path)]) == 0
    )
    rows = _document(path)["rows"]
    assert [r["status"] for r in rows] == ["ok", "ok"]
    assert all("SIGABRT" in r["contestants"]["crashing"]["message"] for r in rows)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_what_was_measured(sent: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    where = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "tilework.bench", "run", "--set", "elementwise", *_RUN, "-o", str(path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": where}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[3/"):
            break
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == 130
    document = _document(path)
    assert document["interrupted"]
    assert len(document["rows"]) >= 2


def test_a_run_goes_on_where_it_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    again = ["--peers", "none", "--min-time", "0.05", "--sweeps", "2", "-o", str(path), "--resume"]
    assert main(["run", _SMALL, *again]) == 0
    (before,) = _document(path)["rows"]
    assert before["sweeps"] == 1  # with nobody beside it there is no ratio to be sure of
    assert main(["run", _SMALL, "exp x=1000", *again]) == 0
    document = _document(path)
    assert [r["op"] for r in document["rows"]] == ["relu", "exp"]
    assert document["rows"][0] == before
    assert len(before["contestants"]["tilework"]["samples"]) >= 3
    assert main(["run", _SMALL, *again[:-1], "--resume", "--cold", "all"]) == 2
    assert "was made with" in capsys.readouterr().err


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def _becomes(pid: int, states: str) -> bool:
    for _ in range(200):
        if _state(pid) in tuple(states) or (not states and not _state(pid)):
            return True
        time.sleep(0.02)
    return False


def test_a_worker_runs_only_while_it_is_asked() -> None:
    worker = Remote("tilework")
    try:
        assert _becomes(worker.facts["pid"], "T")
        assert worker.ask("threads", count=1) == {"threads": 1}
        assert _becomes(worker.facts["pid"], "T")
    finally:
        worker.close()
    assert not _state(worker.facts["pid"])


def test_a_stopped_worker_does_not_outlive_its_parent() -> None:
    script = (
        "from tilework.bench.remote import Remote; w = Remote('tilework'); print(w.facts['pid'], flush=True); input()"
    )
    where = os.pathsep.join(p for p in sys.path if p)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _becomes(pid, "T")
        parent.kill()
    assert _becomes(pid, "Z") or not _state(pid)


def test_blocks_of_a_pass_run_on_one_cpu_and_go_round_the_places() -> None:
    cpus: list[list[Any]] = [[], []]

    def asker(kept: list[Any]) -> measure.Asker:
        def ask(cpu: int | None) -> dict[str, Any]:
            kept.append(cpu)
            return {"seconds": 1.0, "waited": 0.0}

        return ask

    measure.interleave({"a": asker(cpus[0]), "b": asker(cpus[1])}, measure.Plan(least=9, most=9), 1)
    assert cpus[0] == cpus[1]
    assert set(cpus[0]) <= os.sched_getaffinity(0)
    assert len(set(cpus[0][:4])) == 1
    measure.interleave({"a": asker(cpus[0])}, measure.Plan(least=9, most=9), 2)
    assert cpus[0][9:] == [None] * 9


@pytest.mark.parametrize("threads", [1, 2])
def test_wide_rows_come_first_again_and_few_run_on_more_threads(threads: int) -> None:
    lines = [problems.parse(t) for t in ("relu x=1000", "relu x=2000", "relu x=4000", "exp x=1000", "gpt2 x=1x8x64")]
    options = Options(lines, threads=[1, 2], few=choose.one_of_each(lines))
    found = [p.text for p, t, _ in options.jobs() if t == threads]
    every = [p.text for p in lines]
    assert found == [every[i] for i in ((1, 3, 4, 0, 2) if threads == 1 else (1, 3, 4))]  # one of each op first
    best = {"ratio": 1.3, "low": 1.2, "high": 1.4, "verdict": "faster", "rounds": 9}
    row = {"status": "ok", "contestants": {"numpy": {"median": 1.0}}, "ratios": {"numpy": best}}
    assert run._width(row) == pytest.approx(math.log(1.4 / 1.2))
    best.update(low=0.0, high=math.inf)
    assert run._width(row) == math.inf
    assert run._width(row | {"status": "wrong"}) == run._width(row | {"ratios": {}}) == 0


def test_what_is_far_behind_is_measured_in_the_first_round_only() -> None:
    def asker(seconds: float) -> measure.Asker:
        return lambda cpu: {"seconds": seconds, "waited": 0.0}

    askers = {"tilework": asker(9.0), "near": asker(1.0), "far": asker(3.0)}
    samples, _ = measure.interleave(askers, measure.Plan(least=12, most=12), 1, rivals=("near", "far"))
    assert {name: len(taken) for name, taken in samples.items()} == {"tilework": 12, "near": 12, "far": 4}


def test_workers_share_the_operands(tmp_path: Path) -> None:
    path, problem = str(tmp_path / "operands"), problems.parse("add/bfloat16 a=3x5 b=5")
    first, again = check.shared_operands(problem, path), check.shared_operands(problem, path)
    assert all(np.array_equal(a, b) and a is not b for a, b in zip(first, again, strict=True))
    other = problems.parse("add/bfloat16 a=2x5 b=5")
    assert check.shared_operands(other, path)[0].shape == (2, 5)


@pytest.mark.parametrize("name", sorted(n for n, o in registry.ops().items() if o.differentiable))
def test_every_gradient_has_both_directions(name: str) -> None:
    from tilework.bench import ours

    op = registry.ops()[name]
    for direction in ("bwd", "step"):
        problem = problems.of_sample(name, registry.dtypes_of(op)[0], 0, direction)
        operands = problem.operands()
        contestant = ours.calls(problem, operands)["tilework"]
        assert ours.check_answer(problem, operands, contestant, None)[0] == ""


def test_a_run_out_of_time_says_what_it_left_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lines = str(tmp_path / "run.json"), [_SMALL, "exp x=1000", "log x=1000"]
    command = ["record", path, *lines, "--peers", "numpy", "--threads", "1", "--docs", str(tmp_path)]
    (tmp_path / "README.md").write_text("<!-- bench:begin --><!-- bench:end -->")
    command += ["--readme", str(tmp_path / "README.md")]
    assert main([*command, "--minutes", "0.0001"]) == 0
    for _ in range(8):  # each has a few seconds at least
        if "left" not in _document(Path(path)):
            break
        assert "rows left; the same command goes on" in capsys.readouterr().err
        assert main([*command, "--minutes", "0.0001"]) == 0
    assert {r["op"] for r in _document(Path(path))["rows"]} == {"relu", "exp", "log"}
    before = Path(path).read_bytes()
    assert main([*command, "--minutes", "0.0001"]) == 0
    assert Path(path).read_bytes() == before  # a whole run is kept
    assert "## The 10 worst rows" in (tmp_path / "performance.md").read_text()
    assert "| all |" in (tmp_path / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ ratios, verdicts


def _samples(seconds: Any) -> list[dict[str, float]]:
    return [{"seconds": float(s), "waited": 0.0} for s in seconds]


def test_verdicts_follow_the_interval() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, (2, 25)))
    assert measure.paired(_samples(noise[0]), _samples(noise[1])).verdict == "same"
    assert measure.paired(_samples(noise[0]), _samples(1.1 * noise[1])).verdict == "faster"
    assert measure.paired(_samples(1.1 * noise[0]), _samples(noise[1])).verdict == "slower"
    wild = np.exp(np.random.default_rng(0).normal(0, 0.5, (2, 25)))
    assert measure.paired(_samples(wild[0]), _samples(wild[1])).verdict == "undecided"
    assert measure.paired(_samples(noise[0][:2]), _samples(noise[1][:2])).verdict == "undecided"


def test_a_round_counts_its_fastest_pass() -> None:
    passes = _samples([1.0, 9.0, 2.0, 9.0] * 9)
    assert [s["seconds"] for s in measure.rounds(passes)] == [1.0] * 9
    assert [s["seconds"] for s in measure.rounds(passes[:5])] == [1.0, 9.0, 2.0, 9.0, 1.0]
    assert measure.summary(passes)["median"] == 1.0
    assert measure.summary([{"seconds": 9.0, "waited": 0.5}] * 6)["busy"]


def _slowed(document: dict[str, Any], factor: float) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for row in copy["rows"]:
        ours = row["contestants"]["tilework"]
        ours["samples"] = [[s * factor, w] for s, w in ours["samples"]]
    return copy


def _steady(document: dict[str, Any]) -> dict[str, Any]:
    """The run as a quiet machine would have given it, but for one pass in four."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    jitter = np.random.default_rng(3)
    for row in copy["rows"]:
        ours = row["contestants"]["tilework"]
        ours["samples"] = [
            [ours["median"] * (1 if i % 4 else 1.5) * math.exp(jitter.normal(0, 0.005)), 0.0] for i in range(36)
        ]
        ours["kernel_samples"] = None
    return copy


def test_compare_calls_a_slowed_run_slower_and_an_identical_one_not(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _steady(_document(recorded))
    for name, document in (("old", old), ("slow", _slowed(old, 1.1)), ("again", old)):
        results.save(str(tmp_path / f"{name}.json.gz"), document)
    path = {n: str(tmp_path / f"{n}.json.gz") for n in ("old", "slow", "again")}
    assert main(["compare", path["old"], path["slow"], "--fail-over", "5%"]) == 1
    assert {j["verdict"] for j in compare.rows(old, _slowed(old, 1.1))} == {"slower"}
    assert main(["compare", path["old"], path["slow"], "--fail-over", "15%"]) == 0
    assert main(["compare", path["old"], path["again"], "--fail-over", "5%"]) == 0
    assert "same" in capsys.readouterr().out


_SLOW = """
import pathlib, time
__path__ = [{real!r}, {core!r}]
exec(compile(pathlib.Path({real!r}, "__init__.py").read_text(), "tilework", "exec"))
from dataclasses import replace
from tilework.bench import ours
right = ours.calls
def slowed(call):
    def slow():
        begin = time.perf_counter()
        y = call()
        end = begin + {factor} * (time.perf_counter() - begin)
        while time.perf_counter() < end:
            pass
        return y
    return slow
if {factor} > 1:
    ours.calls = lambda *given: {{n: replace(c, call=slowed(c.call)) for n, c in right(*given).items()}}
"""


def _installation(folder: Path, factor: float) -> str:
    package = folder / "tilework"
    package.mkdir(parents=True)
    real, core = (str(Path(str(m.__file__)).parent) for m in (tilework, tilework._core))
    (package / "__init__.py").write_text(_SLOW.format(real=real, core=core, factor=factor))
    return str(folder)


def _ab(tmp_path: Path, factor: float, *more: str) -> dict[str, Any]:
    old, new = _installation(tmp_path / "old", 1.0), _installation(tmp_path / "new", factor)
    path = tmp_path / "ab.json"
    line = "matmul a=192x192 b=192x192"
    assert main(["ab", "--old", old, "--new", new, line, "-o", str(path), *more]) in (0, 1)
    (row,) = _document(path)["rows"]
    assert row["status"] == "ok", row["message"]
    return dict(row["ratios"]["old"])


@pytest.mark.slow
def test_ab_calls_a_slowed_kernel_slower(tmp_path: Path) -> None:
    ratio = _ab(tmp_path, 1.4, "--pairs", "1", "--min-time", "0.5")
    assert ratio["verdict"] == "slower", ratio
    assert ratio["ratio"] < 0.9


@pytest.mark.slow
def test_ab_does_not_call_an_identical_build_slower_or_faster(tmp_path: Path) -> None:
    ratio = _ab(tmp_path, 1.0, "--pairs", "2", "--min-time", "0.6")
    assert ratio["verdict"] in ("same", "undecided"), ratio


@pytest.mark.slow
def test_ab_calls_a_kernel_slower_by_a_tenth(tmp_path: Path) -> None:
    assert _ab(tmp_path, 1.1, "--min-time", "6")["verdict"] == "slower"


def test_a_device_row_is_bound_by_products_memory_or_one_launch() -> None:
    device = {"fma_f32": 1e12, "copy": 1e11, "launch_seconds": 1e-5}
    for line, by in (("matmul a=512x512 b=512x512", "FMA"), ("relu x=4194304", "memory"), ("relu x=8", "launch")):
        bound = peaks.device_bound(problems.parse(line).facts, device)
        assert bound is not None
        assert bound["by"] == by


@pytest.mark.slow
def test_peers_compute_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = ["run", "--quick", "--set", "vision", "--peers", "all", "--mode", "correctness", "-o", str(path)]
    assert main(command) == 0
    wrong = [
        (r["problem"], name, c["message"])
        for r in _document(path)["rows"]
        for name, c in r["contestants"].items()
        if c["status"] in ("wrong", "error")
    ]
    assert not wrong


# --------------------------------------------------------------------------------------------- pages and pictures


def test_pages_and_pictures(recorded: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, text, picture = (str(tmp_path / n) for n in ("a.html", "a.md", "a.svg"))
    assert main(["report", str(recorded), str(recorded), "-o", page, "--markdown", text]) == 0
    assert main(["roofline", str(recorded), "-o", picture]) == 0
    html = Path(page).read_text()
    assert html.count("<svg") == 2
    assert "Against the earlier run" in html
    assert "## Every row" in Path(text).read_text()
    assert Path(picture).read_text().startswith("<?xml")


def test_a_readme_keeps_all_but_the_marked_lines(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    for _ in range(2):
        assert main(["report", str(recorded), "--readme", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench:begin -->\n")
    assert text.endswith("\n<!-- bench:end -->\nafter\n")
    assert "old" not in text
    assert "| all |" in text
    page.write_text("<!-- bench:end --> <!-- bench:begin -->")
    assert main(["report", str(recorded), "--readme", str(page)]) == 2
    assert "lacks the lines" in capsys.readouterr().err


def test_a_thinned_run_has_the_same_times_and_ratios(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "thin.json"
    assert main(["report", str(recorded), "--record", str(path)]) == 0
    assert path.stat().st_size < recorded.stat().st_size
    for full, thin in zip(_document(recorded)["rows"], _document(path)["rows"], strict=True):
        taken = {n: results.samples(thin, n) for n, c in thin["contestants"].items() if c["status"] == "ok"}
        for name, samples in taken.items():
            assert measure.summary(samples)["median"] == pytest.approx(full["contestants"][name]["median"], rel=1e-4)
        for name, ratio in full["ratios"].items():
            assert measure.paired(taken["tilework"], taken[name]).ratio == pytest.approx(ratio["ratio"], rel=1e-3)


_ROOT = Path(__file__).parents[1]


def test_the_pages_in_the_repository_are_those_of_the_recorded_run() -> None:
    from tilework.bench import report

    record = _ROOT / "docs" / "performance.json.gz"
    document = _document(record)
    assert record.stat().st_size < 400_000
    pictures = sorted(p.name for p in record.parent.glob("performance-*.png"))
    assert (_ROOT / "docs" / "performance.md").read_text() == report.markdown(document, str(record), pictures)
    assert report.summary(document) in (_ROOT / "README.md").read_text()


def test_tables_are_plain_when_piped(recorded: Path) -> None:
    row = _document(recorded)["rows"][0]
    cells = table.cells(row)
    assert len(cells) == len(table.COLUMNS)
    assert "\x1b" not in table.plain(table.COLUMNS, [cells])
    assert table.seconds_text(1.5e-5) == "15 us"
    assert table.count_text(116e9, "F/s") == "116 GF/s"


def test_list_gives_lines_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--op", "conv_dw"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) >= 5
    for line in lines:
        problems.parse(line.split("'")[1])


# -------------------------------------------------------------------------------------------------- the command


def test_info_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("tilework", "tiers", "(active)", "threads", "from ", "OpenCL", "numpy"):
        assert word in said


def test_the_command_passes_arguments_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "list", "--sets"]) == 0
    assert "resnet50" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2


def test_errors_carry_their_kind() -> None:
    with pytest.raises(BenchError):
        problems.parse("nonsense")
    assert issubclass(BenchError, tilework.Error)


def test_importing_tilework_does_not_import_the_bench() -> None:
    where = os.pathsep.join(p for p in sys.path if p)
    script = (
        "import sys, tilework; print([m for m in sys.modules if m.startswith(('tilework.bench', 'scipy', 'rich'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
        check=True,
    )
    assert done.stdout.strip() == "[]"
