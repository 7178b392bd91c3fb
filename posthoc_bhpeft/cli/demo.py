"""`bhpeft demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posthoc_bhpeft.cli.options import (
    DebugOption,
    JsonOption,
    QuietOption,
    SeedOption,
)
from posthoc_bhpeft.cli.output import running


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for checkpoint, figures and results.")
    ] = Path("bhpeft-demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """See it work on real weights: customer messages, MAP against Bayes, in a few minutes.

    Trains adapter, LoRA and prefix together on 360 messages that come with the package, fits the
    posterior, compares both on 240 others, draws two figures, saves everything and loads it again.
    Needs the extra `demo`: pip install 'posthoc-bhpeft[demo]'. A second run replaces the first
    one's folder, nothing else.

    \b
    Example:
      bhpeft demo --output out
    """  # noqa: D301 - \b is the character that keeps lines apart
    with running(as_json=as_json, quiet=quiet, debug=debug) as out:
        from posthoc_bhpeft.demo import run_demo

        out.finish(command="demo", **run_demo(output, seed=seed, show=out))
