from __future__ import annotations

import numpy as np
import pytest

from posthoc_bhpeft.audit.metrics import detection
from posthoc_bhpeft.errors import DataError, NonFiniteError
from tests.audit.drawn import Floats

CASES = {
    "apart": (0.0, 2.0, None),
    "mixed": (0.0, 0.3, None),
    "worse than chance": (1.0, 0.0, None),
    "ties": (0.0, 0.7, 0),
}


@pytest.fixture(params=CASES, ids=str)
def scores(request: pytest.FixtureRequest) -> tuple[Floats, Floats]:
    inside, outside, decimals = CASES[request.param]
    rng = np.random.default_rng(0)
    one, two = rng.normal(inside, 1, 130), rng.normal(outside, 1, 70)
    return (one, two) if decimals is None else (one.round(decimals), two.round(decimals))


def test_auroc_is_a_share_of_pairs(scores: tuple[Floats, Floats]) -> None:
    inside, outside = scores
    above = (outside[:, None] > inside[None]) + 0.5 * (outside[:, None] == inside[None])
    assert detection.auroc(inside, outside) == pytest.approx(above.mean(), rel=1e-12)


def test_all_three_agree_with_scikit_learn(scores: tuple[Floats, Floats]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inside, outside = scores
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    both = np.r_[inside, outside]
    assert detection.auroc(inside, outside) == pytest.approx(roc_auc_score(truth, both))
    assert detection.aupr(inside, outside) == pytest.approx(average_precision_score(truth, both))
    # Rows inside are the positives of FPR95, and confidence is minus the score.
    fpr, tpr, _ = roc_curve(1 - truth, -both, drop_intermediate=False)
    assert detection.fpr95(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_fpr95_by_a_plain_loop(scores: tuple[Floats, Floats]) -> None:
    inside, outside = scores
    least = min(t for t in inside if (inside <= t).mean() >= 0.95)
    assert detection.fpr95(inside, outside) == pytest.approx((outside <= least).mean())


def test_one_score_for_all_is_chance() -> None:
    inside, outside = np.ones(30), np.ones(10)
    assert detection.auroc(inside, outside) == 0.5
    assert detection.aupr(inside, outside) == pytest.approx(0.25)
    assert detection.fpr95(inside, outside) == 1.0


def test_apart_is_perfect() -> None:
    inside, outside = np.zeros(30), np.ones(10)
    found = [f(inside, outside) for f in (detection.auroc, detection.aupr, detection.fpr95)]
    assert found == [1.0, 1.0, 0.0]


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(DataError, match="0 rows inside and 3 outside"):
        detection.auroc(np.array([]), np.ones(3))
    with pytest.raises(NonFiniteError, match="1 of 2"):
        detection.fpr95(np.ones(3), np.array([0.1, np.nan]))
