"""Answer tokens: which logits are read, what they cost, and their gradients a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PrefixTuningConfig, PromptTuningConfig
from torch import Tensor, nn

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.batches import forward
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import DenseGGN
from posthoc_bhpeft.errors import CheckpointError, ConfigError, DataError, ModelError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.predictive import LaplaceBridge, Linearized
from posthoc_bhpeft.selection import FixedPrecision
from posthoc_bhpeft.tasks import AnswerTokens, TaskModel, base_of, split_task
from posthoc_bhpeft.tasks.absent import ABSENT
from posthoc_bhpeft.tasks.answers import next_token_logits
from tests.oracles import dense_ggn, relative_error
from tests.tasks.tiny import (
    ANSWERS,
    alone,
    asked,
    check_gradients,
    inputs_of,
    language_model,
    lora,
    prompts,
)
from tests.tasks.tiny import outputs as say

FAMILIES = ("llama", "qwen2", "gpt2", "opt", "gemma2")


def lora_for(family: str) -> Any:
    return lora("CAUSAL_LM", "c_attn") if family == "gpt2" else lora()


def whole(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the choices, cut out of all logits `(N, T, V)`."""
    last = batch["attention_mask"].sum(1) - 1
    return say(model, batch)[torch.arange(len(last)), last][:, list(ANSWERS.token_ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_token_after_the_prompt(family: str) -> None:
    model, batch = language_model(family, lora_for(family)), prompts()
    expected = whole(model, batch)
    assert expected.std(0).min() > 1e-3
    assert torch.allclose(say(TaskModel(model, ANSWERS), batch), expected, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_left_or_right_or_none_is_the_same(family: str) -> None:
    # The softmax of eager attention is float32, whose range a float64 mask overflows.
    eager = family == "gemma2"
    model, batch = (
        asked(family, lora_for(family)).to(torch.float32 if eager else torch.float64),
        prompts(),
    )
    expected = torch.cat([say(model, one) for one in alone(batch)])
    close = {"rtol": 0, "atol": 1e-5 if eager else 1e-9}
    assert torch.allclose(say(model, batch), expected, **close)
    assert torch.allclose(say(model, prompts(left=True)), expected, **close)


def test_tokens_hidden_inside_a_prompt_move_no_other() -> None:
    """As the default prior rule hides them."""
    model, right, left = asked(), prompts(), prompts(left=True)
    hidden = say(model, {**right, "attention_mask": with_hole(right["attention_mask"])})
    assert not torch.allclose(hidden, say(model, right), atol=1e-3)
    other = say(model, {**left, "attention_mask": with_hole(left["attention_mask"])})
    assert torch.allclose(hidden, other, atol=1e-9)


def with_hole(mask: Tensor) -> Tensor:
    """The second real token of each row hidden."""
    return mask.masked_fill(mask.cumsum(1) == 2, 0)


def test_without_a_mask_the_last_token_counts() -> None:
    model, batch = language_model(), prompts(rows=1)
    bare = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    assert torch.allclose(say(TaskModel(model, ANSWERS), bare), whole(model, batch))


def test_the_head_sees_one_position_a_row() -> None:
    model, batch = asked(), prompts()
    shapes: list[tuple[int, ...]] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: shapes.append((*args[0].shape, *out.shape)))
    before = len(head._forward_pre_hooks)
    say(model, batch)
    assert shapes == [(4, 1, 32, 4, 1, 60)]
    assert len(head._forward_pre_hooks) == before


def test_the_hook_is_gone_after_an_error() -> None:
    model = asked()
    with pytest.raises(DataError):
        forward(model, {"input_ids": torch.full((1, 3), 10**6)})
    assert not model.model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("virtual", [False, True], ids=["hybrid", "prompt tuning"])
def test_a_head_that_is_not_found_gives_the_same(
    virtual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3) if virtual else None
    model, batch = asked("llama", config), prompts()
    expected = say(model, batch)
    monkeypatch.setattr(type(base_of(model.model)), "get_output_embeddings", lambda _: None)
    assert torch.allclose(say(model, batch), expected, atol=1e-12)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_before_the_prompt(config: Any) -> None:
    model, batch = (
        language_model("llama", config(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        prompts(),
    )
    logits = say(model, batch)
    last = batch["attention_mask"].sum(1) - 1 + logits.shape[1] - 9
    expected = logits[torch.arange(4), last][:, list(ANSWERS.token_ids)]
    assert torch.allclose(say(TaskModel(model, ANSWERS), batch), expected, atol=1e-10)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_gradients_of_every_block_a_row(family: str, left: bool) -> None:
    check_gradients(asked(family), prompts(3, left=left))


def test_lora_on_the_head_is_seen_too() -> None:
    model, batch = asked("llama", lora("CAUSAL_LM", "q_proj", "lm_head")), prompts(3)
    assert sum("lm_head" in block.name for block in discover(model)) == 2
    check_gradients(model, batch)


def test_curvature_is_the_exact_ggn() -> None:
    model, batches = asked("llama", lora()), [prompts(3), prompts(2, left=True, seed=1)]
    bayes = fit(model, batches, curvature=DenseGGN())
    exact = dense_ggn(model, bayes.blocks, batches, Categorical())
    for name, operator in bayes.posterior.curvature.items():
        assert relative_error(operator.dense(), exact[name]) < 1e-6


def fit(model: nn.Module, batches: Any, **settings: Any) -> BayesianPeft:
    settings.setdefault("prior", FixedPrecision(2.0))
    return bayesianize(model, batches, progress=False, **settings)


def with_counts(batch: dict[str, Tensor], counts: list[int]) -> dict[str, Tensor]:
    labels = batch["labels"] % torch.tensor(counts)
    return {**batch, "labels": labels, "n_choices": torch.tensor(counts)}


def test_choices_that_a_row_does_not_have_get_nothing() -> None:
    model, batch = asked(), with_counts(prompts(3), [4, 2, 3])
    logits = say(model, batch)
    assert torch.equal(logits == ABSENT, torch.tensor([[0] * 4, [0, 0, 1, 1], [0, 0, 0, 1]]).bool())
    prediction = fit(model, [batch]).predict(batch)
    assert torch.equal(prediction.probabilities == 0, logits == ABSENT)
    assert torch.allclose(prediction.probabilities.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.isfinite(prediction.total).all()
    assert torch.isfinite(prediction.covariance).all()


def test_rows_with_two_choices_are_fitted_as_if_there_were_no_others() -> None:
    batch = with_counts(prompts(3), [2, 2, 2])
    model = asked("llama", lora())
    two = TaskModel(model.model, AnswerTokens(ANSWERS.token_ids[:2]))
    four, only = fit(model, [batch]), fit(two, [{**batch, "n_choices": torch.tensor([2, 2, 2])}])
    for name, operator in only.posterior.curvature.items():
        assert relative_error(four.posterior.curvature[name].dense(), operator.dense()) < 1e-6
    probabilities = four.predict(batch).probabilities
    assert torch.allclose(probabilities[:, :2], only.predict(batch).probabilities, atol=1e-6)


def test_the_laplace_bridge_knows_no_others_either() -> None:
    batch, link = with_counts(prompts(3), [2, 2, 2]), Linearized(link=LaplaceBridge())
    model = asked("llama", lora())
    two = TaskModel(model.model, AnswerTokens(ANSWERS.token_ids[:2]))
    found = fit(model, [batch]).predict(batch, link)
    assert torch.isfinite(found.epistemic).all()
    expected = fit(two, [batch]).predict(batch, link)
    assert torch.allclose(found.probabilities[:, :2], expected.probabilities, atol=1e-6)


def test_a_label_on_a_choice_that_is_not_there_is_refused() -> None:
    batch = {**with_counts(prompts(3), [4, 2, 3]), "labels": torch.tensor([3, 2, 0])}
    message = "Label 2 in row 1 of the batch names a choice that is not there: the row has 2"
    with pytest.raises(DataError, match=message):
        fit(asked(), [batch])


def test_labels_are_judged_by_the_choices_of_their_own_row() -> None:
    batch = {**with_counts(prompts(3), [2, 4, 3]), "labels": torch.tensor([1, 3, 2])}
    assert fit(asked(), [batch]).posterior.n_outputs == 4


@pytest.mark.parametrize("counts", [[0, 2, 2], [5, 2, 4]])
def test_impossible_numbers_of_choices_are_refused(counts: list[int]) -> None:
    batch = {**prompts(3), "n_choices": torch.tensor(counts)}
    message = rf"A row has {counts[0]} choices \('n_choices'\), and the task has tokens for 1 to 4"
    with pytest.raises(DataError, match=message):
        forward(asked(), inputs_of(batch))


@pytest.mark.parametrize("config", [None, lora()], ids=["hybrid", "lora"])
def test_saved_and_loaded_with_its_task(tmp_path: Any, config: Any) -> None:
    model, batch = asked("qwen2", config), prompts()
    bayes = bayesianize(model, [batch], progress=False)
    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path)
    assert isinstance(again.model, TaskModel)
    assert again.model.task == ANSWERS
    assert [block.name for block in again.blocks] == [block.name for block in bayes.blocks]
    for name, column in bayes.predict(batch).columns().items():
        other = again.predict(batch).columns()[name]
        assert (column is None) == (other is None)
        assert column is None or torch.equal(column, other)
    inner = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path, is_trainable=True, dtype=torch.float64
    )
    assert torch.equal(say(inner, batch), say(model.model, batch))
    wrapped = BayesianPeft.from_pretrained(tmp_path, inner)
    assert_same_prediction(wrapped, bayes, batch)


def assert_same_prediction(one: BayesianPeft, other: BayesianPeft, batch: Any) -> None:
    assert torch.equal(one.predict(batch).probabilities, other.predict(batch).probabilities)


def test_a_task_of_another_version_is_named(tmp_path: Any) -> None:
    bayes = fit(TaskModel(language_model(), Halved((5, 9))), [binary()])
    bayes.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"task 'Halved', which this version"):
        BayesianPeft.from_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path, bayes.model)
    assert_same_prediction(again, bayes, binary())


def binary() -> dict[str, Tensor]:
    batch = prompts()
    return {**batch, "labels": batch["labels"] % 2}


class Halved(AnswerTokens):
    """Somebody's own task."""

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return super().outputs(model, inputs) / 2


def test_split_task() -> None:
    model = asked()
    assert split_task(model) == (model.model, ANSWERS)
    assert split_task(model.model) == (model.model, None)
    assert model.config is model.model.config
    assert TaskModel(nn.Linear(2, 2), ANSWERS).config is None


@pytest.mark.parametrize("tokens", [(5,), (5, 9, 5)])
def test_tokens_must_differ(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"two or more different tokens, got \("):
        AnswerTokens(tokens)


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    model = TaskModel(language_model(), AnswerTokens((5, 60)))
    with pytest.raises(ModelError, match="has token 60, but the model has 60 tokens"):
        forward(model, inputs_of(prompts()))


def test_what_is_no_prompt_is_refused() -> None:
    model, batch = asked(), inputs_of(prompts())
    with pytest.raises(DataError, match=r"this batch has \['attention_mask'\]"):
        forward(model, {"attention_mask": batch["attention_mask"]})
    with pytest.raises(DataError, match=r"this batch has \(9,\)"):
        forward(model, {"input_ids": batch["input_ids"][0]})
    with pytest.raises(DataError, match=r"must be \(N, T\) as input_ids \(4, 9\)"):
        forward(model, {**batch, "attention_mask": batch["attention_mask"][:, None, None]})
    empty = {**batch, "attention_mask": batch["attention_mask"].clone()}
    empty["attention_mask"][2] = 0
    with pytest.raises(DataError, match="has no token at all"):
        forward(model, empty)


def test_a_model_that_is_no_language_model_is_refused() -> None:
    from tests.models import lora as classifier

    with pytest.raises(ModelError, match=r"BertForSequenceClassification gave \(4, 3\)"):
        forward(TaskModel(classifier(), ANSWERS), inputs_of(prompts()))


def test_a_language_model_without_a_task_is_told_of_tasks() -> None:
    with pytest.raises(ModelError, match=r"TaskModel\(model, AnswerTokens"):
        bayesianize(language_model(), [prompts()], progress=False)


def test_next_token_logits_keep_the_vocabulary() -> None:
    model, batch = language_model(), prompts()
    logits = next_token_logits(model, inputs_of(batch))
    assert logits.shape == (4, 60)
    assert torch.equal(logits[:, list(ANSWERS.token_ids)], say(TaskModel(model, ANSWERS), batch))
