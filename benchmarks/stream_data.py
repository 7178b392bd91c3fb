"""The four streams: which rows, in which rounds, under which heads.

Training rows are drawn by the seed, test rows are the same for every seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from posthoc_bhpeft.data import TextData, load_rows, open_source
from posthoc_bhpeft.data.rows import shuffled
from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.streams.rounds import Heads, Round

POLARITY = {
    "very negative": "negative",
    "negative": "negative",
    "positive": "positive",
    "very positive": "positive",
}
SENTIMENT = ("negative", "positive")
DOMAINS = ("sst2", "airline_tweets", "amazon_full", "yelp_full")
# Orders 1 to 3 of O-LoRA's benchmark (Wang et al., 2023), without Yahoo.
ORDERS = (
    ("dbpedia14", "amazon_full", "yelp_full", "ag_news"),
    ("dbpedia14", "amazon_full", "ag_news", "yelp_full"),
    ("yelp_full", "amazon_full", "ag_news", "dbpedia14"),
)
# Rows of a round in BH-PEFT's protocol (Chai et al., 2025).
GROWTH = (10, 20, 40, 80, 160, 320)
ERAS = 4
ERA_TEST_SHARE = 0.25


@dataclass(frozen=True)
class Sizes:
    """Rows a round.

    Attributes:
        domains: training rows a round of `domains`.
        tasks: training rows a round of `tasks`.
        time: training rows an era of `time`, at most.
        growth: training rows of every round of `growth`.
        test: test rows a round, at most.
    """

    domains: int = 100
    tasks: int = 160
    time: int = 100
    growth: tuple[int, ...] = GROWTH
    test: int = 200


@dataclass(frozen=True)
class Stream:
    """Rounds in their order.

    Attributes:
        name: of the stream.
        rounds: each with training and test rows.
        heads: whether rounds share their outputs.
        one_test: every round has the same test rows, so one score a round says everything, and
            neither transfer means anything.
    """

    name: str
    rounds: tuple[Round, ...]
    heads: Heads
    one_test: bool = False

    def scored(self, after: int) -> tuple[Round, ...]:
        """Rounds to score after round number `after`, counted from 0: all so far and the next.

        The next one, where its labels are known already, tells the forward transfer.
        """
        return self.rounds[after : after + 1] if self.one_test else self.rounds[: after + 2]


def relabelled(data: TextData, names: Sequence[str], mapping: Mapping[str, str]) -> TextData:
    """The rows whose label has a new name in `mapping`, under the labels `names`.

    Args:
        data: rows with named labels.
        names: the new names, index = new label.
        mapping: old name to new name; rows of any other name are dropped.

    Raises:
        DataError: the rows have no named labels, or none of them is in the mapping.
    """
    if data.labels is None or data.label_names is None:
        raise DataError(f"{data.source or 'These rows'} ({data.split}) have no named labels.")
    new = [names.index(mapping[name]) if name in mapping else None for name in data.label_names]
    found = [new[int(label)] for label in data.labels]
    kept = [row for row, label in enumerate(found) if label is not None]
    if not kept:
        raise DataError(
            f"{data.source or 'These rows'} ({data.split}) have the labels "
            f"{', '.join(data.label_names)}, none of which is among {', '.join(mapping)}."
        )
    labels = tuple(label for label in found if label is not None)
    return replace(data.take(kept), labels=labels, label_names=tuple(names))


def pooled(parts: Sequence[TextData]) -> TextData:
    """All rows of several splits with the same labels and columns, in the order given.

    Raises:
        DataError: their label names differ.
    """
    first = parts[0]
    if any(part.label_names != first.label_names for part in parts):
        raise DataError(f"{first.source}: the splits name their labels differently.")
    return TextData(
        texts=tuple(text for part in parts for text in part.texts),
        labels=tuple(int(label) for part in parts for label in part.labels or ()),
        label_names=first.label_names,
        columns={
            name: tuple(value for part in parts for value in part.columns[name])
            for name in first.columns
        },
        source=first.source,
        split="+".join(part.split for part in parts),
    )


def eras(data: TextData, count: int, column: str = "date") -> list[TextData]:
    """Contiguous parts of about equally many rows; rows of one date stay together.

    A border lies where the date changes, as near as can be to `k N / count`.

    Args:
        data: rows with a column of dates that sort as text or as dates.
        count: number of parts.
        column: name of that column.

    Raises:
        DataError: there is no such column, a row has no date, or there are fewer than `count`
            different dates.
    """
    if column not in data.columns:
        raise DataError(
            f"{data.source or 'These rows'}: no column {column!r}. "
            f"There is: {', '.join(data.columns) or 'none'}."
        )
    dates: Sequence[Any] = data.columns[column]
    if any(date is None for date in dates):
        raise DataError(f"{data.source or 'These rows'}: a row has no {column}; leave it out.")
    order = sorted(range(len(data)), key=dates.__getitem__)
    changes = [i for i in range(1, len(order)) if dates[order[i]] != dates[order[i - 1]]]
    borders = [0]
    for part in range(1, count):
        # As many changes must stay to the right as there are borders still to place.
        free = [i for i in changes if i > borders[-1]]
        free = free[: len(free) - (count - 1 - part)]
        if not free:
            raise DataError(
                f"{len(changes) + 1} different values of {column!r} cannot make {count} eras."
            )
        target = part * len(order) / count
        borders.append(min(free, key=lambda i: abs(i - target)))
    borders.append(len(order))
    return [data.take(order[a:b]) for a, b in pairwise(borders)]


def held_out(data: TextData, share: float) -> tuple[TextData, TextData]:
    """Training rows and a stratified test part, the same whatever the seed of the stream."""
    return data.split_off(share, seed=0)


def growth(folder: Path, seed: int, sizes: Sizes) -> Stream:
    """SST-2 in rounds of 10, 20, 40, ... new rows, one test set."""
    rows = load_rows(folder / "sst2", "train")
    rows = rows.take(shuffled(range(len(rows)), seed)[: sum(sizes.growth)])
    test = load_rows(folder / "sst2", "test").draw(sizes.test, 0)
    rounds, start = [], 0
    for size in sizes.growth:
        part = rows.take(range(start, min(start + size, len(rows))))
        rounds.append(Round(f"rows-{size}", part, test=test))
        start += size
    return Stream("growth", tuple(rounds), Heads.SHARED, one_test=True)


def domains(folder: Path, seed: int, sizes: Sizes) -> Stream:
    """One question, positive or negative, asked of four kinds of texts."""

    def part(name: str, split: str) -> TextData:
        return relabelled(load_rows(folder / name, split), SENTIMENT, POLARITY)

    rounds = [
        Round(
            name,
            part(name, "train").draw(sizes.domains, seed),
            test=part(name, "test").draw(sizes.test, 0),
        )
        for name in DOMAINS
    ]
    return Stream("domains", tuple(rounds), Heads.SHARED)


def tasks(folder: Path, seed: int, sizes: Sizes) -> Stream:
    """Four tasks with labels of their own, in order `seed mod 3`."""
    rounds = [
        Round(
            name,
            load_rows(folder / name, "train").draw(sizes.tasks, seed),
            test=load_rows(folder / name, "test").draw(sizes.test, 0),
        )
        for name in ORDERS[seed % len(ORDERS)]
    ]
    return Stream("tasks", tuple(rounds), Heads.PER_ROUND)


def time(folder: Path, seed: int, sizes: Sizes) -> Stream:
    """Sentences of the Federal Reserve, 1996 to 2022, in four eras."""
    source = open_source(folder / "fomc_stream")
    rows = pooled([load_rows(source, split) for split in source.splits])
    rounds = []
    for era in eras(rows, ERAS):
        rest, test = held_out(era, ERA_TEST_SHARE)
        dates = era.columns["date"]
        name = f"{str(dates[0])[:7]}-to-{str(dates[-1])[:7]}"
        rounds.append(Round(name, rest.draw(sizes.time, seed), test=test.draw(sizes.test, 0)))
    return Stream("time", tuple(rounds), Heads.SHARED)


STREAMS: dict[str, Callable[[Path, int, Sizes], Stream]] = {
    "growth": growth,
    "domains": domains,
    "tasks": tasks,
    "time": time,
}
