"""Predictions from a file, whoever made them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats, check_pair, check_probabilities
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.data.sources import open_source, read_split
from posthoc_bhpeft.errors import DataError

SCORES = ("total", "aleatoric", "epistemic")
_TAKEN = frozenset({"probabilities", "label", "labels", "text", "texts", "label_names"})
_OF_PREDICT = frozenset({"index", "prediction", "name", "review", "set"})
_ONE_CLASS = re.compile(r"(?:p|prob|probability)[_.:](.+)")
_FORMS = (
    "Expected a column 'probabilities' with a list for each row, or a column for each class named "
    "p_CLASS or probability_CLASS; and 'label', a class or its number."
)


def read_predictions(path: str | Path) -> Predictions:
    """Predictions from jsonl, json, csv, tsv, parquet or npz; what `bhpeft predict` writes is one.

    Needed are probabilities, in a column `probabilities` of lists or in a column `p_CLASS` for each
    class. Known by name are `label` (a class name or number), `text`, and the scores `total`,
    `aleatoric` and `epistemic`; every other column can be sliced by. In an npz file these are
    arrays of those names.

    Raises:
        DataError: If the file cannot be read, or holds no probabilities, or labels do not fit them.
    """
    place = Path(path).expanduser()
    columns = _arrays(place) if place.suffix == ".npz" else _table(place)
    probabilities, names = _probabilities(columns, place)
    labels = _labels(columns, names)
    n_classes = probabilities.shape[1]
    try:
        if labels is None:
            checked = check_probabilities(probabilities)
        else:
            checked, labels = check_pair(probabilities, labels)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    texts = columns.get("text", columns.get("texts"))
    return Predictions(
        probabilities=checked,
        labels=labels,
        scores={name: _numbers(columns[name]) for name in SCORES if name in columns},
        label_names=names if names and len(names) == n_classes else None,
        texts=None if texts is None else tuple(map(str, texts)),
        columns={name: tuple(values) for name, values in columns.items() if _further(name)},
        about={"Predictions": f"Read from {place.name}."},
    )


def _table(path: Path) -> dict[str, Sequence[Any]]:
    source = open_source(path)
    if not source.single_file:
        raise DataError(f"{str(path)!r} is not one file of predictions.")
    rows = read_split(source, "train")
    return {name: rows[name][:] for name in rows.column_names}


def _arrays(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].tolist() for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"Could not read {str(path)!r} as npz: {error}") from error


def _probabilities(
    columns: Mapping[str, Sequence[Any]], path: Path
) -> tuple[Floats, tuple[str, ...] | None]:
    """`(N, C)`, and the names of the classes where the file has them."""
    names = columns.get("label_names")
    found = None if names is None else tuple(map(str, names))
    if "probabilities" in columns:
        return _numbers(columns["probabilities"]), found
    single = {m[1]: name for name in columns if (m := _ONE_CLASS.fullmatch(name))}
    if len(single) < 2:
        raise DataError(f"{path} holds no probabilities, only {', '.join(columns)}. {_FORMS}")
    stacked = np.stack([_numbers(columns[name]) for name in single.values()], axis=1)
    return stacked, tuple(single)


def _labels(
    columns: Mapping[str, Sequence[Any]], names: tuple[str, ...] | None
) -> NDArray[np.int64] | None:
    values = columns.get("label", columns.get("labels"))
    if values is None:
        return None
    if any(value is None for value in values):
        raise DataError("Some rows have no label. Leave those rows out, or the column.")
    if all(isinstance(value, str) for value in values):
        known = {name: c for c, name in enumerate(names or ())}
        unknown = sorted({value for value in values if value not in known})
        if unknown:
            raise DataError(f"The label {unknown[0]!r} is none of the classes: {list(known)}.")
        values = [known[value] for value in values]
    return np.asarray(values, dtype=np.int64)


def _numbers(values: Sequence[Any]) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The probabilities and scores must be numbers, as many in each row: {error}. {_FORMS}"
        ) from error


def _further(name: str) -> bool:
    return name not in _TAKEN | _OF_PREDICT | {*SCORES} and _ONE_CLASS.fullmatch(name) is None
