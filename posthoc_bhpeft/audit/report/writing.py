"""The report as files: the page, and every picture beside it."""

from __future__ import annotations

from pathlib import Path

from posthoc_bhpeft.audit.plots import confusion_plot
from posthoc_bhpeft.audit.report.classes import MOST_CLASSES, counts
from posthoc_bhpeft.audit.report.drawings import drawings
from posthoc_bhpeft.audit.report.page import Made, page
from posthoc_bhpeft.audit.report.rules import Rules
from posthoc_bhpeft.audit.result import Audit
from posthoc_bhpeft.folders import replacing_files

PAGE = "report.html"
_DOTS_PER_INCH = 150


def write_report(
    audit: Audit, place: str | Path, *, rules: Rules | None = None, made: Made | None = None
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
    path = Path(place).expanduser()
    folder, name = (path.parent, path.name) if path.suffix == ".html" else (path, PAGE)
    stem = "" if name == PAGE else f"{Path(name).stem}-"
    pictures = drawings(audit)
    text = page(audit, rules=rules, made=made, pictures=pictures)
    with replacing_files(folder) as fresh:
        (fresh / name).write_text(text, encoding="utf-8")
        for drawing in pictures.values():
            figure = drawing.draw(drawing.title)
            figure.savefig(fresh / f"{stem}{drawing.name}.png", dpi=_DOTS_PER_INCH)
        _confusion(audit, fresh / f"{stem}confusion.png")
        written = {file.name for file in fresh.iterdir()}
    _remove_older(folder, stem, written)


def _confusion(audit: Audit, path: Path) -> None:
    """The one picture that the page has as a table."""
    predictions = audit.subject.predictions
    if predictions.labels is not None and len(predictions.names) <= MOST_CLASSES:
        figure = confusion_plot(counts(predictions), predictions.names)
        figure.savefig(path, dpi=_DOTS_PER_INCH)


def _remove_older(folder: Path, stem: str, written: set[str]) -> None:
    for name in ("confusion", "risk_coverage", "uncertainty", "slices", "periods", "reliability*"):
        for file in folder.glob(f"{stem}{name}.png"):
            if file.name not in written:
                file.unlink()
