from __future__ import annotations

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics import proper
from tests.audit.drawn import Pair, pairs


@pytest.fixture(params=pairs(), ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pairs()[request.param]


def test_macro_f1_is_scikit_learns(pair: Pair) -> None:
    from sklearn.metrics import f1_score

    p, y = pair
    expected = f1_score(y, p.argmax(1), average="macro", zero_division=0)
    assert proper.macro_f1(p, y) == pytest.approx(expected, rel=1e-12)


def test_a_class_that_never_occurs_is_left_out_of_macro_f1() -> None:
    p = np.array([[0.8, 0.1, 0.1, 0.0], [0.1, 0.8, 0.1, 0.0], [0.8, 0.1, 0.1, 0.0]])
    # Class 0: 2 * 1 / (2 + 1). Class 1 is predicted and never true, class 2 the other way round.
    assert proper.macro_f1(p, np.array([0, 0, 2])) == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert proper.macro_f1(p, np.array([0, 1, 0])) == 1.0


def test_parts_of_brier_add_up_and_are_not_negative(pair: Pair) -> None:
    found = proper.brier_parts(*pair)
    assert found.score == pytest.approx(proper.brier_score(*pair), rel=1e-12)
    assert found.calibration >= 0
    assert found.refinement >= 0


def test_parts_of_brier_by_a_plain_loop(pair: Pair) -> None:
    p, y = pair
    residual = p - np.eye(p.shape[1])[y]
    calibration = refinement = 0.0
    for b in range(15):
        low = -1.0 if b == 0 else b / 15
        inside = residual[(p > low) & (p <= (b + 1) / 15)]
        if inside.size:
            calibration += inside.size * inside.mean() ** 2 / len(y)
            refinement += ((inside - inside.mean()) ** 2).sum() / len(y)
    found = proper.brier_parts(p, y)
    assert found.calibration == pytest.approx(calibration, rel=1e-10)
    assert found.refinement == pytest.approx(refinement, rel=1e-10)


def test_frequencies_as_probabilities_are_calibrated() -> None:
    y = np.array([0] * 7 + [1] * 3)
    found = proper.brier_parts(np.tile([0.7, 0.3], (10, 1)), y)
    assert found.calibration == pytest.approx(0.0, abs=1e-15)
    assert found.refinement == pytest.approx(2 * 0.7 * 0.3)


def test_shifted_frequencies_cost_the_square_of_the_shift() -> None:
    y = np.array([0] * 7 + [1] * 3)
    found = proper.brier_parts(np.tile([0.9, 0.1], (10, 1)), y)
    assert found.calibration == pytest.approx(2 * 0.2**2)
    assert found.refinement == pytest.approx(2 * 0.7 * 0.3)
