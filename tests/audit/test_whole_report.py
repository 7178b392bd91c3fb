"""A whole audit of a real, tiny posterior with every part, and all of it on the page."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from posthoc_bhpeft.audit import Audit, Contest, Plan, audit, verdict, write_report
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.report import page
from posthoc_bhpeft.audit.report.drawings import drawings
from posthoc_bhpeft.audit.report.tables import detection_rows, detection_terms
from posthoc_bhpeft.audit.words import between, percent
from tests.audit.audits import audit_of, interval
from tests.audit.bags import bag_loader, bag_posterior, bag_rows


@pytest.fixture(scope="module")
def found() -> Audit:
    bayes = bag_posterior()
    held_out = bag_loader(bag_rows(60, 21))
    strange = bag_rows(50, 7, labels=None, label_names=None)
    return audit(
        bayes,
        bag_loader(bag_rows(160)),
        rivals=Contest(bayes, held_out, progress=False).rivals(["map", "temperature"]),
        outside=bag_loader(replace(strange, texts=tuple("w0 w1 w2" for _ in range(50)))),
        reference=bag_loader(bag_rows(120, 8)),
        name="mine",
        plan=Plan(time="day", max_error=0.4, max_review=0.2, sets=0.2, resamples=30),
        progress=False,
    )


@pytest.fixture(scope="module")
def folder(found: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    write_report(found, place)
    return place


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    """What a reader sees: no tags, one space between words."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(text: str, title: str, following: str) -> str:
    """What stands under a heading; headings stand in the contents too."""
    start = text.rindex(title)
    return text[start : text.index(following, start)]


def test_pictures_of_every_part_are_written(folder: Path) -> None:
    names = {path.stem for path in folder.glob("*.png")}
    assert {"periods", "slices", "uncertainty", "reliability", "risk_coverage"} <= names


def test_rows_from_elsewhere_have_a_table_with_every_model(found: Audit, text: str) -> None:
    shown = section(text, "Rows from elsewhere", "Rows worth reading")
    assert "50 rows from elsewhere" in shown
    assert "from the 160 rows under audit" in shown
    assert f"an AUPR of {percent(50 / 210, 0)}".replace("\u202f", " ") in shown
    for metric in ("AUROC", "AUPR", "FPR95"):
        assert metric in shown
    for model in ("mine", "MAP", "temperature (60 held-out rows)"):
        assert model in shown
    for score in ("confidence", "epistemic"):
        area = found.subject.detection[score]["auroc"]
        estimate = percent(area.estimate).replace("\u202f", " ")
        assert f"{estimate} {100 * area.low:.1f} to {100 * area.high:.1f}" in shown
    assert shown.count("highest AUROC") >= 1


def test_each_score_of_the_detection_leads_to_its_meaning(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("auroc", "aupr", "fpr95"):
        assert f'href="#metric-{name}"' in page
        assert f'id="metric-{name}"' in page


def test_drift_has_its_findings_trends_and_periods(found: Audit, text: str) -> None:
    assert found.drift is not None
    shown = section(text, "Drift", "How it was made")
    assert "160 rows against 120 rows of the reference set" in shown
    for sentence in found.drift.findings:
        assert " ".join(sentence.split()) in shown
    assert [one.of for one in found.drift.trends] == ["epistemic", "accuracy"]
    for one in found.drift.trends:
        assert f"{one.of.capitalize()} " in shown
        assert f"{one.early:.3f} in the earlier half, {one.late:.3f} in the later" in shown
    assert len(found.drift.periods) == 4
    for period in found.drift.periods:
        shared = between(period.confidence, share=True).replace("\u202f", " ")
        assert f"{period.name} {period.rows}" in shown
        assert shared in shown
    for name, (before, now) in found.drift.frequencies.items():
        shares = f"{name} {percent(before)} {percent(now)}".replace("\u202f", " ")
        assert shares in shown


def test_prediction_sets_say_what_they_promise_and_cost(found: Audit, text: str) -> None:
    assert found.sets is not None
    shown = section(text, "Prediction sets", "What is taken for what")
    assert " ".join(found.sets.guarantee.split()) in shown
    assert f"{found.sets.sizes.mean:.2f} classes on average" in shown
    assert "too few rows" not in shown


def test_verdict_groups_and_rows_are_told(found: Audit, text: str) -> None:
    said = verdict(found)
    assert said.level in text
    for advice in said.advice:
        assert " ".join(advice.replace("\u202f", " ").split()) in text
    assert "bags, test, 160 rows" in text
    assert "160 rows, 160 rows" not in text
    for group in found.slices:
        assert group.value in text


def test_a_level_of_ones_own_is_on_the_page() -> None:
    audit = replace(audit_of(rows=20), level=0.8)
    shown = page(audit, pictures={}).replace("\u202f", " ")
    assert "Each figure with its 80 % interval" in shown
    assert "Intervals are 80 % bootstrap" in shown
    assert "an end of its interval (80 %)" in shown
    assert "95 % interval" not in shown
    captions = [drawing.caption for drawing in drawings(audit).values()]
    assert any("80\u202f% interval" in caption for caption in captions)


# ------------------------------------------------------------------------- the table of detection


def detected(**areas: Interval | float) -> dict[str, dict[str, Interval]]:
    rest = {"aupr": interval(0.5), "fpr95": interval(0.5)}
    return {
        name: {"auroc": area if isinstance(area, Interval) else interval(area), **rest}
        for name, area in areas.items()
    }


def with_detection(ours: Any, theirs: Any) -> Audit:
    audit = audit_of(rows=20, rivals=("MAP",))
    (rival,) = audit.rivals
    return replace(
        audit,
        subject=replace(audit.subject, detection=ours),
        rivals=(replace(rival, detection=theirs),),
        outside_rows=10,
    )


def test_a_score_that_tells_nothing_has_no_row() -> None:
    flat = Interval(0.5, 0.5, 0.5)
    theirs = detected(confidence=0.6, total=0.7, aleatoric=0.7, epistemic=flat)
    rows = dict(detection_rows(with_detection(detected(confidence=0.5), theirs)))
    # By chance is not the same as by nothing at all; aleatoric is total where nothing is epistemic.
    assert [one.score for one in rows["ours"]] == ["confidence"]
    assert [one.score for one in rows["MAP"]] == ["confidence", "total"]


def test_the_best_of_all_models_is_marked() -> None:
    ours, theirs = detected(confidence=0.6, epistemic=0.8), detected(confidence=0.7)
    rows = dict(detection_rows(with_detection(ours, theirs)))
    assert [one.best for one in rows["ours"]] == [False, True]
    assert [one.best for one in rows["MAP"]] == [False]
    assert len(detection_terms(with_detection(ours, theirs))) == 3


def test_a_model_without_detection_has_no_rows() -> None:
    audit = with_detection(detected(confidence=0.6), {})
    assert [name for name, _ in detection_rows(audit)] == ["ours"]


def test_a_model_that_tells_nothing_says_so() -> None:
    flat = Interval(0.5, 0.5, 0.5)
    audit = with_detection(detected(confidence=flat), {})
    assert "No score of it tells anything." in page(audit, pictures={})
