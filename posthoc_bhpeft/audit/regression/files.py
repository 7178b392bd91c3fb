"""Predictions of a number from a file, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posthoc_bhpeft.audit.arrays import Floats, source_indices
from posthoc_bhpeft.audit.regression.predictions import RealPredictions, variance_of
from posthoc_bhpeft.data.sources import open_source, read_split
from posthoc_bhpeft.errors import BhpeftError, DataError
from posthoc_bhpeft.predictive import UNCERTAINTIES

Columns = Mapping[str, Sequence[Any]]
_MEANS = ("mean", "prediction")
_VARIANCES, _DEVIATIONS = ("variance",), ("standard_deviation", "deviation")
_TARGETS = ("target", "targets", "label", "labels")
_TEXTS = ("text", "texts")
_OF_PREDICT = ("index", "probabilities", *UNCERTAINTIES, "review", "set")
_FORMS = (
    "Expected columns 'mean' (or 'prediction'), 'variance' or 'standard_deviation', and 'target' "
    "(or 'label') where it is known."
)


def holds_real_predictions(path: str | Path) -> bool:
    """Whether a file of predictions is about numbers: means with variances, no probabilities.

    Raises:
        DataError: If the file cannot be read.
    """
    columns = _columns(Path(path).expanduser())
    spread = any(name in columns for name in (*_VARIANCES, *_DEVIATIONS))
    classes = any(value is not None for value in columns.get("probabilities", ()))
    return spread and not classes and any(name in columns for name in _MEANS)


def read_real_predictions(path: str | Path) -> RealPredictions:
    """Predictions from jsonl, json, csv, tsv, parquet or npz; what `bhpeft predict` writes is one.

    Needed are `mean` (or `prediction`) and `variance` or `standard_deviation`, noise included.
    Known by name are `target` (or `label`) and `text`; every other column can be grouped by. A file
    of `bhpeft predict` says by its `aleatoric` entropy how much of the variance is noise; without
    it all of it counts as that.

    Args:
        path: The file.

    Raises:
        DataError: If the file cannot be read, or holds no means and variances.
        NonFiniteError: If a number is NaN or infinite.
    """
    place = Path(path).expanduser()
    try:
        return _predictions(_columns(place), place)
    except BhpeftError as error:
        said = str(error)
        raise type(error)(said if str(place) in said else f"{place}: {said}") from error


def _predictions(columns: Columns, place: Path) -> RealPredictions:
    mean = _numbers(columns, _one_of(columns, _MEANS))
    variance = _variance(columns)
    noise = variance
    if "aleatoric" in columns and "standard_deviation" in columns:
        noise = np.minimum(variance_of(_numbers(columns, "aleatoric")), variance)
    targets, texts = _known(columns, _TARGETS), _known(columns, _TEXTS)
    taken = {*_MEANS, *_VARIANCES, *_DEVIATIONS, *_TARGETS, *_TEXTS, *_OF_PREDICT}
    return RealPredictions(
        mean=mean,
        noise=noise,
        epistemic=variance - noise,
        targets=None if targets is None else _numbers(columns, targets),
        texts=None if texts is None else tuple(str(text or "") for text in columns[texts]),
        columns={name: tuple(values) for name, values in columns.items() if name not in taken},
        about={"Predictions": f"Read from {place.name}."},
        indices=source_indices(columns),
    )


def _variance(columns: Columns) -> Floats:
    name = _one_of(columns, (*_VARIANCES, *_DEVIATIONS))
    values = _numbers(columns, name)
    if name in _VARIANCES:
        return values
    negative = int((values < 0).sum())
    if negative:
        raise DataError(f"{negative} of {len(values)} entries of {name!r} are below 0.")
    squared: Floats = values**2
    return squared


def _one_of(columns: Columns, names: Sequence[str]) -> str:
    """The first of these columns that is there.

    Raises:
        DataError: If none is.
    """
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise DataError(f"There is no column {names[0]!r}, only {', '.join(columns)}. {_FORMS}")
    return found


def _known(columns: Columns, names: Sequence[str]) -> str | None:
    """The first of these columns that is there and not all empty."""
    there = (name for name in names if name in columns)
    return next((n for n in there if any(value is not None for value in columns[n])), None)


def _numbers(columns: Columns, name: str) -> Floats:
    try:
        return np.asarray(columns[name], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The column {name!r} must hold numbers: {error}. {_FORMS}") from error


def _columns(path: Path) -> Columns:
    return _arrays(path) if path.suffix.lower() == ".npz" else _table(path)


def _table(path: Path) -> Columns:
    source = open_source(path)
    if not source.single_file:
        raise DataError(f"{str(path)!r} is not one file of predictions. {_FORMS}")
    rows = read_split(source, "train")
    return {name: rows[name][:] for name in rows.column_names}


def _arrays(path: Path) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].tolist() for name in file.files if file[name].ndim}
    except Exception as error:  # a broken archive raises many kinds; all mean the same here
        raise DataError(f"Could not read {str(path)!r} as npz: {error}") from error
