"""Which output a label stands for: what the training recorded, however few classes a file has."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig

from tests.cli.tools import TINY, ok, refused
from tests.tasks.words import foreign_checkpoint
from tests.texts import make_base, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "1", "--max-length", "16")


def rows_named(names):
    """Rows with these classes by turns."""
    return [
        {**row, "label": names[place % len(names)]} for place, row in enumerate(make_rows(36, 1))
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three classes whose names look as if nobody had given them."""
    folder = tmp_path_factory.mktemp("named as nobody would")
    names = [f"LABEL_{n}" for n in range(3)]
    write_jsonl(folder / "data" / "train.jsonl", rows_named(names))
    write_jsonl(folder / "data" / "test.jsonl", rows_named(names[1:]))
    base, out = make_base(folder / "base"), folder / "out"
    ok("train", "--model", base, "--data", folder / "data", "--output", out, *SMALL)
    ok("fit", out)
    return out


@pytest.mark.parametrize("kind", ["fitted", "map"])
def test_names_of_the_training_count_whatever_they_look_like(trained, tmp_path, kind):
    ok("predict", trained, "--predictive", kind, "--output", tmp_path / "out")
    text = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["label"] for row in rows] == [1, 2] * 18
    assert all(row["name"] == f"LABEL_{row['prediction']}" for row in rows)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """An adapter of others with three outputs, of which nobody said what they are."""
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    folder = tmp_path_factory.mktemp("foreign")
    return foreign_checkpoint(
        folder, "AutoModelForSequenceClassification", "bert", config, num_labels=3
    )


@pytest.mark.parametrize("names", [[1, 2], ["neg", "pos"]])
def test_fewer_classes_than_unnamed_outputs_are_no_guess(foreign, tmp_path, names):
    data = write_jsonl(tmp_path / "rows.jsonl", rows_named(names))
    message = refused("fit", foreign, "--data", data, "--output", tmp_path / "out")
    assert "2 of the 3 classes" in message
    assert "meta.json" in message


def test_a_file_that_names_them_all_says_which_output_is_which(foreign, tmp_path):
    write_jsonl(tmp_path / "data" / "train.jsonl", rows_named(["neg", "pos"]))
    (tmp_path / "data" / "meta.json").write_text('{"label_names": ["pos", "mid", "neg"]}')
    out = tmp_path / "out"
    ok("fit", foreign, "--data", tmp_path / "data", "--output", out)
    ok("predict", out, "--data", tmp_path / "data", "--split", "train", "-o", tmp_path / "said")
    first = (tmp_path / "said" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["label"] == 2
