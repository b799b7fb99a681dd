"""Verdicts of the bench: what a ratio says, two runs, two installations, bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilework
from tilework.bench import compare, measure, peaks, problems, results
from tilework.bench.commands import main

pytest.importorskip("scipy")


def _samples(seconds: Any) -> list[dict[str, float]]:
    return [{"seconds": float(s), "waited": 0.0} for s in seconds]


def test_verdicts_follow_the_interval() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, (2, 25)))
    assert measure.paired(_samples(noise[0]), _samples(noise[1])).verdict == "same"
    assert measure.paired(_samples(noise[0]), _samples(1.1 * noise[1])).verdict == "faster"
    assert measure.paired(_samples(1.1 * noise[0]), _samples(noise[1])).verdict == "slower"
    lucky = np.concatenate([0.5 * noise[0][:1], noise[0][1:]])
    assert measure.paired(_samples(lucky), _samples(noise[1])).verdict == "undecided"
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
    old = _steady(results.load(str(recorded)))
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
    (row,) = results.load(str(path))["rows"]
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
        for r in results.load(str(path))["rows"]
        for name, c in r["contestants"].items()
        if c["status"] in ("wrong", "error")
    ]
    assert not wrong
