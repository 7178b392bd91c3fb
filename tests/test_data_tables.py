"""Rows of csv and tsv are those of the same rows as JSON lines; two files make no split."""

from __future__ import annotations

import gzip

import pytest

from posthoc_bhpeft.data import load_rows, open_source
from posthoc_bhpeft.data.sources import read_split
from posthoc_bhpeft.errors import DataError
from tests.texts import write_jsonl


def column_of(tmp_path, *cells):
    """A column of a csv, as Python has it."""
    path = tmp_path / "rows.csv"
    lines = [f"text {n},{cell}" for n, cell in enumerate(cells)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    values = read_split(open_source(path), "train")["label"][:]
    return [(type(value), value) for value in values]


def typed(*values):
    return [(type(value), value) for value in values]


# --------------------------------------------------------------------------------- types and gaps


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (("1", "", "0"), (1, None, 0)),
        (("-1", "", "2"), (-1, None, 2)),
        (("1.0", "", "0.0"), (1.0, None, 0.0)),
        (("0.5", "", "2"), (0.5, None, 2.0)),
        (("True", "", "False"), (True, None, False)),
        (("yes", "", "no"), ("yes", None, "no")),
        (("", "", ""), (None, None, None)),
    ],
    ids=["whole", "negative", "floats", "mixed", "booleans", "texts", "nothing"],
)
def test_a_gap_changes_no_type(tmp_path, cells, values):
    assert column_of(tmp_path, *cells) == typed(*values)


@pytest.mark.parametrize("word", ["None", "NA", "N/A", "n/a", "null", "nan"])
def test_words_for_nothing_are_texts_among_texts(tmp_path, word):
    assert column_of(tmp_path, "Some", word, "") == typed("Some", word, None)


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "NaN"])
@pytest.mark.parametrize(("cells", "values"), [(("1", "0"), (1, 0)), (("0.5", "2"), (0.5, 2.0))])
def test_words_for_nothing_leave_numbers_numbers(tmp_path, word, cells, values):
    assert column_of(tmp_path, *cells, word, "") == typed(*values, None, None)


def test_a_column_of_nothing_but_such_words_is_text(tmp_path):
    assert column_of(tmp_path, "NA", "NA") == typed("NA", "NA")


def test_another_column_stays_text_where_one_holds_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label,size\nNA,None,1\nnull,Some,NA\n", encoding="utf-8")
    data = load_rows(path)
    assert data.texts == ("NA", "null")
    assert data.label_names == ("None", "Some")
    assert data.columns["size"] == (1, None)


def test_a_type_is_that_of_all_rows(tmp_path):
    """Readers that go by the first rows fail at the first text."""
    cells = [*["1"] * 12_000, "two"]
    assert column_of(tmp_path, *cells)[-2:] == typed("1", "two")


# --------------------------------------------------------------------------------- as JSON lines


def test_classes_with_a_gap_are_classes_as_from_jsonl(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,1\nb,\nc,0\nd,2\n", encoding="utf-8")
    rows = [{"text": t, "label": v} for t, v in zip("abcd", (1, None, 0, 2), strict=True)]
    for path in (tmp_path / "rows.csv", write_jsonl(tmp_path / "rows.jsonl", rows)):
        data = load_rows(path, drop_unlabelled=True)
        assert not data.regression
        assert (data.labels, data.indices) == ((1, 0, 2), (0, 2, 3))
        assert data.label_names == ("0", "1", "2")


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv.gz", ","), ("rows.tsv.gz", "\t")])
def test_gzipped_tables_are_read(tmp_path, name, delimiter):
    with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("text|label\na|None\nb|x\n".replace("|", delimiter))
    assert load_rows(tmp_path / name).label_names == ("None", "x")


def test_a_damaged_table_names_the_line(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,1\nb,0,9\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3"):
        load_rows(tmp_path / "rows.csv")


# --------------------------------------------------------------------------- one file for a split

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.v1.jsonl", "train.v2.jsonl"),
        ("train.csv", "train.jsonl"),
        ("test.jsonl", "test.jsonl.gz"),
    ],
)
def test_two_files_of_a_split_are_refused(tmp_path, one, other):
    for name in ("validation.jsonl", one, other):
        write_jsonl(tmp_path / name, ROWS)
    message = f"the split '{one.split('.')[0]}'.*: {one} and {other}. Put their rows into one"
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_files_that_a_system_leaves_behind_are_no_splits(tmp_path):
    for name in ("train.jsonl", "._train.jsonl", "._test.jsonl"):
        write_jsonl(tmp_path / name, ROWS)
    assert open_source(tmp_path).splits == ("train",)


def test_parts_of_a_split_in_a_folder_of_the_hub_are_one_split(tmp_path, monkeypatch):
    """Such folders are read by `datasets`, which knows which files belong together."""
    import datasets

    (tmp_path / "data").mkdir()
    for part, row in enumerate(ROWS):
        name = f"data/train-{part:05d}-of-00002.parquet"
        datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / name))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_rows(tmp_path).texts == ("a", "b")
