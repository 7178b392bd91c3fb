r"""One Kronecker basis for several Kronecker terms at once.

Two candidates. The **pair** basis diagonalises two terms exactly by congruence, but is not
orthonormal, so that a floor `d I` under the sum is not diagonal in it. The **shared** basis is
orthonormal, so any floor is, but the terms are diagonal only as far as they have eigenvectors in
common. Either has the exact diagonal of every term; `dropped_energy` says what it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg.completed import CompletedBasis
from posthoc_bhpeft.linalg.eigen import (
    KroneckerEigenbasis,
    Vectors,
    factor_eigenbasis,
    symmetric_eigh,
)
from posthoc_bhpeft.linalg.lowrank import Factor, LowRankFactor, full, quadratic, widened
from posthoc_bhpeft.linalg.nearest import merge_kroneckers, nearest_kronecker
from posthoc_bhpeft.linalg.operators import DiagonalOperator, KroneckerOperator
from posthoc_bhpeft.linalg.precision import wide

Term = KroneckerOperator | DiagonalOperator

HIGH_FLOOR = 1.0
"""In units of the mean eigenvalue; from here up the pair basis is not tried."""

ROUNDING, TINY = 1e-12, 1e-300
"""Eigenvalues below so much of their mean, or below so much, are rounding."""


def joint_eigenbasis(terms: Sequence[Term], floor: float = 0.0) -> KroneckerEigenbasis:
    """The better of the two bases for `H + d I`, the one that drops less.

    Two Kronecker terms without a floor have the pair basis, which is exact then. A floor at or
    above the mean eigenvalue of `H` leaves it to the shared basis, which dropped less every time it
    was measured there, on tuned models and on hundreds of random sums. Below, `dropped_energy`
    decides between the two. Beside a diagonal term, and for factors in low rank, there is the
    shared basis only. Terms that are zero have no say.

    Args:
        terms: Whose sum is `H`; one Kronecker term or more.
        floor: `d`.

    Raises:
        NonFiniteError: If a factor holds NaN or infinity.
        ConfigError: If a factor in low rank meets a diagonal term.
    """
    present = [term for term in terms if float(term.trace()) != 0] or terms[:1]
    kroneckers = [term for term in present if isinstance(term, KroneckerOperator)]
    low_rank = any(has_low_rank(term) for term in kroneckers)
    if low_rank and len(kroneckers) < len(present):
        raise ConfigError(
            "A diagonal curvature and one with factors in low rank meet in one block, and have no "
            "common basis that is cheap. Fit both with one estimator: DiagonalGGN(), or "
            "KroneckerGGN(rank=...)."
        )
    if len(kroneckers) == len(present) == 2 and floor == 0 and not low_rank:
        return pair_eigenbasis(kroneckers)
    shared = shared_eigenbasis(present)
    only = low_rank or len(kroneckers) < len(present) or len(present) == 1
    if only or floor >= HIGH_FLOOR * float(shared.eigenvalues.mean()):
        return shared
    bases = [shared, pair_eigenbasis(kroneckers)]
    return min(bases, key=lambda basis: dropped_energy(basis, kroneckers, floor))


def pair_eigenbasis(terms: Sequence[KroneckerOperator]) -> KroneckerEigenbasis:
    """Unit vectors `Q = U (x) V` in which `L1 (x) R1 + L2 (x) R2` is diagonal; exact.

    `U` diagonalises `L1` and `L2` at once, `V` does `R1` and `R2`; both as generalised symmetric
    eigenvectors. With a floor `d`, the off-diagonal part `d (Q^T Q - I)` is dropped.

    Args:
        terms: Two; more are merged down to two for the basis, which has the exact diagonal of
            every term all the same.

    Raises:
        NonFiniteError: If a factor holds NaN or infinity.
    """
    (first, second), _ = merge_kroneckers(terms, 2)
    left = simultaneous_vectors(full(first.left), full(second.left))
    right = simultaneous_vectors(full(first.right), full(second.right))
    p, q = first.shape
    volume = q * log_determinant(left) + p * log_determinant(right)
    values = diagonal_in(terms, left, right)
    one = like(first)
    return KroneckerEigenbasis(values, left.to(one), right.to(one), volume)


def shared_eigenbasis(terms: Sequence[Term]) -> KroneckerEigenbasis:
    """The eigenvectors of the nearest Kronecker product, with the exact diagonal of every term.

    Exact in trace, and where the terms commute exact altogether; the off-diagonal rest is dropped,
    as in EK-FAC (George et al. 2018, https://arxiv.org/abs/1806.03884). For the basis, a diagonal
    term stands in by the product of its row and column sums.

    Raises:
        NonFiniteError: If a factor holds NaN or infinity.
    """
    nearest = nearest_kronecker([as_kronecker(term) for term in terms])
    left, right = (factor_eigenbasis(widened(f))[1] for f in (nearest.left, nearest.right))
    values = diagonal_in(terms, left, right)
    return KroneckerEigenbasis(values, left.to(like(nearest)), right.to(like(nearest)))


def as_kronecker(term: Term) -> KroneckerOperator:
    """The term, or for a diagonal one the product of the sums over its rows and columns."""
    if isinstance(term, KroneckerOperator):
        return term
    total = term.trace().clamp_min(torch.finfo(term.diagonal.dtype).tiny)
    rows, columns = term.diagonal.sum(1), term.diagonal.sum(0)
    return KroneckerOperator(torch.diag(rows / total), torch.diag(columns))


def diagonal_in(terms: Sequence[Term], left: Vectors, right: Vectors) -> Tensor:
    """Diagonal of `(U (x) V)^T H (U (x) V)` as `(p, q)`, for a sum `H` of terms."""
    parts = []
    for term in terms:
        if isinstance(term, KroneckerOperator):
            parts.append(torch.outer(along(term.left, left), along(term.right, right)))
        else:
            parts.append(formed(left).square().T @ wide(term.diagonal) @ formed(right).square())
    return torch.stack(parts).sum(0).clamp_min(0)


def along(factor: Factor, vectors: Vectors) -> Tensor:
    """`v^T M v` for every column of a basis; completed ones hold all vectors of every factor."""
    if not isinstance(vectors, CompletedBasis):
        return quadratic(factor, vectors)
    head = quadratic(factor, vectors.vectors)
    if not isinstance(factor, LowRankFactor):
        raise TypeError("A completed basis is for factors in low rank; this one is full.")
    return torch.cat([head, wide(factor.rest).expand(factor.shape[0] - len(head))])


def formed(vectors: Vectors) -> Tensor:
    """The columns of a basis as a matrix in float64."""
    if not isinstance(vectors, CompletedBasis):
        return wide(vectors)
    given = vectors.vectors
    return vectors.project(torch.eye(len(given), dtype=given.dtype, device=given.device)).double()


def has_low_rank(term: KroneckerOperator) -> bool:
    """Whether a side is kept in low rank."""
    return isinstance(term.left, LowRankFactor) or isinstance(term.right, LowRankFactor)


def like(term: KroneckerOperator) -> Tensor:
    """A tensor of a term, for its device and dtype."""
    return term.left.vectors if isinstance(term.left, LowRankFactor) else term.left


def simultaneous_vectors(first: Tensor, second: Tensor) -> Tensor:
    """Unit columns `U` with `U^T A U` and `U^T B U` both diagonal, for `A`, `B` PSD `(n, n)`.

    Both are taken in units of their traces; with `A + B = W diag(s) W^T` the columns are
    `W diag(s)^-1/2 E`, `E` the eigenvectors of `A` whitened so. Unlike either term alone the sum is
    as well conditioned as the two allow; directions in the null space of both stay orthonormal.

    Returns:
        `(n, n)` in float64.
    """
    one, two = in_units_of_trace(first), in_units_of_trace(second)
    values, vectors = symmetric_eigh(one + two)
    # Below the rounding of the factors themselves, nothing is known of a direction.
    known = values > 8 * torch.finfo(first.dtype).eps * values[-1]
    whitening = vectors[:, known] / values[known].sqrt()
    _, rotation = symmetric_eigh(whitening.T @ one @ whitening)
    seen = whitening @ rotation
    return torch.cat([vectors[:, ~known], seen / seen.norm(dim=0)], 1)


def in_units_of_trace(matrix: Tensor) -> Tensor:
    """`M / tr(M)` in float64, or `M` where the trace is zero."""
    double = wide(matrix)
    trace = double.trace()
    return double / trace if float(trace) > 0 else double


def log_determinant(vectors: Tensor) -> float:
    """`log |det U|`."""
    return float(torch.linalg.slogdet(vectors).logabsdet)


def dropped_energy(
    basis: KroneckerEigenbasis, terms: Sequence[KroneckerOperator], floor: float
) -> float:
    r"""What a basis leaves out of `H + d I`, in units of what it keeps.

    `|D^-1/2 Q^T (H + d I) Q D^-1/2 - I|_F^2` with `D = diag(l + d)`: every entry that is dropped,
    squared. A quarter of it is, to second order, the Kullback-Leibler divergence of the approximate
    Gaussian from the exact one. Computed from factors in `O(p^2 q + p q^2)`.

    Args:
        basis: Of the terms, with their exact diagonals as eigenvalues.
        terms: Whose sum is `H`.
        floor: `d`; raised to what rounding leaves of the eigenvalues.
    """
    left, right = formed(basis.left_vectors), formed(basis.right_vectors)
    least = max(floor, ROUNDING * float(basis.eigenvalues.mean()), TINY)
    weights = 1 / (basis.eigenvalues + least)
    sides = [(left.T @ widened(t.left) @ left, right.T @ widened(t.right) @ right) for t in terms]
    sides.append((least * left.T @ left, right.T @ right))
    total = 0.0
    for one in range(len(sides)):
        for two in range(one + 1):
            lefts, rights = sides[one][0] * sides[two][0], sides[one][1] * sides[two][1]
            energy = float((weights * (lefts @ weights @ rights)).sum())
            total += energy if one == two else 2 * energy
    return max(total - weights.numel(), 0.0)
