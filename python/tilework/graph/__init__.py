"""Graphs of ops: traced from a function or built by hand, then compiled and run."""

from tilework.graph.build import Graph, Spec, spec, trace
from tilework.graph.execute import Executable
from tilework.graph.ir import Constant, Node, Placeholder, Value, Variable
from tilework.graph.passes import PASSES, Pass
from tilework.graph.symbol import Symbol

__all__ = [
    "PASSES",
    "Constant",
    "Executable",
    "Graph",
    "Node",
    "Pass",
    "Placeholder",
    "Spec",
    "Symbol",
    "Value",
    "Variable",
    "spec",
    "trace",
]
