"""Gates: conditions on an audit's figures that stop a pipeline."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics.catalogue import METRICS
from posthoc_bhpeft.audit.regression.figures import REGRESSION
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.errors import ConfigError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
CLASSES = tuple(one.name for one in METRICS)
"""Figures of a model that chooses a class."""
NUMBERS = tuple(one.name for one in REGRESSION)
"""Figures of a regression."""
_PARTS = ("estimate", "low", "high")
_FORM = re.compile(r"\s*([a-z_0-9]+)(?:\.([a-z]+))?\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Condition:
    """`ece>0.05`, or on an end of the interval: `ece.low>0.05`.

    Attributes:
        metric: Its name in the catalogue, of a regression in `REGRESSION`.
        part: `estimate`, `low` or `high`.
        comparison: One of `>`, `>=`, `<`, `<=`.
        border: In the units of the metric.
    """

    metric: str
    part: str
    comparison: str
    border: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            ConfigError: If it is none, or about no metric of the catalogue.
        """
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            metric, part, comparison, border = found.groups()
            condition = cls(metric, part or "estimate", comparison, float(border))
        except ValueError:
            raise ConfigError(
                f"{text!r} is no condition. Write a metric, a comparison and a number, such as "
                "'ece>0.05', or on an end of its interval 'accuracy.low<0.8'."
            ) from None
        if condition.part not in _PARTS:
            raise ConfigError(f"{text!r}: a figure has {', '.join(_PARTS)}, not {part!r}.")
        if not math.isfinite(condition.border):
            raise ConfigError(f"{text!r}: a figure is compared with a finite number.")
        if metric not in (*CLASSES, *NUMBERS):
            raise ConfigError(
                f"{text!r}: no metric is called that. Known: {', '.join(CLASSES)}; of a "
                f"regression {', '.join(NUMBERS)}."
            )
        return condition

    @property
    def figure(self) -> str:
        """What it is about: `ece`, `ece.low`."""
        return self.metric if self.part == "estimate" else f"{self.metric}.{self.part}"

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.border:g}"

    def value(self, audit: Audit | RegressionAudit) -> float:
        """The figure it is about.

        Raises:
            ConfigError: If the audit has no such metric.
        """
        figures = audit.subject.figures
        if self.metric not in figures:
            known = ", ".join(figures) or "none, because the rows have no labels"
            raise ConfigError(f"{self} is about {self.metric!r}; this audit has {known}.")
        return float(getattr(figures[self.metric], self.part))

    def holds(self, audit: Audit | RegressionAudit) -> bool:
        """Whether the audit meets it; a figure that could not be computed does."""
        value = self.value(audit)
        return math.isnan(value) or _COMPARISONS[self.comparison](value, self.border)


def check_figures(conditions: Iterable[Condition], known: Iterable[str]) -> None:
    """Raise where a condition is about a figure that an audit will not have, before it is made.

    Args:
        conditions: Of a gate.
        known: Names of the figures, `CLASSES` or `NUMBERS`.

    Raises:
        ConfigError: With those there will be.
    """
    names = tuple(known)
    for condition in conditions:
        if condition.metric not in names:
            raise ConfigError(
                f"{condition} is about {condition.metric!r}; this audit will have "
                f"{', '.join(names)}."
            )


def failures(audit: Audit | RegressionAudit, conditions: Iterable[Condition]) -> tuple[str, ...]:
    """The conditions that hold, each with the figure that it is about."""
    return tuple(
        f"{condition} ({condition.figure} is {condition.value(audit):.4g})"
        for condition in conditions
        if condition.holds(audit)
    )
