"""Dates in a column of rows, and the spans of time that make rounds of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timezone
from enum import Enum
from typing import Any

from posthoc_bhpeft.data import TextData
from posthoc_bhpeft.errors import DataError

# By their length: strptime itself would take 202431 for a day.
_SHORT = {4: "%Y", 7: "%Y-%m", 8: "%Y%m%d"}
_YEARS = range(1000, 3000)
# What a table makes of a column of 20240309.
_EIGHT_DIGITS = range(10_000_000, 100_000_000)


class Every(str, Enum):
    """How long a round lasts."""

    YEAR = "year"
    MONTH = "month"
    DAY = "day"

    def name_of(self, moment: datetime) -> str:
        """The round that a moment belongs to: "2024", "2024-03" or "2024-03-09"."""
        day = moment.date().isoformat()
        return {Every.YEAR: day[:4], Every.MONTH: day[:7], Every.DAY: day}[self]


def read_dates(data: TextData, column: str) -> tuple[datetime, ...]:
    """The date of every row, without a time zone.

    Raises:
        DataError: a value is no date.
    """
    found = []
    for row, value in zip(data.indices, data.columns[column], strict=True):
        moment = _moment(value)
        if moment is None:
            raise DataError(
                f"{data.source or 'These rows'}, row {row}: the column {column!r} has {value!r}, "
                "which is no date. Supported: 2024, 2024-03, 2024-03-09, 2024/03/09, 20240309, "
                "2024-03-09 18:30:00 (also with T and a time zone). Correct or leave out the row, "
                "or make rounds of the values as they are, without every= and rounds= (on the "
                "command line --every and --rounds)."
            )
        found.append(moment)
    return tuple(found)


def era_borders(dates: Sequence[Any], count: int) -> list[int]:
    """Where sorted dates are cut into parts of about equally many rows.

    A cut lies where the date changes, as near as can be to `k N / count`, so that no day is in two
    parts.

    Args:
        dates: N sorted values.
        count: parts.

    Returns:
        `count + 1` places from 0 to N.

    Raises:
        DataError: there are fewer different dates than parts.
    """
    n = len(dates)
    changes = [i for i in range(1, n) if dates[i] != dates[i - 1]]
    if len(changes) < count - 1:
        raise DataError(
            f"{n} rows with {len(changes) + 1 if n else 0} different dates cannot make {count} "
            "rounds. Ask for fewer."
        )
    borders = [0]
    for part in range(1, count):
        # So many changes must be left for the cuts still to come.
        free = [i for i in changes if i > borders[-1]][: len(changes)]
        free = free[: len(free) - (count - 1 - part)]
        borders.append(min(free, key=lambda i: abs(i - part * n / count)))
    return [*borders, n]


def _moment(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return _without_zone(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, int) and not isinstance(value, bool):
        return _of_number(value)
    return _parsed(value.strip()) if isinstance(value, str) else None


def _of_number(value: int) -> datetime | None:
    """A year, or a day written as one number."""
    if value in _YEARS:
        return datetime(value, 1, 1)
    return _parsed(str(value)) if value in _EIGHT_DIGITS else None


def _parsed(text: str) -> datetime | None:
    try:
        if len(text) in _SHORT:
            return datetime.strptime(text, _SHORT[len(text)])
        # Python 3.10 does not know the Z of UTC.
        return _without_zone(datetime.fromisoformat(text.removesuffix("Z").replace("/", "-")))
    except ValueError:
        return None


def _without_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(timezone.utc).replace(tzinfo=None)
