"""torch.linalg, by the ops of tilework's factorisations and solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def functions(torch: Any, a: dict[str, Any]) -> dict[str, Callable[[], Callable[..., Any] | None]]:
    """For each op what makes its function of tensors from resolved attributes ``a``."""
    linear = torch.linalg
    return {
        "lu": lambda: lambda x: _from_zero(linear.lu_factor(x)),
        "cholesky": lambda: lambda x: linear.cholesky(x, upper=a["upper"]),
        "inv": lambda: linear.inv,
        "det": lambda: linear.det,
        "slogdet": lambda: linear.slogdet,
        "solve": lambda: linear.solve,
        "lu_solve": lambda: (
            lambda lu, pivots, b: linear.lu_solve(lu, pivots + 1, b, adjoint=a["transpose"]) if b.ndim > 1 else None
        ),
        "cholesky_solve": lambda: lambda b, factor: torch.cholesky_solve(b, factor, upper=a["upper"]),
        "triangular_solve": lambda: _triangular(linear, a),
        "tril": lambda: lambda x: torch.tril(x, a["diagonal"]),
        "triu": lambda: lambda x: torch.triu(x, a["diagonal"]),
    }


def _from_zero(factored: Any) -> Any:
    """torch counts pivots from 1."""
    return factored[0], factored[1] - 1


def _triangular(linear: Any, a: dict[str, Any]) -> Callable[..., Any]:
    rest = {"left": a["left"], "unitriangular": a["unit_diagonal"]}
    if a["transpose"]:
        return lambda t, b: linear.solve_triangular(t.mT, b, upper=not a["upper"], **rest)
    return lambda t, b: linear.solve_triangular(t, b, upper=a["upper"], **rest)
