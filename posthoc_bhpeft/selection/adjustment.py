"""`Adjustment`: how sure training rows say that predictions may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Adjustment:
    """A width of the posterior and a temperature, and why these.

    Attributes:
        width: Precision, in units of the one given.
        temperature: Above 1 to be less sure, below 1 to be surer.
        why: A sentence.
        before: Mean NLL in nats at width 1 and temperature 1, where it was computed.
        after: At the chosen ones.
    """

    width: float
    temperature: float
    why: str
    before: float | None = None
    after: float | None = None

    @classmethod
    def told(
        cls, judged: str, width: float, temperature: float, before: float, after: float
    ) -> Adjustment:
        """With the sentence; `judged` is its subject."""
        wanted = None
        if width != 1 or temperature != 1:
            surer = temperature < 1 or (temperature == 1 and width > 1)
            wanted = "surer predictions" if surer else "less sure predictions"
        return cls(width, temperature, sentence(judged, wanted, before, after), before, after)

    @property
    def needed(self) -> bool:
        """Whether anything changes."""
        return self.width != 1 or self.temperature != 1

    def describe(self) -> str:
        """The temperature, and why."""
        return f"temperature {self.temperature:.2f}: {self.why}"


def sentence(judged: str, wanted: str | None, before: float, after: float) -> str:
    """What rows ask for, `None` for nothing, with their mean NLL in nats without it and so."""
    if wanted is None:
        return f"{judged} ask for nothing else (NLL {before:.3f})."
    return f"{judged} ask for {wanted} (NLL {before:.3f} without, {after:.3f} so)."
