"""Several labels a row: a list, a text with a separator, or a column of 0 and 1 for each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posthoc_bhpeft.data.columns import WITHOUT_LABELS, Labels, is_missing, listed
from posthoc_bhpeft.errors import DataError


@dataclass(frozen=True)
class Several:
    """How rows tell which of several labels apply.

    Attributes:
        columns: Columns with a 0 or 1 in every row, one for each label.
        separator: What stands between the labels of a row, where they are one text.
        lists: Whether labels are lists; `None` tells from the values.
    """

    columns: tuple[str, ...] = ()
    separator: str | None = None
    lists: bool | None = False

    @property
    def named(self) -> bool:
        """Whether it was said how labels are written, so that nothing is left to tell."""
        return bool(self.columns) or self.separator is not None

    def check(self, known: Sequence[str], others: Mapping[str, Any], where: str) -> None:
        """Raise where several labels and something else are asked for, or columns are missing.

        Args:
            known: Columns of the rows.
            others: What else was asked for, by its name for people.
            where: The rows came from, for errors.

        Raises:
            DataError: With what to leave out or to name.
        """
        if not self.named:
            return
        own = "--label-separator (label_separator=)"
        if self.columns:
            others = {**others, own: self.separator is not None}
            own = "--label-columns (label_columns=)"
            check_columns(self.columns, known, where)
        elif not self.separator:
            raise DataError(f"{own} is empty. Name what stands between two labels, such as ','.")
        if given := [name for name, value in others.items() if value]:
            raise DataError(
                f"{where}: {own} reads several labels a row, so leave out {', '.join(given)}."
            )

    def check_names(self, names: Sequence[str] | None, where: str) -> None:
        """Raise where columns are not those of just the labels that are known.

        Raises:
            DataError: With both.
        """
        if self.columns and set(names or ()) != set(self.columns):
            raise DataError(
                f"{where}: the label columns are {listed(self.columns)}, and the labels that are "
                f"known {listed(names)}. Name one column for each of these."
            )

    def written(self, rows: Any, column: str | None, where: str) -> Sequence[Any]:
        """The label of every row of a `datasets.Dataset`; of several a list, `None` if missing.

        Raises:
            DataError: If a value is not what it was said to be.
        """
        if self.columns:
            return marked(rows, self.columns, where)
        values: Sequence[Any] = rows[column][:]
        return values if self.separator is None else cut(values, self.separator, where)

    def apply(self, values: Sequence[Any], regression: bool | None) -> bool:
        """Whether these are several labels a row."""
        told = self.lists is None and not regression and isinstance(values[0], list)
        return self.named or bool(self.lists) or told


def check_columns(columns: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise unless these are two or more columns of the rows.

    Raises:
        DataError: With those there are.
    """
    if len(set(columns)) < max(len(columns), 2):
        raise DataError(
            f"--label-columns (label_columns=) needs two or more different columns, got "
            f"{listed(columns)}. One column of 0 and 1 is one label of two classes: --label-column."
        )
    if missing := [name for name in columns if name not in known]:
        raise DataError(
            f"{where}: there is no column {listed(map(repr, missing))}. The columns are: "
            f"{listed(known)}. To predict rows without labels: "
            f"{WITHOUT_LABELS}."
        )


def marked(rows: Any, columns: Sequence[str], where: str) -> list[list[str] | None]:
    """The names of the columns with a 1, for every row; `None` where all are missing or -1.

    Raises:
        DataError: If there is something else than 0 or 1.
    """
    found: list[list[str] | None] = []
    for row, values in enumerate(zip(*(rows[name][:] for name in columns), strict=True)):
        named = dict(zip(columns, values, strict=True))
        if all(map(is_missing, values)):
            found.append(None)
            continue
        if wrong := {name: value for name, value in named.items() if value not in (0, 1)}:
            name, value = next(iter(wrong.items()))
            raise DataError(
                f"{where}: row {row} has {value!r} in the column {name!r}. Each label column needs "
                "a 0 or a 1 in every row, or nothing in all of them."
            )
        found.append([name for name, value in named.items() if value])
    return found


def cut(values: Sequence[Any], separator: str, where: str) -> list[list[Any]]:
    """Texts cut where a separator stands; one that is empty or missing has no label.

    Parts that are all whole numbers are numbers of classes.

    Raises:
        DataError: If a value is a list already.
    """
    found: list[list[Any]] = []
    for row, value in enumerate(values):
        if isinstance(value, list):
            raise DataError(
                f"{where}: row {row} has the label {value!r}, a list already. Leave out "
                "--label-separator (label_separator=)."
            )
        found.append([part.strip() for part in as_text(value).split(separator) if part.strip()])
    if all(part.isdecimal() for parts in found for part in parts):
        return [[int(part) for part in parts] for parts in found]
    return found


def as_text(value: Any) -> str:
    """A label as text: a column where few rows have several may have been read as numbers."""
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def read_several(values: Sequence[Any], feature: Any, names: Sequence[str] | None) -> Labels:
    """Labels that are lists, as one 0 or 1 for each class, and the names of the classes.

    A list holds the names or the numbers of the classes that apply, or a 0 or 1 for every class;
    the last is meant where all lists have that many entries, and nothing else in them.

    Args:
        values: N lists.
        feature: Of the column, which may name the classes; `None` where there are many columns.
        names: Of the classes, index = class, where they are known.

    Raises:
        DataError: If a label is no list, a class is not known, nothing tells how many there are,
            or there is one only.
    """
    check_lists(values)
    own = getattr(getattr(feature, "feature", None), "names", None)
    if own is not None:
        values = [[own[one] if one in range(len(own)) else one for one in row] for row in values]
        names = names or own
    marks, known = marks_of(values, names)
    if len(known) < 2:
        raise DataError(
            f"there is one label only, {listed(known)}, which applies or not: two classes. Write "
            "it as one number a row, 0 or 1."
        )
    return Labels(marks, known, describe(marks, known))


def describe(marks: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """How many labels there are, and how often; for people."""
    none = sum(not any(row) for row in marks)
    mean = sum(map(sum, marks)) / len(marks)
    return f"{len(names)} labels, {mean:.2f} a row, {none} rows with none: {listed(names)}"


def check_lists(values: Sequence[Any]) -> None:
    """Raise unless every label is a flat list.

    Raises:
        DataError: Naming the first row whose is not.
    """
    for row, value in enumerate(values):
        if not isinstance(value, list):
            raise DataError(
                f"row {row} has the label {value!r}; rows with several labels have a list each. "
                "Labels in one text are cut with --label-separator (label_separator=), columns of "
                "0 and 1 named with --label-columns (label_columns=)."
            )
        if wrong := [one for one in value if one is None or isinstance(one, list | dict)]:
            raise DataError(
                f"row {row} has {wrong[0]!r} among its labels; they are names or numbers."
            )


def marks_of(
    values: Sequence[Sequence[Any]], names: Sequence[str] | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """One 0 or 1 for each class, and the names of the classes."""
    entries = {one for value in values for one in value}
    if entries and all(isinstance(one, str) for one in entries):
        known = tuple(names) if names else tuple(sorted(entries))
        return placed(values, known, {name: index for index, name in enumerate(known)}), known
    width = len(values[0])
    flat = width > 0 and not entries - {0, 1} and {len(value) for value in values} == {width}
    if flat and (names is None or len(names) == width):
        known = tuple(names or map(str, range(width)))
        return tuple(tuple(int(one) for one in value) for value in values), known
    known = tuple(names or numbered(entries))
    codes = {name: index for index, name in enumerate(known)}
    if all(str(one) in codes for one in entries):
        # Numbers that are names themselves, such as years.
        return placed(values, known, {one: codes[str(one)] for one in entries}), known
    return placed(values, known, {index: index for index in range(len(known))}), known


def numbered(entries: set[Any]) -> tuple[str, ...]:
    """Numbers as names, where each from 0 to the highest applies to some row.

    Raises:
        DataError: If not, for then nothing tells how many classes there are.
    """
    if not entries or entries != set(range(len(entries))):
        there = (
            f"the numbers of classes are {listed(sorted(entries))}" if entries else "all are empty"
        )
        raise DataError(
            f"{there}, and nothing says how many classes there are. Name them in a meta.json "
            'beside the data ({"label_names": [...]}), or give a 0 or 1 for every class.'
        )
    return tuple(str(number) for number in range(len(entries)))


def placed(
    values: Sequence[Sequence[Any]], names: Sequence[str], index: Mapping[Any, int]
) -> tuple[tuple[int, ...], ...]:
    """A 1 for each class that is listed.

    Raises:
        DataError: If one is not known.
    """
    for row, value in enumerate(values):
        if unknown := [one for one in value if one not in index]:
            raise DataError(f"row {row} has the label {unknown[0]!r}. Known: {listed(names)}.")
    found = [{index[one] for one in value} for value in values]
    return tuple(tuple(int(place in row) for place in range(len(names))) for row in found)
