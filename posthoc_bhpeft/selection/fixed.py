"""A precision that is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from posthoc_bhpeft.errors import ConfigError
from posthoc_bhpeft.selection.groups import with_noise
from posthoc_bhpeft.selection.rule import LaplaceFit, PriorChoice, PriorRule


@dataclass(frozen=True)
class FixedPrecision(PriorRule):
    """The same, given precision for every block.

    Args:
        value: In inverse squared units of the weights.
    """

    value: float

    def __post_init__(self) -> None:
        number = isinstance(self.value, (int, float)) and math.isfinite(self.value)
        if not number or self.value <= 0:
            raise ConfigError(
                f"FixedPrecision({self.value!r}): a precision is a finite number above 0."
            )

    def choose(self, fit: LaplaceFit) -> PriorChoice:
        """The given precision; the noise of a Gaussian likelihood is still learnt."""
        precision, noise = with_noise(
            fit.evidence, lambda evidence: dict.fromkeys(evidence.spectra, self.value)
        )
        return PriorChoice(precision, f"Prior precision {self.value:g}, as given.", noise)
