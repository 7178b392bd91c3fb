"""Conditions that stop a pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posthoc_bhpeft.audit import Audit, Condition, failures
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.metrics.catalogue import METRICS
from posthoc_bhpeft.errors import ConfigError
from tests.audit.audits import audit_of

NAN = float("nan")


def found(**figures: Interval) -> Audit:
    audit = audit_of(rows=20)
    return replace(audit, subject=replace(audit.subject, figures=figures))


ECE = found(ece=Interval(0.05, 0.02, 0.08))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ece>0.05", Condition("ece", "estimate", ">", 0.05)),
        ("ece>=0.05", Condition("ece", "estimate", ">=", 0.05)),
        ("accuracy<.8", Condition("accuracy", "estimate", "<", 0.8)),
        ("accuracy<=1", Condition("accuracy", "estimate", "<=", 1.0)),
        ("ece.low>0.05", Condition("ece", "low", ">", 0.05)),
        ("ece.high > 0.05", Condition("ece", "high", ">", 0.05)),
        ("  nll.estimate  <  1e-3 ", Condition("nll", "estimate", "<", 0.001)),
        ("errors_removed_at_10<+0.3", Condition("errors_removed_at_10", "estimate", "<", 0.3)),
        ("nll>-1.5E+2", Condition("nll", "estimate", ">", -150.0)),
    ],
)
def test_conditions_are_read(text: str, expected: Condition) -> None:
    assert Condition.parse(text) == expected
    assert Condition.parse(str(expected)) == expected


def test_every_metric_can_be_a_gate() -> None:
    for metric in METRICS:
        assert Condition.parse(f"{metric.name}.low>=0").metric == metric.name


@pytest.mark.parametrize(
    "text",
    [
        "", "ece", "ece>", ">0.05", "0.05<ece", "ece>0.05 and nll>1", "ece==0.05", "ece=0.05",
        "ece!=0.05", "ece>5%", "ece>0,05", "ece>1.2.3", "ece>e", "ece>+-1", "ece>>1", "ece.>1",
        "ece.low.high>1", "ECE>0.05", "ece>nan", "ece>inf", "ece > 0x1", "smooth ece>1", "ece<>1",
    ],
)  # fmt: skip
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"is no condition\. Write a metric, a comparison"
    ) as told:
        Condition.parse(text)
    assert str(told.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ece.middle>1", "a figure has estimate, low, high, not 'middle'"),
        ("ice>0.1", "no metric is called that. Known: accuracy, macro_f1"),
        ("ece>1e999", "compared with a finite number"),
    ],
)
def test_conditions_about_nothing(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        Condition.parse(text)
    assert str(told.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ece>0.05", False), ("ece>=0.05", True), ("ece<0.05", False), ("ece<=0.05", True),
        ("ece>0.049", True), ("ece<0.051", True), ("ece.low>0.02", False), ("ece.low>=0.02", True),
        ("ece.high<0.08", False), ("ece.high<=0.08", True), ("ece.high>0.05", True),
        ("ece.low>0.05", False),
    ],
)  # fmt: skip
def test_conditions_look_at_their_end_of_the_interval(text: str, holds: bool) -> None:
    assert Condition.parse(text).holds(ECE) is holds
    assert bool(failures(ECE, [Condition.parse(text)])) is holds


@pytest.mark.parametrize("comparison", [">", ">=", "<", "<="])
@pytest.mark.parametrize("part", ["", ".low", ".high"])
def test_a_figure_that_is_not_known_stops(comparison: str, part: str) -> None:
    condition = Condition.parse(f"ece{part}{comparison}0.5")
    assert condition.holds(found(ece=Interval(NAN, NAN, NAN)))


def test_failures_are_those_that_hold_with_their_figures() -> None:
    audit = found(ece=Interval(0.0512345, 0.02, 0.08), nll=Interval(0.4, 0.3, NAN))
    asked = [Condition.parse(t) for t in ("ece>0.05", "nll>1", "nll.high>9", "ece.low>=0.02")]
    assert failures(audit, asked) == (
        "ece>0.05 (ece is 0.05123)",
        "nll.high>9 (nll.high is nan)",
        "ece.low>=0.02 (ece.low is 0.02)",
    )
    assert failures(audit, []) == ()


def test_a_figure_that_was_not_measured() -> None:
    with pytest.raises(ConfigError, match="nll>1 is about 'nll'; this audit has ece"):
        failures(ECE, [Condition.parse("nll>1")])
    with pytest.raises(ConfigError, match="this audit has none, because the rows have no labels"):
        failures(found(), [Condition.parse("nll>1")])


def test_only_the_subject_is_judged() -> None:
    audit = audit_of(rows=20, rivals=("MAP",))
    good = replace(audit.subject, figures={"ece": Interval(0.0, 0.0, 0.01)})
    assert failures(replace(audit, subject=good), [Condition.parse("ece>0.1")]) == ()
