"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON; all text goes to stderr.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No text and no progress bars.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run wrote to --output.")
]
TextOption = Annotated[
    str | None, typer.Option("--text-column", help="Column with the text. [default: found]")
]
PairOption = Annotated[
    str | None, typer.Option("--text-pair-column", help="Column with a second text.")
]
LabelOption = Annotated[
    str | None, typer.Option("--label-column", help="Column with the label. [default: found]")
]
DropOption = Annotated[
    bool, typer.Option("--drop-unlabelled", help="Leave out rows whose label is missing or -1.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, mps. [default: the best there is]"),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--model", help="Base model, where the recorded one is not to be used."),
]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder that `bhpeft train` wrote.")
]


class PeftChoice(str, Enum):
    """What to train."""

    hybrid = "hybrid"
    lora = "lora"
    adapter = "adapter"
    prefix = "prefix"


class PriorChoice(str, Enum):
    """How the prior precision is chosen."""

    matched = "matched"
    visible = "visible"
    evidence = "evidence"
    held_out = "held-out"
    fixed = "fixed"


class GroupChoice(str, Enum):
    """Which blocks share a precision."""

    model = "model"
    kind = "kind"
    block = "block"


class CurvatureChoice(str, Enum):
    """Estimator of the curvature."""

    kronecker = "kronecker"
    kfac = "kfac"
    kfac_reduce = "kfac-reduce"
    diagonal = "diagonal"
    dense = "dense"


class DirectionsChoice(str, Enum):
    """Which output directions are differentiated."""

    auto = "auto"
    exact = "exact"
    contrasts = "contrasts"
    signs = "signs"
    fisher = "fisher"


class PredictiveChoice(str, Enum):
    """How predictions are made."""

    linearised = "linearised"
    sampled = "sampled"
    map = "map"


class LinkChoice(str, Enum):
    """From a Gaussian over logits to probabilities."""

    log_odds = "log-odds"
    monte_carlo = "monte-carlo"
    probit = "probit"
    bridge = "bridge"
