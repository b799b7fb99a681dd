"""Nested containers of arrays: tuples (named ones too), lists and dicts, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilework.errors import AttrTypeError


@dataclass(frozen=True)
class Leaf:
    """The place of one leaf."""


@dataclass(frozen=True)
class Branch:
    """A container: its type, its keys (of a dict) and what is in it."""

    kind: Any  # a class
    keys: tuple[Any, ...]
    items: tuple[Structure, ...]


Structure = Leaf | Branch
LEAF = Leaf()


# Not functions within those below: one that calls itself is a ring of references, and leaves would wait to be freed.


def _walk(item: Any, leaves: list[Any]) -> Structure:
    if isinstance(item, dict):
        return Branch(type(item), tuple(item), tuple(_walk(v, leaves) for v in item.values()))
    if isinstance(item, (tuple, list)):
        return Branch(type(item), (), tuple(_walk(v, leaves) for v in item))
    leaves.append(item)
    return LEAF


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of nested containers in order, and their structure; a dict's go by the order of its keys."""
    leaves: list[Any] = []
    structure = _walk(tree, leaves)
    return leaves, structure


def _build(item: Structure, left: Iterator[Any]) -> Any:
    if isinstance(item, Leaf):
        return next(left)
    built = [_build(i, left) for i in item.items]
    if item.keys or issubclass(item.kind, dict):
        return item.kind(zip(item.keys, built, strict=True))
    return item.kind(*built) if hasattr(item.kind, "_fields") else item.kind(built)


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The containers of ``structure`` with these leaves."""
    return _build(structure, iter(leaves))


def paths(structure: Structure, root: str = "") -> Iterator[str]:
    """A name for each leaf: ``params.w1``, ``pair[0]``."""
    if isinstance(structure, Leaf):
        yield root
        return
    fields: Sequence[str] = getattr(structure.kind, "_fields", ())
    for i, item in enumerate(structure.items):
        if structure.keys or fields:
            key = str(structure.keys[i] if structure.keys else fields[i])
            yield from paths(item, f"{root}.{key}" if root else key)
        else:
            yield from paths(item, f"{root}[{i}]")


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """``function`` of every leaf, and of the leaves in the same places of other containers of that structure."""
    leaves, structure = flatten(tree)
    columns = [leaves]
    for other in others:
        found, its = flatten(other)
        if not alike(its, structure):
            raise AttrTypeError(f"containers differ: {written(its)}; want {written(structure)}")
        columns.append(found)
    return unflatten(structure, [function(*row) for row in zip(*columns, strict=True)])


def alike(a: Structure, b: Structure) -> bool:
    """Whether two structures have the same leaves; a list may stand for a tuple."""
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        return isinstance(a, Leaf) and isinstance(b, Leaf)
    return a.keys == b.keys and len(a.items) == len(b.items) and all(map(alike, a.items, b.items))


def written(structure: Structure) -> str:
    """The structure as Python writes it, ``*`` for a leaf."""
    if isinstance(structure, Leaf):
        return "*"
    inner = [written(i) for i in structure.items]
    if structure.keys:
        return "{" + ", ".join(f"{k!r}: {i}" for k, i in zip(structure.keys, inner, strict=True)) + "}"
    if issubclass(structure.kind, list):
        return f"[{', '.join(inner)}]"
    return f"({', '.join(inner)}{',' * (len(inner) == 1)})"
