"""Small audits to report on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from posthoc_bhpeft.audit.decisions import Decision
from posthoc_bhpeft.audit.drift import Drift
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.predictions import Predictions
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.audit.slices import Slice

FIGURES = ("accuracy", "nll", "brier", "ece", "mce", "aurc", "errors_removed_at_10")


def interval(middle: float, half: float = 0.05) -> Interval:
    return Interval(middle, middle - half, middle + half)


def predictions(
    rows: int = 120,
    classes: int = 3,
    *,
    labels: bool = True,
    texts: bool = True,
    scores: bool = True,
    seed: int = 0,
) -> Predictions:
    """Predictions whose labels are drawn from their own probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.4), size=rows)
    y = np.array([rng.choice(classes, p=row) for row in p])
    total = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1)
    part = rng.uniform(0.05, 0.5, size=rows)
    split = {"total": total, "aleatoric": (1 - part) * total, "epistemic": part * total}
    return Predictions(
        probabilities=p,
        labels=y if labels else None,
        scores=split if scores else {},
        label_names=tuple(f"class {c}" for c in range(classes)),
        texts=tuple(f"Message number {i}, <b>really</b>" for i in range(rows)) if texts else None,
        about={"Curvature": "Kronecker factors over 640 rows."},
    )


def decision(goal: str = "at most 5 % wrong", *, feasible: bool = True) -> Decision:
    return Decision(
        goal=goal, score="confidence", threshold=0.3, guarantee="With probability 95 %.",
        feasible=feasible, reviewed=interval(0.3), error_rate=interval(0.06, 0.02),
        error_rate_before=0.2, rows=100,
    )  # fmt: skip


def group(value: str, finding: str = "") -> Slice:
    return Slice("airline", value, 50, interval(0.8), 0.8, interval(0.0), 0.5, 0.01, 1.0, finding)


def audit_of(
    *,
    rows: int = 120,
    classes: int = 3,
    labels: bool = True,
    texts: bool = True,
    scores: bool = True,
    rivals: tuple[str, ...] = (),
    decisions: tuple[Decision, ...] = (),
    slices: tuple[Slice, ...] = (),
    drift: Drift | None = None,
    figures: tuple[str, ...] = FIGURES,
) -> Audit:
    """An audit with made-up intervals, which nobody has to compute."""
    said = predictions(rows, classes, labels=labels, texts=texts, scores=scores)
    found = {name: interval(0.3) for name in figures} if labels else {}
    subject = Audited("ours", said, found)
    other = predictions(rows, classes, seed=1).probabilities
    softer = replace(said, probabilities=0.8 * said.probabilities + 0.2 * other, scores={})
    return Audit(
        subject=subject,
        rivals=tuple(Audited(name, softer, found) for name in rivals),
        differences={name: {k: interval(-0.1) for k in found} for name in rivals},
        decisions=decisions,
        slices=slices,
        drift=drift,
        data="made up, test",
    )
