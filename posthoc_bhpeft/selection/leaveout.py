"""`LeaveOneOut`: the default, width and temperature from training rows that are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from posthoc_bhpeft.errors import DataError
from posthoc_bhpeft.likelihood import Gaussian, Tokens
from posthoc_bhpeft.predictive.gradients import LabelGradients
from posthoc_bhpeft.predictive.links import Link, LogOdds, Tempered
from posthoc_bhpeft.selection.evidential import VisiblePrecision
from posthoc_bhpeft.selection.leftout import LeftOutRows, most_modest
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule, spread

GRID = 20
"""Temperatures tried for each factor of e."""


@dataclass(frozen=True)
class LeaveOneOut(PriorRule):
    r"""The default, without a held-out row: too sure is softened, too unsure is sharpened.

    From one more pass over training rows:

    1. The *matched precision* `d_0`, at which the prior predicts label log-odds as large as those
       of the trained network. The posterior's is `width * d_0`. It softens where the weights leave
       room for doubt, and little where they do not.
    2. Under that posterior a *temperature*, 1 or below, for a network that was trained too briefly
       to be as sure as it should be. It is the one that predicts training rows best, each judged
       by the model without it (`LeftOutRows`); of those within two standard errors of the
       best, the one closest to 1.

    How much a network owes to a row depends on how it was trained, which its weights do not tell.
    The step that leaves a row out is taken at `step * d_0`, where it is rather too long than too
    short, so that only clear cases are sharpened. A class with few rows has its weights for itself,
    and none tells what leaving one out does; the temperature is at least `sqrt(C / N)`. The most
    probable class never changes.

    `step` and `width` are measured, not derived: `benchmarks/calibration.py`.

    In regression there are no log-odds, and with a label at every position of a text leaving one
    out would take a backward pass each: there `VisiblePrecision` is used.

    Args:
        step: Precision of the Newton step, in units of the matched precision.
        width: Precision of the posterior, in the same units.
        max_rows: Use at most about so many rows, evenly spread over the training data.
    """

    step: float = 0.75
    width: float = 5.0
    max_rows: int = 1024

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precision, and the temperature of the default link."""
        if isinstance(fit.likelihood, Gaussian | Tokens):
            return VisiblePrecision().choose(fit)
        n_rows = fit.evidence.n_rows
        parts = list(fit.gradients(spread(fit.training, self.max_rows, n_rows)))
        if not parts:
            raise DataError("LeaveOneOut: no labelled row among the training batches it looked at.")
        rows = LeftOutRows.of(fit.likelihood, LabelGradients.joined(parts), n_rows)
        matched = rows.matched_precision()
        precision = self.width * matched
        found = self.temperature(rows, matched, n_rows)
        reason = f"Prior precision {precision:.3g}. {found.describe(len(rows.dual.lengths))}"
        return PriorChoice(
            dict.fromkeys(fit.evidence.spectra, precision), reason, link=found.link()
        )

    def temperature(self, rows: LeftOutRows, matched: float, n_rows: int) -> LeftOutTemperature:
        """The temperature closest to 1 that left-out rows do not speak against."""
        steps = rows.steps(self.step * matched)
        variance = rows.predictive_variance(self.width * matched)
        tried = temperatures(rows.gradients.outputs.shape[-1], n_rows)
        losses = torch.stack([rows.losses(t, steps, variance) for t in tried])
        best = most_modest(losses)
        means = losses.mean(1)
        return LeftOutTemperature(tried[best], float(means[0]), float(means[best]))


@dataclass(frozen=True)
class LeftOutTemperature:
    """A temperature found on left-out rows.

    Attributes:
        value: The temperature.
        before: NLL of the left-out rows at 1, in nats.
        after: At `value`.
    """

    value: float
    before: float
    after: float

    def link(self) -> Link:
        """The link that uses it."""
        return LogOdds() if self.value == 1.0 else Tempered(self.value)

    def describe(self, n_rows: int) -> str:
        """In words."""
        judged = f"{n_rows} training answers, each judged by the model without it,"
        if self.value == 1.0:
            return f"Temperature 1: {judged} ask for no lower one (NLL {self.before:.3f})."
        return (
            f"Temperature {self.value:.2f}: {judged} ask for surer predictions "
            f"(NLL {self.before:.3f} at 1, {self.after:.3f} so)."
        )


def temperatures(classes: int, n_rows: int) -> list[float]:
    """Those to try, from 1 down."""
    coldest = min(math.sqrt(classes / n_rows), 1.0)
    return [math.exp(-k / GRID) for k in range(int(-GRID * math.log(coldest) + 1e-9) + 1)]
