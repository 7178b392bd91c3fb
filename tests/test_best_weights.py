"""`BestWeights`: the epoch whose weights are kept, whatever the figures are."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from posthoc_bhpeft.training.callbacks import BestWeights

NAN, INF = math.nan, math.inf


def watched(losses: list[float], patience: int = 0) -> tuple[BestWeights, float, list[bool]]:
    """A model whose weight is the number of the epoch, and what was kept of it."""
    model, control, stops = nn.Linear(1, 1), SimpleNamespace(should_training_stop=False), []
    best = BestWeights(model, patience)
    for epoch, nll in enumerate(losses, 1):
        nn.init.constant_(model.weight, epoch)
        best.on_evaluate(None, None, control, {"eval_nll": nll})
        stops.append(control.should_training_stop)
    best.restore()
    with torch.no_grad():
        return best, float(model.weight), stops


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([3.0, 1.0, 2.0], 2),
        ([1.0, 1.0], 1),
        ([NAN, 0.5, 0.1], 3),
        ([NAN, 0.5, NAN], 2),
        ([NAN, INF, 2.0], 3),
        ([2.0, NAN, 3.0], 1),
        ([NAN, NAN], 1),
    ],
)
def test_a_nan_is_best_only_where_there_is_nothing_else(losses: list[float], epoch: int) -> None:
    best, weight, _ = watched(losses)
    assert (best.best_epoch, weight) == (epoch, epoch)


def test_patience_counts_from_the_best_number() -> None:
    assert watched([NAN, 0.5, 0.6, 0.7], patience=2)[2] == [False, False, False, True]
    assert watched([NAN, NAN, NAN], patience=2)[2] == [False, False, True]
