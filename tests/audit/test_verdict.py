"""The verdict at the borders of its rules, by intervals whose ends are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from posthoc_bhpeft.audit.drift import Drift
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.report import NOT_YET, READY, REVIEW, UNCLEAR, Rules, class_verdict
from posthoc_bhpeft.audit.report.rules import (
    Answer,
    chance_agreement,
    checks,
    exact,
    first_promise,
    to_review,
)
from posthoc_bhpeft.audit.report.verdict import level_of
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.errors import ConfigError
from tests.audit.audits import decision, group, interval

LOW_ECE, REMOVED = Interval(0.02, 0.01, 0.05), Interval(0.5, 0.11, 0.8)


def told(rows: int = 400, wrong: int = 4, *, constant: bool = False) -> Predictions:
    """Two classes in turn, the first `wrong` rows answered wrongly."""
    y = np.arange(rows) % 2
    said = np.zeros(rows, dtype=int) if constant else y.copy()
    said[:wrong] = 1 - said[:wrong]
    return Predictions(np.where(np.eye(2)[said] == 1, 0.9, 0.1), y)


def audit(
    ece: Interval = LOW_ECE,
    removed: Interval = REMOVED,
    predictions: Predictions | None = None,
    **others: Any,
) -> Audit:
    figures = {"ece": ece, "errors_removed_at_10": removed, "nll": interval(0.3)}
    return Audit(Audited("ours", predictions or told(), figures), **others)


def answers(found: Audit, rules: Rules = Rules()) -> dict[str, Answer]:  # noqa: B008
    return {check.name: check.answer for check in checks(found, rules)}


def drifted(apart: float, p: float) -> Drift:
    return Drift(9, 9, p, {}, Interval(apart, apart, 0.9), interval(0.0), (), "Moved.")


def test_ready() -> None:
    found = class_verdict(audit())
    assert found.level == READY
    assert found.sentences[0] == "Ready to answer by itself."
    assert str(found).startswith("Ready to answer by itself. 400 labelled rows.")


def test_rows_border() -> None:
    assert answers(audit(predictions=told(100, 0)))["evidence"] == "yes"
    assert answers(audit(predictions=told(99, 0)))["evidence"] == "no"
    assert class_verdict(audit(predictions=told(99, 0))).level == UNCLEAR


def test_no_labels_is_unclear_and_says_what_to_do() -> None:
    found = class_verdict(audit(predictions=replace(told(), labels=None)))
    assert found.level == UNCLEAR
    assert "Label 100 rows" in str(found)


def test_no_error_in_few_rows_is_not_ready() -> None:
    """A bootstrap of no errors has no width; the exact interval of 0 in 60 ends at 6 %."""
    rules = Rules(rows=50)
    assert exact(np.zeros(60, dtype=bool), 0.95).high == pytest.approx(1 - 0.025 ** (1 / 60))
    assert answers(audit(predictions=told(60, 0)), rules)["errors"] == "not shown"
    assert answers(audit(predictions=told(80, 0)), rules)["errors"] == "yes"


def test_error_border() -> None:
    wrong = [k for k in range(40) if beta.ppf(0.975, k + 1, 400 - k) <= 0.05][-1]
    assert answers(audit(predictions=told(400, wrong)))["errors"] == "yes"
    assert answers(audit(predictions=told(400, wrong + 1)))["errors"] == "not shown"
    many = next(k for k in range(1, 80) if beta.ppf(0.025, k, 401 - k) > 0.05)
    assert answers(audit(predictions=told(400, many)))["errors"] == "no"
    assert answers(audit(predictions=told(400, many - 1)))["errors"] == "not shown"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.01, 0.05, "yes"), (0.01, 0.0501, "not shown"), (0.05, 0.2, "not shown"),
        (0.0501, 0.2, "no"), (np.nan, np.nan, "not shown"),
    ],
)  # fmt: skip
def test_calibration_border(low: float, high: float, answer: str) -> None:
    assert answers(audit(ece=Interval(0.05, low, high)))["calibration"] == answer


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.101, 0.3, "yes"), (0.10, 0.3, "not shown"), (0.0, 0.10, "no"), (0.0, 0.101, "not shown")],
)
def test_ranking_border(low: float, high: float, answer: str) -> None:
    assert answers(audit(removed=Interval(0.1, low, high)))["ranking"] == answer


def test_without_errors_there_is_nothing_to_rank() -> None:
    assert answers(audit(predictions=told(400, 0)))["ranking"] == "not shown"


def test_the_same_answer_to_every_row_tells_nothing() -> None:
    found = class_verdict(audit(predictions=told(400, 0, constant=True)))
    assert found.level == NOT_YET
    assert "no more than chance" in found.advice[0]
    assert str(found).count("“0” to every row") == 1


@pytest.mark.parametrize("constant", [True, False])
def test_no_sentence_is_said_twice(constant: bool) -> None:
    """Neither what it knows nothing, nor how often it errs and where, is repeated as advice."""
    removed = Interval(0.05, 0.02, 0.08)
    said = class_verdict(
        audit(removed=removed, predictions=told(400, 0 if constant else 100, constant=constant))
    )
    assert said.level == NOT_YET
    for check in said.checks:
        assert not any(check.sentence in advice for advice in said.advice)


def test_a_tiny_lead_of_a_rival_is_no_zero() -> None:
    ahead = {"MAP": {"nll": Interval(0.0004, 0.0001, 0.0007)}}
    assert "by 0.0004 nats" in str(class_verdict(audit(differences=ahead)))


def test_chance_agreement_is_what_shuffled_answers_reach() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([2.0, 1.0, 0.5], size=300)
    y = rng.integers(3, size=300)
    said = p.argmax(1)
    shuffled = np.mean([(rng.permutation(said) == y).mean() for _ in range(4000)])
    assert chance_agreement(Predictions(p, y)) == pytest.approx(shuffled, abs=0.003)


def test_answers_by_chance_are_not_shown_to_tell_anything() -> None:
    rng = np.random.default_rng(1)
    p = Predictions(rng.dirichlet([1.0, 1.0], size=400), rng.integers(2, size=400))
    assert answers(audit(predictions=p))["knows"] == "not shown"
    assert class_verdict(audit(predictions=p)).level == UNCLEAR
    against = replace(told(400, 0), labels=1 - np.arange(400) % 2)
    assert answers(audit(predictions=against))["knows"] == "no"


def test_groups_known_only_with_the_label_do_not_count() -> None:
    late = replace(group("rare", "badly served"), gap=None)
    assert answers(audit(slices=(group("a"), late)))["groups"] == "yes"
    assert answers(audit(slices=(late,)))["groups"] == "not asked"
    said = str(class_verdict(audit(slices=(group("a"), late))))
    assert "1 group looked at, none with a finding. Known only with the label, but with a" in said
    assert "Known only" not in str(class_verdict(audit(slices=(group("a"), group("b", "bad")))))
    assert class_verdict(audit(slices=(group("a", "badly served"),))).level == REVIEW


@pytest.mark.parametrize(
    ("apart", "p", "answer"),
    [(0.6, 0.01, "yes"), (0.601, 0.01, "no"), (0.6, 0.0099, "no")],
)
def test_drift_border(apart: float, p: float, answer: str) -> None:
    found = audit(drift=drifted(apart, p))
    assert answers(found)["drift"] == answer
    assert class_verdict(found).level == (READY if answer == "yes" else REVIEW)


Y, N, M = "yes", "no", "not shown"


@pytest.mark.parametrize(
    ("evidence", "knows", "errors", "calibration", "ranking", "groups", "drift", "level"),
    [
        (N, Y, Y, Y, Y, Y, Y, UNCLEAR),
        (Y, N, Y, Y, Y, Y, Y, NOT_YET),
        (Y, M, Y, Y, Y, Y, Y, UNCLEAR),
        (Y, Y, N, Y, N, Y, Y, NOT_YET),
        (Y, Y, N, Y, M, Y, Y, UNCLEAR),
        (Y, Y, N, Y, Y, Y, Y, REVIEW),
        (Y, Y, M, Y, M, Y, Y, UNCLEAR),
        (Y, Y, Y, M, M, Y, Y, REVIEW),
        (Y, Y, Y, Y, N, Y, Y, READY),
        (Y, Y, Y, Y, Y, "not asked", "not asked", READY),
        (Y, Y, Y, Y, Y, N, Y, REVIEW),
        (Y, Y, Y, Y, Y, Y, N, REVIEW),
        (Y, Y, M, N, M, Y, Y, UNCLEAR),
    ],
)
def test_levels(
    evidence: Answer, knows: Answer, errors: Answer, calibration: Answer, ranking: Answer,
    groups: Answer, drift: Answer, level: str,
) -> None:  # fmt: skip
    given = {
        "evidence": evidence, "knows": knows, "errors": errors, "calibration": calibration,
        "ranking": ranking, "groups": groups, "drift": drift,
    }  # fmt: skip
    assert level_of(given) == level


def test_review_names_the_first_promise() -> None:
    impossible = decision("at most 1 % wrong", feasible=False)
    everything = replace(decision("all"), reviewed=Interval(1.0, 0.99, 1.0))
    chosen = decision("at most 5 % wrong")
    later = replace(decision("at most 9 % wrong"), reviewed=interval(0.1))
    assert first_promise((impossible, everything, chosen, later)) is chosen
    found = class_verdict(audit(predictions=told(400, 80), decisions=(impossible, chosen)))
    assert found.level == REVIEW
    assert "confidence is below 70.0" in found.advice[0]
    assert "at most 5 % wrong" in found.advice[0]
    assert "at most 1 % wrong" not in str(found)


def test_a_promise_without_review_says_so() -> None:
    enough = replace(decision("at most 20 % wrong"), threshold=math.inf)
    found = class_verdict(audit(predictions=told(400, 80), decisions=(enough,)))
    assert found.advice[0] == "No row has to be reviewed for this: at most 20 % wrong."


def test_the_cost_on_other_rows_comes_first() -> None:
    from posthoc_bhpeft.audit.decisions import Cost

    checked = replace(decision(), checked=Cost(interval(0.44), interval(0.07), 50, 3))
    found = class_verdict(audit(predictions=told(400, 80), decisions=(checked,)))
    assert "44.0" in found.advice[0]


def test_other_scores_are_named() -> None:
    words = to_review(replace(decision(), score="epistemic", threshold=0.12))
    assert words == "epistemic uncertainty is above 0.120 nats"
    strange = to_review(replace(decision(), score="novelty", threshold=3.3))
    assert strange == "novelty is above 3.300"


def test_rivals_that_are_better_are_said_only_where_it_is_shown() -> None:
    differences = {
        "ahead": {"nll": Interval(0.02, 0.01, 0.03)},
        "even": {"nll": Interval(0.02, -0.01, 0.03)},
        "behind": {"nll": Interval(-0.02, -0.03, -0.01)},
    }
    text = str(class_verdict(audit(differences=differences)))
    assert "worse than that of ahead" in text
    assert "better than that of behind" in text
    assert "even" not in text


def test_rules_can_be_set_and_are_checked() -> None:
    assert class_verdict(audit(), Rules(error_rate=0.001)).level == REVIEW
    with pytest.raises(ConfigError, match="error_rate is 0"):
        Rules(error_rate=0.0)
    with pytest.raises(ConfigError, match="rows is 0"):
        Rules(rows=0)


def test_every_level_is_explained() -> None:
    from posthoc_bhpeft.audit.report.verdict import HOW

    assert {level for level, _ in HOW} == {READY, REVIEW, NOT_YET, UNCLEAR}
