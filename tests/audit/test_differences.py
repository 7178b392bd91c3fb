"""A difference that is judged is never shown as zero."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.regression.figures import REGRESSION
from posthoc_bhpeft.audit.regression.page import difference
from posthoc_bhpeft.audit.regression.page import term as real_term
from posthoc_bhpeft.audit.report.glossary import term
from posthoc_bhpeft.audit.report.tables import Cell, difference_cell, digits_for, rows
from tests.audit.audits import audit_of
from tests.audit.regression.made import whole


def test_a_judged_difference_has_the_digits_that_show_it() -> None:
    found = replace(
        audit_of(rivals=("MAP",)), differences={"MAP": {"brier": Interval(4e-4, 2e-5, 1e-3)}}
    )
    (row,) = rows(found, ["brier"])
    assert row.rivals[0][1] == Cell("+0.00040", "+0.00002 to +0.00100", "worse")


def test_shares_are_in_points_with_digits_of_their_own() -> None:
    cell = difference_cell(Interval(0.0004, 0.0001, 0.02), term("accuracy"))
    assert cell == Cell("+0.04", "+0.01 to +2.00", "better")


def test_a_difference_that_is_not_judged_keeps_three_digits() -> None:
    cell = difference_cell(Interval(4e-4, -2e-5, 1e-3), term("brier"))
    assert cell == Cell("0.000", "0.000 to +0.001", "")


def test_rounding_is_not_judged() -> None:
    cell = difference_cell(Interval(1e-16, 1e-17, 2e-16), term("brier"))
    assert cell == Cell("0.000", "0.000 to 0.000", "")


def test_regressions_are_shown_likewise() -> None:
    one = next(real_term(metric) for metric in REGRESSION if metric.name == "rmse")
    found = replace(whole(), differences={"MAP": {"rmse": Interval(-4e-4, -1e-3, -2e-5)}})
    minus = "\u2212"
    expected = Cell(f"{minus}0.00040", f"{minus}0.00100 to {minus}0.00002", "better")
    assert difference(found, "MAP", one) == expected


@pytest.mark.parametrize(
    ("values", "digits"), [((0.5,), 3), ((0.0004,), 4), ((1.0, 2e-6), 6), ((1e-30,), 12)]
)
def test_digits(values: tuple[float, ...], digits: int) -> None:
    assert digits_for(*values) == digits
