from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.regression import (
    RealPredictions,
    RegressionAudit,
    RegressionPlan,
    audit_regression,
    real_verdict,
)
from posthoc_bhpeft.audit.regression.verdict import above, at_most, lean, level_of
from posthoc_bhpeft.audit.report import NOT_YET, READY, REVIEW, UNCLEAR, Rules
from tests.audit.regression.made import honest, point


def audited(predictions: RealPredictions, **plan: Any) -> RegressionAudit:
    return audit_regression(predictions, plan=RegressionPlan(resamples=200, **plan))


def answers(audit: RegressionAudit) -> dict[str, str]:
    return {check.name: check.answer for check in real_verdict(audit).checks}


def assert_said_once(said: str, part: str) -> None:
    """It is there, and no sentence is there twice."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", said)
    assert said.count(part) == 1
    assert len(sentences) == len(set(sentences))


def test_a_small_lean_is_no_zero() -> None:
    assert lean(Interval(0.0004, 0.0001, 0.0007)).endswith("too high by 0.0004")


def test_honest_and_close_enough_is_ready() -> None:
    found = audited(honest(1000), tolerance=10.0)
    assert set(answers(found).values()) == {"yes"}
    assert real_verdict(found).level == READY


def test_without_a_tolerance_nothing_is_ready() -> None:
    verdict = real_verdict(audited(honest(1000)))
    assert verdict.level == REVIEW
    errors = next(check for check in verdict.checks if check.name == "errors")
    assert errors.answer == "not asked"
    assert errors.sentence.startswith("RMSE ")
    assert any("tolerance=" in sentence for sentence in verdict.advice)
    assert "Let a person look at every row whose predicted deviation is above" in str(verdict)


def test_the_average_target_is_not_to_be_used() -> None:
    targets = honest(400).known_targets
    same = np.full(400, targets.mean() + 1.0)
    rows = RealPredictions(same, np.full(400, targets.var()), np.zeros(400), targets)
    verdict = real_verdict(audited(rows))
    assert verdict.level == NOT_YET
    assert verdict.advice[0].startswith("Its predictions are shown to tell no more than")
    assert any("on average too high by 1.000" in check.sentence for check in verdict.checks)
    assert_said_once(str(verdict), "R2 −")


def test_far_off_and_a_deviation_that_says_nothing() -> None:
    verdict = real_verdict(audited(point(honest(600)), tolerance=0.1))
    assert verdict.level == NOT_YET
    assert "shown not to say where" in verdict.advice[0]
    assert_said_once(str(verdict), "the same for every row")


@pytest.mark.parametrize(("spread", "said"), [(2.0, "too narrow"), (0.4, "too wide")])
def test_intervals_that_are_off(spread: float, said: str) -> None:
    found = audited(honest(600, spread=spread))
    assert answers(found)["calibration"] == "no"
    verdict = str(real_verdict(found))
    assert said in verdict
    made = found.conformal
    assert made is not None
    assert made.stretch == pytest.approx(spread, rel=0.15)
    assert f"use the conformal ones, {made.factor:.2f} deviations" in verdict


def test_few_rows_and_no_targets_are_too_little() -> None:
    assert real_verdict(audited(honest(99))).level == UNCLEAR
    assert real_verdict(audited(honest(99)), Rules(rows=50)).level != UNCLEAR
    bare = real_verdict(audited(replace(honest(400), targets=None)))
    assert bare.level == UNCLEAR
    assert "There are no targets." in str(bare)
    assert "Find out the targets of 100 rows or more" in str(bare)


def test_evidence_that_shows_nothing_asks_for_more() -> None:
    found = audited(honest(400))
    unknown = {**found.subject.figures, "r2": Interval(0.05, -0.1, 0.2)}
    verdict = real_verdict(replace(found, subject=replace(found.subject, figures=unknown)))
    assert verdict.level == UNCLEAR
    assert "the targets of more rows and audit again" in str(verdict)


def test_rivals_are_named() -> None:
    ours = honest(400)
    plan = RegressionPlan(resamples=100)
    better = audit_regression(ours, rivals={"MAP": point(ours)}, plan=plan)
    assert "Its NLL is better than that of MAP." in str(real_verdict(better))
    worse = audit_regression(point(ours), rivals={"ours": ours}, plan=plan)
    assert "Its NLL is worse than that of ours." in str(real_verdict(worse))


BEST: dict[str, Any] = {
    "evidence": "yes", "knows": "yes", "errors": "yes", "calibration": "yes", "ranking": "yes",
    "groups": "yes",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, READY),
        ({"groups": "not asked", "ranking": "no"}, READY),
        ({"groups": "no"}, REVIEW),
        ({"calibration": "not shown"}, REVIEW),
        ({"errors": "not asked", "ranking": "no"}, REVIEW),
        ({"errors": "no"}, REVIEW),
        ({"errors": "no", "ranking": "no"}, NOT_YET),
        ({"knows": "no"}, NOT_YET),
        ({"knows": "not shown"}, UNCLEAR),
        ({"evidence": "no", "knows": "no"}, UNCLEAR),
        ({"errors": "not asked", "calibration": "no", "ranking": "not shown"}, UNCLEAR),
    ],
)
def test_what_answers_lead_to(change: dict[str, Any], level: str) -> None:
    assert level_of({**BEST, **change}) == level


def test_ends_decide() -> None:
    wide = Interval(0.5, 0.2, 0.8)
    assert [at_most(wide, b) for b in (0.8, 0.5, 0.1)] == ["yes", "not shown", "no"]
    assert [above(wide, b) for b in (0.1, 0.5, 0.8)] == ["yes", "not shown", "no"]
