"""Rows that were learnt are known under every name, and held-out rows are not called training."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from peft import LoraConfig

from tests.cli.tools import TINY, call, ok, refused
from tests.tasks.words import foreign_checkpoint
from tests.texts import make_base, make_folder, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "1", "--max-length", "16")
FAST = ("--resamples", "20")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held out")
    make_folder(folder / "data")
    write_jsonl(folder / "new.jsonl", make_rows(40, seed=9))
    return folder


@pytest.fixture(scope="module")
def data(place):
    return place / "data"


@pytest.fixture(scope="module")
def trained(place, data):
    """Trained on a folder; it has a training.json and no fit.json."""
    base, out = make_base(place / "base"), place / "trained"
    ok("train", "--model", base, "--data", data, "--output", out, *SMALL)
    return out


@pytest.fixture(scope="module")
def foreign(place):
    """An adapter of others, with two outputs and no training.json."""
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    auto = "AutoModelForSequenceClassification"
    return foreign_checkpoint(place / "foreign", auto, "bert", config, num_labels=2)


@pytest.fixture(scope="module")
def fitted(place, data, foreign):
    """The posterior of that adapter, fitted on a file."""
    out = place / "fitted"
    ok("fit", foreign, "--data", data / "train.jsonl", "--output", out)
    return out


# ------------------------------------------------------------------------------- rows learnt


@pytest.mark.parametrize("options", [(), ("--max-rows", 20)])
def test_rows_of_the_fit_are_refused_where_nobody_recorded_the_training(fitted, data, options):
    message = refused("audit", fitted, "--data", data / "train.jsonl", *options, *FAST)
    assert "trained on" in message
    assert "--data" in message


def test_rows_of_the_fit_are_refused_as_a_split_of_their_folder(fitted, data):
    assert "trained on" in refused("audit", fitted, "--data", data, "--split", "train", *FAST)
    held_out = ("--compare", "temperature", "--held-out", "train")
    assert "trained on" in refused("audit", fitted, "--data", data, *held_out, *FAST)


def test_some_rows_of_a_file_teach_about_all_of_it(place, foreign, data):
    out = place / "fitted-on-few"
    ok("fit", foreign, "--data", data / "train.jsonl", "--max-rows", 12, "--output", out)
    assert "trained on" in refused("audit", out, "--data", data / "train.jsonl", *FAST)


def test_the_file_of_the_split_that_trained_is_refused(trained, data):
    assert "trained on" in refused("audit", trained, "--data", data / "train.jsonl", *FAST)


def test_a_packed_file_of_the_split_that_trained_is_refused(place, data):
    packed = shutil.copytree(data, place / "packed")
    text = (packed / "train.jsonl").read_bytes()
    (packed / "train.jsonl").unlink()
    (packed / "train.jsonl.gz").write_bytes(gzip.compress(text))
    out = place / "trained-on-packed"
    ok("train", "--model", make_base(place / "other"), "--data", packed, "--output", out, *SMALL)
    assert "trained on" in refused("audit", out, "--data", packed / "train.jsonl.gz", *FAST)


def test_a_copy_is_refused_whatever_its_name(trained, data, tmp_path):
    copy = shutil.copyfile(data / "train.jsonl", tmp_path / "test.jsonl")
    assert "trained on" in refused("audit", trained, "--data", copy, *FAST)


def test_the_same_rows_in_another_form_are_refused(trained, data, tmp_path):
    text = (data / "train.jsonl").read_bytes()
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(text))
    message = refused("audit", trained, "--data", tmp_path / "test.jsonl.gz", *FAST)
    assert "trained on" in message


def test_other_rows_are_audited(trained, fitted, place, data):
    for subject in (trained, fitted):
        for options in ((data,), (data, "--split", "validation"), (data / "test.jsonl",),
                        (place / "new.jsonl",)):  # fmt: skip
            assert ok("audit", subject, "--data", *options, *FAST)["rows"] > 0


def test_data_that_are_gone_are_known_by_their_name(place, data, foreign, tmp_path):
    gone = shutil.copytree(data, tmp_path / "gone")
    out = tmp_path / "out"
    ok("fit", foreign, "--data", gone / "train.jsonl", "--output", out)
    shutil.rmtree(gone)
    assert ok("audit", out, "--data", place / "new.jsonl", *FAST)["rows"] == 40
    assert "trained on" in refused("audit", out, "--data", data / "train.jsonl", *FAST)


# ---------------------------------------------------------------------- how rows are called


def test_a_single_file_is_called_by_its_name_alone(trained, data, tmp_path):
    file, out = data / "test.jsonl", tmp_path / "out"
    done = call("predict", trained, "--data", file, "--predictive", "map", "--output", out)
    assert done.exit_code == 0, done.stderr
    assert "train)" not in done.stdout
    assert "test.jsonl, 21 rows" in done.stdout
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["split"] is None
    done = call("audit", trained, "--data", file, *FAST)
    assert done.exit_code == 0, done.stderr
    assert "train)" not in done.stdout
    assert ok("audit", trained, "--data", file, *FAST)["data"] == "test.jsonl"


def test_a_split_of_a_folder_keeps_its_name(trained, data, tmp_path):
    done = call("predict", trained, "--predictive", "map", "--output", tmp_path / "out")
    assert f"{data} (test)" in done.stdout.replace("\n", "")
    assert "test, 21 rows" in done.stdout
    again = ("--predictive", "map", "--split", "test", "--output", tmp_path / "again")
    assert ok("predict", trained, *again)["split"] == "test"


def test_a_single_file_may_still_be_named_as_train(trained, place, tmp_path):
    options = ("--data", place / "new.jsonl", "--split", "train", "--predictive", "map")
    assert ok("predict", trained, *options, "--output", tmp_path / "out")["rows"] == 40


def test_an_audit_of_predictions_calls_every_class_by_its_name(trained, data, tmp_path):
    out = tmp_path / "out"
    ok("predict", trained, "--predictive", "map", "--output", out)
    about = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert about["label_names"] == ["bad", "good"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").open(encoding="utf-8")]
    one = [row for row in rows if row["prediction"] == rows[0]["prediction"]]
    write_jsonl(out / "predictions.jsonl", one)
    said = call("audit", out / "predictions.jsonl", "--output", tmp_path / "report", *FAST)
    assert said.exit_code == 0, said.stderr
    page = (tmp_path / "report" / "audit.json").read_text(encoding="utf-8")
    groups = {s["name"] for s in json.loads(page)["slices"] if s["column"] == "true class"}
    assert groups <= {"bad", "good"}
