"""Any column as a few groups of rows with readable names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.arrays import Floats
from posthoc_bhpeft.data.dates import parse_dates

MISSING = "missing"
_UNITS = (("year", 4), ("month", 7), ("day", 10))


@dataclass(frozen=True)
class Group:
    """Some rows under one name.

    Attributes:
        name: For people.
        rows: Their positions, increasing.
    """

    name: str
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def is_missing(value: Any) -> bool:
    """Whether a value says nothing: `None`, NaN, not-a-time, or no character but spaces."""
    if isinstance(value, str):
        return not value.strip()
    # Only NaN and not-a-time differ from themselves; arrays and the like are values.
    return value is None or (np.ndim(value) == 0 and bool(value != value))


def group_values(
    values: Sequence[Any], *, most: int = 10, parts: int = 4, smallest: int = 1
) -> tuple[Group, ...]:
    """Groups of a column, in their natural order, values that are missing last.

    Numbers make `parts` groups of about equally many rows, or one for each value where there are
    `most` or fewer; dates make years, months, days, or parts of time; all else makes the largest
    groups, most rows first, and one of all other values. No row is in two groups.

    Args:
        values: N values of any kind.
        most: Groups at most, besides other and missing values.
        parts: Groups of a column of many numbers.
        smallest: Rows a group must have; smaller ones join the other values, or a neighbour in
            time, or are left out.
    """
    known = np.array([i for i, v in enumerate(values) if not is_missing(v)], dtype=np.int64)
    missing = np.setdiff1d(np.arange(len(values)), known)
    chosen = [values[i] for i in known]
    numbers = as_numbers(chosen)
    found: Sequence[Group]
    if numbers is not None:
        found = _of_numbers(numbers, most, parts)
    elif (moments := parse_dates(chosen)) is not None:
        found = group_times(moments, most=most, smallest=smallest)
    else:
        found = _of_names([str(value) for value in chosen], most, smallest)
    groups = [Group(one.name, known[one.rows]) for one in found]
    return tuple(g for g in [*groups, Group(MISSING, missing)] if len(g) >= max(smallest, 1))


def as_numbers(values: Sequence[Any]) -> Floats | None:
    """Values `(N,)` as finite numbers, `None` if one is none; texts that read as numbers are."""
    if not values or any(isinstance(v, bool | np.bool_) or np.ndim(v) for v in values):
        return None
    if any(isinstance(v, str) and len(v.strip()) == 8 for v in values) and parse_dates(values):
        return None
    if not all(isinstance(v, str | int | float | np.number) for v in values):
        return None
    try:
        found = np.array([float(v) for v in values])
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def group_times(
    moments: Sequence[datetime] | Floats, *, most: int = 12, smallest: int = 1, parts: int = 8
) -> tuple[Group, ...]:
    """Stretches of time in order: the finest of year, month and day that makes 2 to `most`.

    Where none does, about `parts` stretches of equally many rows. A stretch with fewer than
    `smallest` rows is joined to the one before it.

    Args:
        moments: N dates, or numbers in place of them.
        most: Stretches at most.
        smallest: Rows that a stretch should have.
        parts: Stretches where no unit fits.
    """
    named = _by_unit(moments, most) or _by_rank(moments, parts)
    joined: list[tuple[str, str, list[int]]] = []
    for first, last, rows in named:
        if joined and min(len(rows), len(joined[-1][2])) < smallest:
            joined[-1] = (joined[-1][0], last, joined[-1][2] + rows)
        else:
            joined.append((first, last, rows))
    return tuple(_group(_span(first, last), rows) for first, last, rows in joined)


def _by_unit(moments: Sequence[Any] | Floats, most: int) -> list[tuple[str, str, list[int]]]:
    if isinstance(moments, np.ndarray):
        values = sorted(set(moments.tolist()))
        if not 2 <= len(values) <= most:
            return []
        return [(_short(v), _short(v), np.flatnonzero(moments == v).tolist()) for v in values]
    stamps = [moment.isoformat() for moment in moments]
    for _, length in reversed(_UNITS):
        names = [stamp[:length] for stamp in stamps]
        if 2 <= len(set(names)) <= most:
            return [(n, n, _places(names, n)) for n in sorted(set(names))]
    return []


def _by_rank(moments: Sequence[Any] | Floats, parts: int) -> list[tuple[str, str, list[int]]]:
    """Parts of equally many rows, but for moments that several rows share."""
    numeric = isinstance(moments, np.ndarray)
    values = list(moments)
    order = sorted(range(len(values)), key=values.__getitem__)
    numbers = np.unique([values[i] for i in order], return_inverse=True)[1].astype(np.float64)
    name = _short if numeric else _stamps(values)
    found = []
    for rows in _equal_parts(numbers, parts):
        inside = [order[i] for i in rows]
        found.append((name(values[inside[0]]), name(values[inside[-1]]), sorted(inside)))
    return found


def _stamps(moments: Sequence[datetime]) -> Any:
    """How to write these dates: with the time of day where all are within two days."""
    length = 16 if (max(moments) - min(moments)).days < 2 else 10
    return lambda moment: moment.isoformat(sep=" ")[:length]


def _of_numbers(numbers: Floats, most: int, parts: int) -> list[Group]:
    values = np.unique(numbers)
    if len(values) <= most:
        return [_group(_short(v), np.flatnonzero(numbers == v)) for v in values]
    found = []
    for rows in _equal_parts(numbers, parts):
        inside = numbers[rows]
        found.append(_group(_span(_short(inside.min()), _short(inside.max())), rows))
    return found


def _equal_parts(numbers: Floats, parts: int) -> Iterator[NDArray[np.int64]]:
    """Rows between quantiles, the smallest numbers first; equal numbers stay together."""
    inner = np.quantile(numbers, np.linspace(0.0, 1.0, parts + 1)[1:-1])
    index = np.searchsorted(np.unique(inner), numbers, side="left")
    for part in np.unique(index):
        yield np.flatnonzero(index == part)


def _of_names(names: Sequence[str], most: int, smallest: int) -> list[Group]:
    counts = Counter(names)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    large = [name for name in ranked if counts[name] >= smallest]
    # One value more than wanted needs no group of others in its place.
    if len(ranked) > most + 1:
        large = large[:most]
    rest = set(ranked) - set(large)
    groups = [_group(name, _places(names, name)) for name in large]
    if rest:
        rows = [i for i, name in enumerate(names) if name in rest]
        word = "value" if len(rest) == 1 else "values"
        groups.append(_group(f"{len(rest)} other {word}", rows))
    return groups


def _places(names: Sequence[str], wanted: str) -> list[int]:
    return [i for i, name in enumerate(names) if name == wanted]


def _group(name: str, rows: Sequence[int] | NDArray[np.int64]) -> Group:
    return Group(name, np.sort(np.asarray(rows, dtype=np.int64)))


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _short(value: float) -> str:
    """A number for people: whole numbers as they are, others with four digits."""
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.4g}"
