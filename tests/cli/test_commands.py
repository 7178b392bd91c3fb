"""The commands end to end on a tiny model: what they write, print, and how they end."""

from __future__ import annotations

import json

import pytest
import torch

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.data import load_rows, make_loader
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder, make_rows, write_jsonl

SMALL = (*TINY, "--epochs", "2")


def lines(folder):
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    ok("train", "--model", base, "--data", data, "--output", out, "--max-rows", 48, *SMALL)
    return out


@pytest.fixture(scope="module")
def fitted(trained):
    out = trained.with_name("fitted")
    ok("fit", trained, "--output", out)
    return out


@pytest.fixture(scope="module")
def predicted(fitted):
    out = fitted.with_name("predictions")
    return out, ok("predict", fitted, "--output", out)


# ---------------------------------------------------------------------------------- the main path


def test_a_row_of_predictions_holds_what_it_must(predicted):
    rows = lines(predicted[0])
    assert [row["index"] for row in rows] == list(range(21))
    for row in rows:
        assert {"label", "prediction", "total", "aleatoric", "epistemic"} <= set(row)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["total"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-5)
        assert row["prediction"] == row["probabilities"].index(max(row["probabilities"]))
        assert row["name"] == ("bad", "good")[row["prediction"]]


def test_predictions_stand_in_the_order_of_the_data(predicted, fitted, data):
    # Batches are made by length, so this is where a wrong order would show.
    bayes, rows = BayesianPeft.from_pretrained(fitted), load_rows(data, "test")
    loader = make_loader(rows, load_tokenizer(fitted), batch_size=1)
    expected = bayes.predict_loader(loader, progress=False).probabilities
    written = torch.tensor([row["probabilities"] for row in lines(predicted[0])])
    torch.testing.assert_close(written, expected, rtol=0, atol=1e-5)


def test_labels_stand_beside_their_predictions(predicted, data):
    assert [row["label"] for row in lines(predicted[0])] == list(load_rows(data, "test").labels)


def test_the_metrics_are_those_of_the_predictions(predicted):
    rows = lines(predicted[0])
    right = [row["label"] == row["prediction"] for row in rows]
    assert predicted[1]["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))


def test_fit_uses_the_rows_of_the_training(trained, fitted):
    record = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    fit = json.loads((fitted / "fit.json").read_text(encoding="utf-8"))
    assert fit["digest"] == record["train_digest"]
    assert fit["rows"] == 48


def test_fit_goes_into_the_checkpoint_unless_told_otherwise(trained, tmp_path):
    import shutil

    copy = shutil.copytree(trained, tmp_path / "copy")
    ok("fit", copy, "--max-rows", 8)
    assert BayesianPeft.from_pretrained(copy).posterior.n_rows == 8


def test_the_data_may_be_named_again(trained, data, tmp_path):
    result = ok("fit", trained, "--data", data, "--output", tmp_path / "out")
    assert result["rows"] == 48


@pytest.mark.parametrize("kind", ["linearised", "sampled", "map"])
def test_every_predictive(fitted, tmp_path, kind):
    ok("predict", fitted, "--predictive", kind, "--output", tmp_path / "out")
    doubt = sum(row["epistemic"] for row in lines(tmp_path / "out"))
    assert (doubt == 0) == (kind == "map")


def test_the_trained_weights_predict_without_a_posterior(trained, fitted, tmp_path):
    for folder, out in ((trained, tmp_path / "a"), (fitted, tmp_path / "b")):
        ok("predict", folder, "--predictive", "map", "--output", out)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize(
    "options",
    [
        ("--prior", "evidence", "--per", "kind"),
        ("--prior", "held-out"),
        ("--prior", "fixed", "--precision", "10"),
        ("--curvature", "kfac", "--directions", "signs"),
        ("--curvature", "diagonal"),
    ],
)
def test_every_choice_of_the_fit(trained, tmp_path, options):
    result = ok("fit", trained, "--output", tmp_path / "out", "--max-rows", 12, *options)
    assert result["reason"]


def test_drawn_rows_stay_in_the_order_of_the_data(trained, tmp_path):
    ok("predict", trained, "--predictive", "map", "--max-rows", 9, "--output", tmp_path / "out")
    indices = [row["index"] for row in lines(tmp_path / "out")]
    assert len(indices) == 9
    assert indices == sorted(indices)


def test_rows_without_labels_are_predicted(fitted, tmp_path):
    rows = [{"text": row["text"]} for row in make_rows(5)]
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    result = ok("predict", fitted, "--data", path, "--output", tmp_path / "out")
    assert result["metrics"] == {}
    assert all("label" not in row for row in lines(tmp_path / "out"))


def test_regression_from_end_to_end(base, tmp_path):
    rows = [{**row, "label": 2.0 * row["label"] + 0.5} for row in make_rows(40)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out"
    ok("train", "--model", base, "--data", path, "--output", out, *SMALL)
    ok("fit", out)
    result = ok("predict", out, "--output", tmp_path / "preds")
    assert result["metrics"]["rmse"] < 2.0
    row = lines(tmp_path / "preds")[0]
    assert row["probabilities"] is None
    assert row["standard_deviation"] > 0


def test_a_second_run_may_replace_the_first(base, data, tmp_path):
    command = ("train", "--model", base, "--data", data, "--output", tmp_path / "out")
    for extra in ((), ("--overwrite",)):
        ok(*command, *extra, "--max-rows", 4, "--no-early-stopping", *SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ----------------------------------------------------------------------------- what goes where


def test_text_goes_to_stderr_when_json_is_wanted(trained, tmp_path):
    done = call("predict", trained, "--predictive", "map", "--output", tmp_path / "o", "--json")
    json.loads(done.stdout)
    assert "21 rows" in done.stderr


def test_text_goes_to_stdout_otherwise(trained, tmp_path):
    done = call("predict", trained, "--predictive", "map", "--output", tmp_path / "out")
    assert "accuracy" in done.stdout


def test_quiet_is_quiet(trained, tmp_path):
    done = call("predict", trained, "--predictive", "map", "--output", tmp_path / "out", "--quiet")
    assert done.output == ""


# ------------------------------------------------------------------------------------ what ends it


def test_no_posterior_names_the_next_step(trained, tmp_path):
    assert "bhpeft fit" in refused("predict", trained, "--output", tmp_path / "out")


def test_no_checkpoint(tmp_path):
    assert "bhpeft train" in refused("fit", tmp_path / "nothing")


def test_no_data(base, tmp_path):
    message = refused("train", "--model", base, "--data", "./no.csv", "--output", tmp_path / "out")
    assert "No file or folder" in message


def test_a_full_output_folder_is_refused_before_any_work(base, data, tmp_path):
    (tmp_path / "mine.txt").touch()
    message = refused("train", "--model", base, "--data", data, "--output", tmp_path)
    assert "not empty" in message


def test_data_of_more_classes_than_the_model_has(trained, tmp_path):
    rows = [{"text": "a", "label": label} for label in (0, 1, 2)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = refused(
        "predict", trained, "--predictive", "map", "--data", path, "--output", tmp_path / "out"
    )
    assert "out of range: 2" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prior", "fixed"), "--precision"),
        (("--precision", "3"), "--prior fixed"),
        (("--per", "kind"), "--prior evidence"),
        (("--device", "abacus"), "--device cpu"),
    ],
)
def test_choices_that_contradict_each_other(trained, tmp_path, options, message):
    assert message in refused("fit", trained, "--output", tmp_path / "out", *options)


def test_samples_need_something_that_draws(fitted, tmp_path):
    message = refused("predict", fitted, "--samples", 4, "--output", tmp_path / "out")
    assert "nothing else draws" in message


def test_debug_shows_the_traceback(tmp_path):
    done = call("fit", tmp_path / "nothing", "--debug")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("train",), ("fit", "x", "--prior", "magic"), ("nonsense",), ("train", "--epochs", "many")],
)
def test_wrong_usage_ends_with_two(arguments):
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["train", "fit", "predict", "demo"])
def test_every_command_shows_examples(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    assert f"\n    bhpeft {command} " in done.stdout


def test_the_version_is_shown():
    assert call("--version").stdout.startswith("bhpeft ")
