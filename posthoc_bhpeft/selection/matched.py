"""The matched precision and its guard."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_bhpeft.predictive.links import LogOdds
from posthoc_bhpeft.selection.evidential import VisiblePrecision
from posthoc_bhpeft.selection.jackknife import guarded_precision, matched_precision
from posthoc_bhpeft.selection.rule import (
    LaplaceFit,
    PriorChoice,
    PriorRule,
    spread,
    without_log_odds,
)


@dataclass(frozen=True)
class MatchedPrecision(PriorRule):
    """A prior whose log-odds are as large as the network's, and no wider than safe.

    Two steps from one more pass over training rows; neither needs a held-out row:

    1. The *matched precision*, at which the prior predicts log-odds of the predicted class as large
       as those of the trained network (`jackknife.matched_precision`).
    2. The *jackknife guard*: the precision is raised as far as the training rows ask, each judged
       by the model without it (`jackknife.guarded_precision`). It can only move predictions
       towards those of the trained model; it is what keeps an accurate network from being made
       unsure of itself.

    In regression there are no log-odds, and with a label at every position of a text they would
    take a backward pass each: there `VisiblePrecision` is used.

    Args:
        max_rows: Use at most about so many rows, evenly spread over the training data.
    """

    max_rows: int = 2048

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The matched precision, raised by the guard."""
        if without_log_odds(fit.likelihood):
            return VisiblePrecision().choose(fit)
        rows = spread(fit.training, self.max_rows, fit.evidence.n_rows)
        spectra = list(fit.spectra(rows, LogOdds()))
        matched = matched_precision(fit.likelihood, spectra)
        chosen = guarded_precision(fit.likelihood, spectra, matched)
        reason = (
            f"Prior precision {matched:.3g}, at which the prior's log-odds are as large as the "
            "network's on training rows."
        )
        if chosen > matched:
            reason += (
                f" Raised to {chosen:.3g}: training rows, each judged without itself, were "
                "predicted better by a surer model."
            )
        if chosen > 50 * matched:
            reason += (
                " That leaves the trained model's predictions nearly as they were, and epistemic "
                "uncertainty small; HeldOut(loader) can tell from held-out rows whether they are "
                "too sure."
            )
        return PriorChoice(dict.fromkeys(fit.evidence.spectra, chosen), reason)
