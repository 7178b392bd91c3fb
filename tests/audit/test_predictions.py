from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit import Predictions
from posthoc_bhpeft.errors import DataError

P = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])


def test_probabilities_and_scores_are_kept_in_double_precision() -> None:
    made = Predictions(P.numpy(), scores={"total": np.array([1, 2, 3], dtype=np.float32)})
    assert made.probabilities.dtype == made.score("total").dtype == np.float64
    np.testing.assert_array_equal(made.probabilities, P.double().numpy())
    assert made.take([2, 0]).score("total").tolist() == [3.0, 1.0]


def test_tensors_become_arrays() -> None:
    made = Predictions(P, scores={"total": torch.ones(3, requires_grad=True)})  # type: ignore
    assert isinstance(made.probabilities, np.ndarray)
    assert made.score("total").tolist() == [1.0, 1.0, 1.0]


def test_what_is_in_double_precision_is_not_copied() -> None:
    p = P.double().numpy()
    made = Predictions(p)
    assert made.probabilities is p
    assert replace(made, labels=np.zeros(3, dtype=np.int64)).probabilities is p


def test_scores_of_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="score 'total' has 2 entries for 3 rows"):
        Predictions(P.numpy(), scores={"total": np.ones(2, dtype=np.float32)})
