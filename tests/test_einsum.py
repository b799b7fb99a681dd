"""What is special about einsum: two notations, any number of operands, strings that are hostile."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import random
import string
import time
from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework import ops
from tilework.registry import ops as registered
from tilework.testing import Fill, assert_matches_reference

EINSUM: Any = registered()["einsum"]


def _expression(rng: random.Random) -> tuple[str, list[tuple[int, ...]]]:
    """A random expression that numpy accepts, and shapes for it."""
    letters = rng.sample(string.ascii_letters, 6)
    sizes = {s: rng.choice((1, 2, 3, 5, 8, 9, 17)) for s in letters}
    dots = [rng.choice((1, 2, 3)) for _ in range(rng.choice((0, 0, 1, 2)))]
    terms, shapes = [], []
    for _ in range(rng.choice((1, 2, 2, 2, 3, 4))):
        names = rng.sample(letters, rng.randint(0, 4))
        if names and rng.random() < 0.15:
            names.append(rng.choice(names))
        shape = [sizes[s] if names.count(s) > 1 or rng.random() < 0.9 else 1 for s in names]
        text = "".join(names)
        if dots and rng.random() < 0.7:
            at, hidden = rng.randint(0, len(names)), rng.randint(0, len(dots))
            text = text[:at] + "..." + text[at:]
            shape[at:at] = [n if rng.random() < 0.8 else 1 for n in dots[len(dots) - hidden :]]
        terms.append(text)
        shapes.append(tuple(shape))
    text = ",".join(terms)
    if rng.random() < 0.8:
        used = sorted({s for t in terms for s in t.replace("...", "")})
        kept = rng.sample(used, rng.randint(0, min(3, len(used))))
        if "..." in text:
            kept.insert(rng.randint(0, len(kept)), "...")
        text += "->" + "".join(kept)
    return text, shapes


def _outcome(call: Any) -> Any:
    try:
        return call()
    except (ValueError, TypeError):
        return None


@pytest.mark.parametrize("seed", range(8))
def test_random_expressions_agree_with_numpy(seed: int) -> None:
    rng, fill = random.Random(seed), Fill(np.float64, seed)
    for _ in range(60):
        text, shapes = _expression(rng)
        arrays = [fill(*s) if rng.random() < 0.7 else np.asfortranarray(fill(*s)) for s in shapes]
        want = _outcome(lambda text=text, arrays=arrays: np.einsum(text, *arrays))
        if want is None:
            with pytest.raises(tw.Error):
                tw.einsum(text, *arrays)
            continue
        got = tw.einsum(text, *arrays)
        assert got.shape == want.shape, (text, shapes)
        assert_matches_reference(EINSUM, (arrays, None), {"subscripts": text}, (got,))


@pytest.mark.parametrize("seed", range(4))
def test_random_strings_are_refused_where_numpy_refuses_them(seed: int) -> None:
    rng, x, y = random.Random(100 + seed), np.ones((2, 2)), np.ones((2, 2))
    for _ in range(100):
        text = "".join(rng.choice("ijk,,.->  ..ij>-A1_") for _ in range(rng.randint(0, 9)))
        if "_" in text:
            continue  # the other notation
        want = _outcome(lambda text=text: np.einsum(text, x, y))
        got = _outcome(lambda text=text: tw.einsum(text, x, y))
        assert (got is None) == (want is None), (text, got, want)
        assert got is None or np.allclose(got, want), text


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 33, 17), (2, 3, 40, 17)]),
        ("ij,jk,kl,lm->im", [(4, 5), (5, 6), (6, 7), (7, 3)]),
        ("...ij,...jk->...ik", [(3, 1, 4, 5), (2, 5, 6)]),
        ("ii,ij->j", [(4, 4), (4, 5)]),
    ],
)
def test_agrees_with_torch_forward_and_backward(text: str, shapes: list[tuple[int, ...]]) -> None:
    torch = pytest.importorskip("torch")
    fill = Fill(np.float64)
    arrays = [fill(*s) for s in shapes]
    leaves = [torch.from_numpy(a).requires_grad_(True) for a in arrays]
    want = torch.einsum(text, *leaves)
    got = tw.einsum(text, *arrays)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-12, atol=1e-12)
    dy = fill(*got.shape)
    grads = tw.einsum.backward(dy, text, *arrays)
    ideal = torch.autograd.grad(want, leaves, torch.from_numpy(dy))
    assert len(grads) == len(arrays)
    for g, w in zip(grads, ideal, strict=True):
        np.testing.assert_allclose(g, w.numpy(), rtol=1e-12, atol=1e-12)


def test_every_way_to_write_a_call() -> None:
    fill = Fill(np.float32)
    a, b = fill(3, 4), fill(4, 5)
    want = tw.einsum("ij,jk->ik", a, b)
    calls: list[Any] = [
        tw.einsum(" i j , j k -> i k ", a, b),
        tw.einsum("ij,jk", a, b),
        tw.einsum("p_ij, q_jk -> y_ik", a, b),
        tw.einsum("ij,jk", [a, b]),
        EINSUM([a, b], subscripts="ij,jk"),
        EINSUM(a, [0, 1], b, [1, 2]),
        EINSUM(a, [0, 1], b, [1, 2], [0, 2]),
        tw.einsum.prepare(subscripts="ij,jk")(a, b),
        pickle.loads(pickle.dumps(tw.einsum))("ij,jk", a, b),
        tw.einsum.forward("ij,jk", a, b)[0],
        tw.einsum("ij,jk", a, b, out=np.empty((3, 5), np.float32)),
    ]
    for got in calls:
        assert got.tobytes() == want.tobytes()
    np.testing.assert_allclose(tw.einsum.reference("ij,jk", a, b), want, rtol=1e-5)
    for wrong in ([0, 52], [0, -1], [0, "a"]):
        with pytest.raises(tw.AttrError, match="does not number axes"):
            EINSUM(a, wrong)
    with pytest.raises(tw.AttrTypeError, match="subscripts is given twice"):
        EINSUM("ij,jk", a, b, subscripts="ij,jk")


def test_arrays_of_other_libraries_are_borrowed() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    torch = importlib.import_module("torch")
    a, b = Fill(np.float32)(3, 4), Fill(np.float32, 1)(4, 5)
    got = tw.einsum("ij,jk", torch.from_numpy(a), b)
    assert got.tobytes() == tw.einsum("ij,jk", a, b).tobytes()


def test_a_result_is_accumulated_in_place() -> None:
    fill = Fill(np.float64)
    a, b, c = fill(5, 6), fill(6, 7), fill(5, 7)
    want = -2.0 * np.einsum("ij,jk", a, b) + 0.5 * c
    got = tw.einsum("ij,jk", a, b, c=c, alpha=-2.0, beta=0.5, out=c)
    assert got is c
    np.testing.assert_allclose(c, want, rtol=1e-13, atol=1e-13)
    with pytest.raises(tw.ShapeError, match="out shares memory with operands"):
        tw.einsum("ij,jk->ij", a, b, out=a)
    with pytest.raises(tw.ShapeError, match="out shares memory with c"):
        tw.einsum("ij,jk", a, b[:, :6], c=c[:, :6], out=c[:, 1:])


def test_gradients_of_a_face_call_come_one_by_one() -> None:
    fill = Fill(np.float64)
    a, c = fill(3, 4), fill(4)
    grads = tw.einsum.backward(fill(4), "ij,ij->j", a, a, c=c, beta=2.0)
    assert [g.shape for g in grads] == [(3, 4), (3, 4), (4,)]
    (dx,) = tw.einsum.backward(np.ones((2, 2)), "x_if, x_ic -> g_fc", np.arange(6.0).reshape(3, 2))
    np.testing.assert_allclose(dx, [[2, 2], [10, 10], [18, 18]])


def test_52_labels_and_an_ellipsis() -> None:
    shapes = [string.ascii_letters[i : i + 4] for i in range(0, 52, 4)]
    arrays = [np.full((1, 1, 1, 1, 1), 2.0) for _ in shapes]
    text = ",".join("..." + s for s in shapes)
    got = tw.einsum(text + "->...", *arrays)
    np.testing.assert_allclose(got, [2.0 ** len(shapes)])


def test_chains_are_contracted_from_the_cheap_end() -> None:
    arrays = [np.full((200, 200), 1 / 200, np.float32) for _ in range(30)]
    letters = string.ascii_letters
    text = ",".join(letters[i : i + 2] for i in range(30)) + f",{letters[30]}->{letters[0]}"
    begin = time.perf_counter()
    got = tw.einsum(text, *arrays, np.ones(200, np.float32))
    assert time.perf_counter() - begin < 2
    np.testing.assert_allclose(got, np.ones(200), rtol=1e-4)


def test_an_intermediate_may_be_bounded() -> None:
    a, b, c = np.ones((50, 2)), np.ones((2, 50)), np.ones((50, 50))
    assert tw.einsum("ij,jk,ki->", a, b, c, largest=100) == 5000
    with pytest.raises(tw.AttrError, match="no order keeps every intermediate within largest=99"):
        tw.einsum("ij,jk,ki->", a, b, c, largest=99)


def test_the_sum_of_many_ones_is_exact() -> None:
    ones = np.ones((1 << 24) + 10, np.float32)
    assert tw.einsum("i->", ones) == (1 << 24) + 10
    assert tw.einsum("i,i->", ones, ones) == (1 << 24) + 10


@pytest.mark.parametrize("text", ["i" * 100_000, "," * 10_000_000, "..." * 100_000, "a_" * 100_000, "->" * 100_000])
def test_hostile_strings_are_refused_at_once(text: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(tw.Error):
        tw.einsum(text, np.ones((2, 2)))
    assert time.perf_counter() - begin < 0.5


class _Text(str):
    def __len__(self) -> int:
        raise RuntimeError("asked")

    def __iter__(self) -> Any:
        raise RuntimeError("asked")


def test_a_subclass_of_str_is_taken_by_its_characters() -> None:
    assert tw.einsum(_Text("ij->"), np.ones((2, 3))) == 6


# ------------------------------------------------------------------------------------------- short for einsum


def test_what_is_short_for_einsum_agrees_with_numpy() -> None:
    fill = Fill(np.float64)
    a, b, x = fill(6), fill(6), fill(2, 3, 4, 5)
    np.testing.assert_allclose(ops.outer(a, b[:4]), np.outer(a, b[:4]), rtol=1e-13)
    np.testing.assert_allclose(ops.dot(a, b), np.dot(a, b), rtol=1e-13)
    v = fill(5)
    np.testing.assert_allclose(ops.vecdot(x, v), x @ v, rtol=1e-12, atol=1e-12)
    want = np.einsum("nijf,nijg->nfg", x, x)
    np.testing.assert_allclose(ops.gram(x, alpha=0.5), 0.5 * want, rtol=1e-12, atol=1e-12)
    w, z = fill(7, 5, 6), fill(2, 3, 4, 6)
    np.testing.assert_allclose(ops.bilinear(x, w, z), np.einsum("...i,oij,...j->...o", x, w, z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [0, 1, 2, ([1, 2], [0, 1]), ((-1, 0), (1, -1)), (1, 0), ([], [])])
def test_tensordot_agrees_with_numpy(axes: Any) -> None:
    fill = Fill(np.float64)
    a, b = fill(5, 3, 4), fill(3, 4, 5)
    if axes == 1:
        b = fill(4, 2, 5)
    if axes == 2:
        b = fill(3, 4, 2)
    np.testing.assert_allclose(ops.tensordot(a, b, axes), np.tensordot(a, b, axes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [-1, 4, True, "1", (1,), ([0], [0, 1]), ([0, 0], [0, 1]), ([3], [0]), None])
def test_tensordot_refuses_axes_that_do_not_pair(axes: Any) -> None:
    with pytest.raises(tw.AttrError, match="tensordot: axes="):
        ops.tensordot(np.ones((2, 3, 4)), np.ones((2, 3, 4)), axes)


def test_tensordot_names_the_axes_that_differ() -> None:
    with pytest.raises(tw.ShapeError, match="a has 4 along axis 1 but b has 5 along axis 0"):
        ops.tensordot(np.ones((3, 4)), np.ones((5, 6)), 1)
