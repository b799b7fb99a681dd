"""``tilework edges``: a picture in, its edges out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tilework as tw
from tilework.errors import Error


class PictureError(Error, OSError):
    """A file that cannot be read as a picture, or not be written."""


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Pillow reads and writes pictures; pip install 'tilework[vision]'") from error
    return Image


def read_picture(path: Path) -> Any:
    """A file as uint8: (H, W) where it is grey, else (H, W, 3)."""
    image = _pillow()
    try:
        with image.open(path) as opened:
            return np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("'")[0].strip() or type(error).__name__
        raise PictureError(f"{path} cannot be read as a picture: {reason}") from error


def write_picture(path: Path, pixels: Any) -> None:
    """A uint8 picture as a file of the kind its name ends in."""
    image = _pillow()
    try:
        image.fromarray(pixels).save(path)
    except (OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def main(argv: Sequence[str]) -> int:
    """Writes the edges of a picture and says what they took."""
    parser = argparse.ArgumentParser(prog="tilework edges", description="Finds the edges of a picture.")
    parser.add_argument("picture", type=Path, help="a file that Pillow reads")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the edges, white on black, such as edges.png")
    parser.add_argument("--low", type=float, default=50.0, help="least gradient of a pixel in a chain (%(default)g)")
    parser.add_argument("--high", type=float, default=150.0, help="least gradient that starts a chain (%(default)g)")
    parser.add_argument("--sigma", type=float, default=1.0, help="blur in pixels, 0 for none (%(default)g)")
    chosen = parser.parse_args(argv)
    pixels = read_picture(chosen.picture)
    settings = {"low": chosen.low, "high": chosen.high, "sigma": chosen.sigma}
    edges = tw.canny(pixels, **settings)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        tw.canny(pixels, **settings, out=edges)
        times.append(time.perf_counter() - start)
    write_picture(chosen.output, edges)
    height, width = edges.shape
    count = int(np.count_nonzero(edges))
    print(
        f"{chosen.output}: {width} x {height}, {count} edge pixels ({count / max(edges.size, 1):.1%}), "
        f"{min(times) * 1e3:.2f} ms, {tw.isa()}, {tw.num_threads()} threads"
    )
    return 0
