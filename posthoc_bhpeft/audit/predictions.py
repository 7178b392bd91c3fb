"""`Predictions`: what one model said about rows, beside what was true. What an audit is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats, as_floats, check_pair, check_probabilities
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.predictive import Prediction

CONFIDENCE = "confidence"
"""The score that every classifier has: one less the probability of the predicted class."""


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of `N` rows, float64 on the CPU, with everything an audit may ask about.

    Attributes:
        probabilities: `(N, C)`.
        labels: `(N,)`, or `None` where they are not known.
        scores: Further scores of uncertainty by name, `(N,)` each, growing with doubt: `total`,
            `aleatoric` and `epistemic` in nats and `novelty`, where the model has them.
        label_names: Names of the `C` classes.
        texts: `(N,)` texts, for the examples.
        columns: Further columns by name, `N` values each, for slices.
        about: How the predictions were made, for the report: headings and sentences.
        indices: `(N,)` row numbers in the source, from 0, where they are known.
    """

    probabilities: Floats
    labels: NDArray[np.int64] | None = None
    scores: Mapping[str, Floats] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        # A threshold is found and applied in float64; of float32, ties would fall on both sides.
        object.__setattr__(self, "probabilities", as_floats(self.probabilities))
        scores = {name: as_floats(values) for name, values in self.scores.items()}
        object.__setattr__(self, "scores", scores)
        for name, size in self.sizes():
            if size != len(self.probabilities):
                raise DataError(f"{name} has {size} entries for {len(self.probabilities)} rows.")

    def __len__(self) -> int:
        return len(self.probabilities)

    def sizes(self) -> list[tuple[str, int]]:
        """The length of everything that must have `N` entries, by what it is."""
        named: dict[str, Any] = {
            name: getattr(self, name) for name in ("labels", "texts", "indices")
        }
        named |= {f"score {name!r}": values for name, values in self.scores.items()}
        named |= {f"column {name!r}": values for name, values in self.columns.items()}
        return [(name, len(values)) for name, values in named.items() if values is not None]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each row, `(N,)`."""
        found: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return found

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class, `(N,)`."""
        found: Floats = self.probabilities.max(axis=1)
        return found

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each prediction is right, `(N,)`.

        Raises:
            DataError: If there are no labels.
        """
        if self.labels is None:
            raise DataError("These predictions have no labels, so none of them is right or wrong.")
        found: NDArray[np.bool_] = self.predicted == self.labels
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes: those given, or their numbers."""
        if self.label_names is not None:
            return self.label_names
        return tuple(str(c) for c in range(self.probabilities.shape[1]))

    def score(self, name: str = CONFIDENCE) -> Floats:
        """A score of uncertainty by name, `(N,)`.

        Raises:
            DataError: If there is none of that name.
        """
        if name == CONFIDENCE:
            doubt: Floats = 1.0 - self.confidence
            return doubt
        if name not in self.scores:
            known = ", ".join([CONFIDENCE, *self.scores])
            raise DataError(f"There is no score {name!r}; these predictions have {known}.")
        return self.scores[name]

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of all scores, `confidence` first."""
        return (CONFIDENCE, *self.scores)

    def take(self, positions: Iterable[int] | NDArray[Any]) -> Predictions:
        """Only the rows at these positions, in this order."""
        rows = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            probabilities=self.probabilities[rows],
            labels=None if self.labels is None else self.labels[rows],
            scores={name: values[rows] for name, values in self.scores.items()},
            texts=None if self.texts is None else tuple(self.texts[i] for i in rows),
            columns={name: tuple(v[i] for i in rows) for name, v in self.columns.items()},
            indices=None if self.indices is None else tuple(self.indices[i] for i in rows),
        )

    @classmethod
    def of(cls, prediction: Prediction, rows: TextData | None = None, **about: str) -> Predictions:
        """From what a model predicted, and the rows it predicted for, in the same order.

        Raises:
            DataError: If these are no class probabilities, or labels do not fit them.
        """
        if prediction.probabilities is None or prediction.multilabel:
            raise DataError("An audit of classes needs one probability for each class.")
        labels = prediction.labels
        if labels is None:
            probabilities, known = check_probabilities(prediction.probabilities), None
        else:
            probabilities, known = check_pair(prediction.probabilities, labels)
        return cls(
            probabilities=probabilities,
            labels=known,
            scores={name: as_floats(found) for name, found in prediction.uncertainties.items()},
            label_names=None if rows is None else rows.label_names,
            texts=None if rows is None else rows.texts,
            columns={} if rows is None else dict(rows.columns),
            about=about,
            indices=None if rows is None else rows.indices,
        )
