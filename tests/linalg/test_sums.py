"""`OperatorSum` and `grow_rows` against dense matrices."""

import pytest
import torch

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.linalg import (
    IdentityEigenbasis,
    OperatorSum,
    grow_rows,
)
from tests.contracts import check_map
from tests.linalg.factors import dense, diagonal, kronecker
from tests.models import seeded

P, Q = 3, 4
SUMS = {
    "one kronecker": [kronecker],
    "two kronecker": [kronecker, kronecker],
    "four kronecker": [kronecker] * 4,
    "diagonals": [diagonal, diagonal],
    "kronecker and diagonal": [kronecker, diagonal, kronecker],
    "with dense": [kronecker, dense, diagonal],
}


def operator_sum(name: str, p: int = P, q: int = Q) -> OperatorSum:
    return OperatorSum(tuple(make(p, q, seed) for seed, make in enumerate(SUMS[name])))


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_agrees_with_the_sum_of_the_dense_matrices(name):
    one = operator_sum(name)
    assert torch.allclose(one.dense(), sum(term.dense() for term in one.terms))
    check_map(one, (P, Q))


@pytest.mark.parametrize("name", SUMS)
def test_every_basis_of_a_sum_keeps_the_trace_of_the_sum(name):
    one = operator_sum(name)
    basis = one.decompose()
    unit = torch.eye(P * Q, dtype=torch.float64).reshape(-1, P, Q)
    vectors = basis.unproject(unit).flatten(1)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(P * Q, dtype=torch.float64))
    exact = torch.einsum("ni,ij,nj->n", vectors, one.dense(), vectors)
    assert torch.allclose(basis.eigenvalues.flatten(), exact)


@pytest.mark.parametrize("name", ["one kronecker", "diagonals", "with dense"])
def test_the_basis_of_a_sum_is_exact_where_it_can_be(name):
    one = operator_sum(name)
    values = one.decompose(floor=0.7).eigenvalues.flatten().sort().values
    assert torch.allclose(values, torch.linalg.eigvalsh(one.dense()))


def test_the_basis_of_diagonals_is_the_identity():
    assert isinstance(operator_sum("diagonals").decompose(), IdentityEigenbasis)


def test_nested_sums_are_taken_apart_in_order():
    a, b, c = kronecker(P, Q, 0), diagonal(P, Q, 1), dense(P, Q, 2)
    nested = OperatorSum((OperatorSum((a, OperatorSum((b,)))), c))
    assert [id(term) for term in nested.terms] == [id(a), id(b), id(c)]


def test_tensors_are_named_by_term():
    names = set(operator_sum("kronecker and diagonal").tensors())
    assert names == {"0.left", "0.right", "1.diagonal", "2.left", "2.right"}


def test_a_sum_needs_a_term():
    with pytest.raises(ConfigError, match="no term"):
        OperatorSum(())


def test_terms_of_different_shapes_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"\(3, 4\), \(4, 4\).*grow_rows"):
        OperatorSum((kronecker(4, Q), kronecker(3, Q)))


@pytest.mark.parametrize("make", [kronecker, diagonal, dense])
def test_plus_is_not_defined_on_operators(make):
    one, other = make(P, Q, 0), make(P, Q, 1)
    for left, right in [(one, other), (OperatorSum((one,)), other), (one, OperatorSum((other,)))]:
        with pytest.raises(TypeError):
            left + right


@pytest.mark.parametrize("name", SUMS)
def test_grown_rows_are_zero_and_the_old_ones_as_they_were(name):
    one = operator_sum(name)
    grown = grow_rows(one, P + 2)
    assert grown.shape == (P + 2, Q)
    expected = torch.zeros(((P + 2) * Q,) * 2, dtype=torch.float64)
    expected[: P * Q, : P * Q] = one.dense()
    assert torch.allclose(grown.dense(), expected)
    matrix = torch.randn(P + 2, Q, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(grown.matvec(matrix)[:P], one.matvec(matrix[:P]))
    assert bool((grown.matvec(matrix)[P:] == 0).all())


@pytest.mark.parametrize("make", [kronecker, diagonal, dense])
def test_growing_keeps_the_structure(make):
    assert type(grow_rows(make(P, Q), P + 1)) is type(make(P, Q))
    one = make(P, Q)
    assert grow_rows(one, P) is one


def test_rows_cannot_be_taken_away():
    with pytest.raises(ConfigError, match="3 rows cannot be grown to 2"):
        grow_rows(kronecker(P, Q), 2)


class Stranger:
    """An operator of somebody else's."""

    shape = (P, Q)


def test_an_unknown_operator_cannot_be_grown():
    with pytest.raises(ConfigError, match="Stranger"):
        grow_rows(Stranger(), P + 1)
