"""Conjugate gradients against dense solves."""

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConvergenceError, NonFiniteError
from posthoc_bhpeft.linalg import KroneckerOperator, OperatorSum, conjugate_gradients
from tests.linalg.factors import kronecker
from tests.models import seeded
from tests.oracles import relative_error

P, Q = 8, 12
FLOOR = 1e-3


def graded(size: int, seed: int) -> Tensor:
    """Eigenvalues from 1 down to `1e-5`, in random directions."""
    random = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    vectors = torch.linalg.qr(random).Q
    return vectors * torch.logspace(0, -5, size, dtype=torch.float64) @ vectors.T


def ill_conditioned() -> OperatorSum:
    scales = [1.0, 30.0, 0.1, 1000.0]
    terms = [KroneckerOperator(s * graded(P, i), graded(Q, i + 9)) for i, s in enumerate(scales)]
    return OperatorSum(tuple(terms))


def right_side() -> Tensor:
    return torch.randn(P, Q, generator=seeded(5), dtype=torch.float64)


def with_floor(operator: OperatorSum):
    return lambda matrix: operator.matvec(matrix) + FLOOR * matrix


def inverse_in_basis(operator: OperatorSum):
    basis = operator.decompose(FLOOR)
    return lambda m: basis.unproject(basis.project(m) / (basis.eigenvalues + FLOOR))


def dense_solution(operator: OperatorSum) -> Tensor:
    dense = operator.dense() + FLOOR * torch.eye(P * Q, dtype=torch.float64)
    return torch.linalg.solve(dense, right_side().flatten()).reshape(P, Q)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_four_ill_conditioned_terms_and_a_floor_are_solved(preconditioned):
    operator = ill_conditioned()
    solution = conjugate_gradients(
        with_floor(operator),
        right_side(),
        precondition=inverse_in_basis(operator) if preconditioned else None,
        tolerance=1e-11,
        max_iterations=5000,
    )
    assert relative_error(solution.x, dense_solution(operator)) < 1e-9
    assert solution.residual <= 1e-11


def test_the_residual_is_the_true_one():
    operator = ill_conditioned()
    solution = conjugate_gradients(
        with_floor(operator), right_side(), tolerance=1e-6, max_iterations=5000
    )
    missing = right_side() - with_floor(operator)(solution.x)
    assert solution.residual == pytest.approx(float(missing.norm() / right_side().norm()))


def test_the_joint_basis_is_a_good_preconditioner():
    operator = ill_conditioned()
    plain, helped = (
        conjugate_gradients(
            with_floor(operator), right_side(), precondition=help_, max_iterations=5000
        )
        for help_ in (None, inverse_in_basis(operator))
    )
    assert helped.iterations < 0.5 * plain.iterations


def test_the_exact_inverse_takes_one_iteration():
    one = kronecker(P, Q)
    basis = one.decompose()
    solution = conjugate_gradients(
        one.matvec,
        right_side(),
        precondition=lambda m: basis.unproject(basis.project(m) / basis.eigenvalues),
        tolerance=1e-8,
    )
    assert solution.iterations == 1


def test_zero_needs_no_iteration():
    solution = conjugate_gradients(kronecker(P, Q).matvec, torch.zeros(P, Q))
    assert solution.iterations == 0
    assert bool((solution.x == 0).all())


def test_too_few_iterations_are_an_error_with_the_way_out():
    operator = ill_conditioned()
    with pytest.raises(ConvergenceError, match=r"3 of at most 3 .*residual of .*precondition"):
        conjugate_gradients(with_floor(operator), right_side(), max_iterations=3)


def test_a_tolerance_below_single_precision_ends_with_an_error():
    operator = ill_conditioned()
    terms = tuple(KroneckerOperator(t.left.float(), t.right.float()) for t in operator.terms)
    with pytest.raises(ConvergenceError, match="it is float32"):
        conjugate_gradients(
            with_floor(OperatorSum(terms)), right_side().float(), max_iterations=3000
        )


def test_an_operator_that_is_not_positive_is_refused():
    with pytest.raises(ConvergenceError, match="floor"):
        conjugate_gradients(lambda matrix: -matrix, right_side())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_refused(value):
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        conjugate_gradients(lambda matrix: value * matrix, right_side())
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        conjugate_gradients(lambda matrix: matrix, value * right_side())
