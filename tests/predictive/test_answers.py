"""One of several yes-or-no answers, looked at as a question of two classes."""

from __future__ import annotations

import pytest
import torch

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical
from posthoc_bhpeft.predictive import LogOdds, MonteCarlo, Prediction
from posthoc_bhpeft.predictive.uncertainty import (
    predict_draws,
    predict_gaussian_outputs,
    predict_point,
)

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
DRAWS = OUTPUTS + torch.randn(40, 5, 3, generator=GENERATOR, dtype=torch.float64)
ROOT = torch.randn(5, 3, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = (torch.rand(5, 3, generator=GENERATOR) > 0.5).double()


def against_no(outputs: torch.Tensor, index: int) -> torch.Tensor:
    """Logits of two classes, no and yes: `softmax(0, f) = (1 - sigmoid(f), sigmoid(f))`."""
    yes = outputs[..., index]
    return torch.stack([torch.zeros_like(yes), yes], -1)


def check_same(found: Prediction, expected: Prediction, epistemic: float = 1e-9) -> None:
    assert not found.multilabel
    assert found.probabilities is not None
    assert torch.allclose(found.probabilities, expected.probabilities)
    assert torch.allclose(found.logits, expected.logits)
    assert torch.allclose(found.total, expected.total)
    assert torch.allclose(found.epistemic, expected.epistemic, atol=epistemic)
    assert torch.allclose(found.total, found.aleatoric + found.epistemic)


@pytest.mark.parametrize("index", range(3))
def test_an_answer_is_a_softmax_over_no_and_yes(index: int) -> None:
    draws = predict_draws(Bernoulli(), OUTPUTS, DRAWS).answer(index)
    two = predict_draws(Categorical(), against_no(OUTPUTS, index), against_no(DRAWS, index))
    check_same(draws, two)
    point = predict_point(Bernoulli(), OUTPUTS).answer(index)
    check_same(point, predict_point(Categorical(), against_no(OUTPUTS, index)))
    assert float(point.epistemic.abs().max()) == 0.0


@pytest.mark.parametrize("index", range(3))
def test_so_it_is_of_gaussian_outputs(index: int) -> None:
    covariance = ROOT @ ROOT.mT
    both = torch.zeros(5, 2, 2, dtype=torch.float64)
    both[:, 1, 1] = covariance[:, index, index]
    found = predict_gaussian_outputs(Bernoulli(), OUTPUTS, covariance, LogOdds())
    two = predict_gaussian_outputs(Categorical(), against_no(OUTPUTS, index), both, LogOdds())
    # Several answers share 256 draws; one of two classes is integrated.
    check_same(found.answer(index), two, epistemic=0.05)


@pytest.mark.parametrize(
    "prediction",
    [
        predict_draws(Bernoulli(), OUTPUTS, DRAWS),
        predict_point(Bernoulli(), OUTPUTS),
        predict_gaussian_outputs(Bernoulli(), OUTPUTS, ROOT @ ROOT.mT, MonteCarlo()),
    ],
    ids=["draws", "point", "gaussian"],
)
def test_the_answers_add_up_to_the_row(prediction: Prediction) -> None:
    each = [prediction.answer(index) for index in range(3)]
    for name in ("total", "aleatoric", "epistemic"):
        expected = getattr(prediction, name)
        assert torch.allclose(sum(getattr(one, name) for one in each), expected)


def test_labels_and_order_go_along() -> None:
    prediction = predict_point(Bernoulli(), OUTPUTS).with_labels(LABELS)
    assert torch.equal(prediction.answer(1).labels, LABELS[:, 1].long())
    assert predict_point(Bernoulli(), OUTPUTS).answer(1).labels is None
    whole = Prediction.concatenate([prediction, prediction])
    assert torch.equal(whole.answer(2).total[5:], prediction.answer(2).total)


def test_classes_are_no_answers() -> None:
    with pytest.raises(DataError, match="no yes-or-no answers"):
        predict_point(Categorical(), OUTPUTS).answer(0)


def test_one_answer_a_row_may_have_labels_without_an_axis() -> None:
    """As `bayesianize` takes them for one yes-or-no logit."""
    prediction = predict_point(Bernoulli(), OUTPUTS[:, :1])
    flat = prediction.with_labels(LABELS[:, 0]).answer(0)
    assert flat.labels is not None
    assert flat.labels.tolist() == LABELS[:, 0].long().tolist()
