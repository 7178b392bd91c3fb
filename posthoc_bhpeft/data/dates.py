"""Dates in a column that may hold anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timezone
from typing import Any

# By their length: strptime itself would take 202431 for a day.
_SHORT = {7: "%Y-%m", 8: "%Y%m%d"}
_DAYS = ("%d.%m.%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%m/%d/%Y", "%d/%m/%Y")
_TIMES = ("", " %H:%M", " %H:%M:%S")
_WITH_ZONE = ("%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z")
_FORMATS = tuple(day + time for day in _DAYS for time in _TIMES) + _WITH_ZONE


def parse_dates(values: Sequence[Any]) -> tuple[datetime, ...] | None:
    """Every value as a date without a zone, in UTC where it had one.

    Read are dates of Python, pandas and numpy, ISO 8601 (`2024-03`, `2024-03-09`, `20240309`,
    `2024/03/09`, `2024-03-09T18:30:00Z`), and forms that all values share: `9 Mar 2024`,
    `March 9, 2024`, `09.03.2024`, `3/9/2024`, of mails and of tweets. Where day and month cannot
    be told apart in any value, none is read.

    Args:
        values: N values, none of them missing.

    Returns:
        N dates; `None` if there is none, or one value is no date.
    """
    found = [_moment(value) for value in values]
    if found and all(found):
        return tuple(moment for moment in found if moment is not None)
    texts = [value.strip() for value in values if isinstance(value, str)]
    if not texts or len(texts) < len(values):
        return None
    readings = [read for form in _FORMATS if (read := _all_read(texts, form)) is not None]
    return readings[0] if readings and all(read == readings[0] for read in readings) else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return _without_zone(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if type(value).__name__ == "datetime64":
        return _moment(value.astype("datetime64[us]").item())
    return _of_iso(value.strip()) if isinstance(value, str) else None


def _of_iso(text: str) -> datetime | None:
    try:
        if len(text) in _SHORT:
            return datetime.strptime(text, _SHORT[len(text)])
        # Python 3.10 does not know the Z of UTC.
        return _without_zone(datetime.fromisoformat(text.removesuffix("Z").replace("/", "-")))
    except ValueError:
        return None


def _all_read(texts: Sequence[str], form: str) -> tuple[datetime, ...] | None:
    try:
        return tuple(_without_zone(datetime.strptime(text, form)) for text in texts)
    except ValueError:
        return None


def _without_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment
    return moment.astimezone(timezone.utc).replace(tzinfo=None)
