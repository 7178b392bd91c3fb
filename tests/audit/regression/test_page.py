from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from posthoc_bhpeft.audit.regression import (
    RealPredictions,
    RegressionAudit,
    RegressionPlan,
    audit_regression,
    regression_page,
    write_regression_report,
)
from posthoc_bhpeft.audit.regression.drawings import marks, real_drawings
from posthoc_bhpeft.audit.regression.examples import cut, example, real_galleries
from posthoc_bhpeft.audit.regression.plots import (
    error_coverage_plot,
    error_left,
    interval_plot,
    pit_counts,
    rmse_by_deviation,
    share_band,
    share_inside,
)
from posthoc_bhpeft.audit.report import Made
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.predictive import Prediction
from tests.audit.regression.made import honest, point, whole

MADE = Made(datetime(2026, 1, 2, tzinfo=timezone.utc), "bhpeft audit x", "1.2.3")


class Page(HTMLParser):
    """Ids, links and what is loaded from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "a":
            self.links.append(found.get("href") or "")
        self.loaded += [str(found[key]) for key in ("src", "srcset") if key in found]
        if tag in ("section", "div", "ul", "ol", "table", "p", "details", "figure"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("section", "div", "ul", "ol", "table", "p", "details", "figure"):
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full() -> RegressionAudit:
    return whole()


@pytest.fixture(scope="module")
def text(full: RegressionAudit) -> str:
    return regression_page(full, made=MADE)


def test_the_page_is_whole_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert set(inner) <= set(page.ids)
    assert not re.search(r">\s*None\s*<|\bNone (to|%)|\bnan\b", text)


def test_what_the_page_says(full: RegressionAudit, text: str) -> None:
    for said in ("mine", "beside MAP", "tolerance 1.00", "of the test", "1.2.3", "bhpeft audit x"):
        assert said in text
    assert "A &lt;b&gt;fine&lt;/b&gt; text" in text
    assert full.conformal is not None
    assert f"{full.conformal.factor:.2f} predicted deviations" in text
    for title in ("The figures", "Which rows go to a person", "Groups of rows", "Rows worth"):
        assert title in text
    for drawing in real_drawings(full).values():
        assert drawing.caption.split(";")[0] in text.replace("&#39;", "'")


def test_pages_of_less() -> None:
    plan = RegressionPlan(resamples=20)
    rows = honest(60)
    bare = regression_page(audit_regression(replace(rows, targets=None), plan=plan), made=MADE)
    assert "There are no targets." in bare
    assert "The figures" not in bare
    flat = audit_regression(point(rows), plan=plan)
    assert set(real_drawings(flat)) == {"intervals", "pit"}
    assert "the same for every row" in regression_page(flat, made=MADE)
    tiny = regression_page(audit_regression(honest(5), plan=plan), made=MADE)
    assert "5 rows are too few" in tiny
    for one in (bare, tiny):
        assert Page(one).open == []


def test_files_of_a_report(tmp_path: Path, full: RegressionAudit) -> None:
    write_regression_report(full, tmp_path, made=MADE)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"report.html", "intervals.png", "pit.png", "deviation.png", "error_left.png"}
    flat = audit_regression(point(honest(60)), plan=RegressionPlan(resamples=20))
    write_regression_report(flat, tmp_path, made=MADE)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"report.html", "intervals.png", "pit.png"}


def test_curves_by_hand() -> None:
    rows = honest(97)
    share = share_inside(rows)
    for percent in (50, 90):
        low, high = stats.norm.interval(percent / 100, rows.mean, rows.deviation)
        inside = (low <= rows.known_targets) & (rows.known_targets <= high)
        assert share[percent - 1] == pytest.approx(inside.mean())
    low, high = share_band(np.array([0.0, 0.5, 1.0]), 10, 0.95)
    for place, held in enumerate((0, 5, 10)):
        exact = stats.binomtest(held, 10).proportion_ci(0.95, method="exact")
        assert (low[place], high[place]) == pytest.approx((exact.low, exact.high))
    quantiles = stats.norm.cdf(rows.known_targets, rows.mean, rows.deviation)
    np.testing.assert_array_equal(pit_counts(rows), np.histogram(quantiles, 10, (0, 1))[0])


def test_error_left_by_hand() -> None:
    rows = honest(40)
    kept, error = error_left(rows)
    order = np.argsort(rows.deviation)
    for n in (1, 7, 40):
        assert kept[n - 1] == n / 40
        expected = np.sqrt((rows.error[order[:n]] ** 2).mean())
        assert error[n - 1] == pytest.approx(expected)
    _, level = error_left(point(rows))
    np.testing.assert_allclose(level, np.sqrt((rows.error**2).mean()))


def test_groups_of_like_deviation() -> None:
    rows = honest(400)
    said, found = rmse_by_deviation(rows)
    assert len(said) == 10
    assert (np.diff(said) > 0).all()
    assert (found**2).mean() == pytest.approx((rows.error**2).mean())
    assert [len(part) for part in rmse_by_deviation(point(rows))] == [1, 1]


def test_marks_are_shares_kept(full: RegressionAudit) -> None:
    review = full.decisions[-1]
    assert marks(full)["B"] == pytest.approx(1 - review.reviewed.estimate)


def test_rows_worth_reading() -> None:
    rows = honest(50, texts=tuple(map(str, range(50))))
    surprises, least = real_galleries(rows)
    far = np.abs(rows.error / rows.deviation)
    assert surprises.shown[0].row == far.argmax()
    assert least.shown[0].row == rows.deviation.argmax()
    assert (len(least.shown), len(least.folded)) == (4, 8)
    one = example(rows, 3)
    low, high = stats.norm.interval(0.9, rows.mean[3], rows.deviation[3])
    assert (one.start, one.low, one.high) == ("3", pytest.approx(low), pytest.approx(high))
    assert one.inside == (low <= rows.known_targets[3] <= high)
    assert one.epistemic == pytest.approx(rows.epistemic[3] / rows.variance[3])


def test_rows_are_called_by_their_index_in_the_source() -> None:
    rows = replace(honest(60), indices=tuple(range(100, 160)))
    least = real_galleries(rows)[-1]
    assert least.shown[0].row == rows.deviation.argmax() + 100
    assert example(rows.take([7, 3]), 1).row == 103
    plan = RegressionPlan(resamples=50)
    known = regression_page(audit_regression(rows, plan=plan), made=MADE)
    assert "Rows count from 0, as in the source" in known
    assert f"Row {least.shown[0].row}<" in known
    unknown = regression_page(audit_regression(honest(60), plan=plan), made=MADE)
    assert "Rows count from 0, in the order" in unknown


def test_indices_are_those_of_the_rows() -> None:
    prediction = Prediction(
        torch.zeros(2, 1), None, torch.ones(2), torch.zeros(2), torch.ones(2), None
    )
    rows = TextData(("a", "b", "c")).take([2, 0])
    assert RealPredictions.of(prediction, rows).indices == (2, 0)


def test_long_texts_are_cut_at_a_space() -> None:
    text = "word " * 100
    start, rest = cut(text)
    assert start + rest == text
    assert start.endswith("word")
    assert cut("short") == ("short", "")


def test_dollars_in_names_of_models_are_dollars(full: RegressionAudit) -> None:
    """Two of them would make a formula of what stands between, or an error."""
    named = replace(full, subject=replace(full.subject, name="$5 # $6"))
    pictures = real_drawings(named)
    for name in ("intervals", "error_left"):
        assert "$5 # $6<" in pictures[name].svg()


def test_nothing_to_draw() -> None:
    with pytest.raises(DataError, match="no model to draw"):
        interval_plot({})
    with pytest.raises(DataError, match="no model to draw"):
        error_coverage_plot({})
