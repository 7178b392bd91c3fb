"""The pair basis and the shared basis of several Kronecker terms, against dense matrices."""

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft.linalg import (
    Eigenbasis,
    KroneckerOperator,
    OperatorSum,
    dropped_energy,
    joint_eigenbasis,
    pair_eigenbasis,
    shared_eigenbasis,
    symmetric_eigh,
)
from tests.linalg.factors import diagonal, kronecker, psd
from tests.models import seeded
from tests.oracles import relative_error

P, Q = 4, 6
FLOORS = [1e-3, 1e-1, 1.0, 100.0]


def columns(basis: Eigenbasis) -> Tensor:
    """`Q` as `(p q, p q)`."""
    size = basis.eigenvalues.numel()
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *basis.eigenvalues.shape)
    return basis.unproject(unit).flatten(1).T


def covariance(basis: Eigenbasis, floor: float) -> Tensor:
    vectors = columns(basis)
    return vectors / (basis.eigenvalues.flatten() + floor) @ vectors.T


def log_determinant(basis: Eigenbasis, floor: float) -> float:
    return float((basis.eigenvalues + floor).log().sum()) - 2 * basis.log_volume


def precision(terms: list[KroneckerOperator], floor: float = 0.0) -> Tensor:
    dense = OperatorSum(tuple(terms)).dense()
    return dense + floor * torch.eye(len(dense), dtype=torch.float64)


def mean_eigenvalue(terms: list[KroneckerOperator]) -> float:
    return float(OperatorSum(tuple(terms)).trace()) / (P * Q)


def random_terms(n_terms: int, seed: int = 0, rank: int | None = None) -> list[KroneckerOperator]:
    return [kronecker(P, Q, 10 * seed + term, rank) for term in range(n_terms)]


def commuting_terms(n_terms: int) -> list[KroneckerOperator]:
    """Terms that have all their eigenvectors in common."""
    _, left = symmetric_eigh(psd(P))
    _, right = symmetric_eigh(psd(Q, seed=1))
    terms = []
    for seed in range(n_terms):
        rows = torch.rand(P, generator=seeded(seed), dtype=torch.float64)
        cols = torch.rand(Q, generator=seeded(seed + 50), dtype=torch.float64)
        terms.append(KroneckerOperator(left * rows @ left.T, right * cols @ right.T))
    return terms


@pytest.mark.parametrize("seed", range(5))
def test_the_pair_basis_solves_two_terms_exactly(seed):
    terms = random_terms(2, seed)
    basis, exact = pair_eigenbasis(terms), precision(terms)
    right_side = torch.randn(P * Q, 3, generator=seeded(seed), dtype=torch.float64)
    solved = covariance(basis, 0.0) @ right_side
    assert relative_error(exact @ solved, right_side) < 1e-11
    assert relative_error(covariance(basis, 0.0), torch.linalg.inv(exact)) < 1e-11
    assert log_determinant(basis, 0.0) == pytest.approx(float(torch.logdet(exact)), abs=1e-9)


def test_the_pair_basis_is_used_without_a_floor_and_says_that_it_is_not_orthonormal():
    terms = random_terms(2)
    basis = OperatorSum(tuple(terms)).decompose()
    assert relative_error(covariance(basis, 0.0), torch.linalg.inv(precision(terms))) < 1e-11
    assert basis.log_volume < -0.1


@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (2, 3)], ids=str)
def test_singular_factors_are_diagonalised_all_the_same(ranks):
    terms = [kronecker(P, Q, seed, rank) for seed, rank in enumerate(ranks)]
    basis, exact = pair_eigenbasis(terms), precision(terms)
    vectors = columns(basis)
    diagonalised = vectors.T @ exact @ vectors
    rest = diagonalised - torch.diag(diagonalised.diagonal())
    assert float(rest.norm()) < 1e-11 * float(exact.norm())
    assert float(torch.linalg.svdvals(vectors).min()) > 1e-6
    rebuilt = torch.linalg.inv(vectors)
    rebuilt = rebuilt.T * basis.eigenvalues.flatten() @ rebuilt
    assert relative_error(rebuilt, exact) < 1e-9


def test_a_zero_term_beside_another_is_no_harm():
    one, zero = kronecker(P, Q), kronecker(P, Q, 1).scale(0.0)
    basis = pair_eigenbasis([one, zero])
    assert relative_error(covariance(basis, 0.0), torch.linalg.inv(one.dense())) < 1e-10


@pytest.mark.parametrize("floor", [0.0, 1e-3, 2.0])
def test_a_term_of_zeros_leaves_the_basis_of_the_other(floor):
    one, zero = kronecker(P, Q), kronecker(P, Q, 1).scale(0.0)
    basis = joint_eigenbasis([zero, one], floor)
    exact = torch.linalg.inv(precision([one], floor))
    assert relative_error(covariance(basis, floor), exact) < 1e-10
    assert basis.log_volume == 0


@pytest.mark.parametrize("n_terms", [2, 3])
@pytest.mark.parametrize("floor", [0.0, 2.0])
def test_a_sum_of_zeros_has_an_orthonormal_basis(floor, n_terms):
    zeros = [kronecker(P, Q, seed).scale(0.0) for seed in range(n_terms)]
    basis = joint_eigenbasis(zeros, floor)
    assert bool((basis.eigenvalues == 0).all())
    vectors = columns(basis)
    assert torch.allclose(vectors.T @ vectors, torch.eye(P * Q, dtype=torch.float64))


@pytest.mark.parametrize("floor", [0.0, *FLOORS])
@pytest.mark.parametrize("n_terms", [2, 3])
def test_terms_that_commute_are_diagonalised_exactly_at_any_floor(n_terms, floor):
    terms = commuting_terms(n_terms)
    exact = precision(terms, floor)
    basis = joint_eigenbasis(terms, floor)
    assert relative_error(covariance(basis, floor), torch.linalg.inv(exact)) < 1e-9
    assert log_determinant(basis, floor) == pytest.approx(float(torch.logdet(exact)))


@pytest.mark.parametrize("make", [pair_eigenbasis, shared_eigenbasis])
@pytest.mark.parametrize("n_terms", [2, 3])
def test_both_bases_have_unit_columns_and_the_exact_diagonal(make, n_terms):
    terms = random_terms(n_terms)
    basis = make(terms)
    vectors = columns(basis)
    assert torch.allclose(vectors.norm(dim=0), torch.ones(P * Q, dtype=torch.float64))
    exact = (vectors.T @ precision(terms) @ vectors).diagonal()
    assert torch.allclose(basis.eigenvalues.flatten(), exact)
    assert basis.log_volume == pytest.approx(float(torch.linalg.slogdet(vectors)[1]), abs=1e-9)
    matrix = torch.randn(3, P, Q, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(basis.project(matrix).flatten(1), matrix.flatten(1) @ vectors)


def test_the_shared_basis_keeps_the_trace():
    terms = random_terms(3)
    total = float(OperatorSum(tuple(terms)).trace())
    assert float(shared_eigenbasis(terms).eigenvalues.sum()) == pytest.approx(total)


def test_a_diagonal_term_adds_its_exact_diagonal_to_the_shared_basis():
    terms = [kronecker(P, Q), diagonal(P, Q)]
    vectors = columns(shared_eigenbasis(terms))
    exact = (vectors.T @ OperatorSum(tuple(terms)).dense() @ vectors).diagonal()
    assert torch.allclose(shared_eigenbasis(terms).eigenvalues.flatten(), exact)
    assert torch.allclose(vectors.T @ vectors, torch.eye(P * Q, dtype=torch.float64))


@pytest.mark.parametrize("make", [pair_eigenbasis, shared_eigenbasis])
@pytest.mark.parametrize("floor", FLOORS)
def test_dropped_energy_is_what_the_dense_matrices_say(make, floor):
    terms = random_terms(3)
    basis = make(terms)
    vectors = columns(basis) / (basis.eigenvalues.flatten() + floor).sqrt()
    whitened = vectors.T @ precision(terms, floor) @ vectors
    exact = float((whitened - torch.eye(P * Q, dtype=torch.float64)).square().sum())
    assert dropped_energy(basis, terms, floor) == pytest.approx(exact, rel=1e-9)


def test_a_quarter_of_the_dropped_energy_is_the_divergence():
    terms = random_terms(2)
    floor = 30 * mean_eigenvalue(terms)
    basis, exact = shared_eigenbasis(terms), precision(terms, floor)
    approximate = covariance(basis, floor)
    product = exact @ approximate
    divergence = 0.5 * float(product.trace() - P * Q - torch.logdet(product))
    energy = dropped_energy(basis, terms, floor)
    assert 0.25 * energy == pytest.approx(divergence, rel=0.1)
    assert energy > 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("n_terms", [2, 3])
def test_the_better_basis_is_chosen_at_every_floor(n_terms, factor, seed):
    terms = random_terms(n_terms, seed)
    floor = factor * mean_eigenvalue(terms)
    both = [make(terms) for make in (pair_eigenbasis, shared_eigenbasis)]
    least = min(dropped_energy(basis, terms, floor) for basis in both)
    chosen = joint_eigenbasis(terms, floor)
    assert dropped_energy(chosen, terms, floor) == pytest.approx(least)


@pytest.mark.parametrize("n_terms", [2, 3])
def test_without_a_floor_singular_sums_have_a_basis_too(n_terms):
    basis = joint_eigenbasis(random_terms(n_terms, rank=1), 0.0)
    assert bool(torch.isfinite(columns(basis)).all())


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_the_choice_does_not_depend_on_the_unit_of_the_weights(factor):
    def chosen(scale: float) -> float:
        terms = [term.scale(scale) for term in random_terms(2)]
        return joint_eigenbasis(terms, 1e-3 * mean_eigenvalue(terms)).log_volume

    assert chosen(factor) == pytest.approx(chosen(1.0), rel=1e-6)


def test_single_precision_factors_give_float64_eigenvalues_and_single_vectors():
    terms = [KroneckerOperator(t.left.float(), t.right.float()) for t in random_terms(2)]
    for basis in (pair_eigenbasis(terms), shared_eigenbasis(terms)):
        assert basis.eigenvalues.dtype == torch.float64
        assert basis.left_vectors.dtype == torch.float32
    exact = torch.linalg.inv(precision(terms).double())
    assert relative_error(covariance(pair_eigenbasis(terms), 0.0), exact) < 1e-3


@pytest.mark.parametrize("n_terms", [2, 3])
def test_functional_variances_are_near_at_a_high_floor(n_terms):
    terms = random_terms(n_terms)
    floor = 10 * mean_eigenvalue(terms)
    gradients = torch.randn(20, P, Q, generator=seeded(3), dtype=torch.float64)
    flat = gradients.flatten(1)
    exact = ((flat @ torch.linalg.inv(precision(terms, floor))) * flat).sum(1)
    basis = OperatorSum(tuple(terms)).decompose(floor)
    found = (basis.project(gradients).square() / (basis.eigenvalues + floor)).sum((1, 2))
    assert ((found - exact) / exact).abs().mean() < 0.02
