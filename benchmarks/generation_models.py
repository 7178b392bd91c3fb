"""The models of the generation benchmark, their texts, and what is measured on each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from posthoc_bhpeft import (
    MAP,
    BayesianPeft,
    Sampled,
    Tangent,
    Tokens,
    VisiblePrecision,
    bayesianize,
    generate_with_uncertainty,
)
from posthoc_bhpeft.audit.metrics import accuracy, negative_log_likelihood
from posthoc_bhpeft.audit.metrics.detection import auroc
from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.checkpoints import load_tokenizer, resolve_model
from posthoc_bhpeft.data import load_rows
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.predictive import LogOdds

Batch = dict[str, Tensor]
TRAINING_TEXTS, LENGTH, BATCH_SIZE, LEARNING_RATE = 320, 64, 16, 2e-3
RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
EPOCHS = {"ag_news": 8, "sst2": 3}
DRAWS, PRECISIONS = 8, (1.0, 1000.0)
NLL_TEXTS, KIND_TEXTS, WRITTEN_TEXTS = 48, 48, 48
PROMPT, WRITTEN = 24, 24
TAGGER_TEXTS, TAGGER_TESTS, TAGGER_EPOCHS, TAGGER_LENGTH = 192, 64, 4, 40
TRAINED, TEST = "AG News, training", "AG News, test"
SHUFFLED = "the same, words shuffled"
KINDS = (TRAINED, TEST, SHUFFLED, "SST-2", "airline tweets", "DBpedia")
WRITTEN_KINDS = (TEST, SHUFFLED, "SST-2", "airline tweets")
FOLDERS = {"SST-2": "sst2", "airline tweets": "airline_tweets", "DBpedia": "dbpedia14"}


@dataclass(frozen=True)
class Shelf:
    """Where texts come from, for one seed.

    Attributes:
        data: Folder with one folder a set.
        seed: Draws training texts; test texts are the same for every seed.
    """

    data: Path
    seed: int

    def training(self, name: str, count: int) -> tuple[str, ...]:
        """Texts to train on."""
        return load_rows(self.data / name, "train", ignore_labels=True).draw(count, self.seed).texts

    def test(self, name: str, count: int) -> tuple[str, ...]:
        """Texts to test on."""
        return load_rows(self.data / name, "test", ignore_labels=True).draw(count, 0).texts

    def kind(self, kind: str, count: int) -> tuple[str, ...]:
        """Texts of one of `KINDS`, for a model that was trained on AG News."""
        if kind == TRAINED:
            return self.training("ag_news", TRAINING_TEXTS)[:count]
        if kind in (TEST, SHUFFLED):
            texts = self.test("ag_news", count)
            return texts if kind == TEST else tuple(map(with_words_shuffled, texts))
        return self.test(FOLDERS[kind], count)


def with_words_shuffled(text: str) -> str:
    """The same words in another order, always the same one."""
    return " ".join(shuffled(text.split(), 0))


def batches(texts: Sequence[str], tokenizer: Any) -> list[Batch]:
    """Texts in batches, their own tokens as labels."""
    found = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = dict(
            tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding=True,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append({**kept, "labels": labels})
    return found


def tuned(model: nn.Module, training: Sequence[Batch], epochs: int) -> nn.Module:
    """The model after a bare training loop; the learning rate falls to 0."""
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=LEARNING_RATE,
        weight_decay=0.0,
    )
    steps = epochs * len(training)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(training)).tolist():
            model(**training[index]).loss.backward()
            optimizer.step()
            falling.step()
            optimizer.zero_grad()
    return model.eval()


def language_model(folder: Path, name: str, shelf: Shelf) -> BayesianPeft:
    """A language model tuned on texts of a set, with its posterior as by default."""
    torch.manual_seed(shelf.seed)
    base = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)
    )
    training = batches(shelf.training(name, TRAINING_TEXTS), load_tokenizer(folder))
    model = tuned(get_peft_model(base, config), training, EPOCHS[name])
    return bayesianize(model, training, likelihood=Tokens(shift=True), progress=False)


def at_precision(bayes: BayesianPeft, precision: float) -> BayesianPeft:
    """The same fit under another prior."""
    prior = bayes.posterior.prior.with_floor(precision)
    return replace(bayes, posterior=bayes.posterior.with_prior(prior))


def chosen_precision(bayes: BayesianPeft) -> float:
    """The one precision of all blocks."""
    (precision,) = set(bayes.posterior.prior.precision.values())
    return precision


def losses(bayes: BayesianPeft, test: Sequence[Batch]) -> dict[str, float]:
    """NLL in nats a token: trained weights, and both ways of drawing at several precisions."""
    found = {
        "trained model": nll(bayes, test, MAP()),
        "precision chosen": chosen_precision(bayes),
    }
    for name, predictive in (("Tangent()", Tangent(DRAWS)), ("Sampled()", Sampled(DRAWS))):
        found[f"{name} as chosen"] = nll(bayes, test, predictive)
        for precision in PRECISIONS:
            other = at_precision(bayes, precision)
            found[f"{name} at {precision:g}"] = nll(other, test, predictive)
    return found


def nll(bayes: BayesianPeft, test: Sequence[Batch], predictive: Any) -> float:
    """In nats a labelled position."""
    total, count = 0.0, 0
    for batch in test:
        rows = bayes.predict(batch, predictive).at_positions()
        total += len(rows) * negative_log_likelihood(rows.probabilities, rows.labels)
        count += len(rows)
    return total / count


def doubts(bayes: BayesianPeft, texts: Iterable[Batch]) -> dict[str, Tensor]:
    """Of each text, the mean over its tokens of three scores that may tell it from others."""
    found: dict[str, list[Tensor]] = {"entropy": [], "epistemic": [], "surprise": []}
    for batch in texts:
        plain, ours = bayes.predict(batch, MAP()), bayes.predict(batch, Tangent(DRAWS))
        assert plain.probabilities is not None
        assert plain.mask is not None
        counts = plain.mask & (plain.labels != IGNORED)
        own = plain.probabilities.gather(-1, plain.labels.clamp_min(0)[..., None]).squeeze(-1)
        found["entropy"].append(text_means(plain.total, counts))
        found["epistemic"].append(text_means(ours.epistemic, counts))
        found["surprise"].append(text_means(-own.log(), counts))
    return {name: torch.cat(parts) for name, parts in found.items()}


def text_means(values: Tensor, counts: Tensor) -> Tensor:
    """Means `(N,)` over the positions that count, of `(N, T)`."""
    return values.masked_fill(~counts, 0).sum(1) / counts.sum(1)


def written(bayes: BayesianPeft, texts: Sequence[str], tokenizer: Any) -> dict[str, Tensor]:
    """The scores of what the model itself writes, greedily, after the start of each text."""
    prompts = tokenizer(
        list(texts),
        truncation=True,
        max_length=PROMPT,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    made = generate_with_uncertainty(
        bayes,
        drawing=Tangent(DRAWS),
        inputs={name: prompts[name] for name in ("input_ids", "attention_mask")},
        max_new_tokens=WRITTEN,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    lengths = made.lengths.clamp_min(1)
    return {
        "entropy": made.total.sum(1) / lengths,
        "epistemic": made.sequence_epistemic,
        "spread": made.sequence_spread / lengths,
    }


def apart(scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Means of the scores of each kind of text, and their AUROC against AG News test texts."""
    found = {}
    for kind, own in scores.items():
        means = {name: float(values.mean()) for name, values in own.items()}
        told = {
            f"{name} AUROC": auroc(scores[TEST][name].double().numpy(), values.double().numpy())
            for name, values in own.items()
        }
        found[kind] = {**means, **told}
    return found


def step_errors(bayes: BayesianPeft, batch: Batch) -> dict[str, float]:
    """How far `Tangent` is from itself in double precision: relative, root mean square."""
    exact = copy.deepcopy(bayes.model).double()
    rough = copy.deepcopy(bayes.model)
    for name, weight in rough.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.bfloat16()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        gradient = LogOdds.gradient(exact(**inputs).logits)
        reference = moves(exact, bayes, inputs, gradient)
        return {
            name: relative(moves(model, bayes, inputs, gradient), reference)
            for name, model in (("float32", bayes.model), ("bfloat16", rough))
        }


def moves(model: nn.Module, bayes: BayesianPeft, inputs: Batch, gradient: Tensor) -> Tensor:
    """What each draw does to the log-odds of every token, `(S, R)`."""
    changes: Iterator[Tensor] = Tangent(DRAWS).changes(
        model, bayes.posterior, inputs, positions=True
    )
    there = inputs["attention_mask"] != 0
    return torch.stack([(gradient * change.double()).sum(-1)[there] for change in changes])


def relative(found: Tensor, reference: Tensor) -> float:
    """Root mean square of the error over that of the reference."""
    return float((found - reference).norm() / reference.norm())


def tags(word: str) -> int:
    """0 for a word in small letters, 1 for a capital at its start, 2 for capitals only."""
    return 2 if len(word) > 1 and word.isupper() else int(word[:1].isupper())


def tagged(texts: Sequence[str], tokenizer: Any) -> list[Batch]:
    """Words in batches, which the tokenizer lower-cases; the first token of a word has its tag."""
    found = []
    for start in range(0, len(texts), BATCH_SIZE):
        words = [text.split() for text in texts[start : start + BATCH_SIZE]]
        batch = tokenizer(
            words,
            is_split_into_words=True,
            truncation=True,
            max_length=TAGGER_LENGTH,
            padding=True,
            return_tensors="pt",
        )
        labels = [tags_of(own, batch.word_ids(row)) for row, own in enumerate(words)]
        kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append({**kept, "labels": torch.tensor(labels)})
    return found


def tags_of(words: Sequence[str], places: Sequence[int | None]) -> list[int]:
    """A label for every token, `IGNORED` but for the first of a word that starts with a letter."""
    return [
        tags(words[place])
        if place is not None and place not in places[:token] and words[place][:1].isalpha()
        else IGNORED
        for token, place in enumerate(places)
    ]


def tagger(shelf: Shelf) -> dict[str, float]:
    """MiniLM learns which words were capitalised, and judges those of other texts."""
    folder = resolve_model("minilm")
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(shelf.seed)
    base = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3)
    config = LoraConfig(
        task_type="TOKEN_CLS", r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"]
    )
    training = tagged(shelf.training("ag_news", TAGGER_TEXTS), tokenizer)
    model = tuned(get_peft_model(base, config), training, TAGGER_EPOCHS)
    # The default's own rule for words is measured in words.py.
    prior = VisiblePrecision()
    bayes = bayesianize(model, training, likelihood=Tokens(), prior=prior, progress=False)
    return tag_figures(bayes, tagged(shelf.test("ag_news", TAGGER_TESTS), tokenizer))


def tag_figures(bayes: BayesianPeft, test: Sequence[Batch]) -> dict[str, float]:
    """NLL and accuracy of each way to predict, and how well doubt finds the wrong tags."""
    found = {"precision chosen": chosen_precision(bayes)}
    ways = {"trained": MAP(), "Tangent()": Tangent(DRAWS), "Sampled()": Sampled(DRAWS)}
    for name, predictive in ways.items():
        rows = bayes.predict_loader(test, predictive, progress=False).at_positions()
        found[f"words, {name}"] = len(rows)
        found[f"NLL, {name}"] = negative_log_likelihood(rows.probabilities, rows.labels)
        found[f"accuracy, {name}"] = accuracy(rows.probabilities, rows.labels)
        wrong = rows.predicted != rows.labels
        for doubt in ("total", "epistemic"):
            values = getattr(rows, doubt).double()
            found[f"{doubt} AUROC, {name}"] = auroc(values[~wrong].numpy(), values[wrong].numpy())
    return found
