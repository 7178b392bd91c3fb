"""Kronecker, diagonal and dense operators against their dense matrices."""

import pytest
import torch

from posthoc_bhpeft.errors import NonFiniteError
from posthoc_bhpeft.linalg import (
    BlockOperator,
    DenseOperator,
    DiagonalOperator,
    KroneckerOperator,
    symmetric_eigh,
)
from tests.contracts import check_operator
from tests.linalg.factors import psd
from tests.models import seeded

SHAPES = [(3, 4), (1, 5), (5, 1), (1, 1)]


def operator(structure: str, shape: tuple[int, int]) -> BlockOperator:
    p, q = shape
    if structure == "kronecker":
        return KroneckerOperator(psd(p), psd(q, seed=1))
    if structure == "singular kronecker":
        return KroneckerOperator(psd(p, 1), psd(q, 1, seed=1))
    if structure == "diagonal":
        return DiagonalOperator(psd(max(shape))[:p, :q].abs())
    return DenseOperator(psd(p * q), p)


STRUCTURES = ["kronecker", "singular kronecker", "diagonal", "dense"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_operator_agrees_with_its_dense_matrix(structure, shape):
    check_operator(operator(structure, shape), shape)


def test_kronecker_is_left_times_matrix_times_right():
    left, right = psd(3), psd(4, seed=1)
    matrix = torch.randn(3, 4, generator=seeded(2), dtype=torch.float64)
    applied = KroneckerOperator(left, right).dense() @ matrix.flatten()
    assert torch.allclose(applied.reshape(3, 4), left @ matrix @ right)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_matrix_of_another_precision_keeps_its_own(structure):
    matrix = torch.randn(3, 4, generator=seeded(2), dtype=torch.float64)
    one = operator(structure, (3, 4))
    found = one.matvec(matrix.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), one.matvec(matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_eigenvalues_are_those_of_the_dense_matrix(structure):
    one = operator(structure, (3, 4))
    values = one.decompose().eigenvalues.flatten().sort().values
    assert torch.allclose(values, torch.linalg.eigvalsh(one.dense()).clamp_min(0), atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_operator_is_rebuilt_from_its_tensors(structure):
    one = operator(structure, (3, 4))
    extra = {"rows": 3} if isinstance(one, DenseOperator) else {}
    assert torch.equal(type(one)(**one.tensors(), **extra).dense(), one.dense())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_project_takes_any_number_of_leading_axes(structure):
    basis = operator(structure, (3, 4)).decompose()
    many = torch.randn(2, 5, 3, 4, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(basis.project(many)[1, 2], basis.project(many[1, 2]))
    assert torch.allclose(basis.unproject(many)[1, 2], basis.unproject(many[1, 2]))


def test_eigenvalues_are_float64_and_vectors_keep_the_dtype():
    values, vectors = symmetric_eigh(psd(4).float())
    assert values.dtype == torch.float64
    assert vectors.dtype == torch.float32


def test_a_slightly_negative_eigenvalue_is_taken_for_zero():
    matrix = torch.diag(torch.tensor([1.0, -1e-8], dtype=torch.float64))
    values, _ = symmetric_eigh(matrix)
    assert values.tolist() == [0.0, 1.0]


def test_an_asymmetry_from_rounding_is_averaged_away():
    matrix = psd(4)
    skewed = matrix + 1e-7 * torch.triu(torch.ones(4, 4, dtype=torch.float64), 1)
    values, _ = symmetric_eigh(skewed)
    exact = torch.linalg.eigvalsh(0.5 * (skewed + skewed.T))
    assert torch.allclose(values, exact, rtol=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_refused_by_shape(value):
    matrix = psd(4)
    matrix[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"\(4, 4\)"):
        symmetric_eigh(matrix)


def test_scaling_by_zero_gives_the_zero_operator():
    zero = operator("kronecker", (3, 4)).scale(0.0)
    assert float(zero.trace()) == 0
    assert bool((zero.decompose().eigenvalues == 0).all())
