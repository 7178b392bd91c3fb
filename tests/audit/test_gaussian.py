from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit.metrics import gaussian
from posthoc_bhpeft.errors import ConfigError, DataError, NonFiniteError
from tests.audit.drawn import Floats

Rows = tuple[Floats, Floats, Floats]


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=40), rng.gamma(2.0, size=40)
    return mean, variance, mean + rng.normal(size=40) * 1.5


def test_nll_is_torchs(rows: Rows) -> None:
    mean, variance, targets = (torch.from_numpy(v) for v in rows)
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(targets)
    assert gaussian.gaussian_nll(*rows) == pytest.approx(-density.mean().item(), rel=1e-12)


def test_crps_is_its_integral(rows: Rows) -> None:
    t = np.linspace(-40, 40, 400001)
    found = []
    for mean, variance, y in zip(*rows, strict=True):
        normal = torch.distributions.Normal(mean, variance**0.5)
        below = normal.cdf(torch.from_numpy(t)).numpy()
        found.append(np.trapezoid((below - (t >= y)) ** 2, t))
    assert gaussian.gaussian_crps(*rows) == pytest.approx(np.mean(found), abs=2e-4)


def test_crps_without_doubt_is_the_absolute_error(rows: Rows) -> None:
    mean, variance, targets = rows
    found = gaussian.gaussian_crps(mean, variance * 1e-14, targets)
    assert found == pytest.approx(np.abs(mean - targets).mean(), rel=1e-6)


def test_rmse_by_hand(rows: Rows) -> None:
    expected = np.sqrt(((rows[0] - rows[2]) ** 2).mean())
    assert gaussian.root_mean_squared_error(*rows) == pytest.approx(expected)


@pytest.mark.parametrize(("level", "reach"), [(0.90, 1.644854), (0.5, 0.674490)])
def test_intervals_by_hand(rows: Rows, level: float, reach: float) -> None:
    mean, variance, targets = rows
    half = reach * np.sqrt(variance)
    inside = np.abs(mean - targets) <= half
    assert gaussian.interval_coverage(*rows, level=level) == pytest.approx(inside.mean())
    assert gaussian.interval_width(*rows, level=level) == pytest.approx(2 * half.mean(), rel=1e-5)


def test_pit_error_is_its_integral(rows: Rows) -> None:
    pit = gaussian.Gaussians.checked(*rows).pit
    u = (np.arange(200000) + 0.5) / 200000
    share = np.searchsorted(np.sort(pit), u, side="right") / len(pit)
    assert gaussian.pit_error(*rows) == pytest.approx(np.abs(share - u).mean(), abs=1e-5)


def test_pit_error_at_its_extremes() -> None:
    zeros, ones = np.zeros(1000), np.ones(1000)
    assert gaussian.pit_error(zeros, ones, zeros + 50) == pytest.approx(0.5)
    levels = (np.arange(1000) + 0.5) / 1000
    even = torch.special.ndtri(torch.from_numpy(levels)).numpy()
    assert gaussian.pit_error(zeros, ones, even) == pytest.approx(0.25 / 1000)


def test_excess_of_the_pit_is_never_below_how_far_a_resample_moved() -> None:
    rng = np.random.default_rng(1)
    rows = gaussian.Gaussians.checked(np.zeros(200), np.ones(200), rng.normal(size=200))
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=40) * 1.0
    drawn = gaussian.DrawnGaussians(rows, weights)
    moved = gaussian.pit_error_of(drawn) - gaussian.pit_error_of(
        gaussian.DrawnGaussians.whole(rows)
    )
    assert (moved <= gaussian.pit_excess(drawn) + 1e-12).all()


def test_wrong_arrays_are_named(rows: Rows) -> None:
    mean, variance, targets = rows
    with pytest.raises(DataError, match=r"\(40,\), \(40,\) and \(39,\)"):
        gaussian.gaussian_nll(mean, variance, targets[:-1])
    with pytest.raises(DataError, match="at least one row"):
        gaussian.gaussian_nll(mean[:0], variance[:0], targets[:0])
    with pytest.raises(DataError, match="40 of 40 variances"):
        gaussian.gaussian_crps(mean, -variance, targets)
    with pytest.raises(NonFiniteError, match="NaN"):
        gaussian.pit_error(mean * np.nan, variance, targets)
    with pytest.raises(ConfigError, match="level"):
        gaussian.interval_width(*rows, level=90)
