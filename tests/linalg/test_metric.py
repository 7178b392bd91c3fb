"""Inner products of gradients under a block's covariance: all coordinates, or few and a bound."""

from dataclasses import replace

import pytest
import torch

from posthoc_bhpeft.linalg import (
    KroneckerEigenbasis,
    KroneckerOperator,
    from_sketch,
    inner,
    metric_of,
)
from posthoc_bhpeft.linalg.metric import NarrowMetric, WholeMetric
from tests.models import seeded

FLOOR = 2.0


def operator(p, q, rank, *, low_rank=False):
    """A Kronecker product whose sides fall off fast, of full rank in exact arithmetic."""
    generator = seeded(0)
    sides = []
    for size in (p, q):
        directions = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
        values = torch.full((size,), 1e-6, dtype=torch.float64)
        few = min(rank, size)
        values[:few] = torch.logspace(1, -3, few, dtype=torch.float64)
        matrix = directions * values @ directions.T
        if low_rank and size > 4 * rank:
            test = torch.randn(size, 2 * rank, generator=generator).double()
            matrix = from_sketch(matrix @ test, test, matrix.trace(), rank)
        sides.append(matrix)
    return KroneckerOperator(*sides)


def metric_and_exact(p, q, rank=6, tolerance=0.01, **options):
    basis = operator(p, q, rank, **options).decompose()
    variances = 1 / (basis.eigenvalues + FLOOR)
    return metric_of(basis, variances, tolerance), metric_of(basis, variances, 0.0)


def gram(metric, gradients):
    """`<G_n, G_m>` for all pairs."""
    one = metric.parts(gradients)
    rows = []
    for n in range(len(gradients)):
        other = metric.parts(gradients[n : n + 1].expand(len(gradients), -1, -1))
        rows.append(inner(one, other))
    return torch.stack(rows)


@pytest.mark.parametrize("tolerance", [0.3, 0.01, 1e-4])
@pytest.mark.parametrize(
    ("p", "q", "options"),
    [(3, 150, {}), (150, 3, {}), (3, 150, {"low_rank": True}), (150, 3, {"low_rank": True})],
)
def test_every_quadratic_form_is_within_half_the_tolerance(p, q, options, tolerance):
    narrow, whole = metric_and_exact(p, q, tolerance=tolerance, **options)
    assert isinstance(narrow, NarrowMetric)
    assert isinstance(whole, WholeMetric)
    gradients = torch.randn(5, p, q, generator=seeded(1)).double()
    near, exact = gram(narrow, gradients), gram(whole, gradients)
    # Relative to the exact form, for every combination of the gradients.
    root = torch.linalg.cholesky(exact)
    relative = torch.linalg.solve_triangular(root, near, upper=False)
    relative = torch.linalg.solve_triangular(root, relative.T, upper=False)
    values = torch.linalg.eigvalsh(relative)
    assert values.min() > 1 - tolerance / 2 - 1e-9
    assert values.max() < 1 + tolerance / 2 + 1e-9


def test_what_lies_along_the_data_is_told_by_its_own_variance():
    narrow, whole = metric_and_exact(3, 150, tolerance=0.01)
    # The gradient of the largest eigenvalue: its variance is far below the prior's.
    left, right = whole.basis.left_vectors[:, -1], whole.basis.right_vectors[:, -1]
    gradient = torch.outer(left, right)[None]
    exact = 1 / (whole.basis.eigenvalues.max() + FLOOR)
    assert inner(narrow.parts(gradient), narrow.parts(gradient)).item() == pytest.approx(
        exact.item(), rel=1e-9
    )
    assert exact < 0.05 / FLOOR


def test_few_columns_are_kept():
    narrow, _ = metric_and_exact(3, 150, rank=6)
    # The sixth eigenvalue is within a hundredth of the floor already.
    assert narrow.right.shape == (150, 5)
    assert not narrow.transposed
    assert metric_and_exact(150, 3)[0].transposed


@pytest.mark.parametrize(("p", "q", "rank"), [(3, 60, 6), (3, 150, 100)])
def test_nothing_is_left_out_where_there_is_nothing_to_gain(p, q, rank):
    assert isinstance(metric_and_exact(p, q, rank, tolerance=1e-4)[0], WholeMetric)


def test_a_basis_of_low_rank_is_whole_where_its_rest_is_no_longer_the_prior():
    basis = operator(3, 150, 6, low_rank=True).decompose()
    tight = 1 / (basis.eigenvalues + 1e-9)
    assert isinstance(metric_of(basis, tight, 1e-4), WholeMetric)


def three_directions(scale, transposed, dtype):
    """A basis whose data lie along three vectors of the wide side, as of few rows."""
    generator = seeded(0)
    narrow, wide = (
        torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0].to(dtype)
        for n in (3, 150)
    )
    values = torch.zeros(150).double()
    values[-3:] = torch.tensor([0.1, 0.5, 1.0])
    eigenvalues = scale * torch.outer(torch.tensor([1.0, 2.0, 3.0]).double(), values)
    if transposed:
        return KroneckerEigenbasis(eigenvalues.T, wide, narrow)
    return KroneckerEigenbasis(eigenvalues, narrow, wide)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("scale", "apart"), [(1e2, False), (5e3, False), (1e5, True), (1e8, True)])
def test_in_single_precision_variances_along_the_data_do_not_cancel(scale, apart, transposed):
    """A prior that is wide, and gradients that lie where the data are."""
    single, double = (three_directions(scale, transposed, t) for t in (torch.float, torch.double))
    variances = 1 / (single.eigenvalues + 1.0)
    narrow, whole = metric_of(single, variances, 0.01), metric_of(double, variances, 0.0)
    assert isinstance(narrow, NarrowMetric)
    assert narrow.apart == apart
    wide = double.left_vectors if transposed else double.right_vectors
    gradients = torch.randn(4, 3, 3, generator=seeded(1)).double() @ wide[:, -3:].T
    gradients = gradients.mT if transposed else gradients
    near, exact = gram(narrow, gradients.float()).double(), gram(whole, gradients)
    assert torch.allclose(near.diagonal(), exact.diagonal(), rtol=0.005)


def test_both_ways_of_computing_it_agree():
    narrow, _ = metric_and_exact(3, 150)
    columns = narrow.right
    variances = (narrow.common - narrow.roots.square()).sqrt()
    apart = replace(narrow, roots=variances, apart=True)
    gradients = torch.randn(5, 3, 150, generator=seeded(1)).double()
    assert not narrow.apart
    assert columns.shape[1] == 5
    assert torch.allclose(gram(narrow, gradients), gram(apart, gradients), rtol=1e-10)
