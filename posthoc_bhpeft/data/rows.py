"""Rows of text with their labels, as values that do not change."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from posthoc_bhpeft.errors import DataError

T = TypeVar("T")
Words = tuple[str, ...]


@dataclass(frozen=True)
class TextData:
    """Texts, their labels where known, and where they came from.

    Attributes:
        texts: N texts.
        text_pairs: N second texts (a passage beside its question), or None.
        labels: N class indices (int), N targets (float, if `regression`), N tuples with a 0 or 1
            for every class (if `multi_label`) or with a class index for every word (if there are
            `words`; -100 where a word has no label), N texts to write (if `written`), or None.
        label_names: the name of every class, index = label; None for regression or no labels.
        regression: whether the labels are real numbers.
        choices: the choices of every row, of which the label names one; or None.
        words: the words of every row, each with a label of its own; or None.
        columns: every other column of the source, N values each.
        indices: the row numbers in the source split, counted from 0.
        source: where the rows came from: a path or a hub name.
        split: the split they were read from.
        notes: what was decided while reading, one sentence each, for people.
        single_file: whether the source is one file, whose split has no name of its own.
    """

    texts: tuple[str, ...]
    text_pairs: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None
    label_names: tuple[str, ...] | None = None
    regression: bool = False
    choices: tuple[tuple[str, ...], ...] | None = None
    words: tuple[Words, ...] | None = None
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)
    indices: tuple[int, ...] = ()
    source: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()
    single_file: bool = False

    def __post_init__(self) -> None:
        if not self.indices:
            object.__setattr__(self, "indices", tuple(range(len(self.texts))))
        for name in ("text_pairs", "labels", "choices", "words", "indices"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.texts):
                raise DataError(
                    f"{name} has {len(values)} entries for {len(self.texts)} texts; "
                    "each text needs exactly one."
                )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multi_label(self) -> bool:
        """Whether a row has a 0 or 1 for every class, rather than one class."""
        several = any(isinstance(label, tuple) for label in (self.labels or ())[:1])
        return several and self.words is None

    @property
    def written(self) -> bool:
        """Whether labels are texts that a model should write."""
        return any(isinstance(label, str) for label in (self.labels or ())[:1])

    @property
    def num_outputs(self) -> int:
        """Outputs a model needs for these labels: C classes, or 1 for regression."""
        if self.regression:
            return 1
        if self.label_names is None:
            raise DataError(
                f"{self.place or 'these rows'} have no labels, "
                "so the number of classes is not known."
            )
        return len(self.label_names)

    @property
    def shown_split(self) -> str | None:
        """The split as people call it; None for a single file, which has none to speak of."""
        return None if self.single_file else self.split or None

    @property
    def place(self) -> str:
        """The source and the split of it, for people."""
        return self.source if self.shown_split is None else f"{self.source} ({self.split})"

    @property
    def digest(self) -> str:
        """SHA-256 of texts and labels in order: equal rows have equal digests."""
        return content_digest(self.texts, self.text_pairs, self.labels, self.choices, self.words)

    def take(self, positions: Iterable[int]) -> TextData:
        """Only the rows at these positions, in this order."""
        rows = list(positions)
        return replace(
            self,
            texts=_pick(self.texts, rows),
            text_pairs=None if self.text_pairs is None else _pick(self.text_pairs, rows),
            labels=None if self.labels is None else _pick(self.labels, rows),
            choices=None if self.choices is None else _pick(self.choices, rows),
            words=None if self.words is None else _pick(self.words, rows),
            columns={name: _pick(values, rows) for name, values in self.columns.items()},
            indices=_pick(self.indices, rows),
        )

    def draw(self, max_rows: int | None, seed: int) -> TextData:
        """At most `max_rows` rows drawn by `seed`; a smaller draw is the start of a larger one."""
        if max_rows is None or max_rows >= len(self):
            return self
        if max_rows < 1:
            raise DataError(f"max_rows is {max_rows}; it must be at least 1.")
        return self.take(shuffled(range(len(self)), seed)[:max_rows])

    def split_off(self, fraction: float, seed: int) -> tuple[TextData, TextData]:
        """The rest and a part of about `fraction` of every class, both in their old order."""
        if not 0.0 < fraction < 1.0:
            raise DataError(f"fraction is {fraction}; it must lie between 0 and 1.")
        part: set[int] = set()
        for number, rows in enumerate(self._rows_by_class()):
            count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
            part.update(shuffled(rows, seed + number)[:count])
        rest = [row for row in range(len(self)) if row not in part]
        return self.take(rest), self.take(sorted(part))

    def _rows_by_class(self) -> list[list[int]]:
        classes = not (self.regression or self.multi_label or self.written)
        if self.labels is None or self.words is not None or not classes:
            return [list(range(len(self)))]
        groups: dict[Any, list[int]] = {}
        for row, label in enumerate(self.labels):
            groups.setdefault(label, []).append(row)
        return [groups[label] for label in sorted(groups)]


def shuffled(values: Iterable[T], seed: int) -> list[T]:
    """The values in an order that depends on the seed only.

    Sorting by `random.Random.random` rather than `shuffle`: Python promises that
    stream for ever, so the rows behind a saved model can always be found again.
    """
    items = list(values)
    stream = random.Random(seed)
    keys = [stream.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def content_digest(
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    labels: Sequence[Any] | None,
    choices: Sequence[Sequence[str]] | None = None,
    words: Sequence[Sequence[str]] | None = None,
) -> str:
    """SHA-256 over one JSON line for each row."""
    state = hashlib.sha256()
    for row, text in enumerate(texts):
        line = [
            text,
            None if text_pairs is None else text_pairs[row],
            None if labels is None else labels[row],
            # Rows without these keep the digest that they had before there were any.
            *(more[row] for more in (choices, words) if more is not None),
        ]
        state.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return state.hexdigest()


def _pick(values: Sequence[T], rows: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[row] for row in rows)
