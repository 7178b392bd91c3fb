from __future__ import annotations

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics import calibration
from posthoc_bhpeft.audit.metrics.rows import Resampled, Rows
from tests.audit.drawn import Pair, pair_of, pairs


@pytest.fixture(params=pairs(), ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pairs()[request.param]


def test_maximum_error_agrees_with_torchmetrics(pair: Pair) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = pair
    expected = multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(y), num_classes=p.shape[1], n_bins=15, norm="max"
    )
    found = calibration.maximum_calibration_error(p, y, equal_mass=False)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_maximum_error_of_equal_mass_by_hand() -> None:
    confidence = np.linspace(0.6, 0.9, 30)
    p = np.stack([confidence, 1 - confidence], 1)
    y = np.array([1, 1] + [0] * 28)
    # 15 bins of two rows each; the two wrong ones are in the first.
    expected = confidence[:2].mean()
    assert calibration.maximum_calibration_error(p, y) == pytest.approx(expected)


def test_classwise_error_by_a_plain_loop(pair: Pair) -> None:
    p, y = pair
    error = 0.0
    for c in range(p.shape[1]):
        for b in range(15):
            low = -1.0 if b == 0 else b / 15
            inside = (p[:, c] > low) & (p[:, c] <= (b + 1) / 15)
            if inside.any():
                error += inside.mean() * abs(p[inside, c].mean() - (y[inside] == c).mean())
    found = calibration.classwise_calibration_error(p, y)
    assert found == pytest.approx(error / p.shape[1], rel=1e-10, abs=1e-15)


def test_classwise_error_sees_what_the_top_probability_hides() -> None:
    # Right three times in four as promised, but the classes of the others are swapped.
    p = np.tile([[0.75, 0.25, 0.0]], (40, 1))
    y = np.array([0] * 30 + [2] * 10)
    assert calibration.expected_calibration_error(p, y) == pytest.approx(0.0, abs=1e-12)
    assert calibration.classwise_calibration_error(p, y) == pytest.approx(0.5 / 3)


def test_directional_takes_the_sign_only_where_it_is_clear() -> None:
    moved = np.array([[0.1, -0.1, -0.1, 0.1]])
    at = np.array([1.0, 1.0, 0.2, -1.0])
    found = calibration.directional(moved, at, np.full(4, 0.1))
    np.testing.assert_allclose(found, [[0.1, -0.1, 0.1, -0.1]])


@pytest.mark.parametrize(
    ("values", "excess"),
    [
        (calibration.ece_of, calibration.ece_excess),
        (calibration.ece_mass_of, calibration.ece_mass_excess),
        (calibration.mce_of, calibration.mce_excess),
        (calibration.classwise_of, calibration.classwise_excess),
    ],
)
def test_excess_is_never_below_how_far_a_resample_moved(values, excess) -> None:
    """The triangle inequality, for a calibrated model where no gap is clear."""
    rows = Rows.checked(*pair_of(300, 4))
    weights = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), size=50) * 1.0
    drawn = Resampled(rows, weights)
    error = values(drawn) - values(rows.whole)
    assert (error <= excess(drawn) + 1e-12).all()
    assert excess(drawn).mean() > 0.5 * values(rows.whole)


def test_excess_of_clear_gaps_is_the_move_itself() -> None:
    p = np.tile([0.99, 0.01], (400, 1))
    rows = Rows.checked(p, np.arange(400) % 2)
    weights = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), size=50) * 1.0
    drawn = Resampled(rows, weights)
    error = calibration.ece_of(drawn) - calibration.ece_of(rows.whole)
    np.testing.assert_allclose(calibration.ece_excess(drawn), error, atol=1e-12)


def test_a_bin_without_rows_does_not_count() -> None:
    """Between two confidences that many rows share, a bin of equal mass has nothing in it."""
    confidence = np.repeat([0.60, 0.61, 0.90], 8)
    rows = Rows.checked(np.stack([confidence, 1 - confidence], 1), np.arange(24) % 2)
    assert (rows.whole.counts(rows.mass_bins) == 0).any()
    weights = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=20) * 1.0
    drawn = Resampled(rows, weights)
    assert np.isfinite(calibration.mce_excess(drawn)).all()
    assert (calibration.mce_of(drawn) - calibration.mce_of(rows.whole)
            <= calibration.mce_excess(drawn) + 1e-12).all()  # fmt: skip
