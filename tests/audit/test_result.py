"""`Audit` as JSON and as a row of a model card: everything is in it, and it is strict."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest

from posthoc_bhpeft.audit import Audit, Plan, audit
from posthoc_bhpeft.audit.decisions.conformal import conformal_sets
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.catalogue import DETECTION, METRICS
from posthoc_bhpeft.audit.result import CARD_METRICS
from posthoc_bhpeft.sets import APS
from tests.audit.audits import audit_of, decision, predictions
from tests.audit.regression.made import whole as whole_regression

NAN, INF = float("nan"), float("inf")


def test_decisions_say_which_rows_to_review() -> None:
    """The threshold of "confidence" is on one less it, which its name alone does not say."""
    (told,) = audit_of(decisions=(decision(),)).to_dict()["decisions"]
    assert (told["score"], told["threshold"]) == ("confidence", 0.3)
    assert told["review_if"] == "1 - max probability > 0.3"
    (_, told) = whole_regression().to_dict()["decisions"]
    assert told["review_if"] == f"standard_deviation > {told['threshold']!r}"


@pytest.fixture(scope="module")
def whole() -> Audit:
    """An audit with every part, made by `audit` itself."""
    columns: dict[str, Any] = {
        "shop": tuple("ab"[n % 2] for n in range(120)),
        "day": tuple(f"2024-{1 + n // 40:02d}-01" for n in range(120)),
    }
    given = replace(predictions(120), columns=columns)
    return audit(
        given,
        rivals={"rival": replace(given, scores={}, columns={})},
        outside=predictions(60, seed=4),
        reference=predictions(80, seed=5),
        name="mine",
        plan=Plan(time="day", max_error=0.3, sets=0.2, resamples=20),
    )


def strict(found: Audit) -> dict[str, Any]:
    """Through JSON that allows no NaN, and back."""
    content: dict[str, Any] = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content == found.to_dict(), "nothing is changed by the way"
    return content


def test_every_part_is_in_it(whole: Audit) -> None:
    content = strict(whole)
    parts = {one.name for one in fields(Audit)} - {"rivals"}
    assert parts <= set(content)
    assert content["subject"] == "mine"
    assert content["rows"] == 120
    assert content["level"] == 0.95
    assert content["about"] == dict(whole.subject.predictions.about)
    assert list(content["figures"]) == ["mine", "rival"]
    for found in (*content["figures"].values(), content["differences"]["rival"]):
        assert list(found) == [metric.name for metric in METRICS]
    # The rival is not told rows from elsewhere by predictions of the subject.
    assert list(content["detection"]) == ["mine"]
    told = content["detection"]["mine"]
    assert list(told) == ["confidence", "total", "aleatoric", "epistemic"]
    assert list(told["total"]) == [metric.name for metric in DETECTION]


def test_figures_are_to_the_last_digit(whole: Audit) -> None:
    content = strict(whole)
    assert content["figures"]["mine"]["nll"] == asdict(whole.subject.figures["nll"])
    assert content["slices"][0]["accuracy"] == asdict(whole.slices[0].accuracy)
    assert whole.drift is not None
    assert content["drift"]["label_shift"] == whole.drift.label_shift
    assert content["drift"]["uncertainty"] == asdict(whole.drift.uncertainty)


def test_all_groups_periods_trends_and_decisions_are_in_it(whole: Audit) -> None:
    content = strict(whole)
    assert whole.drift is not None
    assert len(content["slices"]) == len(whole.slices) > 5
    assert [p["name"] for p in content["drift"]["periods"]] == [
        one.name for one in whole.drift.periods
    ]
    assert len(content["drift"]["periods"]) == 3
    assert {one["of"] for one in content["drift"]["trends"]} == {"epistemic", "accuracy"}
    assert content["drift"]["findings"] == list(whole.drift.findings)
    assert [one["goal"] for one in content["decisions"]] == [one.goal for one in whole.decisions]
    for one, made in zip(content["decisions"], whole.decisions, strict=True):
        assert float(one["threshold"]) == made.threshold
        assert one["guarantee"] == made.guarantee


def test_sets_say_how_they_are_made(whole: Audit) -> None:
    content = strict(whole)["sets"]
    assert whole.sets is not None
    assert content["rule"]["method"] == "LAC()"
    thresholds = np.ravel(whole.sets.rule.thresholds).tolist()
    assert np.ravel(content["rule"]["thresholds"]).tolist() == thresholds
    assert content["alpha"] == 0.2
    assert sum(content["sizes"]["counts"]) == content["rows"] == 120
    other = replace(whole, sets=conformal_sets(predictions(120), 0.2, method=APS(), per_class=True))
    made = strict(other)["sets"]
    assert made["rule"]["method"].startswith("APS(")
    assert [name for name, *_ in made["per_class"]] == ["class 0", "class 1", "class 2"]


def test_no_rows_are_in_it(whole: Audit) -> None:
    text = json.dumps(whole.to_dict())
    assert "Message number" not in text
    assert len(text) < 60_000


def test_an_audit_of_nothing_but_rows() -> None:
    found = audit(predictions(30, labels=False), plan=Plan(max_review=None))
    content = strict(found)
    assert content["figures"] == {"predictions": {}}
    assert (content["sets"], content["drift"]) == (None, None)
    assert (content["slices"], content["decisions"], content["detection"]) == ([], [], {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(NAN, None), (INF, "Infinity"), (-INF, "-Infinity"), (np.float64(0.5), 0.5)],
)
def test_numbers_that_json_does_not_know(value: float, expected: Any) -> None:
    found = audit_of(rows=10)
    found = replace(found, subject=replace(found.subject, figures={"nll": Interval(value, 0, 1)}))
    content = strict(found)["figures"]["ours"]["nll"]
    assert content["estimate"] == expected
    if isinstance(expected, str):
        assert float(expected) == value


def test_an_infinite_threshold_can_be_read_back() -> None:
    found = audit(predictions(20), plan=Plan(resamples=10))
    threshold = strict(found)["decisions"][0]["threshold"]
    assert threshold == "-Infinity"
    assert float(threshold) == -math.inf


def test_numbers_of_numpy_become_plain_ones() -> None:
    found = audit_of(rows=10, slices=())
    about = {"n": np.int64(3), "flag": np.bool_(True), "list": np.arange(2), 4: {1: (2, NAN)}}
    subject = replace(found.subject, predictions=replace(found.subject.predictions, about=about))  # type: ignore[arg-type]
    content = strict(replace(found, subject=subject))["about"]
    assert content == {"n": 3, "flag": True, "list": [0, 1], "4": {"1": [2, None]}}
    assert content["flag"] is True


# ------------------------------------------------------------------------------------ a model card


def test_a_row_for_a_model_card(whole: Audit) -> None:
    header, line, row = replace(whole, data="tweets, test").card_row().splitlines()
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["data", "rows", *CARD_METRICS]
    assert line == "| --- | --- | --- | --- | --- | --- | --- |"
    nll = whole.subject.figures["nll"]
    shown = f"{nll.estimate:.3f} ({nll.low:.3f} to {nll.high:.3f})"
    assert row.startswith("| tweets, test | 120 | ")
    assert row.split(" | ")[3] == shown


def test_a_row_of_other_metrics_keeps_their_order(whole: Audit) -> None:
    header = whole.card_row(("mce", "accuracy", "unknown")).splitlines()[0]
    assert header == "| data | rows | mce | accuracy |"


def test_a_row_stays_one_row() -> None:
    found = replace(audit_of(rows=10), data="a|b\nc")
    assert found.card_row(()).splitlines()[2] == "| a\\|b c | 10 |"
    assert replace(found, data="").card_row(()).splitlines()[2] == "| – | 10 |"
