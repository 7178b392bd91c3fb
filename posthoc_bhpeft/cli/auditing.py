"""What `bhpeft audit` audits: checkpoints with their rows and rivals, or files of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit.auditing import Subject, predictions_of
from posthoc_bhpeft.audit.catalogue import METRICS, Metric
from posthoc_bhpeft.audit.contest import NEEDS_HELD_OUT, NEEDS_TRAINING, Contest, RivalName
from posthoc_bhpeft.audit.decisions import as_rule
from posthoc_bhpeft.audit.files import read_predictions
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.report import verdict
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.bayesian import BayesianPeft
from posthoc_bhpeft.checkpoints import checkpoint_folder, load_tokenizer, resolve_model
from posthoc_bhpeft.cli.device import best_device
from posthoc_bhpeft.cli.output import Output
from posthoc_bhpeft.cli.predictions import Predictor, load_predictor
from posthoc_bhpeft.cli.rows import (
    Checkpoint,
    absolute,
    check_no_stream,
    open_checkpoint,
    rows_to_predict,
    training_rows,
)
from posthoc_bhpeft.data import RowSettings, TextData, make_loader, open_source
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
        folder = self.checkpoint.folder
        own = (folder / "tokenizer_config.json").is_file()
        return make_loader(
            rows,
            load_tokenizer(folder if own else self.predictor.base),
            batch_size=self.asked.batch_size,
            max_length=self.checkpoint.max_length,
            by_length=True,
        )


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
    rows = audited_rows(mine, asked)
    say(f"{len(rows)} rows of {rows.source} ({rows.split}); {'; '.join(rows.notes)}")
    rivals: dict[str, Subject] = dict(contest(mine, rows, asked).rivals(wanted(mine, asked)))
    if asked.other is not None:
        rivals[label(asked.other, asked.subject)] = others(asked.other, mine, rows, asked)
    name = label(asked.subject, asked.other)
    return Ready(
        name if asked.other is not None or mine.predictor.bayes is None else "ours",
        mine.subject,
        mine.loader(rows),
        rivals,
        further(mine, asked.outside, rows, asked),
        further(mine, asked.reference, rows, asked),
    )


def of_files(asked: Asked) -> Ready:
    """Predictions that are there already; a model would be needed for anything further."""
    further = ("rivals", "ensemble", "held_out", "split")
    given = [name for name in further if getattr(asked, name)]
    if given or asked.rows.source:
        raise ConfigError(
            f"{asked.subject!r} is a file of predictions, so there is no model to predict with: "
            f"leave out {', '.join(f'--{name}' for name in given) or '--data'}, or audit the "
            "checkpoint."
        )
    rivals = {}
    if asked.other is not None:
        rivals[label(asked.other, asked.subject)] = read_predictions(asked.other)
    paths = (asked.outside, asked.reference)
    outside, reference = (None if p is None else read_predictions(p) for p in paths)
    subject = read_predictions(asked.subject)
    name = label(asked.subject, asked.other)
    return Ready(name, subject, None, rivals, outside, reference)


def opened(folder: str, asked: Asked) -> Opened:
    """Load a checkpoint."""
    check_no_stream(Path(folder))
    path = checkpoint_folder(folder)
    found = open_checkpoint(path)
    if found.record is not None and found.label_names is None:
        raise ConfigError("An audit is about classes, and this checkpoint is of a regression.")
    predictor = load_predictor(
        path,
        base=None if asked.base is None else resolve_model(asked.base),
        device=best_device(asked.device),
        point=not (path / POSTERIOR_FILE).is_file(),
        regression=False,
    )
    return Opened(found, predictor, asked)


def audited_rows(mine: Opened, asked: Asked) -> TextData:
    """The held-out rows: of the data named, else of the data trained on."""
    recorded = mine.checkpoint.rows
    settings = asked.rows
    if not settings.source:
        if recorded is None:
            raise ConfigError("The checkpoint does not record its data: name some with --data.")
        given = {
            name: value or getattr(recorded, name)
            for name in ("text_column", "text_pair_column", "label_column")
            for value in [getattr(settings, name)]
        }
        settings = replace(settings, source=recorded.source, **given)
    settings = replace(settings, source=absolute(settings.source))
    rows = rows_to_predict(mine.checkpoint, settings, asked.split, ignore_labels=False)
    drawn = rows.draw(asked.max_rows, asked.seed)
    return drawn.take(sorted(range(len(drawn)), key=drawn.indices.__getitem__))


def wanted(mine: Opened, asked: Asked) -> tuple[RivalName, ...]:
    """The rivals named; without any, the trained weights, where there is more to compare with."""
    try:
        names = [RivalName(name) for name in asked.rivals]
    except ValueError as error:
        known = ", ".join(name.value for name in RivalName)
        raise ConfigError(f"--compare: {error}. Known: {known}.") from None
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
    settings = replace(asked.rows, source=rows.source)
    return rows_to_predict(mine.checkpoint, settings, split, ignore_labels=False)


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


def further(mine: Opened, place: str | None, rows: TextData, asked: Asked) -> Any:
    """A loader of more rows: a file or folder, or a split of the data under audit."""
    if place is None:
        return None
    source = open_source(rows.source)
    split, name = (place, rows.source) if place in source.splits else (None, absolute(place))
    settings = replace(asked.rows, source=name)
    labelled = split is not None
    found = rows_to_predict(mine.checkpoint, settings, split, ignore_labels=not labelled)
    return mine.loader(found.draw(asked.max_rows, asked.seed))


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
    if not isinstance(ready.subject, BayesianPeft):
        raise ConfigError(
            f"--save-review keeps a threshold with a posterior, and {folder!r} has none. "
            f"Fit one: bhpeft fit {folder}."
        )
    decision = found.decisions[0 if which == "error" else -1]
    rule = as_rule(decision, found.subject.predictions, found.sets)
    ready.subject.with_review(rule).save_pretrained(folder)
    return rule.promise


def show(found: Audit, out: Output) -> None:
    """The verdict, the figures and the decisions, for a terminal."""
    models = (found.subject, *found.rivals)
    if found.subject.figures:
        rows = [
            [metric.title, *(interval_text(metric, model.figures[metric.name]) for model in models)]
            for metric in METRICS
            if metric.name in found.subject.figures
        ]
        out.table(found.data, ["", *(model.name for model in models)], rows)
    for decision in found.decisions:
        out.say(f"{decision.goal}: {decision.guarantee}\n")
    for one in found.slices:
        if one.finding:
            out.say(f"{one.column} {one.value} ({one.rows} rows): {one.finding}")
    if found.drift is not None:
        out.say(f"\nDrift: {found.drift.finding}")
    out.say(f"\n{verdict(found)}")


def interval_text(metric: Metric[Any], interval: Interval) -> str:
    """An estimate with its interval, short enough for two models beside each other."""
    parts = (interval.estimate, interval.low, interval.high)
    if metric.unit == "share":
        estimate, low, high = (f"{100 * part:.1f}" for part in parts)
        return f"{estimate} % [{low}, {high}]"
    estimate, low, high = (f"{part:.3f}" for part in parts)
    return f"{estimate} [{low}, {high}]"
