from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from posthoc_bhpeft.audit.slices.grouping import MISSING, group_times, group_values, is_missing
from posthoc_bhpeft.data.dates import parse_dates


def sizes(values: list[Any], **settings: Any) -> dict[str, int]:
    return {group.name: len(group) for group in group_values(values, **settings)}


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), np.float32("nan")])
def test_missing(value: Any) -> None:
    assert is_missing(value)
    assert sizes(["a", value, "a"]) == {"a": 2, MISSING: 1}


@pytest.mark.parametrize("value", [0, False, "0", [], [None], np.array([np.nan, 1.0])])
def test_not_missing(value: Any) -> None:
    assert not is_missing(value)


@pytest.mark.parametrize(
    "values",
    [
        list("abcabcaaz"),
        [3.5, None, 2.0, 8.0, 1.0, 4.0, 9.0],
        ["2024-01-05", "2024-02-01", "", "2025-01-01"],
        [True, False, None, True],
        [f"u{i % 13}" for i in range(60)],
        [["x"], {"a": 1}, ["x"]],
    ],
)
def test_no_row_is_lost_or_twice(values: list[Any]) -> None:
    rows = np.concatenate([g.rows for g in group_values(values, most=3)])
    assert sorted(rows.tolist()) == list(range(len(values)))


def test_numbers_make_quantile_groups_named_by_what_is_in_them() -> None:
    assert sizes(list(range(1, 101))) == {
        "1 to 25": 25,
        "26 to 50": 25,
        "51 to 75": 25,
        "76 to 100": 25,
    }
    assert sizes([0.5, 0.25, 0.125, 1.0], most=2, parts=2) == {"0.125 to 0.25": 2, "0.5 to 1": 2}


def test_equal_numbers_stay_together() -> None:
    assert sizes([0] * 70 + list(range(1, 31))) == {"0": 70, "1 to 5": 5, "6 to 30": 25}


def test_few_numbers_are_values_in_order_and_texts_may_be_numbers() -> None:
    assert list(sizes([10, 2, 2, 10, 3])) == ["2", "3", "10"]
    assert sizes(["4", "1.5", "4"]) == {"1.5": 1, "4": 2}


def test_many_values_make_the_largest_and_the_others() -> None:
    values = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3 + ["e"]
    assert sizes(values, most=2) == {"a": 5, "b": 4, "3 other values": 7}
    assert sizes(values, most=10, smallest=4) == {"a": 5, "b": 4, "3 other values": 7}
    assert sizes(["a"] * 5 + ["b"], smallest=2) == {"a": 5}
    assert sizes(["a", "a", "b", "b", "c", "c"], most=2) == {"a": 2, "b": 2, "c": 2}


def test_dates_take_the_finest_unit_that_is_not_too_many() -> None:
    years = [f"{2013 + i}-0{1 + d}-07" for i in range(8) for d in range(3)]
    assert list(sizes(years)) == [str(2013 + i) for i in range(8)]
    days = [f"2015-02-{d:02d}T10:00" for d in range(16, 25)]
    assert list(sizes(days)) == [f"2015-02-{d:02d}" for d in range(16, 25)]
    assert list(sizes(["2015-02-16 23:36", "2015-03-01"])) == ["2015-02-16", "2015-03-01"]


def test_dates_that_fit_no_unit_make_parts() -> None:
    moments = [datetime(2024, 3, d, 12) for d in range(1, 25)]
    found = group_times(moments, most=12, parts=4)
    assert [(g.name, len(g)) for g in found] == [
        ("2024-03-01 to 2024-03-06", 6),
        ("2024-03-07 to 2024-03-12", 6),
        ("2024-03-13 to 2024-03-18", 6),
        ("2024-03-19 to 2024-03-24", 6),
    ]


def test_short_stretches_join_a_neighbour() -> None:
    stamps = ["2015-02-16"] + ["2015-02-17"] * 9 + ["2015-02-18"] * 9 + ["2015-02-19"] * 2
    assert sizes(stamps, smallest=5) == {
        "2015-02-16 to 2015-02-17": 10,
        "2015-02-18 to 2015-02-19": 11,
    }


@pytest.mark.parametrize(
    "text",
    [
        "2015-02-24",
        "2015/02/24",
        "20150224",
        "24.02.2015",
        "24 Feb 2015",
        "February 24, 2015",
        "02/24/2015",
        "24/02/2015",
        "2015-02-24T00:00:00Z",
        "2015-02-24 02:00:00+02:00",
        "Tue Feb 24 00:00:00 +0000 2015",
        "Tue, 24 Feb 2015 00:00:00 +0000",
        date(2015, 2, 24),
        np.datetime64("2015-02-24"),
    ],
)
def test_forms_of_dates(text: Any) -> None:
    assert parse_dates([text]) == (datetime(2015, 2, 24),)


def test_what_is_no_date() -> None:
    assert parse_dates(["03/04/2015"]) is None, "the 3rd of April or the 4th of March"
    assert parse_dates(["03/04/2015", "03/14/2015"]) is not None
    assert parse_dates(["2015-02-24", "soon"]) is None
    assert parse_dates(["12345678", "2015"]) is None
    assert parse_dates([]) is None
    assert parse_dates([2015]) is None
