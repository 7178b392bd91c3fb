"""A verdict on a regression in words: questions, each answered by the end of an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.regression.coverage import coverage_at
from posthoc_bhpeft.audit.regression.decisions import RealDecision, off_by_more
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.report import NOT_YET, READY, REVIEW, UNCLEAR, Check, Rules, Verdict
from posthoc_bhpeft.audit.report.rules import Answer, above, at_most, exact, served_alike
from posthoc_bhpeft.audit.report.tables import digits_for
from posthoc_bhpeft.audit.words import between, counted, number, percent

LEVEL = 0.90
"""Of the intervals whose coverage is judged."""

HOW = (
    (UNCLEAR, "there are too few rows with targets."),
    (NOT_YET, "its predictions are shown to tell no more than the average target would; or they "
     "are off too often and its deviation is shown not to say where."),
    (READY, "its predictions tell more than the average target, a tolerance is given and is "
     "exceeded rarely enough, its intervals are honest, and no group speaks against it."),
    (REVIEW, "its predictions tell more than the average target, and they are off rarely enough, "
     "or its intervals are honest, or its deviation says where it is off."),
    (UNCLEAR, "none of this is shown: the intervals are too wide."),
)  # fmt: skip
"""The rules in the order they are tried, in words; the first that holds is the verdict."""


def real_verdict(audit: RegressionAudit, rules: Rules | None = None) -> Verdict:
    """What to do with a regression, and why: the first of `HOW` that holds.

    Args:
        audit: What was found.
        rules: Where the borders lie; `None` is `Rules()` at the audit's level. `calibration` is how
            far the coverage of 90 % intervals may be from 90 %.
    """
    rules = rules or Rules(level=audit.level)
    asked = checks(audit, rules)
    level = level_of({check.name: check.answer for check in asked})
    return Verdict(level, asked, advice(audit, level, asked, rules))


def checks(audit: RegressionAudit, rules: Rules) -> tuple[Check, ...]:
    """All questions that can be asked, in the order of the report."""
    first = evidence(audit, rules)
    if not audit.subject.figures:
        return (first,)
    ask = (knows, errors, calibration, ranking, groups)
    return first, *(question(audit, rules) for question in ask)


def evidence(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether there are enough rows with targets to judge by."""
    rows = len(audit.subject.predictions) if audit.subject.figures else 0
    return Check(
        name="evidence",
        question="Are there enough rows with targets to judge by?",
        rule=f"{rules.rows} rows with targets or more",
        answer="yes" if rows >= rules.rows else "no",
        sentence=f"{counted(rows, 'row')} with targets." if rows else "There are no targets.",
    )


def knows(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether it explains anything of the spread of the targets."""
    r2 = audit.subject.figures["r2"]
    return Check(
        name="knows",
        question="Do its predictions tell more than the average target would?",
        rule="the lower end of its R2 lies above 0",
        answer=above(r2, 0.0),
        sentence=f"R2 {between(r2)}." if r2.known else "All targets are equal.",
    )


def errors(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether it is off by more than the tolerance rarely enough."""
    found = f"RMSE {between(audit.subject.figures['rmse'])}{lean(audit.subject.figures['bias'])}"
    answer: Answer = "not asked"
    sentence = f"{found}. Which error is small enough was not said."
    if audit.tolerance is not None:
        off = exact(off_by_more(audit.subject.predictions, audit.tolerance), rules.level)
        answer = at_most(off, rules.error_rate)
        sentence = f"{between(off, share=True)} are off by more than {audit.tolerance:g}; {found}."
    return Check(
        name="errors",
        question="Is it close enough, often enough?",
        rule="a tolerance is given, and the upper end of the share that is off by more is at most "
        f"{percent(rules.error_rate)}",
        answer=answer,
        sentence=sentence,
    )


def lean(bias: Interval) -> str:
    """Which way predictions lean, where their interval shows it."""
    if not bias.excludes(0.0):
        return ""
    way, size = "high" if bias.estimate > 0 else "low", abs(bias.estimate)
    return f", and on average too {way} by {number(size, digits_for(size))}"


def calibration(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether its intervals hold the target as often as they say."""
    (found,) = coverage_at(audit.subject.predictions, (LEVEL,), confidence=rules.level)
    low, high = LEVEL - rules.calibration, LEVEL + rules.calibration
    inside = found.inside
    answer: Answer = "not shown"
    if low <= inside.low and inside.high <= high:
        answer = "yes"
    elif inside.high < low or inside.low > high:
        answer = "no"
    return Check(
        name="calibration",
        question="Can its intervals be believed?",
        rule=f"the share of targets in its {percent(LEVEL, 0)} intervals lies between "
        f"{percent(low, 0)} and {percent(high, 0)}, both ends",
        answer=answer,
        sentence=f"Its {percent(LEVEL, 0)} intervals hold {between(inside, share=True)} of the "
        f"targets{f': they are {found.finding}' if found.finding else ''}.",
    )


def ranking(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether its predicted deviation says where it is off, so that review by it pays."""
    removed = audit.subject.figures["error_removed_at_10"]
    answer = above(removed, rules.removed)
    sentence = (
        f"The {percent(0.1, 0)} of rows with the largest predicted deviation hold "
        f"{between(removed, share=True)} of all squared error."
    )
    if not audit.subject.predictions.ranks:
        answer, sentence = "no", "Its predicted deviation is the same for every row."
    elif not removed.known:
        answer, sentence = "not shown", "It made no error here, so there is none to rank."
    return Check(
        name="ranking",
        question="Does its deviation say where it is off?",
        rule="the tenth of the rows with the largest deviation holds more than "
        f"{percent(rules.removed, 0)} of the squared error, the lower end too",
        answer=answer,
        sentence=sentence,
    )


def groups(audit: RegressionAudit, rules: Rules) -> Check:
    """Whether no group of rows is served worse than the others."""
    asked = [group for group in audit.groups if group.p_error is not None]
    return served_alike(
        asked,
        "no group has a finding, after adjusting for how many were looked at",
    )


def level_of(answers: Mapping[str, Answer]) -> str:
    """The level that these answers lead to."""
    if answers["evidence"] != "yes":
        return UNCLEAR
    hopeless = answers["errors"] == "no" and answers["ranking"] == "no"
    if answers["knows"] == "no" or hopeless:
        return NOT_YET
    if answers["knows"] != "yes":
        return UNCLEAR
    if answers["errors"] == answers["calibration"] == "yes" and answers["groups"] != "no":
        return READY
    if "yes" in (answers["errors"], answers["calibration"], answers["ranking"]):
        return REVIEW
    return UNCLEAR


def advice(
    audit: RegressionAudit, level: str, asked: tuple[Check, ...], rules: Rules
) -> tuple[str, ...]:
    """What to do next, in sentences."""
    answers = {check.name: check.answer for check in asked}
    said = []
    if level == NOT_YET:
        said.append(why_not(answers))
    if level == UNCLEAR:
        said.append(more_rows(audit, rules))
    if level == REVIEW:
        said.append(review(audit, answers))
    if answers.get("errors") == "not asked":
        said.append(
            "Say which error does no harm, with tolerance=, and the audit says how often a "
            "prediction is off by more."
        )
    if answers.get("calibration") == "no":
        said.append(wider(audit))
    if answers.get("groups") == "no":
        said.append("Look at the groups with a finding before it is relied on for them.")
    return (*said, *rivals(audit))


def why_not(answers: Mapping[str, Answer]) -> str:
    """Why it is not to be used, without the figures: these stand beside the questions."""
    if answers["knows"] == "no":
        return "Its predictions are shown to tell no more than the average target would."
    return "It is off too often, and its deviation is shown not to say where."


def more_rows(audit: RegressionAudit, rules: Rules) -> str:
    """What more evidence it takes."""
    known = len(audit.subject.predictions) if audit.subject.figures else 0
    if known < rules.rows:
        return f"Find out the targets of {rules.rows} rows or more, drawn at random; audit again."
    return (
        "Find out the targets of more rows and audit again. Until then treat it as not to be used "
        "where an error matters."
    )


def review(audit: RegressionAudit, answers: Mapping[str, Answer]) -> str:
    """Who looks at what."""
    able = (d for d in audit.decisions if d.feasible and d.rmse.known)
    best = next(able, None)
    if best is None or answers["ranking"] == "no":
        return "Read each prediction with its interval, and let a person decide."
    if best.threshold == math.inf:
        return f"No row has to be reviewed for this: {best.goal}."
    return (
        f"Let a person look at {which(best)}, {between(best.reviewed, share=True)} of them: "
        f"{best.goal}. The RMSE of the others is {between(best.rmse)}, of all it is "
        f"{number(best.rmse_before)}."
    )


def which(decision: RealDecision) -> str:
    """Which rows go to a person, in words; for thresholds that some rows are above."""
    if decision.threshold == -math.inf:
        return "every row"
    return f"every row whose predicted deviation is above {number(decision.threshold)}"


def wider(audit: RegressionAudit) -> str:
    """What to do about intervals that are off."""
    made = audit.conformal
    if made is None or not made.feasible:
        return "Its intervals are off: do not read them as chances."
    return (
        f"Its intervals are off: use the conformal ones, {number(made.factor, 2)} deviations to "
        f"either side where a Gaussian has {number(made.gaussian, 2)}."
    )


def rivals(audit: RegressionAudit) -> list[str]:
    """Which rivals have a better NLL, or a worse one, by an interval that excludes zero."""
    nll = {rival: found["gaussian_nll"] for rival, found in audit.differences.items()}
    ahead = [rival for rival, d in nll.items() if d.low > 0]
    behind = [rival for rival, d in nll.items() if d.high < 0]
    said = []
    if ahead:
        said.append(f"Its NLL is worse than that of {' and '.join(ahead)}.")
    if behind:
        said.append(f"Its NLL is better than that of {' and '.join(behind)}.")
    return said
