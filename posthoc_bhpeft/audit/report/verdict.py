"""A verdict in words, by rules that are written beside it: a pure function of an `Audit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from posthoc_bhpeft.audit.report.rules import Answer, Check, Rules, checks, first_promise, to_review
from posthoc_bhpeft.audit.report.tables import digits_for
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.audit.words import between, number, percent

READY = "Ready to answer by itself"
REVIEW = "Use with review"
NOT_YET = "Do not use"
UNCLEAR = "Too little evidence to say"

HOW = (
    (UNCLEAR, "there are too few rows with labels."),
    (NOT_YET, "its answers are shown to tell no more than chance; or it errs too often "
     "and its confidence is shown not to say where."),
    (READY, "its answers tell more than chance, it errs rarely enough, is calibrated, and neither "
     "a group nor drift speaks against it."),
    (REVIEW, "its answers tell more than chance, and it errs rarely enough or its confidence says "
     "where it errs."),
    (UNCLEAR, "none of this is shown: the intervals are too wide."),
)  # fmt: skip
"""The rules in the order they are tried, in words; the first that holds is the verdict."""


@dataclass(frozen=True)
class Verdict:
    """What to do with a model, and why.

    Attributes:
        level: `READY`, `REVIEW`, `NOT_YET` or `UNCLEAR`, in words.
        checks: The questions and answers that led to it.
        advice: What to do next, in sentences.
    """

    level: str
    checks: tuple[Check, ...]
    advice: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it as sentences: the level, what was found, what to do."""
        found = tuple(check.sentence for check in self.checks if check.answer != "not asked")
        return (f"{self.level}.", *found, *self.advice)

    def __str__(self) -> str:
        return " ".join(self.sentences)


def class_verdict(audit: Audit, rules: Rules | None = None) -> Verdict:
    """Whether a model may answer by itself, with review, or not: the first of `HOW` that holds.

    Every rule looks at the end of an interval and not at an estimate, so few rows lead to "too
    little evidence", never to "ready".

    Args:
        audit: What was found.
        rules: Where the borders lie; `None` is `Rules()` at the audit's level.
    """
    rules = rules or Rules(level=audit.level)
    asked = checks(audit, rules)
    level = level_of({check.name: check.answer for check in asked})
    return Verdict(level, asked, _advice(audit, level, asked, rules))


def level_of(answers: Mapping[str, Answer]) -> str:
    """The level that these answers lead to."""
    if answers["evidence"] != "yes":
        return UNCLEAR
    hopeless = answers["errors"] == "no" and answers["ranking"] == "no"
    if answers["knows"] == "no" or hopeless:
        return NOT_YET
    if answers["knows"] != "yes":
        return UNCLEAR
    against = "no" in (answers["groups"], answers["drift"])
    if answers["errors"] == answers["calibration"] == "yes" and not against:
        return READY
    if "yes" in (answers["errors"], answers["ranking"]):
        return REVIEW
    return UNCLEAR


def _advice(audit: Audit, level: str, asked: tuple[Check, ...], rules: Rules) -> tuple[str, ...]:
    answers = {check.name: check.answer for check in asked}
    said = []
    if level == NOT_YET:
        said.append(_reason(answers))
    if level == UNCLEAR:
        said.append(_more_rows(audit, rules))
    if level == REVIEW:
        said.append(_review(audit))
    if answers.get("calibration") == "no":
        said.append(
            "Its probabilities are off: do not read them as chances before they are recalibrated, "
            "for example by temperature scaling on rows it was not trained on."
        )
    if answers.get("groups") == "no":
        said.append("Look at the groups with a finding before it answers for them.")
    if answers.get("drift") == "no":
        said.append("The rows have changed: measure again on rows like those it will meet.")
    said += _rivals(audit)
    return tuple(said)


def _reason(answers: Mapping[str, Answer]) -> str:
    """Why not, without the figures: these stand beside the questions."""
    if answers["knows"] == "no":
        return "Its answers are shown to tell no more than chance would."
    return "It errs too often, and its confidence is shown not to say where."


def _more_rows(audit: Audit, rules: Rules) -> str:
    if audit.subject.predictions.labels is None:
        return f"Label {rules.rows} rows or more, drawn at random, and audit again."
    return (
        "Label more rows and audit again. Until then treat it as not to be used where an error "
        "matters."
    )


def _review(audit: Audit) -> str:
    best = first_promise(audit.decisions)
    if best is None:
        return "Let a person look at the answers it is least sure of."
    if best.threshold == math.inf:
        return f"No row has to be reviewed for this: {best.goal}."
    cost = best.checked or best
    return (
        f"Let a person look at every row whose {to_review(best)}, "
        f"{between(cost.reviewed, share=True)} of them: {best.goal}. Of the answers to the others "
        f"{between(cost.error_rate, share=True)} were wrong, of all "
        f"{percent(best.error_rate_before)}."
    )


def _rivals(audit: Audit) -> list[str]:
    """Which rivals have a better NLL, or a worse one, by an interval that excludes zero."""
    nll = {rival: found["nll"] for rival, found in audit.differences.items() if "nll" in found}
    ahead = [rival for rival, d in nll.items() if d.low > 0]
    behind = [rival for rival, d in nll.items() if d.high < 0]
    said = []
    if ahead:
        most = max(nll[rival].estimate for rival in ahead)
        by = number(most, digits_for(most))
        said.append(f"Its NLL is worse than that of {_list(ahead)}, by {by} nats at most.")
    if behind:
        said.append(f"Its NLL is better than that of {_list(behind)}.")
    return said


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
