"""``tilework run``: an ONNX model on arrays in .npy files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tilework as tw
from tilework.errors import AttrError
from tilework.interop.onnx.backend import Prepared


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares, runs, writes the results and says how long each part took."""
    parser = argparse.ArgumentParser(prog="tilework run", description=__doc__)
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument(
        "--input", action="append", default=[], metavar="[NAME=]X.npy", help="an input, in order or named"
    )
    parser.add_argument("-o", "--output", action="append", default=[], type=Path, metavar="Y.npy", help="for a result")
    parser.add_argument("--device", metavar="NAME", help="an OpenCL device, as tilework.to_device takes it")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument(
        "--winograd", action="store_true", help="3x3 convolutions by fewer products, with larger errors"
    )
    parser.add_argument("--profile", action="store_true", help="list every kernel that ran")
    chosen = parser.parse_args(argv)
    begin = time.perf_counter()
    try:
        model = Prepared(chosen.model, chosen.device, chosen.threads, chosen.winograd)
    except OSError as error:
        raise AttrError(f"{chosen.model} cannot be read: {error.strerror or error}") from None
    feeds = _feeds(model, chosen.input)
    if chosen.device:
        feeds = {name: tw.to_device(array, chosen.device) for name, array in feeds.items()}
    model.build(feeds)
    middle = time.perf_counter()
    with tw.profile() as ran:
        results = model.run(feeds)
    end = time.perf_counter()
    print(f"prepared in {1e3 * (middle - begin):.1f} ms, run in {1e3 * (end - middle):.1f} ms")
    if chosen.profile:
        print(ran)
    for path, result in zip(chosen.output, results, strict=False):
        np.save(path, tw.to_host(result) if chosen.device else result)
    for name, result in zip(model.outputs, results, strict=True):
        print(f"{name}: {result.dtype} {tuple(result.shape)}")
    return 0


def _feeds(model: Prepared, given: Sequence[str]) -> dict[str, Any]:
    """Arrays by the names of the model's inputs."""
    names = [fed.name for fed in model.inputs]
    feeds: dict[str, Any] = {}
    for text in given:
        name, _, path = text.rpartition("=")
        left = [n for n in names if n not in feeds]
        if (name and name not in left) or not left:
            raise AttrError(f"run: {text} is surplus; want {', '.join(names)}")
        try:
            feeds[name or left[0]] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise AttrError(f"run: {path} is no array: {error}") from None
    return feeds
