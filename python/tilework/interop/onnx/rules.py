"""What a rule of the node table sees of its node, and the table itself."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx

from tilework.dispatch import Number
from tilework.errors import Error, UnsupportedError
from tilework.graph import Graph, Placeholder, Symbol

Rule = Callable[..., Any]

RUN = "number of the run"  # by which a graph that draws at random is given it
_MOST_FED = 4096  # elements of an input that may decide about shapes

# (domain, op type): the rule that turns a node into calls. It takes the NodeView, then the inputs, None where one is
# left out; what is known when the model is prepared is a numpy array. It returns the outputs in order.
RULES: dict[tuple[str, str], Rule] = {}


def node(*names: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Enters a rule into the table."""

    def enter(rule: Rule) -> Rule:
        RULES.update({(domain, name): rule for name in names})
        return rule

    return enter


class NeedsValueError(Exception):
    """A rule needs to know what is fed to an input of the model, not only its shape."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self.label = label


class NeedsResultError(Exception):
    """A rule needs to know what ``graph``, all that was built so far, gives for its only result."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name)
        self.graph = graph


class Draws:
    """What nodes draw on: random numbers, by a seed of each and the number of the run, and what shapes follow from."""

    def __init__(self, graph: Graph, seed: int, computed: Sequence[Any] = ()) -> None:
        self.graph, self._seed, self._nodes = graph, seed, 0
        self._run: Number | None = None
        self._computed, self._asked = computed, dict[Any, int]()

    def computed(self, symbol: Symbol) -> Any:
        """The numbers of a value of the graph, which follow from those that were asked for before it."""
        at = self._asked.setdefault(symbol.value, len(self._asked))
        if at == len(self._computed):
            self.graph.output(symbol)
            raise NeedsResultError(self.graph)
        return self._computed[at]

    def key(self, seed: float | None) -> dict[str, Any]:
        """The seed and the offset of a node, whose own seed may be given."""
        if self._run is None:
            self._run = self.graph.number(RUN, 0)
        if seed is None:
            self._nodes += 1
            return {"seed": (self._seed + self._nodes) % 2**62, "offset": self._run}
        return {"seed": int.from_bytes(struct.pack("<d", seed), "little") % 2**62, "offset": self._run}


class NodeView:
    """A node, its attributes, and the version of the operator set it is written for."""

    def __init__(self, proto: onnx.NodeProto, opset: int, draws: Draws | None = None) -> None:
        self.proto, self.opset, self._draws = proto, opset, draws
        self.kind = proto.op_type
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.outputs = list(proto.output)
        self.read = {"kernel_shape", "hidden_size"}  # attributes that were asked for; these repeat the shape of w

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; text as str, lists as tuples."""
        self.read.add(name)
        value = self.attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        return tuple(value) if isinstance(value, list) else value

    def check_read(self) -> None:
        """Refuses a node with an attribute that its rule never asked for: it would mean something else."""
        unread = [name for name in self.attributes if name not in self.read]
        self.want(not unread, f"attribute {', '.join(unread)}")

    def wants(self, i: int) -> bool:
        """Whether output ``i`` is used by name."""
        return i < len(self.outputs) and bool(self.outputs[i])

    def known(self, value: Any, what: str) -> Any:
        """The numbers of an input that decides about shapes."""
        if isinstance(value, Symbol):
            fed = _fed_below(value)
            if fed and all(v.size <= _MOST_FED for v in fed):
                raise NeedsValueError(fed[0].node.op.label)
            if self._draws is None:
                self.refuse(f"{what} is computed by the model; want it known when the model is prepared")
            return self._draws.computed(value)
        return np.asarray(value)

    def ints(self, value: Any, what: str) -> tuple[int, ...]:
        """Like :meth:`known`, as a flat tuple."""
        return tuple(int(v) for v in self.known(value, what).reshape(-1))

    def scalar(self, value: Any, what: str) -> float:
        """Like :meth:`known`, one number."""
        found = self.known(value, what)
        if found.size != 1:
            self.refuse(f"{what} has {found.size} elements; want one")
        return float(found.reshape(()))

    def key(self, seed: float | None) -> dict[str, Any]:
        """Seed and offset of random numbers, which are others in every run."""
        assert self._draws is not None
        return self._draws.key(seed)

    def symbol(self, value: Any) -> Any:
        """A value as one of the graph, where it may be known."""
        assert self._draws is not None
        return value if isinstance(value, Symbol) else self._draws.graph.constant(np.asarray(value))

    def blank(self, shape: Sequence[int]) -> Any:
        """Something of a shape."""
        return self.symbol(np.broadcast_to(np.float32(0), tuple(shape)))

    def refuse(self, why: str) -> NoReturn:
        """This node is not computed."""
        raise UnsupportedError(why, op=self.kind)

    def want(self, good: bool, why: str) -> None:
        """Refuses unless ``good``."""
        if not good:
            self.refuse(why)


def _fed_below(symbol: Symbol) -> list[Any]:
    """What is fed to the model and decides about a value."""
    found, seen, left = [], set(), [symbol.value]
    while left:
        value = left.pop()
        if value in seen:
            continue
        seen.add(value)
        if isinstance(value.node.op, Placeholder):
            found.append(value)
        left.extend(value.node.values())
    return found


class ModelError(Error, ValueError):
    """A file that is no model, or a model that contradicts itself."""


def axis_of(axis: int, ndim: int) -> int:
    """A non-negative axis."""
    if not -ndim <= axis < max(ndim, 1):
        raise ModelError(f"axis={axis} of an array of {ndim} dimensions; want {-ndim} to {ndim - 1}")
    return axis % max(ndim, 1)


def spatial_pads(pads: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """ONNX's begins-then-ends as pairs."""
    half = len(pads) // 2
    return tuple(zip(pads[:half], pads[half:], strict=True))
