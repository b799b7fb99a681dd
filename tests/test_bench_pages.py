"""Pages, pictures and tables of the bench, and its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tilework
from tilework import cli
from tilework.bench import cases, choose, measure, problems, results, table
from tilework.bench.commands import main
from tilework.bench.problems import BenchError

pytest.importorskip("scipy")


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
    assert "| best peer |" in text
    page.write_text("<!-- bench:end --> <!-- bench:begin -->")
    assert main(["report", str(recorded), "--readme", str(page)]) == 2
    assert "lacks the lines" in capsys.readouterr().err


def test_a_readme_has_tables_of_sets(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:products:begin --><!-- bench:products:end -->")
    assert main(["report", str(recorded), "--readme", str(page), "--set", "products"]) == 0
    (line,) = [one for one in page.read_text().splitlines() if one.startswith("| matmul n=64")]
    assert "numpy" in line
    assert main(["report", str(recorded), "--readme", str(page), "--set", "sequence"]) == 2
    assert "no row of the set sequence" in capsys.readouterr().err
    assert main(["report", str(recorded), "--set", "products", "--record", str(tmp_path / "a.json")]) == 2


def test_networks_are_shown_as_compiled_beside_each_library_at_its_best() -> None:
    def entry(seconds: float) -> dict[str, Any]:
        return {"median": seconds, "status": "ok", "samples": [[seconds, 0.0]] * 9}

    times = {"tilework": 4.0, "tilework graph": 2.0, "torch": 5.0, "torch channels_last": 3.0, "onnxruntime const": 2.5}
    text = next(p.text for p in choose.select(["networks"]) if p.op == "mobilenet")
    row = {"problem": text, "op": "mobilenet", "status": "ok", "threads": 1, "direction": "fwd", "dtype": "float32"}
    row |= {"contestants": {n: entry(t) for n, t in times.items()}}
    columns, lines = cases.of_set({"rows": [row]}, "networks")
    assert columns == ["network", "threads", "compiled graph", "torch", "onnxruntime", "ratio"]
    assert [line[1:] for line in lines] == [["1", "2 s", "3 s (1.50)", "2.5 s (1.25)", "1.25"]]


def test_a_thinned_run_has_the_same_times_and_ratios(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "thin.json"
    assert main(["report", str(recorded), "--record", str(path)]) == 0
    assert path.stat().st_size < recorded.stat().st_size
    for full, thin in zip(results.load(str(recorded))["rows"], results.load(str(path))["rows"], strict=True):
        taken = {n: results.samples(thin, n) for n, c in thin["contestants"].items() if c["status"] == "ok"}
        for name, samples in taken.items():
            assert measure.summary(samples)["median"] == pytest.approx(full["contestants"][name]["median"], rel=1e-4)
        for name, ratio in full["ratios"].items():
            assert measure.paired(taken["tilework"], taken[name]).ratio == pytest.approx(ratio["ratio"], rel=1e-3)


_ROOT = Path(__file__).parents[1]


_MEASURED = sorted(p.parent for p in _ROOT.glob("docs/performance/*/performance.json.gz"))


@pytest.mark.parametrize("folder", _MEASURED, ids=lambda p: str(p.name))
def test_the_pages_in_the_repository_are_those_of_the_recorded_run(folder: Path) -> None:
    from tilework.bench import report

    record = folder / "performance.json.gz"
    document = results.load(str(record))
    assert record.stat().st_size < 400_000
    pictures = sorted(p.name for p in folder.glob("performance-*.png"))
    assert (folder / "performance.md").read_text() == report.markdown(document, str(record), pictures)
    marks = (f"<!-- bench:{folder.name}:begin -->\n", f"\n<!-- bench:{folder.name}:end -->")
    readme = (_ROOT / "README.md").read_text()
    assert report.summary(document).join(marks) in readme
    assert f"docs/performance/{folder.name}/README.md" in readme


def test_tables_are_plain_when_piped(recorded: Path) -> None:
    row = results.load(str(recorded))["rows"][0]
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
