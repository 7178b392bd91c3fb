"""Rules that look at the evidence alone: no pass over any row."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.evidence import best_precision, best_visible_precision
from posthoc_bhpeft.selection.groups import Grouping, describe, search_groups
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule


@dataclass(frozen=True)
class MarginalLikelihood(PriorRule):
    """Maximise the Laplace evidence: needs no held-out data, and no search.

    It takes the weights for a mode under a zero-mean prior. Where the model is under-trained they
    are none, the precision comes out too low, and predictions too wide; the default rule does not
    use the evidence.

    Args:
        per: Which blocks share a precision.
    """

    per: Grouping = Grouping.MODEL

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precisions of highest evidence (and the noise variance, where learnt)."""
        precision, noise, evidence = search_groups(fit.evidence, self.per, best_precision)
        value = evidence.log_marginal_likelihood(precision)
        reason = (
            f"Prior precision by marginal likelihood, one a {self.per.value}: "
            f"{describe(precision, evidence, self.per)}. Log evidence {value:.1f} nats, "
            f"{sum(evidence.effective_parameters(precision).values()):.0f} effective parameters."
        )
        return PriorChoice(precision, reason, noise)


@dataclass(frozen=True)
class VisiblePrecision(PriorRule):
    """The evidence's fixed point, counting only the weights that the data can see.

    `1 / d = sum_i s_i z_i^2 / sum_i s_i`, `s_i = l_i / (l_i + d)`: the prior variance is the mean
    square of the weights, each counted as far as the data determine it. It is MacKay's fixed point
    without the drift that gradient noise leaves in directions the data cannot see
    (`evidence.best_visible_precision`).

    Args:
        per: Which blocks share a precision.
    """

    per: Grouping = Grouping.MODEL

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precisions at the fixed point."""
        precision, noise, evidence = search_groups(fit.evidence, self.per, best_visible_precision)
        # Rules that go on from here multiply it, so how many weights it leaves is not said yet.
        reason = (
            "Prior precision from the weights that the data can see, one a "
            f"{self.per.value}: {describe(precision, evidence, self.per)}."
        )
        return PriorChoice(precision, reason, noise)
