"""The bench of pictures: who took how long, what was reached, and what is missing."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
import pytest

from tilework.bench import pictures
from tilework.bench.commands import main


def test_their_time_is_told_over_ours() -> None:
    ours, ratio = pictures.interleaved(lambda: time.sleep(0.001), lambda: time.sleep(0.004), 0.0)
    assert 0.001 <= ours < 0.004
    assert ratio > 1.5


def test_a_bar_is_reached_from_its_side() -> None:
    assert pictures.Judged("share", 0.9, None, 0.89).good
    assert not pictures.Judged("lines", 1.5, 0.5, 1.0, least=True).good


def test_another_answer_has_no_time() -> None:
    race = pictures.Race("zeros", "none", lambda: np.zeros(3), lambda: np.ones(3), 1.0)
    with pytest.raises(AssertionError, match="zeros of none"):
        pictures.timed(race, None, [1], 0.0)


def test_without_opencv_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec

    def missing(name: str, *args: Any) -> Any:
        return None if name == "cv2" else found(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert main(["pictures"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("tilework bench: pictures are measured beside OpenCV")
    assert told.count("\n") == 1


def test_lines_and_edges_are_raced() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn brings the pictures")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("OpenCV has no contributed modules")
    names = [race.what for race in pictures.races(cv2)]
    assert names.count("canny") == names.count("detect_lines") == 3
