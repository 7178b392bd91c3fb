"""Predictions from a file, whoever made them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posthoc_bhpeft.audit.arrays import (
    Floats,
    check_labels,
    check_probabilities,
    check_scores,
    source_indices,
)
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.data.columns import is_missing
from posthoc_bhpeft.data.sources import open_source, read_split
from posthoc_bhpeft.errors import BhpeftError, DataError
from posthoc_bhpeft.predictive import UNCERTAINTIES

Columns = Mapping[str, Sequence[Any]]
_TAKEN = frozenset({"probabilities", "label", "labels", "text", "texts", *UNCERTAINTIES})
# Written by `bhpeft predict`; in any other file these names are columns like all others.
_OF_PREDICT = frozenset({"index", "prediction", "name", "review", "set", "standard_deviation"})
_ONE_CLASS = re.compile(r"(?:p|prob|probability)[_.:](.+)")
# 1.10 is left alone: as a name it may be another class than 1.1.
_WHOLE = re.compile(r"(-?\d+)\.0+")
_FORMS = (
    "Expected a column 'probabilities' with a list for each row, or a column for each class named "
    "p_CLASS or probability_CLASS; and 'label', a class or its number (docs/audit.md)."
)


def read_predictions(path: str | Path, *, labels: bool = True) -> Predictions:
    """Predictions from jsonl, json, csv, tsv, parquet or npz; what `bhpeft predict` writes is one.

    Needed are probabilities, in a column `probabilities` of lists or in a column `p_CLASS` for each
    class. Known by name are `label` (a class name or number), `text`, and the scores `total`,
    `aleatoric`, `epistemic` and `novelty`; every other column can be sliced by. In an npz file
    these are arrays of those names, and `label_names` may name the classes.

    Args:
        path: The file.
        labels: Whether to read labels; rows of another kind may have any.

    Raises:
        DataError: If the file cannot be read, or holds no probabilities, or labels do not fit them.
    """
    place = Path(path).expanduser()
    try:
        columns, names = _arrays(place) if _is_npz(place) else (_table(place), None)
        return _predictions(columns, names, place, labels)
    except BhpeftError as error:
        # The messages below are about arrays; here it is known whose.
        said = str(error)
        raise DataError(said if str(place) in said else f"{place}: {said}") from error


def _predictions(
    columns: Columns, names: tuple[str, ...] | None, place: Path, labels: bool
) -> Predictions:
    raw, found = _probabilities(columns)
    probabilities = check_probabilities(raw)
    rows, classes = probabilities.shape
    predicted = _predicted_names(columns, classes, place)
    known = names or found or predicted
    if known is not None and len(known) != classes:
        raise DataError(f"label_names has {len(known)} names for {classes} classes.")
    codes = None
    if labels:
        # `bhpeft predict` counts classes, whatever they are called: 1 is the second of 1, 2, 3.
        counted = known is predicted and _are_counts(columns.get("label"))
        codes = _labels(columns, None if counted else known, classes)
    texts = columns.get("text", columns.get("texts"))
    return Predictions(
        probabilities=probabilities,
        labels=None if codes is None else check_labels(codes, rows, classes),
        scores={
            name: check_scores(_numbers(columns[name]), rows)
            for name in UNCERTAINTIES
            if name in columns
        },
        label_names=known,
        texts=None if texts is None else tuple("" if t is None else str(t) for t in texts),
        columns={name: tuple(columns[name]) for name in _further(columns)},
        about={"Predictions": f"Read from {place.name}."},
        indices=source_indices(columns),
    )


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _table(path: Path) -> Columns:
    source = open_source(path)
    if not source.single_file:
        raise DataError(f"{str(path)!r} is not one file of predictions. {_FORMS}")
    rows = read_split(source, "train")
    return {name: rows[name][:] for name in rows.column_names}


def _arrays(path: Path) -> tuple[Columns, tuple[str, ...] | None]:
    """Arrays with an entry a row, and the names of the classes where there are any."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # a broken archive raises many kinds; all mean the same here
        raise DataError(f"Could not read {str(path)!r} as npz: {error}") from error
    names = arrays.pop("label_names", None)
    columns = {name: array.tolist() for name, array in arrays.items() if array.ndim}
    return columns, None if names is None else tuple(map(str, names.tolist()))


def _probabilities(columns: Columns) -> tuple[Floats, tuple[str, ...] | None]:
    """`(N, C)`, and the names of the classes where columns are named for them."""
    if "probabilities" in columns:
        values = columns["probabilities"]
        if values and all(value is None for value in values):
            raise DataError(
                "There are no probabilities in any row: these are predictions of a regression. "
                "This audit is about classes; in Python, posthoc_bhpeft.audit.regression has "
                "read_real_predictions and audit_regression."
            )
        return _numbers([_parsed(value) for value in values]), None
    single = {m[1]: name for name in columns if (m := _ONE_CLASS.fullmatch(name))}
    if len(single) < 2:
        raise DataError(f"There are no probabilities, only {', '.join(columns)}. {_FORMS}")
    stacked = np.stack([_numbers(columns[name]) for name in single.values()], axis=1)
    return stacked, tuple(single)


def _parsed(value: Any) -> Any:
    """A list; in csv it is written as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise DataError(f"The probabilities {value[:40]!r} are no list of numbers.") from None


def _predicted_names(columns: Columns, classes: int, place: Path) -> tuple[str, ...] | None:
    """Names that `bhpeft predict` wrote: of all classes, or none.

    A row has the name of the predicted class alone, so that a class may be without one. All of them
    are in the metrics.json beside the file, which counts where it is about these classes.
    """
    if not {"prediction", "name"} <= {*columns}:
        return None
    known = dict(zip(columns["prediction"], map(str, columns["name"]), strict=True))
    beside = _names_beside(place)
    if len(beside) == classes and known.items() <= dict(enumerate(beside)).items():
        return beside
    return tuple(known[c] for c in range(classes)) if {*range(classes)} <= {*known} else None


def _names_beside(place: Path) -> tuple[str, ...]:
    """The names of classes in the metrics.json of a folder of predictions; none without one."""
    try:
        about = json.loads((place.parent / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it may be anybody's, or missing
        return ()
    names = about.get("label_names") if isinstance(about, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _labels(columns: Columns, names: tuple[str, ...] | None, classes: int) -> Floats | None:
    """Numbers of the classes, `(N,)`; checked by the caller."""
    values = columns.get("label", columns.get("labels"))
    if values is None or all(value is None for value in values):
        return None
    codes = _codes(names or tuple(map(str, range(classes))))
    if absent := [n for n, v in enumerate(values) if is_missing(v) and _name(v) not in codes]:
        raise DataError(
            f"{len(absent)} of {len(values)} rows have no label (first: row {absent[0]}). Leave "
            "those rows out, or the column."
        )
    if any(isinstance(value, bool) for value in values):
        codes = {name.lower(): c for name, c in codes.items()}
    called = [_name(value) for value in values]
    unknown = sorted({name for name in called if name not in codes})
    if not unknown:
        return np.array([codes[name] for name in called], dtype=np.float64)
    words = any(isinstance(value, str) for value in values)
    if words or (_are_numbers(codes) and not any(isinstance(value, bool) for value in values)):
        ways = "" if names or not words else " Give columns p_CLASS in place of 'probabilities'."
        raise DataError(
            f"The label {unknown[0]!r} is none of the classes: {', '.join(codes)}.{ways}"
        )
    return _numbers(values)


def _are_counts(labels: Sequence[Any] | None) -> bool:
    """Whether labels are whole numbers, with none missing and none that is a text."""
    return labels is not None and all(type(value) is int for value in labels)


def _codes(names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its name as `_name` writes it.

    Raises:
        DataError: If two different names are one number, so that a label could be either.
    """
    codes: dict[str, int] = {}
    for c, name in enumerate(names):
        other = names[codes.get(_name(name), c)]
        if other != name:
            raise DataError(
                f"The classes {other!r} and {name!r} are the same number, so nothing says which "
                "one a label means. Rename one of them."
            )
        codes[_name(name)] = c
    return codes


def _name(value: Any) -> str:
    """A label or a class by one name: 2, 2.0 and "2.0" are `2`; csv's yes-or-no is `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    whole = _WHOLE.fullmatch(text)
    return text if whole is None else whole[1]


def _are_numbers(names: Mapping[str, int]) -> bool:
    """Whether classes are called by numbers, so that a number is a name and no position."""
    return all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names)


def _numbers(values: Sequence[Any]) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The probabilities and scores must be numbers, as many in each row: {error}. {_FORMS}"
        ) from error


def _further(columns: Columns) -> list[str]:
    """Columns that can be sliced by."""
    ours = _OF_PREDICT if {"index", "prediction"} <= {*columns} else frozenset()
    return [
        name
        for name in columns
        if name not in _TAKEN | ours
        and not ("probabilities" not in columns and _ONE_CLASS.fullmatch(name))
    ]
