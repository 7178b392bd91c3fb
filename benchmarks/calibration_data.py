"""The cells of the calibration benchmark: which rows, trained how."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cells import as_data, keyed

from posthoc_bhpeft.data import (
    RowSettings,
    TextData,
    choose_rows,
    load_rows,
    open_source,
    read_rows,
)
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.data.sources import read_split
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.training import TrainingSettings, train

# Part of every cell's key: raise it when a cell means something else than before.
PROTOCOL = 1
EXTRA_ROWS = 200
VALIDATION_ROWS = 200
OUTSIDE_ROWS = 400
PAIRED = "arc_easy"
SETS = (
    "sst2",
    "ag_news",
    "airline_tweets",
    "amazon_full",
    "yelp_full",
    "dbpedia14",
    "clinc150",
    "fomc_stream",
    PAIRED,
)
# How long a user may train: as by default, until 200 validation rows say stop, too briefly, too
# long.
EPOCHS = {"full": 6, "early": 6, "under": 2, "over": 15}


@dataclass(frozen=True)
class Cell:
    """One trained model: a set, how many rows, a seed, and how long it was trained.

    Attributes:
        name: of the set.
        rows: training rows.
        seed: of weights, rows drawn and their order.
        protocol: a key of `EPOCHS`.
        test_rows: held-out rows, the same for every seed.
        max_length: tokens a text is cut at.
    """

    name: str
    rows: int
    seed: int
    protocol: str
    test_rows: int
    max_length: int

    @property
    def label(self) -> str:
        """Set, rows, protocol and seed: for people."""
        return f"{self.name}-{self.rows}-{self.protocol}-{self.seed}"

    @property
    def key(self) -> str:
        """The label with a hash of all that decides the result."""
        identity = {**asdict(self), "training": as_data(self.settings), "version": PROTOCOL}
        return keyed(self.label, identity)

    @property
    def settings(self) -> TrainingSettings:
        """Everything but the epochs is as `bhpeft train` has it."""
        return TrainingSettings(
            epochs=EPOCHS[self.protocol],
            seed=self.seed,
            max_length=self.max_length,
            mixed_precision="bf16",
        )


@dataclass(frozen=True)
class CellRows:
    """The rows of a cell.

    Attributes:
        train: to train on, and to fit posteriors on.
        validation: to stop early on, or None.
        extra: further labelled rows, which only temperatures see.
        test: to score on.
        outside: rows of no known class, or None.
    """

    train: TextData
    validation: TextData | None
    extra: TextData
    test: TextData
    outside: TextData | None


def rows_of(cell: Cell, data: Path) -> CellRows:
    """All rows of a cell.

    Raises:
        DataError: the set has fewer rows than the cell asks for.
    """
    found = paired(cell, data) if cell.name == PAIRED else classified(cell, data)
    if len(found.train) < cell.rows or len(found.extra) < EXTRA_ROWS:
        raise DataError(f"{cell.name} has too few rows for {cell.rows} and {EXTRA_ROWS} more.")
    return found


def classified(cell: Cell, data: Path) -> CellRows:
    """Rows of a set of texts and classes."""
    settings = RowSettings(
        str(data / cell.name),
        max_rows=cell.rows + EXTRA_ROWS,
        max_validation_rows=VALIDATION_ROWS,
        validation=cell.protocol == "early",
        seed=cell.seed,
    )
    chosen = choose_rows(settings)
    test = read_rows(settings, open_source(settings.source), "test").draw(cell.test_rows, 0)
    outside = data / cell.name / "oos_test.jsonl.gz"
    return CellRows(
        train=chosen.train.take(range(min(cell.rows, len(chosen.train)))),
        validation=chosen.validation,
        extra=chosen.train.take(range(cell.rows, len(chosen.train))),
        test=test,
        outside=unknown(outside) if outside.is_file() else None,
    )


def unknown(path: Path) -> TextData:
    """Rows of no known class, without labels."""
    return load_rows(path, ignore_labels=True).draw(OUTSIDE_ROWS, 0)


def paired(cell: Cell, data: Path) -> CellRows:
    """Multiple choice as pairs: a question and one of its choices, right or wrong.

    A question's pairs stay together, so that no question is in two parts.
    """
    folder = data / cell.name
    order = shuffled(pairs(folder / "train.jsonl.gz"), cell.seed)
    needed = cell.rows + EXTRA_ROWS + VALIDATION_ROWS
    drawn = [pair for question in order for pair in question][:needed]
    held_out = shuffled(pairs(folder / "test.jsonl.gz"), 0)
    validation = as_rows(drawn[cell.rows + EXTRA_ROWS :]) if cell.protocol == "early" else None
    return CellRows(
        train=as_rows(drawn[: cell.rows]),
        validation=validation,
        extra=as_rows(drawn[cell.rows : cell.rows + EXTRA_ROWS]),
        test=as_rows([pair for question in held_out for pair in question][: cell.test_rows]),
        outside=None,
    )


Pair = tuple[str, str, int]


def pairs(path: Path) -> list[list[Pair]]:
    """`(question, choice, 1 if right)` for every choice, by question."""
    return [
        [
            (row["question"], choice, int(i == row["label"]))
            for i, choice in enumerate(row["choices"])
        ]
        for row in read_split(open_source(path), "train")
    ]


def as_rows(found: list[Pair]) -> TextData:
    """Pairs as rows of two classes."""
    questions, choices, labels = zip(*found, strict=True)
    return TextData(
        texts=questions, text_pairs=choices, labels=labels, label_names=("wrong", "right")
    )


def trained(cell: Cell, rows: CellRows, output: Path) -> Path:
    """Folder of the cell's checkpoint; trained unless it is there."""
    return checkpoint(output / "checkpoints" / cell.key, rows, cell.settings)


def member(cell: Cell, rows: CellRows, output: Path, number: int) -> Path:
    """Folder of a further model of the same rows, from weights and an order of its own."""
    settings = replace(cell.settings, seed=1000 * number + cell.seed)
    return checkpoint(output / "checkpoints" / f"{cell.key}-member-{number}", rows, settings)


def checkpoint(folder: Path, rows: CellRows, settings: TrainingSettings) -> Path:
    """A folder with a model of these rows; trained unless it is there."""
    if not (folder / "training.json").is_file():
        result = train(
            "minilm", rows.train, validation=rows.validation, settings=settings, progress=False
        )
        result.save(folder)
    return folder
