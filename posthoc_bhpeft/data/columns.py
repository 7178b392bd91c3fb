"""Finding the text and label columns, and turning labels into numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posthoc_bhpeft.errors import DataError

TEXT_COLUMNS = (
    "text",
    "sentence",
    "content",
    "review",
    "message",
    "tweet",
    "comment",
    "comment_text",
    "utterance",
    "body",
    "document",
    "question",
)
PAIR_COLUMNS = (
    ("question", "passage"),
    ("question", "context"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("query", "document"),
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "target",
    "class",
    "category",
    "sentiment",
    "intent",
    "topic",
    "rating",
    "stars",
    "score",
)
WORD_COLUMNS = ("tokens", "words")
OUT_OF_SCOPE = -1
WITHOUT_LABELS = "`bhpeft predict --ignore-labels` (ignore_labels=True)"
"""How rows are read without labels; of all commands one can, so it is named."""


@dataclass(frozen=True)
class Columns:
    """Which columns to read; `pair` and `label` may be None."""

    text: str
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Labels:
    """Labels as numbers: N indices or N rows of 0 and 1, with names, or N real targets."""

    values: tuple[Any, ...]
    names: tuple[str, ...] | None
    note: str | None = None

    @property
    def regression(self) -> bool:
        """Whether the labels are real numbers."""
        return self.names is None


def find_columns(
    kinds: Mapping[str, type],
    *,
    text: str | None,
    pair: str | None,
    label: str | None,
    choices: bool = False,
) -> Columns:
    """Choose columns: the given ones, else the usual names, else the only text there is.

    Args:
        kinds: column name -> Python type of its values.
        text: name of the text column, or None to look for it.
        pair: name of the second text column, or None to look for it.
        label: name of the label column, or None to look for it.
        choices: whether a column with lists of choices is welcome.

    Raises:
        DataError: a given column is missing, or no text column can be told.
    """
    for name in (text, pair, label):
        if name is not None and name not in kinds:
            raise DataError(f"There is no column {name!r}. The columns are: {listed(kinds)}.")
    if label is None:
        label = first_of(LABEL_COLUMNS, kinds)
    if text is not None:
        return Columns(text, pair, label)
    if not choices:
        _refuse_multiple_choice(kinds)
    for first, second in PAIR_COLUMNS:
        if _is_text(kinds, first) and _is_text(kinds, second) and pair in (None, second):
            return Columns(_actual(kinds, first), _actual(kinds, second), label)
    found = first_of([name for name in TEXT_COLUMNS if _is_text(kinds, name)], kinds)
    texts = [name for name, kind in kinds.items() if kind is str and name not in (label, pair)]
    if found is None and len(texts) == 1:
        found = texts[0]
    if found is None:
        lists = any(kinds.get(name) is list for name in WORD_COLUMNS)
        words = (
            " Words with a label each: `bhpeft train --task words` (words=True)." if lists else ""
        )
        raise DataError(
            f"Cannot tell which column holds the text. The columns are: {listed(kinds)}. "
            f"Name it with --text-column (text_column=).{words}"
        )
    return Columns(found, pair, label)


def read_labels(
    values: Sequence[Any],
    *,
    names: Sequence[str] | None,
    regression: bool | None,
    one_class: bool = False,
    rows: Sequence[int] | None = None,
) -> Labels:
    """Turn a column of labels into indices or real targets.

    Integers and booleans are class indices, strings are mapped in sorted order (or in the order
    of `names`), floats mean regression unless `regression` is False. Where it is True, labels of
    every type are read as numbers.

    Args:
        values: N labels, none missing.
        names: class names if known from the source or the checkpoint, index = label.
        regression: True or False where it is known, None to tell from the values.
        one_class: take rows that all have one label, too.
        rows: N numbers of rows for errors; None counts from 0.

    Raises:
        DataError: labels that are no indices, names or numbers, or out of range.
    """
    labels = _read(values, names, regression, rows or range(len(values)))
    if labels.names is not None and len(labels.names) < 2 and not one_class:
        raise DataError(
            f"All rows have the label {labels.names[0]!r}: one class leaves nothing to learn."
        )
    return labels


def _read(
    values: Sequence[Any],
    names: Sequence[str] | None,
    regression: bool | None,
    rows: Sequence[int],
) -> Labels:
    kinds = {type(value) for value in values}
    if kinds & {list, tuple, dict}:
        raise DataError(
            "Labels are lists, one for each row: several labels. `bhpeft train` learns them, and "
            "load_rows reads them with multi_label=True for bayesianize(..., likelihood="
            "Bernoulli()); choices, --regression, rounds of a stream and a checkpoint that was "
            "trained for one label a row take no lists."
        )
    if regression:
        return _real(_targets(values, rows))
    if kinds <= {str}:
        return _named([str(value) for value in values], names)
    if kinds <= {bool}:
        return _indexed([int(value) for value in values], names or ("false", "true"))
    if not kinds <= {int, bool, float}:
        raise DataError(f"Labels of mixed types: {', '.join(sorted(k.__name__ for k in kinds))}.")
    if regression is None and float in kinds and names is None:
        return _real([float(value) for value in values])
    if any(float(value) != int(value) for value in values):
        raise DataError("Labels are real numbers where class indices are expected.")
    return _indexed([int(value) for value in values], names)


def is_missing(value: Any, *, regression: bool = False) -> bool:
    """Whether a label stands for "not known": None, NaN, an empty string, or -1 for a class."""
    if value is None or value == "":
        return True
    if isinstance(value, float) and math.isnan(value):
        return True
    if regression:
        # Any number may be a target.
        return False
    return isinstance(value, int) and not isinstance(value, bool) and value == OUT_OF_SCOPE


def values_of(rows: Any, column: str, kept: Sequence[int]) -> tuple[Any, ...]:
    """A column of a `datasets.Dataset`, of some rows."""
    values = rows[column][:]
    return tuple(values[row] for row in kept)


def named_column(rows: Any, name: str | None, where: str) -> str | None:
    """A column that was named, if it is there.

    Raises:
        DataError: If it is not.
    """
    if name is not None and name not in rows.column_names:
        listed = ", ".join(rows.column_names)
        raise DataError(f"{where}: there is no column {name!r}. The columns are: {listed}.")
    return name


def class_names(
    feature: Any, values: Sequence[Any], names: Sequence[str] | None
) -> tuple[Sequence[Any], Sequence[str] | None]:
    """Indices of a hub `ClassLabel` become names, so a checkpoint's own order can apply."""
    own = getattr(feature, "names", None)
    if own is None or not all(isinstance(value, int) for value in values):
        return values, names
    return [own[value] for value in values], names or own


def missing_labels(values: Sequence[Any], kept: Sequence[int], column: str, where: str) -> str:
    """The message where some rows have no label, with the ways out."""
    present = set(kept)
    missing = [row for row in range(len(values)) if row not in present]
    outside = sum(values[row] == OUT_OF_SCOPE for row in missing)
    what = (
        f"{outside} of {len(values)} rows have the label {OUT_OF_SCOPE}, which stands for out of "
        f"scope or hidden (first: row {missing[0]})"
        if outside
        else f"{len(missing)} of {len(values)} rows have no label (first: row {missing[0]})"
    )
    ways = f"To predict them all, leave labels out: {WITHOUT_LABELS}."
    if kept:
        ways = f"Drop these rows with --drop-unlabelled (drop_unlabelled=True). {ways}"
    own = f" If {OUT_OF_SCOPE} is a class of its own, give it a name." if outside else ""
    return f"{where}, column {column!r}: {what}. {ways}{own}"


def _targets(values: Sequence[Any], rows: Sequence[int]) -> list[float]:
    """Every label as a number, whether it is written as one, as a text or as yes or no.

    Raises:
        DataError: Naming the first row whose label is none.
    """
    found = []
    for row, value in zip(rows, values, strict=True):
        target = _target(value)
        if target is None:
            raise DataError(
                f"row {row} has the label {value!r}, which is no number, and regression learns "
                "and scores nothing else. Correct it, name another column with --label-column "
                "(label_column=), or read classes without --regression (regression=True)."
            )
        found.append(target)
    return found


def _target(value: Any) -> float | None:
    try:
        target = float(value)
    except (TypeError, ValueError):
        return None
    # A text may say "nan" or "inf", from which nothing is learnt.
    return target if math.isfinite(target) else None


def _real(values: list[float]) -> Labels:
    return Labels(
        tuple(values),
        None,
        f"labels are real numbers ({min(values):g} to {max(values):g}): regression",
    )


def _named(values: list[str], names: Sequence[str] | None) -> Labels:
    known = tuple(names) if names else tuple(sorted(set(values)))
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise DataError(
            f"Unknown label{'s' if len(unknown) > 1 else ''}: {listed(unknown)}. "
            f"Known: {listed(known)}."
        )
    index = {name: i for i, name in enumerate(known)}
    note = None if names else f"labels mapped in sorted order: {listed(known)}"
    return Labels(tuple(index[value] for value in values), known, note)


def _indexed(values: list[int], names: Sequence[str] | None) -> Labels:
    distinct = sorted(set(values))
    if names is None and _are_codes(distinct):
        return _renumbered(values, tuple(str(value) for value in distinct))
    if names is not None and {str(value) for value in distinct} <= set(names):
        return _renumbered(values, tuple(names))
    known = tuple(names) if names else tuple(str(i) for i in range(distinct[-1] + 1))
    wrong = [value for value in distinct if not 0 <= value < len(known)]
    if wrong:
        raise DataError(
            f"Labels out of range: {listed(wrong)}. There are {len(known)} classes "
            f"({listed(known)}), so labels run from 0 to {len(known) - 1}."
        )
    return Labels(tuple(values), known)


def _renumbered(values: list[int], names: tuple[str, ...]) -> Labels:
    """Indices of numbers that are names themselves, such as stars from 1 to 5."""
    labels = _named([str(value) for value in values], names)
    if names == tuple(str(i) for i in range(len(names))):
        return labels
    return Labels(labels.values, names, f"labels {listed(names)} became 0 to {len(names) - 1}")


def _are_codes(distinct: list[int]) -> bool:
    """Whether sorted integers are codes (stars 1 to 5; 10, 20, 30) rather than indices from 0."""
    from_one = distinct == list(range(1, len(distinct) + 1))
    return from_one or distinct[0] < 0 or distinct[-1] >= max(2 * len(distinct), 10)


def _refuse_multiple_choice(kinds: Mapping[str, type]) -> None:
    if kinds.get("choices") is list:
        raise DataError(
            "These rows are multiple choice (a column 'choices' with lists). A language model or a "
            "multiple-choice model reads them (`bhpeft train --task choices`, load_rows with "
            "choices=True); for a text classifier write one text a row (question and choices "
            "together) and name it with --text-column."
        )


def _is_text(kinds: Mapping[str, type], name: str) -> bool:
    actual = first_of([name], kinds)
    return actual is not None and kinds[actual] is str


def _actual(kinds: Mapping[str, type], name: str) -> str:
    found = first_of([name], kinds)
    assert found is not None
    return found


def first_of(wanted: Iterable[str], columns: Iterable[str]) -> str | None:
    """The first of the wanted names that is among the columns, in whatever case."""
    by_lower = {name.lower(): name for name in reversed(list(columns))}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def listed(names: Any, limit: int = 12) -> str:
    """Names with commas between, and how many more there are; for people."""
    items = [str(name) for name in names]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
