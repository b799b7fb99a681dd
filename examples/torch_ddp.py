"""Trains on two processes, each with half of every batch, and on one with all of it: the weights are the same.

    python examples/torch_ddp.py

Gradients are tilework's, torch's DistributedDataParallel averages them over gloo.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import tilework.interop.torch  # noqa: F401  (registers torch.ops.tilework, in every process)

PROCESSES, STEPS, BATCH = 2, 5, 8


class Net(nn.Module):  # type: ignore[misc]
    """A convolution and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 1, 3, 3) / 3)
        self.v = nn.Parameter(torch.randn(10, 8) / 3)

    def forward(self, x: Any) -> Any:
        op = torch.ops.tilework
        h = op.conv(x, self.w, None, padding=1, activation="relu")
        return op.linear(op.reduce_mean(h, axes=[2, 3]), self.v, None)


def train(rank: int, processes: int, meeting: str, result: str) -> None:
    """Runs the steps on this process's part of every batch; the first process saves the weights."""
    torch.manual_seed(0)
    model: Any = Net()
    images, labels = torch.randn(STEPS, BATCH, 1, 12, 12), torch.randint(10, (STEPS, BATCH))
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    part = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    for x, t in zip(images, labels, strict=True):
        loss = torch.ops.tilework.softmax_cross_entropy(model(x[part]), t[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        torch.save([p.detach() for p in model.parameters()], result)
    if processes > 1:
        dist.destroy_process_group()


def main() -> int:
    """Both ways, and how far apart they are."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("meeting", "many.pt", "one.pt")]
        torch.multiprocessing.spawn(train, (PROCESSES, names[0], names[1]), nprocs=PROCESSES)
        train(0, 1, "", names[2])
        many, one = (torch.load(name) for name in names[1:])
    apart = max(float((a - b).abs().max()) for a, b in zip(many, one, strict=True))
    print(f"{PROCESSES} processes and one differ by {apart:.1e}")
    return 0 if apart < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
