"""Which answers go to a human: thresholds with a guarantee, and what they cost."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

from posthoc_bhpeft.audit.arrays import Floats, check_scores
from posthoc_bhpeft.audit.decisions.conformal import ConformalSets
from posthoc_bhpeft.audit.decisions.guarantees import (
    check_open,
    percent,
    rows_without_error,
    threshold_for_errors,
    threshold_for_share,
)
from posthoc_bhpeft.audit.decisions.needed import missing_rows
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.shares import share_interval
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.review import ReviewRule, review_if

PREDICTIVE = "predictive"
"""Heading in `Predictions.about` of the `repr` of the predictive."""


@dataclass(frozen=True)
class Cost:
    """What a threshold does on some rows; exact binomial intervals, each of 95 %.

    Attributes:
        reviewed: Share of rows that go to a human.
        error_rate: Of the automatic answers; NaN without labels or without such answers.
        rows: All of them.
        errors_left: Wrong automatic answers; `None` without labels.
    """

    reviewed: Interval
    error_rate: Interval
    rows: int
    errors_left: int | None


@dataclass(frozen=True)
class Decision:
    """A threshold on a score: rows above it go to a human, the others are answered.

    Attributes:
        goal: What was asked for, in words: "at most 5 % of the automatic answers wrong".
        score: Name of the score, as in `Predictions.score`.
        threshold: Rows with a larger score are reviewed; infinite where none needs to be, minus
            infinite where all must be.
        guarantee: What holds, for which rows, with which probability, in words.
        feasible: Whether the goal can be promised from so many rows.
        reviewed: Share of rows reviewed, with its interval, on the rows it was found on.
        error_rate: Of the automatic answers, with its interval, on those rows; NaN where there is
            no such answer, or no label.
        error_rate_before: Of all answers; NaN without labels.
        rows: Labelled rows that the threshold was found on.
        rows_needed: About how many would be needed, where the goal is not feasible and more rows
            would help.
        checked: The cost on other rows, see `checked`.
        review_if: The threshold as a condition: "1 - max probability > 0.25".
    """

    goal: str
    score: str
    threshold: float
    guarantee: str
    feasible: bool
    reviewed: Interval
    error_rate: Interval
    error_rate_before: float
    rows: int
    rows_needed: int | None = None
    checked: Cost | None = None
    review_if: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "review_if", review_if(self.score, self.threshold))


def at_most_errors(
    predictions: Predictions, rate: float, *, score: str = CONFIDENCE, confidence: float = 0.95
) -> Decision:
    """Answer as many rows as can be promised to hold at most a share `rate` of errors.

    With probability `confidence` over the draw of the labelled rows, of all new rows from the same
    distribution that score at or below the threshold at most `rate` are answered wrongly. Exact in
    finite samples, for any score and any ties; see `posthoc_bhpeft.audit.decisions.guarantees`.

    Args:
        predictions: Labelled rows that played no part in the fit.
        rate: Wanted share of wrong ones among the automatic answers.
        score: What to threshold.
        confidence: Of the promise.

    Returns:
        The decision; where nothing can be promised, one that sends all rows to a human.

    Raises:
        ConfigError: If `rate` or `confidence` are not between 0 and 1.
        DataError: If there are no labels, or no score of that name.
    """
    check_open("rate", rate)
    check_open("confidence", confidence)
    wrong, values = ~predictions.right, checked_scores(predictions, score)
    goal = f"at most {percent(rate)} of the automatic answers wrong"
    threshold = threshold_for_errors(values, wrong, rate, confidence)
    if threshold is None:
        needed, reason = missing_rows(values, wrong, rate, confidence)
        return decided(predictions, goal, score, -math.inf, reason, feasible=False, needed=needed)
    guarantee = (
        f"With probability {percent(confidence)} or more over the draw of the {len(wrong)} "
        f"labelled rows, at most {percent(rate)} of the automatic answers to new rows from the "
        "same distribution are wrong."
    )
    return decided(predictions, goal, score, threshold, guarantee)


def review_share(
    predictions: Predictions, share: float, *, score: str = CONFIDENCE, confidence: float = 0.95
) -> Decision:
    """Send the least certain rows to a human, but at most a share of all rows.

    With probability `confidence` over the draw of the rows, at most `share` of all new rows from
    the same distribution score above the threshold. Labels are not needed for that, only for what
    is said about errors.

    Args:
        predictions: Rows that played no part in the fit.
        share: Wanted share of rows reviewed.
        score: What to threshold.
        confidence: Of the promise.

    Returns:
        The decision; where nothing can be promised, one that sends no row to a human.

    Raises:
        ConfigError: If `share` or `confidence` are not between 0 and 1.
        DataError: If there is no score of that name.
    """
    check_open("share", share)
    check_open("confidence", confidence)
    values = checked_scores(predictions, score)
    goal = f"at most {percent(share)} of the rows reviewed"
    threshold = threshold_for_share(values, share, confidence)
    if threshold is None:
        needed = rows_without_error(share, confidence)
        reason = (
            f"{len(values)} rows are too few to promise {goal} with probability "
            f"{percent(confidence)}: at least {needed} are needed."
        )
        return decided(predictions, goal, score, math.inf, reason, feasible=False, needed=needed)
    guarantee = (
        f"With probability {percent(confidence)} or more over the draw of the {len(values)} rows, "
        f"at most {percent(share)} of new rows from the same distribution go to a human."
    )
    return decided(predictions, goal, score, threshold, guarantee)


def checked_scores(predictions: Predictions, score: str) -> Floats:
    """A score by name, `(N,)`, of at least one row and without NaN.

    Raises:
        DataError: If there is none of that name, or no row.
        NonFiniteError: If it holds NaN.
    """
    if len(predictions) == 0:
        raise DataError("There is no row to decide on.")
    return check_scores(predictions.score(score), len(predictions))


def decided(
    predictions: Predictions,
    goal: str,
    score: str,
    threshold: float,
    guarantee: str,
    *,
    feasible: bool = True,
    needed: int | None = None,
) -> Decision:
    """A decision with its cost on the rows it was found on."""
    found = cost(predictions, threshold, score)
    before = math.nan if predictions.labels is None else float((~predictions.right).mean())
    return Decision(
        goal=goal,
        score=score,
        threshold=threshold,
        guarantee=guarantee,
        feasible=feasible,
        reviewed=found.reviewed,
        error_rate=found.error_rate,
        error_rate_before=before,
        rows=len(predictions),
        rows_needed=needed,
    )


def cost(predictions: Predictions, threshold: float, score: str = CONFIDENCE) -> Cost:
    """What a threshold does on some rows.

    Raises:
        DataError: If there is no score of that name.
    """
    answered = checked_scores(predictions, score) <= threshold
    rows, kept = len(answered), int(answered.sum())
    reviewed = share_interval(rows - kept, rows)
    if predictions.labels is None:
        return Cost(reviewed, share_interval(0, 0), rows, None)
    errors = int((answered & ~predictions.right).sum())
    return Cost(reviewed, share_interval(errors, kept), rows, errors)


def checked(decision: Decision, predictions: Predictions) -> Decision:
    """The decision with its cost on other rows, which had no say in the threshold."""
    return replace(decision, checked=cost(predictions, decision.threshold, decision.score))


def as_rule(
    decision: Decision,
    predictions: Predictions,
    conformal: ConformalSets | None = None,
    *,
    predictive: Any = None,
) -> ReviewRule:
    """The rule to keep with a posterior: `bayes.with_review(as_rule(decision, predictions))`.

    Args:
        decision: A feasible one.
        predictions: Those that it was made on.
        conformal: Makes prediction sets too.
        predictive: That the predictions came from; `predictions.about["predictive"]` by default.

    Raises:
        ConfigError: If the decision is not feasible, its score is not one of a `Prediction`, or
            the predictive is not known.
    """
    if not decision.feasible:
        raise ConfigError(f"There is nothing to keep: {decision.guarantee}")
    known = predictions.about.get(PREDICTIVE) if predictive is None else repr(predictive)
    if known is None:
        raise ConfigError(
            "The predictions do not say which predictive made them, and a threshold holds for no "
            "other. Pass as_rule(..., predictive=bayes.predictive)."
        )
    return ReviewRule(
        score=decision.score,
        threshold=decision.threshold,
        promise=decision.guarantee,
        rows=decision.rows,
        digest=rows_digest(predictions),
        predictive=known,
        sets=None if conformal is None else conformal.rule,
    )


def rows_digest(predictions: Predictions) -> str:
    """SHA-256 of the rows: of texts and labels, or of probabilities and labels without texts."""
    labels = None if predictions.labels is None else predictions.labels.tolist()
    rows = predictions.probabilities.tolist() if predictions.texts is None else predictions.texts
    content = json.dumps([list(rows), labels], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
