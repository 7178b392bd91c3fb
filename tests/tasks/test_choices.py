"""Multiple choice: a row's gradient is the sum over its choices, whatever the sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.batches import forward, split_batch
from posthoc_bhpeft.blocks import discover
from posthoc_bhpeft.curvature import KFAC, DenseGGN
from posthoc_bhpeft.errors import DataError, ModelError
from posthoc_bhpeft.likelihood import Categorical
from posthoc_bhpeft.selection import FixedPrecision
from posthoc_bhpeft.tasks import MultipleChoice, PairScores, TaskModel
from posthoc_bhpeft.tasks.absent import ABSENT
from posthoc_bhpeft.tasks.choices import with_absent_read
from tests.contracts import any_direction, observations
from tests.oracles import dense_ggn
from tests.tasks.tiny import check_gradients, hybrid, inputs_of, questions, tuned
from tests.tasks.tiny import outputs as say


def small_lora() -> LoraConfig:
    """A new one each time, since peft writes the name of the base into it."""
    return LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])


def bare(config: Any = None, family: str = "bert") -> nn.Module:
    """As transformers has it, without a task."""
    return tuned("AutoModelForMultipleChoice", family, config or small_lora())


def choosing(config: Any = None) -> nn.Module:
    return TaskModel(bare(config), MultipleChoice()).eval()


def scoring(config: Any = None) -> nn.Module:
    auto = "AutoModelForSequenceClassification"
    return TaskModel(
        tuned(auto, "bert", config or hybrid("SEQ_CLS"), num_labels=1), PairScores()
    ).eval()


MODELS = {"bare": bare, "choosing": choosing, "scoring": scoring}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 2, 4), (2, 2, 2)], ids=str)
def test_gradients_of_every_block_a_row(make: Any, shape: tuple[int, int, int]) -> None:
    """Also where there are as many rows as positions, so that sizes do not tell them apart."""
    model, batch = make(), questions(*shape)
    assert forward(model, split_batch(batch)[0]).shape == shape[:2]
    check_gradients(model, batch)


def test_gradients_of_a_prefix_and_adapters() -> None:
    config = hybrid(None, num_virtual_tokens=2)
    config.modules_to_save = ["classifier"]
    model, batch = choosing(config), questions(3, 3, 3)
    kinds = {block.kind.value for block in discover(model)}
    assert kinds == {"lora", "adapter", "prefix", "head"}
    check_gradients(model, batch)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_are_those_of_batches_of_one(make: Any) -> None:
    model, batch = make(), questions(3, 4, 3)
    blocks = discover(model)
    direction = any_direction(model, batch)
    together = observations(model, blocks, batch, direction)
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        single = observations(model, blocks, one, direction[row : row + 1])
        for name, seen in together.items():
            assert torch.allclose(seen.gradient()[row], single[name].gradient()[0], atol=1e-9)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_curvature_is_the_exact_ggn(make: Any) -> None:
    model, batches = make(small_lora()), [questions(3, 4, 3), questions(2, 4, 4, seed=1)]
    bayes = fit(model, batches, curvature=DenseGGN())
    blocks = [block for block in bayes.blocks if "layer.1" in block.name or block.kind == "head"]
    assert len(blocks) >= 6
    exact = dense_ggn(model, blocks, batches, Categorical())
    for name, matrix in exact.items():
        found = bayes.posterior.curvature[name].dense()
        assert torch.allclose(
            found, matrix, rtol=1e-6, atol=1e-8 * float(matrix.abs().max()) + 1e-12
        )


def test_backpack_groups_choices_alike() -> None:
    """An engine that shares no line with the hooks."""
    backpack = pytest.importorskip("posthoc_bhpeft.interop.backpack")
    model, batches = bare(), [questions(3, 4, 3)]
    hooks = fit(model, batches)
    other = fit(model, batches, engine=backpack.BackPACK())
    for name, operator in other.posterior.curvature.items():
        found = hooks.posterior.curvature[name].dense()
        assert torch.allclose(found, operator.dense(), rtol=1e-6, atol=1e-9)


def test_kfac_sees_choices_as_positions() -> None:
    fit(bare(), [questions()], curvature=KFAC())


def fit(model: nn.Module, batches: Any, **settings: Any) -> BayesianPeft:
    settings.setdefault("prior", FixedPrecision(2.0))
    return bayesianize(model, batches, progress=False, **settings)


def without(batch: dict[str, Tensor], *places: tuple[int, int]) -> dict[str, Tensor]:
    """A batch in which some choices are not there."""
    mask = batch["attention_mask"].clone()
    for row, choice in places:
        mask[row, choice] = 0
    return {**batch, "attention_mask": mask, "labels": torch.zeros_like(batch["labels"])}


@pytest.mark.parametrize("make", [choosing, scoring])
def test_choices_that_are_not_there_get_nothing(make: Any) -> None:
    model, full = make(), questions(3, 4, 5)
    batch = without(full, (0, 3), (2, 2), (2, 3))
    logits = say(model, batch)
    absent = torch.zeros(3, 4, dtype=torch.bool)
    absent[0, 3] = absent[2, 2] = absent[2, 3] = True
    assert torch.equal(logits == ABSENT, absent)
    assert torch.equal(logits[~absent], say(model, full)[~absent])
    assert not batch["attention_mask"][0, 3].any()
    prediction = fit(model, [batch]).predict(batch)
    assert torch.equal(prediction.probabilities == 0, absent)
    assert torch.isfinite(prediction.total).all()
    assert torch.isfinite(prediction.covariance).all()


def test_every_choice_has_something_to_attend_to() -> None:
    """Some attention makes NaN of a text without any, in the gradients too."""
    batch = inputs_of(without(questions(3, 4, 5), (0, 3), (2, 2)))
    given, absent = with_absent_read(batch)
    assert absent.sum() == 2
    assert bool(given["attention_mask"].any(-1).all())
    assert torch.equal(given["attention_mask"][~absent], batch["attention_mask"][~absent])


@pytest.mark.parametrize("make", [choosing, scoring])
def test_rows_of_fewer_choices_are_fitted_as_if_there_were_no_others(make: Any) -> None:
    model, batch = make(), without(questions(3, 3), (0, 2), (1, 2), (2, 2))
    few = {n: v if n == "labels" else v[:, :2] for n, v in batch.items()}
    three, two = fit(model, [batch]), fit(model, [few])
    for name, operator in two.posterior.curvature.items():
        # Rounding is all there is in a bias that all choices share: softmax does not see it.
        whole = three.posterior.curvature[name].dense()
        assert torch.allclose(whole, operator.dense(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_saved_and_loaded(tmp_path: Any, make: Any) -> None:
    model, batch = make(), questions()
    bayes = bayesianize(model, [batch], progress=False)
    bayes.save_pretrained(tmp_path)
    again = BayesianPeft.from_pretrained(tmp_path)
    assert type(again.model) is type(model)
    assert [block.name for block in again.blocks] == [block.name for block in bayes.blocks]
    expected, found = bayes.predict(batch), again.predict(batch)
    assert torch.equal(expected.probabilities, found.probabilities)
    assert torch.equal(expected.covariance, found.covariance)


def test_what_is_no_multiple_choice_is_refused() -> None:
    batch = inputs_of(questions())
    flat = {name: value.flatten(0, 1) for name, value in batch.items()}
    with pytest.raises(
        DataError, match=r"'input_ids' \(N, K, T\), one text a choice; got \(12, 5\)"
    ):
        forward(choosing(), flat)
    with pytest.raises(DataError, match="Choices are filled from the left"):
        forward(choosing(), inputs_of(without(questions(), (1, 0))))
    three = tuned("AutoModelForSequenceClassification", "bert", hybrid("SEQ_CLS"))
    with pytest.raises(ModelError, match=r"one logit a pair, .*gave \(12, 3\) for 3 rows of 4"):
        forward(TaskModel(three, PairScores()), batch)
