r"""Prediction sets: for each row the classes that are not too strange, instead of one class.

A method gives every class of a row a strangeness; a class is in the set where its strangeness is at
most a threshold found on labelled rows (`posthoc_bhpeft.audit.decisions.conformal`). All methods
here are deterministic: equal probabilities give equal sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_bhpeft.errors import ConfigError


class SetMethod(Protocol):
    """How strange each class of a row would be as its label: `LAC`, `APS`, `RAPS`."""

    def strangeness(self, probabilities: Tensor) -> Tensor:
        """Of probabilities `(N, C)`, float64: `(N, C)`, larger for stranger classes."""
        ...


@dataclass(frozen=True)
class LAC:
    """Strangeness `1 - p_y`: the smallest sets on average (Sadinle, Lei and Wasserman 2019).

    https://arxiv.org/abs/1609.00451. A set is empty where no class is likely enough.
    """

    def strangeness(self, probabilities: Tensor) -> Tensor:
        """`1 - p`, `(N, C)`."""
        return 1.0 - probabilities


@dataclass(frozen=True)
class APS:
    """Strangeness: the mass of the classes before `y`, from the most probable down.

        s(x, y) = sum of p_j over the classes j ranked before y

    Adaptive prediction sets (Romano, Sesia and Candes 2020, https://arxiv.org/abs/2006.02544), with
    their random number fixed at one: the label's own mass never counts. So the most probable class
    has strangeness 0 and no set is empty; where the model is right often enough, sets have one
    class each and cover more than was asked for.
    """

    def strangeness(self, probabilities: Tensor) -> Tensor:
        """Mass of the classes ranked before each, `(N, C)`; equal ones rank by their index."""
        return RAPS(penalty=0.0).strangeness(probabilities)


@dataclass(frozen=True)
class RAPS:
    """`APS` plus a penalty on late ranks, for many classes with long tails.

        s(x, y) = sum of p_j before y + penalty * max(0, rank(y) - free)

    (Angelopoulos, Bates, Malik and Jordan 2021, https://arxiv.org/abs/2009.14193.) Ranks count
    from 1.

    Args:
        penalty: For each rank beyond `free`, 0 or more.
        free: Ranks without a penalty, at least 1.
    """

    penalty: float = 0.05
    free: int = 2

    def __post_init__(self) -> None:
        if not self.penalty >= 0 or self.free < 1:
            raise ConfigError(f"{self!r}: penalty must be 0 or more, and free at least 1.")

    def strangeness(self, probabilities: Tensor) -> Tensor:
        """`(N, C)`; equal probabilities rank by the index of the class."""
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(1).roll(1, dims=1)
        before[:, 0] = 0.0
        ranks = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        late = (ranks - self.free).clamp_min(0).to(ordered)
        return torch.empty_like(ordered).scatter(1, order, before + self.penalty * late)


@dataclass(frozen=True)
class SetRule:
    """A method with the threshold that was found for it.

    Attributes:
        method: Gives the strangeness of each class.
        thresholds: Largest strangeness inside a set: one for all classes, or one a class; infinite
            where a class is always inside.
        promise: What holds, in words.
    """

    method: SetMethod
    thresholds: tuple[float, ...]
    promise: str

    def sets(self, probabilities: Tensor) -> Tensor:
        """Which classes `(N, C)` are in the set of each row.

        Raises:
            ConfigError: If there is one threshold a class, and of other classes.
        """
        classes = probabilities.shape[1]
        if len(self.thresholds) not in (1, classes):
            raise ConfigError(
                f"The sets were made for {len(self.thresholds)} classes, and these predictions "
                f"have {classes}. Make the rule again on predictions of this model."
            )
        limits = torch.tensor(self.thresholds, dtype=torch.float64, device=probabilities.device)
        return self.method.strangeness(probabilities.double()) <= limits
