"""`train` on questions with choices: a language model's letters, and a head that scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.checkpoints import load_adapter
from posthoc_bhpeft.data import RowSettings, TextData, choose_rows
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.loader import make_loader
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.tasks import AnswerTokens, MultipleChoice, TaskModel
from posthoc_bhpeft.training import TrainingResult, TrainingSettings, form_for, train
from posthoc_bhpeft.training.building import Scored
from tests.tasks.words import make_base, make_questions, tokenizer, write_rows

KINDS = {
    Form.PROMPT: ("AutoModelForCausalLM", "llama"),
    Form.CHOICES: ("AutoModelForMultipleChoice", "roberta"),
}
SMALL = TrainingSettings(
    epochs=2,
    rank=2,
    bottleneck_size=4,
    num_virtual_tokens=2,
    learning_rate=1e-2,
    batch_size=8,
    patience=0,
)
HOT = ("fire", "sun")


def learnable(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions whose answer is the one choice that is hot, three times in four the first."""
    rows = make_questions(count, seed, fewest=3)
    for n, row in enumerate(rows):
        own = [choice for choice in row["choices"] if choice not in HOT][:2]
        place = 0 if n % 4 else 1
        row["choices"] = [*own[:place], HOT[n % 2], *own[place:]]
        row |= {"question": "which is hot ?", "label": place}
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RowSettings:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", learnable(32))
    write_rows(folder / "validation.jsonl", learnable(13, seed=1))
    return RowSettings(str(folder), choices=None)


@pytest.fixture(scope="module", params=KINDS, ids=lambda form: form.value)
def form(request: pytest.FixtureRequest) -> Form:
    return Form(request.param)


@pytest.fixture(scope="module")
def base(form: Form, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_base(tmp_path_factory.mktemp("base"), *KINDS[form]))


@pytest.fixture(scope="module")
def result(base: str, data: RowSettings) -> TrainingResult:
    chosen = choose_rows(data)
    return train(
        base,
        chosen.train,
        validation=chosen.validation,
        settings=SMALL,
        rows=data,
        progress=False,
    )


def logits_of(model: nn.Module, form: Form, rows: TextData, max_length: int = 128) -> torch.Tensor:
    """Each row in a batch of its own, so no padding can hide anything."""
    found = []
    for place in range(len(rows)):
        encoded = form.encode(rows.take([place]), tokenizer(), max_length)
        (batch,) = make_loader(encoded, tokenizer())
        del batch["labels"]
        with torch.no_grad():
            found.append(model(**batch)[0].double())
    return nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1e4)


def nll(model: nn.Module, form: Form, rows: TextData) -> float:
    """Mean over rows, each over its own choices only."""
    total = 0.0
    for row, own, label in zip(
        logits_of(model, form, rows), rows.choices or (), rows.labels or (), strict=True
    ):
        total -= float(row[: len(own)].log_softmax(0)[label])
    return total / len(rows)


def test_the_base_decides_the_form(base: str, data: RowSettings, form: Form) -> None:
    rows = choose_rows(data).train
    assert form_for(base, rows) is form
    assert form_for(base, TextData(("ice",))) is Form.TEXT


def test_all_three_parts_are_trained_for_the_task(result: TrainingResult, form: Form) -> None:
    assert isinstance(result.model, TaskModel)
    task = AnswerTokens.of(tokenizer(), (" A", " B", " C"))
    assert result.model.task == (task if form is Form.PROMPT else MultipleChoice())
    kinds = {block.kind.value for block in discover(result.model)}
    assert kinds == {"lora", "adapter", "prefix"} | ({"head"} if form is Form.CHOICES else set())
    assert not result.model.training


def test_the_recorded_nll_is_that_of_the_kept_weights(
    result: TrainingResult, data: RowSettings, form: Form
) -> None:
    validation = choose_rows(data).validation
    assert validation is not None
    metrics = result.record.metrics
    assert nll(result.model, form, validation) == pytest.approx(metrics["nll"], abs=1e-5)
    right = logits_of(result.model, form, validation).argmax(1) == torch.tensor(validation.labels)
    assert metrics["accuracy"] == pytest.approx(float(right.double().mean()))


def test_it_learns(base: str, data: RowSettings, form: Form) -> None:
    rows = choose_rows(data).train
    longer = TrainingSettings(**{**SMALL.__dict__, "epochs": 20, "learning_rate": 3e-2})
    before = train(base, rows, settings=TrainingSettings(**{**SMALL.__dict__, "epochs": 1,
                   "learning_rate": 1e-9}), progress=False)  # fmt: skip
    after = train(base, rows, settings=longer, progress=False)
    assert nll(after.model, form, rows) < 0.8 * nll(before.model, form, rows)


def test_a_saved_checkpoint_answers_as_before(
    result: TrainingResult, data: RowSettings, form: Form, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "out")
    rows = choose_rows(data).train
    again = form.wrap(load_adapter(folder), rows, tokenizer())
    ours = logits_of(result.model, form, rows)
    torch.testing.assert_close(logits_of(again, form, rows), ours, rtol=0, atol=0)
    assert result.record.training_rows().train.choices == rows.choices


def test_the_loss_counts_only_the_choices_of_a_row() -> None:
    logits = torch.tensor([[0.3, -0.2, -1e4], [1.0, 0.1, 0.4]])
    model = Scored(nn.Identity())
    found = model(torch.tensor([1, 2]), input=logits)
    first = -torch.tensor([0.3, -0.2]).log_softmax(0)[1]
    second = -logits[1].log_softmax(0)[2]
    torch.testing.assert_close(found["loss"], (first + second) / 2)
    assert found["logits"] is logits


def test_letters_are_those_of_both_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", learnable(8))
    more = learnable(8, seed=1)
    more[3]["choices"] = [*more[3]["choices"], "stone", "ice"]
    write_rows(tmp_path / "validation.jsonl", more)
    chosen = choose_rows(RowSettings(str(tmp_path), choices=None))
    assert chosen.validation is not None
    assert chosen.train.label_names == chosen.validation.label_names == tuple("ABCDE")
    base = str(make_base(tmp_path / "base", *KINDS[Form.PROMPT]))
    tuned = train(base, chosen.train, validation=chosen.validation, settings=SMALL, progress=False)
    assert tuned.record.label_names == tuple("ABCDE")


def test_a_base_that_answers_neither_way(data: RowSettings, tmp_path: Path) -> None:
    base = str(make_base(tmp_path, "AutoModel", "llama"))
    with pytest.raises(ConfigError, match=r"LlamaModel in its config.json.*ForCausalLM"):
        form_for(base, choose_rows(data).train)
