"""``tilework demo``: trains a small conv net on real handwritten digits, on the CPU and through OpenCL.

The first half is the example to learn the library from: a net is a dict of arrays, and one function computes its loss.
``tilework demo text`` is :mod:`tilework.demo_text`.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import tilework as tw
from tilework import _core
from tilework.arrays import Array
from tilework.train import Adam, Trainer

if TYPE_CHECKING:
    from rich.console import Console

# ------------------------------------------------------------------------------------------------------- the net

Params: TypeAlias = dict[str, Array]

SMOOTHING = 0.1  # of the labels: keeps the net from being too sure of 1437 images


def initial_params(seed: int) -> Params:
    """Weights of variance 2 / inputs and biases of zero. He et al., "Delving deep into rectifiers", 2015."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (24, 1, 3, 3), "w2": (64, 24, 3, 3), "w3": (10, 64 * 2 * 2)}
    params: Params = {}
    for name, shape in shapes.items():
        spread = math.sqrt(2 / math.prod(shape[1:]))
        params[name] = (spread * random.standard_normal(shape)).astype(np.float32)
        params[name.replace("w", "b")] = np.zeros(shape[0], np.float32)
    return params


def logits_of(params: Params, x: Array) -> Array:
    """The class scores (N, 10) of images x (N, 1, 8, 8)."""
    y = tw.conv(x, params["w1"], params["b1"], padding=1, activation="relu")
    y = tw.max_pool(y, kernel=2)
    y = tw.conv(y, params["w2"], params["b2"], padding=1, activation="relu")
    y = tw.avg_pool(y, kernel=2)
    return tw.linear(tw.reshape(y, shape=(x.shape[0], -1)), params["w3"], params["b3"])


def loss_of(params: Params, x: Array, labels: Array) -> Array:
    """The mean cross entropy of images x (N, 1, 8, 8) with labels (N,)."""
    return tw.softmax_cross_entropy(logits_of(params, x), labels, label_smoothing=SMOOTHING)


# ---------------------------------------------------------------------------------------------------- the digits

BATCH = 64
LEARNING_RATE = 1e-2  # at first; falls to 0 along half a cosine
TEST_IMAGES = 360
GOAL = 0.98

# How far apart the two curves may drift: they sum in different orders, and training amplifies roundings. Two tiers of
# the CPU, which differ in the same way, were up to 0.002 apart after 440 steps.
CURVE_BOUND = 0.01

# Through OpenCL the first epochs are enough for the comparison where all of them would take longer than this.
DEVICE_SECONDS = 8.0


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,), always split the same way."""

    train_x: Array
    train_labels: Array
    test_x: Array
    test_labels: Array


def load_digits() -> Digits:
    """The 1797 digits that come with scikit-learn: 1437 to train on, 360 to test on."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return Digits(x[train], labels[train].astype(np.int64), x[test], labels[test].astype(np.int64))


def batches(digits: Digits, seed: int, epoch: int) -> Iterator[tuple[Array, Array]]:
    """The training images in the order of this epoch, a batch at a time; what is left over waits for the next."""
    order = np.random.default_rng((seed, epoch)).permutation(len(digits.train_x))
    for first in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[first : first + BATCH]
        yield digits.train_x[chosen], digits.train_labels[chosen]


# ------------------------------------------------------------------------------------------------------ training


@dataclass
class Run:
    """What one training run did, and where."""

    name: str  # "CPU" or "OpenCL"
    place: str  # tier and threads, or the device
    limit: float = math.inf  # seconds that all epochs together may take
    losses: list[float] = field(default_factory=list)  # one per step
    accuracies: list[float] = field(default_factory=list)  # one per epoch, on the test images
    predictions: Array = None
    seconds: float = 0.0
    first_step: float = 0.0  # its share of the seconds: on a device, the builds of the kernels
    first_epoch: float = 0.0  # that of the first epoch's other steps

    @property
    def accuracy(self) -> float:
        """The share of the test images that was read right at the end."""
        return self.accuracies[-1]


Progress: TypeAlias = Callable[[Run, int], None]


def train(run: Run, digits: Digits, epochs: int, seed: int, device: str | None, progress: Progress) -> None:
    """Trains the net of ``seed`` on a device or, None, on the CPU; the same weights and batches on every one."""
    net = Trainer(loss_of, initial_params(seed), Adam(), device=device)
    steps = epochs * (len(digits.train_x) // BATCH)
    begin = time.perf_counter()
    while len(run.accuracies) < epochs:
        losses = []
        for x, labels in batches(digits, seed, len(run.accuracies)):
            lr = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * net.steps / steps))
            losses.append(net.step(x, labels, lr=lr))
            if net.steps == 1:
                float(losses[0])  # waits for the step
                run.first_step = time.perf_counter() - begin
        run.losses += map(float, losses)
        if not run.accuracies:
            run.first_epoch = time.perf_counter() - begin - run.first_step
            epochs = affordable(run, epochs)
        run.predictions = np.argmax(tw.to_host(net.evaluate(logits_of, digits.test_x)), axis=1)
        run.accuracies.append(float(np.mean(run.predictions == digits.test_labels)))
        run.seconds = time.perf_counter() - begin
        progress(run, epochs)


def affordable(run: Run, epochs: int) -> int:
    """How many of the epochs fit into the run's limit, two at least; the builds of kernels do not count."""
    fit = epochs if run.first_epoch * epochs <= run.limit else int(run.limit / run.first_epoch)
    return min(epochs, max(2, fit))


def largest_difference(one: Run, other: Run) -> float:
    """Between the losses of the steps that both runs made; infinite where one is not a number."""
    steps = min(len(one.losses), len(other.losses))
    difference = float(np.max(np.abs(np.subtract(one.losses[:steps], other.losses[:steps]))))
    return difference if math.isfinite(difference) else math.inf


# --------------------------------------------------------------------------------------------------- the command


def train_on(kind: str, place: str, digits: Digits, options: argparse.Namespace, console: Console) -> Run:
    """One training run with a live bar on a terminal, and a line about it that stays."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn

    run = Run(kind, place, DEVICE_SECONDS if kind == "OpenCL" else math.inf)
    console.print(f"{kind:<8}[bold]{escape(place)}[/]")
    columns = (TextColumn(" " * 7), BarColumn(28), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("building kernels" if kind == "OpenCL" else "", total=options.epochs)

        def show(run: Run, epochs: int) -> None:
            text = f"loss {run.losses[-1]:.3f}   {100 * run.accuracy:.1f} % right"
            bar.update(task, completed=len(run.accuracies), total=epochs, description=text)

        train(run, digits, options.epochs, options.seed, "opencl" if kind == "OpenCL" else None, show)
    steps = f"{len(run.losses)} steps in {run.seconds:.1f} s"
    built = f", {run.first_step:.1f} s of them to build kernels" if kind == "OpenCL" else ""
    console.print(f"        {steps}{built}; loss {run.losses[-1]:.3f}")
    if len(run.accuracies) < options.epochs:
        done = f"{len(run.accuracies)} of {options.epochs} epochs"
        console.print(f"        {done}: all would take over {run.limit:.0f} s here")
    console.print(f"        [bold]{100 * run.accuracy:.1f} %[/] of the {len(digits.test_x)} test digits are right")
    return run


def opencl_device() -> tuple[str, str]:
    """The name of the default OpenCL device, "" if there is none, and then the reason in one line."""
    from tilework.backends import opencl
    from tilework.backends.opencl_device import default_device

    try:
        reason = opencl.why_none()
        return ("", reason) if reason else (default_device().name, "")
    except tw.DeviceError as error:  # TILEWORK_CL_DEVICE names none, or the driver is broken
        return "", str(error)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tilework demo",
        description="Trains a small conv net on real handwritten digits, on the CPU and through OpenCL, and draws it.",
        epilog="`tilework demo text` trains two nets that write: see `tilework demo text --help`.",
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the batches (default: 0)")
    parser.add_argument("--device", choices=("cpu", "opencl", "both"), default="both", help="default: both")
    parser.add_argument("--threads", type=int, help="threads of the CPU run (default: `tilework info` says why)")
    parser.add_argument("-o", "--out", type=Path, default=Path("tilework-demo.png"), help="default: tilework-demo.png")
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1 and --seed at least 0")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"there is no folder {options.out.resolve().parent} to write to")
    return options


def missing_packages() -> list[str]:
    """What the demo imports and an installation without the extra lacks."""
    needed = {"rich": "rich", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares and draws; 1 where the curves part or too few digits are read right."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["text"]:
        from tilework import demo_text

        return demo_text.main(given[1:])
    options = parse(given)
    missing = missing_packages()
    if missing:
        print(f"tilework demo: {', '.join(missing)} is missing; pip install 'tilework[demo]'", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    begin = time.perf_counter()
    digits = load_digits()
    console.print(
        f"digits  {len(digits.train_x)} images of 8 x 8 pixels to learn from, {len(digits.test_x)} to be tested on, "
        f"read in {time.perf_counter() - begin:.1f} s"
    )
    runs = []
    if options.device != "opencl":
        with tw.threads(options.threads or tw.num_threads()):
            threads = tw.num_threads()
            reason = _core.thread_count_reason() if options.threads is None else "--threads"
            place = f"{tw.isa()} kernels, {threads} thread{'s' * (threads > 1)} (from {reason})"
            runs.append(train_on("CPU", place, digits, options, console))
    if options.device != "cpu":
        device, reason = opencl_device()
        if device:
            runs.append(train_on("OpenCL", device, digits, options, console))
        else:
            console.print(f"OpenCL  none: {reason.splitlines()[0]}", markup=False)
    if not runs:
        return 1
    good = len(runs) < 2 or same_curve(runs[0], runs[1], console)
    drawn = time.perf_counter()
    draw(digits, runs, options.out)
    console.print(f"drawn   [bold]{options.out}[/] in {time.perf_counter() - drawn:.1f} s")
    if len(runs[0].accuracies) >= 20 and runs[0].accuracy < GOAL:
        good = False
        console.print(f"[red]only {100 * runs[0].accuracy:.1f} % are right; want at least {100 * GOAL:.0f} %[/]")
    return int(not good)


def same_curve(cpu: Run, device: Run, console: Console) -> bool:
    """Prints how far apart the two loss curves are, and whether that is near enough."""
    steps, difference = min(len(cpu.losses), len(device.losses)), largest_difference(cpu, device)
    near = difference <= CURVE_BOUND
    verdict = "[green]the same curve[/]" if near else "[red]not the same curve[/]"
    where = f"over {steps} steps the losses differ by at most {difference:.1e}"
    console.print(f"both    {where}: {verdict} (bound {CURVE_BOUND})")
    return near


# --------------------------------------------------------------------------------------------------- the picture

INK, FAINT, RULE, RED = "#1d2733", "#8a94a0", "#dfe4e8", "#d1372f"
COLOURS = {"CPU": "#1f6feb", "OpenCL": "#f0883e"}
GRID_ROWS, GRID_COLUMNS = 8, 12


def shown_digits(digits: Digits, run: Run) -> Array:
    """The test images to draw: every wrong one that fits, among the first of the others, in their own order."""
    wrong = np.flatnonzero(run.predictions != digits.test_labels)
    right = np.flatnonzero(run.predictions == digits.test_labels)
    count = GRID_ROWS * GRID_COLUMNS
    return np.sort(np.concatenate([wrong[:count], right[: max(0, count - len(wrong))]]))


def draw(digits: Digits, runs: Sequence[Run], path: Path) -> None:
    """Writes the picture: loss and accuracy on the left, digits with what was read on the right."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK, "axes.edgecolor": FAINT}
    style |= {"axes.labelcolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "axes.titlecolor": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(15, 8.4), dpi=120, facecolor="white")
        FigureCanvasAgg(figure)
        last = runs[0]
        wrong = int(np.sum(last.predictions != digits.test_labels))
        title = f"{100 * last.accuracy:.1f} % of {len(digits.test_x)} handwritten digits read right"
        figure.text(0.045, 0.935, title, size=23, weight="bold")
        figure.text(0.045, 0.895, headline(runs), size=12, color=FAINT)
        left = figure.add_gridspec(
            2, 1, left=0.06, right=0.42, top=0.81, bottom=0.085, hspace=0.42, height_ratios=(3, 2)
        )
        draw_losses(figure.add_subplot(left[0]), runs)
        draw_accuracies(figure.add_subplot(left[1]), runs)
        count = min(len(digits.test_x), GRID_ROWS * GRID_COLUMNS)
        figure.text(0.475, 0.833, f"{count} of the test digits and what the net read", size=12.5, weight="bold")
        figure.text(0.985, 0.833, f"{wrong} wrong" if wrong else "none wrong", size=12, color=RED, ha="right")
        grid = figure.add_gridspec(
            GRID_ROWS, GRID_COLUMNS, left=0.475, right=0.985, top=0.815, bottom=0.06, wspace=0.16, hspace=0.3
        )
        for cell, index in zip(np.ndindex(GRID_ROWS, GRID_COLUMNS), shown_digits(digits, last), strict=False):
            axes = figure.add_subplot(grid[cell])
            draw_digit(axes, digits.test_x[index, 0], int(last.predictions[index]), int(digits.test_labels[index]))
        figure.savefig(path)


def headline(runs: Sequence[Run]) -> str:
    """Where each run ran and how long it took."""
    return "      ".join(f"{run.name}: {run.place}, {len(run.losses)} steps in {run.seconds:.1f} s" for run in runs)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", size=12.5, weight="bold", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def draw_losses(axes: Any, runs: Sequence[Run]) -> None:
    """One curve per run, the second dashed over the first, which would otherwise hide it."""
    _plain(axes, "Training loss per step")
    for i, run in enumerate(runs):
        look = {"linewidth": 1.6, "linestyle": (0, (2.2, 2.2))} if i else {"linewidth": 3.2, "alpha": 0.75}
        axes.plot(range(1, len(run.losses) + 1), run.losses, color=COLOURS[run.name], label=run.name, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("step")
    axes.set_xlim(1, max(len(run.losses) for run in runs))
    axes.legend(frameon=False, loc="upper right", labelcolor=INK)
    if len(runs) == 2:
        text = f"largest difference {largest_difference(*runs):.1e} (bound {CURVE_BOUND})"
        axes.text(0.985, 0.66, text, transform=axes.transAxes, ha="right", size=10.5, color=FAINT)


def draw_accuracies(axes: Any, runs: Sequence[Run]) -> None:
    """The share of test digits read right after each epoch."""
    _plain(axes, "Test digits read right, %")
    for i, run in enumerate(runs):
        look = {"linewidth": 1.6, "marker": "o", "markersize": 3.5} if i else {"linewidth": 3.2, "alpha": 0.75}
        percent = [100 * a for a in run.accuracies]
        axes.plot(range(1, len(percent) + 1), percent, color=COLOURS[run.name], **look)
    axes.axhline(100 * GOAL, color=FAINT, linewidth=1, linestyle=":")
    axes.set_ylim(min(80.0, 100 * min(a for run in runs for a in run.accuracies[:2])), 101)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")


def draw_digit(axes: Any, image: Array, read: int, label: int) -> None:
    """One image over what was read; where that is wrong, framed in red with what it is."""
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1, interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    good = read == label
    for spine in axes.spines.values():
        spine.set(color=RULE if good else RED, linewidth=0.8 if good else 2.2)
    text = f"{read}" if good else f"{read}, is {label}"
    axes.set_xlabel(text, size=10, labelpad=2.5, color=FAINT if good else RED, weight="normal" if good else "bold")


if __name__ == "__main__":
    sys.exit(main())
