"""`Prediction`: what a model says about a batch, with its uncertainty split in two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.predictive.links import binary_entropy

UNCERTAINTIES = ("total", "aleatoric", "epistemic", "novelty")
"""Columns of a `Prediction` that rank rows by doubt."""


@dataclass(frozen=True)
class Prediction:
    """Predictions for `N` rows. All entropies are in nats.

    With labels at every position of a text (`likelihood=Tokens()`) every column has an axis `T`
    after the first, and `mask` says which positions are no padding.

    Attributes:
        logits: Outputs `(N, C)` at the trained weights: logits, or the mean in regression.
        probabilities: `(N, C)` under the predictive; `None` in regression.
        covariance: Covariance `(N, C, C)` of the outputs under the posterior (of the centred logits
            in classification, unless asked otherwise); `None` where the predictive has none.
        total: `(N,)`, entropy of the predictive.
        aleatoric: `(N,)`, the part that would remain if the weights were known.
        epistemic: `(N,)`, `total - aleatoric`: the information that the weights hold about the
            label.
        labels: `(N, ...)`, where the data had them.
        multilabel: Whether the outputs are independent yes-or-no answers.
        review: `(N,)`, whether a row should go to a human, where a `ReviewRule` was applied.
        sets: `(N, C)`, the classes of each row's prediction set, where the rule makes sets.
        mask: `(N, T)`, the positions that count; `None` where a row is no text of positions.
        novelty: `(N,)`, how far a row is from all that the last layer has seen, as a standard
            deviation of the outputs (see `predictive.novelty`); `None` where the predictive has
            none.
        answer_epistemic: `(N, C)`, of which `epistemic` is the sum, where outputs are independent
            yes-or-no answers.
    """

    logits: Tensor
    probabilities: Tensor | None
    covariance: Tensor | None
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    labels: Tensor | None = None
    multilabel: bool = False
    review: Tensor | None = None
    sets: Tensor | None = None
    mask: Tensor | None = None
    novelty: Tensor | None = None
    answer_epistemic: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def uncertainties(self) -> dict[str, Tensor]:
        """Those of `UNCERTAINTIES` that there are, by name."""
        return {n: c for n, c in self.columns().items() if n in UNCERTAINTIES and c is not None}

    @property
    def predicted(self) -> Tensor:
        """`(N,)` most probable classes, `(N, C)` answers (multi-label), or the mean."""
        if self.probabilities is None:
            return self.logits
        if self.multilabel:
            return (self.probabilities > 0.5).long()
        return self.probabilities.argmax(-1)

    def with_labels(self, labels: Tensor | None) -> Prediction:
        """The same predictions beside their labels."""
        return replace(self, labels=None if labels is None else labels.to(self.logits.device))

    def cpu(self) -> Prediction:
        """The same predictions with every tensor on the CPU."""
        moved: dict[str, Any] = {
            name: None if column is None else column.cpu()
            for name, column in self.columns().items()
        }
        return replace(self, **moved)

    def at_positions(self) -> Prediction:
        """Every position that counts as a row of its own: `R` rows for any metric, plot or rule.

        Left out are padding and, where there are labels, positions without one.

        Raises:
            DataError: If the prediction is not about positions.
        """
        if self.mask is None:
            raise DataError("This prediction has one row a text already; use it as it is.")
        counts = self.mask if self.labels is None else self.mask & (self.labels != IGNORED)
        rows = {n: None if c is None else c[counts] for n, c in self.columns().items()}
        return Prediction(**{**rows, "mask": None}, multilabel=self.multilabel)  # type: ignore[arg-type]

    def answer(self, index: int) -> Prediction:
        """One of several yes-or-no answers as a row of two classes: for any metric, plot or audit.

        Whether the row itself is new (`novelty`) goes along; a rule for review does not.

        Args:
            index: Of the output.

        Raises:
            DataError: If the outputs are no such answers.
        """
        if not self.multilabel or self.probabilities is None or self.answer_epistemic is None:
            raise DataError(
                "These outputs are no yes-or-no answers (likelihood=Bernoulli()), of which one is "
                "taken. Use the prediction as it is."
            )
        # Where there is one answer a row, its labels may be (N,).
        labels = None if self.labels is None else self.labels.reshape(self.logits.shape)
        yes, no = self.probabilities[:, index], torch.zeros_like(self.logits[:, index])
        total = binary_entropy(yes)
        epistemic = torch.minimum(self.answer_epistemic[:, index], total)
        return Prediction(
            torch.stack([no, self.logits[:, index]], 1),
            torch.stack([1 - yes, yes], 1),
            None,
            total,
            total - epistemic,
            epistemic,
            labels=None if labels is None else (labels[:, index] > 0.5).long(),
            novelty=self.novelty,
        )

    def columns(self) -> dict[str, Tensor | None]:
        """Every tensor by field name, each with one entry a row."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "multilabel"}

    @classmethod
    def concatenate(cls, parts: Sequence[Prediction]) -> Prediction:
        """Predictions of several batches as one; a column that any part lacks is `None`.

        Raises:
            DataError: If there is no part at all.
        """
        if not parts:
            raise DataError("There is nothing to predict: the loader has no batch.")
        joined: dict[str, Any] = {}
        for name in parts[0].columns():
            column = [part.columns()[name] for part in parts]
            present = [tensor for tensor in column if tensor is not None]
            if parts[0].mask is not None:
                present = equally_long(present, IGNORED if name == "labels" else 0)
            joined[name] = torch.cat(present) if len(present) == len(column) else None
        return cls(**joined, multilabel=parts[0].multilabel)


def equally_long(columns: Sequence[Tensor], padding: int) -> list[Tensor]:
    """Columns `(N, T, ...)` of different lengths `T`, each filled up to the longest at its end."""
    longest = max((column.shape[1] for column in columns), default=0)
    return [
        torch.cat([c, c.new_full((len(c), longest - c.shape[1], *c.shape[2:]), padding)], 1)
        for c in columns
    ]
