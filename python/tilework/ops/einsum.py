"""Contractions of any number of tensors: einsum, and what is short for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilework.arrays import Array, Sizes, Wanted
from tilework.errors import AttrError, AttrTypeError, DTypeError, ShapeError
from tilework.registry import (
    ErrorCase,
    Sample,
    Workload,
    backward,
    depth,
    dtypes,
    errors,
    flops,
    op,
    opencl,
    reference,
    reorders,
    sample,
    samples,
    spelling,
    workloads,
)

if TYPE_CHECKING:
    from tilework.backends.opencl_queue import Queue
    from tilework.testing import Fill

DTYPES = ("float32", "float64", "float16", "bfloat16")

# ----------------------------------------------------------------------------------------------------- einsum


@op
def einsum(
    subscripts: str,
    *operands: Array,
    c: Array | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    largest: int | None = None,
    out: Array | None = None,
) -> Array:
    """Contracts tensors: alpha times the product of all operands, summed over what the result lacks, plus beta times c.

    ``subscripts`` names the axes of each operand and of the result, a letter each, as in numpy.einsum::

        einsum("bhqd,bhkd->bhqk", q, k, alpha=0.125)    # a batch of products
        einsum("ij,jk,kl", a, b, c)                     # without "->": the letters that occur once, sorted
        einsum("...ii->...i", x)                        # the diagonals of a stack of square matrices
        einsum(a, [0, 1], b, [1, 2], [0, 2])            # numbers instead of letters

    or names the operands too, underscore, axes. An operand that is named again is passed once; "*", first or last,
    stands for any axes, which broadcast and are never summed::

        einsum("a_ijp, b_ijq -> o_pq", a, b)
        einsum("x_*ijf, x_*ijc -> g_*fc", x)

    A size of 1 broadcasts against any other. Case matters; the result names each letter once. ``c`` has the shape of
    the result, and ``out`` may be ``c``: then it is updated in place. Several operands are contracted two at a time in
    the order of least work, found exactly for up to 8 of them and greedily for up to 64; ``largest`` bounds the
    elements of an intermediate. ``backward`` returns one gradient per operand, and one of c if it was given.
    """
    ...


@op
def einsum_dx(
    subscripts: str, *operands: Array, shape: Sequence[int], alpha: float = 1.0, out: Array | None = None
) -> Array:
    """Contracts tensors like einsum into a given shape, as the gradient of einsum for one of its operands needs.

    The result may repeat a letter: a diagonal, and zeros beside it. A letter of the result that no operand has makes
    copies. Where ``shape`` has a 1 and the operands do not, they are summed.
    """
    ...


@spelling(einsum)
@spelling(einsum_dx)
def _(args: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    if not args or "operands" in attrs or isinstance(args[0], (list, tuple)):
        return None
    if isinstance(args[0], str):
        if "subscripts" in attrs:
            raise AttrTypeError("einsum: subscripts is given twice; want it once", op="einsum", argument="subscripts")
        listed = len(args) == 2 and isinstance(args[1], (list, tuple))
        return (args[1:] if listed else (list(args[1:]),)), {"subscripts": args[0]}
    if len(args) < 2 or "subscripts" in attrs or not all(isinstance(s, (list, tuple)) for s in args[1::2]):
        return None
    operands, lists = list(args[0 : len(args) // 2 * 2 : 2]), args[1::2]
    text = ",".join(map(_letters, lists)) + (f"->{_letters(args[-1])}" if len(args) % 2 else "")
    return (operands,), {"subscripts": text}


def _letters(numbers: Sequence[Any]) -> str:
    """[0, 1, ...] as "AB...": numpy's other notation."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    if isinstance(numbers, (list, tuple)) and all(
        n is Ellipsis or (isinstance(n, int) and 0 <= n < len(alphabet)) for n in numbers
    ):
        return "".join("..." if n is Ellipsis else alphabet[n] for n in numbers)
    raise AttrError(
        f"einsum: {numbers!r:.80} does not number axes; want a list of numbers from 0 to 51 and at most one Ellipsis",
        op="einsum",
        argument="subscripts",
    )


# Resolved subscripts are spelt out. They have names only where an operand comes twice: "x0_ij,x0_ik,x1_k->y_j".
def _terms(subscripts: str) -> tuple[list[tuple[int, str]], str]:
    """(operand, axes) of every term, and the axes of the result, in numpy's notation."""
    left, _, result = subscripts.partition("->")
    terms = []
    for k, term in enumerate(left.split(",")):
        name, _, axes = term.rpartition("_")
        terms.append((int(name[1:]) if name else k, axes.replace("*", "...")))
    return terms, result.rpartition("_")[2].replace("*", "...")


@reference(einsum)
def _(operands: Any, c: Any, *, subscripts: str, alpha: float, beta: float, largest: int | None) -> Any:
    terms, result = _terms(subscripts)
    y = alpha * np.einsum(",".join(t for _, t in terms) + "->" + result, *(operands[k] for k, _ in terms))
    return y if c is None else y + beta * c


@reference(einsum_dx)
def _(operands: Any, *, subscripts: str, shape: Sizes, alpha: float) -> Any:
    terms, result = _terms(subscripts)
    given = [operands[k] for k, _ in terms]
    # Letters for the axes of the ellipsis, so that those of the result can be told apart.
    dots = [x.ndim - len(t.replace("...", "")) for (_, t), x in zip(terms, given, strict=True)]
    inside = len(shape) - len(result.replace("...", ""))
    spare = [s for s in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if s not in subscripts]
    texts = [t.replace("...", "".join(spare[:n][::-1])) for (_, t), n in zip(terms, dots, strict=True)]
    result = result.replace("...", "".join(spare[:inside][::-1]))
    sizes: dict[str, int] = {}
    for text, x in zip(texts, given, strict=True):
        for letter, n in zip(text, x.shape, strict=True):
            sizes[letter] = n if sizes.get(letter, 1) == 1 else sizes[letter]
    kept = "".join(dict.fromkeys(s for s, n in zip(result, shape, strict=True) if n != 1 and s in sizes))
    sums = alpha * np.einsum(",".join(texts) + "->" + kept, *given)
    if not result:
        return sums
    y = np.zeros(shape)
    distinct = "".join(dict.fromkeys(result))
    diagonal = np.einsum(f"{result}->{distinct}", y)  # a view
    diagonal[...] = sums.reshape([sums.shape[kept.index(s)] if s in kept else 1 for s in distinct])
    return y


def _extents(subscripts: str, shapes: Sequence[Sizes]) -> dict[str, int]:
    """The size of every letter, and the axes of an ellipsis counted from its end."""
    terms, _ = _terms(subscripts)
    sizes: dict[str, int] = {}
    for k, text in terms:
        before, dots, behind = text.partition("...")
        hidden = len(shapes[k]) - len(before) - len(behind)
        names = [*before, *(f"...{i}" for i in range(hidden, 0, -1) if dots), *behind]
        for name, n in zip(names, shapes[k], strict=True):
            sizes[name] = n if sizes.get(name, 1) == 1 else sizes[name]
    return sizes


@depth(einsum)
def _(operands: Any, c: Any, *, subscripts: str, **attrs: Any) -> int:
    return len(operands) + math.prod(_extents(subscripts, [x.shape for x in operands]).values())


@depth(einsum_dx)
def _(operands: Any, *, subscripts: str, **attrs: Any) -> int:
    return len(operands) + math.prod(_extents(subscripts, [x.shape for x in operands]).values())


reorders(einsum)
reorders(einsum_dx)
dtypes(einsum, *DTYPES)
dtypes(einsum_dx, *DTYPES)


def _gradients(dy: Array, operands: Sequence[Array], subscripts: str, alpha: float) -> list[Array]:
    """For every operand, dy contracted with all the others, in each of the operand's terms."""
    terms, result = _terms(subscripts)
    grads: list[Array] = [None] * len(operands)
    for i, (k, own) in enumerate(terms):
        others = [t for j, t in enumerate(terms) if j != i]
        text = ",".join([result, *(t for _, t in others)]) + "->" + own
        dx = einsum_dx(text, dy, *(operands[j] for j, _ in others), shape=operands[k].shape, alpha=alpha)
        grads[k] = dx if grads[k] is None else einsum("...->...", dx, c=grads[k])
    return grads


@backward(einsum, of=("operands", "c"))
def _(
    dy: Array,
    operands: Sequence[Array],
    c: Array | None,
    *,
    saved: None,
    wanted: Wanted,
    subscripts: str,
    alpha: float,
    beta: float,
    largest: int | None,
) -> Any:
    grads = _gradients(dy, operands, subscripts, alpha) if "operands" in wanted else None
    return grads, einsum("...->...", dy, alpha=beta) if "c" in wanted else None


@backward(einsum_dx, of=("operands",))
def _(
    dy: Array,
    operands: Sequence[Array],
    *,
    saved: None,
    wanted: Wanted,
    subscripts: str,
    shape: Sizes,
    alpha: float,
) -> Any:
    return _gradients(dy, operands, subscripts, alpha) if "operands" in wanted else None


@samples(einsum)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample([fill(5, 7), fill(7, 9)], subscripts="ij,jk->ik")
    yield sample([fill(2, 3, 9, 8), fill(2, 3, 17, 8)], subscripts="bhqd,bhkd->bhqk", alpha=0.125)
    yield sample([fill(7, 5, 6), fill(6, 5, 19)], subscripts="acb,bcd->ad")
    yield sample([fill(3, 9, 5, 10), fill(10, 9, 7, 3)], subscripts="abcd,dbea->ec")
    yield sample([fill(4, 6, 5, 9), fill(5, 8, 6)], subscripts="aibk,bji->kjba")
    yield sample([fill(5, 6, 4), fill(6, 4, 7), fill(7, 5)], subscripts="ijk,jkl,li->")
    yield sample([fill(3, 5), fill(3, 9)], subscripts="bi,bj->bij")
    yield sample([fill(9, 19)], subscripts="ij->ji")
    yield sample([fill(9, 3, 19)], subscripts="aij->")
    yield sample([fill(9, 19)], subscripts="ij->j")
    yield sample([fill(4, 4, 3), fill(3, 5)], subscripts="iij,jk")
    yield sample([fill(2, 1, 3, 4), fill(3, 4, 5)], subscripts=" ...ij , ...jk ")
    yield sample([fill(3), fill(), fill(5)], subscripts="i,,j")
    yield sample([fill(2, 3, 4, 5)], subscripts="x_*ijf, x_*ijc -> g_*fc")
    yield sample([fill(3, 4), fill(1, 5), fill(4, 1)], fill(3, 5), subscripts="ij,jk,jk->ik")
    yield sample(
        [fill(3, 4), fill(4, 5), fill(5, 6), fill(6, 3)],
        fill(3, 3),
        subscripts="ab,bc,cd,de->ae",
        alpha=0.5,
        beta=2.0,
        largest=20,
    )
    yield sample([fill(3, 0), fill(0, 4)], fill(3, 4), subscripts="ij,jk->ik")
    yield sample([fill(3, 0), fill(4)], subscripts="ij,k->ijk")


@samples(einsum_dx)
def _(fill: Fill) -> Iterator[Sample]:
    yield sample([fill(5, 9), fill(7, 9)], subscripts="ik,jk->ij", shape=(5, 7))
    yield sample([fill(5)], subscripts="i->ii", shape=(5, 5))
    yield sample([fill(3, 6), fill(4, 6)], subscripts="ik,jk->jiij", shape=(4, 3, 3, 4), alpha=0.5)
    yield sample([fill(), fill(4)], subscripts=",k->ijk", shape=(2, 3, 4))
    yield sample([fill(2, 3, 4), fill(4, 5)], subscripts="...k,kl->...l", shape=(1, 5))
    yield sample([fill(3, 4), fill(4, 5)], subscripts="ij,jk->ik", shape=(1, 5))
    yield sample([fill(3, 0), fill(0)], subscripts="ij,j->iik", shape=(3, 3, 2))


@errors(einsum)
def _(fill: Fill) -> Iterator[ErrorCase]:
    def wrong(
        subscripts: Any, *operands: Any, error: type[Exception] = AttrError, text: str, **attrs: Any
    ) -> ErrorCase:
        return ErrorCase(sample(list(operands), subscripts=subscripts, **attrs), error, text)

    a, b, x = fill(2, 3), fill(3, 4), fill(3)
    yield wrong("", a, error=ShapeError, text="operands[0] has shape (2, 3) but subscripts gives it 0 letters; want 2")
    for text in ("..", "....", ".i.j", "i.j.k"):
        yield wrong(text, a, text="dots that are no ellipsis")
    yield wrong("...ij...", a, text="two ellipses in one term")
    yield wrong("i,,j", x, x, error=ShapeError, text="operands[1] has shape (3,) but subscripts gives it 0 letters")
    yield wrong(",,,", x, error=ShapeError, text="operands[0] has shape (3,) but subscripts gives it 0 letters")
    yield wrong("i->ii", x, text="'i' twice in the result")
    yield wrong("ij->k", a, text="'k' in the result but in no operand")
    yield wrong("ij->ij->i", a, text="text after the result")
    yield wrong("ij->i,j", a, text="text after the result")
    for text in ("i-->i", "i-j"):
        yield wrong(text, x, text="'-' without '>'")
    for text, shown in (("i>j", "'>' at byte 1"), ("12->1", "'1' at byte 0"), ("(ij)->i", "'(' at byte 0")):
        yield wrong(text, a, text=shown)
    for text, shown in (("*", "'*' at byte 0"), ("i\0j", "0x00 at byte 1"), ("ij\t", "0x09 at byte 2")):
        yield wrong(text, a, text=shown)
    for text in ("\u0131j", "i\u0301j", "i\u200bj", "\uff41j"):
        yield wrong(text, a, text=" at byte ")
    yield wrong("i\ud800", a, text="lone surrogates")
    yield wrong(b"ij", a, error=AttrTypeError, text="subscripts=b'ij' is a bytes; want a string")
    yield wrong(None, a, error=AttrTypeError, text="subscripts=None is a NoneType; want a string")
    yield wrong("ij", a, b, text="terms for 1 operands but 2 are given")
    yield wrong("ij,jk", a, text="more terms than the 1 operands given")
    yield wrong("ijk", a, error=ShapeError, text="gives it 3 letters; want 2")
    yield wrong("ijk...", a, error=ShapeError, text="gives it 3 letters; want at most 2")
    yield wrong(
        "ij,jk", a, a, error=ShapeError, text="operands[1] has size 2 along 'j', but an operand before it has 3"
    )
    yield wrong("ii", a, error=ShapeError, text="operands[0] has shape (2, 3) but 'i' stands for two of its axes")
    yield wrong("...i,i->i", a, x, text="an ellipsis in an operand but none in the result")
    yield wrong("...,...", a, x[:2], error=ShapeError, text="operands[1] has size 2 along '...'")
    yield wrong("I->i", x, text="'i' in the result but in no operand")
    yield wrong("i" * 100_000, a, text="more than 8 letters in a row")
    yield wrong("," * 10_000_000, a, error=ShapeError, text="gives it 0 letters")
    yield wrong("i" + "," * 10_000_000, x, text="more terms than the 1 operands given")
    yield wrong("i,j,k->ijk", *[np.broadcast_to(fill(1), (1 << 22,))] * 3, error=ShapeError, text="2^40 elements")
    yield wrong("i", *[x] * 10_000, error=ShapeError, text="operands has 10000 arrays; want 1 to 64")
    yield wrong("", error=ShapeError, text="operands has 0 arrays; want 1 to 64")
    yield wrong("a_ij, jk -> y_ik", a, b, text="a term without a name")
    yield wrong("a_ij, b_jk", a, b, text="no '->'")
    yield wrong("a_ij, b_jk -> a_ik", a, b, text="the name of an operand")
    yield wrong("a_ij, b_jk, d_k -> y_i", a, b, text="names more operands than the 2 given")
    yield wrong("a_ij, a_ik -> y_jk", a, b, text="terms for 1 operands but 2 are given")
    yield wrong("a_i*j -> y_*ij", a, text="'*' between axes")
    yield wrong("a_*j, b_j* -> y_*", a, b, text="first in one term and last in another")
    yield wrong("ij,jk", a, np.ones((3, 4), np.int64), error=DTypeError, text="operands[1] has dtype int64")
    yield wrong("ij", a, alpha=float("nan"), text="alpha=nan; want a finite number")
    yield wrong("ij,jk,k", a, b, fill(4), largest=0, text="largest=0; want None or at least 1")
    yield ErrorCase(sample([a, b], fill(2, 3), subscripts="ij,jk"), ShapeError, "c has shape (2, 3); want (2, 4)")


@errors(einsum_dx)
def _(fill: Fill) -> Iterator[ErrorCase]:
    x = fill(3)
    yield ErrorCase(sample([x], subscripts="i->ii", shape=(3, 4)), AttrError, "shape=(3, 4) has 4 along 'i'")
    yield ErrorCase(sample([x], subscripts="i->ii", shape=(3,)), AttrError, "shape=(3,) has 1 sizes")
    yield ErrorCase(sample([x], subscripts="i->ij", shape=(3, -1)), AttrError, "shape=(3, -1) has -1 along 'j'")
    yield ErrorCase(sample([x], subscripts="i", shape=(3,)), AttrError, "no '->'")
    yield ErrorCase(sample([x], subscripts="i->i"), AttrTypeError, "shape is missing")
    yield ErrorCase(sample([x], subscripts="i->i", shape=(3,), alpha=float("inf")), AttrError, "alpha=inf")


@workloads(einsum)
def _() -> Iterator[Workload]:
    for text, *shapes in (
        ("bhqd,bhkd->bhqk", (4, 8, 96, 64), (4, 8, 96, 64)),
        ("bhqd,bhkd->bhqk", (2, 12, 384, 64), (2, 12, 384, 64)),
        ("abc,bcd->ad", (64, 64, 96), (64, 96, 96)),
        ("acb,bcd->ad", (64, 96, 64), (64, 96, 96)),
        ("abcd,dbea->ec", (24, 24, 24, 24), (24, 24, 24, 24)),
        ("ijk,jkl,li->", (32, 32, 32), (32, 32, 32), (32, 32)),
        ("ijk,jkl,li->", (8, 8, 8), (8, 8, 8), (8, 8)),
        ("bi,bj->bij", (256, 64), (256, 64)),
    ):
        yield Workload(f"{text} {'x'.join(map(str, shapes[0]))}", tuple(shapes), {"subscripts": text}, ("einsum",))


# Of a product of all operands at once, one multiply-add per index, as the other libraries' figures count.
@flops(einsum)
def _(operands: Sequence[Sizes], c: Sizes | None = None, *, subscripts: str, **attrs: Any) -> float:
    work = math.prod(_extents(subscripts, operands).values())
    kept = subscripts.rpartition("->")[2]
    summed = any(s.isalpha() and s not in kept for s in subscripts.rpartition("->")[0])
    return (2.0 if summed else 1.0) * work


# ------------------------------------------------------------------------------------------- short for einsum


def gram(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    """Multiplies features by features: x (..., H, W, F) to alpha times the (..., F, F) sums of their products."""
    return einsum("x_*ijf, x_*ijg -> y_*fg", x, alpha=alpha, out=out)


def outer(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Multiplies every element of a (M,) by every element of b (N,), to (M, N)."""
    return einsum("m,n->mn", a, b, out=out)


def dot(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Sums the products of a (K,) and b (K,), to a scalar array."""
    return einsum("k,k->", a, b, out=out)


def vecdot(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Sums the products along the last axis: a (..., K) and b (..., K), which broadcast, to (...)."""
    return einsum("...k,...k->...", a, b, out=out)


def bilinear(x: Array, w: Array, z: Array, *, out: Array | None = None) -> Array:
    """Applies a bilinear form per output: x (..., I), w (O, I, J) and z (..., J) to (..., O)."""
    return einsum("...i,oij,...j->...o", x, w, z, out=out)


def tensordot(a: Array, b: Array, axes: int | tuple[Sequence[int], Sequence[int]] = 2, *, out: Any = None) -> Array:
    """Sums over pairs of axes, of the shapes that numpy.tensordot gives.

    ``axes`` is how many of the last of a meet the first of b, or the axes of a and those of b that meet, in order.
    """
    of_a, of_b = _met(axes, len(a.shape), len(b.shape))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text_a, text_b = list(letters[: len(a.shape)]), list(letters[len(a.shape) : len(a.shape) + len(b.shape)])
    for i, j in zip(of_a, of_b, strict=True):
        if a.shape[i] != b.shape[j]:
            raise ShapeError(
                f"tensordot: a has {a.shape[i]} along axis {i} but b has {b.shape[j]} along axis {j}; want the same",
                op="tensordot",
                argument="axes",
            )
        text_b[j] = text_a[i]
    left = [s for i, s in enumerate(text_a) if i not in of_a]
    right = [s for j, s in enumerate(text_b) if j not in of_b]
    return einsum(f"{''.join(text_a)},{''.join(text_b)}->{''.join(left + right)}", a, b, out=out)


def _met(axes: Any, dims_a: int, dims_b: int) -> tuple[list[int], list[int]]:
    if isinstance(axes, int) and not isinstance(axes, bool) and 0 <= axes <= min(dims_a, dims_b):
        return list(range(dims_a - axes, dims_a)), list(range(axes))
    if isinstance(axes, (tuple, list)) and len(axes) == 2:
        pair = [[axis] if isinstance(axis, int) else list(axis) for axis in axes]
        found = [[i % n if -n <= i < n else -1 for i in p] for p, n in zip(pair, (dims_a, dims_b), strict=True)]
        if len(found[0]) == len(found[1]) and all(-1 not in f and len(set(f)) == len(f) for f in found):
            return found[0], found[1]
    raise AttrError(
        f"tensordot: axes={axes!r:.80} for {dims_a} and {dims_b} dimensions; want a number of axes, or as many "
        "distinct axes of a as of b",
        op="tensordot",
        argument="axes",
    )


# ------------------------------------------------------------------------------------------------- OpenCL


@opencl(einsum)
def _(
    queue: Queue,
    operands: Sequence[Any],
    c: Any,
    y: Any,
    *,
    subscripts: str,
    alpha: float,
    beta: float,
    largest: int | None,
) -> None:
    from tilework.backends.opencl_contract import contract

    contract(queue, *_terms(subscripts), operands, y, alpha, c, beta, largest)


@opencl(einsum_dx)
def _(queue: Queue, operands: Sequence[Any], y: Any, *, subscripts: str, shape: Sizes, alpha: float) -> None:
    from tilework.backends.opencl_contract import contract

    contract(queue, *_terms(subscripts), operands, y, alpha)
