r"""Sums of Kronecker products measured by their factors, and the product nearest to a sum.

Nothing of size `p q x p q` is formed: the Frobenius inner product of two Kronecker products is that
of their left factors times that of their right ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from posthoc_bhpeft.linalg.eigen import require_finite
from posthoc_bhpeft.linalg.lowrank import (
    Factor,
    LowRankFactor,
    cast,
    combined,
    compressed,
    full,
    inner,
)
from posthoc_bhpeft.linalg.operators import KroneckerOperator
from posthoc_bhpeft.linalg.precision import wide


def nearest_kronecker(terms: Sequence[KroneckerOperator]) -> KroneckerOperator:
    r"""The one product `L (x) R` with the least Frobenius distance to a sum of such products.

    Rearranged, `sum_t vec(L_t) vec(R_t)^T` is a matrix of rank `k`, and what is sought is its best
    approximation of rank one (Van Loan and Pitsianis 1993, "Approximation with Kronecker
    products"). With the Gram matrices `A_tu = <L_t, L_u>` and `B_tu = <R_t, R_u>` the left singular
    vector is `sum_t a_t L_t`, `a` the leading eigenvector of `B A`, a problem of size `k`. Inner
    products of positive semi-definite factors are not negative, so (Perron) neither is `a`, and
    both factors are positive semi-definite.

    Args:
        terms: One or more, of one shape.

    Returns:
        The nearest product, its factors of equal Frobenius norm, in the terms' dtype.

    Raises:
        NonFiniteError: If a factor holds NaN or infinity.
    """
    if len(terms) == 1:
        return terms[0]
    for factor in (f for term in terms for f in (term.left, term.right)):
        require_finite(factor)
    left_gram, right_gram = gram([t.left for t in terms]), gram([t.right for t in terms])
    # Left factors are measured in units of their norms: their product counts, not either alone.
    norms = left_gram.diagonal().sqrt()
    units = torch.where(norms > 0, 1 / norms, 0)
    left_gram = left_gram * units * units[:, None]
    right_gram = right_gram * norms * norms[:, None]
    weights = leading_weights(left_gram, right_gram)
    image = left_gram @ weights
    size = float(weights @ image)
    if size == 0:
        return terms[0].scale(0.0)
    left = combine([t.left for t in terms], weights * units)
    right = combine([t.right for t in terms], image * norms / size)
    balance = (left.norm() / right.norm()).sqrt()
    one = terms[0]
    return KroneckerOperator(cast(left / balance, one.left), cast(right * balance, one.right))


def leading_weights(left_gram: Tensor, right_gram: Tensor) -> Tensor:
    """The non-negative leading eigenvector of `B A` `(k,)`, through a symmetric problem."""
    values, vectors = torch.linalg.eigh(left_gram)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    _, modes = torch.linalg.eigh(root @ right_gram @ root)
    # One sign throughout, but for rounding or among terms that have nothing in common.
    weights: Tensor = (right_gram @ (root @ modes[:, -1])).abs()
    total = float(weights.sum())
    return weights / total if total > 0 else weights


def combine(matrices: Sequence[Factor], weights: Tensor) -> Factor:
    """`sum_t w_t M_t` in float64; of factors in low rank, in the sum of their ranks."""
    narrow = [matrix for matrix in matrices if isinstance(matrix, LowRankFactor)]
    if len(narrow) == len(matrices) and sum(len(m.values) for m in narrow) < narrow[0].shape[0]:
        return combined(narrow, weights.tolist())
    total = torch.zeros_like(wide(full(matrices[0])))
    for weight, matrix in zip(weights.tolist(), matrices, strict=True):
        total.add_(wide(full(matrix)), alpha=weight)
    return total


def gram(matrices: Sequence[Factor], others: Sequence[Factor] | None = None) -> Tensor:
    """Frobenius inner products `<M_t, N_u>` in float64 on the CPU; `N = M` by default."""
    columns = matrices if others is None else others
    return torch.stack([torch.stack([inner(m, n) for n in columns]) for m in matrices]).cpu()


def kronecker_inner(
    terms: Sequence[KroneckerOperator], others: Sequence[KroneckerOperator]
) -> float:
    """Frobenius inner product of two sums of Kronecker products."""
    if not terms or not others:
        return 0.0
    left = gram([t.left for t in terms], [t.left for t in others])
    right = gram([t.right for t in terms], [t.right for t in others])
    return float((left * right).sum())


def kronecker_distance(
    terms: Sequence[KroneckerOperator], others: Sequence[KroneckerOperator]
) -> float:
    """Frobenius distance of two sums; below `1e-8` of their norms it is rounding."""
    squared = (
        kronecker_inner(terms, terms)
        - 2 * kronecker_inner(terms, others)
        + kronecker_inner(others, others)
    )
    return math.sqrt(max(squared, 0.0))


def kronecker_norm(terms: Sequence[KroneckerOperator]) -> float:
    """Frobenius norm of a sum of Kronecker products."""
    return math.sqrt(max(kronecker_inner(terms, terms), 0.0))


def merge_kroneckers(
    terms: Sequence[KroneckerOperator], max_terms: int
) -> tuple[list[KroneckerOperator], list[float]]:
    """At most `max_terms` products, and the absolute Frobenius error of each merge.

    Two at a time, always those two whose merging has the least error; down to one all at once.
    """
    if max_terms == 1 < len(terms):
        # Better than two at a time, and there is nothing to choose.
        nearest = of_old_rank(nearest_kronecker(terms), terms)
        return [nearest], [kronecker_distance(terms, [nearest])]
    terms, losses = list(terms), []
    while len(terms) > max_terms:
        trials = []
        for i, j in combinations(range(len(terms)), 2):
            pair = [terms[i], terms[j]]
            nearest = of_old_rank(nearest_kronecker(pair), pair)
            trials.append((kronecker_distance(pair, [nearest]), i, j, nearest))
        loss, i, j, nearest = min(trials, key=lambda trial: trial[0])
        terms = [*terms[:i], *terms[i + 1 : j], *terms[j + 1 :], nearest]
        losses.append(loss)
    return terms, losses


def of_old_rank(
    nearest: KroneckerOperator, terms: Sequence[KroneckerOperator]
) -> KroneckerOperator:
    """A product whose sides in low rank have no more vectors than those that it was made of."""
    left = max(rank_of(term.left) for term in terms)
    right = max(rank_of(term.right) for term in terms)
    return KroneckerOperator(compressed(nearest.left, left), compressed(nearest.right, right))


def rank_of(factor: Factor) -> int:
    """Vectors of a factor."""
    return len(factor.values) if isinstance(factor, LowRankFactor) else factor.shape[0]
