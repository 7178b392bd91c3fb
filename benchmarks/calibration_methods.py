"""The ways of predicting from one trained checkpoint that are scored side by side.

All get the same rows in the same batches. A method with `extra` sees `EXTRA_ROWS` further labels,
`ensemble` sees four more models; every other sees the checkpoint and its training rows only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from calibration_data import Cell, CellRows, member

from posthoc_bhpeft import (
    BayesianPeft,
    Linearized,
    MarginalLikelihood,
    MonteCarlo,
    Prediction,
    bayesianize,
)
from posthoc_bhpeft.audit import Contest, RivalName
from posthoc_bhpeft.checkpoints import load_adapter, load_tokenizer
from posthoc_bhpeft.data import TextData, in_row_order, make_loader

BATCH_SIZE = 16
MEMBERS = 5


@dataclass(frozen=True)
class Subject:
    """A trained model and the rows that methods may use.

    Attributes:
        cell: what it is.
        rows: of the cell.
        checkpoint: folder of the trained model.
        output: further members are kept below it.
    """

    cell: Cell
    rows: CellRows
    checkpoint: Path
    output: Path
    spent: dict[str, float] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the checkpoint."""
        return load_tokenizer(self.checkpoint)

    @cached_property
    def model(self) -> Any:
        """The trained model."""
        return load_adapter(self.checkpoint)

    @cached_property
    def bayes(self) -> BayesianPeft:
        """Ours, as by default."""
        return bayesianize(self.model, self.loader(self.rows.train), progress=False)

    def loader(self, rows: TextData) -> Any:
        """Rows in batches, shortest texts first."""
        return make_loader(
            rows,
            self.tokenizer,
            max_length=self.cell.max_length,
            batch_size=BATCH_SIZE,
            by_length=True,
        )

    def rival(self, name: RivalName) -> Any:
        """Another method, fitted."""
        contest = Contest(
            self.bayes if name is RivalName.SCALED else self.model,
            held_out=self.loader(self.rows.extra),
            training=self.loader(self.rows.train),
            ensemble=self.members() if name is RivalName.ENSEMBLE else (),
            progress=False,
        )
        return contest.make(name)

    def members(self) -> list[Path]:
        """Checkpoints trained on the same rows from other seeds."""
        return [member(self.cell, self.rows, self.output, number) for number in range(1, MEMBERS)]

    def evidence(self) -> BayesianPeft:
        """One precision by marginal likelihood, softmax sampled: the recipe of Laplace-LoRA."""
        return bayesianize(
            self.model,
            self.loader(self.rows.train),
            prior=MarginalLikelihood(),
            predictive=Linearized(MonteCarlo()),
            progress=False,
        )


@dataclass(frozen=True)
class Method:
    """A way of predicting.

    Attributes:
        make: fits it.
        revision: raise it when the method changes, and its cells are computed again.
    """

    make: Callable[[Subject], Any]
    revision: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a method said about a cell's rows.

    Attributes:
        test: predictions of the test rows, in their order.
        outside: of rows of no known class, where there are any.
        seconds: of processor time, to fit and to predict the test rows.
    """

    test: Prediction
    outside: Prediction | None
    seconds: tuple[float, float]


def rival(name: RivalName) -> Callable[[Subject], Any]:
    """A method of the audit's contest."""
    return lambda subject: subject.rival(name)


MAP, OURS, ENSEMBLE = "MAP", "ours", f"ensemble of {MEMBERS}"
TEMPERATURE = "temperature"
METHODS: Mapping[str, Method] = {
    MAP: Method(rival(RivalName.MAP)),
    TEMPERATURE: Method(rival(RivalName.TEMPERATURE)),
    "MC dropout": Method(rival(RivalName.DROPOUT)),
    "last-layer Laplace": Method(rival(RivalName.LAST_LAYER)),
    "diagonal Laplace": Method(rival(RivalName.DIAGONAL)),
    "evidence, sampled softmax": Method(Subject.evidence),
    OURS: Method(lambda subject: subject.bayes, revision=3),
    "ours + temperature": Method(rival(RivalName.SCALED), revision=3),
    ENSEMBLE: Method(rival(RivalName.ENSEMBLE)),
}
# Quick enough for every cell on a CPU; the others are asked for by name.
QUICK = (MAP, TEMPERATURE, "MC dropout", "evidence, sampled softmax", OURS, "ours + temperature")


def outcomes(subject: Subject, names: Sequence[str]) -> Iterable[tuple[str, Outcome]]:
    """Each method on the same rows."""
    test = subject.loader(subject.rows.test)
    far = None if subject.rows.outside is None else subject.loader(subject.rows.outside)
    for name in names:
        start = time.process_time()
        fitted = METHODS[name].make(subject)
        middle = time.process_time()
        said = in_row_order(test, fitted.predict_loader(test, progress=False))
        seconds = (middle - start, time.process_time() - middle)
        beyond = None if far is None else fitted.predict_loader(far, progress=False)
        yield name, Outcome(said, beyond, seconds)
