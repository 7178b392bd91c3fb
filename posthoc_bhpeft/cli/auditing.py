"""What `bhpeft audit` audits: checkpoints with their rows and rivals, or files of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit.auditing import Subject
from posthoc_bhpeft.audit.contest import (
    NEEDS_HELD_OUT,
    NEEDS_TRAINING,
    Contest,
    RivalName,
    rival_name,
)
from posthoc_bhpeft.audit.decisions import as_rule
from posthoc_bhpeft.audit.files import read_predictions
from posthoc_bhpeft.audit.predicting import predictions_of
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.bayesian import BayesianPeft
from posthoc_bhpeft.checkpoints import checkpoint_folder, resolve_model
from posthoc_bhpeft.cli.device import best_device
from posthoc_bhpeft.cli.predictions import Predictor, load_predictor
from posthoc_bhpeft.cli.rows import (
    Checkpoint,
    batches_of,
    check_no_stream,
    drawn_rows,
    open_checkpoint,
    reading,
    rows_to_predict,
    training_rows,
)
from posthoc_bhpeft.data import RowSettings, TextData, open_source
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.saving import POSTERIOR_FILE

Say = Callable[[str], None]
_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".npz", ".gz")


@dataclass(frozen=True)
class Asked:
    """What the command line asked for.

    Attributes:
        subject: A checkpoint folder or a file of predictions.
        other: Another one, to compare with.
        rows: Where the rows come from and their columns; an empty source is that of the training.
        split: Of them.
        rivals: Names of rivals.
        ensemble: Checkpoints of further members.
        held_out: Split to fit temperatures on.
        outside: Rows of another kind.
        reference: Earlier held-out rows.
        save_review: Whether a threshold is to be kept with the posterior.
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
    rivals: tuple[str, ...]
    ensemble: tuple[str, ...]
    held_out: str | None
    outside: str | None
    reference: str | None
    save_review: bool
    max_rows: int | None
    seed: int
    batch_size: int
    base: str | None
    device: str | None
    progress: bool


@dataclass(frozen=True)
class Ready:
    """What `audit` is called with."""

    name: str
    subject: Subject
    loader: Any = None
    rivals: Mapping[str, Subject] = field(default_factory=dict)
    outside: Any = None
    reference: Any = None


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is ready to predict.

    Attributes:
        checkpoint: The folder and what it records.
        predictor: The model, with its posterior if there is one.
        asked: Of the command line.
    """

    checkpoint: Checkpoint
    predictor: Predictor
    asked: Asked

    @property
    def subject(self) -> Any:
        """The posterior, or the model without one."""
        return self.predictor.bayes or self.predictor.model

    def loader(self, rows: TextData) -> Any:
        """Batches of rows, tokenised for this model."""
        return batches_of(self.checkpoint, rows, self.predictor.base, self.asked.batch_size)


def prepare(asked: Asked, say: Say) -> Ready:
    """Load everything that the audit needs; what does not fit is said before any pass.

    Raises:
        ConfigError: If options do not go together.
        DataError: If rows or predictions cannot be read.
        CheckpointError: If a checkpoint cannot be loaded.
    """
    if is_file(asked.subject):
        return of_files(asked)
    mine = opened(asked.subject, asked)
    if asked.save_review and mine.predictor.bayes is None:
        raise ConfigError(
            f"--save-review keeps a threshold with a posterior, and {asked.subject!r} has none. "
            f"Fit one: bhpeft fit {asked.subject}."
        )
    rows = audited_rows(mine, asked)
    say(f"{len(rows)} rows of {rows.source} ({rows.split}); {'; '.join(rows.notes)}")
    outside = further(mine, asked.outside, rows, asked, ignore_labels=True)
    reference = further(mine, asked.reference, rows, asked, ignore_labels=False)
    rivals: dict[str, Subject] = dict(contest(mine, rows, asked).rivals(wanted(mine, asked)))
    if asked.other is not None:
        rivals[label(asked.other, asked.subject)] = others(asked.other, mine, rows, asked)
    name = label(asked.subject, asked.other)
    return Ready(
        name if asked.other is not None or mine.predictor.bayes is None else "ours",
        mine.subject,
        mine.loader(rows),
        rivals,
        outside,
        reference,
    )


def of_files(asked: Asked) -> Ready:
    """Predictions that are there already; a model would be needed for anything further."""
    needs_model = {
        "--data": asked.rows.source,
        "--split": asked.split,
        "--compare": asked.rivals,
        "--ensemble": asked.ensemble,
        "--held-out": asked.held_out,
        "--save-review": asked.save_review,
    }
    if given := [name for name, value in needs_model.items() if value]:
        raise ConfigError(
            f"{asked.subject!r} is a file of predictions, so there is no model to predict with: "
            f"leave out {', '.join(given)}, or audit the checkpoint."
        )
    if asked.other is not None and not is_file(asked.other):
        raise ConfigError(
            f"{asked.subject!r} is a file of predictions and {asked.other!r} is none. Compare two "
            "files about the same rows (bhpeft predict writes one), or two checkpoints."
        )
    rivals = {}
    if asked.other is not None:
        rivals[label(asked.other, asked.subject)] = drawn(read_predictions(asked.other), asked)
    outside = None if asked.outside is None else read_predictions(asked.outside, labels=False)
    reference = None if asked.reference is None else read_predictions(asked.reference)
    subject = drawn(read_predictions(asked.subject), asked)
    name = label(asked.subject, asked.other)
    return Ready(name, subject, None, rivals, outside, reference)


def drawn(predictions: Predictions, asked: Asked) -> Predictions:
    """At most so many rows, in their old order; the same ones of two files about the same rows."""
    if asked.max_rows is None or asked.max_rows >= len(predictions):
        return predictions
    if asked.max_rows < 1:
        raise ConfigError(f"--max-rows is {asked.max_rows}; it must be at least 1.")
    return predictions.take(sorted(shuffled(range(len(predictions)), asked.seed)[: asked.max_rows]))


def opened(folder: str, asked: Asked) -> Opened:
    """Load a checkpoint."""
    check_no_stream(Path(folder))
    path = checkpoint_folder(folder)
    found = open_checkpoint(path)
    if found.record is not None and found.label_names is None:
        raise ConfigError(
            f"{folder!r} is a regression, and `bhpeft audit` is about classes. In Python, "
            "posthoc_bhpeft.audit.regression has audit_regression and write_regression_report."
        )
    predictor = load_predictor(
        path,
        base=None if asked.base is None else resolve_model(asked.base),
        device=best_device(asked.device),
        point=not (path / POSTERIOR_FILE).is_file(),
        regression=False,
    )
    return Opened(found, predictor, asked)


def audited_rows(mine: Opened, asked: Asked) -> TextData:
    """The held-out rows: of the data named, else of the data trained on.

    Raises:
        ConfigError: If they are those that the model was trained on.
    """
    settings = reading(mine.checkpoint, asked.rows)
    rows = rows_to_predict(mine.checkpoint, settings, asked.split, ignore_labels=False)
    check_not_trained(mine, rows, "Name held-out rows with --data, or another split with --split.")
    return drawn_rows(rows, asked.max_rows, asked.seed)


def check_not_trained(mine: Opened, rows: TextData, instead: str) -> None:
    """Raise where rows are those that the model was trained on.

    Raises:
        ConfigError: With what to do instead.
    """
    recorded = mine.checkpoint.rows
    if recorded is None or (recorded.source, recorded.train_split) != (rows.source, rows.split):
        return
    raise ConfigError(
        f"{rows.source} ({rows.split}) are the rows that the model was trained on, and it is surer "
        f"and better there: nothing found on them would hold. {instead}"
    )


def wanted(mine: Opened, asked: Asked) -> tuple[RivalName, ...]:
    """The rivals named; without any, the trained weights, where there is more to compare with."""
    names = [rival_name(name) for name in asked.rivals]
    if asked.ensemble and RivalName.ENSEMBLE not in names:
        names.append(RivalName.ENSEMBLE)
    has_posterior = mine.predictor.bayes is not None
    if not names and has_posterior and asked.other is None:
        names = [RivalName.MAP]
    return tuple(dict.fromkeys(names))


def contest(mine: Opened, rows: TextData, asked: Asked) -> Contest:
    """What rivals may be made of; only what the ones wanted need is read."""
    names = set(wanted(mine, asked))
    training = held_out = None
    if names & NEEDS_TRAINING:
        chosen = training_rows(mine.checkpoint, None, max_rows=None, seed=None)
        training = mine.loader(chosen.train)
    if names & NEEDS_HELD_OUT:
        held_out = mine.loader(held_out_rows(mine, rows, asked))
    return Contest(mine.subject, held_out, training, asked.ensemble, asked.progress)


def held_out_rows(mine: Opened, rows: TextData, asked: Asked) -> TextData:
    """The split that temperatures are fitted on; never the one under audit."""
    source = open_source(rows.source)
    split = asked.held_out or source.validation_split
    if split is None or split == rows.split:
        raise ConfigError(
            f"A temperature is fitted on held-out rows that are not those of the audit "
            f"({rows.split}). Name another split with --held-out: {', '.join(source.splits)}."
        )
    settings = reading(mine.checkpoint, asked.rows, rows.source)
    found = rows_to_predict(mine.checkpoint, settings, split, ignore_labels=False)
    check_not_trained(mine, found, "Name another split with --held-out.")
    return found


def others(place: str, mine: Opened, rows: TextData, asked: Asked) -> Predictions:
    """What the other checkpoint says about the same rows."""
    if is_file(place):
        raise ConfigError(f"{place!r} is a file of predictions; compare it with another file.")
    theirs = opened(place, asked)
    if theirs.checkpoint.label_names != mine.checkpoint.label_names:
        raise ConfigError(
            f"The two checkpoints have other classes: {mine.checkpoint.label_names} and "
            f"{theirs.checkpoint.label_names}."
        )
    return predictions_of(theirs.subject, theirs.loader(rows), progress=asked.progress)


def further(
    mine: Opened, place: str | None, rows: TextData, asked: Asked, *, ignore_labels: bool
) -> Any:
    """A loader of more rows: a file or folder, or a split of the data under audit."""
    if place is None:
        return None
    is_split = place in open_source(rows.source).splits
    settings = reading(mine.checkpoint, asked.rows, rows.source if is_split else place)
    split = place if is_split else None
    found = rows_to_predict(mine.checkpoint, settings, split, ignore_labels=ignore_labels)
    if not ignore_labels:
        check_not_trained(mine, found, "Name held-out rows with --reference.")
    return mine.loader(drawn_rows(found, asked.max_rows, asked.seed))


def label(place: str, beside: str | None) -> str:
    """A short name of a folder or file; the whole path where two would be the same."""
    name = Path(place).stem if is_file(place) else Path(place).resolve().name
    other = None if beside is None else Path(beside).resolve()
    return place if other is not None and name in (other.name, other.stem) else name


def is_file(place: str) -> bool:
    """Whether this is a file of predictions rather than a checkpoint."""
    return Path(place).is_file() or Path(place).suffix in _FILES


def save_rule(found: Audit, ready: Ready, which: str, folder: str) -> str:
    """Keep a decision with the posterior; what is promised, for the user.

    Raises:
        ConfigError: If there is no posterior to keep it with, or the promise cannot be given.
    """
    assert isinstance(ready.subject, BayesianPeft)
    predictions = found.subject.predictions
    if which == "error" and predictions.labels is None:
        raise ConfigError(
            "--save-review error promises a share of errors, and these rows have no labels. Audit "
            "labelled rows, or keep the other threshold: --save-review share."
        )
    decision = found.decisions[0 if which == "error" else -1]
    rule = as_rule(decision, predictions, found.sets)
    ready.subject.with_review(rule).save_pretrained(folder)
    return rule.promise
