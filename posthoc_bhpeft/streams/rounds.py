"""Rounds of a stream, and the outputs that their labels stand for, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError

NO_ROWS = "no rows: nothing was trained, and the model is that of the round before"
NO_CHOICE = "a single label, so there is nothing to tell apart yet: nothing was trained"


class Heads(str, Enum):
    """Which outputs of the model the rows of a round choose among."""

    #: All rounds have one set of labels, told apart by name; a softmax over all names met so far.
    SHARED = "shared"
    #: Every round has outputs of its own, and it is known which round a row belongs to.
    PER_ROUND = "per_round"


@dataclass(frozen=True)
class Round:
    """The rows that arrive together.

    Attributes:
        name: tells the round from the others of its stream.
        train: labelled rows to learn from; their `label_names` are the labels of this round. There
            may be none.
        test: labelled rows to score with, or None.
        validation: labelled rows that stop the training early, or None.
    """

    name: str
    train: TextData
    test: TextData | None = None
    validation: TextData | None = None

    def __post_init__(self) -> None:
        if not self.train.label_names:
            raise DataError(
                f"The round {self.name!r} has no names of labels. A stream needs labelled rows of "
                "text classification; give its TextData label_names, also where it has no rows."
            )
        for part in ("train", "test", "validation"):
            if (data := getattr(self, part)) is not None and data.label_names:
                check_labels(f"The round {self.name!r}, {part} rows", data)


@dataclass(frozen=True)
class LabelSpace:
    """What every output of the model stands for; grows with the rounds, old outputs staying.

    Attributes:
        heads: shared labels, or outputs of its own for every round.
        names: of the label of each output.
        owners: the round that brought each output.
        rounds: names of the rounds met so far, in their order.
    """

    heads: Heads
    names: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    rounds: tuple[str, ...] = ()

    def extended(self, round_: Round) -> LabelSpace:
        """The same outputs, then those for labels of the round that have none yet.

        Raises:
            DataError: the round was met with other labels before.
        """
        new = self._unknown(round_.name, round_.train)
        if round_.name in self.rounds and new and self.heads is Heads.PER_ROUND:
            raise DataError(
                f"The round {round_.name!r} was met with other labels before; new are "
                f"{', '.join(map(repr, new))}. Give rounds that differ names that differ."
            )
        known = (round_.name,) if round_.name not in self.rounds else ()
        return replace(
            self,
            names=self.names + new,
            owners=self.owners + (round_.name,) * len(new),
            rounds=self.rounds + known,
        )

    def why_not(self, round_: Round) -> str:
        """Why a round has nothing to teach about its labels, or an empty string.

        Raises:
            DataError: the round was met with other labels before.
        """
        if len(round_.train) == 0:
            return NO_ROWS
        choices = self.extended(round_).columns(round_.name)
        return NO_CHOICE if len(choices) < 2 else ""

    def columns(self, round_name: str) -> tuple[int, ...]:
        """Outputs a row of the round chooses among: its own, or all where labels are shared.

        Raises:
            DataError: with outputs for each round, the round has none yet.
        """
        if self.heads is Heads.SHARED:
            return tuple(range(len(self.names)))
        own = tuple(i for i, owner in enumerate(self.owners) if owner == round_name)
        if not own:
            raise DataError(
                f"The round {round_name!r} has no outputs yet. Met so far: "
                f"{', '.join(map(repr, self.rounds)) or 'none'}. Learn it first."
            )
        return own

    def targets(self, round_name: str, data: TextData) -> tuple[int, ...]:
        """The output that stands for the label of each row, counted over all outputs.

        Raises:
            DataError: the rows have no labels, or a label has no output or no name.
        """
        if data.labels is None or data.label_names is None:
            raise DataError(
                f"The rows of the round {round_name!r} have no classes as labels, and a stream "
                "learns and scores nothing else."
            )
        if unknown := self._unknown(round_name, data):
            raise DataError(
                f"The round {round_name!r} has rows with labels that have no output: "
                f"{', '.join(map(repr, unknown))}. Its training rows must name every label."
            )
        check_labels(f"The round {round_name!r}", data)
        places = self._places(round_name)
        by_label = [places[name] for name in data.label_names]
        return tuple(by_label[int(label)] for label in data.labels)

    def within(self, round_name: str, data: TextData) -> tuple[int, ...]:
        """`targets`, counted within `columns` of the round."""
        place = {column: i for i, column in enumerate(self.columns(round_name))}
        return tuple(place[target] for target in self.targets(round_name, data))

    def knows(self, round_name: str, data: TextData) -> bool:
        """Whether every label of these rows has an output."""
        return data.label_names is not None and not self._unknown(round_name, data)

    @property
    def titles(self) -> tuple[str, ...]:
        """A name for each output, no two alike."""
        if self.heads is Heads.SHARED:
            return self.names
        return tuple(f"{o}/{n}" for o, n in zip(self.owners, self.names, strict=True))

    def _places(self, round_name: str) -> dict[str, int]:
        """Output of each label name as the round sees it."""
        shared = self.heads is Heads.SHARED
        pairs = enumerate(zip(self.names, self.owners, strict=True))
        return {name: i for i, (name, owner) in pairs if shared or owner == round_name}

    def _unknown(self, round_name: str, data: TextData) -> tuple[str, ...]:
        places = self._places(round_name)
        return tuple(n for n in dict.fromkeys(data.label_names or ()) if n not in places)


def check_labels(where: str, data: TextData) -> None:
    """Raise unless the label of every row is one class, with a name.

    Raises:
        DataError: the first row whose label is not.
    """
    names = data.label_names or ()
    for row, label in enumerate(data.labels or ()):
        if isinstance(label, tuple | str) or not 0 <= int(label) < len(names):
            raise DataError(
                f"{where}: row {row} has the label {label!r}, which is none of the "
                f"{len(names)} in label_names ({', '.join(map(repr, names))}). A label is the "
                "place of its name, from 0. Name every label, or leave the row out."
            )
