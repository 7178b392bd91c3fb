"""Predictions from files: every shape that is read, and what is said about all others."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit import Predictions, read_predictions
from posthoc_bhpeft.cli.predictions import prediction_rows, write_rows
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.predictive import Prediction

P = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25]]
NAMES = ("bad", "fair", "good")
ROWS = [{"probabilities": p, "label": y} for p, y in zip(P, (0, 2, 1), strict=True)]
WIDE = [
    {**{f"p_{name}": v for name, v in zip(NAMES, p, strict=True)}, "label": NAMES[y]}
    for p, y in zip(P, (0, 2, 1), strict=True)
]

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Rows, delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def array(path: Path, rows: Rows, **further: Any) -> Path:
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    np.savez(path, **columns, **further)
    return path


def parquet(path: Path, rows: Rows) -> Path:
    import pandas

    pandas.DataFrame(rows).to_parquet(path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "x.jsonl": jsonl,
    "x.json": lambda path, rows: (path.write_text(json.dumps(rows)), path)[1],
    "x.csv": table,
    "x.tsv": lambda path, rows: table(path, rows, "\t"),
    "x.npz": array,
    "x.parquet": parquet,
}


def read(folder: Path, rows: Rows, name: str = "x.jsonl", **options: Any) -> Predictions:
    return read_predictions(WRITERS[name](folder / name, rows), **options)


def refused(folder: Path, rows: Rows, name: str = "x.jsonl") -> str:
    with pytest.raises(DataError) as caught:
        read(folder, rows, name)
    assert name in str(caught.value), "the file is named"
    return str(caught.value)


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("rows", [ROWS, WIDE], ids=["lists", "columns"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_form_in_every_kind_of_file(tmp_path: Path, name: str, rows: Rows) -> None:
    found = read(tmp_path, rows, name)
    np.testing.assert_allclose(found.probabilities, P)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 1]
    assert found.label_names == (NAMES if rows is WIDE else None)
    assert found.scores == {}
    assert found.texts is None
    assert found.columns == {}
    assert found.about == {"Predictions": f"Read from {name}."}


def test_a_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    np.testing.assert_allclose(read_predictions(path).probabilities, P)


def test_what_predict_writes(tmp_path: Path) -> None:
    p = torch.tensor(P, dtype=torch.float64)
    doubt = -(p * p.log()).sum(1)
    made = Prediction(p.log(), p, None, doubt, 0.75 * doubt, 0.25 * doubt, torch.tensor([0, 2, 1]))
    strange = torch.tensor([0.5, 1.5, 9.0])
    made = replace(made, review=torch.tensor([True, False, True]), sets=p > 0.2, novelty=strange)
    rows = TextData(texts=("a", "b", "c"), labels=(0, 2, 1), label_names=NAMES)
    path = tmp_path / "predictions.jsonl"
    write_rows(path, prediction_rows(made, rows, NAMES))
    found = read_predictions(path)
    np.testing.assert_allclose(found.probabilities, P, atol=1e-6)
    assert found.label_names == NAMES
    assert list(found.scores) == ["total", "aleatoric", "epistemic", "novelty"]
    np.testing.assert_allclose(found.score("novelty"), strange)
    np.testing.assert_allclose(found.score("epistemic"), 0.25 * doubt.numpy(), atol=1e-6)
    # What predict says beside its probabilities is nothing to slice by.
    assert found.columns == {}


def test_classes_are_numbers_where_one_was_never_predicted(tmp_path: Path) -> None:
    rows = [{"index": 0, "prediction": 0, "name": "bad", **ROWS[0]}]
    assert read(tmp_path, rows).names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("about", "names"),
    [
        ({"label_names": NAMES}, NAMES),
        ({"label_names": ["good", "fair", "bad"]}, ("0", "1", "2")),
        ({"label_names": NAMES[:2]}, ("0", "1", "2")),
        ({"label_names": None}, ("0", "1", "2")),
        ([1], ("0", "1", "2")),
    ],
)
def test_names_are_those_beside_the_file_if_they_fit(
    tmp_path: Path, about: Any, names: tuple[str, ...]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(about), encoding="utf-8")
    rows = [{"index": 0, "prediction": 0, "name": "bad", **ROWS[0]}]
    assert read(tmp_path, rows).names == names


def test_what_lies_beside_a_file_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("no JSON", encoding="utf-8")
    rows = [{"index": 0, "prediction": 0, "name": "bad", **ROWS[0]}]
    assert read(tmp_path, rows).names == ("0", "1", "2")


def test_predict_counts_classes_that_are_called_by_numbers(tmp_path: Path) -> None:
    told = [{"index": n, "prediction": n, "name": str(n + 1)} for n in range(3)]
    found = read(tmp_path, [{**one, **row} for one, row in zip(told, ROWS, strict=True)])
    assert found.names == ("1", "2", "3")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 1]


def test_everything_else_is_a_column(tmp_path: Path) -> None:
    extra = {"text": None, "shop": "north", "index": 7, "p_value": 0.2, "total": 0.5}
    found = read(tmp_path, [{**row, **extra} for row in ROWS])
    assert found.texts == ("", "", "")
    assert set(found.columns) == {"shop", "index", "p_value"}
    assert found.columns["shop"] == ("north",) * 3
    assert found.scores["total"].tolist() == [0.5] * 3


@pytest.mark.parametrize("form", ["p_{}", "p.{}", "prob_{}", "prob:{}", "probability_{}"])
def test_columns_of_classes_may_be_called_in_several_ways(tmp_path: Path, form: str) -> None:
    rows: Rows = [{form.format(n): v for n, v in zip("ab", (0.9, 0.1), strict=True)}]
    found = read(tmp_path, rows)
    assert found.label_names == ("a", "b")
    assert found.columns == {}


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "labels", [("bad", "good", "fair"), (0, 2, 1), (0.0, 2.0, 1.0)], ids=["names", "int", "float"]
)
def test_labels_are_names_or_numbers(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    rows = [{**row, "label": y} for row, y in zip(WIDE, labels, strict=True)]
    found = read(tmp_path, rows).labels
    assert found is not None
    assert found.tolist() == [0, 2, 1]


def test_classes_called_by_numbers_are_names_and_no_positions(tmp_path: Path) -> None:
    rows: Rows = [{"p_1": 0.2, "p_2": 0.8, "label": 2}, {"p_1": 0.2, "p_2": 0.8, "label": 1}]
    found = read(tmp_path, rows).labels
    assert found is not None
    assert found.tolist() == [1, 0]
    assert "label '0' is none of the classes: 1, 2" in refused(tmp_path, [{**rows[0], "label": 0}])


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.npz"])
@pytest.mark.parametrize(
    "form", [float, int, str, "{:.1f}".format], ids=["4.0", "4", "'4'", "'4.0'"]
)
def test_stars_are_one_class_however_they_are_written(
    tmp_path: Path, form: Callable[[int], Any], name: str
) -> None:
    """Columns p_1.0 to p_5.0, as a table of floats has them."""
    stars = {f"p_{star}.0": 0.6 if star == 4 else 0.1 for star in range(1, 6)}
    found = read(tmp_path, [{**stars, "label": form(star)} for star in (4, 1, 5)], name)
    assert found.label_names == ("1.0", "2.0", "3.0", "4.0", "5.0")
    assert found.labels is not None
    assert found.labels.tolist() == [3, 0, 4]
    assert "label '0' is none of the classes: 1, 2" in refused(
        tmp_path, [{**stars, "label": form(star)} for star in (4, 0)], name
    )


def test_grades_that_are_no_whole_numbers(tmp_path: Path) -> None:
    rows: Rows = [{"p_1.5": 0.2, "p_2.0": 0.8, "label": y} for y in (2.0, 1.5, "1.5", 2)]
    found = read(tmp_path, rows[:2]).labels
    assert found is not None
    assert found.tolist() == [1, 0]
    assert "label '1' is none of the classes: 1.5, 2" in refused(
        tmp_path, [{**rows[0], "label": 1}]
    )


def test_two_classes_that_are_one_number(tmp_path: Path) -> None:
    rows: Rows = [{"p_1": 0.2, "p_1.0": 0.8}]
    assert read(tmp_path, rows).label_names == ("1", "1.0")
    said = refused(tmp_path, [{**rows[0], "label": 1}])
    assert "classes '1' and '1.0' are the same number" in said


def test_classes_called_minus_one_and_one(tmp_path: Path) -> None:
    rows: Rows = [{"p_-1": 0.2, "p_1": 0.8, "label": y} for y in (-1, 1)]
    found = read(tmp_path, rows).labels
    assert found is not None
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_yes_and_no(tmp_path: Path, name: str) -> None:
    rows: Rows = [{"p_False": 0.2, "p_True": 0.8, "label": y} for y in (True, False)]
    found = read(tmp_path, rows, name).labels
    assert found is not None
    assert found.tolist() == [1, 0]


def test_names_in_an_npz(tmp_path: Path) -> None:
    rows = [{**row, "label": NAMES[row["label"]]} for row in ROWS]
    found = read_predictions(array(tmp_path / "x.npz", rows, label_names=np.array(NAMES)))
    assert found.label_names == NAMES
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 1]
    with pytest.raises(DataError, match="label_names has 2 names for 3 classes"):
        read_predictions(array(tmp_path / "y.npz", ROWS, label_names=np.array(["a", "b"])))


def test_labels_may_be_missing_or_left_unread(tmp_path: Path) -> None:
    assert read(tmp_path, [{"probabilities": p} for p in P]).labels is None
    assert read(tmp_path, [{"probabilities": p, "label": None} for p in P]).labels is None
    strange = [{**row, "label": "from elsewhere"} for row in WIDE]
    assert read(tmp_path, strange, labels=False).labels is None


def test_labels_as_a_column_called_labels(tmp_path: Path) -> None:
    found = read(tmp_path, [{"probabilities": p, "labels": 1} for p in P])
    assert found.labels is not None
    assert found.labels.tolist() == [1, 1, 1]


# --------------------------------------------------------------------------------------- bad files


def changed(place: int, **values: Any) -> Rows:
    return [{**row, **values} if n == place else row for n, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(1, probabilities=[0.5, 0.5, 0.5]), "sum to 1 .. 1.5"),
        (changed(1, probabilities=[1.5, -0.25, -0.25]), "smallest value of -0.25"),
        (changed(1, probabilities=[0.5, 0.5]), "as many in each row"),
        (changed(1, probabilities=[0.5, "x", 0.5]), "numbers"),
        (changed(1, probabilities=None), "numbers"),
        (changed(1, probabilities=[0.5, None, 0.5]), "NaN"),
        ([{"probabilities": [1.0], "label": 0}], "two classes or more"),
        ([{"probabilities": 0.3, "label": 0}], "stack"),
        ([{"p_yes": 0.3, "label": 0}], "no probabilities, only p_yes, label"),
        ([{"text": "a", "label": 0}], "no probabilities, only text, label"),
        ([{"probabilities": None, "label": 0.5}], "predictions of a regression"),
        (changed(1, label=3), "'3' is none of the classes: 0, 1, 2"),
        (changed(1, label=0.5), "'0.5' is none of the classes"),
        (changed(1, label=-1), "1 of 3 rows have no label (first: row 1)"),
        (changed(2, label=None), "1 of 3 rows have no label (first: row 2)"),
        ([{**row, "label": "bad"} for row in ROWS], "Give columns p_CLASS"),
        ([{**row, "label": "worse"} for row in WIDE], "'worse' is none of the classes: bad, fair"),
        ([{**row, "total": None} for row in ROWS], "3 of 3 uncertainties are NaN"),
        ([{**row, "total": "much"} for row in ROWS], "must be numbers"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: Rows, message: str) -> None:
    assert message in refused(tmp_path, rows)


def test_logits_are_told_what_they_need(tmp_path: Path) -> None:
    rows: Rows = [{"probabilities": [2.0, -1.0, 0.3], "label": 0}]
    assert "Logits need a softmax" in refused(tmp_path, rows)


def test_text_that_is_no_list(tmp_path: Path) -> None:
    rows: Rows = [{"probabilities": "0.5 0.5", "label": 0}]
    assert "'0.5 0.5' are no list of numbers" in refused(tmp_path, rows, "x.csv")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.npz", "x.parquet"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=name):
        read_predictions(tmp_path / name)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.npz", "x.parquet"])
def test_a_file_that_was_cut_off(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, ROWS)
    path.write_bytes(path.read_bytes()[:-25])
    with pytest.raises(DataError, match=name):
        read_predictions(path)


def test_a_table_with_no_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("p_a,p_b,label\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.csv"):
        read_predictions(tmp_path / "x.csv")


def test_arrays_of_several_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", probabilities=np.array(P), label=np.array([0, 1]))
    with pytest.raises(DataError, match=r"x\.npz.*they must be \(3,\)"):
        read_predictions(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", probabilities=np.array(P), shop=np.array(["a", "b"]))
    with pytest.raises(DataError, match="column 'shop' has 2 entries for 3 rows"):
        read_predictions(tmp_path / "x.npz")


def test_an_array_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", probabilities=np.array([[0.5, 0.5], None], dtype=object))
    with pytest.raises(DataError, match="as npz"):
        read_predictions(tmp_path / "x.npz")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No file or folder"):
        read_predictions(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="as npz"):
        read_predictions(tmp_path / "nothing.npz")
    jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="is not one file of predictions"):
        read_predictions(tmp_path)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "x.jsonl", ROWS)
    array(tmp_path / "x.npz", ROWS)
    assert len(read_predictions("~/x.jsonl")) == len(read_predictions("~/x.npz")) == 3
