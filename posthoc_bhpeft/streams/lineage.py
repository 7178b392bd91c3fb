"""What a round of a stream leaves beside its checkpoint: where it comes from, and how it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posthoc_bhpeft.checkpoints import read_json, write_json
from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import CheckpointError, DataError
from posthoc_bhpeft.saving import POSTERIOR_FILE
from posthoc_bhpeft.streams.rounds import Heads, LabelSpace, Round
from posthoc_bhpeft.streams.scores import RoundScore, StreamScores

LINEAGE_FILE = "lineage.json"
_FORMAT = 1
_PACKAGES = ("posthoc-bhpeft", "torch", "transformers", "peft")
_PARTS = ("train", "test", "validation")
_FIGURES = (
    "average_accuracy",
    "average_nll",
    "average_ece",
    "backward_transfer",
    "forward_transfer",
)


@dataclass(frozen=True)
class RowsRecord:
    """Which rows, without the rows.

    Attributes:
        n: their number.
        digest: SHA-256 of texts and labels in order, see `TextData.digest`.
        label_counts: rows of each label.
        source: path or hub name they were read from; empty where they came from Python.
    """

    n: int
    digest: str
    label_counts: Mapping[str, int]
    source: str

    @classmethod
    def of(cls, data: TextData) -> RowsRecord:
        """The record of these rows."""
        names = data.label_names or ()
        counts = Counter(names[int(label)] for label in data.labels or ())
        return cls(len(data), data.digest, dict(counts), data.source)


@dataclass(frozen=True)
class Lineage:
    """One round of a stream: its rows, its parent, and its figures.

    Attributes:
        index: counted from 1.
        name: of the round.
        folder: its folder's name inside that of the stream.
        note: why nothing was trained, if so; else empty.
        train: rows learnt.
        test: rows scored, or None.
        validation: rows that stopped the training early, or None.
        label_names: labels of the round.
        columns: outputs that a row of the round chooses among; empty where it has none yet.
        labels: what every output of the model stands for after this round.
        parent: folder of the round before; None for the first.
        parent_posterior: SHA-256 of the posterior this one started from; None without one.
        posterior: SHA-256 of the posterior's tensors; None as long as there is none.
        method: what is carried from round to round, see `settings.encode`.
        settings: how it was trained.
        seed: of this round.
        versions: of the packages that made it.
        seconds: wall-clock time of training, posterior and scores.
        state_bytes: carried to the next round beyond the trained weights.
        prior: where the posterior's prior comes from, in words.
        merge_errors: relative error of the terms merged into the prior, by block.
        training: figures of every epoch; `loss_data` and `loss_penalty` apart where there was one.
        scores_before: figures of this round's test rows before it was learnt, if its labels were
            known.
        scores: figures of every round so far after this one.
    """

    index: int
    name: str
    folder: str
    note: str
    train: RowsRecord
    test: RowsRecord | None
    validation: RowsRecord | None
    label_names: tuple[str, ...]
    columns: tuple[int, ...]
    labels: LabelSpace
    parent: str | None
    parent_posterior: str | None
    posterior: str | None
    method: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    seconds: float
    state_bytes: int
    prior: str
    merge_errors: Mapping[str, float]
    training: tuple[Mapping[str, float], ...]
    scores_before: tuple[RoundScore, ...]
    scores: tuple[RoundScore, ...]

    def write(self, folder: Path) -> None:
        """Write lineage.json into the folder of the round."""
        write_json(folder / LINEAGE_FILE, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Lineage:
        """Read lineage.json of a round's folder.

        Raises:
            CheckpointError: it is missing, damaged or of another format.
        """
        path = folder / LINEAGE_FILE
        content = read_json(path)
        if content.pop("format", None) != _FORMAT:
            raise CheckpointError(
                f"{str(path)!r} has a format this version does not read (supported: {_FORMAT}). "
                "Upgrade posthoc-bhpeft."
            )
        try:
            return cls(**_values(content))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{str(path)!r} does not hold the lineage of a round: {type(error).__name__} "
                f"{error}. It was edited, or cut off; copy it again."
            ) from error

    def brief(self) -> dict[str, Any]:
        """What happened, without what it happened to."""
        return {
            "name": self.name,
            "folder": self.folder,
            "note": self.note,
            "train_rows": self.train.n,
            "seconds": self.seconds,
            "state_bytes": self.state_bytes,
            "largest_merge_error": max(self.merge_errors.values(), default=0.0),
            "scores": [asdict(one) for one in self.scores],
        }

    def check_same_rows(self, round_: Round) -> None:
        """Raise unless a round given again is the one that was learnt.

        Raises:
            DataError: other rows or labels under the same name.
        """
        given = {part: getattr(round_, part) for part in _PARTS}
        changed = [
            f"its {part} rows ({_count(getattr(self, part))} then, {_count(data)} now)"
            for part, data in given.items()
            if _digest(getattr(self, part)) != (None if data is None else data.digest)
        ]
        # Without rows the names of labels mean nothing.
        if self.train.n and self.label_names != tuple(round_.train.label_names or ()):
            now = ", ".join(round_.train.label_names or ())
            changed.append(f"its labels ({', '.join(self.label_names)} then, {now} now)")
        if changed:
            raise DataError(
                f"The round {self.name!r} was learnt before ({self.folder}), and has changed "
                f"since: {'; '.join(changed)}. Bring the old rows back; or give the new ones a "
                f"name of their own, to learn them after the others; or delete {self.folder} and "
                "all later folders, to learn again from there."
            )


@dataclass(frozen=True)
class StreamReport:
    """All rounds of a stream.

    Attributes:
        rounds: in the order they were learnt.
    """

    rounds: tuple[Lineage, ...]

    @property
    def scores(self) -> StreamScores:
        """All figures, those of rounds before they were learnt included."""
        return StreamScores(tuple(s for r in self.rounds for s in (*r.scores_before, *r.scores)))

    def summary(self, after: str | None = None) -> dict[str, float | None]:
        """Means over the rounds learnt until then, and both transfers; None where unknown.

        Args:
            after: name of a round; None is the last.
        """
        scored = [r.name for r in self.rounds if r.scores]
        after = after or (self.rounds[-1].name if self.rounds else None)
        if after not in scored:
            return dict.fromkeys(_FIGURES)
        return {name: getattr(self.scores, name)(after) for name in _FIGURES}

    def accuracies(self) -> dict[str, list[float | None]]:
        """Accuracy on each round's test rows after every round; None where it was not scored."""
        tested = dict.fromkeys(s.tested for r in self.rounds for s in r.scores)
        found = {(s.trained, s.tested): s.accuracy for r in self.rounds for s in r.scores}
        return {name: [found.get((r.name, name)) for r in self.rounds] for name in tested}


def read_lineage(folder: Path) -> tuple[Lineage, ...]:
    """The rounds that a stream's folder holds, in their order.

    Raises:
        CheckpointError: a round is missing in between, or damaged.
    """
    # Hidden folders are those that a killed process left half written.
    places = [path for path in folder.glob("round-*") if path.is_dir()]
    found = sorted((Lineage.read(place) for place in places), key=lambda one: one.index)
    for index, one in enumerate(found, 1):
        if one.index < index:
            raise CheckpointError(
                f"{str(folder)!r} holds two rounds of number {one.index}, "
                f"{found[index - 2].folder} and {one.folder}: two processes learnt at the same "
                "time. Delete one of them and all later ones."
            )
        if one.index != index:
            raise CheckpointError(
                f"{str(folder)!r} holds round {one.index} ({one.folder}) but not round {index}. "
                f"Bring its folder back; its {LINEAGE_FILE} alone is enough, if it is not the last."
            )
    return tuple(found)


def check_posterior(folder: Path, lineage: Lineage) -> None:
    """Raise unless a round's folder holds the posterior that its lineage tells of.

    Raises:
        CheckpointError: another posterior, or none.
    """
    found = read_json(folder / POSTERIOR_FILE).get("sha256")
    if found != lineage.posterior:
        raise CheckpointError(
            f"{str(folder)!r} holds another posterior than the one that the round "
            f"{lineage.name!r} left (SHA-256 {str(found)[:12]}... instead of "
            f"{str(lineage.posterior)[:12]}...): it was fitted again since. Bring the old one "
            "back, or delete the folder to learn the round again."
        )


def package_versions() -> dict[str, str]:
    """Of this package and those that decide its numbers."""
    return {name: version(name) for name in _PACKAGES}


def _values(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a lineage, from JSON."""
    labels = content["labels"]
    tuples = {name: tuple(labels[name]) for name in ("names", "owners", "rounds")}
    rows = {part: content[part] and RowsRecord(**content[part]) for part in _PARTS}
    return {
        **content,
        **rows,
        "labels": LabelSpace(Heads(labels["heads"]), **tuples),
        "label_names": tuple(content["label_names"]),
        "columns": tuple(content["columns"]),
        "training": tuple(content["training"]),
        "scores_before": _scores(content["scores_before"]),
        "scores": _scores(content["scores"]),
    }


def _scores(rows: Sequence[Mapping[str, Any]]) -> tuple[RoundScore, ...]:
    return tuple(RoundScore(**row) for row in rows)


def _digest(rows: RowsRecord | None) -> str | None:
    return None if rows is None else rows.digest


def _count(rows: RowsRecord | TextData | None) -> int:
    if rows is None:
        return 0
    return rows.n if isinstance(rows, RowsRecord) else len(rows)
