from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit.regression import RealPredictions
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError, NonFiniteError
from posthoc_bhpeft.likelihood import Categorical, Gaussian
from posthoc_bhpeft.predictive import LogOdds
from posthoc_bhpeft.predictive.uncertainty import predict_gaussian_outputs, predict_point
from tests.audit.regression.made import honest, point


def test_the_two_variances_of_a_prediction() -> None:
    outputs = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    covariance = torch.tensor([0.25, 4.0, 1e-6], dtype=torch.float64).reshape(3, 1, 1)
    prediction = predict_gaussian_outputs(Gaussian(0.7), outputs, covariance, LogOdds())
    rows = TextData(("a", "b", "c"), columns={"site": (1, 2, 3)})
    found = RealPredictions.of(
        prediction.with_labels(torch.tensor([1.0, 2.0, 3.0])), rows, Posterior="of the test"
    )
    np.testing.assert_allclose(found.mean, [1.0, -2.0, 0.5])
    np.testing.assert_allclose(found.noise, 0.7, rtol=1e-12)
    np.testing.assert_allclose(found.epistemic, [0.25, 4.0, 1e-6], rtol=1e-8)
    np.testing.assert_allclose(found.variance, [0.95, 4.7, 0.700001])
    assert found.targets is not None
    assert found.targets.tolist() == [1.0, 2.0, 3.0]
    assert found.texts == ("a", "b", "c")
    assert found.columns == {"site": (1, 2, 3)}
    assert found.about == {"Posterior": "of the test"}


def test_a_point_prediction_has_noise_alone_and_ranks_nothing() -> None:
    found = RealPredictions.of(predict_point(Gaussian(0.5), torch.zeros(5, 1)))
    np.testing.assert_allclose(found.noise, 0.5, rtol=1e-6)
    assert not found.epistemic.any()
    assert not found.ranks
    assert found.targets is None
    assert honest().ranks
    assert not point(honest()).ranks


def test_labels_with_a_column_axis() -> None:
    prediction = predict_point(Gaussian(1.0), torch.zeros(4, 1))
    found = RealPredictions.of(prediction.with_labels(torch.arange(4.0).reshape(4, 1)))
    assert found.known_targets.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_take_keeps_rows_together() -> None:
    whole = honest(6, texts=tuple("abcdef"), columns={"n": tuple(range(6))})
    few = whole.take([4, 1])
    assert few.texts == ("e", "b")
    assert few.columns == {"n": (4, 1)}
    np.testing.assert_array_equal(few.mean, whole.mean[[4, 1]])
    np.testing.assert_array_equal(few.error, whole.error[[4, 1]])
    np.testing.assert_array_equal(few.deviation, whole.deviation[[4, 1]])


def test_error_is_above_zero_where_the_prediction_is_too_high() -> None:
    found = RealPredictions.checked(torch.tensor([2.0]), torch.ones(1), None, torch.tensor([1.5]))
    assert found.error.tolist() == [0.5]


ONES = np.ones(3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": np.ones((3, 1))}, r"shape \(3, 1\).*one at a time"),
        ({"mean": np.ones(0)}, "at least one row"),
        ({"noise": np.ones(2)}, "noise has 2 entries for 3 rows"),
        ({"targets": np.ones(4)}, "targets has 4 entries for 3 rows"),
        ({"texts": ("a",)}, "texts has 1 entries"),
        ({"columns": {"site": (1, 2)}}, "column 'site' has 2"),
        ({"epistemic": -0.1 * ONES}, "3 of 3 variances are below 0.*logarithm"),
        ({"noise": 0 * ONES}, "3 of 3 variances are 0.*fit_noise"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"mean": ONES, "noise": ONES, "epistemic": 0 * ONES}
    with pytest.raises(DataError, match=said):
        RealPredictions(**{**good, **change})


@pytest.mark.parametrize("name", ["mean", "noise", "epistemic", "targets"])
def test_numbers_that_are_none(name: str) -> None:
    good: dict[str, Any] = {"mean": ONES, "noise": ONES, "epistemic": ONES, "targets": ONES}
    with pytest.raises(NonFiniteError, match=f"1 of 3 entries of {name}.*first row 1"):
        RealPredictions(**{**good, name: np.array([1.0, math.nan, 1.0])})


def test_predictions_of_something_else() -> None:
    classes = predict_point(Categorical(), torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"class probabilities.*Call audit"):
        RealPredictions.of(classes)
    with pytest.raises(DataError, match="2 outputs a row"):
        RealPredictions.of(predict_point(Gaussian(1.0), torch.zeros(2, 2)))
    with pytest.raises(DataError, match="have no targets"):
        _ = RealPredictions(ONES, ONES, ONES).error
