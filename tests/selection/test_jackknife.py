"""The jackknife guard: against refitting without each row, and where it must and must not act."""

import pytest
import torch

from posthoc_bhpeft.likelihood import Bernoulli, Categorical
from posthoc_bhpeft.predictive.links import LogOdds
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection.jackknife import (
    LeftOut,
    Margins,
    guarded_precision,
    left_out,
    margins_of,
    matched_precision,
)
from tests.models import seeded


def spectrum(outputs, labels, energy):
    """Rows whose margin has variance `energy / precision`, in one eigenvalue of zero."""
    direction = LogOdds().direction(outputs).unsqueeze(-1)
    length = LogOdds.gradient(outputs).norm(dim=-1)
    energies = (energy / length.square())[None, :, None, None]
    centre = torch.zeros(1, dtype=torch.float64)
    return CovarianceSpectrum(outputs, labels, direction, centre, energies)


def logistic_regression(x, y, precision, steps=50):
    """Penalised weights by Newton's method, and the covariance there."""
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = (x @ weights).sigmoid()
        hessian = x.T @ ((p * (1 - p))[:, None] * x) + precision * identity
        weights = weights - torch.linalg.solve(hessian, x.T @ (p - y) + precision * weights)
    return weights, torch.linalg.inv(hessian)


def test_the_step_predicts_what_refitting_without_a_row_gives():
    x = torch.randn(200, 3, generator=seeded(0), dtype=torch.float64)
    y = (x[:, 0] + torch.randn(200, generator=seeded(1)).double() > 0).double()
    weights, covariance = logistic_regression(x, y, 1.0)
    f, v = x @ weights, torch.einsum("np,pq,nq->n", x, covariance, x)
    sign = torch.where(f > 0, 1.0, -1.0).double()
    hit = torch.where(f > 0, y, 1 - y)
    step = f.abs() - v * (hit - f.abs().sigmoid())
    for row in range(0, 200, 20):
        others = torch.arange(200) != row
        refitted, _ = logistic_regression(x[others], y[others], 1.0)
        exact = sign[row] * (x[row] @ refitted)
        plain = abs(float(f.abs()[row] - exact))
        assert abs(float(step[row] - exact)) < 0.25 * plain


def test_the_loss_by_hand():
    margins = Margins(
        torch.tensor([2.0]).double(),
        torch.tensor([0.0]).double(),
        torch.tensor([[0.5], [0.0]]).double(),
    )
    moved = 2.0 + 0.5 * torch.tensor(2.0).double().sigmoid()
    soft = moved / torch.sqrt(torch.tensor(1 + torch.pi / 8 * 0.5).double())
    found = left_out(margins)
    assert found.counts.tolist() == [1, 0]
    # One miss, whose target after Platt is 1/3.
    expected = [
        float(-(2 / 3 * (1 - q).log() + 1 / 3 * q.log())) for q in (soft.sigmoid(), moved.sigmoid())
    ]
    assert found.nll().tolist() == pytest.approx(expected)


def test_a_few_rows_without_an_error_are_no_proof_of_certainty():
    sure = torch.tensor([[1e-6, 1e-3, 0.05, 0.3]]).double()
    logs = torch.zeros(2, 2, 4, dtype=torch.float64)
    logs[1] = torch.stack([sure[0].log(), (1 - sure[0]).log()])
    few = LeftOut(torch.tensor([0.0, 18.0]).double(), 18 * logs).nll()
    many = LeftOut(torch.tensor([0.0, 1e6]).double(), 1e6 * logs).nll()
    assert int(few.argmin()) == 2
    assert int(many.argmin()) == 0


def test_the_matched_precision_gives_the_prior_the_margins_of_the_network():
    outputs = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 0.5]]).double()
    energy = torch.tensor([4.0, 6.0]).double()
    rows = spectrum(outputs, torch.tensor([0, 1]), energy)
    margin = LogOdds.margin(outputs)
    expected = float(energy.sum() / margin.square().sum())
    assert matched_precision(Categorical(), [rows]) == pytest.approx(expected)


def test_an_accurate_network_is_not_made_unsure():
    outputs = torch.tensor([[2.0, 0.0, 0.0]] * 50).double()
    labels = torch.zeros(50, dtype=torch.long)
    found = guarded_precision(Categorical(), [spectrum(outputs, labels, torch.ones(50))], 1)
    assert found == pytest.approx(100)


def test_an_overconfident_network_is_left_as_wide_as_it_was():
    outputs = torch.tensor([[6.0, 0.0, 0.0]] * 50).double()
    labels = torch.arange(50) % 2
    found = guarded_precision(Categorical(), [spectrum(outputs, labels, torch.full((50,), 9.0))], 1)
    assert found == 1


@pytest.mark.parametrize("answer", [0, 1])
def test_independent_answers_are_judged_one_by_one(answer):
    outputs = torch.tensor([[2.0, -1.0]]).double()
    labels = torch.full((1, 2), answer)
    identity = torch.eye(2, dtype=torch.float64).expand(1, -1, -1)
    energies = torch.diag_embed(torch.tensor([[[4.0, 1.0]]]).double())
    rows = CovarianceSpectrum(outputs, labels, identity, torch.zeros(1).double(), energies)
    found = margins_of(Bernoulli(), rows, [2.0])
    assert found.margin.tolist() == [2.0, 1.0]
    assert found.hit.tolist() == [answer, 1 - answer]
    assert found.variances.tolist() == [[2.0, 0.5]]
