"""Factors in low rank: exact where the rank suffices, the trace kept where it does not."""

import itertools

import pytest
import torch

from posthoc_bhpeft.errors import ConfigError, NonFiniteError
from posthoc_bhpeft.linalg import (
    CompletedBasis,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
    LowRankFactor,
    OperatorSum,
    from_sketch,
    grow_rows,
    merge_terms,
    nearest_kronecker,
    pair_eigenbasis,
    pulled_to_left,
    pulled_to_right,
    quadratic_form,
    restored,
    shared_eigenbasis,
    structure_of,
)
from tests.contracts import check_map, check_operator
from tests.linalg.factors import psd
from tests.models import seeded


def orthonormal(n: int, k: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(n, k, generator=seeded(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def low_rank(n: int, k: int, seed: int = 0) -> LowRankFactor:
    values = 1 + torch.rand(k, generator=seeded(seed), dtype=torch.float64)
    return LowRankFactor(orthonormal(n, k, seed), values, torch.tensor(0.3, dtype=torch.float64))


def sketched(matrix: torch.Tensor, rank: int) -> LowRankFactor:
    test = torch.randn(len(matrix), 2 * rank, generator=seeded(9), dtype=torch.float64)
    return from_sketch(matrix @ test.to(matrix), test, matrix.trace(), rank)


SIDES = ["left", "right", "both"]


def operator(side: str = "both", p: int = 5, q: int = 7, seed: int = 0) -> KroneckerOperator:
    left = psd(p, seed=seed) if side == "right" else low_rank(p, 2, seed)
    right = psd(q, seed=seed + 1) if side == "left" else low_rank(q, 3, seed + 1)
    return KroneckerOperator(left, right)


def whole(one: KroneckerOperator) -> KroneckerOperator:
    sides = (f.full() if isinstance(f, LowRankFactor) else f for f in (one.left, one.right))
    return KroneckerOperator(*sides)


# ---------------------------------------------------------------- one factor


def test_a_factor_acts_as_its_matrix():
    factor = low_rank(6, 2)
    kept = factor.vectors * (factor.values - 0.3) @ factor.vectors.T
    matrix = kept + 0.3 * torch.eye(6, dtype=torch.float64)
    other = torch.randn(6, 6, generator=seeded(1), dtype=torch.float64)
    assert torch.allclose(factor.full(), matrix)
    assert torch.allclose(other @ factor, other @ matrix)
    assert torch.allclose(factor @ other, matrix @ other)
    assert torch.allclose(factor.trace(), matrix.trace())
    assert torch.allclose(factor.norm(), matrix.norm())
    assert torch.allclose((factor * 3 / 2).full(), 1.5 * matrix)


@pytest.mark.parametrize("k", [0, 1, 3, 8, 9])
def test_a_basis_is_completed_to_orthonormal_columns(k):
    given = orthonormal(9, k)
    basis = CompletedBasis.of(given)
    columns = basis.project(torch.eye(9, dtype=torch.float64))
    assert torch.allclose(columns.T @ columns, torch.eye(9, dtype=torch.float64))
    assert torch.allclose(columns[:, :k], given)
    assert torch.allclose(basis.unproject(columns), torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1, -1])
def test_columns_of_the_identity_are_completed_too(sign):
    """Where a plain reflector would divide by zero."""
    given = sign * torch.eye(5, dtype=torch.float64)[:, :2]
    columns = CompletedBasis.of(given).project(torch.eye(5, dtype=torch.float64))
    assert torch.allclose(columns.T @ columns, torch.eye(5, dtype=torch.float64))
    assert torch.equal(columns[:, :2], given)


@pytest.mark.parametrize("rank", [3, 5])
def test_a_sketch_is_exact_from_the_true_rank_on(rank):
    matrix = psd(20, 3)
    factor = sketched(matrix, rank)
    assert torch.allclose(factor.full(), matrix, atol=1e-9)
    assert float(factor.rest) == pytest.approx(0, abs=1e-9)


def test_a_sketch_keeps_the_trace_and_the_rest_is_what_is_left_out():
    matrix = psd(20, 12)
    factor = sketched(matrix, 4)
    assert len(factor.values) == 4
    assert torch.allclose(factor.trace(), matrix.trace())
    left_out = matrix.trace() - factor.values.sum()
    assert torch.allclose(factor.rest, left_out / 16)
    bare = factor.vectors * factor.values @ factor.vectors.T
    assert (factor.full() - matrix).norm() < (bare - matrix).norm()


def test_a_sketch_of_nothing_is_nothing():
    factor = sketched(torch.zeros(6, 6, dtype=torch.float64), 2)
    assert bool((factor.full() == 0).all())


def test_a_sketch_in_single_precision_is_exact_to_its_rounding():
    matrix = psd(20, 3)
    error = sketched(matrix.float(), 5).full().double() - matrix
    assert float(error.norm() / matrix.norm()) < 1e-5


# ---------------------------------------------------------------- operators


@pytest.mark.parametrize("side", SIDES)
def test_an_operator_satisfies_the_contract(side):
    check_operator(operator(side), (5, 7))


@pytest.mark.parametrize("side", SIDES)
def test_everything_agrees_with_the_same_operator_made_whole(side):
    one = operator(side)
    full = whole(one)
    values = one.decompose().eigenvalues.flatten().sort().values
    assert torch.allclose(values, full.decompose().eigenvalues.flatten().sort().values)
    narrow = torch.randn(5, 2, generator=seeded(3), dtype=torch.float64)
    thin = torch.randn(2, 7, generator=seeded(4), dtype=torch.float64)
    assert torch.allclose(quadratic_form(one, narrow, thin), quadratic_form(full, narrow, thin))
    for pull, factor in ((pulled_to_right, narrow), (pulled_to_left, thin)):
        assert torch.allclose(pull(one, factor).dense(), pull(full, factor).dense())


@pytest.mark.parametrize("side", SIDES)
def test_an_operator_is_restored_from_its_tensors(side):
    one = operator(side)
    again = restored("block", structure_of(one), one.tensors(), 5)
    assert torch.equal(again.dense(), one.dense())
    both = OperatorSum((one, operator(side, seed=5)))
    again = restored("block", structure_of(both), both.tensors(), 5)
    assert torch.equal(again.dense(), both.dense())


def test_nan_is_refused_with_the_shape():
    broken = operator()
    broken.right.vectors[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"\(7, 7\)"):
        broken.decompose()


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize("kinds", [("both", "both"), ("right", "right"), ("both", "left")])
def test_a_sum_of_two_has_the_exact_diagonal_in_an_orthonormal_basis(kinds):
    total = OperatorSum(tuple(operator(kind, q=9, seed=3 * i) for i, kind in enumerate(kinds)))
    check_map(total, (5, 9))
    basis = total.decompose(floor=0.1)
    columns = basis.unproject(torch.eye(45, dtype=torch.float64).reshape(45, 5, 9)).flatten(1)
    assert torch.allclose(columns @ columns.T, torch.eye(45, dtype=torch.float64))
    exact = torch.einsum("ni,ij,nj->n", columns, total.dense(), columns)
    assert torch.allclose(basis.eigenvalues.flatten(), exact)


def test_the_basis_of_a_sum_is_exact_where_the_terms_commute():
    one = operator()
    other = KroneckerOperator(one.left * 2, LowRankFactor(one.right.vectors, *spectrum(3)))
    total = OperatorSum((one, other))
    values = total.decompose(0.2).eigenvalues.flatten().sort().values
    assert torch.allclose(values, torch.linalg.eigvalsh(total.dense()))


def spectrum(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(1.0, k + 1).double(), torch.tensor(0.7, dtype=torch.float64)


def test_the_shared_basis_of_low_rank_terms_is_that_of_the_terms_made_whole():
    terms = [operator("right", q=12, seed=seed) for seed in (0, 4)]
    ours = shared_eigenbasis(terms).eigenvalues.flatten().sort().values
    theirs = shared_eigenbasis([whole(term) for term in terms]).eigenvalues.flatten()
    assert torch.allclose(ours, theirs.sort().values)


def test_terms_are_merged_without_being_formed_and_stay_in_their_rank():
    terms = [operator(q=30, p=20, seed=seed) for seed in (0, 4, 8)]
    near = nearest_kronecker(terms)
    whole_near = nearest_kronecker([whole(term) for term in terms])
    assert torch.allclose(near.dense(), whole_near.dense())
    merged = merge_terms(OperatorSum(tuple(terms)), 1)
    (kept,) = merged.operator.terms
    assert (len(kept.left.values), len(kept.right.values)) == (2, 3)
    assert torch.allclose(kept.trace(), near.trace())
    error = (kept.dense() - sum(t.dense() for t in terms)).norm()
    assert merged.total_error == pytest.approx(float(error / total_norm(terms)))


def total_norm(terms):
    return sum(term.dense() for term in terms).norm()


def test_a_diagonal_term_beside_one_in_low_rank_is_refused():
    diagonal = DiagonalOperator(torch.ones(5, 7, dtype=torch.float64))
    total = OperatorSum((operator(), diagonal))
    with pytest.raises(ConfigError, match=r"diagonal.*low rank.*one estimator"):
        total.decompose(1.0)
    dense = DenseOperator(torch.eye(35, dtype=torch.float64), 5)
    assert OperatorSum((operator(), dense)).decompose(1.0).eigenvalues.shape == (5, 7)


def test_the_pair_basis_makes_factors_whole():
    terms = [operator(seed=seed) for seed in (0, 4)]
    ours = pair_eigenbasis(terms).eigenvalues
    assert torch.allclose(ours, pair_eigenbasis([whole(term) for term in terms]).eigenvalues)


@pytest.mark.parametrize("side", SIDES)
def test_new_rows_are_not_known(side):
    grown = grow_rows(operator(side), 6)
    dense = grown.dense().reshape(6, 7, 6, 7)
    assert torch.allclose(dense[:5, :, :5].reshape(35, 35), operator(side).dense())
    assert bool((dense[5] == 0).all())


def test_a_wide_side_costs_what_it_keeps():
    """A hundred thousand wide: whole, the factor alone would take 80 GB."""
    wide = LowRankFactor(orthonormal(100_000, 4).float(), torch.ones(4), torch.tensor(0.5))
    one = KroneckerOperator(torch.eye(2), wide)
    basis = OperatorSum((one, one.scale(0.5))).decompose(0.3)
    matrix = torch.randn(2, 100_000, generator=seeded())
    again = basis.unproject(basis.project(matrix))
    assert torch.allclose(again, matrix, atol=1e-4)
    expected = {0.75: 2 * 99_996, 1.5: 8}
    for value, count in expected.items():
        close = (basis.eigenvalues - value).abs() < 1e-4
        assert int(close.sum()) == count


def test_projections_take_leading_axes_and_either_side_larger():
    for p, q in itertools.permutations((4, 9)):
        one = KroneckerOperator(low_rank(p, 2), low_rank(q, 2, 1))
        many = torch.randn(2, 3, p, q, generator=seeded(), dtype=torch.float64)
        basis = one.decompose()
        applied = basis.unproject(basis.eigenvalues * basis.project(many))
        assert torch.allclose(applied, one.matvec(many))
