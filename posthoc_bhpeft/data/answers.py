"""Labels that are a choice among the texts of a row."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from posthoc_bhpeft.errors import DataError

CHOICES_COLUMN = "choices"


def letters(count: int) -> tuple[str, ...]:
    """Names of choices: A, B, C and so on.

    Raises:
        DataError: there are more than letters.
    """
    if not 1 <= count <= len(ascii_uppercase):
        raise DataError(f"There are {count} choices; letters name 1 to {len(ascii_uppercase)}.")
    return tuple(ascii_uppercase[:count])


def read_choices(rows: Any, where: str) -> tuple[tuple[str, ...], ...] | None:
    """The choices of every row, two or more texts each; `None` where there is no such column.

    Rows may have different numbers of choices.

    Args:
        rows: A `datasets.Dataset`.
        where: The rows came from, for errors.

    Raises:
        DataError: a row has something else than texts.
    """
    if CHOICES_COLUMN not in rows.column_names:
        return None
    values = rows[CHOICES_COLUMN][:]
    for row, value in enumerate(values):
        texts = isinstance(value, list) and all(isinstance(one, str) and one for one in value)
        if not texts or len(value) < 2:
            raise DataError(
                f"{where}, column {CHOICES_COLUMN!r}: row {row} has {value!r}. Each row "
                "needs a list of two or more texts."
            )
    return tuple(tuple(value) for value in values)


def check_choice_labels(
    labels: Sequence[Any], choices: Sequence[Sequence[str]], kept: Sequence[int], where: str
) -> None:
    """Raise unless every label is one of its row's own choices.

    Raises:
        DataError: naming the first row that is not.
    """
    for label, own, row in zip(labels, choices, kept, strict=True):
        if label >= len(own):
            raise DataError(
                f"{where}: row {row} has the label {label}, and {len(own)} choices, which are "
                "counted from 0."
            )
