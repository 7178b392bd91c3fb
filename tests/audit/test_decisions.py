"""Decisions in words and figures, and the rule that is kept with a posterior."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from posthoc_bhpeft import MAP, Linearized, Prediction
from posthoc_bhpeft.audit.decisions.conformal import conformal_sets
from posthoc_bhpeft.audit.decisions.thresholds import (
    Decision,
    as_rule,
    at_most_errors,
    checked,
    cost,
    review_share,
    rows_digest,
)
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.errors import ConfigError, DataError


def rows_of(n: int, seed: int = 0, sharpness: float = 3.0, classes: int = 3) -> Predictions:
    """Calibrated predictions: labels are drawn from the probabilities."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(sharpness * rng.standard_normal((n, classes)), dtype=torch.float32)
    probabilities = logits.softmax(1)
    labels = torch.distributions.Categorical(probabilities).sample
    torch.manual_seed(seed)
    doubt = -(probabilities * probabilities.log()).sum(1)
    prediction = Prediction(
        logits, probabilities, None, doubt, doubt, torch.zeros(n), labels=labels()
    )
    return Predictions.of(prediction, predictive="MAP()")


def prediction_of(predictions: Predictions) -> Prediction:
    """Something to apply a rule to, in the float64 of the predictions."""
    p = torch.tensor(predictions.probabilities)
    total = torch.tensor(predictions.scores["total"])
    return Prediction(p.log(), p, None, total, total, torch.zeros(len(p)))


def test_a_decision_counts_what_it_does() -> None:
    rows = rows_of(2000)
    found = at_most_errors(rows, 0.05)
    answered = rows.score() <= found.threshold
    wrong = ~rows.right
    assert found.feasible
    assert 0 < answered.sum() < 2000
    assert found.reviewed.estimate == pytest.approx(1 - answered.mean())
    assert found.error_rate.estimate == pytest.approx(wrong[answered].mean())
    assert found.error_rate_before == pytest.approx(wrong.mean())
    exact = binomtest(int(wrong[answered].sum()), int(answered.sum())).proportion_ci()
    assert (found.error_rate.low, found.error_rate.high) == pytest.approx((exact.low, exact.high))
    assert found.rows == 2000
    assert found.goal == "at most 5 % of the automatic answers wrong"
    assert "95 % or more over the draw of the 2000 labelled rows" in found.guarantee


def test_the_promise_holds_on_other_rows() -> None:
    found = checked(at_most_errors(rows_of(2000), 0.05), rows_of(20_000, seed=1))
    assert found.checked is not None
    assert found.checked.error_rate.low < 0.05
    assert found.checked.error_rate.estimate < 0.055
    assert found.checked.reviewed.estimate == pytest.approx(found.reviewed.estimate, abs=0.04)
    assert found.checked.rows == 20_000


def test_of_a_share_of_review() -> None:
    rows = rows_of(1000)
    found = review_share(rows, 0.2, score="total")
    assert 0.15 < found.reviewed.estimate < 0.2
    assert found.reviewed.estimate == (rows.score("total") > found.threshold).mean()
    assert found.goal == "at most 20 % of the rows reviewed"
    assert cost(rows_of(20_000, seed=2), found.threshold, "total").reviewed.estimate < 0.205


def test_a_share_needs_no_labels() -> None:
    rows = rows_of(1000)
    blind = review_share(replace(rows, labels=None), 0.2)
    assert blind.threshold == review_share(rows, 0.2).threshold
    assert math.isnan(blind.error_rate.estimate)
    assert math.isnan(blind.error_rate_before)
    assert blind.feasible


def all_right(n: int) -> Predictions:
    rows = rows_of(n)
    return replace(rows, labels=rows.predicted)


def test_few_rows_say_how_many_are_needed() -> None:
    found = at_most_errors(all_right(58), 0.05)
    assert not found.feasible
    assert found.rows_needed == 59
    assert "58 rows are too few" in found.guarantee
    assert "at least 59 are needed" in found.guarantee
    assert found.threshold == -math.inf
    assert found.reviewed.estimate == 1.0
    assert math.isnan(found.error_rate.estimate)
    assert at_most_errors(all_right(59), 0.05).feasible


def test_a_share_of_few_rows_says_how_many_are_needed() -> None:
    found = review_share(rows_of(58), 0.05)
    assert (found.feasible, found.rows_needed, found.threshold) == (False, 59, math.inf)
    assert "at least 59 are needed" in found.guarantee
    assert found.reviewed.estimate == 0.0
    assert review_share(rows_of(59), 0.05).feasible


def with_errors(n: int, share: float) -> Predictions:
    """Every so many rows are wrong, whatever their score."""
    rows = rows_of(n)
    wrong = np.arange(n) % round(1 / share) == 0
    order = np.argsort(rows.score())
    labels = rows.predicted.copy()
    labels[order[wrong]] = (labels[order[wrong]] + 1) % 3
    return replace(rows, labels=labels)


def test_more_rows_help_where_the_rate_is_below_the_wanted_one() -> None:
    found = at_most_errors(with_errors(120, 0.04), 0.05)
    assert not found.feasible
    assert found.rows_needed is not None
    assert found.rows_needed > 120
    assert f"about {found.rows_needed} rows are needed" in found.guarantee
    assert at_most_errors(with_errors(20 * found.rows_needed, 0.04), 0.05).feasible


def test_more_rows_do_not_help_a_bad_score() -> None:
    found = at_most_errors(with_errors(400, 0.5), 0.05)
    assert not found.feasible
    assert found.rows_needed is None
    assert "more rows would not help" in found.guarantee


def test_where_nothing_needs_a_review() -> None:
    found = at_most_errors(all_right(100), 0.05)
    assert found.threshold == math.inf
    assert found.reviewed.estimate == 0.0
    assert as_rule(found, rows_of(100)).threshold == math.inf


def test_what_cannot_be_decided() -> None:
    rows = rows_of(50)
    with pytest.raises(ConfigError, match=r"rate is 5; .* such as 0\.05"):
        at_most_errors(rows, 5)
    with pytest.raises(ConfigError, match="confidence is 1"):
        at_most_errors(rows, 0.05, confidence=1)
    with pytest.raises(ConfigError, match="share is 0"):
        review_share(rows, 0)
    with pytest.raises(DataError, match="no labels"):
        at_most_errors(replace(rows, labels=None), 0.05)
    with pytest.raises(DataError, match="no score 'luck'"):
        at_most_errors(rows, 0.05, score="luck")
    with pytest.raises(DataError, match="no row"):
        review_share(rows.take([]), 0.05)


# --- the rule --------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["confidence", "total"])
def test_a_rule_sends_the_rows_of_the_decision(score: str) -> None:
    rows = rows_of(600)
    decision = review_share(rows, 0.2, score=score)
    rule = as_rule(decision, rows)
    applied = rule.apply(prediction_of(rows))
    assert applied.review is not None
    assert applied.sets is None
    expected = rows.score(score) > decision.threshold
    assert applied.review.numpy().tolist() == expected.tolist()
    assert 0 < expected.sum() < 600


def test_a_rule_makes_sets_where_asked() -> None:
    rows = rows_of(600)
    sets = conformal_sets(rows, 0.1)
    applied = as_rule(review_share(rows, 0.2), rows, sets).apply(prediction_of(rows))
    assert applied.sets is not None
    assert applied.sets.sum(1).double().mean() == pytest.approx(sets.sizes.mean)


def test_a_rule_remembers_where_it_is_from() -> None:
    rows = rows_of(100)
    decision = review_share(rows, 0.2)
    rule = as_rule(decision, rows)
    assert (rule.rows, rule.predictive, rule.promise) == (100, "MAP()", decision.guarantee)
    assert rule.digest == rows_digest(rows) != rows_digest(rows.take(range(99)))
    assert as_rule(decision, rows, predictive=Linearized()).predictive == repr(Linearized())
    rule.check_predictive(MAP())
    with pytest.raises(ConfigError, match=r"made with MAP\(\).*come from Linearized"):
        rule.check_predictive(Linearized())


def test_the_digest_is_of_texts_where_there_are_some() -> None:
    rows = replace(rows_of(3), texts=("a", "b", "c"))
    sharper = replace(rows, probabilities=rows_of(3, seed=9).probabilities)
    assert rows_digest(rows) == rows_digest(sharper)
    assert rows_digest(rows) != rows_digest(replace(rows, texts=("a", "b", "d")))


def test_rules_that_cannot_be_kept() -> None:
    rows = rows_of(30)
    decision: Decision = at_most_errors(rows, 0.01)
    with pytest.raises(ConfigError, match=r"nothing to keep: 30 rows are too few"):
        as_rule(decision, rows)
    decision = review_share(rows, 0.2)
    with pytest.raises(ConfigError, match=r"do not say which predictive.*predictive=bayes"):
        as_rule(decision, replace(rows, about={}))
    other = replace(rows, scores={"luck": rows.score()})
    with pytest.raises(ConfigError, match="'luck' cannot be applied"):
        as_rule(review_share(other, 0.2, score="luck"), other)
    with pytest.raises(ConfigError, match="NaN"):
        replace(as_rule(decision, rows), threshold=math.nan)


def test_a_rule_is_about_classes() -> None:
    rows = rows_of(100)
    rule = as_rule(review_share(rows, 0.2), rows)
    prediction = prediction_of(rows)
    with pytest.raises(ConfigError, match="Predict without review"):
        rule.apply(replace(prediction, probabilities=None))
    with pytest.raises(ConfigError, match="Predict without review"):
        rule.apply(replace(prediction, multilabel=True))
