"""The report as files: the page, and every picture beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from posthoc_bhpeft.audit.plots import confusion_plot
from posthoc_bhpeft.audit.report.classes import MOST_CLASSES, counts
from posthoc_bhpeft.audit.report.drawings import Drawing, drawings
from posthoc_bhpeft.audit.report.page import Made, page
from posthoc_bhpeft.audit.report.rules import Rules
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.folders import replacing_files

PAGE = "report.html"
PICTURES = (
    "confidence", "confusion", "deviation", "error_left", "intervals", "periods", "pit",
    "reliability*", "risk_coverage", "slices", "uncertainty",
)  # fmt: skip
"""Every picture that some page has, of either kind of audit: one that is rewritten has no other."""
_DOTS_PER_INCH = 150


def write_class_report(
    audit: Audit, place: str | Path, *, rules: Rules | None = None, made: Made | None = None
) -> None:
    """`write_report` of an audit of a model that chooses a class."""
    pictures = drawings(audit)
    text = page(audit, rules=rules, made=made, pictures=pictures)
    write_files(place, text, {**drawn(pictures), **_confusion(audit)})


def write_files(place: str | Path, text: str, figures: Mapping[str, Callable[[], Any]]) -> None:
    """A page and its pictures: all of them or none, and no picture of an older page stays.

    Args:
        place: A folder, which gets `report.html`; or a file that ends in `.html`.
        text: The page.
        figures: Draw the pictures, by their names, which are among `PICTURES`.
    """
    path = Path(place).expanduser()
    folder, name = (path.parent, path.name) if path.suffix == ".html" else (path, PAGE)
    stem = "" if name == PAGE else f"{Path(name).stem}-"
    older = [file.name for one in PICTURES for file in folder.glob(f"{stem}{one}.png")]
    with replacing_files(folder, optional=older) as fresh:
        (fresh / name).write_text(text, encoding="utf-8")
        for one, draw in figures.items():
            draw().savefig(fresh / f"{stem}{one}.png", dpi=_DOTS_PER_INCH)


def drawn(pictures: Mapping[str, Drawing]) -> dict[str, Callable[[], Any]]:
    """Drawings as files have them: by name, with their titles."""
    return {one.name: partial(one.draw, one.title) for one in pictures.values()}


def _confusion(audit: Audit) -> dict[str, Callable[[], Any]]:
    """The one picture that the page has as a table."""
    predictions = audit.subject.predictions
    if predictions.labels is None or len(predictions.names) > MOST_CLASSES:
        return {}
    return {"confusion": partial(confusion_plot, counts(predictions), predictions.names)}
