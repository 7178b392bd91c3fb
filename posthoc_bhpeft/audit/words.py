"""Numbers and intervals as people read them."""

from __future__ import annotations

import math

from posthoc_bhpeft.audit.metrics import Interval

# A space that neither breaks a line nor is as wide as a full one.
THIN = "\u202f"
MINUS = "\u2212"


def number(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """A number with so many decimals, a real minus sign and groups of thousands."""
    if not math.isfinite(value):
        return "∞" if value == math.inf else ("−∞" if value == -math.inf else "–")
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    # What rounds to nothing has no sign.
    if float(text.replace(",", "")) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A share in per cent: 0.1234 is 12.3 %."""
    if not math.isfinite(value):
        return number(value)
    return f"{number(100 * value, digits, signed=signed)}{THIN}%"


def bare(value: float, *, share: bool, signed: bool = False) -> str:
    """One end of an interval: like `percent` without its sign, or like `number`."""
    return number(100 * value, 1, signed=signed) if share else number(value, 3, signed=signed)


def ends(interval: Interval, *, share: bool = False, signed: bool = False) -> str:
    """`low to high`, for tables."""
    low = bare(interval.low, share=share, signed=signed)
    return f"{low} to {bare(interval.high, share=share, signed=signed)}"


def value(interval: Interval, *, share: bool = False, signed: bool = False) -> str:
    """The estimate alone."""
    show = percent if share else number
    return show(interval.estimate, signed=signed)


def between(interval: Interval, *, share: bool = False, signed: bool = False) -> str:
    """The estimate and, in brackets, its interval: for sentences."""
    shown = value(interval, share=share, signed=signed)
    return f"{shown} ({ends(interval, share=share, signed=signed)})"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2,500 rows`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def points(share: float) -> str:
    """The size of a difference of shares: `12 points`, or `0.4 points` where it is small."""
    size = abs(100 * share)
    text = f"{size:.0f}" if size >= 1.5 else f"{size:.1f}".removesuffix(".0")
    return f"{text} {'point' if text == '1' else 'points'}"


def p_value(p: float) -> str:
    """A p-value: two digits, and nothing smaller than 0.001."""
    if not math.isfinite(p):
        return "–"
    return "<" + THIN + "0.001" if p < 0.001 else number(p, 3 if p < 0.1 else 2)


def slug(*parts: str) -> str:
    """An id for the page: letters, digits and dashes."""
    text = "-".join(parts).lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text).strip("-")
