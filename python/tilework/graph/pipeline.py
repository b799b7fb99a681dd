"""The passes of a compilation, in order."""

from __future__ import annotations

from tilework.graph.bottlenecks import inverted_residual_fusion
from tilework.graph.epilogues import (
    activation_fusion,
    bias_and_residual_fusion,
    norm_activation_fusion,
    norm_residual_fusion,
)
from tilework.graph.folding import batch_norm_folding, matmul_to_linear
from tilework.graph.fusion import fusion
from tilework.graph.layouts import layout_propagation
from tilework.graph.passes import Pass, common_subexpressions, constant_folding, dead_nodes
from tilework.graph.schedule import early_updates

PASSES: list[Pass] = [
    dead_nodes,
    constant_folding,
    common_subexpressions,
    matmul_to_linear,
    batch_norm_folding,
    bias_and_residual_fusion,
    activation_fusion,
    norm_residual_fusion,
    norm_activation_fusion,
    dead_nodes,
    fusion,
    dead_nodes,
    early_updates,
]

# Behind those, on the CPU, where caches hold what is between layers and an op writes its result in any order.
CPU_PASSES: list[Pass] = [inverted_residual_fusion, dead_nodes, layout_propagation, dead_nodes]

# Those that change no bit; the others move a rounding or take a sum in another order.
EXACT: list[Pass] = [
    dead_nodes,
    constant_folding,
    common_subexpressions,
    norm_activation_fusion,
    early_updates,
    layout_propagation,
]
