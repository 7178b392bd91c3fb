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
from posthoc_bhpeft.selection.heldout import predictive_losses
from posthoc_bhpeft.selection.leftout import most_modest
from posthoc_bhpeft.shards import Shard, processes_of

MASK = "attention_mask"
ROWS_AT_ONE = 200
"""With so many rows every token would be hidden, were it not for `most`."""

WIDTHS = tuple(2 ** (-k / 2) for k in range(9))
"""Precisions tried, in units of the highest."""

WARMER = tuple(math.exp(k / 10) for k in range(11))
COLDER = tuple(math.exp(-k / 10) for k in range(21))
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


@dataclass(frozen=True)
class HiddenRows:
    """NLL of `R` rows with tokens hidden, under each candidate.

    Attributes:
        softer: At `WIDTHS` and `WARMER`, `(W, T, R)`, in nats.
        surer: At the highest precision and `COLDER`, `(T, R)`.
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
        """From one pass over the rows; `precision` is the highest candidate."""
        softer, surer = [], []
        for spectrum in spectra:
            rows = [losses_at(likelihood, spectrum, precision * width, WARMER) for width in WIDTHS]
            softer.append(torch.stack(rows))
            surer.append(losses_at(likelihood, spectrum, precision, COLDER))
        return cls(torch.cat(softer, -1), torch.cat(surer, -1), share)

    def softening(self) -> Softening:
        """The width, and at that width the temperature, that suit these rows best.

        Of those within a standard error of the best, the one that changes predictions least.
        """
        width = most_modest(self.softer[:, 0], errors=1)
        warmer = most_modest(self.softer[width], errors=1)
        means = self.softer.mean(-1)
        return Softening(
            WIDTHS[width],
            WARMER[warmer],
            float(means[0, 0]),
            float(means[width, warmer]),
            self.softer.shape[-1],
            self.share,
        )

    def coldest(self) -> float:
        """The temperature of at most 1 that suits these rows best."""
        return COLDER[int(self.surer.mean(-1).argmin())]


@dataclass(frozen=True)
class Softening:
    """What rows with hidden tokens ask for.

    Attributes:
        width: Precision, in units of the highest candidate; at most 1.
        temperature: At least 1.
        before: NLL of these rows at the highest precision and temperature 1, in nats.
        after: At the chosen ones.
        n_rows: How many rows.
        share: Of their tokens that is hidden.
    """

    width: float
    temperature: float
    before: float
    after: float
    n_rows: int
    share: float

    @property
    def needed(self) -> bool:
        """Whether anything changes."""
        return self.width < 1 or self.temperature > 1

    def describe(self, precision: float) -> str:
        """In words, of the precision that it came to."""
        return (
            f"Prior precision {precision:.3g}, temperature {self.temperature:.2f}: "
            f"{self.n_rows} training rows with {self.share:.0%} of their tokens hidden ask for "
            f"less sure predictions (NLL {self.before:.3f} without, {self.after:.3f} so)."
        )


def losses_at(
    likelihood: Likelihood,
    spectrum: CovarianceSpectrum,
    precision: float,
    temperatures: Sequence[float],
) -> Tensor:
    """NLL of a batch's rows at each temperature, `(T, N)`, in nats, on the CPU."""
    covariance = spectrum.at(precision)
    return torch.stack(
        [
            predictive_losses(
                likelihood, Tempered(t), spectrum.outputs, covariance, spectrum.labels
            ).cpu()
            for t in temperatures
        ]
    )
