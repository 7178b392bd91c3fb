"""Texts that a model writes: how sure it may be of them, and of the responses that are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from posthoc_bhpeft.api import BayesianPeft, Predictive
from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.cli.predictions import Predictor
from posthoc_bhpeft.cli.rows import Checkpoint, batches_of, tokenizer_of
from posthoc_bhpeft.cli.worded import SCORES, rounded
from posthoc_bhpeft.data import LengthOrder
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.loader import FEWEST
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.generation import Generation, generate_with_uncertainty
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.progress import track


@dataclass(frozen=True)
class WrittenTexts:
    """What a language model wrote after N prompts.

    Attributes:
        rows: The prompts, with responses as labels where these are known.
        said: Of every row the text, its tokens and what is known of them.
        judged: Of every row what is known of its response; empty where there are none.
    """

    rows: TextData
    said: tuple[dict[str, Any], ...]
    judged: tuple[dict[str, Any], ...] = ()

    def measure(self) -> dict[str, float]:
        """Figures over all rows: `nll` in nats a token of a response, `exact` of whole texts."""
        written = sum(len(one["tokens"]) for one in self.said)
        doubt = sum(sum(one["token_epistemic"]) for one in self.said)
        figures: dict[str, float] = {"rows": len(self.said), "tokens_written": written}
        figures["epistemic"] = doubt / max(written, 1)
        if self.judged and self.rows.labels is not None:
            tokens = sum(one["response_tokens"] for one in self.judged)
            for name in ("nll", "nll_trained_weights"):
                figures[name] = sum(o[name] * o["response_tokens"] for o in self.judged) / tokens
            pairs = zip(self.said, self.rows.labels, strict=True)
            same = [one["text"].strip() == response.strip() for one, response in pairs]
            figures |= {"response_tokens": tokens, "exact": sum(same) / len(same)}
        return figures

    def text_rows(self) -> Iterator[dict[str, Any]]:
        """One JSON object a row, in the order of the data."""
        judged = self.judged or ({},) * len(self.said)
        for n, index in enumerate(self.rows.indices):
            row: dict[str, Any] = {"index": index}
            if self.rows.labels is not None:
                row["label"] = self.rows.labels[n]
            yield row | self.said[n] | judged[n]


def write_texts(
    checkpoint: Checkpoint,
    predictor: Predictor,
    rows: TextData,
    *,
    predictive: Predictive,
    batch_size: int,
    max_new_tokens: int,
    progress: bool,
) -> WrittenTexts:
    """Let a model go on after every prompt, greedily, and judge the responses that are known.

    Args:
        checkpoint: Its task and its tokenizer.
        predictor: With a posterior.
        rows: Prompts, and responses as labels.
        predictive: One that draws weights: `Tangent`, `Sampled`.
        batch_size: Rows a batch.
        max_new_tokens: Tokens of a text at most.
        progress: Show bars.

    Raises:
        ConfigError: If so many tokens leave no room for a prompt.
    """
    bayes, base = predictor.bayes, predictor.base
    assert bayes is not None, "--predictive map is refused"
    drawing: Any = predictive
    tokenizer = tokenizer_of(checkpoint, base)
    length = prompt_length(checkpoint, bayes.model, max_new_tokens)
    prompts = checkpoint.task.encode(replace(rows, labels=None), tokenizer, length)
    order = LengthOrder(prompts.lengths).order
    # A decoder goes on where its prompt ends.
    side = "left" if checkpoint.task is Form.RESPONSE else "right"
    said: dict[int, dict[str, Any]] = {}
    starts = range(0, len(order), batch_size)
    for start in track(starts, "Write", len(starts), progress):
        own = order[start : start + batch_size]
        padded = tokenizer.pad([prompts[n] for n in own], padding_side=side, return_tensors="pt")
        generation = generate_with_uncertainty(
            bayes,
            dict(padded),
            drawing=drawing,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
        )
        said |= dict(zip(own, spoken(generation, tokenizer), strict=True))
    known = rows.labels is not None
    return WrittenTexts(
        rows,
        tuple(said[n] for n in range(len(rows))),
        judge(checkpoint, bayes, base, rows, predictive, batch_size, progress) if known else (),
    )


def prompt_length(checkpoint: Checkpoint, model: nn.Module, max_new_tokens: int) -> int:
    """Tokens of a prompt at most, so that a decoder has positions left for what it writes.

    Raises:
        ConfigError: If there is no room.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return checkpoint.max_length
    if max_new_tokens > limit - FEWEST:
        raise ConfigError(
            f"--max-new-tokens {max_new_tokens} leaves no room for a prompt: the model has "
            f"{limit} positions. Ask for {limit // 2} or fewer."
        )
    room = limit - max_new_tokens if checkpoint.task is Form.RESPONSE else limit
    return min(checkpoint.max_length, room)


def spoken(generation: Generation, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """What is said about each generated text; means are over its tokens."""
    for n, kept in enumerate(generation.mask):
        ids = generation.tokens[n][kept].tolist()
        each = {name: getattr(generation, name)[n][kept] for name in SCORES}
        yield {
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            **{name: round(float(one.sum()) / max(len(ids), 1), 7) for name, one in each.items()},
            "log_probability": round(float(generation.sequence_log_probability[n]), 7),
            "spread": round(float(generation.sequence_spread[n]), 7),
            "tokens": tokenizer.convert_ids_to_tokens(ids),
            "token_epistemic": rounded(each["epistemic"]),
        }


def judge(
    checkpoint: Checkpoint,
    bayes: BayesianPeft,
    base: str,
    rows: TextData,
    predictive: Predictive,
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, Any], ...]:
    """The NLL of every known response, by the posterior and by the trained weights."""
    loader = batches_of(checkpoint, rows, base, batch_size)
    found: list[dict[str, Any]] = []
    for batch in track(loader, "Judge", len(loader), progress):
        # One batch at a time: probabilities of a whole vocabulary are many.
        found += likelihoods(bayes.predict(batch, predictive))
    by_row = dict(zip(loader.sampler.order, found, strict=True))
    return tuple(by_row[n] for n in range(len(rows)))


def likelihoods(prediction: Prediction) -> list[dict[str, Any]]:
    """Of every row the tokens that count and their mean NLL in nats."""
    labels, probabilities = prediction.labels, prediction.probabilities
    assert labels is not None
    assert probabilities is not None
    counted = labels != IGNORED
    places = labels.clamp_min(0).unsqueeze(-1)
    tiny = torch.finfo(torch.float32).tiny
    chosen = probabilities.float().gather(-1, places).clamp_min(tiny).log().squeeze(-1)
    trained = prediction.logits.float().log_softmax(-1).gather(-1, places).squeeze(-1)
    counts = counted.sum(1)
    nlls = {
        name: -(one * counted).sum(1) / counts.clamp_min(1)
        for name, one in {"nll": chosen, "nll_trained_weights": trained}.items()
    }
    return [
        {
            "response_tokens": int(counts[n]),
            **{name: round(float(one[n]), 7) for name, one in nlls.items()},
        }
        for n in range(len(labels))
    ]
