"""``tilework lines``: a picture in, the straight lines in it out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import tilework as tw
from tilework.edges import PictureError, read_picture, write_picture
from tilework.lines import Lines, detect_lines, draw_lines


def _write_json(path: Path, lines: Lines, size: tuple[int, int]) -> None:
    """The lines as records, numbers to a thousandth."""
    columns = ("x1", "y1", "x2", "y2", "width", "angle", "length", "nfa", "strength")
    table = np.column_stack([lines.segments, lines.width, lines.angle, lines.length, lines.nfa, lines.strength])
    records = [dict(zip(columns, (round(float(v), 3) for v in row), strict=True)) for row in table]
    text = json.dumps({"width": size[1], "height": size[0], "lines": records}, indent=1)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise PictureError(f"{path} cannot be written: {error.strerror or error}") from error


def main(argv: Sequence[str]) -> int:
    """Draws the lines of a picture over it and says what they took."""
    parser = argparse.ArgumentParser(prog="tilework lines", description="Finds the straight lines of a picture.")
    parser.add_argument("picture", type=Path, help="a file that Pillow reads")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the lines over the picture, such as lines.png"
    )
    parser.add_argument("--json", type=Path, help="the lines as numbers, such as lines.json")
    parser.add_argument("--sigma", type=float, default=1.0, help="blur in pixels, 0 for none (%(default)g)")
    parser.add_argument("--min-length", type=float, help="pixels of the shortest line (as short as one can be sure of)")
    chosen = parser.parse_args(argv)
    pixels = read_picture(chosen.picture)
    shortest: float | Literal["auto"] = "auto" if chosen.min_length is None else chosen.min_length
    times = []
    for _ in range(5):
        start = time.perf_counter()
        lines = detect_lines(pixels, sigma=chosen.sigma, min_length=shortest)
        times.append(time.perf_counter() - start)
    write_picture(chosen.output, draw_lines(pixels, lines))
    height, width = pixels.shape[:2]
    if chosen.json is not None:
        _write_json(chosen.json, lines, (height, width))
    print(
        f"{chosen.output}: {width} x {height}, {len(lines)} lines, {min(times) * 1e3:.2f} ms, "
        f"{tw.isa()}, {tw.num_threads()} threads"
    )
    return 0
