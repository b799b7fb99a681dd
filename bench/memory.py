"""Memory that whole networks take beside their peers: ``python bench/memory.py``.

Every contestant runs in a process of its own: the libraries are imported, the peak of the resident memory is noted, the
network is loaded from a file (a step: made) and run twice, and what the peak has grown by is printed in MB.
"""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

INFERENCE = ("resnet50", (1, 3, 224, 224))
STEP = ("resnet18", (8, 3, 224, 224))


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def network(name: str) -> Any:
    """A network of the bench."""
    from tilework.bench.networks import NETWORKS

    return NETWORKS[name]


def write(folder: Path) -> None:
    """The inference as a graph of tilework's and as an ONNX model."""
    import numpy as np

    import tilework as tw

    name, shape = INFERENCE
    net = network(name)
    weights = net.deployed(net.weights(shape))
    tw.trace(net.inference(weights, prepared=False), tw.spec(shape)).compile().save(folder / "net.tw")
    (folder / "net.onnx").write_bytes(net.onnx(weights, shape))
    np.save(folder / "x.npy", net.x(shape))


def tilework_inference(folder: Path) -> Callable[[], Any]:
    import numpy as np

    import tilework as tw

    x = np.load(folder / "x.npy")
    run = tw.load(folder / "net.tw")
    return lambda: run(x)


def onnxruntime_inference(folder: Path) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime

    x = np.load(folder / "x.npy")
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: x})


def tilework_step(_: Path) -> Callable[[], Any]:
    name, shape = STEP
    net = network(name)
    weights, x, goal = net.weights(shape), net.x(shape), net.goal(shape)
    step = net.compiled_step(weights, x, goal)
    return lambda: step(x, goal)


def torch_step(_: Path) -> Callable[[], Any]:
    import torch

    name, shape = STEP
    net = network(name)
    training = net.torch_training(net.weights(shape))
    x, goal = torch.from_numpy(net.x(shape)), torch.from_numpy(net.goal(shape))
    return lambda: training.step(x, goal)


CONTESTANTS = {
    "ResNet-50, inference": {
        "tilework": (tilework_inference, ("tilework",)),
        "onnxruntime": (onnxruntime_inference, ("onnxruntime",)),
    },
    "ResNet-18, step on 8 images": {
        "tilework": (tilework_step, ("tilework", "tilework.bench.networks")),
        "torch": (torch_step, ("torch", "tilework", "tilework.bench.networks")),
    },
}


def measure(problem: str, contestant: str, folder: Path) -> None:
    """Prints the bytes that the peak grows by, in this process."""
    make, modules = CONTESTANTS[problem][contestant]
    for module in modules:
        importlib.import_module(module)
    before = peak()
    run = make(folder)
    for _ in range(2):
        run()
    print(peak() - before)


def main() -> None:
    """Measures every contestant in a new process, and prints a table."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, __file__, "write", name], check=True)
        for problem, contestants in CONTESTANTS.items():
            grown = {}
            for contestant in contestants:
                call = [sys.executable, __file__, "measure", problem, contestant, name]
                grown[contestant] = int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
            ours, (peer, theirs) = grown["tilework"], next(t for t in grown.items() if t[0] != "tilework")
            print(f"{problem}: {ours / 1e6:.0f} MB, {peer} {theirs / 1e6:.0f} MB: {ours / theirs:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
