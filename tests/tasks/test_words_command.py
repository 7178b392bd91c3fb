"""`bhpeft train`, `fit`, `predict` and what comes after, with a label for every word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from posthoc_bhpeft import BayesianPeft, Tangent, Tokens
from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.checkpoints import load_tokenizer
from posthoc_bhpeft.data import load_rows
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.training import form_for
from tests.cli.tools import TINY, call, ok, refused
from tests.models import randomize
from tests.tasks.tagged import make_base, make_rows
from tests.tasks.test_commands import lines
from tests.tasks.test_words import by_hand
from tests.tasks.words import make_base as make_other_base
from tests.tasks.words import write_rows

NAMES = ("bad", "good", "none")
SMALL = (*TINY, "--epochs", 12, "--patience", 0, "--batch-size", 8)
SCORES = ("total", "aleatoric", "epistemic")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data, a trained checkpoint, its posterior and predictions."""
    folder = tmp_path_factory.mktemp("words")
    make_base(folder / "base")
    for seed, (split, count) in enumerate({"train": 48, "validation": 10, "test": 9}.items()):
        write_rows(folder / "data" / f"{split}.jsonl", make_rows(count, seed))
    said = ok("train", "--model", folder / "base", "--data", folder / "data", "--output",
              folder / "out", *SMALL)  # fmt: skip
    (folder / "train.json").write_text(json.dumps(said), encoding="utf-8")
    said = ok("fit", folder / "out", "--output", folder / "fitted")
    (folder / "fit.json").write_text(json.dumps(said), encoding="utf-8")
    said = ok("predict", folder / "fitted", "--output", folder / "preds")
    (folder / "predict.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def said(place: Path, command: str) -> Any:
    return json.loads((place / f"{command}.json").read_text(encoding="utf-8"))


def words_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "words.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_task_is_found_and_learnt(place: Path) -> None:
    task = "task: token classification, one of several classes for each word"
    assert [said(place, one)["task"] for one in ("train", "fit")] == [task, task]
    assert said(place, "train")["label_names"] == list(NAMES)
    # Half of the words are "none".
    assert said(place, "train")["metrics"]["accuracy"] > 0.75
    bayes = BayesianPeft.from_pretrained(place / "fitted")
    assert bayes.likelihood == Tokens()
    assert bayes.posterior.n_rows == 48


def test_each_word_gets_what_the_model_says_at_its_first_piece(place: Path) -> None:
    bayes = BayesianPeft.from_pretrained(place / "fitted")
    tokenizer = load_tokenizer(place / "base")
    rows, found = make_rows(9, 2), lines(place / "preds")
    assert [row["index"] for row in found] == list(range(9))
    # Batches are made by length, so the first, a middle and the last would show a wrong order.
    for row, written in [(rows[n], found[n]) for n in (0, 4, 8)]:
        ids, places = by_hand(row["tokens"], tokenizer)
        one = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        expected = bayes.predict(one)
        assert expected.probabilities is not None
        assert written["words"] == row["tokens"]
        assert [NAMES[label] for label in written["label"]] == row["ner_tags"]
        top, classes = expected.probabilities[0, places].max(-1)
        assert written["prediction"] == classes.tolist()
        assert written["name"] == [NAMES[label] for label in classes.tolist()]
        assert torch.allclose(torch.tensor(written["probability"]), top, atol=1e-5)
        for name in SCORES:
            exact = getattr(expected, name)[0, places]
            assert torch.allclose(torch.tensor(written[name]), exact, atol=1e-5), name
            assert max(written[name]) > 0


def test_the_metrics_are_over_all_words(place: Path) -> None:
    metrics, words = said(place, "predict")["metrics"], words_of(place / "preds")
    assert (metrics["rows"], metrics["words"]) == (
        9,
        sum(len(r["tokens"]) for r in make_rows(9, 2)),
    )
    assert len(words) == metrics["words"]
    p = torch.tensor([row["probabilities"] for row in words], dtype=torch.float64)
    truth = torch.tensor([row["label"] for row in words])
    nll = -p[torch.arange(len(p)), truth].log().mean()
    assert metrics["nll"] == pytest.approx(float(nll), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(float((p.argmax(1) == truth).double().mean()))


def test_a_word_a_row_stands_where_its_text_has_it(place: Path) -> None:
    texts = {row["index"]: row for row in lines(place / "preds")}
    for row in words_of(place / "preds"):
        text, at = texts[row["index"]], row["place"]
        assert (row["text"], row["label"]) == (text["words"][at], text["label"][at])
        for name in ("prediction", "name", *SCORES):
            assert row[name] == text[name][at]
        assert max(row["probabilities"]) == text["probability"][at]


def test_the_figures_of_the_training_are_those_of_its_weights(place: Path, tmp_path: Path) -> None:
    options = ("--split", "validation", "--predictive", "map")
    about = ok("predict", place / "out", *options, "--output", tmp_path / "a")
    for name in ("nll", "accuracy"):
        trained = said(place, "train")["metrics"][name]
        assert about["metrics"][name] == pytest.approx(trained, rel=1e-4)
    ok("predict", place / "fitted", *options, "--output", tmp_path / "b")
    assert words_of(tmp_path / "a") == words_of(tmp_path / "b")


def test_linearised_is_what_was_fitted(place: Path, tmp_path: Path) -> None:
    linear = ("--predictive", "linearised", "--samples", 3, "--seed", 4)
    about = ok("predict", place / "fitted", *linear, "--output", tmp_path / "a")
    assert about["predictive"] == repr(Tangent(samples=3, seed=4))
    ok("predict", place / "fitted", "--predictive", "linearised", "--output", tmp_path / "b")
    assert lines(tmp_path / "b") == lines(place / "preds")


def test_words_may_have_no_label_or_be_cut_off(place: Path, tmp_path: Path) -> None:
    rows = [
        {"tokens": ["late", "meals"], "ner_tags": ["bad", None]},
        {"tokens": ["fines"] * 20, "ner_tags": ["good"] * 20},
    ]
    record = json.loads((place / "out" / "training.json").read_text("utf-8"))
    record["settings"]["max_length"] = 10
    short = tmp_path / "short"
    short.mkdir()
    for path in (place / "out").iterdir():
        (short / path.name).write_bytes(path.read_bytes())
    (short / "training.json").write_text(json.dumps(record), encoding="utf-8")
    data = write_rows(tmp_path / "few.jsonl", rows)
    named = ("--data", data, "--predictive", "map")
    about = ok("predict", short, *named, "--output", tmp_path / "a")
    first, second = lines(tmp_path / "a")
    assert first["label"] == [0, None]
    assert None not in first["prediction"]
    # Ten tokens are two special ones and four words of two pieces.
    assert [one is None for one in second["probability"]] == [False] * 4 + [True] * 16
    assert second["words"] == ["fines"] * 20
    assert about["metrics"]["words"] == len(words_of(tmp_path / "a")) == 5
    told = call("predict", short, *named, "--ignore-labels", "--output", tmp_path / "b").output
    assert "22 words, 16 of them not read: a text is cut as in the training" in told
    assert len(words_of(tmp_path / "b")) == 6
    assert "label" not in words_of(tmp_path / "b")[0] | lines(tmp_path / "b")[0]


def test_the_estimate_is_of_a_label_at_every_token(place: Path) -> None:
    passes = {one["step"]: one for one in ok("estimate", place / "fitted")["passes"]}
    # Two random signs, not a pass for each contrast; for the prior four words stand for all.
    assert (passes["fit"]["batches"], passes["fit"]["backward"]) == (3, 2)
    prior = passes["prior, LeaveOneOut"]
    assert (prior["batches"], prior["forward"], prior["backward"]) == (3, 1, 4)
    assert (passes["predict"]["forward"], passes["predict"]["backward"]) == (33, 0)


def test_an_audit_reads_words_as_rows(place: Path, tmp_path: Path) -> None:
    message = refused("audit", place / "fitted")
    assert "gives every word a label, and an audit is about one class a row" in message
    assert "then `bhpeft audit preds/words.jsonl`" in message
    found = ok("audit", place / "preds" / "words.jsonl", "--resamples", 20)
    mine = said(place, "predict")["metrics"]
    assert found["rows"] == mine["words"]
    assert found["figures"][found["subject"]]["nll"]["estimate"] == pytest.approx(
        mine["nll"], rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--review",), "--review decides about rows, and a row of"),
        (("--link", "probit"), "--link probit needs the covariance of all outputs"),
        (("--predictive", "map", "--link", "probit"), "--link probit needs the covariance"),
        (("--samples", 3), "--samples is for"),
    ],
)
def test_what_words_do_not_have_is_said(
    place: Path, tmp_path: Path, options: Any, message: str
) -> None:
    assert message in refused("predict", place / "fitted", "--output", tmp_path / "no", *options)


def test_a_checkpoint_that_others_trained(place: Path, tmp_path: Path) -> None:
    base = AutoModelForTokenClassification.from_pretrained(place / "base", num_labels=3)
    config = LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query", "value"])
    randomize(get_peft_model(base, config)).save_pretrained(tmp_path / "adapter")
    out, data = tmp_path / "fitted", place / "data"
    said = ok("fit", tmp_path / "adapter", "--data", data, "--output", out)
    assert "task: token classification" in said["task"]
    ok("predict", out, "--data", data, "--output", tmp_path / "preds")
    bayes, tokenizer = BayesianPeft.from_pretrained(out), load_tokenizer(place / "base")
    assert bayes.model.config.id2label == dict(enumerate(NAMES))
    # As the example of transformers makes its batches.
    encoded = Form.WORDS.encode(load_rows(data, "test", words=True), tokenizer, 128)
    batch = DataCollatorForTokenClassification(tokenizer)([dict(one) for one in encoded.features])
    found = bayes.predict(batch).at_positions()
    assert found.probabilities is not None
    written = [row["probabilities"] for row in words_of(tmp_path / "preds")]
    assert torch.allclose(torch.tensor(written), found.probabilities, atol=1e-5)
    assert bool((batch["labels"] != IGNORED).sum() == len(written))


def test_a_base_without_a_token_classifier(place: Path, tmp_path: Path) -> None:
    base = make_other_base(tmp_path / "base", "AutoModelForCausalLM", "opt")
    rows = load_rows(place / "data", words=True)
    with pytest.raises(ConfigError, match=r"no token classifier for .*\(opt\)"):
        form_for(str(base), rows)
    assert form_for(str(place / "base"), rows) is Form.WORDS
