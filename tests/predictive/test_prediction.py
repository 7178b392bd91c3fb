"""`Prediction` as a value: labels beside it, joined, moved."""

import pytest
import torch

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.predictive.uncertainty import gaussian_prediction, predict_point
from tests.models import seeded


def prediction(n=4, likelihood=None, seed=0):
    outputs = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    return predict_point(likelihood or Categorical(), outputs)


def test_the_predicted_class_answer_or_mean():
    classes, answers = prediction(), prediction(likelihood=Bernoulli())
    mean = prediction(likelihood=Gaussian(1.0))
    assert torch.equal(classes.predicted, classes.logits.argmax(-1))
    assert torch.equal(answers.predicted, (answers.logits > 0).long())
    assert torch.equal(mean.predicted, mean.logits)


def test_joined_predictions_are_in_order():
    parts = [prediction(4).with_labels(torch.arange(4)), prediction(2, seed=1)]
    parts[1] = parts[1].with_labels(torch.arange(2))
    joined = Prediction.concatenate(parts)
    assert len(joined) == 6
    assert torch.equal(joined.labels, torch.tensor([0, 1, 2, 3, 0, 1]))
    assert torch.equal(joined.logits[4:], parts[1].logits)
    assert torch.equal(joined.total[:4], parts[0].total)


def test_a_column_that_one_part_lacks_is_left_out():
    outputs = torch.zeros(2, 1, dtype=torch.float64)
    with_covariance = gaussian_prediction(outputs, torch.ones(2, 1, 1).double(), 1.0)
    without = predict_point(Gaussian(1.0), outputs)
    joined = Prediction.concatenate([with_covariance.with_labels(outputs), without])
    assert joined.covariance is None
    assert joined.labels is None
    assert joined.probabilities is None
    assert len(joined) == 4


def test_joining_keeps_what_sort_of_answers_they_are():
    assert Prediction.concatenate([prediction(likelihood=Bernoulli())] * 2).multilabel
    assert not Prediction.concatenate([prediction()] * 2).multilabel


def test_nothing_to_join_is_refused():
    with pytest.raises(DataError, match="no batch"):
        Prediction.concatenate([])


def test_labels_are_put_beside_without_changing_the_original():
    plain = prediction()
    labelled = plain.with_labels(torch.arange(4))
    assert plain.labels is None
    assert torch.equal(labelled.labels, torch.arange(4))
    assert labelled.with_labels(None).labels is None
    assert labelled.logits is plain.logits


def test_on_the_cpu_every_column_is_the_same():
    labelled = prediction().with_labels(torch.arange(4))
    moved = labelled.cpu()
    for name, column in labelled.columns().items():
        other = moved.columns()[name]
        assert other is None if column is None else torch.equal(other, column)
