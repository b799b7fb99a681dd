"""The types that the ops' signatures and rules are written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

# numpy.ndarray, pyopencl.array.Array, or any CPU array with __dlpack__; the result is of the first two kinds.
Array: TypeAlias = Any

# As a user writes them.
Ints: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | Sequence[int] | Sequence[tuple[int, int]] | Literal["same", "valid"]
Axes: TypeAlias = int | Sequence[int] | None
Activation: TypeAlias = Literal["relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "hard_swish"] | None
# Of the gates and states of recurrent layers, in the order of recurrent_gates.h and recurrent.clh.
GateActivation: TypeAlias = Literal[
    "sigmoid", "tanh", "relu", "hard_sigmoid", "leaky_relu", "elu", "softsign", "softplus", "identity"
]

# As rules receive them: one number, or one (before, after) pair, per axis.
Sizes: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]

# The operands whose gradients a backward rule is asked for.
Wanted: TypeAlias = frozenset[str]
