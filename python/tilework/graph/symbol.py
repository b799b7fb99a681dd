"""The array that a traced function works on: it has a shape and a dtype, and every call on it becomes a node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tilework.arrays import Array, Sizes
from tilework.errors import DTypeError
from tilework.operators import Operators

if TYPE_CHECKING:
    from tilework.graph.build import Graph
    from tilework.graph.ir import Value


class Symbol(Operators):
    """Stands for what ``value`` of a graph will hold; an op that updates it in place moves it on to another value."""

    __slots__ = ("graph", "value")

    def __init__(self, graph: Graph, value: Value) -> None:
        self.graph, self.value = graph, value

    @property
    def level(self) -> int:  # type: ignore[override]
        return self.graph.level

    @property
    def shape(self) -> Sizes:  # type: ignore[override]
        return self.value.shape

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.value.dtype

    @property
    def strides(self) -> Sizes:
        return self.value.strides

    @property
    def flags(self) -> Any:
        """Whether it is contiguous, as numpy's ``flags`` say it."""
        return self.value.ghost.flags

    def record(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Array:
        from tilework.graph.build import tracing

        return (tracing() or self.graph).call(op, *args, **kwargs)

    def __repr__(self) -> str:
        return f"Symbol({self.dtype}, {self.shape})"

    def _unknown(self, *_: Any) -> NoReturn:
        raise DTypeError(
            f"the value of a traced array of shape {self.shape} is not known while tracing; "
            "want tw.cond or tw.while_loop for what depends on it, and tilework's ops instead of numpy's"
        )

    __bool__ = __float__ = __int__ = __index__ = __array__ = _unknown
