"""Tables of text, and sizes in words."""

from __future__ import annotations

from dataclasses import dataclass

UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True)
class Table:
    """Rows of text under a title.

    Attributes:
        title: What it is about.
        columns: Heads.
        rows: Cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """The first column on the left, figures on the right."""
        lines = (self.columns, *self.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}" for line in shown)])


def bytes_text(size: int) -> str:
    """In the unit in which it is at least 1."""
    for unit, name in UNITS:
        if size >= unit:
            value = size / unit
            return f"{value:.{0 if value >= 100 else 1}f} {name}"
    return "-" if size == 0 else f"{size} B"


def count_text(number: int) -> str:
    """Millions and thousands."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)


def number_text(number: int | None) -> str:
    """A number, or that it is not known."""
    return "unknown" if number is None else str(number)
