"""`LeaveOneOut`: the default, width and temperature from training rows made strange again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from posthoc_bhpeft.batches import Loader
from posthoc_bhpeft.errors import ConfigError, DataError
from posthoc_bhpeft.likelihood import Gaussian, Likelihood
from posthoc_bhpeft.predictive.gradients import LabelGradients
from posthoc_bhpeft.predictive.links import LogOdds, Tempered
from posthoc_bhpeft.predictive.spectrum import POSITIONS
from posthoc_bhpeft.selection.adjustment import Adjustment
from posthoc_bhpeft.selection.evidential import VisiblePrecision
from posthoc_bhpeft.selection.hidden import HiddenRows, share_hidden, with_hidden_tokens
from posthoc_bhpeft.selection.leftout import LeftOutRows, answers_of, most_modest
from posthoc_bhpeft.selection.narrowing import narrowed
from posthoc_bhpeft.selection.positions import adjusted, asked, tags_words
from posthoc_bhpeft.selection.rule import (
    LaplaceFit,
    PriorChoice,
    PriorRule,
    spread,
    stride,
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
       is within a standard error of the best, what changes predictions least. With several labels
       a row a network that knows little but their frequencies is not softened.
    3. Where nothing is to be softened, a temperature below 1, for a network that was trained too
       briefly to be as sure as it should be, and a narrower posterior to go with it: again those
       that predict rows with hidden tokens best. Rows that are each judged by the model without
       them (`LeftOutRows`) say how clear the case is: where they ask for surer predictions too, the
       temperature closest to 1 within one standard error of the best is taken, else within two.
       It is at least `C / (N - C)`, as a class with few rows has its weights for itself.

    How much a network owes to a row depends on how it was trained, which its weights do not tell.
    The step that leaves a row out is taken at `step * d_0`, where it is rather too long than too
    short, so that only clear cases count. With fewer than 100 rows none is made surer. The most
    probable class never changes.

    `step`, `width` and `hidden` are measured, not derived: `benchmarks/calibration.py`, for words
    `benchmarks/words.py`.

    Batches without an `attention_mask` have no tokens to hide: there the temperature below 1 that
    left-out rows ask for is taken, of those within two standard errors of the best the one closest
    to 1, at least `sqrt(C / N)`. In regression there are no log-odds, and with a label at every
    position of a text leaving one out would take a backward pass each: there `VisiblePrecision` is
    used. In regression it is a higher one where rows with hidden tokens see no reason for so much
    doubt. With a label at every word it takes the place of `width * d_0` in steps 2 and 3, and four
    words of each text that are not hidden themselves stand for all, a text counting once; of
    temperatures below 1 the one closest to 1 within two standard errors is taken, and at 1 a
    narrower posterior where the one of `VisiblePrecision` is worse by more. The next token of a
    text is another with its context hidden, so with `Tokens(shift=True)`, and with more than 256
    outputs, which are those of a vocabulary, `VisiblePrecision` stays as it is.

    Args:
        step: Precision of the Newton step, in units of the matched precision.
        width: Highest precision of the posterior, in the same units.
        hidden: Largest share of tokens to hide; 0 hides none.
        max_rows: Use at most about so many rows, evenly spread over the training data; with a
            label at every word a fourth as many texts.
        max_answers: Of several labels a row, leave out so many answers, as many of each row.

    Raises:
        ConfigError: If `hidden` is not from 0 to below 1.
    """

    step: float = 0.75
    width: float = 5.0
    hidden: float = 0.5
    max_rows: int = 1024
    max_answers: int = 2048

    def __post_init__(self) -> None:
        if not 0 <= self.hidden < 1:
            raise ConfigError(
                f"LeaveOneOut(hidden={self.hidden!r}): the share of tokens to hide is from 0 to "
                "below 1."
            )

    def read_rows(self, likelihood: Likelihood) -> int:
        """At most about so many; of texts with a label at every word some words stand for all."""
        return self.max_rows // POSITIONS if likelihood.positions else self.max_rows

    def answers_a_row(self, likelihood: Likelihood, n_outputs: int, n_rows: int) -> int:
        """How many of a row's answers are left out, where so many rows are read."""
        return min(answers_of(likelihood, n_outputs), max(self.max_answers // n_rows, 1))

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The precision, and the temperature of the default link."""
        n_rows = fit.evidence.n_rows
        batches = spread(fit.training, self.read_rows(fit.likelihood), n_rows)
        if tags_words(fit.likelihood, fit.evidence.n_outputs):
            return self.of_words(fit, batches)
        if without_log_odds(fit.likelihood):
            return self.visible(fit, batches)
        rows = self.left_out_rows(fit, batches)
        highest = self.width * rows.matched_precision()
        hidden = self.hidden_rows(fit, batches, highest)
        found = self.adjustment(rows, n_rows, hidden)
        return PriorChoice(
            dict.fromkeys(fit.evidence.spectra, found.width * highest),
            f"Prior precision {found.width * highest:.3g}, {found.describe()}",
            link=LogOdds() if found.temperature == 1 else Tempered(found.temperature),
        )

    def left_out_rows(self, fit: LaplaceFit, batches: Loader) -> LeftOutRows:
        """The rows of some batches, of several labels a row some of these."""
        n_rows = fit.evidence.n_rows
        # As many answers of a row in every process, whatever its part of the batches.
        read = -(-n_rows // stride(self.max_rows, n_rows))
        each = self.answers_a_row(fit.likelihood, fit.evidence.n_outputs, read)
        found = LabelGradients.joined(fit.gradients(batches, each), read * each)
        if found is None:
            raise DataError("LeaveOneOut: no labelled row among the training batches it looked at.")
        return LeftOutRows.of(fit.likelihood, found, n_rows)

    def adjustment(self, rows: LeftOutRows, n_rows: int, hidden: HiddenRows | None) -> Adjustment:
        """What rows with hidden tokens ask for; without any, what left-out rows do."""
        softer = hidden.softening() if hidden and not rows.softens_to_guessing() else None
        if softer and softer.needed:
            return softer
        if n_rows < FEWEST:
            return Adjustment(1.0, 1.0, f"{n_rows} rows are too few to make predictions surer.")
        left = self.sharpening(rows, n_rows)
        if hidden is None:
            return left
        coldest = coldest_of(rows.gradients.outputs.shape[-1], n_rows)
        return hidden.sharpening(coldest, errors=1 if left.needed else 2)

    def hidden_rows(self, fit: LaplaceFit, batches: Loader, highest: float) -> HiddenRows | None:
        """The rows with tokens hidden, if there are any to hide."""
        hidden, share = self.hiding(fit, batches)
        if hidden is None:
            return None
        return HiddenRows.of(fit.likelihood, fit.spectra(hidden, LogOdds()), highest, share)

    def hiding(self, fit: LaplaceFit, batches: Loader) -> tuple[Loader | None, float]:
        """The batches with tokens hidden, `None` if there are none to hide, and the share."""
        share = share_hidden(self.hidden, fit.evidence.n_rows)
        return with_hidden_tokens(batches, share) if share > 0 else None, share

    def of_words(self, fit: LaplaceFit, batches: Loader) -> PriorChoice:
        """`VisiblePrecision`, at the width and temperature that words of hidden texts ask for."""
        choice = VisiblePrecision().choose(fit)
        hidden, share = self.hiding(fit, batches)
        spectra = [] if hidden is None else list(fit.spectra(hidden, LogOdds()))
        if not spectra:
            return choice
        [precision] = set(choice.precision.values())
        rows = HiddenRows.of(fit.likelihood, spectra, precision, share)
        classes, n_texts = fit.evidence.n_outputs, fit.evidence.n_rows
        coldest = coldest_of(classes, n_texts) if n_texts >= FEWEST else 1.0
        return adjusted(choice, asked(rows, coldest))

    def visible(self, fit: LaplaceFit, batches: Loader) -> PriorChoice:
        """`VisiblePrecision`; in regression narrower, where rows with tokens hidden ask for it."""
        choice = VisiblePrecision().choose(fit)
        if not isinstance(fit.likelihood, Gaussian):
            return choice
        hidden, share = self.hiding(fit, batches)
        if hidden is None:
            return choice
        return narrowed(choice, fit.likelihood, fit.spectra(hidden, LogOdds()), share)

    def sharpening(self, rows: LeftOutRows, n_rows: int) -> Adjustment:
        """The temperature closest to 1 that left-out rows do not speak against.

        Args:
            rows: Training rows.
            n_rows: How many there are in the whole data.
        """
        matched = rows.matched_precision()
        steps = rows.steps(self.step * matched)
        variance = rows.predictive_variance(self.width * matched)
        tried = temperatures(rows.gradients.outputs.shape[-1], n_rows)
        losses = torch.stack([rows.losses(t, steps, variance) for t in tried])
        best = most_modest(losses)
        means = losses.mean(1)
        judged = f"{losses.shape[1]} training answers, each judged by the model without it,"
        return Adjustment.told(judged, 1.0, tried[best], float(means[0]), float(means[best]))


def temperatures(classes: int, n_rows: int) -> list[float]:
    """Those to try, from 1 down."""
    coldest = min(math.sqrt(classes / n_rows), 1.0)
    return [math.exp(-k / GRID) for k in range(int(-GRID * math.log(coldest) + 1e-9) + 1)]


def coldest_of(classes: int, n_rows: int) -> float:
    """`C / (N - C)`: one over the rows of a class but one; 1 where that is less than one row."""
    return classes / max(n_rows - classes, classes)
