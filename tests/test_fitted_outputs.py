"""A posterior predicts over the outputs that it was fitted on, and over no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posthoc_bhpeft import MAP, BayesianPeft, FixedPrecision, bayesianize
from posthoc_bhpeft.errors import ModelError
from tests.models import linear, mlp, pairs, seeded


def fit(model: nn.Module, batches: list[Any]) -> BayesianPeft:
    return bayesianize(model, batches, prior=FixedPrecision(1.0), progress=False)


@pytest.mark.parametrize("predictive", [None, MAP()], ids=["usual", "map"])
def test_other_outputs_than_those_fitted_are_refused(predictive: Any) -> None:
    model, batches = mlp(4, 5, 4), pairs((6, 4), 2)
    facing = model.register_forward_hook(lambda _, inputs, outputs: outputs[:, 2:])
    bayes = fit(model, batches)
    expected = bayes.predict(batches[0], predictive)
    facing.remove()
    message = r"gives 4 outputs a row, and its posterior was fitted on 2\..*round_name"
    with pytest.raises(ModelError, match=message):
        bayes.predict(batches[0], predictive)
    with pytest.raises(ModelError, match=message):
        bayes.predict_loader(batches, predictive, progress=False)
    model.register_forward_hook(lambda _, inputs, outputs: outputs[:, 2:])
    found = bayes.predict(batches[0], predictive)
    assert torch.equal(found.probabilities, expected.probabilities)  # type: ignore[arg-type]


class Choosing(nn.Module):
    """A score for each of `K` choices, `(N, K, 3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.score = linear(3, 1)

    def forward(self, choices: Tensor) -> Tensor:
        scores: Tensor = self.score(choices).squeeze(-1)
        return scores


def test_rows_may_have_as_many_outputs_as_choices() -> None:
    def choices(count: int) -> Tensor:
        return torch.randn(5, count, 3, generator=seeded(), dtype=torch.float64)

    bayes = fit(Choosing(), [(choices(4), torch.arange(5) % 4)])
    for count in (2, 4, 6):
        found = bayes.predict(choices(count)).probabilities
        assert found is not None
        assert found.shape == (5, count)
