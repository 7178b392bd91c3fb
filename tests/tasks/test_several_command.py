"""Several labels a row on the command line, from training to what an audit says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft import BayesianPeft, Bernoulli, bayesianize, estimate
from posthoc_bhpeft.checkpoints import load_adapter, load_tokenizer
from posthoc_bhpeft.data import load_rows, make_loader
from posthoc_bhpeft.training import TrainingRecord, TrainingSettings, train
from tests import texts
from tests.cli.tools import TINY, call, ok, refused
from tests.tasks.labelled import NAMES, make_rows
from tests.tasks.test_commands import lines, probabilities
from tests.tasks.words import write_rows

SMALL = (*TINY, "--epochs", 3, "--batch-size", 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 48, "validation": 12, "test": 15}.items()):
        write_rows(folder / f"{split}.jsonl", make_rows(count, seed))
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, ok("train", "--model", base, "--data", data, "--output", out, *SMALL)


@pytest.fixture(scope="module")
def fitted(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "out"
    ok("fit", trained[0], "--output", out)
    return out


def answers(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and truth, `(N, C)` each."""
    truth = [[one["label"][c] for c in range(len(NAMES))] for one in rows]
    return probabilities(rows).double(), torch.tensor(truth).double()


def test_training_says_what_it_did_and_keeps_it(trained: tuple[Path, Any], data: Path) -> None:
    out, said = trained
    assert said["task"] == "task: several labels a row, each of which applies or not"
    assert said["label_names"] == list(NAMES)
    assert set(said["metrics"]) == {"train_loss", "nll", "f1"}
    assert any(note.startswith("2 labels, ") for note in said["notes"])
    record = TrainingRecord.read(out)
    assert record.multi_label
    assert record.training_rows().train.digest == record.train_digest
    config = load_adapter(out).config
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == dict(enumerate(NAMES))


def test_the_best_epoch_is_kept_and_its_figures_are_right(
    trained: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    out, said = trained
    losses = [one["nll"] for one in TrainingRecord.read(out).history]
    assert said["metrics"]["nll"] == min(losses)
    preds = tmp_path / "preds"
    point = ("--predictive", "map", "--split", "validation")
    measured = ok("predict", out, *point, "--output", preds)["metrics"]
    assert measured["nll"] == pytest.approx(said["metrics"]["nll"], rel=1e-4)
    assert measured["f1"] == pytest.approx(said["metrics"]["f1"])
    p, truth = answers(lines(preds))
    by_hand = -torch.where(truth > 0, p, 1 - p).log().sum(1).mean()
    assert measured["nll"] == pytest.approx(float(by_hand), rel=1e-4)
    tp, said_yes = ((p > 0.5) * truth).sum(), (p > 0.5).sum()
    assert measured["f1"] == pytest.approx(float(2 * tp / (said_yes + truth.sum())))
    # Every label is told by a word, so that one who learns anything is better than a coin.
    assert measured["nll"] < 2 * 0.6931


def test_a_fit_is_that_of_python(trained: tuple[Path, Any], fitted: Path, data: Path) -> None:
    bayes = BayesianPeft.from_pretrained(fitted)
    assert bayes.likelihood == Bernoulli()
    assert bayes.model.config.problem_type == "multi_label_classification"
    tokenizer = load_tokenizer(trained[0])
    rows = load_rows(data, "train", multi_label=None)
    loader = make_loader(rows, tokenizer, batch_size=16, by_length=True)
    direct = bayesianize(load_adapter(trained[0]), loader, likelihood=Bernoulli(), progress=False)
    test = make_loader(load_rows(data, "test", multi_label=None), tokenizer)
    ours, theirs = (one.predict_loader(test, progress=False) for one in (bayes, direct))
    assert ours.probabilities is not None
    assert theirs.probabilities is not None
    assert torch.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)


def test_predictions_of_several_labels(fitted: Path, data: Path, tmp_path: Path) -> None:
    about = ok("predict", fitted, "--output", tmp_path / "preds")
    found = lines(tmp_path / "preds")
    assert about["metrics"]["rows"] == len(found) == 15
    rows = load_rows(data, "test", multi_label=None)
    loader = make_loader(rows, load_tokenizer(fitted))
    expected = BayesianPeft.from_pretrained(fitted).predict_loader(loader, progress=False)
    assert expected.probabilities is not None
    assert torch.allclose(probabilities(found), expected.probabilities, atol=1e-5)
    for row, mine, own in zip(found, rows.labels or (), expected.epistemic, strict=True):
        assert row["label"] == list(mine)
        assert row["names"] == [
            n for n, p in zip(NAMES, row["probabilities"], strict=True) if p > 0.5
        ]
        assert row["epistemic"] == pytest.approx(float(own), abs=1e-5)
        assert sum(row["label_epistemic"]) == pytest.approx(row["epistemic"], abs=1e-5)
        assert row["total"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-5)


def test_review_is_about_one_answer_a_row(fitted: Path, tmp_path: Path) -> None:
    message = refused("predict", fitted, "--review", "--output", tmp_path / "no")
    assert "this model gives a row several labels. Leave it out" in message


def test_rows_without_labels_are_answered_one_by_one(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    # No label and no posterior tell that labels do not exclude each other; the record does.
    new = write_rows(tmp_path / "new.jsonl", [{"text": "the meal was late and kind"}])
    options = ("--predictive", "map", "--output", tmp_path / "preds")
    ok("predict", trained[0], "--data", new, *options)
    (row,) = lines(tmp_path / "preds")
    model, tokenizer = load_adapter(trained[0]), load_tokenizer(trained[0])
    with torch.no_grad():
        expected = model(**tokenizer("the meal was late and kind", return_tensors="pt")).logits
    assert torch.allclose(torch.tensor(row["probabilities"]), expected.sigmoid()[0], atol=1e-5)
    assert "label" not in row


def test_an_estimate_counts_an_answer_a_label(trained: tuple[Path, Any]) -> None:
    found = ok("estimate", trained[0])
    direct = estimate(
        load_adapter(trained[0]), likelihood=Bernoulli(), length=128, n_rows=48, batch_size=16
    )
    assert found["passes"] == [vars(one) for one in direct.passes]


# ------------------------------------------------------------------------------------------ sheets


def sheets(folder: Path, written: str) -> Path:
    """The same rows in csv files: with a column a label, or with labels in one text."""
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 24, "test": 9}.items()):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            sheet = csv.writer(file)
            sheet.writerow(["text", *(NAMES if written == "columns" else ["labels"])])
            for row in make_rows(count, seed):
                marks = [int(name in row["labels"]) for name in NAMES]
                sheet.writerow(
                    [row["text"], *(marks if written == "columns" else ["|".join(row["labels"])])]
                )
    return folder


OPTIONS = {"columns": ("--label-columns", "bad, good"), "texts": ("--label-separator", "|")}


@pytest.mark.parametrize("written", OPTIONS)
def test_sheets(written: str, base: Path, tmp_path: Path) -> None:
    folder, out = sheets(tmp_path / "sheets", written), tmp_path / "out"
    options = ("--model", base, "--data", folder, *SMALL, "--no-early-stopping", "--epochs", 1)
    said = ok("train", *options, "--output", out, *OPTIONS[written])
    assert (said["label_names"], said["train_rows"]) == (list(NAMES), 24)
    # The training recorded how labels are written, so nobody need say it again.
    quick = ("--prior", "fixed", "--precision", 10)
    ok("fit", out, *quick)
    assert ok("predict", out, "--output", tmp_path / "preds")["metrics"]["rows"] == 9
    expected = [[int(n in row["labels"]) for n in NAMES] for row in make_rows(9, 1)]
    assert [row["label"] for row in lines(tmp_path / "preds")] == expected
    # What is said now takes the place of all that was recorded.
    other = refused("predict", out, "--label-column", "text", "--output", tmp_path / "no")
    assert "have a list each" in other
    # Of other rows it is said again.
    other = folder / "test.csv"
    again = ("predict", out, "--data", other, "--output", tmp_path / "again")
    assert ok(*again, *OPTIONS[written])["metrics"]["rows"] == 9
    ok("fit", out, "--data", other, "--output", tmp_path / "refitted", *quick, *OPTIONS[written])


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regression",), "one for each row: several labels"),
        (("--label-columns", "labels"), "two or more different columns"),
        (("--label-columns", "good,bad"), "there is no column 'good', 'bad'"),
        (("--label-separator", ","), "a list already"),
        (("--task", "words"), "cannot tell which column holds the words"),
    ],
)
def test_what_makes_no_sense_is_said_before_any_training(
    options: Any, message: str, base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = refused("train", "--model", base, "--data", data, "--output", out, *options)
    assert message in shown
    assert not out.exists()


def test_a_model_of_one_label_a_row_takes_no_several(
    base: Path, data: Path, tmp_path: Path
) -> None:
    one = texts.make_folder(tmp_path / "one")
    out = tmp_path / "out"
    ok("train", "--model", base, "--data", one, "--output", out, *SMALL, "--max-rows", 16)
    assert not TrainingRecord.read(out).multi_label
    message = refused("predict", out, "--data", data, "--output", tmp_path / "no")
    assert "one label a row take no lists" in message
    named = ("--data", data, "--label-columns", "a,b")
    assert "was not trained for several labels a row" in refused("fit", out, *named)


def test_a_model_of_several_labels_needs_all_of_them(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    options = ("--data", tmp_path / "a.jsonl", "--output", tmp_path / "no")
    write_rows(tmp_path / "a.jsonl", [{"text": "fine", "labels": ["good", "odd"]}])
    message = refused("predict", trained[0], *options, "--predictive", "map")
    assert "row 0 has the label 'odd'. Known: bad, good" in message
    write_rows(tmp_path / "a.jsonl", [{"text": "fine", "labels": "good"}] * 2)
    assert "have a list each" in refused("predict", trained[0], *options, "--predictive", "map")
    path = tmp_path / "a.csv"
    path.write_text("text,good,odd\nfine,1,0\n", encoding="utf-8")
    message = refused(
        "predict", trained[0], "--data", path, *options[2:], "--label-columns", "good,odd"
    )
    assert "Name one column for each of these" in message
    rows = [{"text": "fine", "labels": [0, 1, 0]}, {"text": "late", "labels": [1, 0, 1]}]
    write_rows(tmp_path / "a.jsonl", rows)
    assert "3 classes, the checkpoint was trained for 2" in refused("fit", trained[0], *options)


def test_the_help_says_how_labels_are_written() -> None:
    shown = " ".join(call("train", "--help").stdout.split())
    assert "Where any number of labels may apply to a row, they are a list" in shown


# ------------------------------------------------------------------------------------------ python


def test_training_in_python_records_it_too(base: Path, data: Path, tmp_path: Path) -> None:
    rows = load_rows(data, "train", multi_label=None)
    settings = TrainingSettings(epochs=1, rank=2, bottleneck_size=4, num_virtual_tokens=2)
    result = train(str(base), rows, settings=settings, progress=False)
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["multi_label"]
    assert ok(
        "predict",
        tmp_path / "out",
        "--data",
        data,
        "--predictive",
        "map",
        "--output",
        tmp_path / "p",
    )
