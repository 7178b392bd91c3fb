"""What pages of results have in common: where they come from, their tables, and where they go."""

from __future__ import annotations

import datetime
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from posthoc_bhpeft.checkpoints import write_text

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def command(**folders: Path) -> str:
    """The command that makes the page, with folders under the names given for them."""
    names = {str(folder): name for name, folder in folders.items()}
    words = ["python"]
    # With --report a page is only written again.
    for word in (one for one in sys.argv if one != "--report"):
        option, equals, value = word.rpartition("=")
        words.append(f"{option}{equals}{names.get(str(Path(value)), value)}")
    return shlex.join(words)


def origin(*libraries: str, **folders: Path) -> str:
    """Two lines of Markdown: the command, the date and the versions."""
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={threads} " if threads else ""
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    today = datetime.date.today().isoformat()
    return f"Command: `{setting}{command(**folders)}`  \nDate: {today}; {versions}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there is more than one value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def publish(text: str, output: Path | None) -> None:
    """Print a page, and write it where it is wanted."""
    print(text)
    if output is not None:
        write_text(output, text)


def fill_readme(name: str, text: str, readme: Path = README) -> None:
    """Put text between the README's markers of this name, where it has them."""
    start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    before, found, rest = readme.read_text(encoding="utf-8").partition(start)
    if found:
        write_text(readme, f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}")
