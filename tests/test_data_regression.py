"""Labels read as numbers where regression is asked for, whatever their type."""

from __future__ import annotations

import math

import pytest

from posthoc_bhpeft.data import RowSettings, choose_rows, load_rows
from posthoc_bhpeft.errors import DataError
from tests.texts import write_jsonl


def read(tmp_path, labels, **options):
    rows = [{"text": f"text {n}", "score": label} for n, label in enumerate(labels)]
    return load_rows(write_jsonl(tmp_path / "rows.jsonl", rows), regression=True, **options)


def with_class_names(tmp_path, names):
    """A data set with a hub `ClassLabel`, on disk."""
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (["5.5", "-1", " 10 "], (5.5, -1.0, 10.0)),
        ([True, False], (1.0, 0.0)),
        ([3, 1, 2], (3.0, 1.0, 2.0)),
        ([0.25, -1.0], (0.25, -1.0)),
        (["4", "4"], (4.0, 4.0)),
    ],
    ids=["texts", "booleans", "whole", "floats", "one value"],
)
def test_labels_of_every_type_are_numbers(tmp_path, given, targets):
    data = read(tmp_path, given)
    assert data.regression
    assert data.label_names is None
    assert data.labels == targets
    assert all(type(label) is float for label in data.labels)


def test_known_names_do_not_make_targets_classes(tmp_path):
    assert read(tmp_path, ["2", "10"], label_names=("10", "2")).labels == (2.0, 10.0)


def test_classes_named_by_numbers_are_these_numbers(tmp_path):
    # Its index would be 1 and 0.
    assert load_rows(with_class_names(tmp_path, ["1", "5"]), regression=True).labels == (5.0, 1.0)


def test_classes_named_by_words_are_refused(tmp_path):
    with pytest.raises(DataError, match="'label': row 0 has the label 'good', which is no number"):
        load_rows(with_class_names(tmp_path, ["bad", "good"]), regression=True)


@pytest.mark.parametrize("wrong", ["five", "5,5", "nan", "inf"])
def test_the_first_label_that_is_no_number_is_named(tmp_path, wrong):
    # The row in the file, not among those that are kept.
    with pytest.raises(DataError, match=f"row 2 has the label '{wrong}'.*--label-column"):
        read(tmp_path, ["1", None, wrong, "six"], drop_unlabelled=True)


@pytest.mark.parametrize("given", [[-1, 3], ["-1", "3"]], ids=["whole", "texts"])
def test_minus_one_is_a_target(tmp_path, given):
    data = read(tmp_path, given, drop_unlabelled=True)
    assert (data.labels, data.indices) == ((-1.0, 3.0), (0, 1))


@pytest.mark.parametrize(
    "given", [[-1, None, 2], ["-1", "", "2"], [-1.0, math.nan, 2.0]], ids=["none", "empty", "nan"]
)
def test_only_nothing_is_missing(tmp_path, given):
    with pytest.raises(DataError, match=r"1 of 3 rows have no label \(first: row 1\)"):
        read(tmp_path, given)
    data = read(tmp_path, given, drop_unlabelled=True)
    assert (data.labels, data.indices) == ((-1.0, 2.0), (0, 2))


def test_training_and_validation_rows_are_read_alike(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "score": "5.5"}] * 3)
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "b", "score": "10"}] * 2)
    chosen = choose_rows(RowSettings(str(tmp_path), regression=True))
    assert chosen.train.labels == (5.5, 5.5, 5.5)
    assert chosen.validation.labels == (10.0, 10.0)
