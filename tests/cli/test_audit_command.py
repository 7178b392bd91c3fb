"""`bhpeft audit`: checkpoints and files, what it writes, and how it ends."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.audit import Plan, RegressionPlan
from posthoc_bhpeft.audit.files import read_predictions
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.cli.asked import label
from posthoc_bhpeft.data import load_rows, make_loader
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder, make_rows, write_jsonl

PANELS = ["Rows", "Compared with", "What is measured", "What comes of it", "How it runs"]
SMALL = (*TINY, "--epochs", "4")
FAST = ("--resamples", "20")


def flat(*arguments):
    """What is shown, with every space a single one."""
    return " ".join(call(*arguments).stdout.split())


def dated(count, seed):
    rows = make_rows(count, seed=seed)
    return [{**row, "day": f"2024-{1 + n % 4:02d}-11"} for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def base(folder):
    return make_base(folder / "base")


@pytest.fixture(scope="module")
def data(folder):
    return make_folder(folder / "data")


@pytest.fixture(scope="module")
def held(folder):
    """120 labelled rows that no model has seen."""
    return write_jsonl(folder / "held.jsonl", dated(120, 9))


@pytest.fixture(scope="module")
def trained(folder, base, data):
    ok("train", "--model", base, "--data", data, "--output", folder / "trained", *SMALL)
    return folder / "trained"


@pytest.fixture(scope="module")
def fitted(trained):
    ok("fit", trained, "--output", trained.with_name("fitted"))
    return trained.with_name("fitted")


@pytest.fixture(scope="module")
def audited(fitted, held, folder):
    """The audit that most tests look at: everything at once."""
    out = folder / "report"
    options = (
        *("--outside", folder / "data" / "test.jsonl", "--reference", held),
        *("--time", "day", "--max-error", "0.3"),
    )
    return out, ok("audit", fitted, "--data", held, "--output", out, *FAST, *options)


@pytest.fixture(scope="module")
def predicted(fitted, held, folder):
    """A file of predictions for the same rows."""
    ok("predict", fitted, "--data", held, "--output", folder / "predicted")
    return folder / "predicted" / "predictions.jsonl"


# ---------------------------------------------------------------------------------- the main path


def test_the_folder_holds_the_report_the_figures_and_pictures(audited):
    out, result = audited
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "audit.json", "reliability.png", "risk_coverage.png"} <= names
    written = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert written == {k: v for k, v in result.items() if k not in ("command", "output")}
    assert result["failed"] == []
    assert "ours" in (out / "report.html").read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_predictions(audited, predicted):
    figures = audited[1]["figures"]["ours"]
    said = read_predictions(predicted)
    assert figures["accuracy"]["estimate"] == pytest.approx(said.right.mean())
    nll = -np.log(said.probabilities[np.arange(120), said.labels]).mean()
    assert figures["nll"]["estimate"] == pytest.approx(nll, abs=1e-5)


def test_everything_asked_for_is_there(audited):
    result = audited[1]
    assert result["rows"] == 120
    assert result["subject"] == "ours"
    assert list(result["figures"]) == ["ours", "MAP"]
    assert set(result["differences"]) == {"MAP"}
    assert {"confidence", "epistemic"} <= set(result["detection"]["ours"])
    assert [d["goal"][:12] for d in result["decisions"]] == ["at most 30 %", "at most 10 %"]
    assert {one["column"] for one in result["slices"]} >= {"shop", "day", "true class"}
    assert result["drift"]["rows"] == result["drift"]["reference_rows"] == 120
    assert len(result["drift"]["periods"]) == 4
    assert result["about"]["predictive"].startswith("Linearized")


def test_a_reference_has_its_labels(audited):
    # The very same rows, so nothing can have changed.
    assert audited[1]["drift"]["accuracy"]["estimate"] == 0
    assert audited[1]["drift"]["true_label_shift"] == pytest.approx(1)


def test_rivals_that_need_rows_get_them(fitted, data):
    names = ("map", "temperature", "ours-temperature", "dropout", "last-layer", "diagonal")
    options = [part for name in names for part in ("--compare", name)]
    result = ok("audit", fitted, *FAST, *options, "--ensemble", fitted)
    assert list(result["figures"]) == [
        "ours",
        "MAP",
        "temperature (24 held-out rows)",
        "ours + temperature (24 held-out rows)",
        "MC dropout",
        "last-layer Laplace",
        "diagonal Laplace",
        "ensemble of 2",
    ]
    # The name of the folder, for the place of it is nobody's business.
    assert result["data"] == f"{data.name}, test"
    # The ensemble's second member is the model itself.
    one, both = result["figures"]["MAP"], result["figures"]["ensemble of 2"]
    assert one["nll"]["estimate"] == pytest.approx(both["nll"]["estimate"], abs=1e-6)


def test_a_model_without_posterior(trained):
    result = ok("audit", trained, *FAST)
    assert result["subject"] == "trained"
    assert list(result["figures"]) == ["trained"]


def test_two_checkpoints_on_the_same_rows(fitted, trained, held):
    result = ok("audit", fitted, trained, "--data", held, *FAST)
    assert list(result["figures"]) == ["fitted", "trained"]
    # The other one has no posterior: it is the MAP of the first.
    point = ok("audit", fitted, "--data", held, *FAST)["differences"]["MAP"]["nll"]
    assert result["differences"]["trained"]["nll"] == pytest.approx(point, abs=1e-6)


def test_by_chooses_the_slices(fitted, held):
    result = ok("audit", fitted, "--data", held, "--by", "shop", *FAST)
    assert {one["column"] for one in result["slices"]} == {"shop"}


def test_drawn_rows_stay_beside_their_labels_and_columns(fitted, held, predicted):
    result = ok("audit", fitted, "--data", held, "--max-rows", 30, "--by", "shop", *FAST)
    again = ok("audit", predicted, "--max-rows", 30, *FAST)
    name = again["subject"]
    for metric in ("accuracy", "nll", "aurc"):
        one, other = result["figures"]["ours"][metric], again["figures"][name][metric]
        assert one == pytest.approx(other, abs=1e-4)
    assert result["rows"] == again["rows"] == 30


def test_texts_stand_beside_their_probabilities(fitted, held, monkeypatch):
    # Batches are made by length, so this is where a wrong order would show.
    seen = {}
    import posthoc_bhpeft.audit.reporting as report

    def keep(found, *args, **kwargs):
        seen["found"] = found
        raise OSError("stop here")

    monkeypatch.setattr(report, "write_report", keep)
    out = held.parent / "never"
    call("audit", fitted, "--data", held, "--max-rows", 40, "--output", out, *FAST)
    predictions = seen["found"].subject.predictions
    bayes, rows = BayesianPeft.from_pretrained(fitted), load_rows(held)
    loader = make_loader(rows, load_tokenizer(fitted), batch_size=1)
    expected = bayes.predict_loader(loader, progress=False).probabilities.numpy()
    where = [rows.texts.index(text) for text in predictions.texts]
    assert where == sorted(where)
    np.testing.assert_allclose(predictions.probabilities, expected[where], atol=1e-5)
    assert predictions.label_names == ("bad", "good")


def test_rows_without_labels(fitted, tmp_path):
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": r["text"]} for r in make_rows(40)])
    result = ok("audit", fitted, "--data", path, "--output", tmp_path / "out", *FAST)
    assert result["figures"] == {"ours": {}, "MAP": {}}
    assert result["slices"] == []
    assert result["sets"] is None
    assert [d["goal"] for d in result["decisions"]] == ["at most 10 % of the rows reviewed"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_unlabelled_rows_among_others_are_refused_or_dropped(fitted, tmp_path):
    rows = [{**row, "label": None if n % 4 == 0 else row["label"]} for n, row in
            enumerate(make_rows(40))]  # fmt: skip
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    assert "--drop-unlabelled" in refused("audit", fitted, "--data", path)
    assert ok("audit", fitted, "--data", path, "--drop-unlabelled", *FAST)["rows"] == 30


@pytest.mark.parametrize("labels", [None, "elsewhere", 7, -1])
def test_rows_from_elsewhere_may_have_any_labels(fitted, tmp_path, labels):
    rows = [{"text": row["text"]} | ({} if labels is None else {"label": labels}) for row in
            make_rows(25, seed=4)]  # fmt: skip
    path = write_jsonl(tmp_path / "outside.jsonl", rows)
    result = ok("audit", fitted, "--outside", path, *FAST)
    assert 0 <= result["detection"]["ours"]["epistemic"]["auroc"]["estimate"] <= 1
    assert "MAP" in result["detection"]


def test_a_split_of_the_data_may_be_the_reference(fitted):
    result = ok("audit", fitted, "--reference", "validation", *FAST)
    assert (result["drift"]["rows"], result["drift"]["reference_rows"]) == (21, 24)


# ---------------------------------------------------------------------------- columns by name


def test_columns_named_in_the_training_are_found_again(base, tmp_path):
    def named(rows):
        return [{"said": r["text"], "noise": "x", "verdict": r["label"]} for r in rows]

    data = tmp_path / "data"
    for seed, split in enumerate(("train", "validation", "test")):
        write_jsonl(data / f"{split}.jsonl", named(make_rows(32, seed)))
    columns = ("--text-column", "said", "--label-column", "verdict")
    ok("train", "--model", base, "--data", data, "--output", tmp_path / "out", *SMALL, *columns)
    options = ("--compare", "temperature", "--reference", "validation", "--outside", "validation")
    result = ok("audit", tmp_path / "out", *options, *FAST)
    assert list(result["figures"]) == ["out", "temperature (32 held-out rows)"]
    assert result["drift"]["accuracy"] is not None
    assert ok("audit", tmp_path / "out", "--data", data, *FAST)["rows"] == 32


# -------------------------------------------------------------------------------- review is kept


def test_a_saved_threshold_is_what_predict_applies(fitted, held, tmp_path):
    checkpoint = shutil.copytree(fitted, tmp_path / "copy")
    new = write_jsonl(tmp_path / "new.jsonl", make_rows(60, seed=21))
    options = ("--max-review", "0.4", "--save-review", "share")
    result = ok("audit", checkpoint, "--data", held, *options, *FAST)
    decision = result["decisions"][1]
    out = tmp_path / "out"
    review = ok("predict", checkpoint, "--data", new, "--review", "--output", out)["review"]
    assert review["promise"] == decision["guarantee"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    doubts = [1 - max(row["probabilities"]) for row in rows]
    sure = [n for n, doubt in enumerate(doubts) if abs(doubt - decision["threshold"]) > 1e-5]
    assert [rows[n]["review"] for n in sure] == [doubts[n] > decision["threshold"] for n in sure]
    assert all(row["name"] in row["set"] or not row["set"] for row in rows)


def test_the_threshold_about_errors_is_another(fitted, held, tmp_path):
    checkpoint = shutil.copytree(fitted, tmp_path / "copy")
    options = ("--max-error", "0.7", "--save-review", "error", "--score", "total")
    result = ok("audit", checkpoint, "--data", held, *options, *FAST)
    rule = BayesianPeft.from_pretrained(checkpoint).review_rule
    assert rule.score == "total"
    assert rule.promise == result["decisions"][0]["guarantee"]
    assert "automatic answers" in rule.promise
    assert rule.rows == 120


def test_a_promise_that_cannot_be_given_is_not_saved(fitted, tmp_path):
    checkpoint = shutil.copytree(fitted, tmp_path / "copy")
    out = tmp_path / "out"
    message = refused("audit", checkpoint, "--save-review", "error", "--output", out, *FAST)
    assert "21 rows are too few" in message
    assert not (checkpoint / "review.json").exists()
    assert (out / "report.html").is_file()


def test_a_promise_about_errors_needs_labels(fitted, tmp_path):
    rows = [{"text": row["text"]} for row in make_rows(60)]
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    checkpoint = shutil.copytree(fitted, tmp_path / "copy")
    options = ("--data", path, "--max-review", "0.4", *FAST)
    message = refused("audit", checkpoint, *options, "--save-review", "error")
    assert "no labels" in message
    assert not (checkpoint / "review.json").exists()
    ok("audit", checkpoint, *options, "--save-review", "share")
    assert "go to a human" in BayesianPeft.from_pretrained(checkpoint).review_rule.promise


def test_a_gate_that_stops_saves_no_threshold(fitted, held, tmp_path):
    checkpoint = shutil.copytree(fitted, tmp_path / "copy")
    options = ("--max-review", "0.4", "--save-review", "share", "--fail-if", "ece>=0")
    done = call("audit", checkpoint, "--data", held, *options, *FAST)
    assert done.exit_code == 3
    assert "no threshold was saved" in done.stdout
    assert not (checkpoint / "review.json").exists()


# ------------------------------------------------------------------------------------------ gates


def test_a_gate_ends_with_three_after_all_is_written(predicted, tmp_path):
    options = ("--fail-if", "accuracy<2", "--fail-if", "nll<0", "--output", tmp_path / "out")
    done = call("audit", predicted, *options, "--json", *FAST)
    assert done.exit_code == 3
    failed = json.loads(done.stdout)["failed"]
    assert len(failed) == 1
    assert failed[0].startswith("accuracy<2 (accuracy is ")
    assert "stopped by --fail-if accuracy<2" in done.stderr
    written = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert written["failed"] == failed


def test_a_gate_that_is_met_lets_pass(predicted):
    assert ok("audit", predicted, "--fail-if", "accuracy<0", *FAST)["failed"] == []


def test_a_gate_on_an_end_of_the_interval(predicted):
    done = call("audit", predicted, "--fail-if", "ece.low>=0", *FAST)
    assert done.exit_code == 3
    assert "stopped by --fail-if ece.low>=0 (ece.low is " in done.stdout


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("ece", "no condition"),
        ("ece>5%", "no condition"),
        ("ece.middle>1", "not 'middle'"),
        ("ice>0.1", "ece_equal_mass"),
    ],
)
def test_a_condition_that_makes_no_sense_is_said_before_any_work(tmp_path, condition, message):
    done = refused("audit", tmp_path / "nothing", "--fail-if", condition)
    assert message in done
    assert repr(condition) in done


# ------------------------------------------------------------------------------------------ files


def test_a_file_of_predictions(predicted, tmp_path):
    result = ok("audit", predicted, "--output", tmp_path / "out", *FAST)
    assert result["subject"] == "predictions"
    assert result["about"] == {"Predictions": "Read from predictions.jsonl."}
    assert {one["value"] for one in result["slices"]} >= {"bad", "good"}
    assert (tmp_path / "out" / "report.html").is_file()


def test_two_files(predicted, fitted, held, tmp_path):
    options = ("--predictive", "map", "--output", tmp_path / "map")
    ok("predict", fitted, "--data", held, *options)
    result = ok("audit", predicted, tmp_path / "map" / "predictions.jsonl", *FAST)
    # Two files of one name are told apart by their paths.
    other = str(tmp_path / "map" / "predictions.jsonl")
    assert list(result["figures"]) == [str(predicted), other]
    point = ok("audit", fitted, "--data", held, *FAST)["differences"]["MAP"]["nll"]
    assert result["differences"][other]["nll"] == pytest.approx(point, abs=1e-5)


def test_files_beside_a_file(predicted, tmp_path):
    rows = [json.loads(line) for line in predicted.read_text(encoding="utf-8").splitlines()]
    strange = [{**row, "label": "elsewhere"} for row in rows[:30]]
    outside = write_jsonl(tmp_path / "outside.jsonl", strange)
    options = ("--outside", outside, "--reference", predicted)
    result = ok("audit", predicted, *options, *FAST)
    assert result["detection"]["predictions"]
    assert result["drift"]["accuracy"]["estimate"] == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "rows.csv"),
        ("--split", "test"),
        ("--compare", "map"),
        ("--ensemble", "x"),
        ("--held-out", "validation"),
        ("--save-review", "share"),
    ],
)
def test_a_file_has_no_model(predicted, option, value):
    message = refused("audit", predicted, option, value)
    assert f"leave out {option}, or audit the checkpoint" in message


def test_a_file_and_a_checkpoint_are_not_compared(predicted, fitted):
    assert "Compare two files" in refused("audit", predicted, fitted)
    assert "another file" in refused("audit", fitted, predicted)


def test_files_about_other_rows(predicted, tmp_path):
    lines = predicted.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    (tmp_path / "turned.jsonl").write_text("".join([*lines[1:], lines[0]]), encoding="utf-8")
    assert "120 rows and the rival 'fewer' 119" in refused(
        "audit", predicted, tmp_path / "fewer.jsonl"
    )
    assert "same order" in refused("audit", predicted, tmp_path / "turned.jsonl")


# ------------------------------------------------------------------------------------ what ends it


def test_training_rows_are_refused(base, fitted, data, tmp_path):
    message = refused("audit", fitted, "--split", "train")
    assert "trained on" in message
    assert "--data" in message
    single = write_jsonl(tmp_path / "single.jsonl", make_rows(40))
    ok("train", "--model", base, "--data", single, "--output", tmp_path / "out", *SMALL)
    assert "trained on" in refused("audit", tmp_path / "out")
    assert "trained on" in refused("audit", tmp_path / "out", "--data", single)


@pytest.mark.parametrize("option", ["--held-out", "--reference"])
def test_training_rows_are_refused_beside_the_audit_too(fitted, option):
    message = refused("audit", fitted, "--compare", "temperature", option, "train", *FAST)
    assert "trained on" in message
    assert option in message


def test_nothing_is_written_where_the_report_fails(fitted, held, tmp_path, monkeypatch):
    import posthoc_bhpeft.audit.reporting as report

    def broken(*args, **kwargs):
        (args[1] / "report.html").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(report, "write_report", broken)
    out = tmp_path / "out"
    message = refused("audit", fitted, "--data", held, "--output", out, *FAST)
    assert "no space left" in message
    assert list(tmp_path.iterdir()) == []


def test_an_older_report_stays_where_the_audit_fails(predicted, tmp_path):
    out = tmp_path / "out"
    ok("audit", predicted, "--output", out, *FAST)
    before = (out / "report.html").read_bytes()
    assert "not empty" in refused("audit", predicted, "--output", out, *FAST)
    options = ("--output", out, "--overwrite", "--by", "planet")
    assert "'planet'" in refused("audit", predicted, *options)
    assert (out / "report.html").read_bytes() == before
    ok("audit", predicted, "--output", out, "--overwrite", *FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compare", "magic"), "Known: map, temperature"),
        (("--compare", "ensemble"), "--ensemble FOLDER"),
        (("--compare", "temperature", "--held-out", "test"), "--held-out: validation."),
        (("--time", "day"), "reference"),
        (("--max-error", "5"), "0.05 for 5 %"),
        (("--resamples", "0"), "1 or more"),
        (("--score", "doubt"), "epistemic"),
        (("--by", "planet"), "the rows have shop"),
        (("--device", "abacus"), "--device cpu"),
        (("--outside", "./no.csv"), "No file or folder"),
        (("--split", "nope"), "train, validation, test"),
        (("--max-rows", "0"), "at least 1"),
    ],
)
def test_options_that_make_no_sense(fitted, options, message):
    assert message in refused("audit", fitted, *options)


def test_a_score_that_is_the_same_for_all_rows(trained):
    message = refused("audit", trained, "--score", "epistemic")
    assert "for every row" in message
    assert "'confidence'" in message


def test_a_tolerance_is_for_numbers(fitted, predicted):
    for subject in (fitted, predicted):
        assert "an answer is right or wrong" in refused("audit", subject, "--tolerance", "1")


def test_a_gate_about_numbers_is_refused_before_any_pass(fitted):
    message = refused("audit", fitted, "--fail-if", "rmse>1")
    assert "this audit will have accuracy" in message


def test_a_rule_needs_a_posterior(trained):
    assert "bhpeft fit" in refused("audit", trained, "--save-review", "error")
    message = refused("audit", trained, "--compare", "ours-temperature")
    assert "needs a posterior" in message


def test_no_subject(tmp_path):
    assert "bhpeft train" in refused("audit", tmp_path / "nothing")
    assert "No file" in refused("audit", tmp_path / "nothing.csv")


def test_other_classes(fitted, base, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "meta.json").write_text('{"label_names": ["good", "bad"]}')
    out = tmp_path / "out"
    ok("train", "--model", base, "--data", tmp_path / "data", "--output", out, *SMALL)
    assert "predict ('bad', 'good') and ('good', 'bad')" in refused("audit", fitted, out)


# ----------------------------------------------------------------------------- what goes where


def test_text_goes_to_stderr_when_json_is_wanted(predicted):
    done = call("audit", predicted, "--json", *FAST)
    result = json.loads(done.stdout)
    assert result["command"] == "audit"
    assert "Accuracy" in done.stderr


def test_the_terminal_shows_figures_promises_and_the_verdict(fitted, held):
    outside = fitted.parent / "data" / "test.jsonl"
    options = ("--reference", held, "--outside", outside, *FAST)
    done = call("audit", fitted, "--data", held, *options)
    assert done.exit_code == 0, done.stderr
    for text in (
        "120 rows of",
        "AUROC, 21 rows from elsewhere",
        "prediction sets: ",
        "Accuracy",
        "MAP",
        "at most 10 % of the rows",
        "Drift:",
    ):
        assert text in done.stdout
    assert any(level in done.stdout for level in ("Ready", "Use with review", "Do not", "Too lit"))


def test_quiet_is_quiet(predicted, tmp_path):
    assert call("audit", predicted, "--quiet", *FAST).output == ""


def test_help_shows_examples_and_every_option_in_a_group():
    text = call("audit", "--help").stdout
    assert "\n    bhpeft audit " in text
    groups = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert groups == ["Arguments", *PANELS, "Help"]
    last = text.split("\nHelp:\n")[1].split("Exit codes")[0]
    assert [word for word in last.split() if word.startswith("--")] == ["--help"]
    assert "Options:" in call("train", "--help").stdout


def test_defaults_in_the_help_are_those_of_the_plans():
    option = r"--([a-z-]+) [A-Z]+ "
    found = rf"{option}(?:(?!{option.replace('(', '(?:')})[^[])*\[default: ([^]]*)\]"
    said = dict(re.findall(found, flat("audit", "--help")))
    plan, numbers = Plan(), RegressionPlan()
    assert float(said["max-error"]) == plan.max_error == numbers.max_error
    assert float(said["max-review"]) == plan.max_review == numbers.max_review
    assert said["sets"] == f"{plan.sets}, of a regression {numbers.miss:.2f}"
    assert said["score"] == plan.score
    assert int(said["resamples"]) == plan.resamples == numbers.resamples


def test_infinite_thresholds_are_json(predicted):
    result = ok("audit", predicted, "--max-error", "0.0001", *FAST)
    assert float(result["decisions"][0]["threshold"]) == -math.inf


@pytest.mark.parametrize(
    ("place", "beside", "name"),
    [
        ("runs/new", None, "new"),
        ("runs/new", "runs/old", "new"),
        ("a/out", "b/out", "a/out"),
        ("a/p.csv", "b/q.csv", "p"),
        ("a/p.csv", "b/p.jsonl", "a/p.csv"),
    ],
)
def test_names_are_short_where_they_differ(place, beside, name):
    assert label(place, beside) == name
