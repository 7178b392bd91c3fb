"""Merging Kronecker terms against a dense rearrangement and its singular value decomposition."""

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError, NonFiniteError
from posthoc_bhpeft.linalg import (
    DiagonalOperator,
    KroneckerOperator,
    OperatorSum,
    merge_terms,
    nearest_kronecker,
)
from tests.linalg.factors import dense, diagonal, kronecker, psd
from tests.oracles import relative_error, symmetric_positive

P, Q = 3, 5


def sum_of(n_terms: int, rank: int | None = None) -> OperatorSum:
    scales = [1.0, 0.3, 4.0, 0.05, 2.0]
    return OperatorSum(tuple(kronecker(P, Q, s, rank).scale(scales[s]) for s in range(n_terms)))


def rearranged(matrix: Tensor, p: int = P, q: int = Q) -> Tensor:
    """`(p^2, q^2)`: the row of each `(q, q)` block of a `(p q, p q)` matrix."""
    return matrix.reshape(p, q, p, q).permute(0, 2, 1, 3).reshape(p * p, q * q)


def best_error(matrix: Tensor, rank: int = 1) -> float:
    """What the best sum of `rank` Kronecker products leaves, in Frobenius norm."""
    return float(torch.linalg.svdvals(rearranged(matrix))[rank:].square().sum().sqrt())


@pytest.mark.parametrize("rank", [None, 1], ids=["full rank", "rank 1"])
@pytest.mark.parametrize("n_terms", [2, 3, 5])
def test_the_nearest_product_is_the_best_there_is(n_terms, rank):
    one = sum_of(n_terms, rank)
    nearest = nearest_kronecker(one.terms)
    error = float((nearest.dense() - one.dense()).norm())
    assert error == pytest.approx(best_error(one.dense()), rel=1e-9)
    assert symmetric_positive(nearest)
    assert torch.allclose(nearest.left.norm(), nearest.right.norm())


def test_both_factors_of_the_nearest_product_are_positive():
    nearest = nearest_kronecker(sum_of(4, 2).terms)
    for factor in (nearest.left, nearest.right):
        assert torch.linalg.eigvalsh(factor).min() > -1e-12 * factor.norm()


def test_terms_with_nothing_in_common_and_equal_norms_stay_positive():
    # The leading eigenvector is then any combination of the two, signs included.
    unit = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    other = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    terms = [KroneckerOperator(unit, unit), KroneckerOperator(other, other)]
    nearest = nearest_kronecker(terms)
    assert symmetric_positive(nearest)
    total = terms[0].dense() + terms[1].dense()
    assert float((nearest.dense() - total).norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_factors_of_very_different_sizes_do_no_harm(factor):
    one, other = kronecker(P, Q, 0), kronecker(P, Q, 1)
    skewed = KroneckerOperator(one.left * factor, one.right / factor)
    plain, merged = nearest_kronecker([one, other]), nearest_kronecker([skewed, other])
    assert relative_error(merged.dense(), plain.dense()) < 1e-9


def test_a_zero_term_changes_nothing_and_zeros_stay_zero():
    one, zero = kronecker(P, Q), kronecker(P, Q, 1).scale(0.0)
    assert relative_error(nearest_kronecker([zero, one]).dense(), one.dense()) < 1e-12
    assert float(nearest_kronecker([zero, zero]).dense().norm()) == 0


def test_terms_that_share_a_factor_merge_without_loss():
    left, right, other = psd(P), psd(Q), psd(Q, seed=1)
    one = OperatorSum((KroneckerOperator(left, right), KroneckerOperator(2 * left, other)))
    merged = merge_terms(one, 1)
    assert relative_error(merged.operator.dense(), one.dense()) < 1e-12
    assert merged.total_error < 1e-7


def test_merging_beats_adding_the_factors():
    one = sum_of(2)
    a, b = one.terms
    left, right = a.left + b.left, a.right + b.right
    added = KroneckerOperator(left, right)
    added = added.scale(float(one.trace() / added.trace()))
    merged = merge_terms(one, 1)
    assert merged.total_error < 0.7 * relative_error(added.dense(), one.dense())


@pytest.mark.parametrize("max_terms", [1, 2, 3, 4])
def test_the_errors_are_those_of_the_dense_matrices(max_terms):
    one = sum_of(5)
    merged = merge_terms(one, max_terms)
    assert len(merged.operator.terms) == max_terms
    assert len(merged.errors) == (1 if max_terms == 1 else 5 - max_terms)
    exact = relative_error(merged.operator.dense(), one.dense())
    assert merged.total_error == pytest.approx(exact, rel=1e-9)
    assert merged.total_error <= sum(merged.errors) + 1e-12
    assert symmetric_positive(merged.operator)


def test_the_pair_that_loses_least_is_merged():
    one = sum_of(4)
    merged = merge_terms(one, 3)
    losses = [
        best_error(a.dense() + b.dense()) for i, a in enumerate(one.terms) for b in one.terms[:i]
    ]
    assert merged.errors[0] == pytest.approx(min(losses) / float(one.dense().norm()), rel=1e-6)
    kept = [term for term in one.terms if any(term is other for other in merged.operator.terms)]
    assert len(kept) == 2


def test_a_sum_short_enough_is_left_alone():
    one = sum_of(3)
    merged = merge_terms(one, 3)
    assert merged.operator is one
    assert merged.errors == ()
    assert merged.total_error == 0


def test_diagonal_terms_are_added_exactly():
    terms = (diagonal(P, Q, 0), kronecker(P, Q, 1), diagonal(P, Q, 2), kronecker(P, Q, 3))
    one = OperatorSum(terms)
    three = merge_terms(one, 3)
    assert three.errors == ()
    assert torch.allclose(three.operator.dense(), one.dense())
    two = merge_terms(one, 2)
    assert isinstance(two.operator.terms[-1], DiagonalOperator)
    kroneckers = terms[1].dense() + terms[3].dense()
    assert two.total_error == pytest.approx(best_error(kroneckers) / float(kroneckers.norm()))


def test_a_dense_term_takes_in_the_others():
    one = OperatorSum((kronecker(P, Q, 0), dense(P, Q, 1), diagonal(P, Q, 2)))
    merged = merge_terms(one, 2)
    assert len(merged.operator.terms) == 1
    assert torch.allclose(merged.operator.dense(), one.dense())


def test_single_precision_stays_single_precision():
    terms = [KroneckerOperator(t.left.float(), t.right.float()) for t in sum_of(3).terms]
    merged = merge_terms(OperatorSum(tuple(terms)), 1).operator.terms[0]
    assert merged.left.dtype == merged.right.dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_refused_by_shape(value):
    one = sum_of(2)
    one.terms[1].right[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"\(5, 5\)"):
        merge_terms(one, 1)
    with pytest.raises(NonFiniteError, match=r"\(5, 5\)"):
        one.decompose()


@pytest.mark.parametrize("max_terms", [0, -1])
def test_no_term_at_all_is_refused(max_terms):
    with pytest.raises(ConfigError, match="max_terms"):
        merge_terms(sum_of(2), max_terms)


def test_a_diagonal_and_a_kronecker_term_are_never_merged():
    one = OperatorSum((kronecker(P, Q), diagonal(P, Q)))
    with pytest.raises(ConfigError, match="2 or more where"):
        merge_terms(one, 1)
