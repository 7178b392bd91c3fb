"""What a wheel holds: every file of the package, templates and data as well as modules."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("py.typed", "demo/satisfaction.jsonl", "audit/report/templates/page.html")

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along
    import tomli as tomllib


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]


def on_disk() -> list[str]:
    """Every file of the package, relative to the project."""
    files = (path for path in (ROOT / "posthoc_bhpeft").rglob("*") if path.is_file())
    return [p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts]


def git(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )


def test_the_files_that_nobody_imports_are_there() -> None:
    assert {f"posthoc_bhpeft/{name}" for name in NEEDED} <= {*on_disk()}


def test_the_wheel_is_the_whole_package() -> None:
    """Hatch takes all files of a package but those that a setting leaves out."""
    assert settings()["build"] == {
        "targets": {
            "wheel": {"packages": ["posthoc_bhpeft"]},
            "sdist": settings()["build"]["targets"]["sdist"],
        }
    }
    assert "/posthoc_bhpeft" in settings()["build"]["targets"]["sdist"]["include"]


def test_git_ignores_no_file_of_the_package() -> None:
    """Hatch leaves out what .gitignore names, even where git itself has the file."""
    if git("rev-parse", "--is-inside-work-tree").returncode:
        pytest.skip("this is no git repository")
    # Answers 1 where nothing is ignored, 0 with the names where something is.
    found = git("check-ignore", "--no-index", "--stdin", given="\n".join(on_disk()))
    assert found.returncode == 1, found.stdout + found.stderr


def test_a_wheel_holds_what_the_folder_holds(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        inside = {name for name in archive.namelist() if name.startswith("posthoc_bhpeft/")}
    assert inside == {*on_disk()}
