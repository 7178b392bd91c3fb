"""`LeaveOneOut`: the default, width and temperature from training rows made strange again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.predictive.gradients import LabelGradients
from posthoc_bhpeft.predictive.links import Link, LogOdds, Tempered
from posthoc_bhpeft.selection.evidential import VisiblePrecision
from posthoc_bhpeft.selection.hidden import HiddenRows, share_hidden, with_hidden_tokens
from posthoc_bhpeft.selection.leftout import LeftOutRows, most_modest
from posthoc_bhpeft.selection.rule import (
    LaplaceFit,
    PriorChoice,
    PriorRule,
    spread,
    without_log_odds,
)

GRID = 20
"""Temperatures tried for each factor of e."""

FEWEST = 100
"""With fewer rows none is made surer: a mistake about them would cost more than is to be gained."""


@dataclass(frozen=True)
class LeaveOneOut(PriorRule):
    r"""The default, without a held-out row: too sure is softened, too unsure is sharpened.

    From two more passes over training rows:

    1. The *matched precision* `d_0`, at which the prior predicts label log-odds as large as those
       of the trained network. The posterior's is at most `width * d_0`. It softens where the
       weights leave room for doubt, and little where they do not.
    2. For a network that was trained too long, a wider posterior and a *temperature* above 1: those
       that predict training rows best when part of their tokens is hidden (`HiddenRows`). Of what
       is within a standard error of the best, what changes predictions least.
    3. Where nothing is to be softened, a temperature below 1, for a network that was trained too
       briefly to be as sure as it should be: the one that predicts training rows best, each judged
       by the model without it (`LeftOutRows`); of those within two standard errors of the best,
       the one closest to 1, and none that rows with hidden tokens speak against.

    How much a network owes to a row depends on how it was trained, which its weights do not tell.
    The step that leaves a row out is taken at `step * d_0`, where it is rather too long than too
    short, so that only clear cases are sharpened, and none with fewer than 100 rows. A class with
    few rows has its weights for itself, and none tells what leaving one out does; the temperature
    is at least `sqrt(C / N)`. The most probable class never changes.

    `step`, `width` and `hidden` are measured, not derived: `benchmarks/calibration.py`.

    Batches without an `attention_mask` have no tokens to hide, and the second step is left out. In
    regression there are no log-odds, and with a label at every position of a text leaving one out
    would take a backward pass each: there `VisiblePrecision` is used.

    Args:
        step: Precision of the Newton step, in units of the matched precision.
        width: Highest precision of the posterior, in the same units.
        hidden: Largest share of tokens to hide; 0 leaves the second step out.
        max_rows: Use at most about so many rows, evenly spread over the training data.

    Raises:
        ConfigError: If `hidden` is not from 0 to below 1.
    """

    step: float = 0.75
    width: float = 5.0
    hidden: float = 0.5
    max_rows: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.hidden < 1:
            raise ConfigError(
                f"LeaveOneOut(hidden={self.hidden!r}): the share of tokens to hide is from 0 to "
                "below 1."
            )

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precision, and the temperature of the default link."""
        if without_log_odds(fit.likelihood):
            return VisiblePrecision().choose(fit)
        n_rows = fit.evidence.n_rows
        batches = spread(fit.training, self.max_rows, n_rows)
        parts = list(fit.gradients(batches))
        if not parts:
            raise DataError("LeaveOneOut: no labelled row among the training batches it looked at.")
        rows = LeftOutRows.of(fit.likelihood, LabelGradients.joined(parts), n_rows)
        highest = self.width * rows.matched_precision()
        hidden = self.hidden_rows(fit, batches, highest)
        asked = None if hidden is None else hidden.softening()
        if asked is not None and asked.needed:
            precision, link = asked.width * highest, link_at(asked.temperature)
            reason = asked.describe(precision)
        else:
            coldest = hidden.coldest() if hidden else 0.0
            precision, (link, why) = highest, self.sharpening(rows, n_rows, coldest)
            reason = f"Prior precision {precision:.3g}. {why}"
        return PriorChoice(dict.fromkeys(fit.evidence.spectra, precision), reason, link=link)

    def hidden_rows(self, fit: LaplaceFit, batches: Loader, highest: float) -> HiddenRows | None:
        """The rows with tokens hidden, if there are any to hide."""
        share = share_hidden(self.hidden, fit.evidence.n_rows)
        hidden = with_hidden_tokens(batches, share) if share > 0 else None
        if hidden is None:
            return None
        return HiddenRows.of(fit.likelihood, fit.spectra(hidden, LogOdds()), highest, share)

    def sharpening(self, rows: LeftOutRows, n_rows: int, coldest: float) -> tuple[Link, str]:
        """The default link at a temperature of at most 1, and why that one."""
        if n_rows < FEWEST:
            return LogOdds(), f"Temperature 1: {n_rows} rows are too few to make predictions surer."
        found = self.temperature(rows, n_rows, coldest=coldest)
        return link_at(found.value), found.describe(len(rows.dual.lengths))

    def temperature(
        self, rows: LeftOutRows, n_rows: int, *, coldest: float = 0.0
    ) -> LeftOutTemperature:
        """The temperature closest to 1 that left-out rows do not speak against.

        Args:
            rows: Training rows.
            n_rows: How many there are in the whole data.
            coldest: None below it is tried.
        """
        matched = rows.matched_precision()
        steps = rows.steps(self.step * matched)
        variance = rows.predictive_variance(self.width * matched)
        classes = rows.gradients.outputs.shape[-1]
        tried = [t for t in temperatures(classes, n_rows) if t >= min(coldest, 1.0)]
        losses = torch.stack([rows.losses(t, steps, variance) for t in tried])
        best = most_modest(losses)
        means = losses.mean(1)
        return LeftOutTemperature(tried[best], float(means[0]), float(means[best]))


def link_at(temperature: float) -> Link:
    """The default link at a temperature."""
    return LogOdds() if temperature == 1.0 else Tempered(temperature)


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
