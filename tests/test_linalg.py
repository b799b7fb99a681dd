"""What is special about factorisations: backward errors at size, peers, pivots, refusals in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilework as tw
from tilework.testing import Fill
from tilework.testing.compare import BOUND

SIZES = (1, 31, 32, 33, 64, 100, 257)
DTYPES = ("float32", "float64")


def swapped_rows(a: Any, pivots: Any) -> Any:
    """P a."""
    a = a.copy()
    for k, p in enumerate(pivots):
        a[[k, p]] = a[[p, k]]
    return a


def assert_backward_stable(difference: Any, terms: Any, dtype: str) -> None:
    """Asserts |difference| <= c eps sqrt(N) terms, whatever the condition of the matrix."""
    bound = BOUND * float(np.finfo(dtype).eps) * np.sqrt(difference.shape[0]) * terms
    worst = float(np.max(np.abs(difference) / bound))
    assert worst <= 1, f"{worst:.3g} times the bound"


def ill(fill: Fill, n: int) -> Any:
    """A random matrix whose last rows are nearly dependent."""
    a = fill(n, n)
    a[n // 2] = a[0] * 2 + a[n // 2] * 1e-4
    return a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_lu_gives_back_its_matrix(n: int, dtype: str) -> None:
    a = ill(Fill(dtype), n)
    lu, pivots = tw.lu(a)
    wide = lu.astype(np.float64)
    lower, upper = np.tril(wide, -1) + np.eye(n), np.triu(wide)
    assert np.max(np.abs(lower)) <= 1 + 2 * np.finfo(dtype).eps
    assert np.all(pivots >= np.arange(n))
    assert_backward_stable(
        lower @ upper - swapped_rows(a.astype(np.float64), pivots), np.abs(lower) @ np.abs(upper), dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_cholesky_gives_back_its_matrix(n: int, upper: bool, dtype: str) -> None:
    half = Fill("float64")(n, n)
    a = (half @ half.T / n + 1e-3 * np.eye(n)).astype(dtype)
    factor = tw.cholesky(a, upper=upper)
    wide = (factor.T if upper else factor).astype(np.float64)
    assert np.array_equal(wide, np.tril(wide))
    assert_backward_stable(wide @ wide.T - a, np.abs(wide) @ np.abs(wide.T), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_solve_and_inv_leave_a_small_residual(n: int, dtype: str) -> None:
    fill = Fill(dtype)
    a, b = ill(fill, n), fill(n, 5)
    lu, pivots = tw.lu(a)
    wide = lu.astype(np.float64)
    size = (np.abs(np.tril(wide, -1)) + np.eye(n)) @ np.abs(np.triu(wide))
    permuted = swapped_rows(a.astype(np.float64), pivots)
    for x, sides in ((tw.solve(a, b), b), (tw.inv(a), np.eye(n)), (tw.lu_solve(lu, pivots, b), b)):
        x = x.astype(np.float64)
        assert_backward_stable(permuted @ x - swapped_rows(sides.astype(np.float64), pivots), size @ np.abs(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_triangular_solve_leaves_a_small_residual(n: int, upper: bool, dtype: str) -> None:
    fill = Fill(dtype)
    a, b = fill(n, n) + np.sign(fill(n)).astype(dtype) * np.sqrt(n, dtype=dtype) * np.eye(n, dtype=dtype), fill(n, 40)
    t = (np.triu(a) if upper else np.tril(a)).astype(np.float64)
    x = tw.triangular_solve(a, b, upper=upper).astype(np.float64)
    assert_backward_stable(t @ x - b, np.abs(t) @ np.abs(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_has_the_bits_of_its_matrices(dtype: str) -> None:
    fill = Fill(dtype)
    a, b = fill.regular(40, 9, 9), fill(40, 9, 3)
    x, (lu, pivots) = tw.solve(a, b), tw.lu(a)
    for i in range(40):
        assert np.array_equal(x[i], tw.solve(a[i], b[i]))
        assert np.array_equal(lu[i], tw.lu(a[i])[0])
        assert np.array_equal(pivots[i], tw.lu(a[i])[1])


def test_the_first_singular_matrix_is_named_and_out_is_untouched() -> None:
    a = np.tile(np.eye(4), (50, 1, 1))
    a[17, 2, 2] = a[31, 1, 1] = 0
    out = np.full_like(a, 7.0)
    with tw.threads(2), pytest.raises(tw.SingularError, match=r"^inv: a has no pivot .* 2 of matrix \(17,\); want"):
        tw.inv(a, out=out)
    assert np.all(out == 7)
    with pytest.raises(np.linalg.LinAlgError):
        tw.solve(np.zeros((2, 2)), np.ones(2))
    # A broadcast matrix is named by its own index.
    with pytest.raises(tw.SingularError, match=r"column 0; want"):
        tw.solve(np.zeros((2, 2)), np.ones((3, 2, 1)))


def test_determinants_of_singular_and_huge_matrices() -> None:
    assert tw.det(np.ones((3, 3))) == 0
    sign, log = tw.slogdet(np.stack([np.ones((3, 3)), np.diag([1e200, -1e200, 1e-300])]))
    assert np.array_equal(sign, [0, -1])
    assert log[0] == -np.inf
    assert log[1] == pytest.approx(100 * np.log(10), rel=1e-14)
    assert tw.det(np.diag([1e200, 1e200, 1e-300])) == pytest.approx(1e100, rel=1e-13)
    assert tw.det(np.zeros((2, 0, 0))).tolist() == [1, 1]


def test_a_matrix_with_a_nan_gives_nan_alone() -> None:
    a = Fill("float64").regular(3, 5, 5)
    a[1, 2, 3] = np.inf
    for result in (tw.inv(a), tw.solve(a, np.ones(5)), tw.det(a), tw.lu(a)[0]):
        assert np.all(np.isnan(result[1]))
        assert np.all(np.isfinite(result[[0, 2]]))
    assert np.array_equal(tw.lu(a)[1][1], np.arange(5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_agrees(dtype: str) -> None:
    fill = Fill(dtype)
    a, b, m = fill.regular(4, 20, 20), fill(4, 20, 3), fill.definite(4, 20, 20)
    near: dict[str, Any] = {"rtol": 0, "atol": 200 * np.finfo(dtype).eps * 4}
    np.testing.assert_allclose(tw.solve(a, b), np.linalg.solve(a, b), **near)
    np.testing.assert_allclose(tw.inv(a), np.linalg.inv(a), **near)
    np.testing.assert_allclose(tw.cholesky(m), np.linalg.cholesky(m), **near)
    np.testing.assert_allclose(tw.slogdet(a)[1], np.linalg.slogdet(a)[1], **near)
    np.testing.assert_array_equal(tw.slogdet(a)[0], np.linalg.slogdet(a)[0])
    assert tw.solve(a, b[0, :, 0]).shape == np.linalg.solve(a, b[0, :, 0]).shape == (4, 20)


def test_scipy_agrees() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    fill = Fill("float64")
    a, b = fill.regular(50, 50), fill(50, 3)
    lu, pivots = tw.lu(a)
    theirs, their_pivots = linalg.lu_factor(a)
    np.testing.assert_allclose(lu, theirs, atol=1e-12)
    np.testing.assert_array_equal(pivots, their_pivots)
    np.testing.assert_allclose(
        tw.lu_solve(theirs, their_pivots.astype(np.int32), b, transpose=True), linalg.lu_solve((lu, pivots), b, trans=1)
    )
    np.testing.assert_allclose(
        tw.triangular_solve(a, b, upper=True, transpose=True, unit_diagonal=True),
        linalg.solve_triangular(a, b, trans=1, unit_diagonal=True),
        rtol=1e-8,
    )


def test_torch_agrees_and_so_do_its_gradients() -> None:
    torch = pytest.importorskip("torch")
    fill = Fill("float64")
    a, b, dy = fill.regular(2, 9, 9), fill(2, 9, 3), fill(2, 9, 3)
    ta, tb = (torch.from_numpy(x).requires_grad_(True) for x in (a, b))
    x = torch.linalg.solve(ta, tb)
    x.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(tw.solve(a, b), x.detach().numpy(), atol=1e-12)
    da, db = tw.solve.backward(dy, a, b)
    np.testing.assert_allclose(da, ta.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(db, tb.grad.numpy(), atol=1e-12)
    # PyTorch spreads the gradient of cholesky over both triangles; what a symmetric a makes of it is the same.
    m = torch.from_numpy(fill.definite(6, 6)).requires_grad_(True)
    torch.linalg.cholesky(m).backward(torch.ones(6, 6, dtype=torch.float64).tril())
    own = tw.cholesky.backward(np.tril(np.ones((6, 6))), m.detach().numpy())
    np.testing.assert_allclose((own + own.T) / 2, m.grad.numpy(), atol=1e-12)
    lu, pivots = tw.lu(a)
    theirs = torch.linalg.lu_factor(torch.from_numpy(a))
    np.testing.assert_allclose(lu, theirs.LU.numpy(), atol=1e-12)
    np.testing.assert_array_equal(pivots + 1, theirs.pivots.numpy())
