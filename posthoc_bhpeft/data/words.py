"""Rows of words with a label for each, as `datasets` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posthoc_bhpeft.batches import IGNORED
from posthoc_bhpeft.data.columns import (
    WITHOUT_LABELS,
    WORD_COLUMNS,
    Labels,
    class_names,
    is_missing,
    missing_labels,
    named_column,
    read_labels,
    values_of,
)
from posthoc_bhpeft.data.rows import TextData, Words
from posthoc_bhpeft.errors import DataError

TAG_COLUMNS = ("ner_tags", "tags", "labels", "word_labels", "pos_tags", "upos", "label")


def tells_words(rows: Any, label: str | None) -> bool:
    """Whether the columns of a `datasets.Dataset` are words with a label for each.

    Args:
        rows: The data.
        label: The label column, where it is named.
    """
    tags = label or find_tags(rows)
    if tags is None or tags not in rows.column_names or find_words(rows) is None:
        return False
    return holds_lists(rows, tags)


def check_only_words(
    where: str, *, choices: bool | None, regression: bool | None, pair: str | None
) -> None:
    """Raise where something else is asked of words than a class for each.

    Raises:
        DataError: With what to leave out.
    """
    asked = {
        "--task choices (choices=)": choices,
        "--regression (regression=)": regression,
        "--text-pair-column (text_pair_column=)": pair,
    }
    if given := [name for name, value in asked.items() if value]:
        raise DataError(
            f"{where}: every word has one of several classes, so leave out {', '.join(given)}."
        )


def find_words(rows: Any) -> str | None:
    """The column with lists of words, by its usual name."""
    return next((n for n in WORD_COLUMNS if n in rows.column_names and holds_words(rows, n)), None)


def find_tags(rows: Any) -> str | None:
    """The column with a list of labels a row, by its usual name."""
    return next((n for n in TAG_COLUMNS if n in rows.column_names and holds_lists(rows, n)), None)


def holds_words(rows: Any, column: str) -> bool:
    """Whether the first row has a list of texts there."""
    value = rows[0][column]
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def holds_lists(rows: Any, column: str) -> bool:
    """Whether there are lists in a column, going by its type."""
    return hasattr(rows.features[column], "feature")


def read_words(
    rows: Any,
    *,
    text: str | None,
    label: str | None,
    names: Sequence[str] | None,
    ignore_labels: bool,
    drop: bool,
    one_class: bool,
    where: str,
) -> TextData:
    """Words and their labels; a word whose label is missing, -1 or -100 is predicted, not judged.

    Args:
        rows: A `datasets.Dataset`.
        text: The column with lists of words; `None` finds it.
        label: The column with a list of labels a row; `None` finds it.
        names: Names of the classes, where they are known from elsewhere.
        ignore_labels: Read no labels at all.
        drop: Leave out rows without any labels instead of raising.
        one_class: Take rows whose words all have one label, too.
        where: The rows came from, for errors.

    Raises:
        DataError: If columns are missing, or a row has not one label a word.
    """
    text = named_column(rows, text, where) or find_words(rows)
    label = named_column(rows, label, where) or find_tags(rows)
    if text is None:
        raise DataError(
            f"{where}: cannot tell which column holds the words, a list of texts a row. The "
            f"columns are: {', '.join(rows.column_names)}. Name it with --text-column "
            "(text_column=)."
        )
    words = checked_words(rows[text][:], text, where)
    tags = None if label is None or ignore_labels else rows[label][:]
    if tags is None or all(value is None for value in tags):
        label, kept, labels = None, list(range(len(words))), None
    else:
        kept = [row for row, value in enumerate(tags) if value is not None]
        if len(kept) < len(tags) and not (drop and kept):
            raise DataError(missing_labels(tags, kept, str(label), where))
        labels = word_labels(rows.features[label], words, tags, kept, names, one_class, where)
    used = {text, label}
    return TextData(
        texts=tuple(" ".join(words[row]) for row in kept),
        words=tuple(words[row] for row in kept),
        labels=None if labels is None else labels.values,
        label_names=None if labels is None else labels.names,
        columns={
            name: values_of(rows, name, kept) for name in rows.column_names if name not in used
        },
        indices=tuple(kept),
        notes=notes_on(text, label, labels, len(words) - len(kept)),
    )


def checked_words(values: Sequence[Any], column: str, where: str) -> tuple[Words, ...]:
    """Lists of texts, one word or more each.

    Raises:
        DataError: Naming the first row that is none.
    """
    for row, value in enumerate(values):
        if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise DataError(
                f"{where}, column {column!r}: row {row} has {str(value)[:60]!r}. Each row needs a "
                "list of one word or more; a text must be cut into words first."
            )
    return tuple(tuple(value) for value in values)


def word_labels(
    feature: Any,
    words: Sequence[Words],
    tags: Sequence[Any],
    kept: Sequence[int],
    names: Sequence[str] | None,
    one_class: bool,
    where: str,
) -> Labels:
    """One class for each word of the rows kept, -100 where a word has none.

    Raises:
        DataError: If a row has more or fewer labels than words, or labels make no sense.
    """
    for row in kept:
        if not isinstance(tags[row], list) or len(tags[row]) != len(words[row]):
            got = f"{len(tags[row])} labels" if isinstance(tags[row], list) else repr(tags[row])
            raise DataError(
                f"{where}: row {row} has {len(words[row])} words and {got}; each word needs one, "
                f"{IGNORED} where it is not known. If they are labels of the whole text: --task "
                "text (words=False)."
            )
    every = [tag for row in kept for tag in tags[row]]
    known = [tag for tag in every if not (is_missing(tag) or tag == IGNORED)]
    if not known:
        raise DataError(
            f"{where}: no word has a label. To predict them, leave labels out: {WITHOUT_LABELS}."
        )
    present, names = class_names(getattr(feature, "feature", None), known, names)
    try:
        found = read_labels(present, names=names, regression=False, one_class=one_class)
    except DataError as error:
        raise DataError(f"{where}, labels of words: {error}") from error
    codes = iter(found.values)
    return Labels(
        tuple(
            tuple(IGNORED if is_missing(t) or t == IGNORED else next(codes) for t in tags[row])
            for row in kept
        ),
        found.names,
        found.note,
    )


def notes_on(text: str, label: str | None, labels: Labels | None, dropped: int) -> tuple[str, ...]:
    """What was decided while reading, for people."""
    said = "no labels" if labels is None else f"a label for each from {label!r}"
    notes = [f"words from {text!r}, {said}"]
    if labels is not None:
        if labels.note:
            notes.append(labels.note)
        unknown = sum(one == IGNORED for row in labels.values for one in row)
        if unknown:
            notes.append(f"{unknown} words have no label")
    if dropped:
        notes.append(f"{dropped} rows without labels dropped")
    return tuple(notes)
