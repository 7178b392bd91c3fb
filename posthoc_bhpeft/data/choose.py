"""Which rows train and which decide when to stop; the same settings give the same rows again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from posthoc_bhpeft.data.read import load_rows
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.data.sources import Source, open_source
from posthoc_bhpeft.errors import ConfigError, DataError

_CARVED = 0.15


@dataclass(frozen=True)
class RowSettings:
    """Everything that decides which rows are used, so that they can be found again.

    Attributes:
        source: path or hub name of the data.
        train_split: the split to train on.
        validation_split: the split that decides when to stop; None takes the usual name, and
            where there is none beside the training split, 15 % of the training rows.
        validation: False uses no validation rows at all.
        text_column: the column with the text, or None to find it.
        text_pair_column: the column with the second text, or None to find it.
        label_column: the column with the label, or None to find it.
        label_columns: columns with a 0 or 1 for each of several labels a row.
        label_separator: what stands between several labels a row, where they are one text.
        regression: True reads every label as a number, texts too; False as a class; None takes
            float labels for regression.
        drop_unlabelled: leave out rows whose label is missing, or -1 for a class.
        choices: rows are questions with choices; None tells from their columns.
        multi_label: labels are lists; None tells from the values.
        words: rows are words with a label for each; None tells from their columns.
        response_column: the column with the text to be written, or None to find it.
        responses: labels are texts that a language model should write; None tells from the columns.
        max_rows: draw at most so many training rows by seed.
        max_validation_rows: draw at most so many rows of the validation split by seed. Where
            training rows are kept back instead, these are about so many at most, but one or more
            of every class that has two.
        seed: for every draw.
    """

    source: str
    train_split: str = "train"
    validation_split: str | None = None
    validation: bool = True
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None
    regression: bool | None = None
    drop_unlabelled: bool = False
    choices: bool | None = False
    multi_label: bool | None = False
    words: bool | None = False
    response_column: str | None = None
    responses: bool | None = False
    max_rows: int | None = None
    max_validation_rows: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        # A record in JSON has a list.
        object.__setattr__(self, "label_columns", tuple(self.label_columns))
        for name in ("max_rows", "max_validation_rows"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{name} is {value}; at least 2 rows are needed.")


@dataclass(frozen=True)
class ChosenRows:
    """Training rows, validation rows or None, and how they were chosen."""

    train: TextData
    validation: TextData | None
    notes: tuple[str, ...]


def choose_rows(settings: RowSettings) -> ChosenRows:
    """Read and draw the training and validation rows.

    Raises:
        DataError: the source, a split or a column is missing, or the labels make no sense.
        ConfigError: the same split is to train and to decide when to stop.
    """
    source = open_source(settings.source)
    whole = read_rows(settings, source, settings.train_split)
    notes = list(whole.notes)
    train, validation = whole, None
    if settings.validation:
        train, validation, note = _validation(settings, source, whole)
        notes.append(note)
    train, validation = _same_letters(train.draw(settings.max_rows, settings.seed), validation)
    drawn = f", drawn with seed {settings.seed}" if len(train) < len(whole) else ""
    for rows in (train, validation):
        if rows is not None:
            check_labels(rows)
    if train.multi_label and not any(map(any, train.labels or ())):
        raise DataError(f"{train.place}: no label applies to any row to learn.")
    notes.insert(
        0, f"{len(train)} of the {len(whole)} rows of {source.name} ({whole.split}) train{drawn}"
    )
    return ChosenRows(train, validation, tuple(notes))


def check_labels(rows: TextData) -> None:
    """Raise where there is nothing to learn from.

    Raises:
        DataError: With how to name the labels.
    """
    if rows.labels is None:
        raise DataError(
            f"{rows.place} has no labels to learn from. Name the column with "
            "--label-column (label_column=), or several columns of 0 and 1 with --label-columns "
            "(label_columns=)."
        )


def read_rows(
    settings: RowSettings,
    source: Source,
    split: str,
    *,
    label_names: tuple[str, ...] | None = None,
    ignore_labels: bool = False,
) -> TextData:
    """Read a split with the columns that the settings name."""
    return load_rows(
        source,
        split,
        text_column=settings.text_column,
        text_pair_column=settings.text_pair_column,
        label_column=settings.label_column,
        label_columns=settings.label_columns,
        label_separator=settings.label_separator,
        label_names=label_names,
        regression=settings.regression,
        drop_unlabelled=settings.drop_unlabelled,
        ignore_labels=ignore_labels,
        choices=settings.choices,
        multi_label=settings.multi_label,
        words=settings.words,
        response_column=settings.response_column,
        responses=settings.responses,
    )


def _validation(
    settings: RowSettings, source: Source, whole: TextData
) -> tuple[TextData, TextData, str]:
    split = _validation_split(settings, source)
    if split is None:
        train, validation = _held_out(settings, whole)
        beside = f" beside {whole.split!r}" if source.validation_split else ""
        return (
            train,
            validation,
            f"{source.name} has no validation split{beside}: {len(validation)} training rows, "
            f"drawn with seed {settings.seed}, are kept back to decide when to stop",
        )
    same = replace(
        settings,
        regression=whole.regression,
        choices=whole.choices is not None,
        words=whole.words is not None,
        responses=whole.written,
        multi_label=whole.multi_label,
    )
    rows = read_rows(same, source, split, label_names=whole.label_names)
    validation = rows.draw(settings.max_validation_rows, settings.seed)
    return whole, validation, f"{len(validation)} rows of {split!r} decide when to stop"


def _validation_split(settings: RowSettings, source: Source) -> str | None:
    """The split that decides when to stop, which is never the one that trains.

    Raises:
        ConfigError: that very split was asked for.
    """
    if settings.validation_split == settings.train_split:
        raise ConfigError(
            f"The split {settings.train_split!r} of {source.name} is to train and to decide when "
            "to stop, which rows that were learnt cannot tell. Name another one with "
            "--validation-split (validation_split=); or leave that out, and other splits are "
            "looked for, or some rows kept back."
        )
    split = settings.validation_split or source.validation_split
    return None if split == settings.train_split else split


def _held_out(settings: RowSettings, whole: TextData) -> tuple[TextData, TextData]:
    """Training rows, and those of them that are kept back.

    Raises:
        DataError: there are too few for both.
    """
    fraction = min(_CARVED, settings.max_validation_rows / len(whole))
    train, validation = whole.split_off(fraction, settings.seed)
    if not len(validation):
        raise DataError(
            f"{whole.place}: there are too few rows ({len(whole)}) to hold some "
            "out for validation, since the only row of a class has to train. Add rows, name a "
            "split with --validation-split (validation_split=), or train without: "
            "--no-early-stopping (validation=False)."
        )
    return train, validation


def _same_letters(train: TextData, validation: TextData | None) -> tuple[TextData, TextData | None]:
    """Where rows have choices of their own, both parts know the letters of the longest list."""
    if validation is None or train.choices is None:
        return train, validation
    names = max(train.label_names or (), validation.label_names or (), key=len)
    return replace(train, label_names=names), replace(validation, label_names=names)
