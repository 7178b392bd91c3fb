"""The figures of one model on one set, all at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from posthoc_bhpeft.audit.arrays import Array
from posthoc_bhpeft.audit.metrics.calibration import expected_calibration_error
from posthoc_bhpeft.audit.metrics.proper import accuracy, brier_score, negative_log_likelihood
from posthoc_bhpeft.audit.metrics.selective import errors_after_rejection, risk_coverage


@dataclass(frozen=True)
class Metrics:
    """The figures of one model on one set; smaller is better but for ``accuracy``.

    Attributes:
        rows: number of rows ``N``.
        accuracy: share of right predictions.
        nll: mean negative log likelihood in nats.
        brier: mean squared distance to the one-hot label, 0 to 2.
        ece: expected calibration error, 15 bins of equal width.
        ece_equal_mass: the same with 15 bins of equal mass.
        aurc: area under the risk-coverage curve.
        errors: wrong predictions.
        rejected: rows rejected as least certain.
        errors_left: expected errors among the rows kept.
    """

    rows: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    aurc: float
    errors: int
    rejected: int
    errors_left: float

    def to_dict(self) -> dict[str, float | int]:
        """A plain dictionary, ready for JSON."""
        return asdict(self)


def summary(
    probabilities: Array,
    labels: Array,
    uncertainty: Array | None = None,
    share: float = 0.10,
) -> Metrics:
    """The main figures at once, without intervals; `measure` gives all of them, with intervals.

    Args:
        probabilities: shape ``(N, C)``.
        labels: shape ``(N,)``.
        uncertainty: score to rank rows by for ``aurc`` and ``errors_left``, shape ``(N,)``; None
            is one less the top probability.
        share: part of the rows to reject as least certain.

    Raises:
        ConfigError: if ``share`` is out of range.
        DataError: if the arrays do not fit.
    """
    rejection = errors_after_rejection(probabilities, labels, uncertainty, share)
    return Metrics(
        rows=rejection.kept + rejection.rejected,
        accuracy=accuracy(probabilities, labels),
        nll=negative_log_likelihood(probabilities, labels),
        brier=brier_score(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        ece_equal_mass=expected_calibration_error(probabilities, labels, equal_mass=True),
        aurc=risk_coverage(probabilities, labels, uncertainty).area,
        errors=rejection.errors,
        rejected=rejection.rejected,
        errors_left=rejection.errors_left,
    )
