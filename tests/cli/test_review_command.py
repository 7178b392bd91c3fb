"""`bhpeft predict --review`: the saved rule on the rows of a file."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.audit.decisions import as_rule, review_share
from posthoc_bhpeft.audit.decisions.conformal import conformal_sets
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.data import load_rows, make_loader
from posthoc_bhpeft.sets import APS
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder, make_rows, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("review")


@pytest.fixture(scope="module")
def fitted(folder):
    base, data = make_base(folder / "base"), make_folder(folder / "data")
    small = (*TINY, "--epochs", "1", "--max-rows", 32)
    ok("train", "--model", base, "--data", data, "--output", folder / "out", *small)
    ok("fit", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def calibration(folder):
    return write_jsonl(folder / "more" / "calibration.jsonl", make_rows(40, seed=9))


@pytest.fixture(scope="module")
def ruled(folder, fitted, calibration):
    """The checkpoint with a rule made on forty other rows."""
    bayes = BayesianPeft.from_pretrained(fitted)
    rows = load_rows(calibration, "train")
    loader = make_loader(rows, load_tokenizer(fitted), batch_size=40)
    predictions = Predictions.of(bayes.predict_loader(loader, progress=False), rows)
    sets = conformal_sets(predictions, 0.2, method=APS())
    decision = review_share(predictions, 0.4)
    rule = as_rule(decision, predictions, sets, predictive=bayes.predictive)
    shutil.copytree(fitted, folder / "ruled")
    bayes.with_review(rule).save_pretrained(folder / "ruled")
    return folder / "ruled", predictions, decision


def written(out):
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_say_who_looks_at_them(ruled, calibration, tmp_path):
    checkpoint, predictions, decision = ruled
    out = tmp_path / "out"
    result = ok("predict", checkpoint, "--data", calibration, "--review", "--output", out)
    rows = written(out)
    expected = (predictions.score() > decision.threshold).tolist()
    # Batches of another size move a probability by less than this.
    near = (abs(predictions.score() - decision.threshold) < 1e-5).tolist()
    found = [row["review"] for row in rows]
    assert [f for f, n in zip(found, near, strict=True) if not n] == [
        e for e, n in zip(expected, near, strict=True) if not n
    ]
    assert 0 < sum(found) < len(found) == 40
    assert all(row["name"] in row["set"] for row in rows)
    assert all(set(row["set"]) <= {"bad", "good"} for row in rows)
    assert result["review"] == {
        "rows": sum(found),
        "share": sum(found) / 40,
        "promise": decision.guarantee,
    }
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["review"] == result["review"]


def test_it_says_how_many_go_to_a_human(ruled, tmp_path):
    done = call("predict", ruled[0], "--review", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    count = sum(row["review"] for row in written(tmp_path / "out"))
    assert f"{count} of 21 rows go to a human. With probability 95 % or more" in done.stdout


def test_without_asking_nothing_changes(ruled, tmp_path):
    result = ok("predict", ruled[0], "--output", tmp_path / "out")
    assert "review" not in result
    assert not {"review", "set"} & set(written(tmp_path / "out")[0])


def test_a_checkpoint_without_a_rule_says_how_to_make_one(fitted, tmp_path):
    message = refused("predict", fitted, "--review", "--output", tmp_path / "out")
    assert "bhpeft audit CHECKPOINT --data held-out.csv --max-error 0.05 --save-review" in message
    assert not (tmp_path / "out").exists()


def test_another_predictive_is_refused(ruled, tmp_path):
    message = refused(
        "predict", ruled[0], "--review", "--predictive", "map", "--output", tmp_path / "out"
    )
    assert "made with Linearized" in message
    assert "MAP()" in message


def test_a_checkpoint_without_a_posterior_has_no_rule(fitted, tmp_path):
    bare = shutil.copytree(fitted, tmp_path / "bare")
    (bare / "posterior.json").unlink()
    options = ("--review", "--predictive", "map", "--output", tmp_path / "out")
    assert "no posterior. Run `bhpeft fit`" in refused("predict", bare, *options)


def test_a_refit_forgets_the_rule(ruled, tmp_path):
    copy = shutil.copytree(ruled[0], tmp_path / "copy")
    ok("fit", copy, "--max-rows", 8)
    assert BayesianPeft.from_pretrained(copy).review_rule is None
    assert not (copy / "review.json").exists()
    assert math.isfinite(BayesianPeft.from_pretrained(ruled[0]).review_rule.threshold)
