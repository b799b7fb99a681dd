"""Running a graph: the compiled form of it that arrays are fed to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tilework import dispatch, nested
from tilework.arrays import Array
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError, UnsupportedError
from tilework.graph import products
from tilework.graph.build import Graph
from tilework.graph.interpret import Interpreter
from tilework.graph.ir import Constant, Value, Variable
from tilework.graph.native import Native
from tilework.graph.passes import Pass, checked, with_own_constants
from tilework.graph.pipeline import CPU_PASSES, EXACT, PASSES
from tilework.settings import threads as limited_threads

if TYPE_CHECKING:
    from tilework.graph.profile import Profile


@dataclass(frozen=True)
class Started:
    """A run on a device: its results, arrays that may still be computing, and the OpenCL event of its end."""

    results: Any
    event: Any

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.event.command_execution_status == 0)  # CL_COMPLETE

    def wait(self) -> Any:
        """The results, computed."""
        self.event.wait()
        return self.results


class Executable:
    """A graph that is ready to run: call it with arrays like those that it was traced with.

    ``device`` is None for the CPU or what :func:`tilework.to_device` takes; constants and variables then live there and
    device arrays are fed. ``threads`` limits a run's threads. ``passes`` replaces the list of passes and ``without``
    names some to leave out. Bits are the same in every run and on any number of threads; with ``deterministic`` they
    are those of the calls one by one, too: passes that move a rounding are left out. With ``winograd`` 3x3 convolutions
    on the CPU are summed by fewer products, whose error is larger: see ``algo`` of :func:`tilework.conv`. With
    ``savable=False`` nothing is kept of the graph as it was traced, whose weights may then go: what is left of them is
    packed, and the executable can neither be saved nor change its tier.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: Any = None,
        threads: int | None = None,
        deterministic: bool = False,
        savable: bool = True,
        winograd: bool = False,
        passes: Sequence[Pass] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        for name, switch in (("deterministic", deterministic), ("savable", savable), ("winograd", winograd)):
            if not isinstance(switch, bool):
                raise AttrTypeError(f"compile: {name}={switch!r:.80}; want a bool", op="compile", argument=name)
        if threads is not None:
            limited_threads(threads)  # checks it
        _check_gives(graph)
        chosen = _chosen(passes, without, winograd and device is None, device is None)
        self.source = graph if savable else None
        self.passes = [p for p in chosen if p in EXACT or not deterministic]
        self.graph = self._passed(graph if savable else with_own_constants(graph))
        self.device = device
        self._threads = threads
        self._plain = _is_plain(graph)
        self._native: Native | None = None
        self._device: Interpreter | None = None
        if device is None:
            borrowed = {n.op for n in graph.nodes if isinstance(n.op, Constant)} if savable else set()
            self._native = Native(self.graph, lambda: self._passed(self._as_traced("set_isa")), borrowed)
        else:
            self._device = Interpreter(self.graph, device)

    def _passed(self, graph: Graph) -> Graph:
        graph = graph.changed(list(graph.nodes))
        for each in self.passes:
            made = each(graph)
            graph = made if each in PASSES + CPU_PASSES else checked(made, each.__name__)
        return graph

    def _as_traced(self, what: str) -> Graph:
        if self.source is None:
            raise UnsupportedError(f"{what}: the graph was compiled with savable=False; want savable=True")
        return self.source

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            f"{self.graph.name}: a compiled graph is not pickled; want exe.save(path) and tw.load(path)"
        )

    @property
    def arena_bytes(self) -> int:
        """Bytes of what is neither fed nor given back nor constant, in one arena; 0 on a device."""
        return self._native.plan.arena_bytes if self._native else 0

    @property
    def peak_bytes(self) -> int:
        """Bytes that one run on the CPU holds: the arena, results, variables, packed weights and other constants."""
        sources = (Variable,) if self._native else (Constant, Variable)
        held = sum(n.results[0].nbytes for n in self.graph.nodes if isinstance(n.op, sources))
        if self._native:
            held += self._native.held_bytes + self._native.program.packed_bytes
        return self.arena_bytes + held + sum(v.nbytes for v in self.graph.outputs)

    # -------------------------------------------------------------------------------------------------- calls

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """What the traced function returns for these arguments; in ``out``, arrays in the same structure, if given."""
        if self._threads is None:
            results = self._results(args, named, out)
        else:
            with limited_threads(self._threads):
                results = self._results(args, named, out)
        if out is not None:
            return out
        if self.graph.result is not None:
            return nested.unflatten(self.graph.result, results)
        return results[0] if len(results) == 1 else tuple(results)

    def run_on(self, tensors: type, arrays: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The results for tensors of a type that shows ``__dlpack_c_exchange_api__``, as such tensors, on the CPU.

        None, and nothing has run, where one is not contiguous or the type shows no such thing.
        """
        if self._native is None:
            return None
        if self._threads is None:
            return self._native.run(arrays, None, (), tensors)
        with limited_threads(self._threads):
            return self._native.run(arrays, None, (), tensors)

    def start(self, *args: Any, after: Sequence[Any] = (), **named: Any) -> Started:
        """Begins a run on the device behind the OpenCL events ``after``, and returns at once.

        Calls do not wait either: what is enqueued later on the same queue comes behind them. Events order other queues.
        """
        if self._device is None:
            raise UnsupportedError("start: the graph is on the CPU; want it compiled for a device")
        from tilework.backends import opencl

        opencl.hold(self._device.queue, after)
        results = self(*args, **named)
        return Started(results, opencl.mark(self._device.queue))

    def profile(self, *args: Any, runs: int = 3, **named: Any) -> Profile:
        """Times every step of a run on the CPU with these arguments, the least of ``runs`` each: ``print`` it."""
        from tilework.graph.profile import measured

        if self._native is None:
            raise UnsupportedError("profile: the graph is on a device; want it compiled for the CPU")
        if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
            raise AttrError(f"profile: runs={runs!r:.80}; want an int of 1 or more", op="profile", argument="runs")
        feeds, numbers = self._feeds(args, named)
        return measured(self._native, feeds, numbers, runs, self._threads)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the graph as it was traced, and its weights, to one file that ``tilework.load`` reads."""
        from tilework.graph.serialise import save

        save(self._as_traced("save"), path)

    def _results(self, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> Sequence[Array]:
        outs = (out,) if isinstance(out, np.ndarray) else None if out is None else tuple(nested.flatten(out)[0])
        if self._native and self._plain and not named:  # the arrays as they come: the program looks whether they fit
            quick = self._native.run(args, outs)
            if quick is not None:
                return quick
        if outs is not None:
            self._check_out(outs)
        feeds, numbers = self._feeds(args, named)
        if self._native:
            results: Sequence[Array] | None = self._native.run(feeds, outs, numbers)
            if results is None:  # an array to fill that is strided, or shares memory with what is fed
                results = self._native.run(feeds, None, numbers)
            assert results is not None
        else:
            assert self._device is not None
            results = self._device.run(feeds, numbers)
        for given, made in zip(outs or (), results, strict=bool(outs)):
            if given is not made:
                given[...] = made
        return results

    def _feeds(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Array, ...], list[float]]:
        """The arrays and the numbers of a call."""
        inputs, structure = self.graph.inputs, self.graph.arguments
        labels = [v.node.op.label for v in inputs]
        if structure is not None and not named:
            leaves, given = nested.flatten(args)
            if not nested.alike(given, structure):
                raise AttrTypeError(
                    f"{self.graph.name}: arguments are {nested.written(given)}; want {nested.written(structure)}, "
                    f"the arrays {', '.join(labels)}"
                )
            for i, want in self.graph.statics.items():
                if leaves[i] is not want and leaves[i] != want:
                    raise AttrError(
                        f"{self.graph.name}: argument {i} is {leaves[i]!r:.80}; want {want!r:.80} as traced"
                    )
            numbers = [n.checked(leaves[i]) for i, n in self.graph.numbers.items()]
            leaves = [a for i, a in enumerate(leaves) if i not in self.graph.statics and i not in self.graph.numbers]
        else:
            numbers = [n.checked(named.pop(n.label, n.value)) for n in self.graph.numbers.values()]
            if len(args) > len(labels):
                raise AttrTypeError(f"{self.graph.name}: {len(args)} arrays; want {len(labels)}: {', '.join(labels)}")
            by_name = dict(zip(labels, args, strict=False))
            surplus = [n for n in named if n in by_name or n not in labels]
            missing = [n for n in labels if n not in by_name and n not in named]
            if surplus or missing:
                what = f"{surplus[0]!r} is surplus" if surplus else f"{missing[0]!r} is missing"
                raise AttrTypeError(f"{self.graph.name}: {what}; want the arrays {', '.join(labels)}")
            leaves = [(by_name | named)[n] for n in labels]
        return tuple(self._checked(v, leaf) for v, leaf in zip(inputs, leaves, strict=True)), numbers

    def _checked(self, value: Value, given: Any) -> Array:
        label, name = value.node.op.label, self.graph.name
        where = dispatch.backend_of(name, label, given.value if isinstance(given, Variable) else given)
        if where == "":
            raise DTypeError(f"{name}: {label} is a {type(given).__name__}; want an array", argument=label)
        if (where == "opencl") != (self.device is not None):
            want = "numpy" if self.device is None else "device"
            raise DTypeError(f"{name}: {label} is on {where}; want a {want} array as compiled", argument=label)
        array = dispatch.borrow(name, label, given)
        if array.dtype != value.dtype:
            raise DTypeError(f"{name}: {label} has dtype {array.dtype}; want {value.dtype}", argument=label)
        if tuple(array.shape) != value.shape:
            raise ShapeError(f"{name}: {label} has shape {tuple(array.shape)}; want {value.shape}", argument=label)
        if isinstance(array, np.ndarray):
            return np.require(array, requirements=["C", "A"])
        return array if array.flags.c_contiguous else array.copy()

    def _check_out(self, outs: tuple[Array, ...]) -> None:
        wanted = self.graph.outputs
        if len(outs) != len(wanted):
            raise AttrTypeError(f"{self.graph.name}: out holds {len(outs)} arrays; want {len(wanted)}", argument="out")
        for given, want in zip(outs, wanted, strict=True):
            if dispatch.backend_of(self.graph.name, "out", given) == "":
                raise DTypeError(f"{self.graph.name}: out is a {type(given).__name__}; want an array", argument="out")
            if tuple(given.shape) != want.shape or given.dtype != want.dtype:
                raise ShapeError(
                    f"{self.graph.name}: out is {given.dtype} {tuple(given.shape)}; want {want.dtype} {want.shape}",
                    argument="out",
                )
            if isinstance(given, np.ndarray) and not given.flags.writeable:
                raise ShapeError(f"{self.graph.name}: out is read-only; want a writeable array", argument="out")


def _chosen(passes: Any, without: Any, winograd: bool, on_cpu: bool) -> list[Pass]:
    """The passes to run, in order."""
    asked: list[Pass] = [products.winograd] if winograd else []
    found: list[Pass] = [*PASSES, *asked, *(CPU_PASSES if on_cpu else ())]
    if passes is not None:
        found = [*asked, *_listed("passes", passes)]
    odd = [p for p in found if not (callable(p) and hasattr(p, "__name__"))]
    if odd:
        raise AttrTypeError(f"compile: {odd[0]!r:.80} is among passes; want functions", argument="passes")
    names = [p.__name__ for p in found]
    left_out = _listed("without", (without,) if isinstance(without, str) else without)
    unknown = [name for name in left_out if name not in names]
    if unknown:
        raise AttrError(f"compile: there is no pass {unknown[0]!r:.80}; want some of {names}", argument="without")
    return [p for p in found if p.__name__ not in left_out]


def _listed(name: str, given: Any) -> list[Any]:
    if not isinstance(given, (list, tuple, set, frozenset)):
        raise AttrTypeError(f"compile: {name}={given!r:.80}; want a list", op="compile", argument=name)
    return list(given)


def _check_gives(graph: Graph) -> None:
    """Refuses a graph built by hand that gives nothing, changes nothing and has no effects."""
    by_hand = graph.result is None and graph.outer is None
    if by_hand and not (graph.outputs or graph.states() or any(node.has_effects for node in graph.nodes)):
        raise AttrError(f"compile: {graph.name} gives nothing; want Graph.output of what it should give", op="compile")


def _is_plain(graph: Graph) -> bool:
    """Whether the arguments are arrays alone, none of them in a container."""
    if graph.statics or graph.numbers:
        return False
    return not isinstance(graph.arguments, nested.Branch) or all(
        isinstance(i, nested.Leaf) for i in graph.arguments.items
    )
