"""Output folders: what is never replaced, what is refused before any work, what an error leaves."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from posthoc_bhpeft.checkpoints import checkpoint_labels
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from posthoc_bhpeft.folders import (
    ANY,
    CHECKPOINT,
    DEMO,
    EXPORT,
    PENDING,
    PREDICTIONS,
    REPORT,
    SCRATCH,
    check_output,
    whole_folder,
)

KINDS = (CHECKPOINT, EXPORT, PREDICTIONS, REPORT, DEMO)
LORA, HYBRID = '{"peft_type": "LORA"}', '{"peft_type": "BHPEFT"}'
STOCK = {"adapter_config.json": LORA, "adapter_model.safetensors": "", "README.md": ""}
WRITTEN = {
    "trained": (CHECKPOINT, {**STOCK, "training.json": "{}"}),
    "fitted": (CHECKPOINT, {**STOCK, "posterior.json": "{}"}),
    "imported": (CHECKPOINT, {**STOCK, "adapter_config.json": HYBRID}),
    "exported": (EXPORT, {"adapter_config.json": LORA, "adapter_model.safetensors": ""}),
    "predicted": (PREDICTIONS, {"predictions.jsonl": "", "metrics.json": "{}"}),
    "audited": (REPORT, {"audit.json": "{}", "report.html": ""}),
    "shown": (
        DEMO,
        {
            "results.json": "{}",
            "reliability.png": "",
            "risk_coverage.png": "",
            "report/report.html": "",
            "checkpoint/training.json": "{}",
            "data/meta.json": "{}",
        },
    ),
}
OF_OTHERS = {
    "a stock adapter": STOCK,
    "results of something": {"results.json": "{}"},
    "a training.json": {"training.json": "{}", "test.json": "{}"},
    "a model with predictions": {**STOCK, "predictions.jsonl": "", "metrics.json": "{}"},
    "a demonstration with notes": {**WRITTEN["shown"][1], "notes.txt": "mine"},
}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------ whose folder it is


@pytest.mark.parametrize("name", WRITTEN)
def test_a_kind_replaces_what_an_earlier_run_wrote_and_no_other_kind(tmp_path, name):
    own, files = WRITTEN[name]
    fill(tmp_path, files)
    assert check_output(tmp_path, overwrite=True, kind=own) == tmp_path
    for other in KINDS:
        if other is not own:
            with pytest.raises(ConfigError, match=f"did not write as {other.what} "):
                check_output(tmp_path, overwrite=True, kind=other)
    assert files_in(tmp_path) == files


@pytest.mark.parametrize("name", OF_OTHERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_folders_of_others_are_replaced_by_nobody(tmp_path, name, kind):
    fill(tmp_path, OF_OTHERS[name])
    with pytest.raises(ConfigError, match="so it is not replaced"):
        check_output(tmp_path, overwrite=True, kind=kind)
    assert files_in(tmp_path) == OF_OTHERS[name]


def test_who_names_no_kind_replaces_any_adapter_but_no_other_files(tmp_path):
    assert check_output(fill(tmp_path / "theirs", STOCK), overwrite=True, kind=ANY)
    for name in ("results of something", "a training.json"):
        with pytest.raises(ConfigError, match="did not write as a result"):
            check_output(fill(tmp_path / name, OF_OTHERS[name]), overwrite=True)


def test_the_message_names_some_files_and_never_advises_to_overwrite_them(tmp_path):
    fill(tmp_path, {f"{letter}.txt": "" for letter in "abcde"})
    with pytest.raises(ConfigError, match=r"not empty.*\(a.txt, b.txt, c.txt and 2 more\)") as why:
        check_output(tmp_path, overwrite=False)
    assert "--overwrite" not in str(why.value)


# ------------------------------------------------------------------------- what is read stays


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_takes_an_input_with_it_is_refused(tmp_path, monkeypatch, overwrite):
    read = fill(tmp_path / "runs" / "out", WRITTEN["trained"][1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(read)

    def check(output):
        check_output(output, overwrite=overwrite, kind=CHECKPOINT, reads=(None, "no/name", read))

    for same in (read, "runs/out", "runs/../runs/out", "link"):
        with pytest.raises(ConfigError, match="reads, so it cannot be its output"):
            check(same)
    for around in ("runs", "."):
        with pytest.raises(ConfigError, match=r"holds '.*out', which this command reads"):
            check(around)
    check(read / "new")


def test_a_part_of_an_input_is_not_replaced_but_an_earlier_output_in_it_is(tmp_path):
    fill(tmp_path, WRITTEN["trained"][1])
    part = fill(tmp_path / "checkpoint-500", STOCK)
    with pytest.raises(ConfigError, match="did not write"):
        check_output(part, overwrite=True, kind=CHECKPOINT, reads=[tmp_path])
    earlier = fill(tmp_path / "predictions", WRITTEN["predicted"][1])
    check_output(earlier, overwrite=True, kind=PREDICTIONS, reads=[tmp_path])


# ------------------------------------------------------------------ where nothing can be written


def test_places_where_no_folder_can_be_are_refused_at_once(tmp_path):
    file = fill(tmp_path, {"file.txt": ""}) / "file.txt"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place, message in {
        file: "is a file",
        file / "out": r"file.txt' is a file",
        file / "deep" / "out": r"file.txt' is a file",
        tmp_path / ("x" * 300): "cannot be used",
        tmp_path / "circle": "cannot be used",
    }.items():
        with pytest.raises(ConfigError, match=message):
            check_output(place, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file.txt"]


def unwritable(monkeypatch, folder):
    """As permissions would have it, which do not bind the root user that tests may run as."""
    make = tempfile.mkdtemp

    def refusing(suffix=None, prefix=None, dir=None):
        if Path(dir or "") == folder:
            raise PermissionError(13, "Permission denied")
        return make(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refusing)


def test_a_parent_that_is_not_writable_is_refused_at_once(tmp_path, monkeypatch):
    unwritable(monkeypatch, tmp_path)
    for place in (tmp_path / "out", tmp_path / "deep" / "out"):
        with pytest.raises(ConfigError, match="Nothing can be written into") as why:
            check_output(place, overwrite=False)
        assert repr(str(tmp_path)) in str(why.value)
    assert not list(tmp_path.iterdir())


def test_a_check_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "deep" / "out", overwrite=False)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- replacing


def replace(folder, files):
    with whole_folder(folder, overwrite=True) as fresh:
        fill(fresh, files)


def stand_in(monkeypatch, folder):
    monkeypatch.chdir(folder)


def mount_at(monkeypatch, folder):
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == folder)


def lock_parent(monkeypatch, folder):
    unwritable(monkeypatch, folder.parent)


@pytest.mark.parametrize("keep", [stand_in, mount_at, lock_parent])
@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_cannot_be_renamed_stays_and_its_files_are_replaced(
    tmp_path, monkeypatch, keep, full
):
    folder = tmp_path / "out"
    folder.mkdir()
    if full:
        fill(folder, {**WRITTEN["fitted"][1], "old/deep/file": "", "kept/one": ""})
    number = folder.stat().st_ino
    keep(monkeypatch, folder)
    new = {**WRITTEN["trained"][1], "README.md": "new", "kept/two": "", "new/file": ""}
    replace("." if keep is stand_in else folder, new)
    assert folder.stat().st_ino == number
    assert files_in(folder) == new
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {name.split("/")[0] for name in new}
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_a_folder_that_cannot_be_renamed_as_it_was(tmp_path, monkeypatch):
    fill(tmp_path, WRITTEN["fitted"][1])
    monkeypatch.chdir(tmp_path)

    def break_off():
        with whole_folder(".", overwrite=True) as fresh:
            fill(fresh, {"README.md": "half"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert files_in(tmp_path) == WRITTEN["fitted"][1]


def test_what_a_killed_process_left_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {f"{SCRATCH}killed/README.md": "half"})
    check_output(".", overwrite=False)
    # Killed after the one step that counts: the checkpoint is there, and whole.
    fill(tmp_path / PENDING, WRITTEN["fitted"][1])
    with pytest.raises(ConfigError, match="is not empty"):
        check_output(".", overwrite=False, kind=CHECKPOINT)
    assert (tmp_path / "posterior.json").is_file()


def test_whoever_stands_inside_is_not_left_in_a_deleted_folder(tmp_path, monkeypatch):
    fill(tmp_path, WRITTEN["shown"][1])
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(ConfigError, match="Run the command from another folder"):
        check_output("..", overwrite=True, kind=DEMO)


def test_a_link_is_followed(tmp_path):
    real, link = fill(tmp_path / "real", WRITTEN["fitted"][1]), tmp_path / "link"
    link.symlink_to(real)
    replace(link, WRITTEN["predicted"][1])
    assert link.is_symlink()
    assert files_in(real) == WRITTEN["predicted"][1]
    (tmp_path / "to-nothing").symlink_to(tmp_path / "deep" / "made")
    replace(tmp_path / "to-nothing", STOCK)
    assert files_in(tmp_path / "deep" / "made") == STOCK


def fail_at(monkeypatch, *numbers, error=OSError):
    """Let these renames fail, counted from one."""
    rename, moves = Path.replace, []

    def failing(self, target):
        moves.append(target)
        if len(moves) in numbers:
            raise error("no room")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)


@pytest.mark.parametrize(("failing", "old"), [((1,), "out"), ((2,), "out"), ((2, 3), "beside")])
def test_a_replacement_that_cannot_be_put_in_place_loses_nothing(
    tmp_path, monkeypatch, failing, old
):
    folder = fill(tmp_path / "out", WRITTEN["fitted"][1])
    fail_at(monkeypatch, *failing)
    with pytest.raises(CheckpointError, match="no room") as why:
        replace(folder, STOCK)
    message = str(why.value)
    (fresh,) = (p for p in tmp_path.iterdir() if p != folder and p.suffix != ".old")
    assert f"It is in {str(fresh)!r}" in message
    assert files_in(fresh) == STOCK
    before = folder if old == "out" else fresh.with_name(f"{fresh.name}.old")
    assert files_in(before) == WRITTEN["fitted"][1]
    assert ("is unchanged" if old == "out" else repr(str(before))) in message


def test_who_stops_a_replacement_finds_the_old_folder(tmp_path, monkeypatch):
    folder = fill(tmp_path / "out", WRITTEN["fitted"][1])
    fail_at(monkeypatch, 2, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(folder, STOCK)
    assert files_in(folder) == WRITTEN["fitted"][1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_old_folder_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    folder = fill(tmp_path / "out", WRITTEN["fitted"][1])
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    with pytest.warns(UserWarning, match=r"could not be removed: .*\.old"):
        replace(folder, STOCK)
    assert files_in(folder) == STOCK


def test_a_long_name_is_no_harm(tmp_path):
    folder = tmp_path / ("ä" * 120)
    for files in (WRITTEN["fitted"][1], STOCK):
        replace(folder, files)
    assert files_in(folder) == STOCK


# ---------------------------------------------------------------- adapters that are not whole


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "adapter_model.safetensors is missing. Copy the whole folder"),
        ({"adapter_model.bin": "x"}, r"weights in adapter_model\.bin.*save_pretrained"),
        ({"adapter_model.safetensors": "x"}, r"adapter_model\.safetensors' is damaged.*Copy it"),
    ],
)
def test_which_file_of_an_adapter_is_missing_or_damaged(tmp_path, files, message):
    fill(tmp_path, {"adapter_config.json": LORA, **files})
    with pytest.raises(CheckpointError, match=message):
        checkpoint_labels(tmp_path)
