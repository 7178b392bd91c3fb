r"""Training rows with part of their tokens hidden: stand-ins for rows that were not trained on.

A network that has learnt its training rows by heart says nothing on them of how sure it may be of
others: no residual is left that leaving a row out could show. With part of a text hidden from
attention, what was learnt by heart fails and what was learnt in general holds. The same is done
in training as word dropout (Iyyer et al. 2015, https://aclanthology.org/P15-1162); here it judges.

What a text loses with its tokens is no measure of overfitting by itself, so the share hidden falls
with the number of rows, as the gap between training rows and others does: `min(most, sqrt(200/N))`.
Measured in `benchmarks/calibration.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_bhpeft.batches import Loader, split_batch
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.predictive.links import Tempered
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum
from posthoc_bhpeft.selection.adjustment import Adjustment
from posthoc_bhpeft.selection.heldout import predictive_losses
from posthoc_bhpeft.selection.leftout import most_modest
from posthoc_bhpeft.shards import Shard, processes_of

MASK = "attention_mask"
ROWS_AT_ONE = 200
"""With so many rows every token would be hidden, were it not for `most`."""

WIDER = tuple(2 ** (-k / 2) for k in range(9))
NARROWER = tuple(2.0**k for k in range(5))
"""Precisions tried, in units of the one given: to soften, and to sharpen."""

WARMER = tuple(math.exp(k / 10) for k in range(11))
COLDER = tuple(math.exp(-3 * k / 20) for k in range(21))
"""Temperatures tried."""


@dataclass(frozen=True)
class HiddenTokens:
    """Batches in which part of every text is hidden; the same part each time.

    Attributes:
        batches: Each with an `attention_mask`.
        share: Of the tokens; the first and the last of a text always stay.
        seed: Of the choice.
    """

    batches: Loader
    share: float
    seed: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed)
        for batch in self.batches:
            inputs, labels = split_batch(batch)
            assert isinstance(inputs, Mapping)
            yield {**inputs, MASK: hide(inputs[MASK], self.share, generator)}, labels


def hide(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """An attention mask `(..., T)` with a share of its ones at random set to zero.

    The first and the last one of each text stay: models read their answer there.
    """
    ones = mask.bool()
    drawn = torch.rand(mask.shape, generator=generator).to(mask.device) < share
    positions = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)
    first = positions.masked_fill(~ones, mask.shape[-1]).amin(-1, keepdim=True)
    last = positions.masked_fill(~ones, -1).amax(-1, keepdim=True)
    inner = (positions > first) & (positions < last)
    return mask.masked_fill(drawn & inner, 0)


def with_hidden_tokens(batches: Loader, share: float) -> Loader | None:
    """The batches with tokens hidden, or `None` where they have no attention mask of integers."""
    inner = batches.batches if isinstance(batches, Shard) else batches
    able = all(has_mask(batch) for batch in inner)
    # Processes that share the data go on together or not at all.
    if not len(inner) and not isinstance(batches, Shard):
        return None
    if not all(processes_of(batches).gather(able)):
        return None
    hidden = HiddenTokens(inner, share)
    return Shard(hidden) if isinstance(batches, Shard) else hidden


def has_mask(batch: Any) -> bool:
    """Whether a batch has an attention mask with a number for every token."""
    inputs, _ = split_batch(batch)
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    return isinstance(mask, Tensor) and mask.dim() > 1 and not mask.is_floating_point()


def share_hidden(most: float, n_rows: int) -> float:
    """`min(most, sqrt(200 / N))`."""
    return min(most, math.sqrt(ROWS_AT_ONE / n_rows))


def told(n_rows: int, share: float) -> str:
    """So many rows with such a share of their tokens hidden; for people."""
    return f"{n_rows} training rows with {share:.0%} of their tokens hidden"


@dataclass(frozen=True)
class HiddenRows:
    """NLL of `R` rows with tokens hidden, under each candidate; of words, a text's mean.

    Attributes:
        softer: At `WIDER` and `WARMER`, `(W, T, R)`, in nats.
        surer: At `NARROWER` and `COLDER`, `(W, T, R)`.
        share: Of the tokens that is hidden.
    """

    softer: Tensor
    surer: Tensor
    share: float

    @classmethod
    def of(
        cls,
        likelihood: Likelihood,
        spectra: Iterable[CovarianceSpectrum],
        precision: float,
        share: float,
    ) -> HiddenRows:
        """From one pass over the rows; `precision` is the unit of the candidates."""
        softer, surer = [], []
        for spectrum in spectra:
            softer.append(losses_at(likelihood, spectrum, precision, WIDER, WARMER))
            surer.append(losses_at(likelihood, spectrum, precision, NARROWER, COLDER))
        return cls(torch.cat(softer, -1), torch.cat(surer, -1), share)

    def softening(self) -> Adjustment:
        """The width, and at that width the temperature of at least 1, that suit these rows best.

        Of those within a standard error of the best, the one that changes predictions least.
        """
        width = most_modest(self.softer[:, 0], errors=1)
        warmer = most_modest(self.softer[width], errors=1)
        return self.asked(self.softer, (width, warmer), WIDER[width], WARMER[warmer])

    def sharpening(self, coldest: float, errors: float) -> Adjustment:
        """The temperature of at most 1, and a precision to go with it, that suit these rows best.

        Outputs that are divided by `T` have `1 / T^2` the variance, which may be more than there is
        reason for: so the two are chosen together. Then the temperature returns as close to 1 as
        the standard errors allow, and the precision to the one given if that is 1.

        Args:
            coldest: No lower temperature.
            errors: How many standard errors of the mean a candidate may be from the best.
        """
        tried = self.surer[:, : sum(t >= min(coldest, 1.0) for t in COLDER)]
        width = int(tried.mean(-1).amin(1).argmin())
        colder = most_modest(tried[width], errors)
        width = width if colder else 0
        return self.asked(self.surer, (width, colder), NARROWER[width], COLDER[colder])

    def narrowing(self, errors: float) -> Adjustment:
        """The higher precision, at a temperature of 1, that suits best, if the one given does not.

        Rows that were trained on ask for surer predictions than others do, so it must be clear.

        Args:
            errors: By how many standard errors of the mean the one given must be worse.
        """
        tried = self.surer[:, 0]
        width = int(tried.mean(-1).argmin()) if most_modest(tried, errors) else 0
        return self.asked(self.surer, (width, 0), NARROWER[width], 1.0)

    def asked(
        self, losses: Tensor, place: tuple[int, int], width: float, temperature: float
    ) -> Adjustment:
        """A candidate beside the first, which changes nothing."""
        means = losses.mean(-1)
        judged = told(losses.shape[-1], self.share)
        before, after = float(means[0, 0]), float(means[place])
        return Adjustment.told(judged, width, temperature, before, after)


def losses_at(
    likelihood: Likelihood,
    spectrum: CovarianceSpectrum,
    precision: float,
    widths: Sequence[float],
    temperatures: Sequence[float],
) -> Tensor:
    """NLL of a batch's rows at each width and temperature, `(W, T, R)`, in nats, on the CPU."""
    outputs, labels = spectrum.outputs, spectrum.labels
    covariances = [spectrum.at(precision * width) for width in widths]
    losses = [
        predictive_losses(likelihood, Tempered(t), outputs, covariance, labels)
        for covariance in covariances
        for t in temperatures
    ]
    found = spectrum.by_text(torch.stack(losses).cpu())
    return found.reshape(len(widths), len(temperatures), -1)
