"""What the pages of all benchmarks are made with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pages")


def test_a_command_names_no_folder_of_this_machine(
    pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whole words are folders: one named `data` leaves the option `--data` alone."""
    told = ["benchmarks/a.py", "--data", "data", "--model=/some/model/", "--methods", "two words"]
    monkeypatch.setattr(sys, "argv", told)
    found = pages.command(DIR=Path("data"), MODEL=Path("/some/model"))
    assert found == "python benchmarks/a.py --data DIR --model=MODEL --methods 'two words'"


def test_a_page_that_is_written_again_tells_the_command_that_made_it(
    pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/a.py", "--data", "d", "--report"])
    assert pages.command() == "python benchmarks/a.py --data d"


def test_an_origin_says_how_many_threads_were_asked_for(
    pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/a.py"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    first, second = pages.origin("torch", "peft").split("  \n")
    assert first == "Command: `OMP_NUM_THREADS=3 python benchmarks/a.py`"
    assert "; torch " in second
    assert ", peft " in second
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pages.origin("torch").startswith("Command: `python benchmarks/a.py`")


def test_a_table_and_its_figures(pages: Any) -> None:
    assert pages.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert pages.spread([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert pages.spread([2.0], 1) == "2.0"


def test_a_page_is_printed_and_written_where_it_is_wanted(
    pages: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "page.md"
    pages.publish("# A\n", None)
    assert not output.parent.exists()
    pages.publish("# B\n", output)
    assert output.read_text() == "# B\n"
    assert capsys.readouterr().out == "# A\n\n# B\n\n"


def test_tables_go_between_the_markers_of_their_name(pages: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- results:x -->\nold\n<!-- /results:x -->\nb\n")
    pages.fill_readme("x", "new", readme)
    expected = "a\n<!-- results:x -->\nnew\n<!-- /results:x -->\nb\n"
    assert readme.read_text() == expected
    # A page without the markers stays as it is.
    pages.fill_readme("y", "other", readme)
    assert readme.read_text() == expected
