"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

MOST_SEED = 2**32 - 1
"""The largest that numpy takes."""


class PeftChoice(str, Enum):
    """What to train."""

    hybrid = "hybrid"
    lora = "lora"
    adapter = "adapter"
    prefix = "prefix"


class TaskChoice(str, Enum):
    """How rows are put to the model that is trained."""

    text = "text"
    choices = "choices"
    words = "words"


class QuantizeChoice(str, Enum):
    """In how many bits frozen weights are kept."""

    no = "no"
    eight = "8bit"
    four = "4bit"


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
LabelColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--label-columns",
        metavar="A,B,...",
        help="Several labels a row: a column of 0 and 1 for each, with commas between the names.",
    ),
]
SeparatorOption = Annotated[
    str | None,
    typer.Option(
        "--label-separator",
        help="Several labels a row in one text: what stands between them, such as ',' or '|'. An "
        "empty text has none.",
    ),
]
ResponseOption = Annotated[
    str | None,
    typer.Option(
        "--response-column",
        help="Column with the text that a language model should write after the prompt, which "
        "--text-column names. [default: found]",
    ),
]
DropOption = Annotated[
    bool, typer.Option("--drop-unlabelled", help="Leave out rows whose label is missing or -1.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=MOST_SEED, help="Seed of everything random.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, mps. [default: the best there is]"),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--model", help="Base model, where the recorded one is not to be used."),
]
# Of a training, for `train` and `stream`.
ModelOption = Annotated[
    str, typer.Option("--model", help="minilm (packaged), a folder, or a hub name.")
]
PeftOption = Annotated[PeftChoice, typer.Option("--peft", help="What to train.")]
EpochsOption = Annotated[int, typer.Option("--epochs", help="Passes over the rows, at most.")]
RateOption = Annotated[
    float | None,
    typer.Option("--lr", help="Peak learning rate. [default: 0.001, for prefix alone 0.01]"),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Rows a step.")]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=1,
        help="Tokens a text is cut at. [default: 128, or what the model has positions for]",
    ),
]
DecayOption = Annotated[float, typer.Option("--weight-decay", help="Of AdamW.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Share of the steps.")]
PatienceOption = Annotated[
    int, typer.Option("--patience", help="Epochs without a better NLL before stopping.")
]
RankOption = Annotated[int, typer.Option("--rank", help="Rank of LoRA.")]
FactorRankOption = Annotated[
    int | None,
    typer.Option("--rank", min=1, help="Keep factors 1024 wide and wider in this rank."),
]
BottleneckOption = Annotated[int, typer.Option("--bottleneck", help="Width of the adapters.")]
TokensOption = Annotated[int, typer.Option("--virtual-tokens", help="Length of the prefix.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Of the base model: float32, bfloat16, float16, auto.")
]
QuantizeOption = Annotated[
    QuantizeChoice,
    typer.Option("--quantize", help="Keep the frozen weights so, with bitsandbytes."),
]
QuantizeAsTrainedOption = Annotated[
    QuantizeChoice | None,
    typer.Option(
        "--quantize",
        help="Keep the frozen weights so, with bitsandbytes. [default: as in the training]",
    ),
]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder that `bhpeft train` wrote.")
]


class PriorChoice(str, Enum):
    """How the prior precision is chosen."""

    left_out = "left-out"
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

    fitted = "fitted"
    linearised = "linearised"
    sampled = "sampled"
    map = "map"


class LinkChoice(str, Enum):
    """From a Gaussian over logits to probabilities."""

    log_odds = "log-odds"
    monte_carlo = "monte-carlo"
    probit = "probit"
    bridge = "bridge"


class HeadsChoice(str, Enum):
    """Which outputs the rows of a round choose among."""

    shared = "shared"
    per_round = "per-round"


class EveryChoice(str, Enum):
    """How long a round lasts."""

    year = "year"
    month = "month"
    day = "day"


class ReviewChoice(str, Enum):
    """Which decision of an audit is kept with the posterior."""

    error = "error"
    share = "share"
