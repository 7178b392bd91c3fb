"""An earlier posterior as the prior."""

from __future__ import annotations

from dataclasses import dataclass, field

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.prior import GaussianPrior
from posthoc_bhpeft.selection.evidential import MarginalLikelihood, VisiblePrecision
from posthoc_bhpeft.selection.leaveout import LeaveOneOut
from posthoc_bhpeft.selection.matched import MatchedPrecision
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule, without_log_odds


@dataclass(frozen=True)
class Chained(PriorRule):
    """An earlier posterior as the prior, its isotropic floor chosen anew by a rule.

    The curvature that the prior carries is kept as it is. The floor is what decides how wide the
    posterior is where no data has been; it was chosen on the earlier data, and `floor` chooses it
    again on this.

    Args:
        prior: From `bayes.as_prior()`.
        floor: A rule that judges predictions. Rules of the evidence do not apply, nor does
            `LeaveOneOut`: they know of isotropic priors alone.

    Raises:
        ConfigError: If `floor` knows of isotropic priors alone.
    """

    prior: GaussianPrior
    floor: PriorRule = field(default_factory=MatchedPrecision)

    def __post_init__(self) -> None:
        if isinstance(self.floor, MarginalLikelihood | VisiblePrecision | LeaveOneOut):
            raise ConfigError(
                f"Chained(floor={self.floor!r}): that rule is not worked out for a floor beside "
                "carried curvature. Supported: MatchedPrecision(), HeldOut(loader), "
                "FixedPrecision(value), or the prior itself, prior=prior, which keeps its floor."
            )

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The floor; `bayesianize` puts it under the carried curvature."""
        if without_log_odds(fit.likelihood) and isinstance(self.floor, MatchedPrecision):
            # There that rule falls back on the evidence, which knows of isotropic priors alone.
            return PriorChoice(self.prior.precision, "Its floor is kept.")
        return self.floor.choose(fit)
