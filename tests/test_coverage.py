"""The table of coverage: what it says of some ops, and that the page is the one that the command writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilework import cli, coverage
from tilework.registry import ops

pytest.importorskip("ml_dtypes", reason="ml_dtypes has the element types that numpy has not")


def test_the_page_is_what_the_command_writes() -> None:
    page = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text()
    rows = coverage.rows()
    assert {r.name for r in rows} == set(ops())
    assert page == coverage.markdown(rows), "want: tilework coverage --markdown > docs/coverage.md"


def test_rows_say_what_ops_do(capsys: pytest.CaptureFixture[str]) -> None:
    known = {r.name: r for r in coverage.rows() if r.name in ("conv", "concat", "lstm", "bitwise_and", "sgd_step")}
    assert known["conv"].types == "floats"
    assert known["conv"].gradient.startswith("x, w, b")
    assert all(known["conv"].routes)
    assert known["concat"].types == "floats, integers, bool, small"
    assert known["bitwise_and"].types == "integers"
    assert known["sgd_step"].routes == (True, True, False, False, False)  # it updates an operand, which JAX forbids
    assert cli.main(["coverage", "conv"]) == 0
    assert "conv" in capsys.readouterr().out
