"""Rounds from files, columns, dates and the order of rows."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone

import pytest

from posthoc_bhpeft.data import TextData, load_rows
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.streams import (
    Every,
    Shares,
    rounds_by_column,
    rounds_from_folder,
    rounds_in_order,
)
from posthoc_bhpeft.streams.dates import era_borders, read_dates
from posthoc_bhpeft.streams.feeds import limited, pooled
from tests.texts import make_rows, write_jsonl

NONE_KEPT = Shares(test=0.0)


def rows(columns, labels=None, names=("bad", "good")):
    """Rows with numbered texts."""
    count = len(next(iter(columns.values())))
    return TextData(
        tuple(f"text {n}" for n in range(count)),
        labels=tuple(n % len(names) for n in range(count)) if labels is None else labels,
        label_names=names,
        columns={name: tuple(values) for name, values in columns.items()},
    )


def numbers(data):
    """Which rows these are."""
    return [] if data is None else [int(text.split()[1]) for text in data.texts]


def shape(rounds):
    return [(one.name, numbers(one.train)) for one in rounds]


# ------------------------------------------------------------------ columns


def test_a_round_a_value_in_the_order_of_first_appearance():
    data = rows({"shop": ["b", "a", "b", "c", "a"]})
    found = rounds_by_column(data, "shop", shares=NONE_KEPT)
    assert shape(found) == [("b", [0, 2]), ("a", [1, 4]), ("c", [3])]
    assert all(one.test is None for one in found)


def test_a_round_has_the_labels_of_its_own_rows():
    data = rows({"task": [1, 1, 2, 2, 3]}, (2, 0, 1, 2, 1), ("a", "b", "c"))
    found = rounds_by_column(data, "task", shares=NONE_KEPT)
    assert [one.train.label_names for one in found] == [("a", "c"), ("b", "c"), ("b",)]
    assert [one.train.labels for one in found] == [(1, 0), (0, 1), (0,)]


def test_later_rows_change_no_earlier_round():
    """So a stream over a growing file goes on, also when a label comes that sorts first."""
    few = rows({"year": [2020] * 6 + [2021] * 6})
    more = rows({"year": [*few.columns["year"], 2022]}, (*(n + 1 for n in few.labels), 0))
    more = replace(more, label_names=("awful", "bad", "good"))
    old, new = (rounds_by_column(d, "year", every=Every.YEAR) for d in (few, more))
    assert [(one.train.digest, one.test.digest, one.train.label_names) for one in old] == [
        (one.train.digest, one.test.digest, one.train.label_names) for one in new[:2]
    ]


@pytest.mark.parametrize(
    ("every", "names"),
    [
        (Every.YEAR, ["2019", "2020"]),
        (Every.MONTH, ["2019-12", "2020-01", "2020-03"]),
        (Every.DAY, ["2019-12-31", "2020-01-01", "2020-01-02", "2020-03-05"]),
    ],
    ids=lambda value: value.value if isinstance(value, Every) else "",
)
def test_spans_of_time_come_in_their_order(every, names):
    data = rows({"day": ["2020-01-02", "2019-12-31", "2020-03-05", "2020-01-01", "2020-01-02"]})
    found = rounds_by_column(data, "day", every=every, shares=NONE_KEPT)
    assert [one.name for one in found] == names
    assert [n for one in found for n in numbers(one.train)] == [1, 3, 0, 4, 2]


@pytest.mark.parametrize(
    "value",
    [
        "2024",
        2024,
        "2024-01",
        "20240101",
        20240101,
        "2024/01/01",
        " 2024-01-01 ",
        "2024-01-01T00:00:00Z",
        "2024-01-01 02:00:00+02:00",
        date(2024, 1, 1),
        datetime(2024, 1, 1),
        datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
    ids=repr,
)
def test_dates_in_many_forms(value):
    assert read_dates(rows({"at": [value]}), "at") == (datetime(2024, 1, 1),)


@pytest.mark.parametrize(
    "value",
    ["soon", "", None, 7, True, 1.5, "202431", "2024-13-01", 20241301, 123456789, -20240101],
    ids=repr,
)
def test_what_is_no_date_is_named_with_its_row(value):
    data = rows({"at": ["2024", "2024", value]}).take([1, 2])
    with pytest.raises(DataError, match=r"row 2: the column 'at' has") as error:
        rounds_by_column(data, "at", every=Every.YEAR)
    assert repr(value) in str(error.value)
    assert "Supported: 2024, 2024-03" in str(error.value)


def test_days_that_a_table_reads_as_numbers(tmp_path):
    lines = ["text,label,day", "a,yes,20240309", "b,no,20240309", "c,yes,20250101"]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = load_rows(tmp_path / "train.csv", "train", text_column="text", label_column="label")
    assert set(map(type, data.columns["day"])) == {int}
    assert read_dates(data, "day") == (*[datetime(2024, 3, 9)] * 2, datetime(2025, 1, 1))
    found = rounds_by_column(data, "day", every=Every.MONTH, shares=NONE_KEPT)
    assert [one.name for one in found] == ["2024-03", "2025-01"]


def test_eras_have_about_equally_many_rows_and_share_no_day():
    days = [f"2020-01-{1 + n // 3:02d}" for n in range(20)]
    found = rounds_by_column(rows({"at": days}), "at", rounds=3, shares=NONE_KEPT)
    assert [len(one.train) for one in found] == [6, 6, 8]
    assert [one.name for one in found] == [
        "2020-01-01 to 2020-01-02",
        "2020-01-03 to 2020-01-04",
        "2020-01-05 to 2020-01-07",
    ]
    assert sorted(n for one in found for n in numbers(one.train)) == list(range(20))


def test_eras_within_a_day_are_named_by_the_hour():
    hours = [datetime(2020, 1, 1, hour) for hour in (9, 10, 11, 12)]
    found = rounds_by_column(rows({"at": hours}), "at", rounds=2, shares=NONE_KEPT)
    assert found[0].name == "2020-01-01 09:00:00 to 2020-01-01 10:00:00"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dates", [[1, 2, 3, 4, 5], [1] * 9 + [2, 3, 4, 5], [1, 2, 3, 4, *[5] * 9]])
def test_every_era_has_rows(dates, count):
    borders = era_borders(dates, count)
    assert (borders[0], borders[-1], len(borders)) == (0, len(dates), count + 1)
    assert borders == sorted(set(borders))
    assert all(dates[b] != dates[b - 1] for b in borders[1:-1])


def test_more_eras_than_dates():
    with pytest.raises(DataError, match="3 rows with 2 different dates cannot make 3"):
        rounds_by_column(rows({"at": [2020, 2020, 2021]}), "at", rounds=3)


def test_parts_in_the_order_of_rows():
    found = rounds_in_order(rows({"x": range(10)}), 3, shares=NONE_KEPT)
    assert shape(found) == [
        ("rows 0 to 2", [0, 1, 2]),
        ("rows 3 to 6", [3, 4, 5, 6]),
        ("rows 7 to 9", [7, 8, 9]),
    ]
    with pytest.raises(DataError, match="2 rows cannot make 3"):
        rounds_in_order(rows({"x": range(2)}), 3)


def test_rows_that_come_twice_make_no_round_vanish():
    twice = rows({"x": range(2)}).take([0, 1] * 3)
    assert shape(rounds_in_order(twice, 3, shares=NONE_KEPT)) == [
        ("rows 0 to 1", [0, 1]),
        ("rows 2 to 3", [0, 1]),
        ("rows 4 to 5", [0, 1]),
    ]
    # Where the numbers tell rounds apart they are kept.
    found = rounds_in_order(rows({"x": range(4)}).take([3, 1, 1, 0]), 2, shares=NONE_KEPT)
    assert shape(found) == [("rows 3 to 1", [3, 1]), ("rows 1 to 0", [1, 0])]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: rounds_by_column(d, "y"), DataError, r"no column 'y'.*The columns are: x\."),
        (lambda d: rounds_by_column(d, "x", every=Every.DAY, rounds=2), ConfigError, "choose one"),
        (lambda d: rounds_by_column(d, "x", rounds=0), ConfigError, "1 or more"),
        (lambda d: rounds_in_order(d, 0), ConfigError, "1 or more"),
        (lambda d: rounds_in_order(replace(d, labels=None), 2), DataError, "no classes as labels"),
        (lambda d: Shares(test=1.0), ConfigError, "test share is 1.0"),
        (lambda d: Shares(validation=-0.1), ConfigError, "validation share is -0.1"),
    ],
    ids=["column", "both", "no rounds", "no parts", "no labels", "test", "validation"],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(rows({"x": [2020, 2021]}))


# ------------------------------------------------------------------ rows kept back


def test_no_row_is_in_two_parts():
    data = rows({"x": range(60)})
    shares = Shares(test=0.25, validation=0.2, seed=3)
    for one in rounds_in_order(data, 3, shares=shares):
        parts = [numbers(part) for part in (one.train, one.test, one.validation)]
        assert [len(part) for part in parts] == [12, 4, 4]
        assert len({n for part in parts for n in part}) == 20
        # Of every class alike, whatever the draw.
        assert all(2 * sum(part.labels) == len(part) for part in (one.train, one.test))


def test_the_seed_decides_which():
    kept = [
        numbers(rounds_in_order(rows({"x": range(60)}), 1, shares=Shares(0.5, seed=seed))[0].test)
        for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1] != kept[2]


def test_a_class_of_one_row_is_learnt_rather_than_scored():
    found = rounds_by_column(rows({"x": [1, 1]}), "x", shares=Shares(0.9))
    assert shape(found) == [("1", [0, 1])]
    assert found[0].test is None


def test_at_most_so_many_rows():
    one = rounds_in_order(rows({"x": range(60)}), 1, shares=Shares(0.5))[0]
    fewer = limited(one, max_rows=10, max_test_rows=4, seed=0)
    assert (len(fewer.train), len(fewer.test)) == (10, 4)
    assert set(numbers(fewer.test)) < set(numbers(one.test))
    assert limited(replace(one, test=None), max_rows=None, max_test_rows=4, seed=0).test is None


def test_splits_put_together():
    one, two = rows({"x": [1, 2], "y": [1, 2]}), replace(rows({"x": [3]}), split="test")
    both = pooled([one, two])
    assert (both.columns, both.labels, both.indices) == ({"x": (1, 2, 3)}, (0, 1, 0), (0, 1, 2))
    with pytest.raises(DataError, match="other labels each"):
        pooled([one, replace(two, label_names=("a", "b"))])


# ------------------------------------------------------------------ folders


def label_rows(labels, **more):
    return [{"text": f"text {n}", "label": label, **more} for n, label in enumerate(labels)]


def test_a_file_a_round_numbers_by_their_value(tmp_path):
    for name in ("week-10", "week-2", "week-9.5"):
        write_jsonl(tmp_path / f"{name}.jsonl", label_rows(["good", "bad"] * 5))
    (tmp_path / "notes.md").touch()
    found = rounds_from_folder(tmp_path)
    assert [one.name for one in found] == ["week-2", "week-9.5", "week-10"]
    assert [(len(one.train), len(one.test)) for one in found] == [(8, 2)] * 3


def test_files_of_several_kinds(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\nlate,0\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in label_rows([0, 1])))
    found = rounds_from_folder(tmp_path, shares=NONE_KEPT)
    assert [(one.name, len(one.train)) for one in found] == [("a", 2), ("b", 2)]


def test_one_class_new_labels_and_no_rows(tmp_path):
    write_jsonl(tmp_path / "1.jsonl", label_rows(["good"] * 4))
    (tmp_path / "2.jsonl").touch()
    (tmp_path / "3.csv").write_text("text,label\n", encoding="utf-8")
    with gzip.open(tmp_path / "4.jsonl.gz", "wt") as file:
        file.write("\n")
    write_jsonl(tmp_path / "5.jsonl", label_rows(["odd", "good"]))
    found = rounds_from_folder(tmp_path, shares=NONE_KEPT)
    assert [len(one.train) for one in found] == [4, 0, 0, 0, 2]
    names = [one.train.label_names for one in found]
    assert names == [*[("good",)] * 4, ("good", "odd")]


def test_numbers_as_labels_mean_the_same_in_every_file(tmp_path):
    for name, labels in {"a": [0, 1, 2], "b": [2, 2], "c": [1, 2]}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", label_rows(labels))
    found = rounds_from_folder(tmp_path, shares=NONE_KEPT)
    names = [one.train.label_names for one in found]
    assert names == [("0", "1", "2"), ("2",), ("1", "2")]


def test_meta_json_names_the_labels_of_all_files(tmp_path):
    (tmp_path / "meta.json").write_text('{"label_names": ["bad", "fair", "good"]}')
    write_jsonl(tmp_path / "a.jsonl", label_rows([2, 0]))
    assert rounds_from_folder(tmp_path, shares=NONE_KEPT)[0].train.label_names == ("bad", "good")


def test_subfolders_with_their_own_splits(tmp_path):
    write_jsonl(tmp_path / "one" / "train.jsonl", make_rows(10))
    write_jsonl(tmp_path / "one" / "test.jsonl", make_rows(6, 1))
    write_jsonl(tmp_path / "one" / "dev.jsonl", make_rows(4, 2))
    write_jsonl(tmp_path / "two" / "train.jsonl", make_rows(10, 3))
    one, two = rounds_from_folder(tmp_path)
    assert [len(part) for part in (one.train, one.test, one.validation)] == [10, 6, 4]
    assert (len(two.train), len(two.test), two.validation) == (8, 2, None)
    assert one.train.digest == load_rows(tmp_path / "one").digest


def test_a_label_of_the_test_rows_alone_is_one_of_the_round(tmp_path):
    write_jsonl(tmp_path / "one" / "train.jsonl", label_rows(["b", "c"]))
    write_jsonl(tmp_path / "one" / "test.jsonl", label_rows(["a", "c"]))
    one = rounds_from_folder(tmp_path)[0]
    assert one.train.label_names == one.test.label_names == ("b", "c", "a")
    assert (one.train.labels, one.test.labels) == ((0, 1), (2, 1))


def make_nothing(folder):
    folder.mkdir()


def make_data_set(folder):
    write_jsonl(folder / "train.jsonl", make_rows(4))
    write_jsonl(folder / "test.jsonl", make_rows(4))


def make_both(folder):
    write_jsonl(folder / "a.jsonl", make_rows(4))
    write_jsonl(folder / "b" / "train.jsonl", make_rows(4))


def make_round_without_train(folder):
    write_jsonl(folder / "b" / "test.jsonl", make_rows(4))


def make_twins(folder):
    write_jsonl(folder / "a.jsonl", make_rows(4))
    (folder / "a.csv").write_text("text,label\nfine,1\n", encoding="utf-8")


def make_unlabelled(folder):
    write_jsonl(folder / "a.jsonl", [{"text": "fine"}])


def make_targets(folder):
    write_jsonl(folder / "a.jsonl", label_rows([0.5, 1.5]))


def make_empty(folder):
    folder.mkdir()
    (folder / "a.jsonl").touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no folder of rounds"),
        (make_nothing, "neither files of rows nor subfolders"),
        (make_data_set, "one data set with the splits test, train"),
        (make_both, "both files and subfolders"),
        (make_round_without_train, r"no file train\.jsonl.*It has: test"),
        (make_twins, "make a round 'a'"),
        (make_unlabelled, "no classes as labels"),
        (make_targets, "no classes as labels"),
        (make_empty, "No file in .* has rows with labels"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders_that_hold_no_rounds(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        rounds_from_folder(tmp_path / "data")
