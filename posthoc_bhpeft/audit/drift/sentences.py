"""What a comparison with a reference says, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.drift.periods import Period, Trend
from posthoc_bhpeft.audit.drift.twosample import Told
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.audit.words import points

Shares = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Facts:
    """What was measured about two sets of rows.

    Attributes:
        now: The rows under audit.
        reference: The others.
        score: Name of the score of uncertainty.
        told: How well the sets are told apart, by texts where there are any.
        outputs: The same by outputs.
        uncertainty: Mean of the score now, less in the reference.
        novelty: The same of novelty, where both sets have it.
        accuracy: The same of right answers, with labels.
        gap: The same of confidence less right answers, with labels.
        trends: Over time.
        periods: Over time.
    """

    now: Predictions
    reference: Predictions
    score: str
    told: Told
    outputs: Told
    uncertainty: Interval
    novelty: Interval | None
    accuracy: Interval | None
    gap: Interval | None
    trends: tuple[Trend, ...]
    periods: tuple[Period, ...]

    @property
    def predicted_shares(self) -> Shares:
        """Share of each predicted class by name: in the reference, and now."""
        return self._shares(self.reference.predicted, self.now.predicted)

    @property
    def true_shares(self) -> Shares:
        """The same of the true classes; empty where they are not known in both."""
        if self.now.labels is None or self.reference.labels is None:
            return {}
        return self._shares(self.reference.labels, self.now.labels)

    def _shares(self, before: NDArray[np.int64], now: NDArray[np.int64]) -> Shares:
        return {
            name: (float((before == c).mean()), float((now == c).mean()))
            for c, name in enumerate(self.now.names)
        }


def sentences(
    facts: Facts,
    tests: Mapping[str, float],
    alpha: float,
    estimated: Mapping[str, Interval] | None = None,
) -> tuple[str, ...]:
    """One for each thing that a test shows, the costliest first; one of all if none does.

    Args:
        facts: What was measured.
        tests: Adjusted p-values by name.
        alpha: What they must stay below.
        estimated: Shares of the true classes now, for sets without labels.
    """
    shown = {name for name, p in tests.items() if p < alpha}
    found = [*_of_answers(facts, shown), *_of_rows(facts, shown, estimated)]
    found += [_of_trend(one, facts) for one in facts.trends if f"trend of {one.of}" in shown]
    return tuple(found) if found else (_nothing(facts, tests),)


def _of_answers(facts: Facts, shown: set[str]) -> Iterator[str]:
    """Accuracy, honesty, doubt."""
    now, reference = facts.now, facts.reference
    if facts.accuracy is not None and "accuracy" in shown:
        before, after = (_percent(float(each.right.mean()), 1) for each in (reference, now))
        yield (
            f"Accuracy {_moved(facts.accuracy)} from {before} in the reference to {after} "
            f"({_change(facts.accuracy)})."
        )
    if facts.gap is not None and "gap" in shown:
        ends = [float(each.confidence.mean() - each.right.mean()) for each in (reference, now)]
        yield f"Confidence was {_off(ends[0])} in the reference and is {_off(ends[1])} now."
    if "uncertainty" in shown:
        old, new = (float(each.score(facts.score).mean()) for each in (reference, now))
        yield (
            f"{_called(facts.score).capitalize()} {_moved(facts.uncertainty)} from "
            f"{_measured(old, facts.score)} to {_measured(new, facts.score)} on average."
        )


def _of_rows(
    facts: Facts, shown: set[str], estimated: Mapping[str, Interval] | None
) -> Iterator[str]:
    """Classes, texts, outputs."""
    if "true classes" in shown:
        yield _of_classes("true", facts.true_shares)
    if "predicted classes" in shown:
        yield _of_classes("predicted", facts.predicted_shares)
        # Where doubt moved too, more than the mix changed.
        if facts.now.labels is None and estimated and "uncertainty" not in shown:
            yield _of_estimate(facts, estimated)
    if facts.novelty is not None and "novelty" in shown:
        old, new = (float(each.score("novelty").mean()) for each in (facts.reference, facts.now))
        yield (
            f"Rows are {'less' if new > old else 'more'} like those trained on than before: "
            f"novelty {_moved(facts.novelty)} from {old:.3g} to {new:.3g} on average."
        )
    if "texts" in shown:
        yield (
            f"Texts differ from the reference: a classifier tells {_area(facts.told.auroc)}."
            f"{_words(facts.told)}"
        )
    if "outputs" in shown:
        yield f"Outputs differ from the reference: a classifier tells {_area(facts.outputs.auroc)}."


def _of_classes(kind: str, shares: Shares) -> str:
    """The class that moved most."""
    name = max(shares, key=lambda one: abs(shares[one][1] - shares[one][0]))
    before, after = (_percent(share, 1) for share in shares[name])
    return (
        f"The mix of {kind} classes changed, {name!r} most: {before} in the reference, {after} now."
    )


def _of_estimate(facts: Facts, estimated: Mapping[str, Interval]) -> str:
    shares = facts.predicted_shares
    name = max(shares, key=lambda one: abs(shares[one][1] - shares[one][0]))
    share = estimated[name]
    return (
        f"If nothing but the mix of classes changed, {_percent(share.estimate)} of the rows are "
        f"truly {name!r} now ({_percent(share.low)} to {_percent(share.high)})."
    )


def _of_trend(one: Trend, facts: Facts) -> str:
    way = "falls" if one.late < one.early else "rises"
    first, last = facts.periods[0].name.split(" to ")[0], facts.periods[-1].name.split(" to ")[-1]
    return (
        f"Over time, {first} to {last}, {_called(one.of)} {way}: {_measured(one.early, one.of)} in "
        f"the earlier half of the rows, {_measured(one.late, one.of)} in the later."
    )


def _nothing(facts: Facts, tests: Mapping[str, float]) -> str:
    """No finding, and how much could have stayed unseen."""
    texts = f"{len(tests)} tests show no drift of {len(facts.now)} rows"
    low, high = facts.told.auroc.low, facts.told.auroc.high
    return (
        f"{texts} from {len(facts.reference)} of the reference. A classifier tells them apart with "
        f"an AUROC between {low:.2f} and {high:.2f}, where 0.5 is not at all."
    )


def _area(area: Interval) -> str:
    return (
        f"the sets apart with an AUROC of {area.estimate:.2f} ({area.low:.2f} to {area.high:.2f}; "
        "0.5 is not at all)"
    )


def _words(told: Told) -> str:
    parts = [("More often now", told.now), ("less often", told.reference)]
    said = [f"{label}: {_listed(words)}" for label, words in parts if words]
    return f" {'; '.join(said)}." if said else ""


def _listed(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words)


def _moved(change: Interval) -> str:
    return "rose" if change.estimate > 0 else "fell"


def _change(change: Interval) -> str:
    return f"a change of {100 * change.low:+.1f} to {100 * change.high:+.1f} points"


def _off(gap: float) -> str:
    if abs(gap) < 0.005:
        return "as high as accuracy"
    return f"{points(gap)} {'above' if gap > 0 else 'below'} accuracy"


def _called(name: str) -> str:
    return {"epistemic": "epistemic uncertainty", CONFIDENCE: "doubt"}.get(name, name)


def _measured(value: float, name: str) -> str:
    """Doubt and accuracy are shares, the rest is in nats."""
    if name in (CONFIDENCE, "accuracy"):
        return _percent(value, 1)
    return f"{value:.3g} nats"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
