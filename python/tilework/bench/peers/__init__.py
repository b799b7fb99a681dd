"""Other libraries, each called as its own users call it. One module per calling convention; each is optional.

A module has ``calls(problem, operands, threads)``: contestants by name, none where the library has no such op, and
``set_threads(n)``: sets the library's thread count by its own call and returns what it then reports.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Peer:
    """A library: what is imported, which distribution to install, and the module that calls it.

    The module is one of this package, or any by its dotted name: ``tilework bench --import`` may add to PEERS.
    """

    name: str
    imports: tuple[str, ...]
    install: str
    module: str
    patience: float = 15.0  # seconds for it to make and to check a contestant


PEERS = {
    p.name: p
    for p in (
        Peer("numpy", ("numpy",), "numpy", "numpy_calls"),
        Peer("scipy", ("scipy",), "scipy", "scipy_calls"),
        Peer("opt_einsum", ("opt_einsum",), "opt_einsum", "opt_einsum_calls"),
        Peer("torch", ("torch",), "torch", "torch_calls"),
        Peer("torch.compile", ("torch",), "torch", "torch_compile_calls", patience=240.0),
        Peer("onnxruntime", ("onnxruntime", "onnx"), "onnxruntime onnx", "onnxruntime_calls"),
        Peer("openvino", ("openvino", "onnx"), "openvino onnx", "openvino_calls"),
        Peer("jax", ("jax",), "jax", "jax_calls"),
        Peer("opencv", ("cv2",), "opencv-python-headless", "opencv_calls"),
        Peer("scikit-image", ("skimage",), "scikit-image", "scikit_image_calls"),
        Peer("numexpr", ("numexpr",), "numexpr", "numexpr_calls"),
    )
}


def why_absent(name: str) -> str:
    """One line saying why a peer cannot take part; ``""`` if it can."""
    peer = PEERS[name]
    missing = [m for m in peer.imports if importlib.util.find_spec(m) is None]
    return f"{' and '.join(missing)} not installed (pip install {peer.install})" if missing else ""


def version(name: str) -> str:
    """The installed version of a peer, without importing it."""
    distributions = importlib.metadata.packages_distributions().get(PEERS[name].imports[0], [])
    return importlib.metadata.version(distributions[0]) if distributions else ""


def load(name: str) -> Any:
    """The module that calls a peer."""
    module = PEERS[name].module
    return importlib.import_module(module if "." in module else f"tilework.bench.peers.{module}")


@dataclass
class Contestant:
    """A call to time. ``prepacked``: weights were handed over before; ``finish`` waits for what calls enqueued."""

    call: Callable[[], Any]
    prepacked: bool = False
    finish: Callable[[], Any] | None = None
    answer: Callable[[], list[Any]] | None = None  # the results of one call on fresh operands; default: of ``call``
    keep: Any = None  # what the call borrows

    def results(self) -> list[np.ndarray[Any, Any]]:
        """The results of one call as numpy arrays."""
        return self.answer() if self.answer else as_arrays(self.call())


def as_arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    """Results of any library as a list of numpy arrays."""
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in as_arrays(v)]
    return [] if value is None else [np.asarray(value)]
