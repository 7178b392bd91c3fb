"""Rows worth reading: mistakes it was sure of, and those it is least sure of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions

SHOWN = 4
FOLDED = 8
MOST_LETTERS = 280
_CLASSES = 3


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        row: Its index in the source, from 0; its place among the rows where that is not known.
        start: Its text, or the start of it.
        rest: What follows, folded.
        label: Name of its class; empty where it is not known.
        predicted: Name of the predicted class.
        right: Whether they are the same; `None` where the label is not known.
        probabilities: The likeliest classes by name.
        doubt: Total uncertainty in nats, where the model has it.
        epistemic: Share of the doubt that is epistemic, where the model has it.
    """

    row: int
    start: str
    rest: str
    label: str
    predicted: str
    right: bool | None
    probabilities: tuple[tuple[str, float], ...]
    doubt: float | None
    epistemic: float | None


@dataclass(frozen=True)
class Gallery:
    """Examples of one kind.

    Attributes:
        id: On the page.
        title: What they have in common.
        lead: Why they are worth reading.
        shown: At once.
        folded: The next ones.
    """

    id: str
    title: str
    lead: str
    shown: tuple[Example, ...]
    folded: tuple[Example, ...]


def galleries(predictions: Predictions) -> tuple[Gallery, ...]:
    """Confident mistakes, the least sure rows, and those the model knows least about."""
    return tuple(_galleries(predictions))


def _galleries(predictions: Predictions) -> Iterator[Gallery]:
    doubt = predictions.score("total" if "total" in predictions.scores else CONFIDENCE)
    if predictions.labels is not None:
        wrong = np.flatnonzero(~predictions.right)
        order = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")]
        if len(order):
            yield _gallery(
                predictions, order, "confidently-wrong", "Most confidently wrong",
                "Review does not catch these. Look for wrong labels, and for kinds of text that "
                "the training rows did not have.",
            )  # fmt: skip
    yield _gallery(
        predictions, np.argsort(-doubt, kind="stable"), "most-uncertain", "Most uncertain",
        "Rows for a person. Many of them are ambiguous for people too.",
    )  # fmt: skip
    if predictions.scores.get("epistemic", np.zeros(1)).any():
        order = np.argsort(-predictions.scores["epistemic"], kind="stable")
        yield _gallery(
            predictions, order, "least-learnt", "Most to learn from",
            "The rows of highest epistemic uncertainty: label rows like these first when you "
            "collect more.",
        )  # fmt: skip


def _gallery(
    predictions: Predictions, order: NDArray[np.intp], name: str, title: str, lead: str
) -> Gallery:
    chosen = [example(predictions, int(row)) for row in order[: SHOWN + FOLDED]]
    return Gallery(name, title, lead, tuple(chosen[:SHOWN]), tuple(chosen[SHOWN:]))


def example(predictions: Predictions, row: int) -> Example:
    """One row as it is shown.

    Args:
        predictions: All rows.
        row: Its place, from 0.
    """
    names, p = predictions.names, predictions.probabilities[row]
    likeliest = np.argsort(-p, kind="stable")[:_CLASSES]
    start, rest = _cut("" if predictions.texts is None else predictions.texts[row])
    known = predictions.labels is not None
    total, epistemic = (predictions.scores.get(name) for name in ("total", "epistemic"))
    share = None
    if total is not None and epistemic is not None and epistemic.any():
        share = float(epistemic[row] / total[row]) if total[row] > 0 else 0.0
    return Example(
        row=row if predictions.indices is None else predictions.indices[row],
        start=start,
        rest=rest,
        label=names[predictions.labels[row]] if predictions.labels is not None else "",
        predicted=names[predictions.predicted[row]],
        right=bool(predictions.right[row]) if known else None,
        probabilities=tuple((names[c], float(p[c])) for c in likeliest),
        doubt=None if total is None else float(total[row]),
        epistemic=share,
    )


def _cut(text: str) -> tuple[str, str]:
    """A text cut at a space, if it is much longer than what is shown."""
    if len(text) <= MOST_LETTERS + 40:
        return text, ""
    place = text.rfind(" ", MOST_LETTERS // 2, MOST_LETTERS)
    place = MOST_LETTERS if place < 0 else place
    return text[:place], text[place:]
