"""`Stream`: rounds learnt one after another, each kept in a folder of its own.

Every round starts from what the folder of the round before holds, whether this process wrote it or
another one did. So a stream that was killed and started again gives the same numbers as one that
was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.checkpoints import load_tokenizer, resolve_model
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.streams.identity import StreamIdentity, continued
from posthoc_bhpeft.streams.learner import Learner
from posthoc_bhpeft.streams.lineage import (
    Lineage,
    RowsRecord,
    StreamReport,
    check_posterior,
    package_versions,
    read_lineage,
)
from posthoc_bhpeft.streams.methods.carried import CarriedPosterior, CarriedRun
from posthoc_bhpeft.streams.rounds import Heads, Round
from posthoc_bhpeft.streams.scores import score
from posthoc_bhpeft.streams.writing import folder_name, write_round
from posthoc_bhpeft.training import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftModel


class Stream:
    """Learning from rounds, each from the posterior of the last, with a folder for every round.

    ```python
    stream = Stream("news", settings=TrainingSettings(epochs=4))
    report = stream.run([Round("2023", train, test), Round("2024", more, its_test)])
    report.scores.average_accuracy(after="2024"), report.scores.backward_transfer(after="2024")
    stream.predict(texts).probabilities
    ```

    The rows of a round are needed while it is learnt; later its test rows are, if it is to be
    scored again. A folder `round-002-NAME` is a checkpoint like any other, with a lineage.json.
    Started again with the same rounds, a stream skips those it has and goes on after the last
    whole one.

    Args:
        folder: of the stream; made where it does not exist.
        base: "minilm", the folder of a base model, or a hub name.
        settings: how to train each round.
        method: what is carried from round to round.
        heads: one set of labels for all rounds, or outputs of its own for each.
        device: "cpu" to leave an accelerator alone; None uses one if there is one.
        progress: show a bar for every training, on standard error.

    Of `base`, `settings`, `method` and `heads`, None takes what the stream in the folder was
    started with, and the defaults for a new one.

    Raises:
        ConfigError: the stream there was started with other settings, or the folder holds
            something else.
    """

    def __init__(
        self,
        folder: str | Path,
        base: str | None = None,
        settings: TrainingSettings | None = None,
        method: CarriedPosterior | None = None,
        heads: Heads | None = None,
        *,
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.identity: StreamIdentity = continued(
            self.folder, {"base": base, "settings": settings, "method": method, "heads": heads}
        )
        self._device, self._progress = device, progress
        self._given: dict[str, Round] = {}
        self._opened: tuple[int, CarriedRun] | None = None

    @classmethod
    def open(
        cls, folder: str | Path, *, device: str | None = None, progress: bool = True
    ) -> Stream:
        """A stream that is there, with the settings it was started with.

        Raises:
            ConfigError: there is none.
        """
        if not Path(folder).expanduser().is_dir():
            raise ConfigError(f"There is no stream at {str(folder)!r}. Stream(folder) starts one.")
        return cls(folder, device=device, progress=progress)

    @property
    def report(self) -> StreamReport:
        """All rounds that the folder holds, with their scores."""
        return StreamReport(read_lineage(self.folder))

    @property
    def bayes(self) -> BayesianPeft:
        """The last posterior.

        Where every round has outputs of its own it is about those of the last round, and predicts
        through `predict`, which shows it these.

        Raises:
            ConfigError: nothing was learnt yet.
        """
        bayes = self._last().bayes
        assert bayes is not None
        return bayes

    def run(self, rounds: Iterable[Round]) -> StreamReport:
        """Learn rounds in their order; see `learning`."""
        for _ in self.learning(rounds):
            pass
        return self.report

    def learning(self, rounds: Iterable[Round]) -> Iterator[Lineage]:
        """Learn rounds in their order, and tell of each as soon as its folder is there.

        Rounds that the stream has learnt before are skipped, so the same rounds may be given again
        after an interruption, or with new ones at their end.

        Raises:
            DataError: two rounds have one name, a round has changed since it was learnt, or their
                order has.
        """
        names: dict[str, int] = {}
        last = 0
        for number, round_ in enumerate(rounds, 1):
            if round_.name in names:
                raise DataError(
                    f"Rounds {names[round_.name]} and {number} are both named {round_.name!r}. "
                    "Give every round a name of its own."
                )
            names[round_.name] = number
            lineage = self.learn(round_)
            if lineage.index < last:
                raise DataError(
                    f"The round {round_.name!r} was learnt as number {lineage.index}, before one "
                    "that is given ahead of it now. Give the rounds in the order in which they "
                    "were learnt, new ones last, or start another stream."
                )
            last = lineage.index
            yield lineage

    def learn(self, round_: Round) -> Lineage:
        """Learn one round after all others, and score those given to this object so far.

        A round that was learnt before is only compared with its lineage.

        Raises:
            DataError: the round has changed since it was learnt, or its labels make no sense.
            CheckpointError: the folder of the round before is damaged.
        """
        past = self.report.rounds
        known = next((one for one in past if one.name == round_.name), None)
        if known is not None:
            known.check_same_rows(round_)
        self._given[round_.name] = round_
        if known is not None:
            return known
        if not past:
            self.identity.write(self.folder)
        try:
            return self._learn(round_, past)
        finally:
            # The next one starts from the folder, as it would in a new process; and after an
            # error the model in memory is that of no round.
            self._opened = None

    def predict(
        self, data: TextData, round_name: str | None = None, *, batch_size: int = 32
    ) -> Prediction:
        """Predict rows with the last posterior.

        Args:
            data: N rows; labels, where known, are kept in the result.
            round_name: of the rows; needed where every round has outputs of its own.
            batch_size: rows a batch.

        Returns:
            Probabilities `(N, C)` in the order of `label_names`, and uncertainties, on the CPU.

        Raises:
            ConfigError: nothing was learnt yet, or the round must be named.
            DataError: the round has no outputs.
        """
        run = self._last()
        return run.predict(
            self._round_name(round_name), data, batch_size=batch_size, progress=self._progress
        )

    def label_names(self, round_name: str | None = None) -> tuple[str, ...]:
        """Names of the labels that `predict` chooses among, in the order of its columns.

        Raises:
            ConfigError: nothing was learnt yet, or the round must be named.
            DataError: the round has no outputs.
        """
        labels = self._last().learner.labels
        return tuple(labels.names[i] for i in labels.columns(self._round_name(round_name)))

    def _learn(self, round_: Round, past: tuple[Lineage, ...]) -> Lineage:
        started = time.perf_counter()
        parent = past[-1] if past else None
        run = self._run(past)
        learner, before = run.learner, run.bayes
        scores_before = (
            score(run, learner.labels, parent.name, [round_]) if before and parent else ()
        )
        note = learner.labels.why_not(round_)
        run.learn(round_, len(past))
        scores = (
            score(run, learner.labels, round_.name, list(self._given.values())) if run.bayes else ()
        )
        lineage = Lineage(
            index=len(past) + 1,
            name=round_.name,
            folder=folder_name(len(past) + 1, round_.name),
            note=note,
            train=RowsRecord.of(round_.train),
            test=None if round_.test is None else RowsRecord.of(round_.test),
            validation=None if round_.validation is None else RowsRecord.of(round_.validation),
            label_names=tuple(round_.train.label_names or ()),
            columns=_columns(learner, round_),
            labels=learner.labels,
            parent=parent.folder if parent else None,
            parent_posterior=parent.posterior if parent else None,
            posterior=None,
            method=self.identity.content["method"],
            settings=self.identity.content["settings"],
            seed=learner.seed_of(len(past)),
            versions=package_versions(),
            seconds=round(time.perf_counter() - started, 1),
            state_bytes=run.state_bytes,
            prior=run.bayes.reason if run.bayes else "",
            merge_errors=run.bayes.posterior.prior.merge_errors if run.bayes else {},
            training=run.history,
            scores_before=scores_before,
            scores=scores,
        )
        return write_round(self.folder, run, self.identity.base, lineage)

    def _run(self, past: tuple[Lineage, ...]) -> CarriedRun:
        """The method where the last round left it, read from its folder."""
        if self._opened is not None and self._opened[0] == len(past):
            return self._opened[1]
        identity = self.identity
        learner = Learner.start(
            identity.base,
            identity.settings,
            identity.heads,
            device=self._device,
            progress=self._progress,
        )
        run = identity.method.start(learner)
        if past:
            learner.labels = past[-1].labels
        if past and past[-1].posterior is not None:
            folder = self.folder / past[-1].folder
            check_posterior(folder, past[-1])
            base = resolve_model(identity.base)
            run.bayes = BayesianPeft.from_pretrained(folder, base=base, device=learner.place)
            learner.resume(
                cast("PeftModel", run.bayes.model), load_tokenizer(folder), learner.labels
            )
        self._opened = len(past), run
        return run

    def _last(self) -> CarriedRun:
        run = self._run(self.report.rounds)
        if run.bayes is None:
            raise ConfigError(
                f"The stream in {str(self.folder)!r} has learnt nothing yet. Give it a round with "
                "rows of two labels or more: stream.learn(round)."
            )
        return run

    def _round_name(self, name: str | None) -> str:
        if name is None and self.identity.heads is Heads.PER_ROUND:
            known = ", ".join(repr(one.name) for one in self.report.rounds if one.columns)
            raise ConfigError(
                "Every round of this stream has outputs of its own, so say which round the rows "
                f"belong to: predict(data, round_name). Rounds: {known}."
            )
        return name or ""


def _columns(learner: Learner, round_: Round) -> tuple[int, ...]:
    shared = learner.labels.heads is Heads.SHARED
    known = shared or round_.name in learner.labels.owners
    return learner.labels.columns(round_.name) if known else ()
