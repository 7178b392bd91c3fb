"""What a command line of `bhpeft audit` asks for, and which of it is for which kind of model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit.classes import Plan
from posthoc_bhpeft.audit.gates import CLASSES, NUMBERS, Condition, check_figures
from posthoc_bhpeft.audit.regression.auditing import RegressionPlan
from posthoc_bhpeft.audit.regression.files import holds_real_predictions
from posthoc_bhpeft.checkpoints import checkpoint_folder
from posthoc_bhpeft.cli.rows import check_no_stream, open_checkpoint
from posthoc_bhpeft.data import RowSettings
from posthoc_bhpeft.errors import ConfigError

_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".npz", ".gz")


@dataclass(frozen=True)
class Asked:
    """What is audited, on which rows, beside whom.

    Attributes:
        subject: A checkpoint folder or a file of predictions.
        other: Another one, to compare with.
        rows: Where the rows come from and their columns; an empty source is that of the training.
        split: Of them.
        label: The one of several labels a row that is audited.
        rivals: Names of rivals.
        ensemble: Checkpoints of further members.
        held_out: Split to fit temperatures, or the noise of a regression, on.
        outside: Rows of another kind.
        reference: Earlier held-out rows.
        save_review: Which threshold is to be kept with the posterior; empty for none.
        max_rows: To audit, at most.
        seed: Of that draw.
        batch_size: Rows a batch.
        base: Base model, where the recorded one is not to be used.
        device: To predict on.
        progress: Show progress bars.
    """

    subject: str
    other: str | None
    rows: RowSettings
    split: str | None
    label: str | None
    rivals: tuple[str, ...]
    ensemble: tuple[str, ...]
    held_out: str | None
    outside: str | None
    reference: str | None
    save_review: str
    max_rows: int | None
    seed: int
    batch_size: int
    base: str | None
    device: str | None
    progress: bool


@dataclass(frozen=True)
class Wishes:
    """What is measured; `None` leaves it to the plan of that kind of model.

    Attributes:
        score: Doubt that decides.
        max_error: Wanted share of errors.
        max_review: Wanted share of review.
        sets: How often prediction sets, or intervals, may miss.
        tolerance: Largest error of a regression that does no harm.
        columns: To group by.
        time: Column that says when.
        resamples: Of the bootstrap.
        seed: Of everything random.
    """

    score: str | None
    max_error: float | None
    max_review: float | None
    sets: float | None
    tolerance: float | None
    columns: Sequence[str] | None
    time: str | None
    resamples: int
    seed: int

    def plan(self, regression: bool) -> Plan | RegressionPlan:
        """The plan for this kind of model.

        Raises:
            ConfigError: If a value is out of range.
        """
        shared = ("max_error", "max_review", "columns", "resamples", "seed")
        names = {name: name for name in shared}
        if regression:
            return RegressionPlan(**self._given(names | {"tolerance": "tolerance", "sets": "miss"}))
        return Plan(**self._given(names | {"score": "score", "sets": "sets", "time": "time"}))

    def _given(self, names: Mapping[str, str]) -> dict[str, Any]:
        """What was given of these, by its name in the plan."""
        values = {other: getattr(self, name) for name, other in names.items()}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Ready:
    """What `audit` is called with."""

    name: str
    subject: Any
    loader: Any = None
    rivals: Mapping[str, Any] = field(default_factory=dict)
    outside: Any = None
    reference: Any = None


def is_file(place: str) -> bool:
    """Whether this is a file of predictions rather than a checkpoint."""
    return Path(place).is_file() or Path(place).suffix in _FILES


def label(place: str, beside: str | None) -> str:
    """A short name of a folder or file; the whole path where two would be the same."""
    name = Path(place).stem if is_file(place) else Path(place).resolve().name
    other = None if beside is None else Path(beside).resolve()
    return place if other is not None and name in (other.name, other.stem) else name


def predicts_numbers(place: str) -> bool:
    """Whether a checkpoint or a file of predictions is a regression, before anything is loaded.

    Raises:
        CheckpointError: If there is no such checkpoint.
        ConfigError: If it is a stream.
        DataError: If the file cannot be read.
    """
    if is_file(place):
        return holds_real_predictions(place)
    check_no_stream(Path(place))
    return open_checkpoint(checkpoint_folder(place)).regression


def check_kind(
    regression: bool, asked: Asked, wishes: Wishes, conditions: Iterable[Condition]
) -> None:
    """Raise where an option is for the other kind of model, before anything is loaded.

    Raises:
        ConfigError: With what to do instead.
    """
    check_figures(conditions, NUMBERS if regression else CLASSES)
    if not regression:
        if wishes.tolerance is not None:
            raise ConfigError(
                f"--tolerance is for regressions, and {asked.subject!r} chooses a class: an answer "
                "is right or wrong. Leave it out."
            )
        return
    of_classes = {
        "--score": wishes.score,
        "--time": wishes.time,
        "--outside": asked.outside,
        "--reference": asked.reference,
        "--save-review": asked.save_review,
        "--label": asked.label,
    }
    if given := [name for name, value in of_classes.items() if value]:
        raise ConfigError(
            f"{asked.subject!r} is a regression, and {', '.join(given)} is for models that choose "
            "a class. Leave it out: rows of a regression go to a human by their predicted "
            "deviation, and the report says from which one on."
        )
    if wishes.max_error is not None and wishes.tolerance is None:
        raise ConfigError(
            "--max-error of a regression is the wanted share of predictions that are off by more "
            "than a tolerance. Name that too: --tolerance 0.5, in the unit of the labels."
        )
