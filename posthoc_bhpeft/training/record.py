"""What a training run leaves beside its adapter: training.json, written and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posthoc_bhpeft.checkpoints import ADAPTER_FILE, TRAINING_FILE, read_json, write_json
from posthoc_bhpeft.data import ChosenRows, RowSettings, choose_rows
from posthoc_bhpeft.errors import CheckpointError, DataError
from posthoc_bhpeft.training.settings import TrainingSettings

_FORMAT = 1


@dataclass(frozen=True)
class TrainingRecord:
    """Settings, rows and results of a training run.

    Attributes:
        model: the base model as it was named, for instance "minilm".
        settings: how it was trained.
        label_names: names of the classes; None for regression.
        rows: which rows were used; None where they did not come from a file or the hub.
        train_rows: number of training rows.
        train_digest: SHA-256 of the training rows, see `TextData.digest`.
        validation_rows: number of validation rows.
        best_epoch: the epoch whose weights were kept, counted from 1.
        history: the figures of every epoch.
        seconds: wall-clock time.
        multi_label: whether any number of the labels may apply to a row.
    """

    model: str
    settings: TrainingSettings
    label_names: tuple[str, ...] | None
    rows: RowSettings | None
    train_rows: int
    train_digest: str
    validation_rows: int
    best_epoch: int
    history: tuple[Mapping[str, float], ...]
    seconds: float
    multi_label: bool = False

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures of the epoch that was kept; none where nothing was trained."""
        return self.history[self.best_epoch - 1] if self.history else {}

    def write(self, folder: Path) -> None:
        """Write training.json into the folder."""
        content = dataclasses.asdict(self)
        write_json(folder / TRAINING_FILE, {"format": _FORMAT, **content, "metrics": self.metrics})

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord:
        """Read training.json of a checkpoint folder.

        Raises:
            CheckpointError: it is missing, damaged or of a newer format.
        """
        content = read_json(folder / TRAINING_FILE)
        if content.pop("format", None) != _FORMAT:
            raise CheckpointError(
                f"{str(folder / TRAINING_FILE)!r} has a format this version does not read "
                f"(supported: {_FORMAT}). Upgrade posthoc-bhpeft."
            )
        content.pop("metrics", None)
        try:
            names, rows = content.pop("label_names"), content.pop("rows")
            return cls(
                settings=TrainingSettings(**content.pop("settings")),
                label_names=None if names is None else tuple(names),
                rows=None if rows is None else RowSettings(**rows),
                history=tuple(content.pop("history")),
                **content,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(folder / TRAINING_FILE)!r} does not hold a training record: {error}."
            ) from error

    def training_rows(self) -> ChosenRows:
        """The very rows the model was trained on, read again and compared by their digest.

        Raises:
            DataError: the data is gone or has changed.
        """
        if self.rows is None:
            raise DataError(
                "The model was trained on rows given from Python, so they cannot be found again. "
                "Name the training data with --data."
            )
        chosen = choose_rows(self.rows)
        if chosen.train.digest != self.train_digest:
            raise DataError(
                f"{self.rows.source} has changed since the model was trained on it: its "
                f"{len(chosen.train)} training rows are not the {self.train_rows} rows of then. "
                "Bring the old data back, or name data with --data to use it all the same."
            )
        return chosen


def storage_of(
    folder: Path, *, dtype: str | None = None, quantize: str | None = None
) -> dict[str, Any]:
    """How `load_adapter` is to keep a base: as told, or as in training where that is recorded.

    Args:
        folder: with an adapter.
        dtype: see `TrainingSettings`; None for that of the training.
        quantize: likewise.

    Raises:
        CheckpointError: a file of the folder cannot be read.
        ConfigError: there is no such type.
    """
    recorded = (folder / TRAINING_FILE).is_file()
    trained = TrainingRecord.read(folder).settings if recorded else TrainingSettings()
    settings = replace(trained, dtype=dtype or trained.dtype, quantize=quantize or trained.quantize)
    whole = read_json(folder / ADAPTER_FILE).get("modules_to_save") or ()
    return {"dtype": settings.dtype, "quantization": settings.quantization(whole)}
