"""The rows that a checkpoint was trained on, or those named on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posthoc_bhpeft.checkpoints import (
    TRAINING_FILE,
    checkpoint_labels,
    load_tokenizer,
)
from posthoc_bhpeft.cli.options import QuantizeChoice
from posthoc_bhpeft.cli.tasks import UNNAMED, fitted_names, task_of
from posthoc_bhpeft.data import (
    ChosenRows,
    RowSettings,
    choose_rows,
    make_loader,
    open_source,
    read_rows,
)
from posthoc_bhpeft.data.forms import Form
from posthoc_bhpeft.data.rows import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Bernoulli, Categorical, Gaussian, Likelihood, Tokens
from posthoc_bhpeft.streams.identity import STREAM_FILE
from posthoc_bhpeft.streams.lineage import LINEAGE_FILE, Lineage, read_lineage
from posthoc_bhpeft.streams.rounds import Heads
from posthoc_bhpeft.training import TrainingRecord
from posthoc_bhpeft.training.positions import cut_to, most_tokens
from posthoc_bhpeft.training.record import storage_of

TEXTS = ("text_column", "text_pair_column")
LABELS = ("label_column", "label_columns", "label_separator", "response_column")
"""Settings that say where the texts and the labels of rows are."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, and what it tells about its training.

    Attributes:
        folder: the folder.
        record: of the training; None where somebody else trained it.
        label_names: names of the classes, None for regression, and where the rows tell them.
        task: how rows are put to the model.
    """

    folder: Path
    record: TrainingRecord | None
    label_names: tuple[str, ...] | None
    task: Form

    @property
    def regression(self) -> bool:
        """Whether labels are real numbers."""
        return self.label_names is None and self.task is Form.TEXT

    @property
    def likelihood(self) -> Likelihood:
        """Of the labels, as far as files tell; others do not record that there may be several."""
        if self.task is Form.WORDS or self.task.writes:
            return Tokens(shift=self.task is Form.RESPONSE)
        if self.record is not None and self.record.multi_label:
            return Bernoulli()
        # What squared error assumes.
        return Gaussian(1.0) if self.regression else Categorical()

    def read_as(self, settings: RowSettings) -> RowSettings:
        """Settings for reading rows as this checkpoint needs them.

        Raises:
            ConfigError: columns are named that are not for its task.
        """
        lists = None if self.task is Form.TEXT else False
        if self.record is not None:
            lists = self.record.multi_label
        if lists is False and (settings.label_columns or settings.label_separator is not None):
            raise ConfigError(
                f"{str(self.folder)!r} was not trained for several labels a row, so leave out "
                "--label-columns and --label-separator; the column is --label-column."
            )
        # Whether a language model answers or writes, a fit learns from the rows.
        responses = settings.responses if self.task is Form.PROMPT else self.task.writes
        if settings.response_column is not None and responses is False:
            raise ConfigError(
                f"{str(self.folder)!r} was not trained to write texts, so leave out "
                "--response-column; the column with the labels is --label-column."
            )
        return replace(
            settings,
            responses=responses,
            choices=self.task.with_choices,
            words=self.task is Form.WORDS,
            multi_label=lists,
            regression=self.regression,
        )

    def asked_by(self, rows: TextData) -> Checkpoint:
        """The same; a language model is to write texts where that is what the rows have."""
        writes = self.task is Form.PROMPT and rows.written
        return replace(self, task=Form.RESPONSE) if writes else self

    @property
    def max_length(self) -> int:
        """Tokens a text was cut at."""
        return self.record.settings.max_length if self.record else self.task.usual_length

    def storage(self, dtype: str | None, quantize: QuantizeChoice | None) -> dict[str, Any]:
        """How `load_adapter` is to keep the base: as told, or as in training where that is known.

        Raises:
            ConfigError: there is no such type.
        """
        named = None if quantize is None else quantize.value
        return storage_of(self.folder, dtype=dtype, quantize=named)

    @property
    def n_choices(self) -> int:
        """Choices of a row at most; four where nobody says."""
        names = None if self.record is None else self.record.label_names
        return len(names or "ABCD")

    @property
    def rows(self) -> RowSettings | None:
        """Where the training rows came from, if that is known."""
        return None if self.record is None else self.record.rows

    def sources(self, *named: str | Path | None) -> tuple[str | Path | None, ...]:
        """What a command reads that has this checkpoint: itself, its data, and what was named."""
        return (self.folder, self.rows.source if self.rows else None, *named)

    @property
    def names_for_reading(self) -> tuple[str, ...] | None:
        """Names to map labels by; a foreign checkpoint knows only how many classes there are.

        Once it is fitted, its posterior knows the names in the rows that it was fitted on.
        """
        return None if self.unnamed else self.label_names

    @property
    def unnamed(self) -> bool:
        """Whether nobody said what its outputs are called; classes may well have such names."""
        known = self.label_names or ()
        return self.record is None and all(name.startswith(UNNAMED) for name in known)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read what a checkpoint folder records."""
    known = (folder / TRAINING_FILE).is_file()
    record = TrainingRecord.read(folder) if known else None
    task = task_of(folder)
    known_by_rows = task.with_choices or task.writes
    labels = None if known_by_rows else known_names(folder, record)
    # One output cannot be a choice of classes, whatever the name it is given.
    alone = record is None and labels is not None and len(labels) == 1
    return Checkpoint(folder, record, None if alone else labels, task)


def known_names(folder: Path, record: TrainingRecord | None) -> tuple[str, ...] | None:
    """The names of classes: of the training, of a fit, or of the checkpoint's own making."""
    recorded = None if record is None else record.label_names
    return recorded or fitted_names(folder) or checkpoint_labels(folder)


def check_no_stream(folder: Path) -> None:
    """Raise where a folder is no checkpoint that predicts by itself, but a stream or part of one.

    Raises:
        ConfigError: it is the folder of a stream, or of a round with outputs of its own.
    """
    if (folder / STREAM_FILE).is_file():
        ready = [one.folder for one in read_lineage(folder) if one.posterior]
        last = f"the last is {folder / ready[-1]}" if ready else "it has learnt nothing yet"
        raise ConfigError(
            f"{str(folder)!r} is a stream, and each of its rounds is a checkpoint: {last}."
        )
    if (folder / LINEAGE_FILE).is_file():
        lineage = Lineage.read(folder)
        if lineage.labels.heads is Heads.PER_ROUND:
            raise ConfigError(
                f"{str(folder)!r} is a round of a stream whose rounds have outputs of their own, "
                "so it must be known which round the rows belong to. Use Python: "
                f"Stream.open({str(folder.parent)!r}).predict(load_rows(data), round_name)."
            )
        if lineage.posterior is None:
            raise ConfigError(f"{str(folder)!r} is a round of a stream with {lineage.note}.")


def absolute(source: str) -> str:
    """A path made absolute, so that it is found from another folder; hub names stay."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def reading(checkpoint: Checkpoint, named: RowSettings, place: str = "") -> RowSettings:
    """How the rows of a place are read; without one, of the data named, else of that trained on.

    Columns are those named, else those of the training where the place is the same.

    Raises:
        ConfigError: no data is named and none is recorded.
    """
    recorded = checkpoint.rows
    source = place or named.source or (recorded.source if recorded else "")
    if not source:
        raise ConfigError("The checkpoint does not record its data: name some with --data.")
    source = absolute(source)
    known = recorded if recorded is not None and recorded.source == source else named
    texts = {name: getattr(named, name) or getattr(known, name) for name in TEXTS}
    # Labels are written in one way, so one that is named leaves no room for another.
    told = named if any(getattr(named, name) for name in LABELS) else known
    return replace(named, source=source, **texts, **{name: getattr(told, name) for name in LABELS})


def names_in(columns: str | None) -> tuple[str, ...]:
    """The names of columns, with commas between them; none where nothing is given."""
    return tuple(name.strip() for name in (columns or "").split(",") if name.strip())


def drawn_rows(rows: TextData, max_rows: int | None, seed: int) -> TextData:
    """At most so many rows, drawn by chance and left in their old order."""
    few = rows.draw(max_rows, seed)
    return few.take(sorted(range(len(few)), key=few.indices.__getitem__))


def batches_of(
    checkpoint: Checkpoint,
    rows: TextData,
    base: str,
    batch_size: int,
    about: TextData | None = None,
) -> Any:
    """Batches of rows, long ones first, tokenised for a checkpoint or else for its base model.

    Args:
        checkpoint: its task, and its tokenizer.
        rows: to be read.
        base: its base model.
        batch_size: rows a batch.
        about: what an audit asks of the rows, where that is less than the batches hold.
    """
    tokenizer = tokenizer_of(checkpoint, base)
    encoded = checkpoint.task.encode(rows, tokenizer, _length(checkpoint, base))
    if checkpoint.task is Form.TRANSLATION:
        encoded = replace(encoded, decoder_start=decoder_start(base))
    encoded = replace(encoded, rows=about or rows)
    return make_loader(encoded, tokenizer, batch_size=batch_size, by_length=True)


def _length(checkpoint: Checkpoint, base: str) -> int:
    """Tokens a text is cut at: as in training, or the usual number where the base can read it."""
    if checkpoint.record is not None:
        return checkpoint.max_length
    return cut_to(base, checkpoint.max_length, most_tokens(base))[0]


def decoder_start(base: str) -> int:
    """The token that the decoder of an encoder-decoder begins with.

    Raises:
        ConfigError: its config does not say.
    """
    from transformers import AutoConfig

    token = getattr(AutoConfig.from_pretrained(base), "decoder_start_token_id", None)
    if not isinstance(token, int):
        raise ConfigError(
            f"The config of {base!r} does not say with which token its decoder begins. Write "
            "decoder_start_token_id into its config.json."
        )
    return token


def tokenizer_of(checkpoint: Checkpoint, base: str) -> Any:
    """A checkpoint's own tokenizer, or else that of its base model."""
    own = (checkpoint.folder / "tokenizer_config.json").is_file()
    return load_tokenizer(checkpoint.folder if own else base)


def training_rows(
    checkpoint: Checkpoint,
    named: RowSettings | None,
    *,
    max_rows: int | None,
    seed: int | None,
) -> ChosenRows:
    """The rows to fit on: those of the training, unless others are named.

    Args:
        checkpoint: the checkpoint.
        named: data from the command line, or None.
        max_rows: fit on at most so many rows.
        seed: of that draw; None takes the seed of the training.

    Raises:
        ConfigError: no data is named and none is recorded.
        DataError: the data is gone, has changed, or has other classes.
    """
    recorded = checkpoint.rows
    if named is None or (recorded is not None and _same_data(named, recorded)):
        if checkpoint.record is None or recorded is None:
            raise ConfigError(
                f"{str(checkpoint.folder)!r} does not record its training rows: name them with "
                "--data (the rows the model was trained on, not held-out ones)."
            )
        chosen = checkpoint.record.training_rows()
    else:
        chosen = choose_rows(checkpoint.read_as(named))
        _check_answers(checkpoint, chosen.train)
    _check_classes(checkpoint, chosen.train)
    if max_rows is None or max_rows >= len(chosen.train):
        return chosen
    draw = seed if seed is not None else (recorded.seed if recorded else 0)
    fewer = chosen.train.draw(max_rows, draw)
    note = f"of these, {len(fewer)} rows drawn with seed {draw}"
    return replace(chosen, train=fewer, notes=(*chosen.notes, note))


def rows_to_predict(
    checkpoint: Checkpoint, named: RowSettings, split: str | None, *, ignore_labels: bool
) -> TextData:
    """The rows of a split: the one named, else "test", else the only one there is."""
    source = open_source(named.source)
    if split is None:
        split = "test" if "test" in source.splits else source.splits[0]
        if split != "test" and not source.single_file:
            raise DataError(
                f"{source.name} has no split 'test'. Choose one with --split: "
                f"{', '.join(source.splits)}."
            )
    rows = read_rows(
        checkpoint.read_as(named),
        source,
        split,
        label_names=checkpoint.names_for_reading,
        ignore_labels=ignore_labels,
    )
    _check_classes(checkpoint, rows)
    return rows


def _same_data(named: RowSettings, recorded: RowSettings) -> bool:
    """Whether --data names the very data of the training, read the same way."""
    return named.source == recorded.source and all(
        getattr(named, name) in (None, (), getattr(recorded, name)) for name in (*TEXTS, *LABELS)
    )


def _check_answers(checkpoint: Checkpoint, rows: TextData) -> None:
    """Raise where labels are yes or no, and a foreign checkpoint's one output may be either."""
    if rows.regression and checkpoint.record is None and set(rows.labels or ()) <= {0.0, 1.0}:
        raise DataError(
            f"{rows.place} has only the labels 0 and 1, and the checkpoint has one "
            "output: a regression, or one yes-or-no question? For the question use Python: "
            "bayesianize(model, loader, likelihood=Bernoulli())."
        )


def _check_classes(checkpoint: Checkpoint, rows: TextData) -> None:
    if rows.labels is None or rows.regression or checkpoint.label_names is None:
        return
    have, want = len(rows.label_names or ()), len(checkpoint.label_names)
    if have < want and checkpoint.unnamed and not rows.multi_label:
        raise DataError(
            f"{rows.place} has {have} of the {want} classes of the checkpoint "
            f"({', '.join((rows.label_names or ())[:12])}), and nobody recorded which "
            "output is which. Name them all in a meta.json beside the data, in the order of the "
            'outputs: {"label_names": [...]}.'
        )
    # Of several labels a row, each output needs its own 0 or 1.
    if have > want or (rows.multi_label and have < want):
        raise DataError(
            f"{rows.place} has {have} classes, the checkpoint was trained for "
            f"{want}: {', '.join(checkpoint.label_names[:12])}. A meta.json beside the data "
            'can name them all, in the order of the outputs: {"label_names": [...]}.'
        )
