"""What no audit can be made of, said with what to do instead; all of it about predictions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.audit.slices import LENGTH, PREDICTED, TRUE
from posthoc_bhpeft.errors import DataError

BUILT_IN = (PREDICTED, TRUE, LENGTH)
"""Groupings that need no column."""


def check_columns(known: Iterable[str], wanted: Iterable[str], time: str | None = None) -> None:
    """Raise where rows cannot be grouped, or put in time, by a column.

    Raises:
        DataError: If there is none of that name.
    """
    have = tuple(known)
    listed = f"the rows have {', '.join(have) or 'none'}"
    for name in wanted:
        if name not in (*have, *BUILT_IN):
            raise DataError(
                f"There is no column {name!r}; {listed}. Without any column there are "
                f"{', '.join(map(repr, BUILT_IN))}."
            )
    if time is not None and time not in have:
        raise DataError(f"There is no column {time!r} that says when; {listed}.")


def check_ours(ours: Predictions, score: str, columns: Iterable[str] | None) -> None:
    """Raise where predictions cannot be audited as asked.

    Raises:
        DataError: If there are no rows, groups are asked for and there are no labels, there is no
            such score, or it is the same for every row and so ranks none.
    """
    if not len(ours):
        raise DataError("There are no rows, so there is nothing to audit.")
    if columns and ours.labels is None:
        raise DataError(
            f"Groups by {', '.join(columns)} are compared by their right answers, and these rows "
            "have no labels. Give labels, or leave the columns out."
        )
    if score != CONFIDENCE and len(ours) > 1 and np.ptp(ours.score(score)) == 0:
        raise DataError(
            f"The score {score!r} is {ours.score(score)[0]:g} for every row, so it ranks none; a "
            "model without posterior has no epistemic uncertainty. Use 'confidence' or 'total'."
        )


def check_rival(ours: Predictions, theirs: Predictions, name: str) -> None:
    """Raise where a rival cannot be compared with the subject row by row.

    Raises:
        DataError: If it has other rows, other classes, or labels that are not the subject's.
    """
    if len(ours) != len(theirs):
        raise DataError(
            f"The subject has {len(ours)} rows and the rival {name!r} {len(theirs)}; a paired "
            "comparison needs predictions for the same rows, in the same order."
        )
    check_classes(ours, theirs, f"the rival {name!r}")
    if (ours.labels is None) != (theirs.labels is None):
        known, unknown = f"the rival {name!r}", "the subject"
        known, unknown = (known, unknown) if ours.labels is None else (unknown, known)
        raise DataError(
            f"There are labels for {known} and none for {unknown}, so nothing shows that both are "
            "about the same rows. Give both, or neither."
        )
    check_same_labels(ours, theirs, name)
    if ours.texts is not None and theirs.texts is not None and ours.texts != theirs.texts:
        differ = sum(one != two for one, two in zip(ours.texts, theirs.texts, strict=True))
        raise DataError(
            f"{differ} of {len(ours)} texts of the subject and the rival {name!r} differ, so they "
            "are not about the same rows in the same order. Sort both by the same column first."
        )


def check_same_labels(ours: Predictions, theirs: Predictions, name: str) -> None:
    """Raise where labels show that two sets of predictions are not about the same rows.

    Raises:
        DataError: With how many differ.
    """
    if ours.labels is None or theirs.labels is None:
        return
    differ = int((ours.labels != theirs.labels).sum())
    if differ:
        raise DataError(
            f"{differ} of {len(ours)} labels of the subject and the rival {name!r} differ, so they "
            "are not about the same rows in the same order. Sort both by the same column first."
        )


def check_classes(ours: Predictions, other: Predictions, whose: str) -> None:
    """Raise where two sets of predictions are about other classes, or number them otherwise.

    Names alone may differ: a file need not know them.

    Raises:
        DataError: With both.
    """
    mine, theirs = ours.names, other.names
    reordered = mine != theirs and sorted(mine) == sorted(theirs)
    if len(mine) != len(theirs) or reordered:
        raise DataError(
            f"The subject has {_classes(mine)} and {whose} has {_classes(theirs)}. Compare "
            "probabilities of the same classes in the same order."
        )


def _classes(names: tuple[str, ...], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > most else ''})"
