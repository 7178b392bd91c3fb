"""One of several labels a row, as a question of two classes: what an audit can be about.

Rows stay the unit, so that intervals and promises hold. Over all labels of all rows they would not:
labels of one row are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.rivals import Rival


@dataclass(frozen=True)
class OneLabel:
    """What a model of several labels says about one of them.

    Attributes:
        source: With the likelihood `Bernoulli()`.
        index: Of the label.
    """

    source: BayesianPeft | Rival
    index: int

    @property
    def name(self) -> str:
        """See `Rival.name`."""
        return str(getattr(self.source, "name", "ours"))

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`."""
        return self.source.predict_loader(loader, progress=progress).answer(self.index)


def rows_of_label(rows: TextData, index: int, name: str) -> TextData:
    """Rows of which only is asked whether one label applies: class 1, or not: class 0."""
    known = None if rows.labels is None else tuple(int(label[index]) for label in rows.labels)
    return replace(rows, labels=known, label_names=(f"not {name}", name))
