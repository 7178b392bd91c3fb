"""Labels that are more than one class a row: a choice among texts, or several answers at once."""

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


def read_multi_label(
    values: Sequence[Any], names: Sequence[str] | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Labels that are lists, as one 0 or 1 for each class, and the names of the classes.

    A list holds the names or the numbers of the classes that apply, or a 0 or 1 for every class;
    the last is meant where all lists have that many entries, and nothing else in them.

    Args:
        values: N lists.
        names: names of the classes, index = class, where they are known.

    Raises:
        DataError: a label is no list, a class is not known, or only names tell how many there are.
    """
    for row, value in enumerate(values):
        if not isinstance(value, list):
            raise DataError(
                f"row {row} has the label {value!r}; multi-label rows have a list each."
            )
    entries = {one for value in values for one in value}
    if entries and all(isinstance(one, str) for one in entries):
        known = tuple(names) if names else tuple(sorted(entries))
        return _marked(values, known, {name: index for index, name in enumerate(known)}), known
    if entries - {0, 1} or len({len(value) for value in values}) > 1 or not values[0]:
        return _by_number(values, entries, names)
    width = len(values[0])
    if names is not None and len(names) != width:
        return _by_number(values, entries, names)
    known = tuple(names or (str(index) for index in range(width)))
    return tuple(tuple(int(one) for one in value) for value in values), known


def _by_number(
    values: Sequence[Any], entries: set[Any], names: Sequence[str] | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Lists of class numbers, which do not tell by themselves how many classes there are."""
    if names is None:
        raise DataError(
            "the lists have different lengths or numbers above 1, so they are numbers of classes, "
            "and nothing says how many classes there are. Name them in a meta.json beside the data "
            '({"label_names": [...]}), or give a 0 or 1 for every class.'
        )
    return _marked(values, tuple(names), {index: index for index in range(len(names))}), tuple(
        names
    )


def _marked(
    values: Sequence[Any], names: tuple[str, ...], index: dict[Any, int]
) -> tuple[tuple[int, ...], ...]:
    """A 1 for each class that is listed."""
    for row, value in enumerate(values):
        unknown = [one for one in value if one not in index]
        if unknown:
            raise DataError(
                f"row {row} has the label {unknown[0]!r}. Known: {', '.join(names[:12])}."
            )
    found = [{index[one] for one in value} for value in values]
    return tuple(tuple(int(place in row) for place in range(len(names))) for row in found)
