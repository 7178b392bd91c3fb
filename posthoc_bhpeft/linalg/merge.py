"""`merge_terms`: a sum of bounded length, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg.nearest import kronecker_distance, kronecker_norm, merge_kroneckers
from posthoc_bhpeft.linalg.operators import BlockOperator, DenseOperator
from posthoc_bhpeft.linalg.sums import OperatorSum, by_structure, sum_of_diagonals


@dataclass(frozen=True)
class MergedTerms:
    """A sum after merging.

    Attributes:
        operator: Of at most the number of terms asked for.
        errors: The Frobenius error of each merge of Kronecker terms, in their order, relative to
            the norm of all Kronecker terms together; the total error is at most their sum.
        total_error: Relative Frobenius error of all Kronecker terms together. Below `1e-8` an
            error is rounding.
    """

    operator: OperatorSum
    errors: tuple[float, ...]
    total_error: float


def merge_terms(operator: OperatorSum, max_terms: int) -> MergedTerms:
    """Merge terms until there are at most `max_terms`.

    Diagonal terms are added exactly, and a dense term takes in all others exactly. Kronecker terms
    are merged two at a time into the nearest Kronecker product, always the two whose merging has
    the least Frobenius error in absolute terms: that is what the sum loses. Down to one term they
    are merged all at once. A diagonal and a Kronecker term are never merged.

    Args:
        operator: The sum.
        max_terms: 1 or more; 2 or more where diagonal and Kronecker terms meet.

    Returns:
        The shorter sum and the errors of its making, exact and from the factors alone.

    Raises:
        ConfigError: If `max_terms` is too small.
        NonFiniteError: If a Kronecker factor to be merged holds NaN or infinity.
    """
    diagonals, kroneckers, others = by_structure(operator.terms)
    if max_terms < 1 or (max_terms == 1 and diagonals and kroneckers and not others):
        raise ConfigError(
            f"max_terms={max_terms!r} is too few: a sum keeps 1 term or more, and 2 or more where "
            "diagonal terms stand beside Kronecker ones, which have no good common product."
        )
    if len(operator.terms) <= max_terms:
        return MergedTerms(operator, (), 0.0)
    if others:
        whole = DenseOperator(operator.dense(), operator.shape[0])
        return MergedTerms(OperatorSum((whole,)), (), 0.0)
    exact: list[BlockOperator] = [sum_of_diagonals(diagonals)] if diagonals else []
    merged, losses = merge_kroneckers(kroneckers, max_terms - len(exact))
    norm = kronecker_norm(kroneckers) or 1.0
    return MergedTerms(
        OperatorSum((*merged, *exact)),
        tuple(loss / norm for loss in losses),
        kronecker_distance(kroneckers, merged) / norm if losses else 0.0,
    )
