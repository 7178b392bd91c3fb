"""One `audit`, one `verdict` and one `write_report`, whatever a model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posthoc_bhpeft import Bernoulli, Gaussian
from posthoc_bhpeft.audit import (
    Audit,
    Condition,
    Contest,
    Plan,
    RegressionAudit,
    RegressionPlan,
    audit,
    failures,
    verdict,
    write_report,
)
from posthoc_bhpeft.audit.gates import CLASSES, NUMBERS, check_figures
from posthoc_bhpeft.audit.predicting import described
from posthoc_bhpeft.audit.regression.drawings import real_drawings
from posthoc_bhpeft.audit.regression.verdict import real_verdict
from posthoc_bhpeft.audit.report import class_verdict
from posthoc_bhpeft.audit.report.drawings import drawings
from posthoc_bhpeft.audit.report.writing import PICTURES
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.rivals import Point
from tests.audit.audits import predictions
from tests.audit.regression.made import honest
from tests.audit.test_report import full
from tests.models import mlp


class Never:
    """A rival that must not predict."""

    name = "never"

    def __init__(self, likelihood: Any) -> None:
        self.likelihood = likelihood

    def predict_loader(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a pass was made")


@pytest.fixture(scope="module")
def numbers() -> RegressionAudit:
    return audit(honest(200), plan=RegressionPlan(tolerance=1.0, resamples=20))


def test_what_is_audited_decides_the_kind(numbers: RegressionAudit) -> None:
    assert type(numbers) is RegressionAudit
    assert type(audit(predictions(60), plan=Plan(resamples=20))) is Audit
    assert audit(honest(60), name="mine").subject.name == "mine"
    assert numbers.tolerance == 1.0


def test_a_plan_is_for_its_kind() -> None:
    with pytest.raises(ConfigError, match=r"is a regression.*Pass a RegressionPlan: tolerance"):
        audit(honest(60), plan=Plan())
    with pytest.raises(ConfigError, match=r"nothing says that this is one.*fit_noise"):
        audit(predictions(60), plan=RegressionPlan())


@pytest.mark.parametrize("name", ["outside", "reference"])
def test_rows_that_numbers_are_not_compared_with(name: str) -> None:
    for subject in (honest(60), Never(Gaussian(1.0))):
        with pytest.raises(ConfigError, match=f"{name}= is for models that choose a class"):
            audit(subject, [], **{name: predictions(20)})


def test_the_other_kind_is_refused_before_any_pass() -> None:
    for likelihood in (Bernoulli(), Gaussian(1.0)):
        with pytest.raises(DataError, match=r"one class a row.*This one has the likelihood"):
            audit(predictions(60), [], rivals={"x": Never(likelihood)})
    with pytest.raises(DataError, match="Bernoulli"):
        audit(Never(Bernoulli()), [])
    with pytest.raises(ConfigError, match="A RealPredictions cannot be audited"):
        audit(predictions(60), rivals={"x": honest(60)})
    with pytest.raises(ConfigError, match="A Predictions cannot be audited"):
        audit(honest(60), rivals={"x": predictions(60)})


def test_one_verdict_and_one_report(tmp_path: Path, numbers: RegressionAudit) -> None:
    classes = audit(predictions(60), plan=Plan(resamples=20))
    assert verdict(numbers) == real_verdict(numbers)
    assert verdict(classes) == class_verdict(classes)
    write_report(numbers, tmp_path)
    assert "Audit of a regression" in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(classes, tmp_path)
    assert "Calibration audit" in (tmp_path / "report.html").read_text(encoding="utf-8")
    left = {path.stem for path in tmp_path.glob("*.png")}
    assert not left & {*real_drawings(numbers)}


def test_every_picture_is_known_to_be_one(numbers: RegressionAudit) -> None:
    """Or an old one would stay beside a page that has it no more."""
    made = {*drawings(full()), *real_drawings(numbers), "confusion"}
    assert {"confidence", "error_left"} < made
    strange = [name for name in made if not any(Path(name).match(known) for known in PICTURES)]
    assert strange == []
    assert [known for known in PICTURES if not any(Path(name).match(known) for name in made)] == []


def test_gates_know_both_kinds(numbers: RegressionAudit) -> None:
    asked = [Condition.parse(text) for text in ("rmse>0", "r2.high<-9")]
    assert [text.split(" ")[0] for text in failures(numbers, asked)] == ["rmse>0"]
    check_figures(asked, NUMBERS)
    with pytest.raises(ConfigError, match=r"rmse>0 is about 'rmse'; this audit will have accuracy"):
        check_figures(asked, CLASSES)
    with pytest.raises(ConfigError, match="ece>1 is about 'ece'; this audit has gaussian_nll"):
        failures(numbers, [Condition.parse("ece>1")])


def test_a_temperature_is_no_rival_of_a_regression() -> None:
    for subject in (Point(mlp(4, 1), Gaussian(1.0)), Never(Gaussian(1.0))):
        with pytest.raises(ConfigError, match=r"'temperature' divides.*map, dropout, last-layer"):
            Contest(subject, []).rivals(["map", "temperature"])  # type: ignore[arg-type]
    point = Point(mlp(4, 1), Gaussian(2.0))
    assert Contest(point).rivals(["map"]) == {"MAP": point}


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("/home/somebody/tweets.csv", "train", "tweets.csv, train"),
        ("/data/reviews", "test", "reviews, test"),
        ("stanfordnlp/sst2", "validation", "stanfordnlp/sst2, validation"),
        ("", "test", "test"),
        ("", "", ""),
    ],
)
def test_a_report_does_not_tell_where_files_lie(source: str, split: str, said: str) -> None:
    assert described(TextData(("a",), source=source, split=split)) == said


def test_no_rows_are_described_by_nothing() -> None:
    assert described(None) == ""
