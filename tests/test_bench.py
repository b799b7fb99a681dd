"""Runs of the bench: right before fast, recorded whole, and what may happen to one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilework import registry
from tilework.bench import cases, check, measure, problems, results, run
from tilework.bench.commands import main
from tilework.bench.remote import Remote
from tilework.bench.run import Options

pytest.importorskip("scipy")

_SMALL = "relu/float32 x=128x1024"
_RUN = ["--peers", "none", "--min-time", "0.05", "--sweeps", "1"]


def test_a_run_is_recorded_with_raw_samples_and_facts(recorded: Path) -> None:
    document = results.load(str(recorded))
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
    assert matmul["bound"]["by"] in ("FMA", "dot/6")
    assert backward["contestants"]["tilework"]["median"] > 0


def test_rows_on_two_threads_are_measured_beside_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert main(["run", "matmul/float32 a=256x256 b=256x256", "--threads", "1,2", *_RUN, "-o", str(path)]) == 0
    one, two = results.load(str(path))["rows"]
    assert "scaling" not in one
    assert len(two["alone"]) == two["contestants"]["tilework"]["passes"]
    assert 0.5 < two["scaling"]["ratio"] < 2.5
    columns, lines = cases.of_set({"rows": [one, two]}, "products")
    assert columns[-1] == "2 for 1"
    assert [line[-1] for line in lines] == [f"{two['scaling']['ratio']:.2f}"]


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
    (row,) = results.load(str(path))["rows"]
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


@pytest.mark.parametrize("direction", ["fwd", "step"])
def test_attention_beyond_memory_is_checked_on_some_heads(monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    from tilework.bench import check, ours, peers

    monkeypatch.setattr(check, "_MOST_SCORES", 0)
    problem = problems.parse(f"attention/float32/{direction} q=2x8x9x4 k=2x4x11x4 v=2x4x11x6 causal=True")
    operands = problem.operands()
    part = check.sampled(problem, operands)
    assert part is not None
    assert part("q", operands[0]).shape == (2, 6, 9, 4)
    assert part("k", operands[1]).shape[1] == 3
    contestant, want = ours.calls(problem, operands)["tilework"], ours.expected(problem, operands)
    assert ours.check_answer(problem, operands, contestant, want)[0] == ""
    wrong = contestant.call()
    (wrong[0] if direction == "step" else wrong)[1, 7] *= np.float32(1.01)  # the last head
    assert ours.check_answer(problem, operands, peers.Contestant(lambda: wrong), want)[0] != ""


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
    rows = results.load(str(path))["rows"]
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
    document = results.load(str(path))
    assert document["interrupted"]
    assert len(document["rows"]) >= 2


def test_a_run_goes_on_where_it_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    again = ["--peers", "none", "--min-time", "0.05", "--sweeps", "2", "-o", str(path), "--resume"]
    assert main(["run", _SMALL, *again]) == 0
    (before,) = results.load(str(path))["rows"]
    assert before["sweeps"] == 1  # with nobody beside it there is no ratio to be sure of
    assert main(["run", _SMALL, "exp x=1000", *again]) == 0
    document = results.load(str(path))
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


def test_a_problem_keeps_its_reference_and_wide_rows_come_first_again() -> None:
    lines = [problems.parse(t) for t in ("relu x=1000", "exp x=1000")]
    jobs = Options(lines, threads=[1, 2]).jobs()
    assert [(p.op, t) for p, t, _ in jobs] == [("relu", 1), ("relu", 2), ("exp", 1), ("exp", 2)]
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


def test_a_run_out_of_time_says_what_it_left_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_LEAST_SECONDS", 0.0)  # all of it goes into the peaks
    path, lines = str(tmp_path / "run.json"), [_SMALL, "exp x=1000", "log x=1000"]
    command = ["record", path, *lines, "--peers", "numpy", "--threads", "1", "--docs", str(tmp_path)]
    (tmp_path / "README.md").write_text(f"<!-- bench:{tmp_path.name}:begin --><!-- bench:{tmp_path.name}:end -->")
    command += ["--readme", str(tmp_path / "README.md")]
    assert main([*command, "--minutes", "0.0001"]) == 0
    for _ in range(2):  # each measures a row
        if "left" not in results.load(str(Path(path))):
            break
        assert "rows left; the same command goes on" in capsys.readouterr().err
        assert main([*command, "--minutes", "0.0001"]) == 0
    assert {r["op"] for r in results.load(str(Path(path)))["rows"]} == {"relu", "exp", "log"}
    before = Path(path).read_bytes()
    assert main([*command, "--minutes", "0.0001"]) == 0
    assert Path(path).read_bytes() == before  # a whole run is kept
    assert "## The 10 worst rows" in (tmp_path / "performance.md").read_text()
    assert "| best peer |" in (tmp_path / "README.md").read_text()
