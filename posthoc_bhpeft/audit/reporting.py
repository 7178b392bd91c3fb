"""The verdict and the report of an audit, whatever kind of model it is about."""

from __future__ import annotations

from pathlib import Path

from posthoc_bhpeft.audit.regression.page import write_regression_report
from posthoc_bhpeft.audit.regression.result import RegressionAudit
from posthoc_bhpeft.audit.regression.verdict import real_verdict
from posthoc_bhpeft.audit.report import Made, Rules, Verdict, class_verdict, write_class_report
from posthoc_bhpeft.audit.result import Audit


def verdict(audit: Audit | RegressionAudit, rules: Rules | None = None) -> Verdict:
    """Whether a model may answer by itself, with review, or not: the first rule that holds.

    Every rule looks at the end of an interval and not at an estimate, so few rows lead to "too
    little evidence", never to "ready".

    Args:
        audit: What was found.
        rules: Where the borders lie; `None` is `Rules()` at the audit's level.
    """
    if isinstance(audit, RegressionAudit):
        return real_verdict(audit, rules)
    return class_verdict(audit, rules)


def write_report(
    audit: Audit | RegressionAudit,
    place: str | Path,
    *,
    rules: Rules | None = None,
    made: Made | None = None,
) -> None:
    """Write the page and its pictures: all of them or none.

    Other files of the folder stay; pictures of an older report that this one has not are removed.

    Args:
        audit: What was found.
        place: A folder, which gets `report.html`; or a file that ends in `.html`.
        rules: Borders of the verdict; `None` is `Rules()` at the audit's level.
        made: When and how; `None` is now, by no command.

    Raises:
        CheckpointError: If the folder cannot be written to.
        ConfigError: If matplotlib is missing.
    """
    if isinstance(audit, RegressionAudit):
        write_regression_report(audit, place, rules=rules, made=made)
    else:
        write_class_report(audit, place, rules=rules, made=made)
