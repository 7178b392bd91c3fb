from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_bhpeft.audit.metrics.bootstrap import Draws, Interval, draw_weights, ends
from posthoc_bhpeft.errors import ConfigError


def test_every_resample_has_as_many_rows_as_there_are() -> None:
    weights = np.concatenate(list(draw_weights(37, 50)))
    assert weights.shape == (50, 37)
    assert (weights.sum(axis=1) == 37).all()
    assert (weights == weights.round()).all()


def test_weights_have_the_moments_of_drawing_with_replacement() -> None:
    weights = np.concatenate(list(draw_weights(20, 20000)))
    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=5 * np.sqrt(0.95 / 20000))
    assert weights.var(axis=0) == pytest.approx(np.full(20, 0.95), abs=0.05)
    assert np.cov(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(-1 / 20, abs=0.04)


def test_many_rows_come_in_pieces() -> None:
    pieces = [len(piece) for piece in draw_weights(100_000, 100)]
    assert pieces == [64, 36]


def test_a_generator_decides_and_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    same = [next(draw_weights(9, 5, torch.Generator().manual_seed(3))) for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (same[0] != next(draw_weights(9, 5))).any()
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ConfigError, match="resamples is 0"):
        next(draw_weights(9, 0))


STEPS = np.arange(-50.0, 51.0) / 100  # quantiles at 5 % and 95 % are -0.45 and 0.45


def test_a_figure_without_bias_has_percentiles() -> None:
    skewed = np.where(STEPS > 0, 2 * STEPS, STEPS)
    found = Draws(3.0, skewed, skewed).interval(0.90)
    assert (found.low, found.high) == pytest.approx((2.55, 3.90))


def test_a_figure_that_noise_lifts_is_reflected() -> None:
    draws = Draws(3.0, STEPS + 0.2, STEPS + 0.5, biased=True)
    found = draws.interval(0.90)
    # What noise may have added, 0.95, is taken off below.
    assert found.low == pytest.approx(3.0 - 0.95)
    assert found.high == pytest.approx(3.0 + 0.25)


def test_an_interval_stays_in_its_range_and_holds_its_estimate() -> None:
    lifted = Draws(0.1, STEPS + 1.0, STEPS + 1.0, biased=True).interval(0.90, 0.0, 1.0)
    assert (lifted.low, lifted.estimate, lifted.high) == (0.0, 0.1, 0.1)
    high = Draws(0.9, STEPS, STEPS).interval(0.90, 0.0, 1.0)
    assert (high.low, high.high) == pytest.approx((0.45, 1.0))


def test_what_both_models_share_cancels() -> None:
    one, two = Draws(1.0, STEPS, STEPS), Draws(0.4, STEPS, STEPS)
    found = one.less(two, 0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6))
    assert found.excludes(0.0)
    assert not found.excludes(0.6)


def test_less_is_turned_round_with_its_models() -> None:
    rng = np.random.default_rng(0)
    error, other = rng.normal(size=400), rng.normal(size=400)
    one = Draws(1.0, error, error + 0.3, biased=True)
    two = Draws(0.4, other, other + 0.1, biased=True)
    there, back = one.less(two, 0.95), two.less(one, 0.95)
    turned = (-back.estimate, -back.high, -back.low)
    assert (there.estimate, there.low, there.high) == pytest.approx(turned)


def test_a_figure_without_meaning_has_no_interval() -> None:
    found = Draws(float("nan"), STEPS, STEPS).interval(0.95)
    assert not found.known
    assert np.isnan([found.low, found.high]).all()
    assert not ends(1.0, float("nan"), 0.0).known
    assert Interval(0.5, 0.4, 0.6).known


def test_resamples_without_the_figure_are_left_out() -> None:
    error = np.where(np.arange(101) % 2 == 0, STEPS, np.nan)
    found = Draws(0.0, error, error).interval(0.90)
    assert found.low == pytest.approx(-0.45, abs=0.01)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_out_of_range_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="level"):
        Draws(0.0, STEPS, STEPS).interval(level)
