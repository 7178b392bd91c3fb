"""Who an audit compares a posterior with: every rival that starts from the same trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from posthoc_bhpeft.api import BayesianPeft
from posthoc_bhpeft.batches import Loader, device_of
from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.likelihood import Categorical, Gaussian, Likelihood
from posthoc_bhpeft.predictive import Prediction
from posthoc_bhpeft.rivals import (
    Dropout,
    Point,
    Rival,
    Temperature,
    fit_diagonal,
    fit_last_layer,
    fit_temperature,
    load_ensemble,
)


class RivalName(str, Enum):
    """A method to compare with; docs/rivals.md says what each costs and needs."""

    MAP = "map"
    TEMPERATURE = "temperature"
    DROPOUT = "dropout"
    LAST_LAYER = "last-layer"
    DIAGONAL = "diagonal"
    SCALED = "ours-temperature"
    ENSEMBLE = "ensemble"


NEEDS_HELD_OUT = frozenset({RivalName.TEMPERATURE, RivalName.SCALED})
NEEDS_TRAINING = frozenset({RivalName.LAST_LAYER, RivalName.DIAGONAL})
NEEDS_CLASSES = NEEDS_HELD_OUT
NEEDS_POSTERIOR = frozenset({RivalName.SCALED})
REMEDIES = {
    RivalName.TEMPERATURE: "Pass Contest(..., held_out=loader) (--held-out SPLIT).",
    RivalName.SCALED: "It is a posterior (bayesianize, bhpeft fit) at a temperature fitted on "
    "Contest(..., held_out=loader) (--held-out SPLIT).",
    RivalName.LAST_LAYER: "Pass Contest(..., training=loader).",
    RivalName.DIAGONAL: "Pass Contest(..., training=loader).",
    RivalName.ENSEMBLE: "Pass Contest(..., ensemble=[folders]) (--ensemble FOLDER).",
}
"""Where to get what a rival needs."""


def rival_name(name: RivalName | str) -> RivalName:
    """A rival by its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    try:
        return RivalName(name)
    except ValueError:
        known = ", ".join(one.value for one in RivalName)
        raise ConfigError(f"There is no rival {str(name)!r}. Known: {known}.") from None


def check_for_numbers(names: Iterable[RivalName]) -> None:
    """Raise where a rival is none for a regression.

    Raises:
        ConfigError: With those that are.
    """
    if wrong := [name.value for name in names if name in NEEDS_CLASSES]:
        able = ", ".join(name.value for name in RivalName if name not in NEEDS_CLASSES)
        raise ConfigError(
            f"The rival {wrong[0]!r} divides the logits of classes, and a regression has none. "
            f"Known for a regression: {able}."
        )


@dataclass(frozen=True)
class Scaled:
    """Predictions at a fitted temperature.

    Attributes:
        name: For tables.
        source: Makes the predictions: a rival, or a `BayesianPeft`.
        temperature: Fitted on held-out predictions of the same source.
    """

    name: str
    source: Rival | BayesianPeft
    temperature: Temperature

    def predict_loader(self, loader: Iterable[Any], *, progress: bool = True) -> Prediction:
        """See `Rival.predict_loader`."""
        return self.temperature.apply(self.source.predict_loader(loader, progress=progress))


@dataclass(frozen=True)
class Contest:
    """What rivals may be made of.

    Attributes:
        subject: The posterior under audit, or a trained model without one; of a regression
            `fit_noise(model, loader)`, which knows its noise.
        held_out: Labelled rows for a temperature, which must not be those of the audit.
        training: The rows the model was trained on.
        ensemble: Checkpoint folders of further members, trained from other seeds.
        progress: Show progress bars.
    """

    subject: BayesianPeft | Point | nn.Module
    held_out: Loader | None = None
    training: Loader | None = None
    ensemble: Sequence[str | Path] = ()
    progress: bool = True

    @property
    def model(self) -> nn.Module:
        """The trained model."""
        return self.subject if isinstance(self.subject, nn.Module) else self.subject.model

    @property
    def likelihood(self) -> Likelihood:
        """Of the labels given its outputs."""
        ours = self.subject
        return Categorical() if isinstance(ours, nn.Module) else ours.likelihood

    def missing(self, name: RivalName) -> str:
        """What a rival would need that is not there, in words; empty if nothing."""
        if name in NEEDS_HELD_OUT and self.held_out is None:
            return "held-out labelled rows beside those of the audit"
        if name in NEEDS_TRAINING and self.training is None:
            return "the rows the model was trained on"
        if name in NEEDS_POSTERIOR and not isinstance(self.subject, BayesianPeft):
            return "a posterior"
        if name is RivalName.ENSEMBLE and not self.ensemble:
            return "checkpoints of further members, trained from other seeds"
        return ""

    def rivals(self, names: Iterable[RivalName | str]) -> dict[str, Rival]:
        """The rivals asked for, fitted and ready, by the name for tables.

        Raises:
            ConfigError: If there is no such rival, it needs what is not there or is not for
                regressions, or the model has no dropout.
        """
        wanted = [rival_name(name) for name in dict.fromkeys(names)]
        if isinstance(self.likelihood, Gaussian):
            check_for_numbers(wanted)
        for name in wanted:
            if what := self.missing(name):
                raise ConfigError(f"The rival {name.value!r} needs {what}. {REMEDIES[name]}")
        made = [self.make(name) for name in wanted]
        return {rival.name: rival for rival in made}

    def make(self, name: RivalName) -> Rival:
        """One rival, fitted."""
        point = Point(self.model, self.likelihood)
        makers: Mapping[RivalName, Callable[[], Rival]] = {
            RivalName.MAP: lambda: point,
            RivalName.TEMPERATURE: lambda: self.scaled("temperature", point),
            RivalName.SCALED: lambda: self.scaled("ours + temperature", self.subject),
            RivalName.DROPOUT: lambda: Dropout(self.model, self.likelihood),
            RivalName.LAST_LAYER: lambda: self.fitted(fit_last_layer),
            RivalName.DIAGONAL: lambda: self.fitted(fit_diagonal),
            RivalName.ENSEMBLE: lambda: load_ensemble(
                self.ensemble,
                likelihood=self.likelihood,
                first=self.model,
                device=device_of(self.model),
            ),
        }
        return makers[name]()

    def scaled(self, name: str, source: Any) -> Scaled:
        """A source at the temperature that fits the held-out rows best."""
        assert self.held_out is not None
        held_out = source.predict_loader(self.held_out, progress=self.progress)
        temperature = fit_temperature(held_out)
        said = f"{name} ({temperature.rows} held-out rows)"
        return Scaled(said, source, temperature)

    def fitted(self, fit: Callable[..., Rival]) -> Rival:
        """One of laplace-torch's posteriors, over the training rows."""
        return fit(self.model, self.training, likelihood=self.likelihood, progress=self.progress)
