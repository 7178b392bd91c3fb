"""What `bhpeft audit` audits: checkpoints with their rows and rivals, or files of predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit.contest import (
    NEEDS_HELD_OUT,
    NEEDS_TRAINING,
    Contest,
    RivalName,
    rival_name,
)
from posthoc_bhpeft.audit.decisions import as_rule
from posthoc_bhpeft.audit.one_label import OneLabel, rows_of_label
from posthoc_bhpeft.audit.predicting import predictions_of
from posthoc_bhpeft.audit.regression.predicting import fit_noise, real_predictions_of
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.bayesian import BayesianPeft
from posthoc_bhpeft.checkpoints import checkpoint_folder, read_json, resolve_model
from posthoc_bhpeft.cli.asked import Asked, Ready, is_file, label
from posthoc_bhpeft.cli.audited_files import of_files
from posthoc_bhpeft.cli.device import best_device
from posthoc_bhpeft.cli.fit import FIT_FILE
from posthoc_bhpeft.cli.predictions import Predictor, load_predictor
from posthoc_bhpeft.cli.rows import (
    Checkpoint,
    batches_of,
    check_no_stream,
    drawn_rows,
    open_checkpoint,
    reading,
    rows_to_predict,
    tokenizer_of,
    training_rows,
)
from posthoc_bhpeft.data import TextData, open_source
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.sources import same_rows
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Bernoulli
from posthoc_bhpeft.rivals import Point
from posthoc_bhpeft.saving import POSTERIOR_FILE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is ready to predict.

    Attributes:
        checkpoint: The folder and what it records.
        predictor: The model, with its posterior if there is one.
        asked: Of the command line.
        label: Index and name of the label that is audited, of several a row.
    """

    checkpoint: Checkpoint
    predictor: Predictor
    asked: Asked
    label: tuple[int, str] | None = None

    def loader(self, rows: TextData) -> Any:
        """Batches of rows, tokenised for this model; of several labels the rows tell one."""
        self.predictor.check_choices(rows)
        about = rows if self.label is None else rows_of_label(rows, *self.label)
        base = self.predictor.base
        return batches_of(self.checkpoint, rows, base, self.asked.batch_size, about)

    def asking(self, subject: Any) -> Any:
        """What is audited of a model: all that it says, or what it says about the label."""
        return subject if self.label is None else OneLabel(subject, self.label[0])


def prepare(asked: Asked, say: Say) -> Ready:
    """Load everything that the audit needs; what does not fit is said before any pass.

    Raises:
        ConfigError: If options do not go together.
        DataError: If rows or predictions cannot be read.
        CheckpointError: If a checkpoint cannot be loaded.
    """
    if is_file(asked.subject):
        return of_files(asked)
    check_same_classes(asked)
    mine = opened(asked.subject, asked)
    if asked.save_review and mine.predictor.bayes is None:
        raise ConfigError(
            f"--save-review keeps a threshold with a posterior, and {asked.subject!r} has none. "
            f"Fit one: bhpeft fit {asked.subject}."
        )
    rows = audited_rows(mine, asked)
    mine = replace(mine, label=audited_label(mine, rows))
    say(f"{len(rows)} rows of {rows.place}; {'; '.join(rows.notes)}")
    outside = further(mine, asked.outside, rows, asked, ignore_labels=True)
    reference = further(mine, asked.reference, rows, asked, ignore_labels=False)
    subject = subject_of(mine, rows, asked, say)
    made = contest(mine, subject, rows, asked).rivals(wanted(mine, asked))
    rivals = {rival: mine.asking(one) for rival, one in made.items()}
    if asked.other is not None:
        rivals[label(asked.other, asked.subject)] = others(asked.other, mine, rows, asked, say)
    name = label(asked.subject, asked.other)
    return Ready(
        name if asked.other is not None or mine.predictor.bayes is None else "ours",
        mine.asking(subject),
        mine.loader(rows),
        rivals,
        outside,
        reference,
    )


def opened(folder: str, asked: Asked) -> Opened:
    """Load a checkpoint."""
    check_no_stream(Path(folder))
    path = checkpoint_folder(folder)
    found = open_checkpoint(path)
    if found.task is Form.WORDS:
        raise ConfigError(
            f"{folder!r} gives every word a label, and an audit is about one class a row. Make "
            f"words the rows: `bhpeft predict {folder} --output preds`, then `bhpeft audit "
            "preds/words.jsonl`; beside the trained weights, a second file made with --predictive "
            "map."
        )
    if found.task.writes:
        raise ConfigError(
            f"{folder!r} writes texts, and an audit is about one class a row: which text is right "
            f"is for you to say. `bhpeft predict {folder} --output preds` tells how uncertain each "
            "text and each of its tokens is."
        )
    predictor = load_predictor(
        path,
        base=None if asked.base is None else resolve_model(asked.base),
        storage=found.storage(None, None),
        device=best_device(asked.device),
        point=not (path / POSTERIOR_FILE).is_file(),
        likelihood=found.likelihood,
    )
    return Opened(found, predictor, asked)


def check_same_classes(asked: Asked) -> None:
    """Raise where the other one is no checkpoint that answers the same question.

    Raises:
        ConfigError: With what each of them predicts.
    """
    if asked.other is None:
        return
    if is_file(asked.other):
        raise ConfigError(
            f"{asked.other!r} is a file of predictions; compare it with another file."
        )
    check_no_stream(Path(asked.other))
    both = [open_checkpoint(checkpoint_folder(one)) for one in (asked.subject, asked.other)]
    if both[0].label_names != both[1].label_names:
        mine, theirs = ("a number" if c.regression else c.label_names for c in both)
        raise ConfigError(
            f"The two checkpoints predict {mine} and {theirs}. Compare checkpoints for the same "
            "classes in the same order."
        )


def subject_of(mine: Opened, rows: TextData, asked: Asked, say: Say) -> Any:
    """The posterior, or the model without one; a regression then needs rows to know its noise.

    Raises:
        ConfigError: If there are no such rows.
    """
    if mine.predictor.bayes is not None:
        return mine.predictor.bayes
    tokenizer = tokenizer_of(mine.checkpoint, mine.predictor.base)
    model = mine.predictor.asked(mine.checkpoint.task, rows, tokenizer).model
    if mine.label is not None:
        return Point(model, Bernoulli())
    if not mine.predictor.regression:
        return model
    held_out = held_out_rows(mine, rows, asked)
    point = fit_noise(model, mine.loader(held_out), progress=asked.progress)
    deviation = point.likelihood.dispersion**0.5
    say(f"noise of {deviation:.3g} to either side, from {len(held_out)} rows ({held_out.split})")
    return point


def audited_rows(mine: Opened, asked: Asked) -> TextData:
    """The held-out rows: of the data named, else of the data trained on.

    Raises:
        ConfigError: If they are those that the model was trained on.
    """
    settings = reading(mine.checkpoint, asked.rows)
    rows = rows_to_predict(mine.checkpoint, settings, asked.split, ignore_labels=False)
    check_not_trained(mine, rows, "Name held-out rows with --data, or another split with --split.")
    return drawn_rows(rows, asked.max_rows, asked.seed)


def audited_label(mine: Opened, rows: TextData) -> tuple[int, str] | None:
    """Index and name of the label that was asked about; `None` where rows have one class each.

    Raises:
        ConfigError: If there are several labels and none was named, or the other way round.
    """
    wanted, subject = mine.asked.label, mine.asked.subject
    if not (rows.multi_label or isinstance(mine.predictor.likelihood, Bernoulli)):
        if wanted is not None:
            raise ConfigError(f"{subject!r} gives a row one label, so leave out --label.")
        return None
    names = mine.checkpoint.names_for_reading or rows.label_names or ()
    if wanted not in names:
        raise ConfigError(
            f"{subject!r} gives a row several labels, and an audit is about one: does it apply? "
            f"Name it with --label, one of {', '.join(names)}. `bhpeft predict` measures all "
            "labels together."
        )
    if mine.asked.save_review:
        raise ConfigError(
            "--save-review keeps a rule that sends whole rows to a human, and --label is about "
            "one label of a row. Leave one of them out."
        )
    return names.index(wanted), wanted


def check_not_trained(mine: Opened, rows: TextData, instead: str) -> None:
    """Raise where rows are those that the model was trained on.

    Raises:
        ConfigError: With what to do instead.
    """
    if is_learnt(mine.checkpoint, rows):
        raise ConfigError(
            f"{rows.place} are the rows that the model was trained on, and it is surer and better "
            f"there: nothing found on them would hold. {instead}"
        )


def is_learnt(checkpoint: Checkpoint, rows: TextData) -> bool:
    """Whether a split is that of the training or of the fit, by its place or by its rows."""
    here = rows.source, rows.split
    places = learnt_places(checkpoint)
    return rows.digest in learnt_digests(checkpoint) or any(same_rows(here, one) for one in places)


def learnt_places(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Sources and splits that the training and the fit recorded."""
    recorded, fit = checkpoint.rows, fit_record(checkpoint)
    places = [] if recorded is None else [(recorded.source, recorded.train_split)]
    if fit.get("source") and fit.get("split"):
        places.append((str(fit["source"]), str(fit["split"])))
    return places


def learnt_digests(checkpoint: Checkpoint) -> list[str]:
    """Of the rows that were learnt; that of a whole split is among them where all of it was."""
    record, fitted = checkpoint.record, fit_record(checkpoint).get("digest")
    digests = [] if record is None else [record.train_digest]
    return digests if fitted is None else [*digests, str(fitted)]


def fit_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `bhpeft fit` wrote beside the posterior; nothing where something else fitted it."""
    path = checkpoint.folder / FIT_FILE
    return read_json(path) if path.is_file() else {}


def wanted(mine: Opened, asked: Asked) -> tuple[RivalName, ...]:
    """The rivals named; without any, the trained weights, where there is more to compare with."""
    names = [rival_name(name) for name in asked.rivals]
    if asked.ensemble and RivalName.ENSEMBLE not in names:
        names.append(RivalName.ENSEMBLE)
    has_posterior = mine.predictor.bayes is not None
    if not names and has_posterior and asked.other is None:
        names = [RivalName.MAP]
    return tuple(dict.fromkeys(names))


def contest(mine: Opened, subject: Any, rows: TextData, asked: Asked) -> Contest:
    """What rivals may be made of; only what the ones wanted need is read."""
    names = set(wanted(mine, asked))
    training = held_out = None
    if names & NEEDS_TRAINING:
        chosen = training_rows(mine.checkpoint, None, max_rows=None, seed=None)
        training = mine.loader(chosen.train)
    if names & NEEDS_HELD_OUT:
        held_out = mine.loader(held_out_rows(mine, rows, asked))
    return Contest(subject, held_out, training, asked.ensemble, asked.progress)


def held_out_rows(mine: Opened, rows: TextData, asked: Asked) -> TextData:
    """The split that a temperature or noise is fitted on; never the one under audit."""
    source = open_source(rows.source)
    places = learnt_places(mine.checkpoint)
    learnt = {
        name for name in source.splits if any(same_rows((source.name, name), p) for p in places)
    }
    # A split with the name of held-out rows may be the one that was learnt.
    usual = None if source.validation_split in learnt else source.validation_split
    split = asked.held_out or usual
    if split is None or split == rows.split:
        others = [name for name in source.splits if name not in (rows.split, *learnt)]
        ways = f"Name another split with --held-out: {', '.join(others)}."
        raise ConfigError(
            "A temperature, and the noise of a regression without posterior, is fitted on held-out "
            f"rows that were not learnt and are not those of the audit ({rows.place}). "
            + (ways if others else f"{source.name} has no such split: add one.")
        )
    settings = reading(mine.checkpoint, asked.rows, rows.source)
    found = rows_to_predict(mine.checkpoint, settings, split, ignore_labels=False)
    check_not_trained(mine, found, "Name another split with --held-out.")
    return found


def others(place: str, mine: Opened, rows: TextData, asked: Asked, say: Say) -> Any:
    """What the other checkpoint says about the same rows."""
    theirs = replace(opened(place, asked), label=mine.label)
    subject, loader = subject_of(theirs, rows, asked, say), theirs.loader(rows)
    if theirs.predictor.regression:
        return real_predictions_of(subject, loader, progress=asked.progress)
    return predictions_of(theirs.asking(subject), loader, progress=asked.progress)


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


def save_rule(found: Audit | RegressionAudit, ready: Ready, asked: Asked) -> str:
    """Keep a decision with the posterior; what is promised, for the user.

    Raises:
        ConfigError: If there is no posterior to keep it with, or the promise cannot be given.
    """
    assert isinstance(found, Audit), "check_kind raises for a regression"
    assert isinstance(ready.subject, BayesianPeft), "prepare raises without a posterior"
    predictions = found.subject.predictions
    if asked.save_review == "error" and predictions.labels is None:
        raise ConfigError(
            "--save-review error promises a share of errors, and these rows have no labels. Audit "
            "labelled rows, or keep the other threshold: --save-review share."
        )
    decision = found.decisions[0 if asked.save_review == "error" else -1]
    rule = as_rule(decision, predictions, found.sets)
    ready.subject.with_review(rule).save_pretrained(asked.subject)
    return rule.promise
