"""The questions that decide a verdict, each answered by the end of an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from posthoc_bhpeft.audit.decisions import Decision
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import CONFIDENCE, Predictions
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import between, counted, number, percent
from posthoc_bhpeft.errors import ConfigError

Answer: TypeAlias = Literal["yes", "no", "not shown", "not asked"]


class Group(Protocol):
    """Rows that belong together."""

    @property
    def column(self) -> str:
        """What they have in common."""
        ...

    @property
    def value(self) -> str:
        """Its value there."""
        ...

    @property
    def finding(self) -> str:
        """What was found about them; empty where nothing was."""
        ...


@dataclass(frozen=True)
class Rules:
    """Where the borders of the verdict lie.

    Attributes:
        rows: Labelled rows below which nothing is judged.
        error_rate: Share of wrong answers that is small enough to answer without review.
        calibration: Calibration error (ECE) up to which probabilities count as honest.
        removed: Share of the errors that rejecting the least certain 10 % must remove; a ranking
            by chance removes 10 %.
        told_apart: AUROC of telling rows from the reference set above which they have changed.
        label_shift: p-value below which the classes count as shifted.
        level: Coverage of the intervals that are computed here.
    """

    rows: int = 100
    error_rate: float = 0.05
    calibration: float = 0.05
    removed: float = 0.10
    told_apart: float = 0.60
    label_shift: float = 0.01
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"rows is {self.rows}; a verdict needs 1 labelled row or more.")
        for name in ("error_rate", "calibration", "removed", "told_apart", "label_shift", "level"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be inside (0, 1).")


@dataclass(frozen=True)
class Check:
    """One question, its answer and what the answer rests on.

    Attributes:
        name: `evidence`, `knows`, `errors`, `calibration`, `ranking`, `groups` or `drift`.
        question: In words.
        rule: When the answer is yes, in words.
        answer: `not shown` where the interval holds both a yes and a no.
        sentence: What was found.
    """

    name: str
    question: str
    rule: str
    answer: Answer
    sentence: str


def checks(audit: Audit, rules: Rules) -> tuple[Check, ...]:
    """All questions that can be asked, in the order of the report."""
    first = evidence(audit.subject.predictions, rules)
    if audit.subject.predictions.labels is None:
        return first, drift(audit, rules)
    ask: tuple[Callable[[Audit, Rules], Check], ...] = (
        knows, errors, calibration, ranking, groups, drift,
    )  # fmt: skip
    return first, *(question(audit, rules) for question in ask)


def evidence(predictions: Predictions, rules: Rules) -> Check:
    """Whether there are enough labelled rows to judge by."""
    rows = 0 if predictions.labels is None else len(predictions)
    words = "There are no labels." if not rows else f"{counted(rows, 'labelled row')}."
    return Check(
        name="evidence",
        question="Are there enough rows with labels to judge by?",
        rule=f"{rules.rows} labelled rows or more",
        answer="yes" if rows >= rules.rows else "no",
        sentence=words,
    )


def knows(audit: Audit, rules: Rules) -> Check:
    """Whether its answers go with the labels more than the same answers in any other order would.

    Chance agreement is `sum_c share of label c * share of answer c` (Cohen, 1960).
    """
    predictions = audit.subject.predictions
    chance = chance_agreement(predictions)
    right = exact(predictions.right, rules.level)
    same = len(np.unique(predictions.predicted)) == 1
    answer = "no" if same else above(right, chance)
    words = (
        f"Accuracy {between(right, share=True)}; the same answers in any other order would reach "
        f"{percent(chance)}."
    )
    if same:
        only = predictions.names[predictions.predicted[0]]
        words = f"It answers “{only}” to every row, which is right in {percent(right.estimate)}."
    return Check(
        name="knows",
        question="Do its answers tell more than chance would?",
        rule="the lower end of its accuracy lies above what the same answers would reach in any "
        "other order, and it does not answer every row alike",
        answer=answer,
        sentence=words,
    )


def errors(audit: Audit, rules: Rules) -> Check:
    """Whether it errs rarely enough to answer without review."""
    wrong = exact(~audit.subject.predictions.right, rules.level)
    return Check(
        name="errors",
        question="Is it right often enough to answer without review?",
        rule=f"the upper end of its error rate is at most {percent(rules.error_rate)}",
        answer=at_most(wrong, rules.error_rate),
        sentence=f"{percent(wrong.estimate)} of its answers are wrong "
        f"({_range(wrong)}, exact binomial interval).",
    )


def calibration(audit: Audit, rules: Rules) -> Check:
    """Whether its probabilities are honest: by ECE with 15 bins of equal width."""
    ece = audit.subject.figures.get("ece")
    sentence = "Its calibration error was not measured."
    if ece is not None:
        predictions = audit.subject.predictions
        gap = float(predictions.confidence.mean() - predictions.right.mean())
        lean = "surer" if gap > 0 else "less sure"
        points = number(abs(100 * gap), 1)
        sentence = f"ECE {between(ece)}. On average it is {points} points {lean} than right."
    return Check(
        name="calibration",
        question="Can its probabilities be read as chances?",
        rule=f"the upper end of its ECE is at most {number(rules.calibration, 2)}",
        answer="not asked" if ece is None else at_most(ece, rules.calibration),
        sentence=sentence,
    )


def ranking(audit: Audit, rules: Rules) -> Check:
    """Whether its confidence says where it errs, so that review by confidence pays."""
    wrong = int((~audit.subject.predictions.right).sum())
    removed = audit.subject.figures.get("errors_removed_at_10")
    answer: Answer = "not asked"
    sentence = "How many errors go with the least certain rows was not measured."
    if wrong == 0:
        answer, sentence = "not shown", "It made no error here, so there is none to rank."
    elif removed is not None:
        answer = above(removed, rules.removed)
        sentence = (
            f"Rejecting the least certain {percent(0.1, 0)} of the rows removes "
            f"{between(removed, share=True)} of its errors."
        )
    return Check(
        name="ranking",
        question="Does its confidence say where it errs?",
        rule="rejecting the least certain tenth of the rows removes more than "
        f"{percent(rules.removed, 0)} of its errors, the lower end too",
        answer=answer,
        sentence=sentence,
    )


def groups(audit: Audit, rules: Rules) -> Check:
    """Whether no group of rows is served worse than the others."""
    # Nobody knows a group made by the label when an answer is given.
    check = served_alike(
        [group for group in audit.slices if not group.of_label],
        "no group that is known before the answer has a finding, after adjusting for how "
        "many were looked at",
    )
    later = [group for group in audit.slices if group.of_label and group.finding]
    more = f" Known only with the label, but with a finding: {named(later)}." if later else ""
    return replace(check, sentence=check.sentence + more)


def served_alike(asked: Sequence[Group], rule: str) -> Check:
    """Whether no group has a finding, in words; any groups with a column, a value and a finding."""
    found = [group for group in asked if group.finding]
    sentence = f"{counted(len(asked), 'group')} looked at, none with a finding."
    if found:
        sentence = f"{len(found)} of {counted(len(asked), 'group')} with a finding: {named(found)}."
    if not asked:
        sentence = "No column was given to look at groups by."
    return Check(
        name="groups",
        question="Is every group of rows served alike?",
        rule=rule,
        answer="not asked" if not asked else "no" if found else "yes",
        sentence=sentence,
    )


def named(groups: Sequence[Group]) -> str:
    """The first of these groups, and how many more there are."""
    names = ", ".join(f"{group.column} = {group.value}" for group in groups[:3])
    return f"{names} and {len(groups) - 3} more" if len(groups) > 3 else names


def drift(audit: Audit, rules: Rules) -> Check:
    """Whether the rows are like those of the reference set."""
    found = audit.drift
    answer: Answer = "not asked"
    if found is not None:
        moved = (
            found.label_shift < rules.label_shift or found.covariate_shift.low > rules.told_apart
        )
        answer = "no" if moved else "yes"
    return Check(
        name="drift",
        question="Are these rows like those it was checked on before?",
        rule="the AUROC of telling the two sets apart may be "
        f"{number(rules.told_apart, 2)} or less, and predicted classes have not shifted (p of "
        f"{number(rules.label_shift, 2)} or more)",
        answer=answer,
        sentence="No reference set was given." if found is None else found.finding,
    )


def first_promise(decisions: tuple[Decision, ...]) -> Decision | None:
    """The first decision that can be promised and leaves rows to answer, where there is one."""
    able = (d for d in decisions if d.feasible and d.reviewed.estimate < 1.0)
    return next(able, None)


def to_review(decision: Decision) -> str:
    """Which rows go to a person, in words that follow "every row whose"; for finite thresholds."""
    if decision.score == CONFIDENCE:
        return f"confidence is below {percent(1.0 - decision.threshold)}"
    if decision.score == "novelty":
        return f"novelty is above {number(decision.threshold)}"
    return f"{decision.score} uncertainty is above {number(decision.threshold)} nats"


def chance_agreement(predictions: Predictions) -> float:
    """How often answers in a random order would be right, given how often each occurs."""
    size = predictions.probabilities.shape[1]
    assert predictions.labels is not None
    shares = [np.bincount(y, minlength=size) for y in (predictions.labels, predictions.predicted)]
    return float(shares[0] @ shares[1] / len(predictions) ** 2)


def exact(hits: NDArray[np.bool_], level: float) -> Interval:
    """Share of hits with Clopper and Pearson's interval (1934), which never covers too little.

    A bootstrap of rows without an error has no width at all; this one has.

    Args:
        hits: ``(N,)``.
        level: Coverage of the interval.
    """
    from scipy.stats import binomtest

    share = binomtest(int(hits.sum()), len(hits)).proportion_ci(level, method="exact")
    return Interval(float(hits.mean()), float(share.low), float(share.high))


def at_most(interval: Interval, border: float) -> Answer:
    """Whether a figure is at most a border, by the ends of its interval."""
    if interval.high <= border:
        return "yes"
    return "no" if interval.low > border else "not shown"


def above(interval: Interval, border: float) -> Answer:
    """Whether a figure is above a border, by the ends of its interval."""
    if interval.low > border:
        return "yes"
    return "no" if interval.high <= border else "not shown"


def _range(interval: Interval) -> str:
    return f"{percent(interval.low)} to {percent(interval.high)}"
