"""Rows of csv and tsv, with the types that the same rows have as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_EMPTY = ("",)

_NO_NUMBER = (
    *_EMPTY,
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "nan",
    "NaN",
    "-nan",
    "-NaN",
    "NULL",
    "null",
    "None",
)
"""What stands in a column of numbers where there is none, as R, numpy and data bases write it."""


def read_table(path: Path, delimiter: str) -> Any:
    """The rows of a csv as a `datasets.Dataset`; only empty cells are missing.

    Whole numbers stay whole where some cells are empty, and words such as None or NA are texts
    like others. Only in a column that holds numbers besides are they missing: it is no column of
    texts because of them.

    Args:
        path: The file, which may be gzipped.
        delimiter: What stands between two cells.
    """
    import datasets

    table = _parsed(path, delimiter, _EMPTY)
    if doubtful := [name for name in table.columns if _may_be_numbers(table[name])]:
        # Reading it again leaves it to pandas what a number is.
        numbers = _parsed(path, delimiter, _NO_NUMBER)
        for name in doubtful:
            if not _is_text(numbers[name]) and numbers[name].notna().any():
                table[name] = numbers[name]
    return datasets.Dataset.from_pandas(table)


def _parsed(path: Path, delimiter: str, missing: tuple[str, ...]) -> Any:
    import pandas

    return pandas.read_csv(
        path,
        sep=delimiter,
        keep_default_na=False,
        na_values=list(missing),
        # Without these a gap makes whole numbers floats, and a type is that of some rows only.
        dtype_backend="numpy_nullable",
        low_memory=False,
    )


def _may_be_numbers(column: Any) -> bool:
    """Whether some cells, and not only empty ones, may stand for a missing number."""
    return _is_text(column) and bool(column.isin(_NO_NUMBER).any())


def _is_text(column: Any) -> bool:
    return bool(column.dtype == "string")
