"""Preconditioned conjugate gradients on `(p, q)` matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConvergenceError, NonFiniteError

Matvec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """A solved system.

    Attributes:
        x: `(p, q)`.
        iterations: Products with the operator that the search took.
        residual: `|b - H x| / |b|`, computed afresh at the end.
    """

    x: Tensor
    iterations: int
    residual: float


def conjugate_gradients(
    matvec: Matvec,
    right_side: Tensor,
    *,
    precondition: Matvec | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Solution:
    """Solve `H x = b` for a symmetric positive definite `H` (Hestenes and Stiefel 1952).

    The residual that the recursion carries along drifts from the true one by rounding; where it
    says that the search is over and `b - H x` does not, the search starts again from `x`.

    Args:
        matvec: `H`, on `(p, q)` matrices.
        right_side: `b` `(p, q)`; its dtype is computed in, float64 for tolerances below `1e-6`.
        precondition: An approximate inverse of `H`, symmetric positive definite.
        tolerance: Of the relative residual.
        max_iterations: At most so many products in the search.

    Raises:
        NonFiniteError: If NaN or infinity comes up.
        ConvergenceError: If the residual stays above the tolerance, or `H` is not positive.
    """
    size = float(right_side.norm())
    check_finite(size, 0)
    x, used, residual = torch.zeros_like(right_side), 0, 1.0
    if size == 0:
        return Solution(x, 0, 0.0)
    while used < max_iterations:
        before = residual
        step, taken = search(
            matvec,
            right_side - matvec(x),
            precondition or torch.clone,
            tolerance * size,
            max_iterations - used,
        )
        x, used = x + step, used + taken
        residual = float((right_side - matvec(x)).norm()) / size
        check_finite(residual, used)
        if residual <= tolerance:
            return Solution(x, used, residual)
        if taken == 0 or residual > 0.5 * before:
            break
    raise ConvergenceError(
        f"Conjugate gradients stopped after {used} of at most {max_iterations} iterations with a "
        f"relative residual of {residual:.1e}; {tolerance:.1e} was asked for. Give a better "
        "precondition, a larger max_iterations or tolerance, or a float64 right side "
        f"(it is {str(right_side.dtype).removeprefix('torch.')})."
    )


def search(
    matvec: Matvec, residual: Tensor, precondition: Matvec, goal: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Conjugate directions from zero until `|residual| <= goal`; the step and the iterations."""
    step = torch.zeros_like(residual)
    better = precondition(residual)
    direction = better
    energy = float((residual * better).sum())
    for iteration in range(max_iterations):
        if float(residual.norm()) <= goal:
            return step, iteration
        image = matvec(direction)
        curvature = float((direction * image).sum())
        check_finite(curvature, iteration)
        if curvature <= 0 or energy <= 0:
            raise ConvergenceError(
                f"Conjugate gradients met a direction with curvature {curvature:.1e} and "
                f"preconditioned energy {energy:.1e} in iteration {iteration}; both must be above "
                "0. Add a positive floor to the operator and to its preconditioner."
            )
        step = step + energy / curvature * direction
        residual = residual - energy / curvature * image
        better = precondition(residual)
        previous, energy = energy, float((residual * better).sum())
        direction = better + energy / previous * direction
    return step, max_iterations


def check_finite(number: float, iteration: int) -> None:
    """Raise on NaN and infinity."""
    if not math.isfinite(number):
        raise NonFiniteError(
            f"Conjugate gradients met NaN or infinity in iteration {iteration}: the operator or "
            "the right side holds some, or they overflow. Check the curvature, or use float64."
        )
