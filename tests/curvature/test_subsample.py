"""Some rows in proportion to all: the scale is that of all rows, whichever are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posthoc_bhpeft import BayesianPeft, FixedPrecision, LeaveOneOut, Placed, Subsample, bayesianize
from posthoc_bhpeft.curvature import DenseGGN, DiagonalGGN, KroneckerGGN, sampled
from posthoc_bhpeft.errors import ConfigError
from tests.hybrid.families import tiny_loader
from tests.models import mlp, pairs
from tests.tuned import tuned

DENSE = DenseGGN()


def fit(model: Any, batches: Any, **settings: Any) -> BayesianPeft:
    settings = {"prior": FixedPrecision(2.0), **settings}
    return bayesianize(model, batches, progress=False, **settings)


def dense(bayes: BayesianPeft) -> dict[str, Tensor]:
    return {name: one.dense() for name, one in bayes.posterior.curvature.items()}


def test_sums_of_the_batches_drawn_are_scaled_to_all_rows() -> None:
    model, batches = mlp(3, 4, 3), pairs((3, 3), 3, batches=5)
    estimator = Subsample(6, DENSE, seed=1)
    drawn = list(sampled(estimator, batches, 15))
    assert len(drawn) == 2
    some, bayes = fit(model, drawn, curvature=DENSE), fit(model, batches, curvature=estimator)
    for name, exact in dense(some).items():
        assert torch.allclose(dense(bayes)[name], 15 / 6 * exact, rtol=1e-12), name
    one, other = some.posterior.log_likelihood, bayes.posterior.log_likelihood
    assert other == pytest.approx(15 / 6 * one, rel=1e-12)
    assert bayes.posterior.n_rows == 15


@pytest.mark.parametrize("prior", [FixedPrecision(2.0), LeaveOneOut()], ids=repr)
def test_where_all_batches_are_alike_it_is_the_fit_of_all_rows(prior: Any) -> None:
    model, batches = mlp(3, 4, 3), pairs((3, 3), 3, batches=1) * 6
    every = fit(model, batches, curvature=DENSE, prior=prior)
    some = fit(model, batches, curvature=Subsample(7, DENSE), prior=prior)
    assert some.log_marginal_likelihood() == pytest.approx(every.log_marginal_likelihood())
    for name, exact in dense(every).items():
        assert torch.allclose(dense(some)[name], exact, rtol=1e-10)


def test_over_many_draws_the_mean_is_that_of_all_rows() -> None:
    batches = [torch.tensor([float(place)]) for place in range(10)]
    draws = [
        sum(float(batch) for batch in sampled(Subsample(3, seed=seed), batches, 10)) * 10 / 3
        for seed in range(400)
    ]
    # Three of ten without replacement: the standard deviation of the scaled sum is 15.9.
    assert sum(draws) / 400 == pytest.approx(45, abs=4 * 15.9 / 400**0.5)
    assert len({*draws}) > 10


def test_batches_stay_in_their_order_and_can_be_read_again() -> None:
    chosen = sampled(Subsample(4), list(range(12)), 12)
    assert list(chosen) == sorted(chosen) == list(chosen)
    assert len(chosen) == len(list(chosen)) == 4


def test_all_rows_where_there_are_no_more() -> None:
    model, batches = mlp(3, 4, 3), pairs((3, 3), 3)
    assert sampled(Subsample(6), batches, 6) is batches
    one = dense(fit(model, batches, curvature=Subsample(100, DENSE)))
    other = dense(fit(model, batches, curvature=DENSE))
    assert all(one[name].equal(other[name]) for name in other)


def test_inside_another_estimator() -> None:
    batches = pairs((3, 3), 3, batches=5)
    placed = Placed(Subsample(6, DiagonalGGN()), dtype="float64")
    bayes = fit(mlp(3, 4, 3), batches, curvature=placed)
    alone = fit(mlp(3, 4, 3), batches, curvature=Subsample(6, DiagonalGGN()))
    assert bayes.posterior.n_rows == 15
    assert bayes.posterior.log_likelihood == alone.posterior.log_likelihood


def test_it_is_told_and_saved(tmp_path: Path) -> None:
    model = tuned()
    estimator = Subsample(4, KroneckerGGN(), seed=3)
    bayes = fit(model, tiny_loader(model), curvature=estimator)
    assert "on about 4 rows (seed 3), scaled to all, over 8 rows" in bayes.explain()
    bayes.save_pretrained(tmp_path)
    assert "on about 4 rows (seed 3)" in (tmp_path / "README.md").read_text()
    assert BayesianPeft.from_pretrained(tmp_path).curvature == estimator


def test_no_rows_at_all() -> None:
    with pytest.raises(ConfigError, match=r"Subsample\(rows=0\)"):
        replace(Subsample(1), rows=0)
