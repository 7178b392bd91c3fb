"""Several files of a folder replaced together: all of them or none, even if the process dies.

New files are written into a hidden scratch folder. Renaming it to `PENDING` is the one step that
counts: before it the folder holds the old files, after it the new ones, some of which still wait
inside `PENDING`. Whoever reads or writes the folder next moves those to their places first.
Files that the new ones leave no place for are named in `REMOVED`, and go in the same step.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from posthoc_bhpeft.errors import CheckpointError

PENDING = ".bhpeft-pending"
SCRATCH = ".bhpeft-scratch-"
REMOVED = ".bhpeft-removed"
STALE_SECONDS = 3600


@contextmanager
def replacing_files(folder: Path, optional: Sequence[str] = ()) -> Iterator[Path]:
    """A scratch folder, whose files take their places in `folder` together on the way out.

    Args:
        folder: Made where it does not exist. Files of other names in it stay as they are.
        optional: Names of files that are removed from it unless they are written anew.

    Yields:
        The scratch folder, empty.

    Raises:
        CheckpointError: If the folder cannot be written to.
    """
    scratch: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_replacing(folder)
        remove_stale(folder)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH))
        scratch.chmod(0o755)
        yield scratch
        note_removed(scratch, folder, optional)
        scratch.replace(folder / PENDING)
    except OSError as error:
        raise CheckpointError(
            f"Could not write into {str(folder)!r}: {error}. What was there before is unchanged. "
            "Choose a folder you may write to, on a disk with room."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Move the files of an interrupted save to their places; nothing where there was none.

    Raises:
        CheckpointError: If the folder cannot be written to. The files are kept for the next try.
    """
    pending = folder / PENDING
    if not pending.is_dir():
        return
    try:
        for path in sorted(pending.rglob("*")):
            if path.is_file() and path.name != REMOVED:
                move_into_place(path, folder / path.relative_to(pending))
        for name in removed_by(pending):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(pending, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"{str(folder)!r} holds a save that was interrupted, whole but not yet in place, and "
            f"moving it failed: {error}. Make the folder writable, then load or save again: that "
            "finishes it."
        ) from error


def note_removed(scratch: Path, folder: Path, optional: Sequence[str]) -> None:
    """Write down which optional files of a folder the new ones leave no place for."""
    gone = [n for n in optional if (folder / n).exists() and not (scratch / n).exists()]
    if gone:
        (scratch / REMOVED).write_text("\n".join(gone), encoding="utf-8")


def removed_by(pending: Path) -> list[str]:
    """The names that `note_removed` wrote down."""
    try:
        return (pending / REMOVED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def remove_stale(folder: Path) -> None:
    """Remove scratch folders that killed processes left; younger ones may still be written to."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        if time.time() - scratch.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def move_into_place(path: Path, place: Path) -> None:
    """Replace `place` by `path`, unless another process that finishes the same save was faster."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.replace(place)
    except FileNotFoundError:
        if not place.is_file():
            raise
