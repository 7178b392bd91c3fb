"""A model of a few weights with texts of its own, so that whole audits take no time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from posthoc_bhpeft import BayesianPeft, bayesianize
from posthoc_bhpeft.data import EncodedRows, LengthOrder, TextData
from posthoc_bhpeft.selection import FixedPrecision

NAMES = ("bad", "fair", "good")
WORDS = 12


class Bag(nn.Module):
    """Logits of the mean of a text's word vectors; the vectors are fixed, the head is trained."""

    def __init__(self, seed: int = 0, *, dropout: float = 0.3, classes: int = 3) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        vectors = torch.eye(WORDS, dtype=torch.float64)
        self.words = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WORDS, classes, dtype=torch.float64)
        with torch.no_grad():
            # Words 0, 3, 6, ... speak for class 0 and so on; the noise is the model's own opinion.
            own = torch.randn(classes, WORDS, generator=source, dtype=torch.float64)
            says = torch.arange(WORDS) % classes == torch.arange(classes).unsqueeze(1)
            self.head.weight.copy_(4 * says + own)
            self.head.bias.zero_()
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(torch.float64)
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.dropout(mean))


def bag_rows(count: int, seed: int = 0, *, classes: int = 3, **about: Any) -> TextData:
    """Texts of one to nine words, labels that the words make likely, a shop and a day for each."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(0, WORDS, rng.integers(1, 10)) for _ in range(count)]
    votes = np.array([np.bincount(w % classes, minlength=classes) for w in words])
    labels = (votes + rng.random(votes.shape) * 2).argmax(1)
    settings: dict[str, Any] = {
        "labels": tuple(map(int, labels)),
        "label_names": NAMES[:classes],
        "columns": {
            "shop": tuple(rng.choice(["north", "south"], count)),
            "day": tuple(f"2024-{1 + n * 4 // count:02d}-15" for n in range(count)),
        },
        "source": "bags",
        "split": "test",
    }
    texts = tuple(" ".join(f"w{w}" for w in row) for row in words)
    return TextData(texts=texts, **{**settings, **about})


def bag_loader(
    rows: TextData, *, batch_size: int = 16, by_length: bool = True, **options: Any
) -> DataLoader[dict[str, Any]]:
    """Padded batches, the longest texts first unless asked otherwise."""
    features = []
    for n, text in enumerate(rows.texts):
        row: dict[str, Any] = {"input_ids": [int(word[1:]) for word in text.split()]}
        features.append(row if rows.labels is None else {**row, "labels": rows.labels[n]})
    encoded = EncodedRows(tuple(features), rows)
    order = LengthOrder(encoded.lengths) if by_length else None
    return DataLoader(encoded, batch_size=batch_size, sampler=order, collate_fn=pad, **options)


def pad(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of rows of any length."""
    ids = [torch.tensor(row["input_ids"]) for row in features]
    batch = {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence(
            [torch.ones_like(one) for one in ids], batch_first=True
        ),
    }
    if "labels" in features[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in features])
    return batch


def bag_posterior(rows: int = 40, precision: float = 0.5) -> BayesianPeft:
    """A posterior over the head, from few rows, so that it has doubts."""
    loader = bag_loader(bag_rows(rows, seed=50))
    return bayesianize(Bag(), loader, prior=FixedPrecision(precision), progress=False)


def without_labels(rows: TextData) -> TextData:
    """The same rows, not labelled."""
    return replace(rows, labels=None, label_names=None)
