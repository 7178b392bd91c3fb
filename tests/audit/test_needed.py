"""How many rows a promise would take: by simulation, and in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from posthoc_bhpeft.audit.decisions.guarantees import rows_without_error, threshold_for_errors
from posthoc_bhpeft.audit.decisions.needed import missing_rows

CLOSE = 2.5
"""How far an estimate from 150 rows may be off, as a factor."""


def drawn(rows: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """A model that errs in 25 %, and whose doubt is the chance that it does."""
    doubt = rng.beta(0.6, 1.8, rows)
    return doubt, rng.random(rows) < doubt


def promised(rows: float, rate: float, rng: np.random.Generator) -> float:
    """How often something can be promised from so many rows."""
    found = (threshold_for_errors(*drawn(int(rows), rng), rate, 0.95) for _ in range(20))
    return float(np.mean([threshold is not None for threshold in found]))


def test_with_so_many_rows_something_can_be_promised() -> None:
    """A few lucky rows among the most certain would say 300, where it takes 1,200."""
    rng = np.random.default_rng(0)
    found = [missing_rows(*drawn(150, rng), 0.05, 0.95)[0] for _ in range(15)]
    said = float(np.median([np.inf if needed is None else needed for needed in found]))
    assert promised(said / CLOSE, 0.05, rng) <= 0.25
    assert promised(said * CLOSE, 0.05, rng) >= 0.75


def test_right_answers_alone_are_no_rate_of_zero() -> None:
    """Of 60 rows the first 29 are right: 59 like them would do, but who says there are more."""
    doubt = np.arange(60) / 60
    needed, said = missing_rows(doubt, doubt > 0.49, 0.05, 0.95)
    assert needed is not None
    assert needed > 3 * 60
    assert f"about {needed} rows are needed" in said


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_fewer_than_would_do_without_an_error(rate: float) -> None:
    fewest = rows_without_error(rate, 0.95)
    right = np.zeros(fewest - 1, dtype=bool)
    needed, said = missing_rows(np.linspace(0, 1, len(right)), right, rate, 0.95)
    assert needed == fewest
    assert f"at least {fewest} are needed" in said


def test_where_even_the_surest_rows_are_wrong_too_often() -> None:
    wrong = np.arange(100) % 4 == 0
    needed, said = missing_rows(np.arange(100) / 100, wrong, 0.05, 0.95)
    assert needed is None
    assert "more rows would not help" in said
    assert "Of the 100 most certain of 100 rows 25 are wrong" in said


def test_a_few_lucky_rows_are_no_reason_that_more_would_not_help() -> None:
    """The first row is right and half of the others wrong: one row says nothing, 59 do."""
    wrong = np.arange(100) % 2 == 1
    wrong[-40:] = True
    needed, said = missing_rows(np.arange(100) / 100, wrong, 0.05, 0.95)
    assert needed is None
    assert "Of the 59 most certain of 100 rows 29 are wrong" in said
