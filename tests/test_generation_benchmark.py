"""The parts of the benchmark of tokens and generation that train no model."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from posthoc_bhpeft import MAP, FixedPrecision, Tokens, bayesianize
from posthoc_bhpeft.batches import IGNORED
from tests.tasks.tiny import inputs_of, language_model, lora, prompts

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def texts(rows: int = 3) -> dict[str, torch.Tensor]:
    batch = inputs_of(prompts(rows))
    return {
        **batch,
        "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED),
    }


def fitted() -> Any:
    model = language_model(config=lora())
    return bayesianize(
        model, [texts()], likelihood=Tokens(shift=True), prior=FixedPrecision(3.0), progress=False
    )


def test_words_are_shuffled_the_same_way_each_time(bench: Any) -> None:
    models = bench("generation_models")
    text = "one two three four five six"
    found = models.with_words_shuffled(text)
    assert found != text
    assert sorted(found.split()) == sorted(text.split())
    assert found == models.with_words_shuffled(text)


def test_tags_of_words_and_of_their_tokens(bench: Any) -> None:
    models = bench("generation_models")
    assert [models.tags(word) for word in ("news", "News", "NEWS", "A")] == [0, 1, 2, 1]
    # A mark, a word of two tokens, a number, a word, a mark.
    places = [None, 0, 0, 1, 2, None]
    expected = [IGNORED, 2, IGNORED, IGNORED, 0, IGNORED]
    assert models.tags_of(["AP", "2004", "news"], places) == expected


def test_means_over_the_tokens_of_a_text(bench: Any) -> None:
    values = torch.tensor([[1.0, 3.0, 9.0], [4.0, 9.0, 9.0]])
    counts = torch.tensor([[True, True, False], [True, False, False]])
    assert bench("generation_models").text_means(values, counts).tolist() == [2.0, 4.0]


def test_the_loss_is_that_of_every_labelled_token(bench: Any) -> None:
    """Two batches of different lengths count by their tokens, not by their number."""
    bayes, first = fitted(), texts(3)
    second = {name: value[:, :5] for name, value in texts(1).items()}
    found = bench("generation_models").nll(bayes, [first, second], MAP())
    total, count = 0.0, 0
    for batch in (first, second):
        with torch.no_grad():
            logits = bayes.model(**inputs_of(batch)).logits
        for row, mask in enumerate(batch["attention_mask"].bool()):
            ids = batch["input_ids"][row][mask]
            logs = logits[row][mask].log_softmax(-1)
            total -= float(logs[:-1].gather(1, ids[1:, None]).sum())
            count += len(ids) - 1
    assert found == pytest.approx(total / count, abs=1e-10)


def test_doubts_of_texts_leave_padding_out(bench: Any) -> None:
    """A text has the same scores in a batch and alone."""
    models, bayes, batch = bench("generation_models"), fitted(), texts(3)
    together = models.doubts(bayes, [batch])
    length = int(batch["attention_mask"][2].sum())
    alone = models.doubts(bayes, [{name: value[2:, :length] for name, value in batch.items()}])
    assert length < batch["input_ids"].shape[1]
    assert set(together) == {"entropy", "epistemic", "surprise"}
    for name, values in together.items():
        assert values[2].item() == pytest.approx(alone[name].item(), rel=1e-6), name
        assert values[2].item() > 0


def test_another_precision_is_that_of_every_block(bench: Any) -> None:
    models, bayes = bench("generation_models"), fitted()
    assert models.chosen_precision(bayes) == 3.0
    assert models.chosen_precision(models.at_precision(bayes, 50.0)) == 50.0


def test_kinds_are_told_apart_by_hand(bench: Any) -> None:
    models = bench("generation_models")
    scores = {
        models.TEST: {"entropy": torch.tensor([1.0, 2.0])},
        "SST-2": {"entropy": torch.tensor([1.5, 3.0])},
    }
    found = models.apart(scores)
    assert found[models.TEST] == {"entropy": 1.5, "entropy AUROC": 0.5}
    assert found["SST-2"] == {"entropy": 2.25, "entropy AUROC": 0.75}


def test_the_error_of_a_step_is_relative(bench: Any) -> None:
    found = bench("generation_models").relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
    assert found == pytest.approx(1 / 5)


def test_losses_over_seeds_by_hand(bench: Any) -> None:
    page = bench("generation")
    ways = ("trained model", "precision chosen", "Tangent()")
    figures = [(3.0, 100.0 * k, 3.0 - k / 4) for k in (1, 3)]
    losses = [{"losses": dict(zip(ways, found, strict=True))} for found in figures]
    seeds = [dict.fromkeys(page.EPOCHS, found) for found in losses]
    rows = [line.split(" | ") for line in page.losses_table(seeds).splitlines()[2:]]
    assert rows[0][:3] == ["| trained model", "3.0000 ± 0.0000", ""]
    assert rows[1][1] == f"200 ± {math.sqrt(2) * 100:.0f}"
    assert rows[2][1:3] == [f"2.5000 ± {math.sqrt(2) / 4:.4f}", "-0.7500 to -0.2500"]
