"""`Passes`: what a prior rule may read off the data, where several processes share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from posthoc_bhpeft.batches import Loader, device_of
from posthoc_bhpeft.blocks import Block, Engine
from posthoc_bhpeft.distributed import Processes
from posthoc_bhpeft.likelihood import Likelihood
from posthoc_bhpeft.linalg import Eigenbasis
from posthoc_bhpeft.predictive.gradients import LabelGradients, label_gradients
from posthoc_bhpeft.predictive.links import Link
from posthoc_bhpeft.predictive.spectrum import CovarianceSpectrum, covariance_spectra
from posthoc_bhpeft.progress import track
from posthoc_bhpeft.shards import own_part, processes_of


@dataclass(frozen=True)
class Passes:
    """Passes over data with a fitted model.

    Of a divided loader each process makes its own part of the passes and gets what all made, batch
    by batch, so that every rule sees the whole data and all processes choose the same.

    Attributes:
        model: Unchanged.
        blocks: From `discover`.
        bases: Eigenbasis of each block's curvature.
        likelihood: Of the labels given outputs.
        engine: Makes the per-sample gradients.
        progress: Show a progress bar, in the first process.
        opened: Passes that were begun, to be entered around the rule that makes them: what is left
            of them then ends there, and the model is as it was, whatever the rule raises.
    """

    model: nn.Module
    blocks: tuple[Block, ...]
    bases: Mapping[str, Eigenbasis]
    likelihood: Likelihood
    engine: Engine
    progress: bool
    opened: ExitStack = field(default_factory=ExitStack, repr=False)

    def spectra(self, batches: Loader, link: Link) -> Iterator[CovarianceSpectrum]:
        """Covariance spectra of batches, as a link needs them."""
        shown, processes = self.own(batches)
        made = covariance_spectra(
            self.model,
            self.blocks,
            self.bases,
            self.likelihood,
            shown,
            link=link,
            engine=self.engine,
        )
        own = self.opened.enter_context(closing(made))
        device = device_of(self.model)
        for spectrum in processes.shared(own, lambda one: one.to("cpu")):
            yield spectrum.to(device)

    def gradients(self, batches: Loader, n_answers: int) -> Iterator[LabelGradients]:
        """Gradients of the label log-odds of batches, so many answers a row, on the CPU."""
        shown, processes = self.own(batches)
        made = label_gradients(
            self.model,
            self.blocks,
            self.bases,
            self.likelihood,
            shown,
            n_answers=n_answers,
            engine=self.engine,
        )
        return processes.shared(self.opened.enter_context(closing(made)))

    def own(self, batches: Loader) -> tuple[Iterable[Any], Processes]:
        """This process's part of the batches, with a progress bar, and those that share them."""
        part = own_part(batches)
        processes = processes_of(part)
        return track(part, "Prior", len(part), self.progress and processes.first), processes
