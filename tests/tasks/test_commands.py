"""`bhpeft fit` and `predict` on checkpoints that others trained for other tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from posthoc_bhpeft import BayesianPeft
from posthoc_bhpeft.data import encode_choices, encode_prompts, load_rows, make_loader
from posthoc_bhpeft.tasks import AnswerTokens, MultipleChoice, TaskModel
from tests.cli.tools import ok, refused
from tests.tasks.words import foreign_checkpoint, make_questions, tokenizer, write_rows


def lora(task_type: str | None, *targets: str, **settings: Any) -> LoraConfig:
    return LoraConfig(task_type=task_type, r=2, target_modules=list(targets), **settings)


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def probabilities(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["probabilities"] for row in rows])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "test")):
        write_rows(tmp_path / "data" / f"{split}.jsonl", make_questions(12, seed))
    return tmp_path / "data"


def fitted_and_predicted(checkpoint: Path, data: Path, tmp_path: Path) -> tuple[Any, Any, Path]:
    """What both commands say, and the folder of the posterior."""
    out, preds = tmp_path / "fitted", tmp_path / "preds"
    said = ok("fit", checkpoint, "--data", data, "--output", out)
    return said, ok("predict", out, "--data", data, "--output", preds), out


def test_a_language_model_answers_with_letters(questions: Path, tmp_path: Path) -> None:
    adapter = foreign_checkpoint(
        tmp_path, "AutoModelForCausalLM", "llama", lora("CAUSAL_LM", "q_proj", "v_proj")
    )
    said, about, out = fitted_and_predicted(adapter, questions, tmp_path)
    assert said["task"] == "task: a language model that answers with the letter of a choice"
    assert about["metrics"]["rows"] == 12
    bayes = BayesianPeft.from_pretrained(out)
    assert isinstance(bayes.model, TaskModel)
    assert bayes.model.task == AnswerTokens.of(tokenizer(), (" A", " B", " C", " D"))
    rows = load_rows(questions, "test", choices=True)
    loader = make_loader(encode_prompts(rows, tokenizer()), tokenizer())
    expected = bayes.predict_loader(loader, progress=False).probabilities
    found = lines(tmp_path / "preds")
    assert torch.allclose(probabilities(found), expected, atol=1e-5)
    assert [row["label"] for row in found] == list(rows.labels)
    assert [row["name"] for row in found] == ["ABCD"[row["prediction"]] for row in found]
    ok("predict", adapter, "--data", questions, "--predictive", "map", "--output", tmp_path / "map")
    assert probabilities(lines(tmp_path / "map")).shape == (12, 4)
    report = tmp_path / "report"
    ok("audit", out, "--data", questions, "--output", report, "--resamples", "20")
    assert (report / "report.html").is_file()


def test_letters_are_those_of_all_rows_though_few_are_fitted(tmp_path: Path) -> None:
    rows = make_questions(12)
    rows[-1]["choices"] = ["fire", "ice", "snow", "sun", "stone"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    adapter = foreign_checkpoint(
        tmp_path, "AutoModelForCausalLM", "llama", lora("CAUSAL_LM", "q_proj", "v_proj")
    )
    few = make_questions(12)[:11]
    assert max(len(row["choices"]) for row in few) == 4
    quick = ("--max-rows", 2, "--prior", "fixed", "--precision", 1)
    ok("fit", adapter, "--data", data, "--output", tmp_path / "fitted", *quick)
    ok("predict", tmp_path / "fitted", "--data", data, "--output", tmp_path / "preds")
    assert probabilities(lines(tmp_path / "preds")).shape == (12, 5)
    less = write_rows(tmp_path / "few.jsonl", few)
    ok("fit", adapter, "--data", less, "--output", tmp_path / "less", *quick)
    message = refused("predict", tmp_path / "less", "--data", data, "--output", tmp_path / "no")
    assert "row 11 has 5 choices, and the model was fitted to answer with 4 letters" in message


def test_multiple_choice(questions: Path, tmp_path: Path) -> None:
    config = lora(None, "query", "value", modules_to_save=["classifier"])
    adapter = foreign_checkpoint(tmp_path, "AutoModelForMultipleChoice", "bert", config)
    said, _, out = fitted_and_predicted(adapter, questions, tmp_path)
    assert said["task"] == "task: multiple choice, one text for each choice"
    bayes = BayesianPeft.from_pretrained(out)
    assert bayes.model.task == MultipleChoice()
    rows = load_rows(questions, "test", choices=True)
    loader = make_loader(encode_choices(rows, tokenizer()), tokenizer())
    expected = bayes.predict_loader(loader, progress=False).probabilities
    found = probabilities(lines(tmp_path / "preds"))
    assert torch.allclose(found, expected, atol=1e-5)
    for n, own in enumerate(rows.choices):
        assert (found[n] > 0).tolist() == [place < len(own) for place in range(4)]


def classifier(tmp_path: Path, num_labels: int) -> Path:
    auto, config = "AutoModelForSequenceClassification", lora("SEQ_CLS", "query", "value")
    return foreign_checkpoint(tmp_path, auto, "bert", config, num_labels=num_labels)


def text_rows(tmp_path: Path, labels: list[Any]) -> Path:
    rows = [{"text": f"which is {word} ?", "label": label} for word, label in labels]
    return write_rows(tmp_path / "rows.jsonl", rows)


SEVERAL = [("fire", ["hot", "lit"]), ("ice", []), ("sun", ["lit"]), ("snow", ["dry"])] * 3


def test_several_labels_a_row(tmp_path: Path) -> None:
    data = text_rows(tmp_path, SEVERAL)
    said, about, out = fitted_and_predicted(classifier(tmp_path, 3), data, tmp_path)
    assert said["task"] == "task: several labels a row, each of which applies or not"
    assert set(about["metrics"]) == {"rows", "nll", "brier", "exact", "f1"}
    bayes = BayesianPeft.from_pretrained(out)
    assert type(bayes.likelihood).__name__ == "Bernoulli"
    assert bayes.model.config.problem_type == "multi_label_classification"
    found = lines(tmp_path / "preds")
    assert found[0]["label"] == [0, 1, 1]
    for row in found:
        assert row["prediction"] == [int(p > 0.5) for p in row["probabilities"]]
        said = zip(("dry", "hot", "lit"), row["prediction"], strict=True)
        assert row["names"] == [name for name, yes in said if yes]
    said_yes = torch.tensor([row["prediction"] for row in found]).bool()
    truth = torch.tensor([row["label"] for row in found]).bool()
    exact = float((said_yes == truth).all(1).float().mean())
    assert about["metrics"]["exact"] == pytest.approx(exact)
    p = probabilities(found).double()
    nll = -torch.where(truth, p, 1 - p).log().sum(1).mean()
    assert about["metrics"]["nll"] == pytest.approx(float(nll), rel=1e-4)
    both = int((said_yes & truth).sum())
    assert about["metrics"]["f1"] == pytest.approx(2 * both / int(said_yes.sum() + truth.sum()))


def test_names_of_a_fit_are_kept_where_rows_have_fewer(tmp_path: Path) -> None:
    rows = [("fire", "hot"), ("ice", "cold"), ("sun", "hot"), ("stone", "dry")] * 3
    checkpoint, out = classifier(tmp_path, 3), tmp_path / "fitted"
    ok("fit", checkpoint, "--data", text_rows(tmp_path, rows), "--output", out)
    few = text_rows(tmp_path, [("fire", "hot"), ("sun", "hot"), ("ice", "cold")])
    ok("predict", out, "--data", few, "--output", tmp_path / "preds")
    found = lines(tmp_path / "preds")
    assert [row["label"] for row in found] == [2, 2, 0]
    assert [row["name"] for row in found] == [
        ("cold", "dry", "hot")[r["prediction"]] for r in found
    ]


def test_one_output_is_a_regression(tmp_path: Path) -> None:
    data = text_rows(tmp_path, [("fire", 3.5), ("ice", -2.0), ("sun", 2.0), ("snow", -1.0)] * 3)
    said, about, _ = fitted_and_predicted(classifier(tmp_path, 1), data, tmp_path)
    assert said["task"] == "task: regression"
    assert {"rmse", "nll"} <= set(about["metrics"])


def test_one_output_with_yes_and_no_is_asked_back(tmp_path: Path) -> None:
    data = text_rows(tmp_path, [("fire", 1), ("ice", 0)] * 6)
    message = refused("fit", classifier(tmp_path, 1), "--data", data)
    assert "a regression, or one yes-or-no question?" in message


def test_more_labels_than_outputs(tmp_path: Path) -> None:
    data = text_rows(tmp_path, [("fire", [0, 1, 1, 0]), ("ice", [1, 0, 0, 1])] * 4)
    message = refused("fit", classifier(tmp_path, 3), "--data", data)
    assert "4 classes, the checkpoint was trained for 3" in message


def test_other_tasks_are_refused_with_the_way_out(tmp_path: Path) -> None:
    data = text_rows(tmp_path, SEVERAL)
    config = lora("QUESTION_ANS", "query", "value")
    adapter = foreign_checkpoint(tmp_path / "b", "AutoModelForQuestionAnswering", "bert", config)
    message = refused("fit", adapter, "--data", data)
    assert "is an adapter of AutoModelForQuestionAnswering" in message
    assert "a task of your own" in message
