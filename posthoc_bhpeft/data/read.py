"""Reading one split into a `TextData`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posthoc_bhpeft.data.answers import (
    CHOICES_COLUMN,
    check_choice_labels,
    letters,
    read_choices,
)
from posthoc_bhpeft.data.columns import (
    Columns,
    Labels,
    class_names,
    find_columns,
    is_missing,
    listed,
    missing_labels,
    read_labels,
    values_of,
)
from posthoc_bhpeft.data.responses import check_only_responses, read_responses, tells_responses
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.data.several import Several, read_several
from posthoc_bhpeft.data.sources import Source, open_source, read_split
from posthoc_bhpeft.data.words import check_only_words, read_words, tells_words
from posthoc_bhpeft.errors import DataError


def load_rows(
    source: str | Path | Source,
    split: str = "train",
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    label_separator: str | None = None,
    label_names: Sequence[str] | None = None,
    regression: bool | None = None,
    drop_unlabelled: bool = False,
    ignore_labels: bool = False,
    one_class: bool = False,
    choices: bool | None = False,
    multi_label: bool | None = False,
    words: bool | None = False,
    response_column: str | None = None,
    responses: bool | None = False,
) -> TextData:
    """Read one split of a file, a folder or a hub data set.

    Args:
        source: a csv, tsv, json, jsonl or parquet file (also gzipped), a folder with one such file
            for each split (and a meta.json with `label_names`, if there is one), a hub name, or
            NAME:CONFIGURATION on the hub. A single file has one split, "train".
        split: which split.
        text_column: the column with the text; the usual names are found.
        text_pair_column: the column with a second text, such as a passage beside its question.
        label_column: the column with the label; the usual names are found.
        label_columns: columns with a 0 or 1 for each of several labels a row, named after them.
        label_separator: what stands between several labels a row, where they are one text; an empty
            one has none.
        label_names: names of the classes, index = label, where they are known from elsewhere.
        regression: True reads every label as a number, texts too; False as a class; None takes
            float labels for regression.
        drop_unlabelled: leave out rows whose label is missing, or -1 for a class, instead of
            raising.
        ignore_labels: read no labels at all.
        one_class: take rows that all have one label, too.
        choices: read questions with a column `choices`, whose label counts them from 0; where
            there is no such column, the choices of every row are the names of the classes; None
            reads them where there is the column.
        multi_label: labels are lists, and any number may apply: of names or numbers of classes, or
            a 0 or 1 for each; None tells from the values.
        words: read lists of words (column `tokens` or `words`) with a list of as many labels
            (`ner_tags`, `tags`, `labels`); None reads them where there are both.
        response_column: with `responses`, the column with what should be written; the usual names
            are found.
        responses: labels are texts that a language model should write after the text, its prompt;
            None tells from the columns.

    Raises:
        DataError: no such source, split or column, or labels that make no sense.
    """
    place = source if isinstance(source, Source) else open_source(source)
    where = place.place(split)
    rows = read_split(place, split)
    if len(rows) == 0:
        raise DataError(f"{where} has no rows.")
    if responses is None:
        responses = response_column is not None or tells_responses(rows.column_names, label_column)
    if responses:
        check_only_responses(where, label=label_column, pair=text_pair_column)
        written = read_responses(
            rows,
            prompt=text_column,
            response=response_column,
            ignore_labels=ignore_labels,
            drop=drop_unlabelled,
            where=where,
        )
        return replace(written, source=place.name, split=split, single_file=place.single_file)
    several = Several()
    if not ignore_labels:
        several = Several(tuple(label_columns), label_separator, multi_label)
    others = {
        "--task words (words=)": words,
        "--task choices (choices=)": choices,
        "--regression (regression=)": regression,
        "--label-column (label_column=)": label_columns and label_column,
    }
    several.check(rows.column_names, others, where)
    told = words is None and not choices and not several.named
    if words or (told and tells_words(rows, label_column)):
        check_only_words(where, choices=choices, regression=regression, pair=text_pair_column)
        found = read_words(
            rows,
            text=text_column,
            label=label_column,
            names=label_names or place.label_names,
            ignore_labels=ignore_labels,
            drop=drop_unlabelled,
            one_class=one_class,
            where=where,
        )
        notes = found.notes + _caution(place, label_names, found.label_names)
        return replace(
            found,
            source=place.name,
            split=split,
            single_file=place.single_file,
            notes=notes,
        )
    kinds = {name: _kind(feature) for name, feature in rows.features.items()}
    if choices is None:
        choices = kinds.get(CHOICES_COLUMN) is list and not several.named
    if choices and regression:
        raise DataError(
            f"{where}: one of the choices of a row is right, so its label is no real number. Leave "
            "out --regression (regression=True), or the choices: --task text (choices=False)."
        )
    try:
        columns = find_columns(
            kinds, text=text_column, pair=text_pair_column, label=label_column, choices=choices
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if ignore_labels or several.columns:
        columns = Columns(columns.text, columns.pair, None)
    own = read_choices(rows, where) if choices else None
    names = label_names or several.columns or place.label_names
    several.check_names(names, where)
    kept, labels = _labels(
        rows,
        columns.label,
        # One of the choices is right, whatever a list may say.
        several=replace(several, lists=False) if choices else several,
        names=names if own is None else letters(max(map(len, own))),
        regression=regression,
        drop=drop_unlabelled,
        one_class=one_class,
        where=where,
    )
    notes = _notes(columns, several, labels, dropped=len(rows) - len(kept))
    notes += _caution(place, label_names, None if labels is None else labels.names)
    used = {columns.text, columns.pair, columns.label, *several.columns}
    if own is not None:
        used.add(CHOICES_COLUMN)
    chosen = _choices(own, kept, labels, names, where) if choices else None
    return TextData(
        texts=_texts(rows, columns.text, kept, where),
        text_pairs=None if columns.pair is None else _texts(rows, columns.pair, kept, where),
        labels=None if labels is None else labels.values,
        label_names=None if labels is None else labels.names,
        regression=labels is not None and labels.regression,
        choices=chosen,
        columns={
            name: values_of(rows, name, kept) for name in rows.column_names if name not in used
        },
        indices=tuple(kept),
        source=place.name,
        split=split,
        single_file=place.single_file,
        notes=notes,
    )


def _labels(
    rows: Any,
    column: str | None,
    *,
    several: Several,
    names: Sequence[str] | None,
    regression: bool | None,
    drop: bool,
    one_class: bool,
    where: str,
) -> tuple[list[int], Labels | None]:
    """The rows to keep and their labels; no labels if the column is absent or empty."""
    everything = list(range(len(rows)))
    if column is None and not several.columns:
        return everything, None
    called = column or listed(several.columns)
    values = several.written(rows, column, where)
    kept = [row for row in everything if not is_missing(values[row], regression=bool(regression))]
    if len(kept) < len(values):
        if not kept and all(value is None for value in values):
            return everything, None
        if not drop or not kept:
            raise DataError(missing_labels(values, kept, called, where))
    present: Sequence[Any] = [values[row] for row in kept]
    feature = rows.features.get(column)
    try:
        if several.apply(present, regression):
            return kept, read_several(present, feature, names)
        present, names = class_names(feature, present, names)
        labels = read_labels(
            present, names=names, regression=regression, one_class=one_class, rows=kept
        )
    except DataError as error:
        raise DataError(f"{where}, column {called!r}: {error}") from error
    return kept, labels


def _choices(
    own: tuple[tuple[str, ...], ...] | None,
    kept: list[int],
    labels: Labels | None,
    names: Sequence[str] | None,
    where: str,
) -> tuple[tuple[str, ...], ...]:
    """The choices of the rows kept: their own, or the names of the classes in every row."""
    if own is not None:
        chosen = tuple(own[row] for row in kept)
        if labels is not None:
            check_choice_labels(labels.values, chosen, kept, where)
        return chosen
    every = names if labels is None else labels.names
    if not every:
        raise DataError(
            f"{where}: there is no column {CHOICES_COLUMN!r}, and nothing names the classes to "
            'choose from. Put a meta.json beside the data: {"label_names": ["no", "yes"]}.'
        )
    return (tuple(every),) * len(kept)


def _texts(rows: Any, column: str, kept: list[int], where: str) -> tuple[str, ...]:
    values = values_of(rows, column, kept)
    for row, value in zip(kept, values, strict=True):
        if value is None:
            empty = sum(one is None for one in values)
            raise DataError(
                f"{where}: row {row} has nothing as its text in the column {column!r}, as "
                f"{empty} of {len(values)} rows have. Write a text there, or take such rows out of "
                f"the file: pandas.read_csv(file).dropna(subset=[{column!r}]).to_csv(file, "
                "index=False)."
            )
        if not isinstance(value, str):
            raise DataError(
                f"{where}: row {row} has {value!r} ({type(value).__name__}) as its text in the "
                f"column {column!r}. Write it as a text, or name another with --text-column "
                "(text_column=)."
            )
    return values


def _kind(feature: Any) -> type:
    """The Python type of a feature's values, as far as choosing columns needs it."""
    dtype = str(getattr(feature, "dtype", ""))
    if "string" in dtype:
        return str
    if "float" in dtype:
        return float
    if "int" in dtype or dtype == "bool":
        return int
    return list


def _caution(
    place: Source, asked: Sequence[str] | None, read: tuple[str, ...] | None
) -> tuple[str, ...]:
    """A warning where names of classes were asked for that are not those of the data."""
    if read is None or not asked or place.label_names in (None, read):
        return ()
    theirs, ours = ", ".join(place.label_names or ()), ", ".join(asked)
    return (f"CAUTION: the data names its classes {theirs}, but they are read as {ours}",)


def _notes(
    columns: Columns, several: Several, labels: Labels | None, *, dropped: int
) -> tuple[str, ...]:
    texts = repr(columns.text) if columns.pair is None else f"{columns.text!r} + {columns.pair!r}"
    source = f"{len(several.columns)} columns" if several.columns else repr(columns.label)
    label = "no labels" if labels is None else f"label from {source}"
    notes = [f"text from {texts}, {label}"]
    if labels is not None and labels.note:
        notes.append(labels.note)
    if dropped:
        notes.append(f"{dropped} rows without a label dropped")
    return tuple(notes)
