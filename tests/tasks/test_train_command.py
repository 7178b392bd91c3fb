"""`bhpeft train` on questions with choices, and every command that goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft import BayesianPeft, estimate
from posthoc_bhpeft.checkpoints import load_adapter
from posthoc_bhpeft.data import load_rows, make_loader
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.tasks import AnswerTokens, TaskModel
from tests.cli.tools import TINY, call, ok, refused
from tests.tasks.test_commands import lines, probabilities
from tests.tasks.test_training import KINDS, learnable
from tests.tasks.words import make_base, make_questions, tokenizer, write_rows

SMALL = (*TINY, "--epochs", 2, "--batch-size", 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", learnable(32))
    write_rows(folder / "test.jsonl", learnable(13, seed=1))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {form: make_base(folder / form.value, *kind) for form, kind in KINDS.items()}


def trained(base: Path, data: Path, output: Path, *options: Any) -> Any:
    return ok("train", "--model", base, "--data", data, "--output", output, *SMALL, *options)


@pytest.mark.parametrize("form", KINDS, ids=lambda form: form.value)
def test_from_training_to_audit(
    form: Form, bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    out, preds = tmp_path / "out", tmp_path / "preds"
    said = trained(bases[form], data, out)
    known = {Form.PROMPT: "the letter of a choice", Form.CHOICES: "one text for each choice"}
    assert known[form] in said["task"]
    assert said["label_names"] == ["A", "B", "C"]
    digest = json.loads((out / "training.json").read_text("utf-8"))["train_digest"]
    for named in ((), ("--data", data)):
        again = ok("fit", out, *named)
        assert (again["task"], again["digest"]) == (said["task"], digest)
    about = ok("predict", out, "--output", preds)
    assert about["metrics"]["rows"] == 13
    bayes = BayesianPeft.from_pretrained(out)
    rows = load_rows(data, "test", choices=True)
    loader = make_loader(form.encode(rows, tokenizer(), 128), tokenizer())
    expected = bayes.predict_loader(loader, progress=False).probabilities
    assert expected is not None
    assert torch.allclose(probabilities(lines(preds)), expected, atol=1e-5)
    point = ok("predict", out, "--predictive", "map", "--output", tmp_path / "map")
    figures = ok("audit", out, "--resamples", 20)["figures"]
    assert figures["MAP"]["nll"]["estimate"] == pytest.approx(point["metrics"]["nll"], rel=1e-4)
    assert figures["ours"]["nll"]["estimate"] == pytest.approx(about["metrics"]["nll"], rel=1e-4)


def test_members_of_an_ensemble_are_asked_the_same(
    bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        trained(bases[Form.PROMPT], data, tmp_path / str(seed), "--seed", seed, "--max-rows", 16)
    first, second = tmp_path / "0", tmp_path / "1"
    found = ok("audit", first, "--ensemble", second, "--resamples", 20)["figures"]
    parts = [
        ok("predict", folder, "--predictive", "map", "--output", folder / "preds")
        and probabilities(lines(folder / "preds"))
        for folder in (first, second)
    ]
    labels = torch.tensor(load_rows(data, "test", choices=True).labels)
    mean = (parts[0] + parts[1]) / 2
    nll = -mean[torch.arange(len(labels)), labels].log().mean()
    assert found["ensemble of 2"]["nll"]["estimate"] == pytest.approx(float(nll), rel=1e-4)


def test_prompts_are_cut_in_the_fit_as_in_the_training(
    bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trained(bases[Form.PROMPT], data, out, "--max-length", 9)
    ok("fit", out, "--prior", "fixed", "--precision", 1)
    ok("predict", out, "--predictive", "map", "--output", tmp_path / "preds")
    rows = load_rows(data, "test", choices=True)
    model = Form.PROMPT.wrap(load_adapter(out), rows, tokenizer())
    for length, same in ((9, True), (512, False)):
        loader = make_loader(Form.PROMPT.encode(rows, tokenizer(), length), tokenizer())
        (batch,) = loader
        del batch["labels"]
        with torch.no_grad():
            expected = model(**batch).softmax(1)
        found = probabilities(lines(tmp_path / "preds"))
        assert torch.allclose(found, expected, atol=1e-5) is same
    assert ok("estimate", out)["passes"][0]["batches"] > 0


def test_without_a_length_prompts_are_whole(
    bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    # The tiny encoder has positions for no more.
    for form, length in ((Form.PROMPT, 512), (Form.CHOICES, 62)):
        out = tmp_path / form.value
        trained(bases[form], data, out, "--max-rows", 8)
        record = json.loads((out / "training.json").read_text("utf-8"))
        assert record["settings"]["max_length"] == length


def test_an_estimate_is_of_the_letters_alone(
    bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trained(bases[Form.PROMPT], data, out, "--max-rows", 8, "--max-length", 16)
    found = ok("estimate", out)
    model = TaskModel(load_adapter(out), AnswerTokens((5, 6, 7)))
    direct = estimate(model, length=16, n_rows=8)
    assert direct.work.batch is not None
    assert direct.work.batch.outputs == (3,)
    assert found["passes"] == [vars(one) for one in direct.passes]
    choices = tmp_path / "choices"
    trained(bases[Form.CHOICES], data, choices, "--max-rows", 8)
    assert "Use Python: estimate(model, loader)" in refused("estimate", choices)


def test_classes_become_choices_where_asked(bases: dict[Form, Path], tmp_path: Path) -> None:
    rows = [{"text": f"is {w} hot", "label": n % 2} for n, w in enumerate(("ice", "fire") * 6)]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    (tmp_path / "data" / "meta.json").write_text('{"label_names": ["cold", "hot"]}', "utf-8")
    options = ("--task", "choices", "--no-early-stopping")
    said = trained(bases[Form.PROMPT], tmp_path / "data", tmp_path / "out", *options)
    assert "the letter of a choice" in said["task"]
    assert said["label_names"] == ["cold", "hot"]
    ok("fit", tmp_path / "out")
    ok("predict", tmp_path / "out", "--split", "train", "--output", tmp_path / "preds")
    assert {row["name"] for row in lines(tmp_path / "preds")} <= {"cold", "hot"}
    plain = trained(bases[Form.PROMPT], tmp_path / "data", tmp_path / "text", "--no-early-stopping")
    assert plain["task"] == "task: one of several classes"


def asked(base: Path, data: Path, tmp_path: Path, *options: Any) -> str:
    """The error of a training that must not begin."""
    out = tmp_path / "no"
    message = refused("train", "--model", base, "--data", data, "--output", out, *options)
    assert not out.exists()
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "text"), "These rows are multiple choice"),
        (("--regression",), "Leave out --regression"),
        (("--max-length", 3), "at least 4 tokens"),
    ],
)
def test_what_makes_no_sense_is_said_before_any_training(
    options: Any, message: str, bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    assert message in asked(bases[Form.PROMPT], data, tmp_path, *options)


def test_a_base_that_cannot_answer(data: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "AutoModel", "llama")
    message = asked(base, data, tmp_path)
    assert "(llama, LlamaModel in its config.json) can neither answer with a letter" in message


def test_rows_with_more_choices_than_letters(
    bases: dict[Form, Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trained(bases[Form.PROMPT], data, out, "--max-rows", 8)
    ok("fit", out, "--prior", "fixed", "--precision", 1)
    rows = make_questions(5, fewest=4)
    more = write_rows(tmp_path / "more.jsonl", rows)
    expected = "row 0 has 4 choices, and the model was fitted to answer with 3 letters"
    assert expected in refused("predict", out, "--data", more, "--output", tmp_path / "no")
    assert expected in refused("audit", out, "--data", more)


def test_the_help_says_what_a_question_is() -> None:
    shown = " ".join(call("train", "--help").stdout.split())
    assert "A question is a row with a text, a list of texts in the column `choices`" in shown
