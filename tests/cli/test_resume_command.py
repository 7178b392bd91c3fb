"""`bhpeft fit --resume`: a fit that was stopped goes on, and ends as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from posthoc_bhpeft.curvature import fit as fitting
from tests.cli.tools import TINY, call, ok, refused
from tests.texts import make_base, make_folder

FIXED = ("--prior", "fixed", "--precision", "1", "--batch-size", "8", "--directions", "signs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    base, data = make_base(folder / "base"), make_folder(folder / "data")
    out = folder / "out"
    ok("train", "--model", base, "--data", data, "--output", out, "--epochs", 1, *TINY)
    return out


def numbers(folder: Path) -> dict[str, Any]:
    return load_file(folder / "posterior.safetensors")


def stop_at(monkeypatch: pytest.MonkeyPatch, n_batches: int, *arguments: Any) -> Any:
    """Run a fit that is interrupted in the batch after so many."""
    take_in, done = fitting.take_in, []

    def stopping(*given: Any) -> None:
        if len(done) == n_batches:
            raise KeyboardInterrupt
        done.append(1)
        take_in(*given)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "take_in", stopping)
        stopped = call("fit", *arguments, *FIXED, "--resume", "--save-every", 0)
    assert stopped.exit_code == 130, stopped.output
    return stopped


def test_a_stopped_fit_goes_on_and_ends_with_the_same_numbers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / "fitted", tmp_path / "fitted.partial"
    begun = stop_at(monkeypatch, 3, trained, "--output", out)
    assert f"keeps its sums in {kept}: if it is killed, the same command goes on" in begun.output
    assert kept.is_dir()
    assert not out.exists()
    again = call("fit", trained, "--output", out, *FIXED, "--resume", "--save-every", 0)
    assert again.exit_code == 0, again.output
    assert f"goes on after batch 3 of 8, whose sums are in {kept}" in again.output
    assert not kept.exists()
    ok("fit", trained, "--output", tmp_path / "never", *FIXED)
    found, never = numbers(out), numbers(tmp_path / "never")
    assert found.keys() == never.keys()
    assert not [name for name in never if not never[name].equal(found[name])]


def test_into_the_checkpoint_sums_lie_beside_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    stop_at(monkeypatch, 1, ".")
    assert (trained.with_name("out.partial")).is_dir()
    assert "goes on after batch 1 of 8" in call("fit", ".", *FIXED, "--resume").output
    assert not (trained.with_name("out.partial")).exists()
    assert (trained / "posterior.json").is_file()


def test_another_fit_does_not_go_on_from_these_sums(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fitted"
    stop_at(monkeypatch, 2, trained, "--output", out)
    message = refused("fit", trained, "--output", out, "--curvature", "diagonal", "--resume")
    assert "other curvature and number of batches. Go on with those, or remove" in message


def test_damaged_sums_are_told_before_any_pass(trained: Path, tmp_path: Path) -> None:
    kept = tmp_path / "fitted.partial"
    kept.mkdir()
    (kept / "partial-0-of-1.safetensors").write_bytes(b"cut off")
    message = refused("fit", trained, "--output", tmp_path / "fitted", "--resume")
    assert "is no partial fit" in message
    assert "Remove it to start from the first row" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save-every", 5), "--save-every is for --resume"),
        (("--resume", "--save-every", -1), "it must be 0 or more"),
    ],
)
def test_seconds_that_make_no_sense(
    options: Any, message: str, trained: Path, tmp_path: Path
) -> None:
    assert message in refused("fit", trained, "--output", tmp_path / "fitted", *options)
