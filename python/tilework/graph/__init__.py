"""Graphs of ops: traced from a function or built by hand, then compiled and run."""

from tilework.graph.build import Graph, Spec, number, spec, trace
from tilework.graph.control import cond, scan, while_loop
from tilework.graph.execute import Executable
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable
from tilework.graph.kernels import Kernel, kernel
from tilework.graph.passes import Pass
from tilework.graph.pipeline import CPU_PASSES, PASSES
from tilework.graph.profile import Profile
from tilework.graph.serialise import load
from tilework.graph.symbol import Symbol

__all__ = [
    "CPU_PASSES",
    "PASSES",
    "Constant",
    "Executable",
    "Graph",
    "Kernel",
    "Node",
    "Pass",
    "Placeholder",
    "Profile",
    "Spec",
    "Symbol",
    "Value",
    "Variable",
    "cond",
    "kernel",
    "load",
    "number",
    "scan",
    "spec",
    "trace",
    "while_loop",
]
