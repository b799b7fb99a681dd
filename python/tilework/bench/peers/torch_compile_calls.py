"""PyTorch's compiler: training steps and chains of elementwise calls, where there is a C++ compiler."""

from __future__ import annotations

from typing import Any

from tilework.bench import networks
from tilework.bench.networks import NetworkProblem
from tilework.bench.peers import Contestant
from tilework.bench.peers.torch_calls import set_threads as set_threads
from tilework.bench.problems import Problem


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """The network, compiled by torch's default backend."""
    return networks.compiled_contestants(problem, operands) if isinstance(problem, NetworkProblem) else {}
