"""`bhpeft audit` of a regression: from training to the report, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from posthoc_bhpeft.audit.regression import REGRESSION, read_real_predictions
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_rows, write_jsonl

FAST = ("--resamples", "20")


def numbered(count, seed):
    """Rows whose number is 0.5 for a bad and 2.5 for a good text, with noise."""
    noise = np.random.default_rng(seed).normal(scale=0.2, size=count)
    rows = zip(make_rows(count, seed=seed), noise, strict=True)
    return [{**row, "label": 2.0 * row["label"] + 0.5 + float(more)} for row, more in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("regression")


@pytest.fixture(scope="module")
def data(folder):
    for seed, (split, count) in enumerate((("train", 48), ("validation", 40), ("test", 120))):
        write_jsonl(folder / "data" / f"{split}.jsonl", numbered(count, seed))
    return folder / "data"


@pytest.fixture(scope="module")
def trained(folder, data):
    base, out = make_base(folder / "base"), folder / "trained"
    ok("train", "--model", base, "--data", data, "--output", out, *TINY, "--epochs", "4")
    return out


@pytest.fixture(scope="module")
def fitted(trained):
    ok("fit", trained, "--output", trained.with_name("fitted"))
    return trained.with_name("fitted")


@pytest.fixture(scope="module")
def audited(fitted, folder):
    """The audit that most tests look at: everything at once."""
    out = folder / "report"
    options = ("--tolerance", "1.5", "--max-error", "0.6", "--max-review", "0.2", "--sets", "0.2")
    return out, ok("audit", fitted, "--output", out, *options, *FAST)


@pytest.fixture(scope="module")
def predicted(fitted, folder):
    ok("predict", fitted, "--output", folder / "predicted")
    return folder / "predicted" / "predictions.jsonl"


def test_the_folder_holds_the_report_the_figures_and_pictures(audited):
    out, result = audited
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "audit.json", "intervals.png", "pit.png"} <= names
    written = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert written == {k: v for k, v in result.items() if k not in ("command", "output")}
    assert "Audit of a regression" in (out / "report.html").read_text(encoding="utf-8")


def test_everything_asked_for_is_there(audited, data):
    result = audited[1]
    assert result["rows"] == 120
    assert result["data"] == f"{data.name}, test"
    assert list(result["figures"]) == ["ours", "MAP"]
    assert list(result["figures"]["ours"]) == [metric.name for metric in REGRESSION]
    assert set(result["differences"]) == {"MAP"}
    goals = [decision["goal"] for decision in result["decisions"]]
    assert goals == [
        "at most 60 % of the automatic predictions off by more than 1.5",
        "at most 20 % of the rows reviewed",
    ]
    assert result["tolerance"] == 1.5
    assert result["conformal"]["alpha"] == 0.2
    assert {one["column"] for one in result["groups"]} >= {"shop", "predicted value"}
    assert set(result["about"]) == {"predictive", "Posterior"}


def test_the_figures_are_those_of_the_predictions(audited, predicted):
    figures, said = audited[1]["figures"]["ours"], read_real_predictions(predicted)
    error = np.sqrt(np.mean((said.mean - said.targets) ** 2))
    assert figures["rmse"]["estimate"] == pytest.approx(error, rel=1e-4)
    again = ok("audit", predicted, *FAST)
    assert again["subject"] == "predictions"
    assert again["figures"]["predictions"]["crps"]["estimate"] == pytest.approx(
        figures["crps"]["estimate"], rel=1e-4
    )


def test_the_noise_of_a_model_without_posterior_is_that_of_held_out_rows(trained, data):
    result = ok("audit", trained, *FAST)
    assert result["subject"] == "trained"
    validation = data / "validation.jsonl"
    out = trained.with_name("on-validation")
    ok("predict", trained, "--predictive", "map", "--data", validation, "--output", out)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    noise = np.mean([(row["prediction"] - row["label"]) ** 2 for row in rows])
    width = result["figures"]["trained"]["interval_width"]["estimate"]
    assert width == pytest.approx(2 * 1.6448536 * np.sqrt(noise), rel=1e-4)
    message = refused("audit", trained, "--held-out", "test")
    assert "noise of a regression" in message
    assert "--held-out: validation." in message
    assert "trained on" in refused("audit", trained, "--held-out", "train")


def test_two_checkpoints_on_the_same_rows(fitted, trained):
    result = ok("audit", fitted, trained, *FAST)
    assert list(result["figures"]) == ["fitted", "trained"]
    # The same weights, so the same means.
    assert result["differences"]["trained"]["rmse"]["estimate"] == pytest.approx(0, abs=1e-6)


def test_rivals_of_a_regression(fitted):
    names = ("map", "dropout", "last-layer", "diagonal")
    options = [part for name in names for part in ("--compare", name)]
    result = ok("audit", fitted, *FAST, *options, "--ensemble", fitted)
    found = list(result["figures"])
    assert found == [
        "ours", "MAP", "MC dropout", "last-layer Laplace", "diagonal Laplace", "ensemble of 2",
    ]  # fmt: skip
    one, both = result["figures"]["MAP"], result["figures"]["ensemble of 2"]
    assert one["gaussian_nll"]["estimate"] == pytest.approx(both["gaussian_nll"]["estimate"])


def test_two_files(predicted, fitted, folder):
    out = folder / "map"
    ok("predict", fitted, "--predictive", "map", "--output", out)
    result = ok("audit", predicted, out / "predictions.jsonl", "--max-rows", "50", *FAST)
    assert result["rows"] == 50
    assert len(result["figures"]) == 2


def test_a_gate_knows_the_figures_of_a_regression(predicted):
    done = call("audit", predicted, "--fail-if", "rmse>0", "--fail-if", "r2.high<-9", *FAST)
    assert done.exit_code == 3
    assert "stopped by --fail-if rmse>0 (rmse is " in done.stdout
    assert "this audit will have gaussian_nll" in refused("audit", predicted, "--fail-if", "ece>1")


def test_the_terminal_shows_figures_promises_and_the_verdict(fitted):
    done = call("audit", fitted, "--tolerance", "1", *FAST)
    assert done.exit_code == 0, done.stderr
    for text in ("Root mean squared error", "R2", "MAP", "off by more than 1", "conformal",
                 "intervals hold"):  # fmt: skip
        assert text in done.stdout
    assert any(level in done.stdout for level in ("Ready", "Use with review", "Do not", "Too lit"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score", "total"), "is a regression, and --score is"),
        (("--outside", "validation"), "--outside"),
        (("--reference", "validation", "--time", "shop"), "--time, --reference"),
        (("--save-review", "share"), "by their predicted deviation"),
        (("--max-error", "0.1"), "--tolerance 0.5"),
        (("--compare", "temperature"), "Known for a regression: map, dropout"),
        (("--tolerance", "-1"), "tolerance is -1"),
        (("--sets", "2"), "0.05 for 5 %"),
        (("--by", "planet"), "the rows have shop"),
    ],
)
def test_options_for_classes_are_refused(fitted, options, message):
    assert message in refused("audit", fitted, *options)


def test_classes_and_numbers_are_not_compared(fitted, predicted, tmp_path):
    row = {"index": 0, "probabilities": [0.5, 0.5], "label": 1}
    classes = write_jsonl(tmp_path / "classes.jsonl", [row] * 30)
    assert "of numbers and" in refused("audit", predicted, classes)
    assert "of classes and" in refused("audit", classes, predicted)
    other = shutil.copytree(fitted, tmp_path / "other")
    record = json.loads((other / "training.json").read_text())
    (other / "training.json").write_text(json.dumps({**record, "label_names": ["a", "b"]}))
    assert "predict a number and ('a', 'b')" in refused("audit", fitted, other)
