"""Several labels a row: read from lists, texts and columns, made into batches, and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft.data import RowSettings, choose_rows, load_rows, make_loader
from posthoc_bhpeft.errors import DataError
from tests.tasks.words import tokenizer, write_rows

NAMED = [["hot", "lit"], [], ["lit"]]
MARKS = ((1, 1), (0, 0), (0, 1))


def read(tmp_path: Path, labels: list[Any], meta: Any = None, **settings: Any) -> Any:
    rows = [{"text": "ice", "label": one} for one in labels]
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    if meta is not None:
        (tmp_path / "rows" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return load_rows(tmp_path / "rows", **settings)


def sheet(path: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


# ------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (NAMED, None, MARKS),
        (NAMED, ["hot", "lit"], MARKS),
        (NAMED, ["lit", "hot"], ((1, 1), (0, 0), (1, 0))),
        ([[0, 1], [], [1]], ["hot", "lit"], MARKS),
        ([[0, 1], [], [1]], None, MARKS),
        ([[0, 1, 2], [], [1]], None, ((1, 1, 1), (0, 0, 0), (0, 1, 0))),
        ([[1, 1], [0, 0], [0, 1]], None, MARKS),
        ([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]], None, MARKS),
        ([[True, True], [False, False], [False, True]], None, MARKS),
        ([[1, 1], [0, 0], [0, 1]], ["hot", "lit"], MARKS),
        ([[0, 1], [1, 0], [1, 1]], ["hot", "lit", "dry"], ((1, 1, 0), (1, 1, 0), (0, 1, 0))),
        ([[1999, 2001], [], [2001]], ["1999", "2001"], MARKS),
        ([["hot", "lit", "hot"], [], ["lit"]], None, MARKS),
        ([[], [], []], ["hot", "lit"], ((0, 0),) * 3),
    ],
)
def test_lists(tmp_path: Path, labels: Any, names: Any, expected: Any) -> None:
    data = read(tmp_path, labels, multi_label=None, label_names=names)
    assert data.multi_label
    assert data.labels == expected
    assert data.num_outputs == len(expected[0])
    assert not data.regression


def test_what_was_read_is_said(tmp_path: Path) -> None:
    data = read(tmp_path, NAMED, multi_label=None)
    assert data.label_names == ("hot", "lit")
    assert data.notes[1] == "2 labels, 1.00 a row, 1 rows with none: hot, lit"


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([[0, 2], [3]], None, "classes are 0, 2, 3, and nothing says how many classes there are"),
        ([[1, 2], [3]], None, "nothing says how many classes"),
        ([[], []], None, "all are empty, and nothing says how many classes"),
        ([["hot"], ["wet"]], ["hot", "lit"], "row 1 has the label 'wet'. Known: hot, lit"),
        ([[0, 2], [1]], ["hot", "lit"], "row 0 has the label 2. Known: hot, lit"),
        ([[0], [1]], None, "one label only, 0, which applies or not: two classes"),
        ([["hot"], []], None, "one label only, hot"),
        ([["hot"], [None]], None, "row 1 has None among its labels"),
        ([[["hot"]], [["lit"]]], None, r"row 0 has \['hot'\] among its labels"),
        (["hot", "lit"], None, "row 0 has the label 'hot'; .*--label-separator"),
        ([0, 1], None, "row 0 has the label 0; .*--label-columns"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, labels: Any, names: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, labels, multi_label=True, label_names=names)


def test_one_class_a_row_is_not_several(tmp_path: Path) -> None:
    assert not read(tmp_path, [0, 1, 0], multi_label=None).multi_label
    for settings in ({}, {"multi_label": None, "regression": True}):
        with pytest.raises(DataError, match="one for each row: several labels"):
            read(tmp_path, NAMED, **settings)


def test_a_row_without_a_list_has_no_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 4 rows have no label"):
        read(tmp_path, [*NAMED, None], multi_label=None)
    data = read(tmp_path, [None, *NAMED], multi_label=None, drop_unlabelled=True)
    assert (data.labels, data.indices) == (MARKS, (1, 2, 3))


def test_names_of_classes_come_with_a_sequence_of_them(tmp_path: Path) -> None:
    import datasets

    labels = datasets.Sequence(datasets.ClassLabel(names=["joy", "fear", "awe"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": labels})
    rows = {"text": ["a", "b", "c"], "labels": [[2, 0], [], [1]]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "hub"))
    data = load_rows(tmp_path / "hub", multi_label=None)
    assert data.label_names == ("joy", "fear", "awe")
    assert data.labels == ((1, 0, 1), (0, 0, 0), (0, 1, 0))
    again = load_rows(tmp_path / "hub", multi_label=None, label_names=("fear", "awe", "joy"))
    assert again.labels == ((0, 1, 1), (0, 0, 0), (1, 0, 0))
    with pytest.raises(DataError, match="row 2 has the label 'fear'"):
        load_rows(tmp_path / "hub", multi_label=None, label_names=("awe", "joy"))


# ----------------------------------------------------------------------------- texts and columns


def test_a_text_is_cut_at_the_separator(tmp_path: Path) -> None:
    path = sheet(
        tmp_path / "a.csv", ["text", "label"], [["a", "lit| hot"], ["b", ""], ["c", "lit"]]
    )
    assert load_rows(path, label_separator="|").labels == MARKS
    assert load_rows(path, label_separator="|").label_names == ("hot", "lit")
    with pytest.raises(DataError, match="1 of 3 rows have no label"):
        load_rows(path)


def test_numbers_in_a_text_are_numbers_of_classes(tmp_path: Path) -> None:
    rows = [["a", "0,10"], ["b", ""], ["c", "2"]]
    names = tuple("abcdefghijk")
    path = sheet(tmp_path / "a.csv", ["text", "label"], rows)
    data = load_rows(path, label_separator=",", label_names=names)
    assert [sum(row) for row in data.labels or ()] == [2, 0, 1]
    assert (data.labels or ())[0][10] == 1
    # Where no row has two, the column is one of numbers, with a gap even of floats.
    single = sheet(tmp_path / "b.csv", ["text", "label"], [["a", 1], ["b", ""], ["c", 0]])
    assert load_rows(single, label_separator=",").labels == ((0, 1), (0, 0), (1, 0))


COLUMNS = ["id", "comment_text", "hot", "lit"]
CELLS = [["x", "a", 1, 1], ["y", "b", 0, 0], ["z", "c", 0, 1]]


def test_a_column_for_each_label(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.csv", COLUMNS, CELLS)
    data = load_rows(path, label_columns=("hot", "lit"))
    assert data.texts == ("a", "b", "c")
    assert (data.labels, data.label_names) == (MARKS, ("hot", "lit"))
    assert set(data.columns) == {"id"}
    assert data.notes[0] == "text from 'comment_text', label from 2 columns"
    # A model that was trained with another order keeps its own.
    other = load_rows(path, label_columns=("hot", "lit"), label_names=("lit", "hot"))
    assert other.labels == ((1, 1), (0, 0), (1, 0))


def test_rows_whose_columns_are_all_missing_have_no_label(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.csv", COLUMNS, [*CELLS, ["w", "d", -1, -1]])
    with pytest.raises(DataError, match="column 'hot, lit': 1 of 4 rows have no label"):
        load_rows(path, label_columns=("hot", "lit"))
    data = load_rows(path, label_columns=("hot", "lit"), drop_unlabelled=True)
    assert data.labels == MARKS


def test_labels_that_are_not_wanted_are_not_looked_at(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.csv", COLUMNS, CELLS)
    assert load_rows(path, label_columns=("no", "where"), ignore_labels=True).labels is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_columns": ("hot", "wet")}, "no column 'wet'.*: id, comment_text, hot, lit"),
        ({"label_columns": ("hot",)}, "two or more different columns, got hot"),
        ({"label_columns": ("hot", "hot")}, "two or more different columns, got hot, hot"),
        ({"label_columns": ("id", "lit")}, "row 0 has 'x' in the column 'id'"),
        ({"label_columns": ("hot", "lit"), "regression": True}, "leave out --regression"),
        ({"label_columns": ("hot", "lit"), "choices": True}, "leave out --task choices"),
        ({"label_columns": ("hot", "lit"), "words": True}, "leave out --task words"),
        ({"label_columns": ("hot", "lit"), "label_column": "hot"}, "leave out --label-column"),
        ({"label_columns": ("hot", "lit"), "label_separator": ","}, "out --label-separator"),
        ({"label_columns": ("hot", "lit"), "label_names": ("hot", "wet", "lit")}, "hot, wet, lit"),
        ({"label_separator": "", "label_column": "id"}, "is empty. Name what stands between"),
        ({"label_separator": ",", "regression": True}, "--label-separator .* out --regression"),
    ],
)
def test_columns_and_texts_that_make_no_sense(tmp_path: Path, settings: Any, message: str) -> None:
    path = sheet(tmp_path / "a.csv", COLUMNS, CELLS)
    with pytest.raises(DataError, match=message):
        load_rows(path, **settings)


def test_lists_are_not_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a list already\. Leave out --label-separator"):
        read(tmp_path, NAMED, label_separator=",")


def test_of_choices_one_is_right(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "label": [n]} for n in (0, 1)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"choices, --regression.* take no lists"):
        load_rows(path, choices=True, multi_label=None)


def test_labels_of_a_text_that_is_cut_into_words_too(tmp_path: Path) -> None:
    rows = [{"text": "a b c", "tokens": ["a", "b", "c"], "labels": one} for one in NAMED]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="labels of the whole text: --task text"):
        load_rows(path, words=None, multi_label=None)
    assert load_rows(path, words=False, multi_label=None).labels == MARKS


# --------------------------------------------------------------------------------------- from rows


def test_both_parts_of_a_training_have_the_same_labels(tmp_path: Path) -> None:
    def rows(labels: list[Any]) -> list[dict[str, Any]]:
        return [{"text": "ice", "label": one} for one in labels]

    write_rows(tmp_path / "train.jsonl", rows(NAMED * 3))
    write_rows(tmp_path / "validation.jsonl", rows([[], ["lit"]]))
    settings = RowSettings(str(tmp_path), multi_label=None)
    chosen = choose_rows(settings)
    assert chosen.validation is not None
    assert chosen.validation.labels == ((0, 0), (0, 1))
    write_rows(tmp_path / "validation.jsonl", rows([[], []]))
    assert choose_rows(settings).train.label_names == ("hot", "lit")
    (tmp_path / "meta.json").write_text('{"label_names": ["hot", "lit"]}', encoding="utf-8")
    write_rows(tmp_path / "train.jsonl", rows([[], []]))
    with pytest.raises(DataError, match="no label applies to any row"):
        choose_rows(settings)


def test_columns_are_found_again_from_a_record() -> None:
    settings = RowSettings("a.csv", label_columns=("hot", "lit"))
    recorded = json.loads(json.dumps(vars(settings)))
    assert RowSettings(**recorded) == settings


def test_batches_hold_targets_of_a_binary_cross_entropy(tmp_path: Path) -> None:
    data = read(tmp_path, NAMED, multi_label=None)
    (batch,) = make_loader(data, tokenizer())
    assert torch.equal(batch["labels"], torch.tensor(MARKS, dtype=torch.float32))
