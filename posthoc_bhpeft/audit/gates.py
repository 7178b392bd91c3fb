"""Gates: conditions on an audit's figures that stop a pipeline."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from posthoc_bhpeft.audit.metrics.catalogue import METRICS
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.errors import ConfigError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PARTS = ("estimate", "low", "high")
_FORM = re.compile(r"\s*([a-z_0-9]+)(?:\.([a-z]+))?\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Condition:
    """`ece>0.05`, or on an end of the interval: `ece.low>0.05`.

    Attributes:
        metric: Its name in the catalogue.
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
        if metric not in (known := [one.name for one in METRICS]):
            raise ConfigError(f"{text!r}: no metric is called that. Known: {', '.join(known)}.")
        return condition

    @property
    def figure(self) -> str:
        """What it is about: `ece`, `ece.low`."""
        return self.metric if self.part == "estimate" else f"{self.metric}.{self.part}"

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.border:g}"

    def value(self, audit: Audit) -> float:
        """The figure it is about.

        Raises:
            ConfigError: If the audit has no such metric.
        """
        figures = audit.subject.figures
        if self.metric not in figures:
            known = ", ".join(figures) or "none, because the rows have no labels"
            raise ConfigError(f"{self} is about {self.metric!r}; this audit has {known}.")
        return float(getattr(figures[self.metric], self.part))

    def holds(self, audit: Audit) -> bool:
        """Whether the audit meets it; a figure that could not be computed does."""
        value = self.value(audit)
        return math.isnan(value) or _COMPARISONS[self.comparison](value, self.border)


def failures(audit: Audit, conditions: Iterable[Condition]) -> tuple[str, ...]:
    """The conditions that hold, each with the figure that it is about."""
    return tuple(
        f"{condition} ({condition.figure} is {condition.value(audit):.4g})"
        for condition in conditions
        if condition.holds(audit)
    )
