"""`bhpeft fit --resume`: where a fit keeps its sums, and what is said about them."""

from __future__ import annotations

from pathlib import Path

from posthoc_bhpeft.curvature import Resume
from posthoc_bhpeft.errors import ConfigError

SECONDS = 60.0
"""Between two writings, where nobody says."""

ENDING = ".partial"
"""What the name of the output gets to become that of the folder with the sums."""


def resume_beside(output: Path, *, wanted: bool, seconds: float | None) -> Resume | None:
    """Where a fit keeps its sums: beside its output, which must stay empty until it is done.

    Args:
        output: Folder of the posterior.
        wanted: Whether sums are kept at all.
        seconds: Between two writings; `None` takes `SECONDS`.

    Raises:
        ConfigError: If only the seconds are given, or they are below zero.
    """
    if not wanted:
        if seconds is not None:
            raise ConfigError("--save-every is for --resume; without it no sums are kept.")
        return None
    place = output.resolve()
    return Resume(place.with_name(place.name + ENDING), SECONDS if seconds is None else seconds)


def describe_start(resume: Resume, n_batches: int) -> str:
    """Whether a fit goes on or begins; for people.

    Raises:
        CheckpointError: If the sums that are there are damaged.
    """
    done = resume.batches_done()
    if done:
        return f"goes on after batch {done} of {n_batches}, whose sums are in {resume.folder}"
    return f"keeps its sums in {resume.folder}: if it is killed, the same command goes on from them"
