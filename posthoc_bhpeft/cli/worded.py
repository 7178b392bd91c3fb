"""Predictions of words: measured, and written a text a row and a word a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from posthoc_bhpeft.audit import summary
from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.predictive import Prediction

SCORES = ("total", "aleatoric", "epistemic")


@dataclass(frozen=True)
class WordPredictions:
    """What a token classifier says about words.

    Attributes:
        rows: The texts.
        prediction: Of the R words that were read, a row each.
        owners: Text and word of each of them, counted from 0.
    """

    rows: TextData
    prediction: Prediction
    owners: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, rows: TextData, prediction: Prediction, places: Sequence[Sequence[int | None]]
    ) -> WordPredictions:
        """From predictions `(N, T)` of pieces, in the order of the rows.

        Args:
            rows: N texts.
            prediction: Of their pieces.
            places: Where each word begins, `None` where it was cut off.
        """
        read = [
            (text, word, place)
            for text, own in enumerate(places)
            for word, place in enumerate(own)
            if place is not None
        ]
        texts, _, positions = torch.tensor(read, dtype=torch.long).reshape(-1, 3).T
        found: dict[str, Any] = {
            name: None if column is None else column[texts, positions]
            for name, column in prediction.columns().items()
        }
        return cls(rows, Prediction(**{**found, "mask": None}), tuple((t, w) for t, w, _ in read))

    @property
    def counted(self) -> torch.Tensor:
        """Mask `(R,)` of the words that have a label; all where no word has."""
        labels = self.prediction.labels
        return torch.ones(len(self.owners)).bool() if labels is None else labels != IGNORED

    def describe(self) -> str:
        """How many words there are, and how many were not read; for people."""
        every = sum(map(len, self.rows.words or ()))
        missed = every - len(self.owners)
        cut = f", {missed} of them not read: a text is cut as in the training" if missed else ""
        return f"{every} words{cut}"

    def measure(self) -> dict[str, float]:
        """Figures over all words with a label; nothing where there are no labels."""
        if self.prediction.labels is None or self.prediction.probabilities is None:
            return {}
        kept = self.counted
        figures = summary(self.prediction.probabilities[kept], self.prediction.labels[kept])
        found = dict(figures.to_dict())
        words = found.pop("rows")
        return {"rows": len(self.rows), "words": words, **found}

    def text_rows(self, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        """One JSON object a text: lists with an entry a word, `null` for words that were not read.

        `probability` is that of the predicted class.
        """
        spoken = dict(zip(self.owners, self._spoken(names), strict=True))
        for text, words in enumerate(self.rows.words or ()):
            row: dict[str, Any] = {"index": self.rows.indices[text], "words": list(words)}
            if self.rows.labels is not None:
                row["label"] = [None if one == IGNORED else one for one in self.rows.labels[text]]
            own = [spoken.get((text, word), {}) for word in range(len(words))]
            for name in ("prediction", *(["name"] if names else []), "probability", *SCORES):
                row[name] = [one.get(name) for one in own]
            yield row

    def word_rows(self, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        """One JSON object a word that counts, with all probabilities: a file to audit."""
        probabilities = self.prediction.probabilities
        assert probabilities is not None, "a token classifier has classes"
        spoken, counted = self._spoken(names), self.counted.nonzero().flatten().tolist()
        for number in counted:
            (text, word), row = self.owners[number], spoken[number]
            row.pop("probability")
            about = {
                "index": self.rows.indices[text],
                "place": word,
                "text": (self.rows.words or ())[text][word],
            }
            if self.rows.labels is not None:
                about["label"] = self.rows.labels[text][word]
            yield {**about, **row, "probabilities": rounded(probabilities[number])}

    def _spoken(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        """What is said about each word that was read."""
        classes = self.prediction.predicted.tolist()
        assert self.prediction.probabilities is not None, "a token classifier has classes"
        columns = {
            "prediction": classes,
            **({"name": [names[one] for one in classes]} if names else {}),
            "probability": rounded(self.prediction.probabilities.amax(1)),
            **{name: rounded(getattr(self.prediction, name)) for name in SCORES},
        }
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


def rounded(values: torch.Tensor) -> list[float]:
    """Seven digits: more than float32 knows."""
    return [round(value, 7) for value in values.tolist()]
