"""Scores in files of comma-separated values: a line a record, in the order of a class's fields."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def read_records(kind: type[Record], path: Path) -> list[Record]:
    """The records of a file, numbers that are empty as NaN; none where there is no file."""
    if not path.is_file():
        return []
    kinds = {one.name: {"str": str, "int": int}.get(str(one.type), float) for one in fields(kind)}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            kind(**{name: kinds[name](value or "nan") for name, value in line.items()})
            for line in csv.DictReader(file)
        ]


def records_as_csv(kind: type[Record], records: Iterable[Record], digits: int) -> str:
    """All records, in the order given.

    Args:
        kind: their class, a dataclass of texts and numbers.
        records: of it.
        digits: that matter of a number with a fraction.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [one.name for one in fields(kind)], lineterminator="\n")
    writer.writeheader()
    for one in records:
        writer.writerow({name: shown(value, digits) for name, value in asdict(one).items()})
    return text.getvalue()


def shown(value: Any, digits: int) -> str:
    """Numbers with so many digits; nothing where nothing is known."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{digits}g}"
    return str(value)
