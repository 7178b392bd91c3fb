"""Output folders: whose they are, whether they can be written to, and how they are replaced.

`check_output` decides before any work: what no earlier run of the same kind wrote, or what the
command itself reads, is never replaced. `whole_folder` then writes a folder whole or not at all.

`replacing_files` replaces several files of a folder together: all of them or none, even if the
process dies. New files are written into a hidden scratch folder. Renaming it to `PENDING` is the
one step that counts: before it the folder holds the old files, after it the new ones, some of which
still wait inside `PENDING`. Whoever reads or writes the folder next moves those to their places
first. Files that the new ones leave no place for are named in `REMOVED`, and go in the same step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from posthoc_bhpeft.errors import CheckpointError, ConfigError

TRAINING_FILE = "training.json"
ADAPTER_FILE = "adapter_config.json"
PENDING = ".bhpeft-pending"
SCRATCH = ".bhpeft-scratch-"
REMOVED = ".bhpeft-removed"
STALE_SECONDS = 3600

_OF_DEMO = frozenset(
    ("checkpoint", "data", "report", "results.json", "reliability.png", "risk_coverage.png")
)
_NAMED = 3
_PREFIX_OF_NAME = 40


@dataclass(frozen=True)
class Kind:
    """A kind of folder that a command writes, so that it replaces no other.

    Attributes:
        what: its name in messages.
        wrote: whether an earlier run wrote this folder, as far as its files show.
    """

    what: str
    wrote: Callable[[Path], bool]


def _is_checkpoint(folder: Path) -> bool:
    """From a training, a fit or an import; an adapter of somebody else has none of the signs."""
    config = folder / ADAPTER_FILE
    if (folder / "posterior.json").is_file():
        return True
    if not config.is_file():
        return False
    # What `bhpeft import` writes: a hybrid, by the name that its config gives the tuner.
    imported = '"BHPEFT"' in config.read_text(encoding="utf-8", errors="replace")
    return imported or (folder / TRAINING_FILE).is_file()


def _is_export(folder: Path) -> bool:
    """The two files of `export_lora`; peft writes a model card beside them, so it is told apart."""
    return _names(folder) == {ADAPTER_FILE, "adapter_model.safetensors"}


def _is_predictions(folder: Path) -> bool:
    both = all((folder / name).is_file() for name in ("predictions.jsonl", "metrics.json"))
    return both and not _holds_model(folder)


def _is_report(folder: Path) -> bool:
    return (folder / "audit.json").is_file() and not _holds_model(folder)


def _is_demo(folder: Path) -> bool:
    """All that says so and nothing else: the demo replaces its folder unasked."""
    signs = ("results.json", "checkpoint/training.json", "data/meta.json")
    return all((folder / name).is_file() for name in signs) and _names(folder) <= _OF_DEMO


def _holds_model(folder: Path) -> bool:
    return any((folder / n).exists() for n in (ADAPTER_FILE, TRAINING_FILE, "config.json"))


CHECKPOINT = Kind("a checkpoint", _is_checkpoint)
EXPORT = Kind("an exported LoRA", _is_export)
PREDICTIONS = Kind("predictions", _is_predictions)
REPORT = Kind("an audit", _is_report)
DEMO = Kind("a demonstration", _is_demo)
_KINDS = (CHECKPOINT, PREDICTIONS, REPORT)
# In Python, overwrite=True names the very folder, so that any adapter in it may go.
ANY = Kind("a result", lambda f: (f / ADAPTER_FILE).is_file() or any(k.wrote(f) for k in _KINDS))


def check_output(
    folder: str | Path,
    *,
    overwrite: bool,
    kind: Kind = ANY,
    reads: Iterable[str | Path | None] = (),
) -> Path:
    """The output folder, before any work is done for it.

    Args:
        folder: where the output goes.
        overwrite: whether what an earlier run wrote there may be replaced.
        kind: what is written; only a folder of this kind is replaced.
        reads: what the work reads (checkpoints, data, models), which must outlive the output.
            Names that are no file or folder here, as those of the hub, do no harm.

    Returns:
        Its path, with neither links nor dots.

    Raises:
        ConfigError: it is a file, cannot be written to, holds what is read, or holds something and
            may not be replaced.
    """
    try:
        path = Path(folder).expanduser().resolve()
        _check_reads(folder, path, reads)
        if path.is_dir():
            finish_replacing(path)
            _check_ours(folder, path, kind, overwrite=overwrite)
        elif path.exists():
            raise ConfigError(f"{str(folder)!r} is a file; give a folder.")
        _check_place(folder, path)
    except (OSError, RuntimeError) as error:  # a name too long, or links that go round in circles
        raise ConfigError(
            f"The folder {str(folder)!r} cannot be used: {error}. Choose another."
        ) from error
    return path


def check_writable(folder: Path) -> None:
    """Raise unless files can be made in an existing folder: tried, for permissions do not tell all.

    Raises:
        ConfigError: they cannot.
    """
    try:
        Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH)).rmdir()
    except OSError as error:
        raise ConfigError(
            f"Nothing can be written into {str(folder)!r}: {error}. Choose an output in a folder "
            "you may write to, on a disk with room."
        ) from error


@contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool = False, kind: Kind = ANY
) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `folder` when all went well.

    Raises:
        ConfigError: see `check_output`.
        CheckpointError: what was written could not be put in its place; it says where it is.
    """
    target = check_output(folder, overwrite=overwrite, kind=kind)
    if _stays(target):
        with _replacing_all(target) as fresh:
            yield fresh
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name is a hint for people, and a long one leaves no room for what is added to it.
    prefix = f".{target.name[:_PREFIX_OF_NAME]}."
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    try:
        fresh.chmod(0o755)
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _put_in_place(fresh, target)


def _check_reads(folder: str | Path, path: Path, reads: Iterable[str | Path | None]) -> None:
    """Raise where replacing a folder would take with it what the work reads."""
    for one in reads:
        source = None if one is None else Path(one).expanduser()
        if source is None or not source.exists():
            continue
        if path == source.resolve():
            raise ConfigError(
                f"{str(folder)!r} is what this command reads, so it cannot be its output as well: "
                "replacing it would lose it. Choose another output folder."
            )
        if path in source.resolve().parents:
            raise ConfigError(
                f"The folder {str(folder)!r} holds {str(one)!r}, which this command reads, so it "
                "is not replaced. Choose another output folder, or a new one inside it."
            )


def _check_ours(folder: str | Path, path: Path, kind: Kind, *, overwrite: bool) -> None:
    """Raise unless an existing folder is empty, or ours and to be replaced."""
    names = sorted(_names(path))
    if not names:
        return
    if not kind.wrote(path):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ConfigError(
            f"The folder {str(folder)!r} is not empty, and holds files that bhpeft did not write "
            f"as {kind.what} ({', '.join(names[:_NAMED])}{more}), so it is not replaced. Choose "
            "another, or empty it yourself."
        )
    if not overwrite:
        raise ConfigError(
            f"The folder {str(folder)!r} is not empty. Choose another, or replace it with "
            "--overwrite (overwrite=True)."
        )
    if path in Path.cwd().parents:
        raise ConfigError(
            f"The folder {str(folder)!r} is not replaced while you work inside it (in "
            f"{str(Path.cwd())!r}). Run the command from another folder, or choose another output."
        )


def _check_place(folder: str | Path, path: Path) -> None:
    """Raise where no folder can be made at a path: beneath a file, or where nobody may write."""
    if _stays(path):
        check_writable(path)
        return
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(
            f"There can be no folder {str(folder)!r}: {str(above)!r} is a file. Choose another."
        )
    check_writable(above)


def _stays(path: Path) -> bool:
    """Whether an existing folder cannot be renamed, so that only its files can be replaced.

    The current folder could be, but whoever stands in it would be left in a deleted one.
    """
    if not path.is_dir():
        return False
    if path == Path.cwd() or os.path.ismount(path):
        return True
    try:
        check_writable(path.parent)
    except ConfigError:
        return True
    return False


def _names(folder: Path) -> set[str]:
    """What is in a folder, without what a killed process left in it."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(SCRATCH)}


@contextmanager
def _replacing_all(target: Path) -> Iterator[Path]:
    """A scratch folder in `target`, whose files take the place of all that are in it now."""
    finish_replacing(target)
    before = [
        path.relative_to(target)
        for name in sorted(_names(target))
        for path in (target / name, *(target / name).rglob("*"))
        if not path.is_dir()
    ]
    with replacing_files(target, optional=[name.as_posix() for name in before]) as scratch:
        yield scratch
    for path in before:
        for parent in list(path.parents)[:-1]:
            if (target / parent).is_dir() and not any((target / parent).iterdir()):
                (target / parent).rmdir()


def _put_in_place(fresh: Path, target: Path) -> None:
    """By renaming alone, the old folder going last; an error loses neither it nor the new one."""
    aside = fresh.with_name(f"{fresh.name}.old")
    try:
        if target.exists():
            target.replace(aside)
        try:
            fresh.replace(target)
        except BaseException:
            if aside.exists() and not target.exists():
                aside.replace(target)
            raise
    except OSError as error:
        before = f"is in {str(aside)!r}" if aside.exists() else "is unchanged"
        raise CheckpointError(
            f"Everything was written, but could not be moved to {str(target)!r}: {error}. It is in "
            f"{str(fresh)!r}; move it from there yourself. What was there before {before}."
        ) from error
    except BaseException:  # stopped by somebody, who wants no half of it
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    # The new folder is in its place, so what is left of the old one is no reason to fail.
    shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        warnings.warn(f"An older folder could not be removed: {str(aside)!r}.", stacklevel=2)


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
