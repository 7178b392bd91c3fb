"""Rounds from files, from a column of dates or of anything else, or from the order of rows."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from posthoc_bhpeft.data import Source, TextData, load_rows, open_source
from posthoc_bhpeft.data.sources import declared_names, row_files
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.streams.dates import Every, era_borders, read_dates
from posthoc_bhpeft.streams.rounds import Round

_ENDINGS = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Shares:
    """Rows of each round that are not learnt; drawn from every class, no row twice.

    Attributes:
        test: share kept back to score with, from 0 to below 1; 0 keeps none.
        validation: share of the rest that stops the training early; 0 keeps none.
        seed: of the draw.
    """

    test: float = 0.2
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("test", "validation"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"The {name} share is {getattr(self, name)}; it must be at least 0 and below 1."
                )


def rounds_from_folder(
    folder: str | Path,
    *,
    shares: Shares = Shares(),
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    drop_unlabelled: bool = False,
) -> tuple[Round, ...]:
    """A round for each file of a folder, or for each subfolder with train and test files.

    In the order of their names, numbers in them by value: `week-2` comes before `week-10`. A round
    has the labels that its own rows have, so a file that arrives later changes no earlier round.
    An empty file is a round without rows.

    Args:
        folder: with files `NAME.jsonl` (json, csv, tsv, parquet; also .gz), or with subfolders
            `NAME/` that hold train.jsonl, and test.jsonl and validation.jsonl if there are any.
            A meta.json beside the files may name the labels.
        shares: of rows to keep back where a round has no test or validation file.
        text_column: the column with the text, or None to find it.
        text_pair_column: the column with the second text, or None to find it.
        label_column: the column with the label, or None to find it.
        drop_unlabelled: leave out rows whose label is missing or -1.

    Raises:
        DataError: there are no rounds there, or some rows cannot be read.
    """
    columns: dict[str, Any] = {
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "drop_unlabelled": drop_unlabelled,
        "one_class": True,
    }
    read = {
        name: {split: _read(source, split, columns) for split in splits}
        for name, (source, splits) in _sources(Path(folder).expanduser()).items()
    }
    names = next((d.label_names for parts in read.values() for d in parts.values() if d), None)
    if names is None:
        raise DataError(
            f"No file in {str(folder)!r} has rows with labels; a stream learns from nothing else. "
            "Name the column with --label-column (label_column=)."
        )
    return tuple(
        _round(name, _nameless_filled(parts, names), shares) for name, parts in read.items()
    )


def rounds_by_column(
    data: TextData,
    column: str,
    *,
    every: Every | None = None,
    rounds: int | None = None,
    shares: Shares = Shares(),
) -> tuple[Round, ...]:
    """Rounds by what stands in a column.

    With `every` or `rounds` the column holds dates, and the rounds are in their order. Otherwise
    every value is a round, in the order of first appearance. A round has the labels that its own
    rows have.

    Args:
        data: labelled rows, the column among its `columns`.
        column: name of the column.
        every: a round for each year, month or day that has rows.
        rounds: so many rounds of about equally many rows; rows of one moment stay together.
        shares: of rows to keep back in each round.

    Raises:
        DataError: there is no such column, or a value is no date (the row is named).
        ConfigError: both `every` and `rounds` are given.
    """
    if column not in data.columns:
        raise DataError(
            f"{data.source or 'These rows'}: there is no column {column!r} beside text and label. "
            f"The columns are: {', '.join(data.columns) or 'none'}."
        )
    if every is not None and rounds is not None:
        raise ConfigError("every= and rounds= are two ways to cut time; choose one.")
    if every is None and rounds is None:
        values = [str(value) for value in data.columns[column]]
        return _by_key(data, values, range(len(data)), shares)
    dates = read_dates(data, column)
    order = sorted(range(len(data)), key=dates.__getitem__)
    if every is not None:
        return _by_key(data, [every.name_of(moment) for moment in dates], order, shares)
    borders = era_borders([dates[row] for row in order], _checked_count(rounds))
    spans = [order[a:b] for a, b in pairwise(borders)]
    precise = any(d.time() != d.min.time() for d in dates)
    return _named_spans(data, [(_span(dates, rows, precise), rows) for rows in spans], shares)


def rounds_in_order(data: TextData, rounds: int, *, shares: Shares = Shares()) -> tuple[Round, ...]:
    """So many rounds of about equally many rows, in the order in which the rows stand.

    Raises:
        DataError: there are fewer rows than rounds.
    """
    count, n = _checked_count(rounds), len(data)
    if n < count:
        raise DataError(f"{n} rows cannot make {count} rounds. Ask for fewer.")
    borders = [round(part * n / count) for part in range(count + 1)]
    spans = [range(a, b) for a, b in pairwise(borders)]
    names = [f"rows {data.indices[span[0]]} to {data.indices[span[-1]]}" for span in spans]
    if len(set(names)) < count:
        # Rows that come twice have one number, but a place each.
        names = [f"rows {span[0]} to {span[-1]}" for span in spans]
    return _named_spans(data, list(zip(names, spans, strict=True)), shares)


def pooled(parts: Sequence[TextData]) -> TextData:
    """The rows of several splits with the same labels, in the order given.

    Columns that a split lacks are left out; rows are counted anew from 0.

    Raises:
        DataError: their labels have other names.
    """
    first = parts[0]
    if any(part.label_names != first.label_names for part in parts):
        raise DataError(
            f"{first.source}: the splits {', '.join(part.split for part in parts)} have other "
            "labels each, so they cannot be put together. Take one of them."
        )
    common = [name for name in first.columns if all(name in part.columns for part in parts)]
    pairs = [part.text_pairs for part in parts]
    return replace(
        first,
        texts=tuple(text for part in parts for text in part.texts),
        text_pairs=None if None in pairs else tuple(t for pair in pairs for t in pair or ()),
        labels=tuple(int(label) for part in parts for label in part.labels or ()),
        columns={name: tuple(v for part in parts for v in part.columns[name]) for name in common},
        indices=(),
        split="+".join(part.split for part in parts),
    )


def limited(round_: Round, *, max_rows: int | None, max_test_rows: int | None, seed: int) -> Round:
    """The round with at most so many training and test rows, drawn by seed."""
    test = round_.test
    return replace(
        round_,
        train=round_.train.draw(max_rows, seed),
        test=None if test is None else test.draw(max_test_rows, seed),
    )


def _sources(folder: Path) -> dict[str, tuple[Source, tuple[str, ...]]]:
    """Where the rows of each round are, and in which splits, in the rounds' order."""
    if not folder.is_dir():
        raise DataError(
            f"{str(folder)!r} is no folder of rounds. Give a folder with one file or subfolder a "
            "round; or say how to cut one data set: --by COLUMN or --rounds N "
            "(rounds_by_column, rounds_in_order)."
        )
    files = row_files(folder)
    places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    places = [place for place in places if row_files(place)]
    if any(_stem(path) == "train" for path in files):
        raise DataError(
            f"{str(folder)!r} is one data set with the splits "
            f"{', '.join(_stem(path) for path in files)}, not a folder of rounds. Say how to cut "
            "it: --by COLUMN or --rounds N (rounds_by_column, rounds_in_order)."
        )
    if bool(files) == bool(places):
        what = "both files and subfolders" if files else "neither files of rows nor subfolders"
        raise DataError(
            f"{str(folder)!r} holds {what}. A folder of rounds holds one file a round (jsonl, "
            "json, csv, tsv, parquet; also .gz), or one subfolder a round with train.jsonl and "
            "test.jsonl in it."
        )
    found: dict[str, tuple[Source, tuple[str, ...]]] = {}
    for path in sorted(files or places, key=lambda path: _natural(_stem(path))):
        source = open_source(path)
        if source.single_file:
            source = replace(source, label_names=declared_names(folder))
        if (name := _stem(path)) in found:
            raise DataError(f"Two files in {str(folder)!r} make a round {name!r}; rename one.")
        found[name] = source, _splits(source)
    return found


def _splits(source: Source) -> tuple[str, ...]:
    if "train" not in source.splits:
        raise DataError(
            f"The round in {source.name} has no file train.jsonl (csv, parquet, ...). It has: "
            f"{', '.join(source.splits)}."
        )
    validation = source.validation_split
    return tuple(split for split in ("train", "test", validation) if split in source.splits)


def _read(source: Source, split: str, columns: Mapping[str, Any]) -> TextData:
    if source.files is not None and _is_empty(source.files[split]):
        return TextData((), labels=(), source=source.name, split=split)
    data = load_rows(source, split, **columns)
    if data.label_names is None:
        raise DataError(
            f"{source.name} ({split}) has no classes as labels, and a stream learns nothing else. "
            "Name the column with --label-column (label_column=)."
        )
    return data


def _is_empty(path: Path) -> bool:
    """Whether a file of text has no rows; readers take that for an error."""
    name = path.name.lower()
    if ".parquet" in name:
        return False
    headers = 1 if ".csv" in name or ".tsv" in name else 0
    with gzip.open(path, "rb") if name.endswith(".gz") else path.open("rb") as file:
        filled = (line for line in file if line.strip())
        return next(islice(filled, headers, None), None) is None


def _nameless_filled(parts: Mapping[str, TextData], names: tuple[str, ...]) -> dict[str, TextData]:
    """Splits without rows get the names of the others, which then mean nothing."""
    own = next((data.label_names for data in parts.values() if data), names)
    return {
        split: data if data else replace(data, label_names=own) for split, data in parts.items()
    }


def _by_key(
    data: TextData, keys: Sequence[str], order: Iterable[int], shares: Shares
) -> tuple[Round, ...]:
    """A round for each key, in the order in which the keys come."""
    rows: dict[str, list[int]] = {}
    for row in order:
        rows.setdefault(keys[row], []).append(row)
    return _named_spans(data, list(rows.items()), shares)


def _named_spans(
    data: TextData, spans: Sequence[tuple[str, Sequence[int]]], shares: Shares
) -> tuple[Round, ...]:
    if data.labels is None or data.label_names is None:
        raise DataError(
            f"{data.source or 'These rows'} ({data.split or 'no split'}) have no classes as "
            "labels, and a stream learns nothing else. Name the column with --label-column "
            "(label_column=)."
        )
    return tuple(_round(name, {"train": data.take(rows)}, shares) for name, rows in spans)


def _round(name: str, parts: Mapping[str, TextData], shares: Shares) -> Round:
    """A round with its own labels; what it has no file for is kept back from its training rows."""
    parts = _with_own_labels(parts)
    train, test = parts["train"], parts.get("test")
    validation = next((d for split, d in parts.items() if split not in _SPLITS), None)
    if test is None and shares.test:
        train, test = train.split_off(shares.test, shares.seed)
    if validation is None and shares.validation:
        train, validation = train.split_off(shares.validation, shares.seed)
    return Round(name, train, test or None, validation or None)


def _with_own_labels(parts: Mapping[str, TextData]) -> dict[str, TextData]:
    """Only labels that some row has, in the order of the source and the same for all splits.

    So the labels of a round depend on nothing but the round.
    """
    used = [
        data.label_names[label]
        for data in parts.values()
        for label in sorted({int(label) for label in data.labels or ()})
        if data.label_names
    ]
    names = tuple(dict.fromkeys(used)) or parts["train"].label_names or ()
    place = {name: index for index, name in enumerate(names)}
    own = {}
    for split, data in parts.items():
        known = data.label_names or ()
        labels = tuple(place[known[int(label)]] for label in data.labels or ())
        own[split] = replace(data, labels=labels, label_names=names)
    return own


def _span(dates: Sequence[Any], rows: Sequence[int], precise: bool) -> str:
    first, last = (dates[rows[place]] for place in (0, -1))
    ends = [str(d if precise else d.date()) for d in (first, last)]
    return " to ".join(dict.fromkeys(ends))


def _checked_count(rounds: int | None) -> int:
    if rounds is None or rounds < 1:
        raise ConfigError(f"rounds is {rounds}; it must be 1 or more.")
    return rounds


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else _ENDINGS.sub("", path.name)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which numbers inside names count by their value."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in pieces if p]
