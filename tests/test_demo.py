"""The demo trains, draws and tells what it did."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import tilework as tw
from tilework import demo
from tilework.arrays import Array

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib")
pytest.importorskip("rich", reason="the progress is shown by rich")


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tilework", "demo", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def _png(path: Path) -> tuple[int, int, int]:
    """Width, height and the number of different bytes of the pixels' rows."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at, pixels = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            pixels += data[at + 8 : at + 8 + length]
        at += length + 12
    return width, height, len(set(zlib.decompress(pixels)))


def test_two_epochs_on_the_cpu_learn_and_draw(tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    done = _run("--epochs", "2", "--device", "cpu", "--threads", "1", "-o", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tw.isa()} kernels, 1 thread (from --threads)" in done.stdout
    assert "44 steps" in done.stdout
    assert "\x1b" not in done.stdout, "a pipe is no terminal"
    width, height, shades = _png(out)
    assert width > 1000
    assert height > 600
    assert shades > 100


def test_it_goes_on_without_a_device(tmp_path: Path) -> None:
    done = _run("--epochs", "1", "-o", str(tmp_path / "demo.png"), TILEWORK_CL_DEVICE="no such device")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nOpenCL  none: " in done.stdout


def test_the_net_learns() -> None:
    run = demo.Run("CPU", "here")
    digits = demo.load_digits()
    demo.train(run, digits, 6, 0, None, lambda run, epochs: None)
    assert run.accuracy > 0.95
    assert run.losses[-1] < 0.4 * run.losses[0]


def test_gradients_are_the_slope_of_the_loss() -> None:
    random = np.random.default_rng(0)
    params = {n: p + 0.1 * random.standard_normal(p.shape) for n, p in demo.initial_params(0).items()}
    x, labels = random.standard_normal((5, 1, 8, 8)), np.array([3, 1, 4, 1, 5])
    gradients = tw.grad(demo.loss_of)(params, x, labels)
    for name, gradient in gradients.items():
        direction = random.standard_normal(gradient.shape)

        def loss(step: float, name: str = name, direction: Array = direction) -> float:
            moved = params | {name: params[name] + step * direction}
            return float(demo.loss_of(moved, x, labels))

        slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
        assert np.sum(gradient * direction) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_curves_are_compared_over_the_steps_both_made() -> None:
    one, other = demo.Run("CPU", ""), demo.Run("OpenCL", "")
    one.losses, other.losses = [2.0, 1.0, 0.5], [2.0, 1.25]
    assert demo.largest_difference(one, other) == 0.25
    other.losses[1] = float("nan")
    assert demo.largest_difference(one, other) == float("inf")


@pytest.mark.opencl
def test_a_device_follows_the_same_curve(tmp_path: Path) -> None:
    done = _run("--epochs", "2", "-o", str(tmp_path / "demo.png"))
    if "OpenCL  none" in done.stdout:
        pytest.skip("no OpenCL device")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same curve" in done.stdout


def test_two_nets_learn_to_write(tmp_path: Path) -> None:
    out = tmp_path / "text.png"
    done = _run("text", "--steps", "30", "--sample", "20", "-o", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("30 steps in") == 2
    assert done.stdout.count("    Return ") == 2
    assert _png(out)[0] > 1000
    found = [float(v) for v in re.findall(r"-> ([\d.]+) nats", done.stdout)]
    assert all(v < 3.6 for v in found), done.stdout
