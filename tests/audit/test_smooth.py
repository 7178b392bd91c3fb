from __future__ import annotations

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics.smooth import smooth_calibration_error
from tests.audit.drawn import Floats, pair_of, pairs


def two(confidence: Floats, right: Floats) -> tuple[Floats, Floats]:
    return np.stack([confidence, 1 - confidence], 1), 1.0 - right


def smoothed(confidence: Floats, gap: Floats, width: float) -> float:
    """The integral of the definition, on a fine grid, with ten mirror images on each side."""
    t = (np.arange(20000) + 0.5) / 20000
    total = np.zeros_like(t)
    for q, r in zip(confidence, gap, strict=True):
        for k in range(-10, 11):
            for image in (q, -q):
                total += r * np.exp(-0.5 * ((t - image - 2 * k) / width) ** 2)
    return float(np.abs(total).mean() / (width * np.sqrt(2 * np.pi) * len(gap)))


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 6.0])
def test_it_is_the_fixed_point_of_the_definition(sharpness: float) -> None:
    p, y = pair_of(30, 3, sharpness=sharpness)
    confidence = p.max(1)
    found = smooth_calibration_error(p, y)
    error = smoothed(confidence, confidence - (p.argmax(1) == y), found)
    assert error == pytest.approx(found, abs=5e-4)


def test_one_confidence_has_the_gap_as_its_error() -> None:
    # All residuals have one sign together, so smoothing changes nothing.
    p, y = two(np.full(10, 0.9), np.array([1.0] * 7 + [0.0] * 3))
    assert smooth_calibration_error(p, y) == pytest.approx(0.2, abs=5e-4)


def test_a_gap_at_the_edge_is_reflected_not_lost() -> None:
    p, y = two(np.full(10, 1.0), np.array([1.0] * 7 + [0.0] * 3))
    assert smooth_calibration_error(p, y) == pytest.approx(0.3, abs=5e-4)


def test_perfect_answers_have_no_error() -> None:
    assert smooth_calibration_error(*two(np.ones(5), np.ones(5))) < 5e-4


def test_it_does_not_jump_where_bins_do() -> None:
    right = np.array([1.0, 0.0] * 50)
    ends = [np.where(right == 1, 0.6 - s, 0.6 + s) for s in (1e-6, -1e-6)]
    one, other = (smooth_calibration_error(*two(c, right)) for c in ends)
    assert one == pytest.approx(other, abs=1e-4)


def test_it_is_finite_for_every_shape() -> None:
    for p, y in pairs().values():
        assert 0.0 <= smooth_calibration_error(p, y) <= 1.0
