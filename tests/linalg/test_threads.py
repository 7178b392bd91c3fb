"""Decompositions on one thread a matrix, several at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft.errors import NonFiniteError
from posthoc_bhpeft.linalg import NARROW, DiagonalOperator, KroneckerOperator, eigh, side_by_side
from posthoc_bhpeft.posterior import decompose_all, is_narrow
from posthoc_bhpeft.prior import GaussianPrior
from tests.models import seeded


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def covariance(width: int, seed: int = 0) -> Tensor:
    rows = torch.randn(2 * width, width, generator=seeded(seed), dtype=torch.float64)
    return rows.T @ rows


def test_eigenvectors_are_those_of_torch() -> None:
    matrix = covariance(20)
    values, vectors = eigh(matrix)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix))
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, matrix)


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (NARROW + 1, 2)])
def test_narrow_matrices_get_one_thread(
    width: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counting(matrix: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(torch.get_num_threads())
        return matrix.diagonal(), matrix

    monkeypatch.setattr(torch.linalg, "eigh", counting)
    eigh(torch.eye(width))
    assert seen == [threads]
    assert torch.get_num_threads() == 2


def test_makers_of_narrow_matrices_work_at_once() -> None:
    # Neither goes on before the other has come as far.
    both = threading.Barrier(2, timeout=30)

    def meet() -> int:
        both.wait()
        return torch.get_num_threads()

    made = side_by_side({"a": meet, "wide": torch.get_num_threads, "b": meet}, ["b", "a"])
    assert list(made.items()) == [("a", 1), ("wide", 2), ("b", 1)]
    assert torch.get_num_threads() == 2


def test_an_error_comes_through_and_threads_are_as_before() -> None:
    def broken() -> int:
        raise NonFiniteError("overflow")

    with pytest.raises(NonFiniteError, match="overflow"):
        side_by_side({"a": broken, "b": int}, ["a", "b"])
    assert torch.get_num_threads() == 2


def test_which_operators_are_narrow() -> None:
    small, large = torch.eye(2), torch.eye(NARROW + 1)
    assert is_narrow(KroneckerOperator(small, small))
    assert not is_narrow(KroneckerOperator(small, large))
    assert not is_narrow(DiagonalOperator(torch.ones(2, 2, device="meta")))


def test_bases_are_the_same_for_any_number_of_threads() -> None:
    names = ["a", "b", "c"]
    curvature = {
        name: KroneckerOperator(covariance(3, i), covariance(200, 10 + i))
        for i, name in enumerate(names)
    }
    prior = GaussianPrior(dict.fromkeys(names, 1.0), {}, {}, ())
    bases = decompose_all(prior, curvature)
    torch.set_num_threads(1)
    alone = decompose_all(prior, curvature)
    assert list(bases) == names
    for name in names:
        assert torch.equal(bases[name].eigenvalues, alone[name].eigenvalues)
        gradient = torch.randn(3, 200, generator=seeded(5), dtype=torch.float64)
        projected = bases[name].project(gradient)
        torch.testing.assert_close(projected.square().sum(), gradient.square().sum())
        assert torch.equal(projected, alone[name].project(gradient))
