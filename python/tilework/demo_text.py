"""``tilework demo text``: trains a character LSTM and a small transformer on text that comes with Python.

Both are ordinary functions of parameters and a batch; :mod:`tilework.train` differentiates and compiles them.
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import tilework as tw
from tilework import train
from tilework.arrays import Array

if TYPE_CHECKING:
    from rich.console import Console

LENGTH, BATCH = 64, 32  # characters in a piece, pieces in a batch
LEARNING_RATE = {"LSTM": 4e-3, "transformer": 2e-3}  # at first; falls to a tenth along half a cosine

# ------------------------------------------------------------------------------------------------------ the text

CHARACTERS = 200_000  # of docstrings, at most


@dataclass(frozen=True)
class Text:
    """Numbers of characters to learn from and to be tested on, and the characters they stand for."""

    train: Array
    test: Array
    alphabet: str

    def read(self, numbers: Sequence[int]) -> str:
        """The characters of some numbers."""
        return "".join(self.alphabet[int(n)] for n in numbers)


def load_text() -> Text:
    """Python's licence and the docstrings of its standard library, the last tenth of it for the test."""
    library = Path(sysconfig.get_paths()["stdlib"])
    licence = library / "LICENSE.txt"
    pieces = [licence.read_text("utf-8", "replace")] if licence.exists() else []
    size = 0
    for path in sorted(library.glob("*.py")):
        for doc in docstrings(path):
            pieces.append(doc)
            size += len(doc)
        if size > CHARACTERS:
            break
    whole = "\n\n".join(pieces)
    kept = "".join(c for c in whole if c == "\n" or " " <= c <= "~")
    alphabet = "".join(sorted(set(kept)))
    table = np.zeros(128, np.int64)
    table[[ord(c) for c in alphabet]] = np.arange(len(alphabet))
    coded = table[np.frombuffer(kept.encode("ascii"), np.uint8)]
    first = len(coded) - len(coded) // 10
    return Text(coded[:first], coded[first:], alphabet)


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in order."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            doc = ast.get_docstring(node)
            if doc and len(doc) > 40:
                yield doc


def pieces_of(text: Array, starts: Array) -> tuple[Array, Array]:
    """Pieces (B, T) of a text from some places on, and the characters that follow each of theirs."""
    at = starts[:, None] + np.arange(LENGTH + 1)
    found = text[at]
    return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, 1:])


# ------------------------------------------------------------------------------------------------------ the nets

Params: TypeAlias = dict[str, Any]
CELLS = 160
WIDTH, HEADS, LAYERS = 96, 4, 2


class Initial:
    """Initial weights out of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, spread: float) -> Array:
        return (spread * self._random.standard_normal(shape)).astype(np.float32)

    def linear(self, outputs: int, inputs: int, gain: float = 1.0) -> Params:
        return {"w": self.normal(outputs, inputs, spread=gain / math.sqrt(inputs)), "b": np.zeros(outputs, np.float32)}


def lstm_params(characters: int, seed: int) -> Params:
    """Weights of the LSTM; the forget gates begin open."""
    make = Initial(seed)
    b = np.zeros((1, 4 * CELLS), np.float32)
    b[0, CELLS : 2 * CELLS] = 1
    return {
        "embedding": make.normal(characters, 64, spread=0.5),
        "w": make.normal(1, 4 * CELLS, 64, spread=1 / 8),
        "r": make.normal(1, 4 * CELLS, CELLS, spread=1 / math.sqrt(CELLS)),
        "b": b,
        "out": make.linear(characters, CELLS),
    }


def lstm_logits(params: Params, x: Array) -> Array:
    """The scores (B T, characters) of what follows each character of x (B, T)."""
    pieces, length = x.shape
    rows = tw.transpose(tw.embedding(params["embedding"], x), axes=(1, 0, 2))
    y, _, _ = tw.lstm(rows, params["w"], params["r"], params["b"])
    by_piece = tw.reshape(tw.expand(tw.transpose(y, axes=(1, 0, 2)), shape=(pieces, length, CELLS)), shape=(-1, CELLS))
    return tw.linear(by_piece, params["out"]["w"], params["out"]["b"])


def transformer_params(characters: int, seed: int) -> Params:
    """Weights of the transformer; what is added to the stream begins small. Radford et al., 2019."""
    make = Initial(seed)
    small = 1 / math.sqrt(2 * LAYERS)

    def norm() -> Params:
        return {"weight": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}

    layers = [
        {
            "norm1": norm(),
            "qkv": make.linear(3 * WIDTH, WIDTH),
            "heads": make.linear(WIDTH, WIDTH, small),
            "norm2": norm(),
            "up": make.linear(4 * WIDTH, WIDTH),
            "down": make.linear(WIDTH, 4 * WIDTH, small),
        }
        for _ in range(LAYERS)
    ]
    return {
        "embedding": make.normal(characters, WIDTH, spread=0.3),
        "places": make.normal(LENGTH, WIDTH, spread=0.1),
        "layers": layers,
        "norm": norm(),
        "out": make.linear(characters, WIDTH),
    }


def transformer_logits(params: Params, x: Array) -> Array:
    """The scores (B T, characters) of what follows each character of x (B, T)."""
    pieces, length = x.shape
    size = WIDTH // HEADS
    stream = tw.add(tw.embedding(params["embedding"], x), params["places"])
    flat = tw.reshape(stream, shape=(-1, WIDTH))
    for layer in params["layers"]:
        inner = tw.layer_norm(flat, layer["norm1"]["weight"], layer["norm1"]["bias"])
        qkv = tw.reshape(tw.linear(inner, layer["qkv"]["w"], layer["qkv"]["b"]), shape=(pieces, length, 3, HEADS, size))
        q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        seen = tw.transpose(tw.attention(q, k, v, causal=True), axes=(0, 2, 1, 3))
        seen = tw.reshape(tw.expand(seen, shape=(pieces, length, HEADS, size)), shape=(-1, WIDTH))
        flat = tw.add(flat, tw.linear(seen, layer["heads"]["w"], layer["heads"]["b"]))
        inner = tw.layer_norm(flat, layer["norm2"]["weight"], layer["norm2"]["bias"])
        hidden = tw.gelu(tw.linear(inner, layer["up"]["w"], layer["up"]["b"]))
        flat = tw.add(flat, tw.linear(hidden, layer["down"]["w"], layer["down"]["b"]))
    flat = tw.layer_norm(flat, params["norm"]["weight"], params["norm"]["bias"])
    return tw.linear(flat, params["out"]["w"], params["out"]["b"])


NETS: dict[str, tuple[Callable[[int, int], Params], Callable[[Params, Array], Array]]] = {
    "LSTM": (lstm_params, lstm_logits),
    "transformer": (transformer_params, transformer_logits),
}

# ------------------------------------------------------------------------------------------------------ training


@dataclass
class Run:
    """What one training run did."""

    name: str
    losses: list[float] = field(default_factory=list)  # one per step, in nats per character
    tests: list[tuple[int, float]] = field(default_factory=list)  # steps done, loss on the test text
    seconds: float = 0.0
    sample: str = ""


class Learner:
    """One net with its trainer."""

    def __init__(self, name: str, text: Text, seed: int) -> None:
        make, self._logits = NETS[name]
        self.run = Run(name)
        self._text = text
        self._random = np.random.default_rng(seed)
        params = make(len(text.alphabet), seed)
        optimizer = train.AdamW(lr=LEARNING_RATE[name], weight_decay=0.01)
        self.trainer = train.Trainer(self._loss, params, optimizer, clip=train.Clip(global_norm=1.0))
        self._test = pieces_of(text.test, np.linspace(0, len(text.test) - LENGTH - 1, 64).astype(np.int64))

    def _loss(self, params: Params, x: Array, following: Array) -> Array:
        return tw.softmax_cross_entropy(self._logits(params, x), tw.reshape(following, shape=(-1,)))

    def step(self, steps: int) -> None:
        """One of ``steps`` steps on random pieces of the text."""
        done = len(self.run.losses)
        lr = LEARNING_RATE[self.run.name] * (0.1 + 0.45 * (1 + math.cos(math.pi * done / steps)))
        warm = min(1.0, (done + 1) / 20)
        starts = self._random.integers(0, len(self._text.train) - LENGTH, BATCH)
        stepped = self.trainer.step(*pieces_of(self._text.train, starts), lr=lr * warm)
        self.run.losses.append(float(stepped))

    def test(self) -> float:
        """The mean loss on pieces of the test text."""
        loss = float(self.trainer.evaluate(self._loss, *self._test))
        self.run.tests.append((len(self.run.losses), loss))
        return loss

    def write(self, begin: str, count: int, temperature: float = 0.6) -> str:
        """Goes on from some text, a character at a time, seeing the last ones of it."""
        numbers = [self._text.alphabet.index(c) for c in begin]
        for _ in range(count):
            seen = numbers[-LENGTH:]
            x = np.array([seen + [0] * (LENGTH - len(seen))], np.int64)
            scores = self.trainer.evaluate(self._logits, x)[len(seen) - 1].astype(np.float64) / temperature
            chances = np.exp(scores - scores.max())
            numbers.append(int(self._random.choice(len(chances), p=chances / chances.sum())))
        return self._text.read(numbers)


# --------------------------------------------------------------------------------------------------- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tilework demo text",
        description="Trains a character LSTM and a small transformer on Python's licence and docstrings.",
    )
    parser.add_argument("--steps", type=int, default=300, help="of each net (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the batches (default: 0)")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each net, at most (default: 25)")
    parser.add_argument("--sample", type=int, default=240, help="characters that each net writes (default: 240)")
    parser.add_argument("-o", "--out", type=Path, default=Path("tilework-text.png"), help="default: tilework-text.png")
    options = parser.parse_args(argv)
    if options.steps < 1 or options.seed < 0 or options.sample < 0:
        parser.error("--steps must be at least 1, --seed and --sample at least 0")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"there is no folder {options.out.resolve().parent} to write to")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Trains both nets, prints what they write, and draws their losses."""
    from tilework.demo import missing_packages

    options = parse(argv)
    missing = [name for name in missing_packages() if name != "scikit-learn"]
    if missing:
        print(f"tilework demo text: {', '.join(missing)} is missing; pip install 'tilework[demo]'", file=sys.stderr)
        return 2
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    text = load_text()
    size = len(text.train) + len(text.test)
    console.print(
        f"text         {size} characters of Python's licence and docstrings, {len(text.alphabet)} different ones"
    )
    runs = [learn(name, text, options, console) for name in NETS]
    draw(runs, text, options.out)
    console.print(f"drawn        [bold]{options.out}[/]")
    worst = math.log(len(text.alphabet))
    return int(not all(math.isfinite(r.tests[-1][1]) and r.tests[-1][1] < worst for r in runs))


def learn(name: str, text: Text, options: argparse.Namespace, console: Console) -> Run:
    """One training run with a live bar on a terminal, and lines about it that stay."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    learner = Learner(name, text, options.seed)
    run = learner.run
    begin = time.perf_counter()
    columns = (TextColumn(f"{name:<12}"), BarColumn(28), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tracing", total=options.steps)
        learner.test()
        while len(run.losses) < options.steps and time.perf_counter() - begin < options.seconds:
            learner.step(options.steps)
            if len(run.losses) % 25 == 0:
                learner.test()
            bar.update(task, completed=len(run.losses), description=f"loss {run.losses[-1]:.3f}")
    if run.tests[-1][0] != len(run.losses):
        learner.test()
    run.seconds = time.perf_counter() - begin
    each = 1000 * run.seconds / len(run.losses)
    console.print(
        f"{name:<12} {len(run.losses)} steps in {run.seconds:.1f} s ({each:.0f} ms each); "
        f"test loss {run.tests[0][1]:.3f} -> [bold]{run.tests[-1][1]:.3f}[/] nats a character"
    )
    if options.sample:
        run.sample = learner.write("Return ", options.sample)
        console.print("\n".join(f"    [dim]{escape(line)}[/]" for line in run.sample.splitlines()))
    return run


# --------------------------------------------------------------------------------------------------- the picture

INK, FAINT, RULE = "#1d2733", "#8a94a0", "#dfe4e8"
COLOURS = {"LSTM": "#1f6feb", "transformer": "#f0883e"}


def smoothed(losses: Sequence[float], width: int = 15) -> Array:
    """The running mean of a curve, over the steps there are at its ends."""
    kernel = np.ones(min(width, len(losses)))
    return np.convolve(losses, kernel, "same") / np.convolve(np.ones(len(losses)), kernel, "same")


def draw(runs: Sequence[Run], text: Text, path: Path) -> None:
    """Writes the picture: the losses on the left, what each net writes on the right."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 11, "text.color": INK, "axes.edgecolor": FAINT}
    style |= {"axes.labelcolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT}
    with mpl.rc_context(style):
        figure = Figure(figsize=(15, 7.6), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(0.045, 0.925, "Two nets that learn to write docstrings", size=22, weight="bold")
        about = "      ".join(f"{r.name}: {len(r.losses)} steps in {r.seconds:.1f} s" for r in runs)
        figure.text(0.045, 0.875, f"{about}      {tw.isa()} kernels, {tw.num_threads()} threads", size=12, color=FAINT)
        axes = figure.add_axes((0.06, 0.1, 0.45, 0.7))
        for run in runs:
            steps = range(1, len(run.losses) + 1)
            axes.plot(steps, run.losses, color=COLOURS[run.name], linewidth=0.8, alpha=0.3)
            axes.plot(
                steps, smoothed(run.losses), color=COLOURS[run.name], linewidth=2.4, label=f"{run.name}, training"
            )
            places, tests = zip(*run.tests, strict=True)
            axes.plot(places, tests, "o", color=COLOURS[run.name], markersize=5, label=f"{run.name}, test")
        axes.axhline(math.log(len(text.alphabet)), color=FAINT, linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.06 * math.log(len(text.alphabet)))
        axes.set_xlim(0, max(len(run.losses) for run in runs))
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats a character (dotted: guessing)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.legend(frameon=False, labelcolor=INK, loc="lower left")
        for run, top in zip(runs, (0.8, 0.44), strict=False):
            figure.text(0.55, top, f"The {run.name} writes", size=13, weight="bold", color=COLOURS[run.name])
            lines = [line[i : i + 62] for line in run.sample.splitlines() for i in range(0, max(len(line), 1), 62)]
            shown = "\n".join(lines[:11]).replace("$", r"\$")
            figure.text(0.55, top - 0.02, shown, size=9.5, family="DejaVu Sans Mono", va="top", linespacing=1.35)
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
