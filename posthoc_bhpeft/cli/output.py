"""What a command says, and how it ends."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import typer

from posthoc_bhpeft.errors import BhpeftError


@dataclass
class Output:
    """Text for people and a result for machines, kept apart.

    Attributes:
        as_json: print the result as JSON on stdout, and all text on stderr.
        quiet: no text, no progress bars.
        stdout: the real standard output.
        values: the result so far.
    """

    as_json: bool
    quiet: bool
    stdout: TextIO
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        return not self.quiet

    def say(self, text: str = "") -> None:
        """Write a line for people."""
        if not self.quiet:
            stream = sys.stderr if self.as_json else self.stdout
            stream.write(text + "\n")
            stream.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table for people, its first column on the left and the figures on the right."""
        if self.quiet:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(columns):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        stream = sys.stderr if self.as_json else self.stdout
        Console(file=stream, highlight=False).print(table)

    def finish(self, **values: Any) -> None:
        """The result, printed at the end if JSON is wanted."""
        self.values.update(values)


@contextlib.contextmanager
def running(*, as_json: bool, quiet: bool, debug: bool) -> Iterator[Output]:
    """Run a command: its errors become one message and exit code 1, its result JSON.

    Other libraries write to standard output when it suits them, so it is theirs only as
    standard error in the meantime.
    """
    output = Output(as_json, quiet, sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _hush_libraries()
            yield output
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {_message(error, debug)}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        output.stdout.write(json.dumps(plain(output.values), ensure_ascii=False) + "\n")
        output.stdout.flush()


def plain(value: Any) -> Any:
    """A value as JSON knows it: numbers that are no numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return str(value) if isinstance(value, Path) else value


def _message(error: Exception, debug: bool) -> str:
    if isinstance(error, BhpeftError):
        return str(error)
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    text = str(error).strip().splitlines()
    more = "" if debug else " Run again with --debug to see where."
    return f"unexpected {type(error).__name__}: {text[0] if text else 'no message'}.{more}"


def _hush_libraries() -> None:
    """No bars for loading a file, no report that a new head is new, no line a product."""
    import logging
    import warnings

    import datasets
    import transformers

    # This is our own process, so its global settings are ours to set.
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # A line for every product of 8 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
