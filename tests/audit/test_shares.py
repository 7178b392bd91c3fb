from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from posthoc_bhpeft.audit.metrics.shares import share_interval


@pytest.mark.parametrize(("count", "rows"), [(0, 7), (3, 11), (11, 11), (40, 500)])
def test_the_interval_is_that_of_clopper_and_pearson(count: int, rows: int) -> None:
    found = share_interval(count, rows)
    exact = binomtest(count, rows).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.estimate == count / rows


def test_no_rows_have_no_interval() -> None:
    assert math.isnan(share_interval(0, 0).estimate)


def test_a_count_between_two_has_ends_between_theirs() -> None:
    found = [share_interval(count, 5) for count in np.arange(0.0, 5.01, 0.25)]
    assert all(one.low <= one.estimate <= one.high for one in found)
    for ends in ([one.low for one in found], [one.high for one in found]):
        assert ends == sorted(ends)
