"""JAX on the CPU: a jitted function of arrays that exist beforehand."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tilework import registry
from tilework.bench.peers import Contestant
from tilework.bench.problems import BenchError, Problem


def set_threads(count: int) -> int:
    """XLA reads its thread count once: one thread by XLA_FLAGS before the import, or all CPUs by default."""
    available = len(os.sched_getaffinity(0))
    if count != 1 and count != available:
        raise BenchError(f"jax runs on 1 or on all {available} threads; want --threads 1 or {available}")
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if count == 1 and flags not in os.environ.get("XLA_FLAGS", ""):
        raise BenchError("jax was not started for one thread")
    return count


def environment(threads: int) -> dict[str, str]:
    """What a worker for this many threads is started with."""
    one = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    return {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", **(one if threads == 1 else {})}


def _activated(jax: Any, y: Any, name: str | None) -> Any:
    if name is None:
        return y
    made = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jax.numpy.tanh}
    return jax.nn.gelu(y, approximate=False) if name == "gelu" else made[name](y)


def _conv(jax: Any, a: dict[str, Any]) -> Callable[..., Any]:
    def run(x: Any, w: Any, b: Any = None) -> Any:
        y = jax.lax.conv_general_dilated(
            x, w, a["stride"], a["padding"], rhs_dilation=a["dilation"], feature_group_count=a["groups"]
        )
        y = y if b is None else y + b.reshape(-1, *(1 for _ in a["stride"]))
        return _activated(jax, y, a["activation"])

    return run


def _forward(jax: Any, op: str, a: dict[str, Any]) -> Callable[..., Any] | None:
    jnp, special = jax.numpy, jax.scipy.special
    if op == "matmul" and (a["alpha"], a["beta"]) != (1.0, 1.0):
        return None
    plain = {
        "add": jnp.add,
        "sub": jnp.subtract,
        "mul": jnp.multiply,
        "div": jnp.divide,
        "matmul": lambda x, y, c=None: jnp.matmul(x, y) if c is None else jnp.matmul(x, y) + c,
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "tanh": jnp.tanh,
        "exp": jnp.exp,
        "log": jnp.log,
        "erf": special.erf,
    }
    if op in plain:
        return plain[op]  # type: ignore[no-any-return]
    axes = {"axis": tuple(a["axes"]), "keepdims": a["keepdims"]} if "keepdims" in a else {}
    made: dict[str, Callable[[], Callable[..., Any]]] = {
        "gelu": lambda: lambda x: jax.nn.gelu(x, approximate=a["approximate"] == "tanh"),
        "linear": lambda: (
            lambda x, w, *addends: _activated(jax, sum((v for v in addends if v is not None), x @ w.T), a["activation"])
        ),
        "conv": lambda: _conv(jax, a),
        "reduce_sum": lambda: lambda x: jnp.sum(x, **axes),
        "reduce_mean": lambda: lambda x: jnp.mean(x, **axes),
        "reduce_max": lambda: lambda x: jnp.max(x, **axes),
        "softmax": lambda: lambda x: jax.nn.softmax(x, axis=a["axis"]),
        "log_softmax": lambda: lambda x: jax.nn.log_softmax(x, axis=a["axis"]),
        "concat": lambda: lambda *arrays: jnp.concatenate(arrays, axis=a["axis"]),
        "pad": lambda: lambda x: jnp.pad(x, a["pads"], constant_values=a["value"]),
        "expand": lambda: lambda x: jnp.broadcast_to(x, a["shape"]),
        "cast": lambda: lambda x: x.astype(np.dtype(a["dtype"]).name),
    }
    return made[op]() if op in made else None


def calls(problem: Problem, operands: tuple[Any, ...], threads: int) -> dict[str, Contestant]:
    """The jitted forward function, its vector-Jacobian product, or both in one."""
    jax: Any = importlib.import_module("jax")
    a = registry.resolve(problem.target, operands, dict(problem.attrs))
    forward = _forward(jax, problem.op, a)
    if forward is None or problem.out_given:
        return {}
    flat = [v for o in operands for v in (o if isinstance(o, list) else [o]) if v is not None]
    arrays = [jax.device_put(v) for v in flat]
    if problem.direction == "fwd":
        run = jax.jit(forward)
        return {"jax": Contestant(lambda: run(*arrays).block_until_ready())}
    if problem.direction == "bwd":
        y, pull = jax.vjp(forward, *arrays)
        back = jax.jit(pull)
        dy = jax.device_put(problem.upstream(y.shape))
        return {"jax": Contestant(lambda: jax.block_until_ready(back(dy)))}
    dy = jax.device_put(problem.upstream(jax.eval_shape(forward, *arrays).shape))
    both = jax.jit(lambda *xs: jax.vjp(forward, *xs)[1](dy))
    return {"jax": Contestant(lambda: jax.block_until_ready(both(*arrays)))}
